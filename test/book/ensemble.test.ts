import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { readTensors } from '../../files/tensor-file.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { expectedSquaredError, type Moments } from '../../study/combine.ts';
import type { MeasuredOutcome } from '../../study/ensemble.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { runHere } from '../support/command.ts';
import { workForAll } from '../support/study.ts';

// Deep Learning §7.11, bagging and other ensembles; §8.7.3, averages of parameters; §12.1.5, networks that decide
// which network answers. Members are trained for real, on real digits and cars.

const DIGITS = join(FIXTURES, 'few-digits.ts');
let cluster: Cluster;
let out: string;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), 'downpour-ensembles-'));
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  await workForAll(cluster, 2, [FIXTURES]);
});
afterAll(async () => {
  await cluster.close();
  await rm(out, { recursive: true, force: true });
});

interface Facts {
  readonly validation: readonly MeasuredOutcome[];
  readonly use: MeasuredOutcome;
  readonly moments: Moments;
  readonly squaredErrorsOfMeans: readonly number[];
  readonly test: { readonly at: string; readonly measured: readonly MeasuredOutcome[] } | null;
  readonly advice: string;
}

/** `downpour ensemble`. @returns what it says, and of each way the first. */
async function ensemble(file: string, folder: string, ...args: string[]) {
  const server = ['--server', cluster.url, '--data', cluster.folder, '--engine', 'wasm'];
  const own = ['--workers', '0', '--out', join(out, folder), '--json'];
  const ended = await runHere('ensemble', file, ...server, ...own, ...args);
  const { code, out: text, err: errors } = ended;
  if (code !== 0) return { code, errors, facts: null as never, of: null as never };
  // A study prints an event a line; of runs that are there, the result alone.
  const facts = (
    args.includes('--runs') ? JSON.parse(text) : JSON.parse(text.trim().split('\n').at(-1)!)
  ) as Facts;
  const of = (way: MeasuredOutcome['way']) => facts.validation.find((m) => m.way === way)!;
  return { code, errors, facts, of };
}

const set = (config: Record<string, unknown>) =>
  Object.entries(config).flatMap(([name, value]) => ['--set', `${name}=${value}`]);
const HALF = { validationFraction: 0.5 };

/** Trains runs of the user's to their end. */
async function train(runs: Record<string, PartialConfig>, file = DIGITS): Promise<void> {
  for (const [id, config] of Object.entries(runs)) {
    // One worker each: the same every time.
    await cluster.createRun(id, file, { ...config, workersMax: 1 });
  }
  for (const id of Object.keys(runs)) {
    await vi.waitFor(
      async () => {
        const kinds = (await cluster.client.checkpoints(id)).map(({ kind }) => kind);
        expect(kinds).toContain('final');
      },
      { timeout: 100_000, interval: 100 },
    );
  }
}

test('§7.11: "on average, the ensemble will perform at least as well as any of its members"', async () => {
  const settings = set({ ...HALF, 'hyperparameters.count': 1600, 'hyperparameters.units': 16 });
  const args = ['--members', 'bagging:5', '--averages', '--epochs', '8', ...settings];
  const { facts, of } = await ensemble(DIGITS, 'bagging', ...args);
  const mean = of('mean');
  // Beyond chance: the whole interval of the difference is below 0.
  expect(mean.toMembers!.high).toBeLessThan(0);
  expect(of('calibrated').loss!.mean).toBeLessThan(of('member').loss!.mean);
  expect(of('vote').toMembers!.mean).toBeLessThan(0);
  // Resamples of the same examples make errors that are alike, but not the same: c between 0 and v.
  const { moments, squaredErrorsOfMeans } = facts;
  expect(moments.covariance).toBeGreaterThan(0);
  expect(moments.covariance).toBeLessThan(0.97 * moments.variance);
  expect(squaredErrorsOfMeans[4]).toBeCloseTo(expectedSquaredError(moments, 5), 6);

  // §12.1.5: one member's cost instead of five, at an error that is no worse than the tolerance and chance.
  for (const way of ['controller', 'cascade'] as const) {
    expect(of(way).cost).toBeLessThan(2);
    expect(of(way).difference!.low).toBeLessThan(0.005);
    expect(of(way).error.mean).toBeLessThan(of('best').error.mean + 0.02);
  }
  // §8.7.3: the averages stand beside the training without.
  const averages = facts.validation.filter(({ way }) => way === 'average');
  expect(averages.map(({ name }) => name)).toEqual([
    'bagging 1 of 5, exponential average',
    'bagging 1 of 5, Polyak average of the second half',
  ]);
  for (const { toRaw } of averages) expect(toRaw!.mean).toBeLessThan(0.02);
  expect(facts.test).toBeNull();

  // What it takes to use it is there; called again, nothing is trained, and only then the test part looked at.
  const record = JSON.parse(await readFile(join(out, 'bagging', 'ensemble.json'), 'utf8'));
  expect(record.members).toHaveLength(5);
  expect(record.members[0].temperature).toBeGreaterThan(0.3);
  const { tensors } = await readTensors(join(out, 'bagging', record.members[4].file));
  expect(tensors.map(({ name }) => name)).toContain('dense_1/kernel');
  const before = (await cluster.client.runs()).length;
  const again = await ensemble(DIGITS, 'bagging', ...args, '--test', '--combine', 'mean');
  expect((await cluster.client.runs()).length).toBe(before);
  expect(again.of('mean').error.mean).toBe(mean.error.mean);
  expect(again.facts.test!.at).toMatch(/^\d{4}-\d\d-\d\dT/);
  expect(again.facts.advice).toContain(`The test part was evaluated on ${again.facts.test!.at}`);
  expect(again.facts.validation.some(({ way }) => way === 'controller')).toBe(false);
}, 200_000);

