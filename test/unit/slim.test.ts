import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { vectorPlaces } from '../../server/core/vectors.ts';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import { type PartialConfig, resolveConfig, workerConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { LOCAL_STEPS_HEADER } from '../../shared/local-steps.ts';
import { random } from '../../shared/random.ts';
import {
  begun,
  isNear,
  LONG,
  LocalWorker,
  problem,
  TRAINED,
  train,
  trained,
} from '../support/local-worker.ts';
import { createRun, gradientOf, TENSORS, VirtualWorker } from '../support/regression.ts';

/** Look-ahead with the velocity on the worker (DANA-Slim): the twin of the one that the server keeps. */

const SLIM = { correction: 'lookahead', velocity: 'worker' } as const;
const MOMENTUM = 0.9;
const slim = (config: PartialConfig = {}): PartialConfig => ({
  ...{ optimizer: { kind: 'momentum', momentum: MOMENTUM }, consistency: SLIM, learningRate: 0.02 },
  ...config,
});

describe('with one worker', () => {
  const WITH: readonly (readonly [string, PartialConfig])[] = [
    ['a constant rate', {}],
    ['a rate that falls', { schedule: { kind: 'linear', steps: 200 } }],
    ['a momentum that rises', { momentumSchedule: { steps: [50], values: [0.5, 0.9] } }],
    ['clipping', { clip: { norm: 0.5 } }],
    ['weight decay', { weightDecay: { rate: 0.01 } }],
    ['`nesterov`', { optimizer: { kind: 'nesterov', momentum: 0.8 } }],
  ];

  test.each(WITH)('it is the velocity on the server, to rounding: %s', async (_, config) => {
    const own = begun(slim(config), 1);
    await train(own);
    const consistency = { correction: 'lookahead' } as const;
    const server = createRun({ ...LONG, ...slim({ ...config, consistency }) });
    new VirtualWorker(server, problem).train();
    expect([own.run.step, server.step]).toEqual([200, 200]);
    // Two hundred updates, each rounded once more than the other.
    isNear(trained(own.run), trained(server), 1e-4);
    expect(own.run.metrics().training.learningRate).toEqual(server.metrics().training.learningRate);
  });
});

describe('with several workers', () => {
  /** v ← α v − ε g, φ ← φ + α v − ε g for the worker that pushes: Hakimi et al. 2019, in float64. */
  class Replay {
    readonly phi: number[];
    readonly velocities = new Map<string, number[]>();

    constructor(start: Float32Array) {
      this.phi = [...start];
    }

    push(worker: string, gradient: Float32Array, rate: number): void {
      const v = this.velocities.get(worker) ?? this.phi.map(() => 0);
      this.velocities.set(worker, v);
      for (const [i] of v.entries()) {
        v[i] = MOMENTUM * v[i]! - rate * gradient[i]!;
        this.phi[i]! += MOMENTUM * v[i]! - rate * gradient[i]!;
      }
    }
  }

  test.each([1, 2, 3])('it follows the equations in any order of pushes: seed %i', async (seed) => {
    const { run, workers } = begun(slim({ epochsMax: 4 }), 5);
    const draw = random(seed, 1);
    for (const worker of workers) worker.pull();
    const replay = new Replay(trained(run));
    for (let i = 0; i < 120; i++) {
      const worker = workers[Math.floor(draw.uniform() * workers.length)]!;
      const { lease, theta } = worker.held!;
      const { payload } = gradientOf(problem, run.config.seed, lease, theta);
      replay.push(worker.key, payload.slice(0, TRAINED), 0.02);
      expect(await worker.push()).toMatchObject({ outcome: 'applied' });
      worker.pull();
    }
    isNear(trained(run), replay.phi, 1e-4);
    // One that is another process begins with no velocity, and the others go on.
    run.call({ call: 'leave', worker: workers[0]!.key });
    const [late] = [new LocalWorker(run, 'late/1')];
    for (const worker of [late!, workers[1]!, late!]) {
      worker.pull();
      const { lease, theta } = worker.held!;
      const { payload } = gradientOf(problem, run.config.seed, lease, theta);
      replay.push(worker.key, payload.slice(0, TRAINED), 0.02);
      await worker.push();
    }
    isNear(trained(run), replay.phi, 1e-4);
    expect(run.summary(0).correction).toMatchObject({
      ...{ kind: 'lookahead', lookahead: true, velocities: 0 },
      text: '5 workers: look-ahead on, by velocities on the workers',
    });
  });

  test('a push that is rejected leaves nothing in the velocity', async () => {
    const config = slim({ consistency: { ...SLIM, stalenessMax: 0 } });
    const { run, workers } = begun(config, 2);
    const [one, two] = workers as [LocalWorker, LocalWorker];
    one.pull();
    const replay = new Replay(trained(run));
    for (let turn = 0; turn < 10; turn++) {
      for (const worker of [one, two]) worker.pull();
      const { lease, theta } = one.held!;
      const { payload } = gradientOf(problem, run.config.seed, lease, theta);
      replay.push(one.key, payload.slice(0, TRAINED), 0.02);
      expect(await one.push()).toMatchObject({ outcome: 'applied' });
      expect(await two.push()).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
    }
    two.pull();
    const { lease, theta } = two.held!;
    const { payload } = gradientOf(problem, run.config.seed, lease, theta);
    replay.push(two.key, payload.slice(0, TRAINED), 0.02);
    expect(await two.push()).toMatchObject({ outcome: 'applied' });
    isNear(trained(run), replay.phi, 1e-4);
  });

  test.each(['async', 'bounded'] as const)(
    'a replica goes on to the bit, and after a crash the velocities begin anew: %s',
    async (mode) => {
      const it = begun(slim({ consistency: { ...SLIM, mode } }), 3);
      await train(it, () => it.run.step === 30);
      const { run, workers } = it;
      const replica = Run.replicate(
        JSON.parse(JSON.stringify(run.replica())),
        new Map([...run.replicaVectors()].map(([name, values]) => [name, values.slice()])),
      );
      run.follow((call, payload) => void replica.call(call, payload.slice()));
      await train(it, () => run.step === 60);
      expect(trained(replica)).toEqual(trained(run));
      const restored = Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors());
      expect(trained(restored)).toEqual(trained(run));
      const [first] = workers;
      first!.join(restored);
      first!.pull();
      const replay = new Replay(trained(restored));
      const { lease, theta } = first!.held!;
      const { payload } = gradientOf(problem, run.config.seed, lease, theta);
      replay.push('first', payload.slice(0, TRAINED), 0.02);
      // As the trainer does where the generation is another one.
      first!.steps.reset();
      await first!.push();
      isNear(trained(restored), replay.phi, 1e-5);
    },
  );
});

