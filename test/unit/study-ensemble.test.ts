import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Answers } from '../../shared/answers.ts';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { random } from '../../shared/random.ts';
import type { CreateRun } from '../../shared/rest.ts';
import {
  COMBINATIONS,
  type CombineSettings,
  combine,
  confidenceOf,
  detectorOf,
  expectedSquaredError,
  fitCombinations,
  momentsOf,
  squaredErrorsOfMeans,
} from '../../study/combine.ts';
import { ensembleReport } from '../../study/ensemble.ts';
import type { Examined, Member } from '../../study/examined.ts';
import { type EnsembleSettings, ensemblePlan, parseMembers } from '../../study/members.ts';
import { logLoss, logLosses } from '../../study/refuse.ts';
import { conductStudy, type Trial } from '../../study/study.ts';
import { FakeServer } from '../support/fake-server.ts';

/** Members that answer with these probabilities of classes. */
function memberOf(
  shares: readonly (readonly number[])[],
  truths: readonly number[],
  more: Partial<Member> = {},
): Member {
  const answers: Answers = {
    ...{ kind: 'classes', count: truths.length, width: shares[0]!.length, perExample: 1 },
    outputs: Float32Array.from(shares.flat(), Math.log),
    truths: Int32Array.from(truths),
    losses: new Float64Array(truths.length),
  };
  return { name: 'm', label: 'a member', cost: 1, parameters: 1000, answers, ...more };
}

/** A member that answers yes or no. @param yes probability of it. */
function detector(yes: readonly number[], truths: readonly number[], more: Partial<Member> = {}) {
  const shares = yes.map((p) => [Math.log(p / (1 - p))]);
  const member = memberOf(shares, truths, more);
  const outputs = Float32Array.from(shares.flat());
  const answers: Answers = { ...member.answers, kind: 'binary', width: 1, outputs };
  return { ...member, answers };
}

function numbers(outputs: readonly number[], truths: readonly number[]): Member {
  const answers: Answers = {
    ...{ kind: 'numbers', count: truths.length, width: 1, perExample: 1 },
    outputs: Float32Array.from(outputs),
    truths: Float32Array.from(truths),
    losses: new Float64Array(truths.length),
  };
  return { name: 'n', label: 'of numbers', cost: 1, parameters: 10, answers };
}

const settings: CombineSettings = {
  ...{ combinations: COMBINATIONS, tolerance: 0, accuracy: null, recall: 1, seed: 1 },
};
const alone = (members: readonly Member[]): Examined => ({ members, averages: [], features: null });

