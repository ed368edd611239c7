import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { LOCAL_STEPS_HEADER } from '../../shared/local-steps.ts';
import { LocalSteps } from '../../worker/local-steps.ts';
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
import {
  createRun,
  EXCHANGED,
  gradientOf,
  parametersOf,
  TENSORS,
  VirtualWorker,
} from '../support/regression.ts';

/** Local steps: the production run and the worker's own steps, on least squares in plain arithmetic. */

const layout = createLayout(TENSORS);

describe('one local step', () => {
  test.each(['sgd', 'momentum', 'adam', 'adamw'] as const)(
    'without outer momentum is plain training with one worker, to rounding: %s',
    async (kind) => {
      const config = {
        ...{ optimizer: { kind }, clip: { norm: 3 }, weightDecay: { rate: 0.01 } },
        schedule: { kind: 'linear', steps: 200 },
      } as PartialConfig;
      const local = begun({ ...config, local: { steps: 1 } }, 1);
      await train(local);
      const plain = createRun({ ...LONG, ...config });
      new VirtualWorker(plain, problem).train();
      expect(local.run.step).toBe(200);
      expect(plain.step).toBe(200);
      // Two hundred updates, each rounded once more than the other.
      isNear(trained(local.run), trained(plain), 1e-4);
      const [seen, wanted] = [local.run, plain].map((run) => run.metrics().training);
      expect(seen!.learningRate.at(-1)).toBeCloseTo(wanted!.learningRate.at(-1)!, 10);
      expect(seen!.loss.at(-1)).toBeCloseTo(wanted!.loss.at(-1)!, 3);
    },
  );
});

describe('local SGD', () => {
  test('a synchronous step is the mean of what the workers have come to', async () => {
    const it = begun({ local: { steps: 5 }, consistency: { mode: 'synchronous' } }, 4);
    const { run, workers } = it;
    for (let round = 0; round < 4; round++) {
      for (const worker of workers) expect(worker.pull()).toBe(true);
      const start = trained(run);
      const ends = workers.map(({ held }) => {
        const theta = held!.theta.slice();
        for (let k = 0; k < 5; k++) {
          const lease = { ...held!.lease, start: held!.lease.start + 4 * k, count: 4 };
          const { payload } = gradientOf(problem, run.config.seed, lease, theta);
          for (let i = 0; i < TRAINED; i++) theta[i]! -= 0.05 * payload[i]!;
        }
        return theta;
      });
      for (const worker of workers) await worker.push();
      const mean = Array.from(start, (_, i) => ends.reduce((sum, end) => sum + end[i]! / 4, 0));
      isNear(trained(run), mean, 1e-5);
    }
    expect(run.step).toBe(4);
    expect(run.summary(0).examples).toBe(4 * 4 * 5 * 4);
  });

  test('an epoch is of as many examples as ever, each once, with workers that come, go and are late', async () => {
    const config = { local: { steps: 7 }, leaseSeconds: 10 } as const;
    const it = begun({ ...config, epochsMax: 3 }, 3);
    const { run, workers } = it;
    const all = [...workers];
    let now = 0;
    for (let turn = 0; !run.over && turn < 1000; turn++) {
      now += 500;
      if (turn === 3) {
        // Killed with what it holds, and nobody hears of it: its lease of seven minibatches runs out of time.
        workers[1]!.pull(now);
        workers.splice(1, 1);
      }
      if (turn === 5) {
        const late = new LocalWorker(run, 'late/1');
        workers.push(late);
        all.push(late);
      }
      if (turn === 8) run.call({ call: 'leave', worker: workers.shift()!.key });
      run.call({ call: 'tick', now });
      for (const worker of workers) if (worker.pull(now)) await worker.push(1, now);
      // Nothing is left but what the killed one holds.
      if (!workers.some(({ held }) => held)) now += 70_000;
    }
    expect(run.phase).toBe('finished');
    const used = all.flatMap((worker) => worker.used);
    expect(used.length).toBe(3 * 400);
    expect(new Set(used).size).toBe(3 * 400);
  });

  test('evaluations come once an epoch, whatever a step is of', async () => {
    const { run, workers } = begun({ local: { steps: 7 }, evaluateEverySteps: null }, 1);
    const other = new VirtualWorker(run, problem, 'evaluates/1');
    const validations = () =>
      run.metrics().evaluations.filter(({ part }) => part === 'validation').length;
    for (let i = 0; i < 15; i++) {
      workers[0]!.pull();
      await workers[0]!.push();
    }
    // 100 minibatches of an epoch in 14 leases of 7 and one of 2.
    expect(run.step).toBe(15);
    other.pull(0, 1);
    expect(validations()).toBe(1);
    expect(run.summary(0).epoch).toBe(1);
  });

  test('a lease of several minibatches lasts as many times as long', async () => {
    const { run, workers } = begun({ local: { steps: 5 }, leaseSeconds: 10 }, 1);
    workers[0]!.pull();
    run.call({ call: 'tick', now: 49_999 });
    expect(await workers[0]!.push(1, 49_999)).toMatchObject({ outcome: 'applied' });
    workers[0]!.pull(0);
    run.call({ call: 'tick', now: 50_001 });
    const other = new LocalWorker(run, 'other/1');
    other.pull(50_001);
    expect(other.held!.lease.start).toBe(20);
    expect(await workers[0]!.push(1, 50_001)).toMatchObject({ code: 'DP_PUSH_LEASE_LOST' });
  });
});

