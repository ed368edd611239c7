import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Value from 'typebox/value';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Studies } from '../../server/http/studies.ts';
import { shrunk } from '../../shared/example-view.ts';
import { FIGURE_LIMITS } from '../../shared/figure.ts';
import { LIMITS } from '../../shared/limits.ts';
import { type StudyReport, StudyReportSchema } from '../../shared/rest.ts';
import { ablationPlan, ablationReport } from '../../study/ablate.ts';
import { curvePlan, curveReport } from '../../study/curve.ts';
import { contactSheet, matrixFigure } from '../../study/figures.ts';
import { foldsPlan, foldsReport } from '../../study/folds.ts';
import { learningRatePlan, learningRateReport } from '../../study/learning-rate.ts';
import { chart, plotSvg } from '../../study/plot.ts';
import type { Report } from '../../study/report.ts';
import { createSearchPlan, type SearchSettings } from '../../study/search.ts';
import { searchReport } from '../../study/search-report.ts';
import { stoppingPlan, stoppingReport } from '../../study/stopping.ts';
import { conductStudy, type StudyPlan, type Trial } from '../../study/study.ts';
import { lookName, type TellingFacts, toldReport, trialsReport } from '../../study/telling.ts';
import { ownVariants } from '../../study/variants.ts';
import { FakeServer } from '../support/fake-server.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-studies-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const FACTS: TellingFacts = {
  ...{ kind: 'search', state: 'ended', experiment: 'e', run: null, runs: ['s-0'] },
  trials: { ended: 1, of: 2 },
};
const EMPTY: Report = { title: 't', headings: [], rows: [], advice: '', plots: {}, facts: {} };
const report = (more: Partial<Report> = {}): StudyReport =>
  toldReport(FACTS, { ...EMPTY, ...more });
const valid = (told: StudyReport) => [...Value.Errors(StudyReportSchema, told)];

describe('what a server keeps of studies', () => {
  test('outlives it: the newest first, each with what it told last', async () => {
    const studies = await Studies.open(folder, () => {});
    await studies.tell('a', report({ title: 'first' }), '2026-01-01T00:00:00.000Z');
    await studies.tell('b', report(), '2026-01-02T00:00:00.000Z');
    const seen = studies.version;
    await studies.tell('a', report({ title: 'second' }), '2026-01-03T00:00:00.000Z');
    expect(studies.version).not.toBe(seen);
    const again = await Studies.open(folder, () => {});
    expect(again.list()).toEqual(studies.list());
    expect(again.list().map(({ name, title }) => [name, title])).toEqual([
      ['a', 'second'],
      ['b', 't'],
    ]);
    expect(await again.read('a')).toMatchObject({
      ...{ name: 'a', title: 'second', runs: ['s-0'] },
      ...{ createdAt: '2026-01-01T00:00:00.000Z', updatedAt: '2026-01-03T00:00:00.000Z' },
    });
  });

  test('a damaged file is passed over and said; what was being written is cleared away', async () => {
    const studies = await Studies.open(folder, () => {});
    for (const name of ['good', 'bad']) await studies.tell(name, report(), 'now');
    const path = join(folder, '.studies', 'bad.json');
    await writeFile(path, (await readFile(path, 'utf8')).replace('"search"', '"sarch"'));
    await writeFile(join(folder, '.studies', 'x.json.12345678.tmp'), 'half');
    const lines: string[] = [];
    const again = await Studies.open(folder, (line) => lines.push(line));
    expect(again.list().map(({ name }) => name)).toEqual(['good']);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/bad\.json.*checksum/);
    expect((await readdir(join(folder, '.studies'))).sort()).toEqual(['bad.json', 'good.json']);
  });

  test('is of a bounded number, and can be removed', async () => {
    const studies = await Studies.open(folder, () => {}, 3);
    await Promise.all(['a', 'b', 'c'].map((name) => studies.tell(name, report(), 'now')));
    await expect(studies.tell('one-more', report(), 'now')).rejects.toMatchObject({
      code: 'DP_LIMIT',
    });
    await studies.tell('b', report(), 'later');
    await studies.remove('b');
    await expect(studies.remove('b')).rejects.toMatchObject({ code: 'DP_NOT_FOUND' });
    await expect(studies.read('b')).rejects.toMatchObject({ code: 'DP_NOT_FOUND' });
    await studies.tell('one-more', report(), 'now');
  });
});