describe('the mean of members (Deep Learning §7.11)', () => {
  test('v and c by hand: errors 1, −1 and 1, 1 have v = 1 and c = 0, and their mean v/2', () => {
    const members = [numbers([1, -1], [0, 0]), numbers([1, 1], [0, 0])];
    const moments = momentsOf(members);
    expect(moments).toEqual({ count: 2, variance: 1, covariance: 0 });
    expect(expectedSquaredError(moments, 2)).toBe(0.5);
    expect(squaredErrorsOfMeans(members)).toEqual([1, 0.5]);
    // Errors that are the same (c = v) gain nothing; independent ones divide by k.
    expect(expectedSquaredError({ variance: 2, covariance: 2 }, 7)).toBeCloseTo(2);
    expect(expectedSquaredError({ variance: 2, covariance: 0 }, 8)).toBe(0.25);
  });

  const shareRows = (members: number, count: number, classes: number) =>
    fc.array(
      fc.array(
        fc
          .array(fc.double({ min: 0.01, max: 1, noNaN: true }), {
            ...{ minLength: classes, maxLength: classes },
          })
          .map((row) => row.map((p) => p / row.reduce((a, b) => a + b))),
        { minLength: count, maxLength: count },
      ),
      { minLength: members, maxLength: members },
    );

  test('has the squared error that the formula says, and a log loss no higher than their mean', () => {
    fc.assert(
      fc.property(shareRows(4, 6, 3), fc.infiniteStream(fc.nat(2)), (shares, stream) => {
        const truths = [...stream.take(6)];
        const members = shares.map((rows) => memberOf(rows, truths));
        const moments = momentsOf(members);
        expect(squaredErrorsOfMeans(members).at(-1)).toBeCloseTo(
          expectedSquaredError(moments, 4),
          10,
        );
        const fitted = {
          temperatures: [1, 1, 1, 1],
          pooled: 1,
          best: 0,
          gater: null,
          cascades: [],
        };
        const outcomes = combine(alone(members), fitted, { combinations: ['mean'] });
        const { outputs } = outcomes.find(({ way }) => way === 'mean')!;
        const losses = logLosses(outputs!, truths);
        const mean = losses.reduce((a, b) => a + b) / 6;
        // Jensen: −log is convex.
        const ofMembers = members.reduce((sum, { answers }) => sum + logLoss(answers, 1) / 4, 0);
        expect(mean).toBeLessThanOrEqual(ofMembers + 1e-9);
      }),
      { numRuns: 100 },
    );
  });

  test('of numbers is their mean, and nothing else is made of them', () => {
    const members = [numbers([1, 4], [2, 2]), numbers([5, 2], [2, 2])];
    const fitted = fitCombinations(alone(members), settings);
    expect(fitted).toEqual({ temperatures: [], pooled: 1, best: 0, gater: null, cascades: [] });
    const outcomes = combine(alone(members), fitted, settings);
    expect(outcomes.map(({ way }) => way)).toEqual(['member', 'member', 'best', 'mean']);
    expect(outcomes.at(-1)).toMatchObject({ outputs: Float64Array.from([3, 3]), cost: 2 });
  });
});

test('a vote goes to the class that most say; among equals to the likelier one', () => {
  const members = [
    memberOf(
      [
        [0.6, 0.4, 0],
        [0.9, 0.05, 0.05],
      ],
      [0, 0],
    ),
    memberOf(
      [
        [0.6, 0.4, 0],
        [0.2, 0.6, 0.2],
      ],
      [0, 0],
    ),
    memberOf(
      [
        [0, 1, 0],
        [0.1, 0.1, 0.8],
      ],
      [0, 0],
    ),
  ].map((member) => ({
    ...member,
    answers: { ...member.answers, outputs: member.answers.outputs.map((v) => Math.max(v, -50)) },
  }));
  const fitted = { temperatures: [1, 1, 1], pooled: 1, best: 0, gater: null, cascades: [] };
  const outcomes = combine(alone(members), fitted, { combinations: ['mean', 'vote'] });
  const of = (name: string) => outcomes.find(({ way }) => way === name)!.decisions!;
  expect([...of('vote').classes]).toEqual([0, 0]);
  expect(of('vote').confidence[0]).toBeCloseTo(2 / 3);
  // The mean of the first is (0.4, 0.6, 0): one that is sure outweighs two that are not.
  expect([...of('mean').classes]).toEqual([1, 0]);
});

