import { describe, expect, test } from 'vitest';
import { rangesOf } from '../../server/core/shard.ts';
import { checkShardCommand, type ShardCommand } from '../../server/core/shard-command.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { partition } from '../../shared/partition.ts';
import { LAYOUT, ShardedRun } from '../support/shards.ts';

test('the model lies on as many shards as it is large enough for, its frozen part on the last', () => {
  expect(partition(LAYOUT, 4).map(({ start, end }) => end - start)).toEqual([
    16_640, 16_532, 16_513, 16_416,
  ]);
});

test('a range that no frame could carry is refused, and the answer says how many shards it takes', () => {
  const layout = createLayout([{ name: 'w', shape: [600_000_000], role: 'trainable' }]);
  expect(() => rangesOf(layout, 2, {})).toThrow('start the server with --shards 3');
  expect(rangesOf(layout, 3, {}).length).toBe(3);
});

describe('a run on several shards is the same run as on one, to the bit', () => {
  const configs: [string, PartialConfig, workers?: number][] = [
    ['sgd', {}],
    [
      'adam, ema, restore the best',
      {
        optimizer: { kind: 'adam' },
        learningRate: 0.01,
        averaging: { kind: 'ema', decay: 0.9 },
        earlyStopping: { patience: 1 },
        evaluateEverySteps: 2,
        epochsMax: 20,
      },
    ],
    [
      'momentum, weight decay, polyak, retrain',
      {
        optimizer: { kind: 'momentum' },
        weightDecay: { rate: 0.01 },
        averaging: { kind: 'polyak', startStep: 2 },
        earlyStopping: { patience: 1, afterStop: 'retrain' },
        evaluateEverySteps: 2,
        epochsMax: 20,
      },
    ],
    [
      'rmsprop, continue',
      {
        optimizer: { kind: 'rmsprop' },
        learningRate: 0.01,
        earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 5 },
        evaluateEverySteps: 2,
        epochsMax: 20,
      },
    ],
    ['clipped by value', { clip: { value: 0.5 } }],
    [
      'look-ahead',
      {
        ...{ optimizer: { kind: 'momentum' }, consistency: { correction: 'auto' }, epochsMax: 8 },
        earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 40 },
      },
      20,
    ],
    [
      'look-ahead of adam, more than 16 workers',
      { optimizer: { kind: 'adam' }, consistency: { correction: 'auto' }, epochsMax: 8 },
      24,
    ],
    [
      'bounded, compensated',
      {
        consistency: { mode: 'bounded', aheadMax: 1, correction: 'compensated' },
        ...{ optimizer: { kind: 'momentum' }, learningRate: 0.01, epochsMax: 8 },
      },
      3,
    ],
    [
      'synchronous, clipped by value',
      { consistency: { mode: 'synchronous' }, clip: { value: 0.5 }, epochsMax: 8 },
      4,
    ],
    [
      'backup workers, by the median',
      { consistency: { mode: 'backup', aggregate: 'median' }, epochsMax: 8 },
      4,
    ],
    [
      'buffered, gap-aware',
      {
        consistency: { mode: 'buffered', bufferSize: 3, correction: 'gap', damping: 'root' },
        epochsMax: 8,
      },
      4,
    ],
    [
      'delayed Nesterov of deltas',
      {
        ...{ local: { steps: 1 }, outer: { learningRate: 0.7, momentum: 0.9, delayed: 3 } },
        epochsMax: 4,
      },
      3,
    ],
    [
      'elastic, in rounds',
      {
        local: { steps: 1, push: 'elastic' },
        ...{ consistency: { mode: 'synchronous' }, epochsMax: 4 },
      },
      3,
    ],
    [
      'groups with rules of their own, some at every other step',
      {
        ...{
          optimizer: { kind: 'momentum' },
          consistency: { correction: 'lookahead' },
          epochsMax: 6,
        },
        weightDecay: { rate: 0.01, rules: [{ pattern: 'b', rate: 0.1 }] },
        groups: {
          a: { pattern: 'a', optimizer: { kind: 'adam' }, learningRate: 0.1, everySteps: 2 },
          c: { pattern: 'c', schedule: { kind: 'linear', steps: 20 }, weightDecay: { l1: 0.01 } },
        },
      },
      4,
    ],
    // Each shard cuts its own range: whole turns move each element alike, however many shards there are.
    [
      'fragments of deltas',
      {
        ...{ local: { steps: 2, fragments: 2 }, outer: { learningRate: 0.7, momentum: 0.9 } },
        ...{ averaging: { kind: 'none' }, epochsMax: 4 },
      },
    ],
    [
      'fragments in rounds, in bf16',
      {
        // A worker that evaluates is missing in its round, and there would be a turn more.
        ...{ local: { steps: 4, fragments: 4 }, evaluateEverySteps: 1_000 },
        ...{
          consistency: { mode: 'synchronous' },
          compression: { push: { kind: 'bf16' } },
          epochsMax: 4,
        },
      },
      4,
    ],
    ['bf16 both ways', { compression: { push: { kind: 'bf16' }, pull: 'bf16' } }],
  ];
  test.each(configs)('%s', (_, config, workers) => {
    const one = new ShardedRun(1, config, undefined, workers);
    one.train();
    expect(one.run.phase).toBe('finished');
    for (const count of [2, 3, 4]) {
      const several = new ShardedRun(count, config, undefined, workers);
      expect(several.run.rangeCount).toBe(count);
      several.train();
      expect(several.run.phase).toBe('finished');
      expect(several.run.step).toBe(one.run.step);
      expect(several.parameters).toEqual(one.parameters);
      expect(several.run.summary(0).correction).toEqual(one.run.summary(0).correction);
      expect(several.run.metrics().evaluations.map((e) => e.loss)).toEqual(
        one.run.metrics().evaluations.map((e) => e.loss),
      );
    }
  });

  test.each(['int8', 'topk'] as const)('%s, whose blocks and counts are of each part', (kind) => {
    const compression = { push: { kind }, pull: 'f32' } as PartialConfig['compression'];
    const several = new ShardedRun(4, { compression, epochsMax: 2 } as PartialConfig);
    const before = norm(several);
    several.train();
    expect(several.run.phase).toBe('finished');
    expect(several.run.step).toBe(32);
    expect(norm(several)).toBeLessThan(before);
  });

  function norm(run: ShardedRun): number {
    if (!run.run.hasParameters) run.act();
    return run.parameters.subarray(0, LAYOUT.trainableSize).reduce((sum, x) => sum + x * x, 0);
  }

  test('the norm that is clipped and shown is that of all parts', () => {
    const config: PartialConfig = { clip: { norm: 1 }, epochsMax: 1 };
    const [one, several] = [new ShardedRun(1, config), new ShardedRun(4, config)];
    one.train();
    several.train();
    expect(several.run.summary(0).gradientNorm).toBeCloseTo(one.run.summary(0).gradientNorm!, 6);
    const expected = one.parameters;
    const off = several.parameters.map((x, i) => Math.abs(x - expected[i]!));
    expect(off.reduce((most, x) => Math.max(most, x), 0)).toBeLessThan(1e-5);
  });
});

