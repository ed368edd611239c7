import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { fragmentBytes } from '../../server/core/snapshot.ts';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig, workerConfig } from '../../shared/config.ts';
import { fragmentOf, fragmentPieces, pieceSize } from '../../shared/fragments.ts';
import { createLayout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { FRAGMENTS_HEADER, fragmentsOf, LOCAL_STEPS_HEADER } from '../../shared/local-steps.ts';
import { partition } from '../../shared/partition.ts';
import type { Acknowledgement, Join, Lease, LocalWork, Push } from '../../shared/protocol.ts';
import { mix, random } from '../../shared/random.ts';
import { type Compressor, createCompressor } from '../../worker/compressor.ts';
import { FragmentedParameters } from '../../worker/fragments.ts';
import { LocalSteps } from '../../worker/local-steps.ts';

/** Parameters that are exchanged by fragments: the production run and the worker's own steps, on a problem by elements. */

/** Five blocks of 256, the last one not full, and statistics. */
const TENSORS: Join['tensors'] = [
  { name: 'a', shape: [25, 20], role: 'trainable' },
  { name: 'b', shape: [601], role: 'trainable' },
  { name: 'm', shape: [3], role: 'statistics', momentum: 0.9 },
];
const LAYOUT = createLayout(TENSORS);
const { trainableSize: N, exchangedSize } = LAYOUT;
const DATA = { trainCount: 400, validationCount: 4, testCount: 4, fingerprint: 'f', source: 's' };

/** Each element has a curvature and, in each minibatch, a target of its own. */
function gradientOf({ epoch, start }: Pick<Lease, 'epoch' | 'start'>, theta: ArrayLike<number>) {
  const draw = random(mix(epoch, start), 5);
  const gradient = new Float32Array(exchangedSize);
  let loss = 0;
  for (let i = 0; i < N; i++) {
    const curvature = 0.5 + (i % 7) / 7;
    const error = theta[i]! - draw.normal();
    gradient[i] = curvature * error;
    loss += (curvature * error * error) / (2 * N);
  }
  gradient.fill(1, N);
  return { gradient, loss };
}

interface Held {
  readonly lease: Lease;
  readonly step: number;
  readonly local: LocalWork;
  readonly bytes: number;
  readonly fragment: number | null;
}

/** A worker without sockets, which is sent what `Answers` would send. */
class Worker {
  readonly key: string;
  run: Run;
  readonly #steps: LocalSteps;
  readonly #compressor: Compressor;
  readonly used: string[] = [];
  held: Held | null = null;
  #base = -1;
  #generation = 0;
  #theta: Float32Array = new Float32Array();
  #sequence = 0;

  constructor(run: Run, key: string) {
    this.run = run;
    this.key = key;
    const { config } = run;
    this.#steps = new LocalSteps(config, LAYOUT);
    this.#compressor = createCompressor(config.compression, LAYOUT, undefined, fragmentsOf(config));
    this.join(run);
  }

  /** On a new connection. */
  join(run: Run): void {
    this.run = run;
    this.forget();
    const join = { experimentHash: 'h', tensors: TENSORS, data: DATA };
    run.call({ call: 'join', worker: this.key, join, now: 0 });
  }

  /** As when the server has begun another life: it takes all parameters anew. */
  forget(): void {
    this.#base = -1;
    this.#generation = -1;
  }

  /** @returns whether it has a lease. */
  pull(now = 0): boolean {
    const { run, key } = this;
    const to = { session: key, generation: -1, step: -1, base: this.#base, pulls: 0 };
    const work = run.call({ call: 'assign', worker: key, ahead: 1, now, to });
    this.held = null;
    if (work.kind === 'initialise') {
      const draw = random(work.seed, 2);
      const values = Float32Array.from({ length: LAYOUT.size }, () => draw.normal());
      run.call({ call: 'initialised', worker: key, grant: work.grant, now }, bytesOf(values));
      return this.pull(now);
    }
    if (work.kind !== 'work') return false;
    if (work.evaluation) {
      const { id: evaluation } = work.evaluation;
      const told = { evaluation, loss: 1, error: 1, examples: 4, metrics: {} };
      const result = { type: 'evaluated', run: run.id, ...told } as const;
      run.call({ call: 'evaluated', worker: key, result, now });
      return this.pull(now);
    }
    const [lease] = work.leases;
    if (!lease) return false;
    const { payload, fragment, local, step } = work;
    const whole = payload!.bytes;
    const count = fragmentsOf(run.config);
    const parts =
      fragment === null ? [whole] : fragmentBytes(payload!, LAYOUT, { index: fragment, count });
    const bytes = Buffer.concat(parts);
    const values = floatsOf(new Uint8Array(bytes));
    if (this.#generation !== run.generation) this.#steps.reset();
    this.#generation = run.generation;
    if (local!.fragment === undefined) this.#theta = values;
    else {
      this.#theta = this.#steps.receive(values, fragment);
      this.#base = run.generation;
    }
    this.held = { lease, step, local: local!, bytes: bytes.length, fragment };
    return true;
  }

  async push(change: Partial<Push> = {}, now = 0): Promise<Acknowledgement & { bytes: number }> {
    const { lease, step, local } = this.held!;
    const result = (await this.#steps.take(lease, this.#theta, local, async (minibatch, at) => ({
      ...gradientOf(minibatch, at),
      discard: () => {},
    })))!;
    const { fragment } = local;
    const [length] = this.#compressor.payloadBytes(lease.epoch, fragment);
    const out = new Uint8Array(length!);
    const settle = this.#compressor.write(result.payload, lease.epoch, [out], fragment);
    const push: Push = {
      ...{ type: 'push', run: this.run.id, sequence: ++this.#sequence, lease: lease.id, step },
      ...{ generation: this.run.generation, loss: result.loss, computeMs: 1 },
      ...{ encoding: this.#compressor.encoding, kind: local.push },
      ...(fragment !== undefined && { fragment }),
      ...change,
    };
    const answer = this.run.call({ call: 'push', worker: this.key, push, now }, out);
    settle(answer.outcome);
    this.#steps.settled(answer.outcome);
    result.discard();
    if (answer.outcome === 'applied') {
      for (let i = 0; i < lease.count; i++) this.used.push(`${lease.epoch}:${lease.start + i}`);
    }
    return { ...answer, bytes: out.length };
  }
}

function begun(config: PartialConfig, workers: number) {
  const run = new Run({
    ...{ id: 'r', experiment: 'e', experimentHash: 'h', createdAt: '2026-01-01T00:00:00.000Z' },
    config: resolveConfig(
      {
        ...{ minibatchSize: 4, learningRate: 0.1, epochsMax: 2, evaluateEverySteps: 100_000 },
        earlyStopping: { enabled: false },
      },
      config,
    ),
  });
  return { run, workers: Array.from({ length: workers }, (_, i) => new Worker(run, `w${i}/1`)) };
}

async function train({ run, workers }: ReturnType<typeof begun>, until = () => false) {
  while (!run.over && !until()) {
    const busy = workers.filter((worker) => worker.pull());
    if (busy.length === 0 && !run.over) throw new Error(`nothing to do in phase ${run.phase}`);
    for (const worker of busy) if (!run.over) await worker.push();
  }
}

const trained = (run: Run) => Float32Array.from(parametersOf(run).slice(0, 2).flat());
const parametersOf = (run: Run) => run.finalTensors().map(({ values }) => [...values]);
const sizeOf = (range: { start: number; end: number }) => range.end - range.start;

function isNear(seen: ArrayLike<number>, wanted: ArrayLike<number>, within = 1e-4): void {
  let most = 0;
  for (let i = 0; i < wanted.length; i++) {
    most = Math.max(most, Math.abs(seen[i]! - wanted[i]!) / (1 + Math.abs(wanted[i]!)));
  }
  expect(most).toBeLessThan(within);
}

describe('fragments', () => {
  test('of any layout on any number of shards have each element once, and begin at blocks', () => {
    fc.assert(
      fc.property(
        ...([fc.integer({ min: 0, max: 200_000 }), fc.integer({ min: 0, max: 40_000 })] as const),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 6 }),
        (trainable, statistics, count, shards) => {
          const layout = createLayout([
            { name: 'a', shape: [trainable + 1], role: 'trainable' },
            { name: 'b', shape: [statistics], role: 'statistics', momentum: 0.5 },
          ]);
          const ranges = partition(layout, shards);
          const seen = new Uint8Array(layout.size);
          for (let index = 0; index < count; index++) {
            const pieces = fragmentPieces(layout, ranges, { index, count });
            for (const [k, { gradient }] of pieces.entries()) {
              expect(
                (gradient.start - ranges[k]!.start) % 256 === 0 || sizeOf(gradient) === 0,
              ).toBe(true);
              for (let i = gradient.start; i < gradient.end; i++) seen[i]!++;
            }
            expect(pieces.reduce((sum, { statistics: of }) => sum + sizeOf(of), 0)).toBe(
              layout.statisticsSize,
            );
          }
          expect(seen.subarray(0, layout.trainableSize).every((times) => times === 1)).toBe(true);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('are of equal size, to a block', () => {
    const sizes = [0, 1, 2].map((index) => sizeOf(fragmentOf(203_530, { index, count: 3 })));
    expect(sizes).toEqual([67_840, 67_840, 67_850]);
  });

  test('a model has at most one for each block of 256 parameters', () => {
    const five = begun({ local: { steps: 5, fragments: 5 } }, 1);
    expect(five.workers[0]!.pull()).toBe(true);
    expect(() => begun({ local: { steps: 6, fragments: 6 } }, 1)).toThrow(
      'local.fragments is 6, and the model has 1101 trainable parameters; a fragment has at least 256, so 5 is the most: set local.fragments to 5 or less',
    );
  });
});

describe('one worker with SGD', () => {
  test.each([
    [4, 2],
    [3, 3],
    [10, 5],
  ])('takes the steps of plain SGD: H = %i in %i fragments', async (steps, fragments) => {
    const { run, workers } = begun({ local: { steps, fragments } }, 1);
    const [worker] = workers;
    let plain: Float64Array | null = null;
    /** What the server has: each fragment as the worker had it at its last turn. */
    let known: Float64Array | null = null;
    for (let turn = 0; !run.over; turn++) {
      if (!worker!.pull()) break;
      plain ??= Float64Array.from(trained(run));
      known ??= plain.slice();
      const { lease, local } = worker!.held!;
      expect(local.fragment).toBe(turn % fragments);
      for (let at = 0; at < lease.count; at += 4) {
        const { gradient } = gradientOf({ ...lease, start: lease.start + at }, plain);
        for (let i = 0; i < N; i++) plain[i]! -= 0.1 * gradient[i]!;
      }
      await worker!.push();
      const { start, end } = fragmentOf(N, { index: turn % fragments, count: fragments });
      known.set(plain.subarray(start, end), start);
      isNear(trained(run), known);
    }
    expect(worker!.used.length).toBe(2 * 400);
    expect(new Set(worker!.used).size).toBe(2 * 400);
  });

  test('one fragment is the same as none, to the bit', async () => {
    const config = { local: { steps: 4 }, outer: { momentum: 0.9 } } as const;
    const plain = begun(config, 3);
    const one = begun({ ...config, local: { steps: 4, fragments: 1 } }, 3);
    await train(plain);
    await train(one);
    expect(one.run.step).toBe(plain.run.step);
    expect(parametersOf(one.run)).toEqual(parametersOf(plain.run));
  });
});

describe('several workers', () => {
  const outer = { learningRate: 0.7, momentum: 0.9 };

  /** Streaming DiLoCo by its equations, in float64. */
  test.each(['synchronous', 'async'] as const)('in mode %s do as the paper says', async (mode) => {
    const [steps, fragments, count] = [6, 3, 3];
    const config = { local: { steps, fragments }, outer, consistency: { mode } } as const;
    const { run, workers } = begun(config, count);
    for (const worker of workers) worker.pull();
    const theta = Float64Array.from(trained(run));
    const momentum = new Float64Array(N);
    const own = workers.map(() => theta.slice());
    const base = workers.map(() => theta.slice());
    const update = (index: number, of: readonly number[]) => {
      const { start, end } = fragmentOf(N, { index, count: fragments });
      for (let i = start; i < end; i++) {
        const delta = of.reduce((sum, w) => sum + (base[w]![i]! - own[w]![i]!) / of.length, 0);
        momentum[i] = 0.9 * momentum[i]! + delta;
        theta[i]! -= 0.7 * (0.9 * momentum[i]! + delta);
      }
    };
    const takeOver = (index: number, w: number) => {
      const { start, end } = fragmentOf(N, { index, count: fragments });
      own[w]!.set(theta.subarray(start, end), start);
      base[w]!.set(theta.subarray(start, end), start);
    };
    for (let round = 0; round < 8; round++) {
      const index = round % fragments;
      for (const [w, { held }] of workers.entries()) {
        expect(held!.local.fragment).toBe(index);
        for (let at = 0; at < held!.lease.count; at += 4) {
          const minibatch = { ...held!.lease, start: held!.lease.start + at };
          const { gradient } = gradientOf(minibatch, own[w]!);
          for (let i = 0; i < N; i++) own[w]![i]! -= 0.1 * gradient[i]!;
        }
      }
      const all = workers.map((_, w) => w);
      if (mode === 'synchronous') {
        for (const worker of workers) await worker.push();
        update(index, all);
        for (const worker of workers) worker.pull();
        for (const w of all) takeOver(index, w);
      } else {
        for (const w of all) {
          await workers[w]!.push();
          update(index, [w]);
          workers[w]!.pull();
          takeOver(index, w);
        }
      }
      isNear(trained(run), theta);
    }
  });

  test.each(['synchronous', 'async', 'bounded', 'backup'] as const)(
    'in mode %s use each example of an epoch once, with workers that come and go',
    async (mode) => {
      const config = { local: { steps: 4, fragments: 2 }, outer, consistency: { mode } } as const;
      const { run, workers } = begun(config, 3);
      const all = [...workers];
      for (let turn = 0; !run.over && turn < 2_000; turn++) {
        const now = 100 * turn;
        if (turn === 3) run.call({ call: 'leave', worker: workers.shift()!.key });
        if (turn === 6) {
          const late = new Worker(run, 'late/1');
          workers.push(late);
          all.push(late);
        }
        run.call({ call: 'tick', now });
        for (const worker of workers) if (worker.pull(now)) await worker.push({}, now);
      }
      expect(run.phase).toBe('finished');
      // Those of a round that is late are computed again, by whom the server asks.
      const used = all.flatMap((worker) => worker.used);
      expect(used.length).toBe(2 * 400);
      expect(new Set(used).size).toBe(2 * 400);
    },
  );
});

describe('an exchange', () => {
  test.each([1, 2, 5])('with %i fragments has its part of the bytes', async (fragments) => {
    const { run, workers } = begun({ local: { steps: 10, fragments } }, 1);
    const [worker] = workers;
    const pushed: number[] = [];
    const pulled: number[] = [];
    for (let turn = 0; turn < 2 * fragments; turn++) {
      worker!.pull();
      pulled.push(worker!.held!.bytes);
      pushed.push((await worker!.push()).bytes);
    }
    const sizes = Array.from({ length: fragments }, (_, index) =>
      sizeOf(fragmentOf(N, { index, count: fragments })),
    );
    const bytes = sizes.map((size) => 4 * (size + 3));
    expect(pushed).toEqual([...bytes, ...bytes]);
    // The first one brings all; each other one what was pushed before it.
    expect(pulled).toEqual([4 * exchangedSize, ...pushed.slice(0, -1)].slice(0, 2 * fragments));
    expect(run.step).toBe(2 * fragments);
  });

  test.each(['f32', 'bf16', 'int8', 'topk'] as const)('is written as %s', async (kind) => {
    const push =
      kind === 'topk' ? ({ kind, density: 0.2, warmupEpochs: 0 } as const) : ({ kind } as const);
    const it = begun({ local: { steps: 4, fragments: 4 }, compression: { push } }, 1);
    await train(it, () => it.run.step >= 4);
    const after = trained(it.run);
    await train(it);
    expect(it.run.phase).toBe('finished');
    const distance = (theta: Float32Array) => Math.sqrt(theta.reduce((sum, x) => sum + x * x, 0));
    expect(distance(trained(it.run))).toBeLessThan(distance(after));
  });
});

describe('what is rejected', () => {
  test('leaves the worker as it was before, and another one computes it', () => {
    const parameters = new FragmentedParameters(LAYOUT, [{ start: 0, end: exchangedSize }], 2);
    const first = Float32Array.from({ length: exchangedSize }, (_, i) => i);
    parameters.receive(first, null);
    const change = new Float32Array(exchangedSize);
    const after = first.map((x) => x - 1);
    parameters.push(0, after, change);
    parameters.settled(false);
    expect(parameters.own).toEqual(first);
    // What was pushed before and was taken stays; that of the server comes in its place.
    parameters.push(0, after, change);
    parameters.settled(true);
    expect(parameters.own.subarray(0, N)).toEqual(after.subarray(0, N));
    const { start, end } = fragmentOf(N, { index: 0, count: 2 });
    const values = new Float32Array(end - start + 3).fill(7);
    parameters.receive(values, 0);
    expect(parameters.own[start]).toBe(7);
    expect(parameters.own[end]).toBe(end - 1);
    // A fragment that it has not pushed: its own change since the last exchange stays.
    parameters.receive(
      first.map((x) => x + 10),
      null,
    );
    expect(parameters.own[end]).toBe(end - 1 + 10);
    expect(parameters.own[start]).toBe(7 + (start + 10 - 7));
  });

  test('is a push of another fragment, in words', async () => {
    const { run, workers } = begun({ local: { steps: 4, fragments: 2 } }, 1);
    const [worker] = workers;
    worker!.pull();
    const before = trained(run);
    expect(await worker!.push({ fragment: 1 })).toMatchObject({
      ...{ outcome: 'rejected', code: 'DP_PUSH_STALE' },
      message:
        'the push holds fragment 1, and its worker was asked for fragment 0: pull, then push what the work names',
    });
    expect(trained(run)).toEqual(before);
    worker!.pull();
    expect(worker!.held!.local.fragment).toBe(0);
    expect(await worker!.push()).toMatchObject({ outcome: 'applied' });
    worker!.pull();
    expect(worker!.held!.local.fragment).toBe(1);
  });

  test('is of a lease that another worker has, and of another fragment as well', async () => {
    const { run, workers } = begun({ local: { steps: 4, fragments: 2 }, leaseSeconds: 10 }, 2);
    const [late, other] = workers;
    late!.pull();
    run.call({ call: 'tick', now: 1e9 });
    other!.pull(1e9);
    expect(await late!.push({ fragment: 1 })).toMatchObject({
      ...{ outcome: 'rejected', code: 'DP_PUSH_LEASE_LOST' },
    });
  });

  test('is a fragment where the run has none', async () => {
    const { workers } = begun({ local: { steps: 4 } }, 1);
    workers[0]!.pull();
    expect(await workers[0]!.push({ fragment: 0 })).toMatchObject({
      ...{ outcome: 'rejected', code: 'DP_PUSH_STALE' },
      message: expect.stringContaining('asked for all parameters'),
    });
  });
});

test.each([
  ['one worker', { local: { steps: 4, fragments: 4 } }, 1],
  [
    'a round',
    {
      ...{ local: { steps: 4, fragments: 2 }, outer: { momentum: 0.9 } },
      consistency: { mode: 'synchronous' },
    },
    3,
  ],
] as [string, PartialConfig, number][])(
  'a checkpoint between two pushes has all that the server knows of fragments, to the bit: %s',
  async (_, config, count) => {
    const whole = begun(config, count);
    let { run, workers } = begun(config, count);
    for (let i = 0; !run.over; i++) {
      for (const it of [whole, { run, workers }]) {
        await train(it, () => it.run.over || it.run.step >= 7 * (i + 1));
      }
      if (run.over) break;
      // What workers have not exchanged is lost with a life of the server; here without that.
      for (const worker of whole.workers) worker.forget();
      run = Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors());
      for (const worker of workers) worker.join(run);
    }
    expect(run.step).toBe(whole.run.step);
    expect(parametersOf(run)).toEqual(parametersOf(whole.run));
  },
);

describe('the configuration', () => {
  const local = { steps: 12, fragments: 4 };
  test.each([
    [{ local: { steps: 10, fragments: 4 } }, /steps is 10; .* multiple of 4, such as 8/],
    [{ local: { steps: 3, fragments: 4 } }, /such as 4/],
    [{ local: { ...local, push: 'elastic' } }, /elastic.* use local.push delta/],
    [{ local, consistency: { mode: 'buffered' } }, /in mode 'buffered'/],
    [{ local, consistency: { depth: 2 } }, /consistency.depth is 2/],
    [{ local, outer: { momentum: 0.9, delayed: 4 } }, /outer.delayed is 4/],
    [{ local: { fragments: 4 } }, /local.steps is null/],
    [{ local: { steps: 257, fragments: LIMITS.fragmentsMax + 1 } }, /local.fragments/],
  ] as [PartialConfig, RegExp][])('%j is refused in words', (config, message) => {
    expect(() => resolveConfig(config)).toThrow(message);
  });

  test('what fits is taken', () => {
    expect(resolveConfig({ local }).local!.fragments).toBe(4);
    const { fragmentsMax } = LIMITS;
    const most = { local: { steps: fragmentsMax, fragments: fragmentsMax } };
    expect(resolveConfig(most).local!.fragments).toBe(fragmentsMax);
  });

  test('workers that know no fragments are told of none, and are refused where there are some', () => {
    const plain = resolveConfig({ local: { steps: 12 } });
    const some = resolveConfig({ local });
    expect(workerConfig(plain).local).not.toHaveProperty('fragments');
    expect(workerConfig(some).local).toMatchObject(local);
    const old = abilitiesOf({ [LOCAL_STEPS_HEADER]: 'yes' });
    const able = abilitiesOf({ [LOCAL_STEPS_HEADER]: 'yes', [FRAGMENTS_HEADER]: 'yes' });
    expect(lackOf(old, { id: 'r', config: plain })).toBeNull();
    expect(lackOf(able, { id: 'r', config: some })).toBeNull();
    expect(lackOf(old, { id: 'r', config: some })).toMatchObject({
      code: 'DP_PROTOCOL_VERSION',
      message: expect.stringMatching(/local.fragments 4, and this worker exchanges all parameters/),
    });
  });
});

test('a payload of a fragment has its elements, then the statistics', () => {
  const [range] = [{ start: 0, end: LAYOUT.size }];
  const pieces = fragmentPieces(LAYOUT, [range!], { index: 4, count: 5 });
  expect(pieces.map(pieceSize)).toEqual([N - 1024 + 3]);
  const bytes = new Uint8Array(2 * (exchangedSize + (exchangedSize % 2)));
  // bf16 of an even number of elements is not filled up, of an odd number it is.
  const sent = (index: number) =>
    fragmentBytes({ bytes, encoding: 'bf16' }, LAYOUT, { index, count: 5 }).reduce(
      (sum, { length }) => sum + length,
      0,
    );
  expect([sent(0), sent(4)]).toEqual([2 * (256 + 3) + 2, 2 * (N - 1024 + 3)]);
});