describe('a cascade', () => {
  const truths = [0, 0, 0, 0];
  const first = Float64Array.from([0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.45, 0.55]);
  const second = Float64Array.from([0.6, 0.4, 0.6, 0.4, 0.6, 0.4, 0.6, 0.4]);
  const { answers } = memberOf(
    [
      [1, 0],
      [1, 0],
      [1, 0],
      [1, 0],
    ].map(() => [0.5, 0.5]),
    truths,
  );

  test('lets the first answer down to the lowest confidence that keeps the accuracy', () => {
    // Surest first: right, right, wrong (0.7), wrong (0.55). The second is always right.
    expect(confidenceOf({ first, second }, answers, { tolerance: 0, accuracy: null })).toBe(0.8);
    expect(confidenceOf({ first, second }, answers, { tolerance: 0.25, accuracy: null })).toBe(0.7);
    expect(confidenceOf({ first, second }, answers, { tolerance: 0, accuracy: 0.5 })).toBe(0.55);
    const bad = { first: second.map((p) => 1 - p), second: second.map((p) => 1 - p) };
    expect(confidenceOf(bad, answers, { tolerance: 0, accuracy: 0.5 })).toBeNull();
  });

  test('costs the first and, where it does not stand, the others too', () => {
    const cheap = memberOf(
      [
        [0.9, 0.1],
        [0.8, 0.2],
        [0.3, 0.7],
        [0.45, 0.55],
      ],
      truths,
      {
        label: 'cheap',
      },
    );
    const dear = memberOf(
      [
        [0.9, 0.1],
        [0.9, 0.1],
        [0.9, 0.1],
        [0.9, 0.1],
      ],
      truths,
      {
        ...{ label: 'dear', cost: 10 },
      },
    );
    const examined = alone([cheap, dear]);
    const fitted = fitCombinations(examined, settings);
    expect(fitted.best).toBe(1);
    const outcome = combine(examined, fitted, settings).find(({ way }) => way === 'cascade')!;
    expect(outcome.name).toBe('cascade: cheap, then dear');
    expect(outcome.cost).toBeCloseTo(1 + 10 / 2);
    expect(outcome.share).toBe(0.5);
    expect([...outcome.decisions!.classes]).toEqual([0, 0, 0, 0]);
  });

  test('of yes and no keeps the recall: few are rejected early, and the second says yes seldom', () => {
    const yes = [1, 1, 1, 1, 0, 0, 0, 0];
    const shares = (p: readonly number[]) => Float64Array.from(p.flatMap((q) => [1 - q, q]));
    const stages = {
      first: shares([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.1]),
      second: shares([0.9, 0.8, 0.6, 0.7, 0.5, 0.9, 0.1, 0.1]),
    };
    // All four must be found: the first keeps them all (0.3), the second the lowest of them (0.6).
    expect(detectorOf(stages, yes, 1)).toEqual({ threshold: 0.3, acceptance: 0.6 });
    // Half may be missed, a quarter by the first: it keeps three, of which the second keeps two.
    expect(detectorOf(stages, yes, 0.5)).toEqual({ threshold: 0.7, acceptance: 0.8 });
    expect(detectorOf(stages, [0, 0, 0, 0, 0, 0, 0, 0], 0.9)).toEqual({
      ...{ threshold: 0, acceptance: 0.5 },
    });
    const members = [
      detector([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.1], yes, { label: 'coarse' }),
      detector([0.95, 0.9, 0.85, 0.9, 0.2, 0.95, 0.1, 0.1], yes, { label: 'fine', cost: 4 }),
    ];
    const fitted = fitCombinations(alone(members), settings);
    const [outcome] = combine(alone(members), fitted, settings).filter(
      ({ way }) => way === 'cascade',
    );
    // Five of eight pass the first; what the second alone would take for a yes was rejected before.
    expect(outcome!.cost).toBeCloseTo(1 + (4 * 5) / 8);
    expect([...outcome!.decisions!.classes]).toEqual(yes);
  });
});

