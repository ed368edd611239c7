import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { type AblationSettings, ablationPlan, ablationReport } from '../../study/ablate.ts';
import { writeReport } from '../../study/report.ts';
import { conductStudy } from '../../study/study.ts';
import { builtInVariants, checkVariants, ownVariants, VARIANT_SETS } from '../../study/variants.ts';
import { FakeServer } from '../support/fake-server.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-ablate-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const base = [{ epochsMax: 2, seed: 5 }];
const settings = (set: AblationSettings['set'], repeats = 3): AblationSettings => ({
  ...{ set, repeats, metric: 'error', base },
});
async function conduct(given: AblationSettings, value: (config: RunConfig) => number) {
  const server = new FakeServer(value);
  const { done, trials } = await conductStudy({
    ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
    ...{ settings: 1, plan: ablationPlan(given), parallel: 3, pollMs: 0, onEvent: () => {} },
    signal: new AbortController().signal,
  });
  expect(done).toBe(true);
  return trials;
}
const own = ownVariants(
  {
    'as it is': {},
    'no dropout': { hyperparameters: { dropout: 0 } },
    'more decay': { weightDecay: { rate: 0.1 } },
    unread: { hyperparameters: { unread: 1 } },
  },
  'the test',
);
/** Better without dropout, worse with decay; seeds differ by more than either. */
const errorOf = ({ seed, hyperparameters, weightDecay }: RunConfig) =>
  0.1 +
  0.02 * (seed % 3) -
  ('dropout' in hyperparameters ? 0.01 + 0.001 * (seed % 2) : 0) +
  (weightDecay.rate > 0 ? 0.02 + 0.001 * (seed % 2) : 0);

describe('an ablation', () => {
  test('runs each variant with each seed, the baseline first', async () => {
    const trials = await conduct(settings(own), errorOf);
    const seen = trials.map(({ point, config }) => `${point.variant} ${config.seed}`);
    expect(seen.slice(0, 3)).toEqual(['as it is 5', 'as it is 6', 'as it is 7']);
    expect(new Set(seen).size).toBe(12);
  });

  test('compares seed by seed, so that what the seeds have in common cancels out', async () => {
    const given = settings(own);
    const report = ablationReport('s', given, await conduct(given, errorOf));
    expect(report.rows.map(([name]) => name)).toEqual([...own.names]);
    expect(report.advice).toMatch(/Lower: 'no dropout' by 1\.\d\d %/);
    expect(report.advice).toMatch(/Higher: 'more decay' by 2\.\d\d %/);
    expect(report.advice).toContain("Choose 'no dropout'");
    // The means alone would show nothing: their intervals overlap.
    const [, without] = report.facts.variants as { value: { low: number; high: number } }[];
    expect(without!.value.high).toBeGreaterThan(0.12);
    const [path] = await writeReport(folder, report);
    const text = readFileSync(path!, 'utf8');
    expect(text).toContain('| no dropout |');
    expect(text).toContain('ablation.svg');
  });

  test('tells of a variant that changes nothing that the model does not read it', async () => {
    const given = settings(own);
    const { advice, rows } = ablationReport('s', given, await conduct(given, errorOf));
    expect(rows.find(([name]) => name === 'unread')).toContain('the same runs');
    expect(advice).toContain("'unread' gave exactly the same result as the baseline");
  });

  test('with one seed shows no difference for certain', async () => {
    const given = settings(own, 1);
    const { advice } = ablationReport('s', given, await conduct(given, errorOf));
    expect(advice).toContain('Not separated: ');
    expect(advice).toContain("'no dropout' −1.10 % (one seed)");
    expect(advice).toContain('more seeds than 1');
  });

  test('counts runs without a finite value', async () => {
    const given = settings(own);
    const diverges = (config: RunConfig) =>
      config.weightDecay.rate > 0 ? Number.NaN : errorOf(config);
    const { advice, rows } = ablationReport('s', given, await conduct(given, diverges));
    expect(advice).toContain("not counted: 3 of 'more decay'");
    expect(rows.find(([name]) => name === 'more decay')!.at(-1)).toBe('0 (3 failed)');
  });

  test('of a set that must know the size waits for the baseline', async () => {
    const set = builtInVariants('capacity', resolveConfig(...base))!;
    const given = settings(set, 2);
    const { decide } = ablationPlan(given);
    expect(decide([], 100).start.map(({ key }) => key)).toEqual(['0-5', '0-6']);
    const trials = await conduct(given, ({ hyperparameters }) =>
      hyperparameters.layers === 4 ? 0.2 : 0.1,
    );
    const deep = trials.filter(({ point }) => point.variant === 'deep and thin');
    expect(deep).toHaveLength(2);
    expect(deep[0]!.config.hyperparameters).toEqual({
      layers: 4,
      parameters: trials[0]!.parameters,
    });
  });
});

describe('variants', () => {
  test.each(VARIANT_SETS)(
    'of %s are valid configurations, also where patience is short',
    (name) => {
      for (const more of [
        {},
        { earlyStopping: { patience: 2 } },
        { optimizer: { kind: 'adam' } },
      ]) {
        const parts = [{ epochsMax: 3 }, more];
        const set = builtInVariants(name, resolveConfig(...parts))!;
        expect(set.names.length).toBeGreaterThanOrEqual(2);
        expect(() => checkVariants(set, parts)).not.toThrow();
      }
    },
  );

  test('that are wrong are named before anything runs', () => {
    expect(() => ownVariants({ one: {} }, 'x.json')).toThrow(/x\.json has 1 variants/);
    expect(() => ownVariants({ one: {}, two: 3 }, 'x.json')).toThrow(/'two', which is no object/);
    const mistyped = ownVariants({ one: {}, two: { learningrate: 1 } }, 'x.json');
    expect(() => checkVariants(mistyped, base)).toThrow(/variant 'two': .*learningRate/s);
  });
});
