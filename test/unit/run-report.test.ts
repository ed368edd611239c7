import { expect, test } from 'vitest';
import { base64Of } from '../../shared/base64.ts';
import { resolveConfig } from '../../shared/config.ts';
import { bitmapUrl } from '../../shared/report/bitmap.ts';
import { type RunReportFacts, runReportHtml } from '../../shared/report/run-report.ts';
import type { Evaluation, RunDetail, StudyDetail } from '../../shared/rest.ts';

const EVIL = '<img src=x onerror="alert(1)">&';
const evaluation = {
  ...{ step: 20, epoch: 1, seconds: 3, part: 'validation', loss: 0.5, error: 0.25, examples: 40 },
  ...{ metrics: { [EVIL]: 0.75 }, learningRate: 0.1, trainingLoss: 0.6 },
} as Evaluation;

const FACTS: RunReportFacts = {
  run: {
    ...{ id: 'a', name: EVIL, tags: [EVIL], note: EVIL, experiment: 'digits', phase: 'finished' },
    ...{ reason: EVIL, createdAt: '2026-01-01T00:00:00.000Z', step: 20, epoch: 1, examples: 640 },
    ...{ seconds: 3, parameters: 10, best: evaluation, test: null, staleness: null, stepsLost: 2 },
    rollbacks: [{ step: 5, to: null, learningRate: 0.1, reason: EVIL }],
    ...{ data: null, dataNote: EVIL, inputShape: [4], classes: [EVIL], experimentHash: EVIL },
    ...{ errorMeasure: 'misclassification', config: resolveConfig({}) },
  } as unknown as RunDetail,
  metrics: {
    training: {
      ...{ step: [1, 20], seconds: [0, 3], examples: [32, 640], loss: [200, 1], momentum: [null] },
      ...{ minibatchLoss: [2, 1], learningRate: [0.1, 0.1], gradientNorm: [1, 2], staleness: [0] },
    },
    evaluations: [evaluation],
    stalenessHistogram: [2],
  },
  checkpoints: [],
  examples: {
    ...{ step: 20, at: null },
    examples: [{ shown: { kind: 'text', text: EVIL }, caption: [EVIL], wrong: true }],
  },
  looks: [
    {
      ...{ title: EVIL, advice: EVIL, headings: [EVIL], rows: [[EVIL]] },
      figures: [
        {
          kind: 'matrix',
          title: EVIL,
          names: [EVIL, 'b'],
          counts: [
            [1, 0],
            [2, 3],
          ],
        },
        {
          ...{ kind: 'gallery', title: EVIL },
          cards: [{ shown: { kind: 'text', text: EVIL }, caption: [EVIL], wrong: false }],
        },
      ],
    } as unknown as StudyDetail,
  ],
};

test('a report is one page that loads nothing, and all that others wrote is text', () => {
  const html = runReportHtml(FACTS, '2026-01-02T00:00:00.000Z');
  expect(html).not.toContain('<img src=x');
  expect(html).not.toMatch(/<script|onerror="|javascript:/i);
  expect(html).toContain("default-src 'none'");
  // Nothing of another place, but for the names of XML.
  const outside = html.replaceAll('http://www.w3.org/2000/svg', '').match(/(?:https?:)?\/\/\w/g);
  expect(outside).toBeNull();
  expect(html).toContain('&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;');
  expect(html).toContain('error 25.00 %, loss 0.5');
  // The axis has the unit of the tables.
  expect(html).toContain('error, %');
  for (const title of ['Result', 'Curves', 'What happened', 'Predictions', 'Configuration']) {
    expect(html).toContain(`<h2>${title}</h2>`);
  }
  expect(html).not.toContain('<h2>Checkpoints</h2>');
  // The loss falls from 200 to 1.
  expect(html).toMatch(/<text [^>]*>100<\/text>/);
});

test('a picture is a bitmap that holds its pixels, and one that lacks some is none', () => {
  const pixels = base64Of(Uint8Array.from([0, 128, 255, 9, 8, 7]));
  const url = bitmapUrl({ kind: 'image', width: 3, height: 2, channels: 1, pixels })!;
  const bytes = Buffer.from(url.replace('data:image/bmp;base64,', ''), 'base64');
  expect(bytes.subarray(0, 2).toString()).toBe('BM');
  expect(bytes.length).toBe(54 + 2 * 12);
  expect(bytes.readUInt32LE(2)).toBe(bytes.length);
  expect([...bytes.subarray(54, 63)]).toEqual([0, 0, 0, 128, 128, 128, 255, 255, 255]);
  expect([...bytes.subarray(66, 69)]).toEqual([9, 9, 9]);
  const red = base64Of(Uint8Array.from([255, 1, 2]));
  const color = bitmapUrl({ kind: 'image', width: 1, height: 1, channels: 3, pixels: red })!;
  expect([...Buffer.from(color.split(',')[1]!, 'base64').subarray(54, 57)]).toEqual([2, 1, 255]);
  expect(bitmapUrl({ kind: 'image', width: 2, height: 1, channels: 3, pixels: red })).toBeNull();
});