describe('what is decided is decided for all parts', () => {
  test('a part that is not finite keeps all parts out, and nothing stays on the shards', () => {
    const run = new ShardedRun(4, {});
    run.train(() => run.run.step === 3);
    const before = run.parameters;
    const rejected = run.act((gradient) => {
      gradient[40_000] = Number.NaN;
    });
    expect(rejected).toMatchObject({ outcome: 'rejected', code: 'DP_GRADIENT_NOT_FINITE' });
    expect(run.parameters).toEqual(before);
    expect(run.act()).toMatchObject({ outcome: 'applied' });
    // Rooms of rejected pushes are free again: more of them than there are rooms.
    for (let i = 0; i < 100; i++) run.push(new Float32Array(LAYOUT.exchangedSize), 999_999);
    expect(run.told.filter(({ kind }) => kind === 'drop').length).toBe(101);
  });

  test('a push that is sent again is applied by no shard', () => {
    const run = new ShardedRun(3, {});
    run.train(() => run.run.step === 3);
    const before = run.parameters;
    const again = run.push(new Float32Array(LAYOUT.exchangedSize).fill(1), 1, 3);
    expect(again.outcome).toBe('duplicate');
    expect(run.parameters).toEqual(before);
  });

  test('a shard itself refuses to apply a push twice', () => {
    const run = new ShardedRun(3, {});
    run.train(() => run.run.step === 3);
    const apply = run.told.findLast(({ kind }) => kind === 'apply')!;
    const { sequence } = apply as Extract<ShardCommand, { kind: 'apply' }>;
    const shard = run.shards[1]!;
    const none = new Float32Array();
    expect(() => shard.execute(apply, none)).toThrow('without its part');
    const { start, end } = run.ranges[1]!;
    const payload = new Uint8Array(4 * (end - start));
    shard.part({ run: 'r', session: 's', sequence }, { payload, encoding: 'f32', release() {} });
    expect(() => shard.execute(apply, none)).toThrow('applied twice');
  });

  test('a part of a wrong size keeps all parts out, and the answer says the sizes', () => {
    const run = new ShardedRun(2, {});
    run.train(() => run.run.step === 1);
    const before = run.parameters;
    const rejected = run.act(
      () => {},
      (part) => part.subarray(0, 40),
    );
    expect(rejected).toMatchObject({ outcome: 'rejected', code: 'DP_TENSOR_SIZE' });
    expect(rejected!.message).toContain('40 bytes');
    expect(run.parameters).toEqual(before);
  });

  /** Only on the second shard: it is told of after the update. */
  const overflow = (gradient: Float32Array) => {
    gradient.fill(0);
    gradient[20_000] = 3e38;
  };

  test('an overflow on any shard fails the run that may not go back', () => {
    const run = new ShardedRun(4, { learningRate: 1e30, divergence: { rollbacksMax: 0 } });
    run.train(() => run.run.step === 1);
    run.act(overflow);
    expect(run.run.phase).toBe('failed');
    expect(run.run.reason).toContain('overflow');
  });

  test.each([1_000, 1])('else it takes all shards back, evaluating every %d steps', (every) => {
    // Parameters halve with each update; 1.5 times 3e38 is too large for f32.
    const run = new ShardedRun(4, { learningRate: 1.5, evaluateEverySteps: every });
    run.act();
    const initial = run.parameters;
    run.train(() => run.run.step === 2);
    run.train(
      () =>
        run.run.call({ call: 'assign', worker: 'w/1', ahead: 2, now: 0 }).kind === 'work' &&
        run.run.best?.step !== 1,
    );
    const good = run.save().file.find(({ name }) => name === '@best')?.values ?? initial;
    const { generation } = run.run;
    run.act(overflow);
    // Updates that were under way meet the same fate, and are told later.
    run.run.call({ call: 'overflowed', generation });
    if (!run.run.best) run.act();
    expect(run.parameters.slice(0, good.length)).toEqual(good);
    const to = run.run.best?.step ?? null;
    expect(run.run.summary(0).rollbacks).toMatchObject([{ step: 3, to, learningRate: 0.375 }]);
    expect(to).toBe(every === 1 ? 2 : null);
    run.train(() => run.run.step === 4);
    expect(run.run.phase).toBe('training');
  });

  test('an update of several pushes that overflows on the server leaves none of them on the shards', () => {
    const trained = (count: number) => {
      const mode = 'synchronous' as const;
      const config = { learningRate: 1.5, consistency: { mode }, evaluateEverySteps: 1 };
      const run = new ShardedRun(count, config, undefined, 2);
      run.train(() => run.run.step === 2);
      // It lies in the range of the server.
      const large = (gradient: Float32Array) => {
        gradient[0] = 3e38;
      };
      for (let i = 0; i < 9 && run.run.summary(0).rollbacks.length === 0; i++) run.act(large);
      expect(run.run.summary(0).rollbacks).toHaveLength(1);
      run.train(() => run.run.step === 5);
      return Buffer.from(bytesOf(run.parameters)).toString('base64');
    };
    expect(trained(3)).toBe(trained(1));
  });

  test('captures are forgotten when nobody needs them', () => {
    const run = new ShardedRun(2, { evaluateEverySteps: 1, epochsMax: 2 });
    run.train();
    const made = run.told.filter(({ kind }) => kind === 'capture').length;
    const forgotten = run.told.filter(({ kind }) => kind === 'forget').length;
    expect(made).toBeGreaterThan(5);
    // The best one stays.
    expect(forgotten).toBe(made - 1);
  });
});