describe('a controller', () => {
  /** Which side of a line an example lies on tells which member is right. */
  const world = (count: number, cheapIsRight: (x: number) => boolean, costs = [1, 5]): Examined => {
    const draw = random(3, 3);
    const inputs = Float32Array.from({ length: 2 * count }, () => draw.normal());
    const truths = Array.from({ length: count }, () => draw.below(2));
    const said = (right: boolean, truth: number) =>
      right === (truth === 0) ? [0.9, 0.1] : [0.1, 0.9];
    const x = (i: number) => inputs[2 * i]!;
    return {
      averages: [],
      features: { values: inputs, width: 2 },
      members: [
        memberOf(
          truths.map((t, i) => said(cheapIsRight(x(i)), t)),
          truths,
          { cost: costs[0]! },
        ),
        memberOf(
          truths.map((t, i) => said(x(i) > -0.5, t)),
          truths,
          { cost: costs[1]! },
        ),
      ],
    };
  };
  const wrongOf = (examined: Examined) => {
    const fitted = fitCombinations(examined, { ...settings, combinations: ['controller'] });
    const outcome = combine(examined, fitted, settings).find(({ way }) => way === 'controller')!;
    const { truths, count } = examined.members[0]!.answers;
    const wrong = outcome.decisions!.classes.filter((said, i) => said !== truths[i]).length;
    return { share: wrong / count, cost: outcome.cost };
  };

  test('asks each member where that one is right', () => {
    // Each alone errs on about a third; together they can err on none.
    const { share, cost } = wrongOf(world(1200, (x) => x < 0.5));
    expect(share).toBeLessThan(0.03);
    expect(cost).toBeLessThan(5.5);
  });

  test('asks the cheaper one where both are right', () => {
    const { share, cost } = wrongOf(world(1200, () => true));
    expect(share).toBe(0);
    expect(cost).toBeLessThan(1.1);
  });
});

/** Truths drawn from classes, members with noise of their own. */
function noisy(count: number, size: number, seed = 5): Examined {
  const draw = random(seed, 1);
  const truths = Array.from({ length: count }, () => draw.below(3));
  return alone(
    Array.from({ length: size }, (_, m) => {
      const logits = truths.flatMap((t) =>
        [0, 1, 2].map((c) => (c === t ? 1.5 : 0) + 1.5 * draw.normal()),
      );
      const member = memberOf(
        truths.map(() => [1, 1, 1]),
        truths,
        { label: `member ${m}` },
      );
      return { ...member, answers: { ...member.answers, outputs: Float32Array.from(logits) } };
    }),
  );
}