describe('a report that travels', () => {
  const line = (n: number) => Array.from({ length: n }, (_, i) => ({ x: i, y: Math.sin(i) }));
  const image = (side: number) => ({
    ...{ kind: 'image' as const, width: side, height: side, channels: 3 as const },
    pixels: Uint8Array.from({ length: 3 * side * side }, (_, i) => i % 251),
  });

  test('is within the limits, whatever it was made of, and counts what it leaves out', () => {
    const told = report({
      headings: ['a'],
      rows: Array.from({ length: 2_500 }, (_, i) => ['x'.repeat(i)]),
      plots: {
        'long.svg': chart({
          ...{ title: 'long', x: { label: 'x' }, y: { label: 'y' } },
          series: [{ name: 'l', points: [...line(9_000), { x: Number.NaN, y: 1 }] }],
        }),
        'worst.svg': contactSheet(
          'worst',
          Array.from({ length: 130 }, () => ({ shown: image(200), caption: ['c'], wrong: true })),
        ),
      },
    });
    expect(valid(told)).toEqual([]);
    expect(told.omitted).toBe(500 + 30);
    const [long, worst] = told.figures;
    expect(long).toMatchObject({ kind: 'chart' });
    expect(long!.kind === 'chart' && long!.series[0]!.points.length).toBe(FIGURE_LIMITS.points);
    expect(worst!.kind === 'gallery' && worst!.cards[0]!.shown).toMatchObject({
      ...{ width: FIGURE_LIMITS.imageSide, height: FIGURE_LIMITS.imageSide },
    });
  });

  test('leaves out its largest figures when it is too large', () => {
    const cards = Array.from({ length: 100 }, () => ({
      ...{ shown: image(64), caption: ['c'], wrong: false },
    }));
    const told = report({
      plots: Object.fromEntries([
        ...[1, 2, 3, 4].map((i) => [`${i}.svg`, contactSheet(`${i}`, cards)]),
        ['small.svg', matrixFigure('small', [[1]])],
      ]),
    });
    expect(Buffer.byteLength(JSON.stringify(told))).toBeLessThanOrEqual(LIMITS.studyBytesMax);
    expect(told.omitted).toBe(2);
    expect(told.figures.at(-1)).toMatchObject({ kind: 'matrix' });
    expect(valid(told)).toEqual([]);
  });

  test('shrinks a picture by means, and keeps its proportions', () => {
    const pixels = Uint8Array.from({ length: 256 * 128 }, (_, i) => (i % 256 < 128 ? 40 : 200));
    const small = shrunk({ kind: 'image', width: 256, height: 128, channels: 1, pixels });
    expect([small.width, small.height]).toEqual([64, 32]);
    expect([small.pixels[0], small.pixels[63]]).toEqual([40, 200]);
  });

  test('of a look has a name that is allowed, another for each run', () => {
    const long = 'a'.repeat(64);
    const names = [lookName('look', 'r'), lookName('look', long), lookName('refuse', long)];
    expect(names[0]).toBe('look-r');
    expect(lookName('look', `${long.slice(0, 63)}b`)).not.toBe(names[1]);
    for (const name of names) expect(name).toMatch(/^[a-z0-9][a-z0-9_-]{0,63}$/);
  });
});

describe('a study can be looked at while it runs', () => {
  const base = [{ learningRate: 0.1, epochsMax: 3, earlyStopping: { patience: 3 } }];
  const search: SearchSettings = {
    ...{ method: 'random', trials: 10, seed: 1, metric: 'error', rounds: 1, kill: 'none' },
    ...{ learningRateFirst: false, eta: 3, first: 1, base },
    space: {
      learningRate: { kind: 'log', low: 0.001, high: 1 },
      'optimizer.kind': { kind: 'choice', values: ['sgd', 'adam'] },
    },
  };
  const rates = {
    ...{ low: 1e-4, high: 1, steps: 20, probeSteps: 10, seeds: 1, workers: 1, fork: null, base },
  };
  const set = ownVariants({ base: {}, fast: { learningRate: 0.5 } }, 'here');
  const ablation = { set, repeats: 2, metric: 'error' as const, base };
  const folds = { folds: 3, stratified: false, repeats: 1, base };
  const curve = { fractions: [0.25, 0.5, 1], repeats: 1, target: null, base };
  const KINDS: [string, StudyPlan, (trials: readonly Trial[]) => Report][] = [
    ['search', createSearchPlan(search), (trials) => searchReport('s', search, trials, '')],
    ['lr', learningRatePlan(rates), (trials) => learningRateReport('s', rates, trials, () => '')],
    ['ablate', ablationPlan(ablation), (trials) => ablationReport('s', ablation, trials)],
    ['folds', foldsPlan(folds), (trials) => foldsReport('s', folds, trials, () => '')],
    ['curve', curvePlan(curve), (trials) => curveReport('s', curve, trials)],
    ['stopping', stoppingPlan({ repeats: 2, base }), (trials) => stoppingReport('s', trials)],
  ];

  test.each(KINDS)(
    '%s: its figures can be drawn and travel, however far it is',
    async (kind, plan, make) => {
      const server = new FakeServer((config, i) => config.learningRate / (i + 1));
      let moments = 0;
      await conductStudy({
        ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
        ...{ settings: 1, plan, parallel: 3, pollMs: 0, keepCurves: true },
        signal: new AbortController().signal,
        onEvent(event) {
          if (event.kind !== 'progress') return;
          moments++;
          const { trials } = event;
          const now = { ...make(trials), ...{ rows: trialsReport('s', trials).rows } };
          for (const plot of Object.values(now.plots))
            expect(plotSvg(plot)).not.toMatch(/NaN|Infinity|undefined/);
          const told = toldReport({ ...FACTS, kind }, now);
          // As it comes out of JSON.
          expect(valid(JSON.parse(JSON.stringify(told)))).toEqual([]);
        },
      });
      expect(moments).toBeGreaterThan(2);
    },
  );
});
