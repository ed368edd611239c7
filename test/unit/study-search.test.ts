import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { newestUnfinished } from '../../cli/runs/train.ts';
import type { RunConfig } from '../../shared/config.ts';
import type { Space } from '../../shared/space.ts';
import { plotSvg } from '../../study/plot.ts';
import { createSearchPlan, ranked, type SearchSettings } from '../../study/search.ts';
import { searchReport } from '../../study/search-report.ts';
import { conductStudy, type StudyOptions, type Trial } from '../../study/study.ts';
import { FakeServer } from '../support/fake-server.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-study-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const space: Space = {
  learningRate: { kind: 'log', low: 0.001, high: 1 },
  minibatchSize: { kind: 'choice', values: [16, 64] },
};
/** Falls to a floor that is lowest at learningRate 0.05; diverges near 1. */
const curve = ({ learningRate, minibatchSize }: RunConfig, evaluation: number): number => {
  const floor = 0.02 + 0.1 * Math.log10(learningRate / 0.05) ** 2 + minibatchSize / 1e4;
  return learningRate > 0.9 ? Number.NaN : floor + 0.5 / (evaluation + 1);
};
const settings = (more: Partial<SearchSettings> = {}): SearchSettings => ({
  ...{ space, method: 'random', trials: 12, seed: 3, metric: 'error', rounds: 1 },
  ...{ learningRateFirst: false, kill: 'none', eta: 3, first: 1, base: [{ epochsMax: 9 }] },
  ...more,
});
const options = (server: FakeServer, given: SearchSettings): StudyOptions => ({
  ...{ client: server.client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
  ...{ settings: { ...given, base: null }, plan: createSearchPlan(given), parallel: 2, pollMs: 0 },
  ...{ signal: new AbortController().signal, onEvent: () => {} },
});
const points = (trials: readonly Trial[]) => trials.map(({ point }) => JSON.stringify(point));

/** The pull of the test's fake: the error of a trial that ended. */
const errorOf = (trial: Trial) => trial.evaluations.at(-1)?.error ?? Infinity;

describe('a search', () => {
  test('ends with exactly as many results as trials were asked for, the best one first', async () => {
    const server = new FakeServer(curve);
    const { done, trials } = await conductStudy(options(server, settings()));
    expect(done).toBe(true);
    expect(trials).toHaveLength(12);
    expect(new Set(points(trials)).size).toBe(12);
    expect(trials.every(({ end }) => end !== null)).toBe(true);
    const order = ranked(trials, 'error').map(errorOf);
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(server.evaluationsMade).toBeLessThanOrEqual(12 * 9);
  });

  test.each(['none', 'asha', 'median'] as const)(
    'with kill %s goes on after crashes of anybody, repeating no trial, to the same trials',
    async (kill) => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.record({ after: fc.nat(60), lost: fc.nat(2) }), { maxLength: 6 }),
          async (crashes) => {
            rmSync(folder, { recursive: true, force: true });
            const given = settings({ kill, base: [{ epochsMax: 9 }] });
            const server = new FakeServer(curve);
            for (const { after, lost } of crashes) {
              server.failIn = after;
              await conductStudy(options(server, given)).catch((error: Error) => {
                expect(error.message).toBe('killed');
              });
              server.lose(lost);
            }
            server.failIn = Infinity;
            const { done, trials } = await conductStudy(options(server, given));
            expect(done).toBe(true);
            expect(trials).toHaveLength(12);
            expect(trials.every(({ end }) => end !== null)).toBe(true);
            expect(new Set(server.created).size).toBe(server.created.length);
            expect(server.created).toHaveLength(12);
            rmSync(folder, { recursive: true, force: true });
            const whole = await conductStudy(options(new FakeServer(curve), given));
            expect(points(trials)).toEqual(points(whole.trials));
          },
        ),
        { numRuns: 6 },
      );
    },
  );

  test('whose record is lost finds its trials on the server', async () => {
    const server = new FakeServer(curve);
    await conductStudy(options(server, settings()));
    const made = server.evaluationsMade;
    rmSync(folder, { recursive: true, force: true });
    const { trials } = await conductStudy(options(server, settings()));
    expect(trials.filter(({ end }) => end?.kind === 'finished').length).toBeGreaterThan(8);
    expect(server.evaluationsMade).toBe(made);
    expect(server.created).toHaveLength(12);
  });

  test('stopped by a signal leaves runs that are stopped, and goes on', async () => {
    const server = new FakeServer(curve);
    const stop = new AbortController();
    let looks = 0;
    const onEvent = () => void (++looks === 20 && stop.abort());
    const first = await conductStudy({
      ...options(server, settings()),
      signal: stop.signal,
      onEvent,
    });
    expect(first.done).toBe(false);
    expect([...server.runs.values()].map(({ phase }) => phase)).not.toContain('training');
    const { done, trials } = await conductStudy(options(server, settings()));
    expect([done, trials.length]).toEqual([true, 12]);
    expect(server.created).toHaveLength(12);
  });

  test('refuses a record of other settings, and raises its trials when asked to', async () => {
    const server = new FakeServer(curve);
    const at = (trials: number, signature: unknown) => ({
      ...options(server, settings({ trials })),
      settings: signature,
    });
    await conductStudy(at(5, 'a'));
    await expect(conductStudy(at(5, 'b'))).rejects.toThrow('of a study with other settings');
    const { trials } = await conductStudy(at(8, 'a'));
    expect(trials).toHaveLength(8);
    expect(server.created).toHaveLength(8);
  });
});