test('the server keeps no velocity, and a checkpoint has none', () => {
  const layout = createLayout(TENSORS);
  const [own, server] = [slim(), slim({ consistency: { correction: 'lookahead' } })].map((config) =>
    resolveConfig(config),
  );
  expect(vectorPlaces(server!, layout).velocities).toBeGreaterThan(0);
  expect(vectorPlaces(own!, layout).velocities).toBe(0);
  const { run, workers } = begun(slim(), 1);
  workers[0]!.pull();
  expect(
    run
      .tensors()
      .map(({ name }) => name)
      .filter((name) => /velocity|optimizer/.test(name)),
  ).toEqual([]);
});

test('workers hear of it as of one local step, and those that take none are refused in words', () => {
  const config = resolveConfig(slim());
  expect(workerConfig(config).local).toMatchObject({
    ...{ steps: 1, push: 'delta', optimizer: { kind: 'nesterov', momentum: MOMENTUM } },
  });
  expect(workerConfig(config).consistency).not.toHaveProperty('velocity');
  const run = { id: 'r', config };
  expect(lackOf(abilitiesOf({ [LOCAL_STEPS_HEADER]: 'yes' }), run)).toBeNull();
  expect(lackOf(abilitiesOf({}), run)).toMatchObject({
    code: 'DP_PROTOCOL_VERSION',
    message: expect.stringMatching(/in run 'r' consistency.velocity is 'worker', and this worker/),
  });
});

test.each<readonly [PartialConfig, RegExp]>([
  [{ consistency: { correction: 'auto' } }, /correction is 'auto'.* set correction lookahead/],
  [{ optimizer: { kind: 'adam' } }, /optimizer.kind is 'adam'.* use momentum or nesterov/],
  [{ optimizer: { kind: 'sgd' } }, /optimizer.kind is 'sgd'/],
  [{ consistency: { ...SLIM, mode: 'synchronous' } }, /correction is 'lookahead'.*none is stale/],
  [{ consistency: { ...SLIM, mode: 'backup' } }, /correction is 'lookahead'.*none is stale/],
  [{ consistency: { ...SLIM, mode: 'buffered' } }, /lookahead.*no momentum of their own/],
  [{ consistency: { ...SLIM, depth: 2 } }, /depth is 2.* set depth 1/],
  [{ local: { steps: 5 } }, /'worker' and local.steps is 5.* leave out local and outer/],
  [{ outer: { momentum: 0.9 } }, /'worker' and outer.momentum is 0.9/],
  [
    { groups: { a: { learningRate: 1 } } } as PartialConfig,
    /velocity is 'worker' with groups \(a\)/,
  ],
])('what does not go with it is refused in words: %j', (config, words) => {
  expect(() => resolveConfig(slim(), config)).toThrow(words);
  expect(() => resolveConfig(slim())).not.toThrow();
});