describe('the outer optimizer', () => {
  const H = 4;
  /** Deltas of a round, computed beside the run. */
  const deltaOf = ({ held, run }: LocalWorker) => {
    const theta = Float64Array.from(held!.theta);
    for (let k = 0; k < H; k++) {
      const lease = { ...held!.lease, start: held!.lease.start + 4 * k, count: 4 };
      const { payload } = gradientOf(problem, run.config.seed, lease, Float32Array.from(theta));
      for (let i = 0; i < TRAINED; i++) theta[i]! -= 0.05 * payload[i]!;
    }
    return Float64Array.from({ length: TRAINED }, (_, i) => held!.theta[i]! - theta[i]!);
  };
  const outer = { learningRate: 0.7, momentum: 0.9 };

  test.each([true, false])('is that of DiLoCo: nesterov %s', async (nesterov) => {
    const consistency = { mode: 'synchronous' } as const;
    const { run, workers } = begun(
      { local: { steps: H }, outer: { ...outer, nesterov }, consistency },
      3,
    );
    const m = new Float64Array(TRAINED);
    let theta: Float64Array | null = null;
    for (let round = 0; round < 6; round++) {
      for (const worker of workers) worker.pull();
      theta ??= Float64Array.from(trained(run));
      const deltas = workers.map(deltaOf);
      for (let i = 0; i < TRAINED; i++) {
        const delta = deltas.reduce((sum, each) => sum + each[i]! / 3, 0);
        m[i] = 0.9 * m[i]! + delta;
        theta[i]! -= 0.7 * (nesterov ? 0.9 * m[i]! + delta : m[i]!);
      }
      for (const worker of workers) await worker.push();
      isNear(trained(run), theta, 1e-4);
    }
  });

  test('delayed Nesterov moves by each push, and its momentum at every N-th', async () => {
    const { run, workers } = begun({ local: { steps: H }, outer: { ...outer, delayed: 3 } }, 3);
    const m = new Float64Array(TRAINED);
    const sum = new Float64Array(TRAINED);
    let theta: Float64Array | null = null;
    let pushes = 0;
    for (let round = 0; round < 5; round++) {
      for (const worker of workers) worker.pull();
      for (const worker of workers) {
        theta ??= Float64Array.from(trained(run));
        const delta = deltaOf(worker);
        pushes++;
        for (let i = 0; i < TRAINED; i++) {
          sum[i]! += delta[i]!;
          theta[i]! -= (0.7 * delta[i]!) / 3;
          if (pushes % 3 !== 0) continue;
          m[i] = 0.9 * m[i]! + sum[i]! / 3;
          sum[i] = 0;
          theta[i]! -= 0.7 * 0.9 * m[i]!;
        }
        await worker.push();
        isNear(trained(run), theta, 1e-4);
      }
    }
  });

  test('without a rate of its own moves by the share of one worker where each push is an update', async () => {
    for (const [mode, share] of [
      ['async', 1 / 3],
      ['bounded', 1 / 3],
      ['buffered', 1],
    ] as const) {
      const consistency = { mode, ...(mode === 'buffered' && { bufferSize: 1 }) };
      const { run, workers } = begun({ local: { steps: H }, consistency }, 3);
      for (const worker of workers) worker.pull();
      const theta = trained(run);
      const delta = deltaOf(workers[0]!);
      await workers[0]!.push();
      isNear(
        trained(run),
        Array.from(theta, (t, i) => t - share * delta[i]!),
        1e-5,
      );
    }
  });

  test('a push that is stale counts less where the configuration says so', async () => {
    const consistency = { mode: 'buffered', bufferSize: 2, damping: 'root' } as const;
    const { run, workers } = begun({ local: { steps: H }, consistency }, 3);
    for (const worker of workers) worker.pull();
    await workers[0]!.push();
    await workers[1]!.push();
    expect(run.step).toBe(1);
    expect(await workers[2]!.push()).toMatchObject({ outcome: 'damped', staleness: 1 });
  });
});