describe('the report', () => {
  const given = {
    ...settings,
    ...{ name: 'e', tolerance: 0.01, recall: 0.99, notes: [] },
  };

  test('has each member and each way side by side, and says what to use', () => {
    const examined = noisy(1000, 5);
    const report = ensembleReport(given, examined, null);
    const error = (name: string) => report.validation.find((m) => m.name === name)!.error.mean;
    const { outputs, truths } = examined.members[2]!.answers;
    const wrong = Array.from(truths).filter((t, i) => {
      const row = outputs.subarray(3 * i, 3 * i + 3);
      return row.indexOf(Math.max(...row)) !== t;
    });
    expect(error('member 2')).toBeCloseTo(wrong.length / 1000, 10);
    expect(error('mean of the probabilities')).toBeLessThan(
      error('the best single one, with a temperature') - 0.05,
    );
    expect(['mean', 'calibrated']).toContain(report.use.way);
    expect(report.advice).toMatch(/to the average member/);
    expect(report.advice).toContain('§7.11');
    expect(report.rows.every((row) => row.length === report.headings.length)).toBe(true);
    expect(report.advice).not.toContain('test part');
    expect(Object.keys(report.plots)).toEqual(['ensemble.svg', 'members.svg']);
    expect(report.plots['ensemble.svg']).toMatchObject({ y: { percent: true } });
    const { moments, squaredErrorsOfMeans: means } = report.facts as {
      moments: { variance: number; covariance: number };
      squaredErrorsOfMeans: number[];
    };
    expect(means.at(-1)).toBeCloseTo(expectedSquaredError(moments, 5), 10);
  });

  test('members that are all alike are not worth their cost', () => {
    const [one] = noisy(600, 1).members;
    const report = ensembleReport(given, alone([one!, one!, one!]), null);
    expect(report.use.way).toBe('best');
    expect(report.advice).toContain('Use the best single model');
    expect(report.advice).toContain('a correlation of 1;');
  });

  test('members that are all right have nothing to add, and an interval all the same', () => {
    const truths = Int32Array.from({ length: 60 }, (_, i) => i % 3);
    const outputs = Float32Array.from({ length: 180 }, (_, i) =>
      truths[Math.floor(i / 3)] === i % 3 ? 200 : -200,
    );
    const [one] = noisy(60, 1).members;
    const right = { ...one!, answers: { ...one!.answers, truths, outputs } };
    const report = ensembleReport(given, alone([right, right]), null);
    expect(report.use.way).toBe('best');
    expect(report.advice).toContain('No member makes an error');
    expect([report.advice, ...report.rows.flat()].join(' ')).not.toMatch(/NaN|undefined/);
    // Wilson: of 60 right answers in a row up to 6 % may be wrong.
    expect(report.validation[0]!.error.high).toBeCloseTo(0.06, 2);
  });

  test.each([1, 7])('%i examples are too few, which is said with the number', (count) => {
    const few = noisy(count, 2);
    expect(() => ensembleReport(given, few, null)).toThrow(
      new RegExp(`has ${count} examples?; an ensemble needs 8`),
    );
  });

  test('looks at the test part when it is given, with all that was fitted before, and says when', () => {
    const at = '2026-01-02T03:04:05.000Z';
    const report = ensembleReport(given, noisy(600, 3), { examined: noisy(400, 3, 6), at });
    expect(report.advice).toContain(`The test part was evaluated on ${at}`);
    expect(report.facts.test).toMatchObject({ at });
    expect(report.test).toHaveLength(report.validation.length);
    expect(report.headings.at(-1)).toBe('test log loss');
  });

  test('of an average in training is held against the same training without', () => {
    const { members } = noisy(500, 3);
    const average = { ...members[2]!, label: 'an average', raw: 0 };
    const report = ensembleReport(given, { members, averages: [average], features: null }, null);
    const [row] = report.validation.filter(({ way }) => way === 'average');
    const mean = (label: string) => report.validation.find((m) => m.name === label)!.error.mean;
    expect(row!.toRaw!.mean).toBeCloseTo(mean('member 2') - mean('member 0'), 10);
    expect(report.advice).toContain('An average: ');
  });

  test('of numbers has squared errors', () => {
    const draw = random(1, 1);
    const truths = Array.from({ length: 300 }, () => draw.normal());
    const members = [0, 1, 2].map(() =>
      numbers(
        truths.map((t) => t + draw.normal()),
        truths,
      ),
    );
    const report = ensembleReport(given, alone(members), null);
    const mean = report.validation.find(({ way }) => way === 'mean')!;
    // Independent errors of variance 1: a third of it is left.
    expect(mean.error.mean).toBeGreaterThan(0.25);
    expect(mean.error.mean).toBeLessThan(0.42);
    expect(report.use.way).toBe('mean');
    expect(report.headings).toContain('squared error');
    expect(report.headings).not.toContain('log loss');
  });
});

