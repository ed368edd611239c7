import { expect, test } from 'vitest';
import { Curves } from '../../server/core/curves.ts';
import { createLayout } from '../../shared/layout.ts';
import type { Observed } from '../../shared/observed.ts';
import type { Lease } from '../../shared/protocol.ts';
import type { Model } from '../../worker/model.ts';
import { createObserver, histogramOf } from '../../worker/observer.ts';

const layout = createLayout([
  { name: 'w', shape: [4, 2], role: 'trainable' },
  { name: 'b', shape: [2], role: 'trainable' },
]);
const lease = (id: number): Lease => ({ id, epoch: 0, start: 0, count: 1, part: 'train' });
const minibatch = {
  ...{ inputs: new Float32Array(4), inputShape: [4], targets: new Int32Array(1), targetShape: [] },
};

/** An observer of a model whose layers take `sampleMs` to look at. */
function observing(config: { everySteps: number | null; costMax: number }, sampleMs = 10) {
  const sent: Observed[] = [];
  let clock = 0;
  const model = {
    layout,
    activations: async () => {
      clock += sampleMs;
      const values = Float32Array.of(0, 1, 0, 2, 0, 3);
      return [{ layer: 'l', kind: 'Dense', activation: 'relu', values, shape: [3, 2] }];
    },
  } as unknown as Model;
  const observer = createObserver({
    ...{ run: 'r', config, model, now: () => clock, send: (message) => sent.push(message) },
  });
  return { observer, sent };
}

const gradient = Float32Array.of(1, 0, 2, 0, 3, 0, 4, 0, 5, 0);
const at = (step: number, value = step) => new Float32Array(10).fill(1 + value / 100);

async function steps(
  { observer }: ReturnType<typeof observing>,
  count: number,
  { computeMs = 1, exact = true } = {},
): Promise<void> {
  for (let step = 0; step < count; step++) {
    const values = at(step);
    observer!.notePull(values, step, 1, exact);
    const given = { minibatch, values, gradient, step, generation: 1, computeMs };
    await observer!.noteGradient({ lease: lease(step + 1), ...given });
  }
}

test('a sample is of weights, gradient, activations, and of the update seen with the next pull', async () => {
  const observed = observing({ everySteps: 5, costMax: 1 }, 0);
  await steps(observed, 7);
  const [first, second] = observed.sent;
  expect([first!.step, second!.step]).toEqual([0, 5]);
  const [w, b] = first!.tensors;
  expect(w).toMatchObject({ name: 'w', elements: 8, never: 4, rare: 0 });
  expect(w!.gradientNorm).toBeCloseTo(Math.hypot(1, 2, 3, 4), 5);
  expect(w!.weights).toEqual({ low: 1, high: 1, counts: [8] });
  expect(w!.updateRatio).toBeCloseTo(0.01, 5);
  expect(b!.gradientNorm).toBeCloseTo(5, 5);
  expect(first!.layers).toEqual([
    { layer: 'l', activation: 'relu', dead: 0.5, saturated: null, values: expect.anything() },
  ]);
});

test('samples wait once they have taken their share of the compute time; the first is free', async () => {
  const observed = observing({ everySteps: 1, costMax: 0.02 }, 10);
  await steps(observed, 2600);
  // 2600 ms of gradients allow 52 ms: five samples, and the one that was begun.
  expect(observed.sent.length).toBe(6);
  expect(observed.sent.reduce((sum, { costMs }) => sum + costMs, 0)).toBeLessThanOrEqual(60);
});

test('parameters that come in bf16 or begin anew tell nothing of one update', async () => {
  const rough = observing({ everySteps: 1, costMax: 1 }, 0);
  await steps(rough, 3, { exact: false });
  expect(rough.sent[0]!.tensors[0]).toMatchObject({ updates: null, updateRatio: null });
  const anew = observing({ everySteps: 1, costMax: 1 }, 0);
  await steps(anew, 1);
  anew.observer!.notePull(at(9), 9, 2, true);
  expect(anew.sent[0]).toMatchObject({ step: 0, updateSteps: 0 });
  expect(anew.sent[0]!.tensors[0]!.updateRatio).toBeNull();
});

test('nothing is sampled unless it is asked for', () => {
  expect(observing({ everySteps: null, costMax: 1 }).observer).toBeNull();
});

test('a histogram holds all finite values', () => {
  const { low, high, counts } = histogramOf(Float32Array.of(-1, 0, 0.5, 3, Number.NaN, Infinity));
  expect([low, high, counts.reduce((a, b) => a + b)]).toEqual([-1, 3, 4]);
  expect(counts[0]).toBe(1);
  expect(counts.at(-1)).toBe(1);
});

test('what the server keeps of a long run stays bounded and even', async () => {
  const observed = observing({ everySteps: 1, costMax: 1 }, 0);
  await steps(observed, 2);
  const kept = new Curves();
  for (let i = 0; i < 5000; i++) kept.sampled({ ...observed.sent[0]!, step: i }, i);
  const { samples, cost } = kept.observed();
  expect(samples.length).toBeLessThanOrEqual(120);
  expect(samples.length).toBeGreaterThan(50);
  expect(new Set(samples.slice(1).map(({ step }, i) => step - samples[i]!.step)).size).toBe(1);
  expect(cost.samples).toBe(5000);
  const again = new Curves(JSON.parse(JSON.stringify(kept.state())));
  expect(again.observed()).toEqual(kept.observed());
});