describe('elastic', () => {
  /** EASGD by its equations, in float64; each worker exchanges when its turn comes. */
  test.each([1, 3])(
    'averaging is that of the paper, with %i workers one after the other',
    async (p) => {
      const movingRate = 0.6;
      const { run, workers } = begun({ local: { steps: 3, push: 'elastic', movingRate } }, p);
      const alpha = movingRate / p;
      for (const worker of workers) worker.pull();
      const center = Float64Array.from(trained(run));
      const own = workers.map(() => Float64Array.from(trained(run)));
      for (let turn = 0; turn < 6 * p; turn++) {
        const worker = workers[turn % p]!;
        const x = own[turn % p]!;
        for (let k = 0; k < 3; k++) {
          const lease = {
            ...worker.held!.lease,
            start: worker.held!.lease.start + 4 * k,
            count: 4,
          };
          const { payload } = gradientOf(problem, run.config.seed, lease, Float32Array.from(x));
          for (let i = 0; i < TRAINED; i++) x[i]! -= 0.05 * payload[i]!;
        }
        for (let i = 0; i < TRAINED; i++) {
          const move = alpha * (x[i]! - center[i]!);
          x[i]! -= move;
          center[i]! += move;
        }
        await worker.push();
        isNear(trained(run), center, 1e-4);
        worker.pull();
      }
    },
  );

  test('in rounds the server moves by what all workers move', async () => {
    const consistency = { mode: 'synchronous' } as const;
    const movingRate = 0.8;
    const { run, workers } = begun(
      { local: { steps: 3, push: 'elastic', movingRate }, consistency },
      4,
    );
    for (const worker of workers) worker.pull();
    const center = Float64Array.from(trained(run));
    const own = workers.map(() => Float64Array.from(trained(run)));
    for (let round = 0; round < 5; round++) {
      for (const [w, { held }] of workers.entries()) {
        for (let k = 0; k < 3; k++) {
          const lease = { ...held!.lease, start: held!.lease.start + 4 * k, count: 4 };
          const at = Float32Array.from(own[w]!);
          const { payload } = gradientOf(problem, run.config.seed, lease, at);
          for (let i = 0; i < TRAINED; i++) own[w]![i]! -= 0.05 * payload[i]!;
        }
      }
      const before = center.slice();
      for (const x of own) {
        for (let i = 0; i < TRAINED; i++) {
          const move = (movingRate / 4) * (x[i]! - before[i]!);
          x[i]! -= move;
          center[i]! += move;
        }
      }
      for (const worker of workers) await worker.push();
      isNear(trained(run), center, 1e-4);
      for (const worker of workers) worker.pull();
    }
  });
});

