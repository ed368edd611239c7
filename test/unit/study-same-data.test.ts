import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { errorCode } from '../../shared/errors.ts';
import { foldsPlan } from '../../study/folds.ts';
import { mustShareData } from '../../study/same-data.ts';
import { conductStudy } from '../../study/study.ts';
import { FakeServer } from '../support/fake-server.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-study-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('data that change in the middle of a study', () => {
  const plan = () =>
    foldsPlan({ folds: 3, stratified: false, repeats: 2, base: [{ epochsMax: 1, seed: 7 }] });
  const conduct = (server: FakeServer, signal = new AbortController().signal) =>
    conductStudy({
      ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
      ...{ settings: 1, plan: plan(), parallel: 1, lookahead: 0, pollMs: 0 },
      ...{ onEvent: () => {}, signal },
    });
  const make = () => new FakeServer((_, evaluation) => 1 / evaluation);

  test('are refused, with the two trials and their counts', async () => {
    const server = make();
    server.raw = () => (server.created.length < 2 ? 'before' : 'after');
    await expect(conduct(server)).rejects.toThrow(
      /changed during the study: s-0-0 has 800 training.*, but s-0-2 has .* with another --name/,
    );
    expect(server.created).toHaveLength(3);
  });

  test('also when the study is called again another day', async () => {
    const server = make();
    const day = new AbortController();
    const { done } = await conductStudy({
      ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
      ...{ settings: 1, plan: plan(), parallel: 1, lookahead: 0, pollMs: 0, signal: day.signal },
      onEvent: ({ kind }) => kind === 'ended' && day.abort(),
    });
    expect(done).toBe(false);
    server.raw = () => 'after';
    expect(await conduct(server).catch(errorCode)).toBe('DP_DATA_MISMATCH');
  });

  test('that the seed makes are others of another seed, and only of another one', async () => {
    const server = make();
    server.depends = ['seed'];
    server.raw = ({ seed }) => String(seed);
    expect(await conduct(server)).toMatchObject({ done: true });
  });
});

test('trials are held against each other where what data() looked at is the same', () => {
  const trial = fc.record({
    seed: fc.constantFrom(1, 2),
    units: fc.constantFrom(8, 16),
    other: fc.constantFrom(3, 4),
    raw: fc.constantFrom('a', 'b'),
  });
  fc.assert(
    fc.property(
      fc.array(trial, { maxLength: 6 }),
      fc.subarray(['seed', 'hyperparameters.units'] as const),
      (trials, depends) => {
        const made = trials.map(({ seed, units, other, raw }, i) => ({
          id: `t-${i}`,
          config: resolveConfig({ seed, hyperparameters: { units, other } }),
          data: {
            ...{ trainCount: 8, validationCount: 2, testCount: 0, fingerprint: 'f', source: 's' },
            ...{ rawFingerprint: raw, depends: [...depends] },
          },
        }));
        const keyOf = (t: (typeof trials)[number]) =>
          `${depends.includes('seed') && t.seed}/${depends.includes('hyperparameters.units') && t.units}`;
        const same = trials.every((a) =>
          trials.every((b) => keyOf(a) !== keyOf(b) || a.raw === b.raw),
        );
        if (same) mustShareData(made);
        else expect(() => mustShareData(made)).toThrow(/changed during the study/);
      },
    ),
  );
});