describe('successive halving', () => {
  test('finds the best trial of a full search at a fraction of its cost', async () => {
    const many = (kill: SearchSettings['kill']) =>
      settings({ trials: 27, kill, base: [{ epochsMax: 27, earlyStopping: { enabled: false } }] });
    const full = new FakeServer(curve);
    const all = await conductStudy(options(full, many('none')));
    rmSync(folder, { recursive: true, force: true });
    const halved = new FakeServer(curve);
    const few = await conductStudy(options(halved, many('asha')));
    const best = (trials: readonly Trial[]) => ranked(trials, 'error')[0]!;
    expect(best(few.trials).index).toBe(best(all.trials).index);
    expect(best(few.trials).end?.kind).toBe('finished');
    expect(halved.evaluationsMade).toBeLessThan(0.4 * full.evaluationsMade);
    expect(few.trials).toHaveLength(27);
  });

  test('lets nobody pass a rung that is not among the best third there', async () => {
    const server = new FakeServer(curve);
    const base = [{ epochsMax: 9, earlyStopping: { enabled: false } }];
    const { trials } = await conductStudy(
      options(server, settings({ kill: 'asha', trials: 18, base })),
    );
    const beyond = (count: number) =>
      trials.filter(({ evaluations }) => evaluations.length > count);
    // At the time of a promotion fewer were there than in the end, so a few more than 18 / 3.
    expect(beyond(1).length).toBeLessThanOrEqual(10);
    expect(beyond(3).length).toBeLessThanOrEqual(5);
    expect(beyond(3).length).toBeGreaterThan(0);
  });

  test('needs a budget, and a first rung below it', () => {
    expect(() => createSearchPlan(settings({ kill: 'asha', base: [] }))).toThrow('set --epochs');
    const base = [{ epochsMax: 3 }];
    expect(() => createSearchPlan(settings({ kill: 'asha', first: 3, base }))).toThrow(
      'full trial has 3',
    );
  });
});

test('the median rule ends what is worse than the median, and costs less', async () => {
  const server = new FakeServer(curve);
  const { trials } = await conductStudy(options(server, settings({ kill: 'median', trials: 20 })));
  const killed = trials.filter(({ end }) => end?.kind === 'killed');
  expect(killed.length).toBeGreaterThan(3);
  const best = ranked(trials, 'error')[0]!;
  expect(best.end?.kind).toBe('finished');
  expect(server.evaluationsMade).toBeLessThan(0.8 * 20 * 9);
});