describe('post-local SGD', () => {
  test('begins at its step; what was computed as a gradient is computed anew', async () => {
    const config = { local: { steps: 5, after: 10 }, outer: { momentum: 0.5 } } as const;
    const { run, workers } = begun({ ...config, optimizer: { kind: 'momentum' } }, 2);
    const [a, b] = workers;
    b!.pull();
    for (let i = 0; i < 10; i++) {
      a!.pull();
      expect(a!.held).toMatchObject({ local: null, lease: { count: 4 } });
      await a!.push();
    }
    expect(await b!.push()).toMatchObject({
      ...{ outcome: 'rejected', code: 'DP_PUSH_STALE' },
      message: expect.stringContaining(
        'the push is a gradient, and at step 10 the run takes pushes of kind delta',
      ),
    });
    b!.pull();
    expect(b!.held).toMatchObject({ local: { push: 'delta' }, lease: { count: 4 } });
    expect(await b!.push()).toMatchObject({ outcome: 'applied' });
    a!.pull();
    expect(a!.held!.lease.count).toBe(20);
    await train({ run, workers });
    expect(new Set(workers.flatMap(({ used }) => used)).size).toBe(2 * 400);
  });
});

describe('compute times', () => {
  test.each([{}, { consistency: { mode: 'synchronous' } }] as const)(
    'are told of a minibatch, not of a lease: %j',
    async (more) => {
      const { run, workers } = begun({ local: { steps: 10 }, ...more }, 2);
      for (let round = 0; round < 3; round++) {
        for (const worker of workers) worker.pull();
        for (const worker of workers) await worker.push(40);
      }
      expect(run.workerTally('w0/1')).toMatchObject({ computeMsMean: 4, computeMsRecent: 4 });
      const { computeMs } = run.metrics().training;
      expect(computeMs!.length).toBeGreaterThan(2);
      expect(new Set(computeMs)).toEqual(new Set([4]));
    },
  );
});

describe('the optimizer of a worker', () => {
  test('goes on from lease to lease, and begins anew where the server begins another life', async () => {
    const config = { local: { steps: 3 }, optimizer: { kind: 'adam' } } as const;
    const { run, workers } = begun(config, 1);
    const [worker] = workers;
    worker!.pull();
    const { lease, theta, local } = worker!.held!;
    const pushed = async (steps: LocalSteps) => {
      const result = (await steps.take(lease, theta, local!, async (minibatch, at) => {
        const { payload, loss } = gradientOf(problem, run.config.seed, minibatch, at);
        return { loss, gradient: payload, discard: () => {} };
      }))!;
      const change = [...result.payload];
      result.discard();
      return change;
    };
    const fresh = await pushed(new LocalSteps(run.config, layout));
    expect(await pushed(worker!.steps)).toEqual(fresh);
    // With the moments of the first lease the same minibatches lead elsewhere.
    expect(await pushed(worker!.steps)).not.toEqual(fresh);
    // What the trainer does where the generation is another one, as after each start of the server.
    worker!.steps.reset();
    expect(await pushed(worker!.steps)).toEqual(fresh);
  });
});

describe('dynamic local steps', () => {
  test('follow the measured speed: the fastest takes all, the others their share', async () => {
    const { run, workers } = begun({ local: { steps: 10, dynamic: true }, epochsMax: 10 }, 3);
    const speeds = [1, 2.5, 30];
    const counts = async () => {
      const taken: number[] = [];
      for (const [i, worker] of workers.entries()) {
        worker.pull();
        const { count } = worker.held!.lease;
        taken.push(count / 4);
        await worker.push((speeds[i]! * count) / 4);
      }
      return taken;
    };
    expect(await counts()).toEqual([10, 10, 10]);
    expect(await counts()).toEqual([10, 4, 1]);
    run.call({ call: 'leave', worker: workers.shift()!.key });
    speeds.shift();
    expect(await counts()).toEqual([10, 1]);
  });
});