describe('a checkpoint', () => {
  const config: PartialConfig = {
    optimizer: { kind: 'adam' },
    learningRate: 0.01,
    averaging: { kind: 'ema', decay: 0.9 },
    earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 5 },
    evaluateEverySteps: 3,
    epochsMax: 20,
  };
  test('is the same file whatever the number of shards, and goes on with any other number', () => {
    const whole = new ShardedRun(1, config);
    whole.train();
    const steps = whole.run.step;
    for (const [before, after] of [
      [1, 3],
      [3, 1],
      [4, 2],
    ] as const) {
      for (const cut of [1, 4, steps - 2]) {
        const first = new ShardedRun(before, config);
        first.train(() => first.run.step >= cut);
        const second = new ShardedRun(after, config, first.save());
        second.train();
        expect(second.run.step).toBe(steps);
        expect(second.parameters, `${before} → ${after} at ${cut}`).toEqual(whole.parameters);
      }
    }
  }, 20_000);

  test.each([
    [{ mode: 'buffered', bufferSize: 4, correction: 'compensated' }, '@collected.', 1],
    [{ mode: 'backup', quorum: 4, aggregate: 'trimmedMean' }, '@collected.', 3],
    [{ correction: 'compensated' }, '@squares.', 5],
  ] as const)('has what %j keeps of pushes', (consistency, prefix, vectors) => {
    const many: PartialConfig = { consistency, learningRate: 0.01, epochsMax: 4 };
    const first = new ShardedRun(4, many, undefined, 5);
    first.train(
      () =>
        first.run.step >= (vectors === 5 ? 12 : 3) &&
        (prefix !== '@collected.' || first.run.collected === 3),
    );
    const saved = first.save();
    expect(saved.file.filter(({ name }) => name.startsWith(prefix)).length).toBe(vectors);
    const [one, two] = [1, 3].map((count) => new ShardedRun(count, many, saved, 5, first.turn));
    one!.train();
    two!.train();
    expect(one!.run.phase).toBe('finished');
    expect(two!.parameters).toEqual(one!.parameters);
    const session = '0123456789abcdef';
    for (const command of [...first.told, ...two!.told]) {
      const told: ShardCommand = 'session' in command ? { ...command, session } : command;
      checkShardCommand(told);
    }
    const state = saved.state.parameters!;
    checkShardCommand({
      kind: 'restore',
      run: 'r',
      state,
      best: null,
      workers: [],
    } as ShardCommand);
  });

  test.each([
    [{ consistency: { mode: 'synchronous' }, clip: { norm: 1 } }, /clip.norm is 1 in mode 'synchr/],
    [{ consistency: { mode: 'synchronous', aggregate: 'krum' } }, /compares whole gradients/],
  ] as const)('refuses in words what no shard can know: %j', (config, message) => {
    expect(() => new ShardedRun(2, config)).toThrow(message);
    new ShardedRun(1, config);
  });

  test('has the velocities of all workers, and shards take what they are told of them', () => {
    const many: PartialConfig = {
      ...{ optimizer: { kind: 'momentum' }, consistency: { correction: 'auto' }, epochsMax: 4 },
    };
    const whole = new ShardedRun(1, many, undefined, 5);
    whole.train();
    const first = new ShardedRun(4, many, undefined, 5);
    first.train(() => first.run.step >= 13);
    const saved = first.save();
    expect(saved.state.parameters!.velocities).toEqual([1, 2, 3, 4, 5]);
    expect(saved.file.filter(({ name }) => name.startsWith('@velocity.')).length).toBe(5);
    const second = new ShardedRun(2, many, saved, 5, first.turn);
    second.train();
    expect(second.parameters).toEqual(whole.parameters);
    const session = '0123456789abcdef';
    for (const command of [...first.told, ...second.told]) {
      const told: ShardCommand = 'session' in command ? { ...command, session } : command;
      checkShardCommand(told);
    }
    const state = saved.state.parameters!;
    checkShardCommand({
      kind: 'restore',
      run: 'r',
      state,
      best: null,
      workers: [],
    } as ShardCommand);
  });
});

test('a run that is removed leaves nothing on its shards, and they are told nothing more of it', () => {
  const { run, shards, told, ranges } = new ShardedRun(3, {});
  const others = shards.slice(1);
  let released = 0;
  const part = (bytes: number) => ({
    ...{ payload: new Uint8Array(bytes), encoding: 'f32' as const, room: null },
    release: () => void released++,
  });
  for (const [k, shard] of others.entries()) {
    const { start, end } = ranges[k + 1]!;
    shard.part({ run: 'r', session: 's', sequence: 1 }, part(4 * (end - start)));
    shard.initialPart('r', 's', 1, part(4 * (end - start)));
  }
  expect(released).toBe(0);
  expect(others.map(({ runs }) => runs)).toEqual([1, 1]);
  run.vector.removeParts();
  expect(others.map(({ runs }) => runs)).toEqual([0, 0]);
  expect(released).toBe(4);
  const before = told.length;
  checkShardCommand(told.at(-1)!);
  run.vector.dropParts('s', 1);
  run.vector.revokeParts('s');
  run.vector.forgetSaved(1, true);
  expect(told.length).toBe(before);
  // One that took the place of another shard has never had it.
  for (const shard of others) shard.execute({ kind: 'remove', run: 'r' }, new Float32Array());
});