describe('narrowing', () => {
  test('looks ever closer around the best', async () => {
    const server = new FakeServer(curve);
    const given = settings({ trials: 15, rounds: 3 });
    const { trials } = await conductStudy(options(server, given));
    const spread = (from: number) => {
      const rates = trials
        .slice(from, from + 5)
        .map(({ point }) => Math.log10(point.learningRate as number));
      return Math.max(...rates) - Math.min(...rates);
    };
    expect(spread(5)).toBeLessThanOrEqual(1.5 + 1e-9);
    expect(spread(10)).toBeLessThanOrEqual(0.75 + 1e-9);
    expect(Math.min(...trials.slice(10).map(errorOf))).toBeLessThanOrEqual(
      Math.min(...trials.slice(0, 5).map(errorOf)),
    );
  });

  test('learning rate first: a third varies nothing else, the rest stays near the best rate', async () => {
    const given = settings({ learningRateFirst: true });
    const { trials } = await conductStudy(options(new FakeServer(curve), given));
    expect(trials.map(({ point }) => Object.keys(point).length)).toEqual([
      ...Array(4).fill(1),
      ...Array(8).fill(2),
    ]);
    const best = ranked(trials.slice(0, 4), 'error')[0]!.point.learningRate as number;
    for (const { point } of trials.slice(4)) {
      // A quarter of the three decades, the best within it.
      expect(Math.abs(Math.log10((point.learningRate as number) / best))).toBeLessThanOrEqual(0.75);
    }
  });

  test.each([
    [{ learningRateFirst: true, method: 'grid' as const, trials: 100 }, 'a grid is not narrowed'],
    [{ rounds: 20 }, '20 rounds need at least as many trials'],
    [
      { space: { minibatchSize: space.minibatchSize! }, learningRateFirst: true },
      'needs a range of learningRate',
    ],
    [
      { space: { minibatchsize: { kind: 'choice', values: [3] } } as Space },
      'minibatchsize is not a field',
    ],
    [
      { space: { learningRate: { kind: 'uniform', low: -1, high: 1 } } as Space },
      'learningRate is -1',
    ],
  ])('is refused before the first trial where it cannot be meant: %j', (more, reason) => {
    expect(() => createSearchPlan(settings(more))).toThrow(reason);
  });
});

describe('the report', () => {
  test('has a row a trial, a plot a hyperparameter, and advice with the numbers', async () => {
    const given = settings({ trials: 20 });
    const { trials } = await conductStudy(options(new FakeServer(curve), given));
    const report = searchReport('s', given, trials, 'downpour train x.ts');
    expect(report.rows).toHaveLength(20);
    expect(Object.keys(report.plots)).toEqual([
      ...['trials.svg', 'curves.svg', 'parallel.svg'],
      ...Object.keys(given.space).map((path) => `scatter-${path}.svg`),
      'importance.svg',
    ]);
    for (const plot of Object.values(report.plots))
      expect(plotSvg(plot)).not.toMatch(/NaN|Infinity|undefined/);
    expect(report.advice).toMatch(/best of 20 trials is trial \d+ with a validation error of \d/);
    expect(report.advice).toMatch(/learningRate \d+ %/);
    const shares = report.facts.importance as Record<string, number>;
    expect(shares.learningRate).toBeGreaterThan(5 * shares.minibatchSize!);
  });

  test('says what to do when nothing worked, and when the best lies at the border', async () => {
    const broken = settings({ trials: 4 });
    const none = await conductStudy(options(new FakeServer(() => Number.NaN), broken));
    expect(searchReport('s', broken, none.trials, '').advice).toContain(
      'No trial reached a finite value',
    );
    rmSync(folder, { recursive: true, force: true });
    const rising = settings({
      space: { learningRate: { kind: 'log', low: 0.001, high: 0.01 } },
      ...{ trials: 40, method: 'sobol', base: [{ epochsMax: 2 }] },
    });
    const { trials } = await conductStudy(options(new FakeServer(curve), rising));
    expect(searchReport('s', rising, trials, '').advice).toContain(
      'upper end of the range 0.001 … 0.01',
    );
  });
});

test('a run stops by itself after the evaluations that pauseAfter names, and goes on', () => {
  const run = createRun({ pauseAfter: [2, 3], epochsMax: 5, earlyStopping: { enabled: false } });
  const problem = createProblem();
  const worker = new VirtualWorker(run, problem);
  const evaluated = () =>
    run.metrics().evaluations.filter(({ part }) => part === 'validation').length;
  worker.train();
  expect([run.phase, evaluated()]).toEqual(['stopped', 2]);
  run.call({ call: 'resume' });
  worker.train();
  expect([run.phase, evaluated()]).toEqual(['stopped', 3]);
  run.call({ call: 'resume' });
  worker.train();
  expect([run.phase, evaluated()]).toEqual(['finished', 5]);
});

test('`downpour resume` leaves the trials of a study to the study', async () => {
  const server = new FakeServer(curve);
  const make = (id: string, config: object, study?: string) =>
    server.client.createRun({
      ...{ id, experiment: 'e', experimentHash: 'h', config },
      ...(study === undefined ? {} : { study }),
    });
  await make('b-trial', { workersMax: 1, epochsMax: 9 }, 'b');
  await server.client.stop('b-trial');
  await expect(newestUnfinished(server.client)).rejects.toThrow('call its command again');
  // The number of its workers makes no run a trial.
  await make('a-run', { epochsMax: 9, workersMax: 2 });
  expect(await newestUnfinished(server.client)).toBe('a-run');
});