describe('a checkpoint', () => {
  test.each([
    ['local SGD', { local: { steps: 3 } }],
    ['DiLoCo', { local: { steps: 3 }, outer: { learningRate: 0.7, momentum: 0.9 } }],
    [
      'delayed Nesterov',
      { local: { steps: 3 }, outer: { learningRate: 0.7, momentum: 0.9, delayed: 4 } },
    ],
    ['post-local SGD', { local: { steps: 3, after: 10 }, optimizer: { kind: 'momentum' } }],
  ] as [string, PartialConfig][])(
    'between two pushes changes nothing, to the bit: %s',
    async (_, config) => {
      const whole = begun(config, 1);
      await train(whole);
      let { run, workers } = begun(config, 1);
      for (let i = 0; !run.over; i++) {
        await train({ run, workers }, () => run.over || run.step >= 7 * (i + 1));
        if (run.over) break;
        const state = JSON.parse(JSON.stringify(run.state(0)));
        run = Run.restore(state, run.tensors());
        workers[0]!.join(run);
      }
      expect(run.step).toBe(whole.run.step);
      expect(parametersOf(run)).toEqual(parametersOf(whole.run));
    },
  );

  test('keeps the state of the outer optimizer under its own name', async () => {
    const { run, workers } = begun({ local: { steps: 3 }, outer: { momentum: 0.9 } }, 1);
    await train({ run, workers }, () => run.step >= 3);
    const names = run.tensors().map(({ name }) => name);
    expect(names).toContain('@outer.v');
    expect(names.filter((name) => name.startsWith('@optimizer'))).toEqual([]);
  });
});

test('workers that do not announce local steps are refused in words, and serve all other runs', () => {
  const { run } = begun({ local: { steps: 7 } }, 1);
  const plain = begun({}, 1).run;
  const old = abilitiesOf({});
  const able = abilitiesOf({ [LOCAL_STEPS_HEADER]: 'yes' });
  expect(lackOf(old, run)).toMatchObject({
    code: 'DP_PROTOCOL_VERSION',
    message: expect.stringMatching(
      /in run 'r' local.steps is 7, and this worker cannot take steps .* in a browser, of an older release/,
    ),
  });
  expect(lackOf(able, run)).toBeNull();
  expect(lackOf(old, plain)).toBeNull();
});

test('a run without local steps refuses the results of such', async () => {
  const { run, workers } = begun({}, 1);
  workers[0]!.pull();
  workers[0]!.held = { ...workers[0]!.held!, local: { push: 'delta', learningRate: 0.1 } };
  expect(await workers[0]!.push()).toMatchObject({
    ...{ outcome: 'rejected', code: 'DP_PUSH_STALE' },
    message: expect.stringContaining('the push is a delta'),
  });
  expect(run.step).toBe(0);
});

test('what is not finite leaves nothing behind on the worker', async () => {
  const { run, workers } = begun({ local: { steps: 2 }, optimizer: { kind: 'adam' } }, 1);
  const [worker] = workers;
  worker!.pull();
  const { lease, theta, local } = worker!.held!;
  const spoilt = await worker!.steps.take(lease, theta, local!, async () => ({
    ...{ loss: Number.NaN, gradient: new Float32Array(EXCHANGED).fill(Number.NaN) },
    discard: () => {},
  }));
  expect(spoilt!.loss).toBeNaN();
  spoilt!.discard();
  expect(await worker!.push()).toMatchObject({ outcome: 'applied' });
  expect(run.step).toBe(1);
});

test('a gradient whose square is infinite does not keep its parameter from moving for good', async () => {
  const { workers } = begun({ local: { steps: 2 }, optimizer: { kind: 'adam' } }, 1);
  const [worker] = workers;
  worker!.pull();
  const { lease, theta, local } = worker!.held!;
  const changeBy = async (first: number) => {
    const taken = await worker!.steps.take(lease, theta, local!, async () => {
      const gradient = new Float32Array(EXCHANGED);
      gradient[0] = first;
      return { loss: 1, gradient, discard: () => {} };
    });
    return taken!.payload[0];
  };
  await changeBy(1e25);
  expect(await changeBy(1)).not.toBe(0);
});