describe('the runs of an ensemble', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'downpour-ensemble-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const base = [{ epochsMax: 2, seed: 7 }];
  const planOf = (more: Partial<EnsembleSettings>) =>
    ensemblePlan({ kind: 'seeds', count: 3, cycleEpochs: 2, averages: false, base, ...more });
  const conduct = async (
    more: Partial<EnsembleSettings>,
    server = new FakeServer(({ seed }) => 0.1 + 0.01 * (seed % 3)),
    client = server.client,
  ) => {
    const { done, trials } = await conductStudy({
      ...{ client, name: 's', folder, experiment: 'e', experimentHash: 'h' },
      ...{ settings: 1, plan: planOf(more), parallel: 2, pollMs: 0, onEvent: () => {} },
      signal: new AbortController().signal,
    });
    expect(done).toBe(true);
    return { trials, server };
  };

  test('seeds differ in all but the split; bagging in the resample too', async () => {
    const { trials } = await conduct({});
    const seen = trials.map(({ config: { seed, splitSeed, bootstrap } }) => ({
      ...{ seed, splitSeed, bootstrap },
    }));
    expect(seen).toEqual([7, 8, 9].map((seed) => ({ seed, splitSeed: 7, bootstrap: false })));
    const { start } = planOf({ kind: 'bagging' }).decide([], 9);
    expect(start.map(({ config }) => [config.seed, config.splitSeed, config.bootstrap])).toEqual(
      [7, 8, 9].map((seed) => [seed, 7, true]),
    );
  });

  test('folds leave one part out each, and one out of all', () => {
    const { start } = planOf({ kind: 'folds' }).decide([], 9);
    expect(start.map(({ config }) => config.validation)).toEqual(
      [0, 1, 2].map((fold) => ({ folds: 4, fold, stratified: false, apart: 3 })),
    );
    expect(new Set(start.map(({ config }) => config.splitSeed))).toEqual(new Set([7]));
  });

  test('snapshots go on from each other, one after the other, also after a crash', async () => {
    const server = new FakeServer(() => 0.1);
    server.failIn = 7;
    await expect(conduct({ kind: 'snapshots' }, server)).rejects.toThrow('killed');
    server.failIn = Infinity;
    const { trials } = await conduct({ kind: 'snapshots' }, server);
    expect(trials.map(({ fork }) => fork?.run)).toEqual([
      undefined,
      's-snapshots-0',
      's-snapshots-1',
    ]);
    expect(server.created).toEqual(trials.map(({ id }) => id));
    // 800 training examples in minibatches of 64, two epochs.
    expect(trials[1]!.config).toMatchObject({
      ...{ schedule: { kind: 'cosine', steps: 26 }, stepsMax: 26, evaluateEverySteps: 26 },
      ...{ splitSeed: 7, seed: 8, earlyStopping: { enabled: false } },
    });
  });

  test('a checkpoint that is still being written is waited for', async () => {
    const server = new FakeServer(() => 0.1);
    let missing = 3;
    const client = {
      ...server.client,
      createRun: (body: CreateRun) => {
        if (body.fork && missing-- > 0) throw new DownpourError('DP_CHECKPOINT_MISSING', 'not yet');
        return server.client.createRun(body);
      },
    };
    const { trials } = await conduct({ kind: 'snapshots', count: 2 }, server, client);
    expect(missing).toBe(-1);
    expect(trials.every(({ end }) => end?.kind === 'finished')).toBe(true);
  });

  test('averages are of the first one, from half of its way on', async () => {
    const { trials } = await conduct(
      { averages: true, base: [{ epochsMax: 8, seed: 7 }] },
      new FakeServer((_, evaluation) => 1 / evaluation),
    );
    const [ema, polyak] = trials.slice(3);
    expect(ema!.config).toMatchObject({ seed: 7, averaging: { kind: 'ema', startStep: 4 } });
    expect(polyak!.config).toMatchObject({ seed: 7, averaging: { kind: 'polyak', startStep: 4 } });
  });

  test('averages are those that the members have not', () => {
    const plan = planOf({ averages: true, base: [...base, { averaging: { kind: 'ema' } }] });
    const first = { label: 'one', end: {}, config: resolveConfig(...base), evaluations: [] };
    const best = { ...first, evaluations: [{ step: 4, loss: 1, error: 1 }] };
    const { start } = plan.decide([best, best, best] as unknown as readonly Trial[], 9);
    expect(start.map(({ config }) => config.averaging.kind)).toEqual(['none', 'polyak']);
    expect(plan.trialCount).toBe(5);
  });

  test('end where the first one fails, on which the others wait', async () => {
    const { trials } = await conduct({ kind: 'snapshots' }, new FakeServer(() => Number.NaN));
    expect(trials.map(({ end }) => end?.kind)).toEqual(['failed']);
  });

  test('are written as kind and number', () => {
    expect(parseMembers('bagging:8')).toEqual({ kind: 'bagging', count: 8 });
    expect(parseMembers('seeds')).toEqual({ kind: 'seeds', count: 5 });
    for (const text of ['seeds:1', 'seeds:x', 'trees:5', 'seeds:101']) {
      expect(() => parseMembers(text)).toThrow(`members are '${text}'`);
    }
  });
});