test('§12.1.5: "to select which one out of several expert networks": cheaper than the large one, nearly as accurate', async () => {
  const own = { ...HALF, testAtEnd: false, learningRate: 0.2 };
  await train({
    small: { ...own, epochsMax: 8, hyperparameters: { count: 3200, units: 8 } },
    large: { ...own, epochsMax: 8, hyperparameters: { count: 3200, units: 96 } },
  });
  const args = ['--runs', 'small,large', '--costs', '1,12', '--tolerance', '0.01'];
  const { facts, of } = await ensemble(DIGITS, 'pair', ...args);
  const [small, large] = facts.validation;
  expect(large!.error.mean).toBeLessThan(small!.error.mean - 0.02);
  expect(of('best').cost).toBe(12);
  const cascade = of('cascade');
  expect(cascade.name).toBe('cascade: small, then large');
  expect(cascade.cost).toBeLessThan(9);
  expect(cascade.share).toBeGreaterThan(0.3);
  // A point was given up; two standard errors of the difference are less than another.
  expect(cascade.difference!.mean).toBeLessThan(0.02);
  expect(of('controller').cost).toBeLessThan(12);
  expect(of('controller').error.mean).toBeLessThan(small!.error.mean);
}, 200_000);

test('§12.1.5: "low capacity, and are trained to have high recall": a cascade for what is rare', async () => {
  const file = join(FIXTURES, 'one-digit.ts');
  const own = { ...HALF, testAtEnd: false, learningRate: 0.2, epochsMax: 8 };
  await train(
    {
      coarse: { ...own, hyperparameters: { count: 3000, units: 2 } },
      fine: { ...own, hyperparameters: { count: 3000, units: 64 } },
    },
    file,
  );
  const args = ['--runs', 'coarse,fine', '--costs', '1,20', '--recall', '0.85'];
  const { of } = await ensemble(file, 'detectors', ...args, '--combine', 'mean,cascade');
  const cascade = of('cascade');
  // There are 150 eights: the recall promised on one half is kept on the other within two standard errors, 5 points.
  expect(cascade.recall).toBeGreaterThan(0.79);
  expect(cascade.precision).toBeGreaterThan(0.4);
  // Most examples are no eights, and most of those never reach the second.
  expect(cascade.share).toBeGreaterThan(0.4);
  expect(cascade.cost).toBeLessThan(13);
}, 200_000);

test('§8.7.3: snapshots of one training have a mean, with statistics of batch normalisation of its own', async () => {
  const file = join(FIXTURES, 'knobs.ts');
  const settings = set({ 'hyperparameters.batchNorm': true });
  const args = ['--members', 'snapshots:3', '--cycle-epochs', '2', '--epochs', '6', ...settings];
  const { facts, of } = await ensemble(file, 'snapshots', ...args);
  const average = of('average');
  expect(average.name).toBe('mean of the parameters');
  expect(average.cost).toBe(1);
  const members = facts.validation.filter(({ way }) => way === 'member');
  const worst = Math.max(...members.map(({ loss }) => loss!.mean));
  expect(average.loss!.mean).toBeLessThan(worst);
  const read = async (name: string) => {
    const path = join(out, 'snapshots', 'members', name, `${name}.safetensors`);
    return (await readTensors(path)).tensors.find((t) => t.name.endsWith('moving_mean'))!.values;
  };
  const { members: kept } = JSON.parse(
    await readFile(join(out, 'snapshots', 'ensemble.json'), 'utf8'),
  );
  const [mine, theirs] = [await read('mean-of-parameters'), await read(kept[0].run)];
  expect(mine).not.toEqual(theirs);
  // They are of the same inputs all the same.
  expect(Math.abs(mine[0]! - theirs[0]!)).toBeLessThan(1);
}, 200_000);

test('of numbers there is the mean; what needs probabilities is refused, and so is a wrong comparison', async () => {
  const cars = join(FIXTURES, 'cars.ts');
  const refused = await ensemble(cars, 'cars', '--combine', 'controller,mean');
  expect(refused.code).toBe(2);
  expect(refused.errors).toContain('controller need classes, or yes and no');
  expect(existsSync(join(out, 'cars'))).toBe(false);
  const args = ['--members', 'bagging:4', '--epochs', '20'];
  const { facts, of } = await ensemble(cars, 'cars', ...args);
  expect(facts.validation.map(({ way }) => way)).toEqual([
    ...Array(4).fill('member'),
    ...['best', 'mean'],
  ]);
  const members = facts.validation.slice(0, 4);
  const average = members.reduce((sum, m) => sum + m.error.mean / 4, 0);
  // The squared error is convex: the mean is no worse than the average member, whatever the members.
  expect(of('mean').error.mean).toBeLessThanOrEqual(average);
  const weights = await ensemble(DIGITS, 'w', '--members', 'seeds:2', '--combine', 'weights');
  expect(weights.errors).toContain('the mean of their parameters is not a useful model');
  await train({
    one: { epochsMax: 1, testAtEnd: false, seed: 1, hyperparameters: { count: 200 } },
    two: { epochsMax: 1, testAtEnd: false, seed: 2, hyperparameters: { count: 200 } },
  });
  const unlike = await ensemble(DIGITS, 'unlike', '--runs', 'one,two');
  expect(unlike.code).toBe(2);
  expect(unlike.errors).toContain('run two validates on other examples than run one');
}, 200_000);
