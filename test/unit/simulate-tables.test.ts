import { describe, expect, test } from 'vitest';
import { parseLaw } from '../../cli/simulate/laws.ts';
import {
  simulateRun,
  type VirtualClusterOptions,
  type VirtualProblem,
} from '../../cli/simulate/virtual-cluster.ts';
import type { PartialConfig } from '../../shared/config.ts';

/** Virtual workers whose model is a table: example i is row i, which learns a number of its own. */

const COUNT = 16;
const numbers = Float32Array.from({ length: COUNT }, (_, i) => 1 + (i % 5));
const all = Uint32Array.from({ length: COUNT }, (_, i) => i);

const problem: VirtualProblem = {
  tensors: [{ name: 'w', shape: [1], role: 'trainable' }],
  data: {
    ...{ trainCount: COUNT, validationCount: COUNT, testCount: 0, fingerprint: '2:0' },
    ...{ source: 'numbers' },
  } as unknown as VirtualProblem['data'],
  initialise: () => new Float32Array(1),
  async gradient(lease, _parameters, payload, _seed, rows) {
    payload[0] = 0;
    const keys = all.slice(lease.start, lease.start + lease.count);
    const [own] = await rows!.source([keys]);
    const left = own!.values.map((value, i) => value - numbers[keys[i]!]!);
    // The gradient of the sum: each row has one example.
    rows!.put([{ keys, values: left.map((value) => 2 * value) }]);
    return left.reduce((sum, value) => sum + value * value, 0) / keys.length;
  },
  async evaluate(_part, _parameters, rows) {
    const [own] = await rows!([all]);
    const squares = own!.values.map((value, i) => (value - numbers[i]!) ** 2);
    const loss = squares.reduce((sum, value) => sum + value, 0) / COUNT;
    return { loss, error: loss };
  },
};

const config = (rest: PartialConfig = {}): PartialConfig => ({
  tables: {
    number: { rows: COUNT, width: 1, initializer: { kind: 'zeros' }, optimizer: { kind: 'sgd' } },
  },
  ...{ learningRate: 0.25, minibatchSize: 4, epochsMax: 6, earlyStopping: { enabled: false } },
  ...{ optimizer: { kind: 'sgd' }, testAtEnd: false, ...rest },
});

const simulate = (given: Partial<VirtualClusterOptions> = {}) =>
  simulateRun({
    ...{ problem, config: config(), workers: 1, seed: 1, compute: parseLaw('exponential:100') },
    ...given,
  });

const lossesOf = ({ server }: Awaited<ReturnType<typeof simulate>>) =>
  server.metrics().evaluations.map(({ loss }) => loss!);

describe('virtual workers with tables', () => {
  test('one worker learns what the rule of the rows says, to the last digits', async () => {
    const first = numbers.reduce((sum, value) => sum + value * value, 0) / COUNT;
    // θ ← θ − 0.25 · 2 (θ − number) halves what is left with each epoch.
    const losses = lossesOf(await simulate());
    expect(losses).toHaveLength(6);
    losses.forEach((loss, i) => {
      expect(loss).toBeCloseTo(first / 4 ** (i + 1), 5);
    });
  });

  test.each(['f32', 'bf16', 'int8'] as const)('several workers push rows as %s', async (kind) => {
    const compression = { push: { kind }, pull: kind === 'f32' ? 'f32' : 'bf16' } as const;
    const rest = { epochsMax: 12, compression } as PartialConfig;
    const outcome = await simulate({ workers: 4, config: config(rest) });
    expect(lossesOf(outcome).at(-1)).toBeLessThan(kind === 'f32' ? 1e-3 : 1e-2);
    expect(outcome.applied).toBe((12 * COUNT) / 4);
  });

  test('rows count among the bytes that are sent and pushed', async () => {
    const network = { latencyMs: 0, bandwidth: 1e3, serverBandwidth: 1e3 };
    const slow = await simulate({ network });
    const quick = await simulate();
    expect(slow.nowMs).toBeGreaterThan(quick.nowMs);
    // Per push 4 bytes of the parameter, and of each row its key and its value.
    const pushes = (6 * COUNT) / 4;
    expect(quick.pushedBytes).toBeGreaterThan(pushes * (4 + 4 * 8));
  });
});
