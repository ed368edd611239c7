import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Applied, Curves } from '../../server/core/curves.ts';

const push = (step: number, change: Partial<Applied> = {}): Applied => ({
  step,
  seconds: step / 10,
  loss: 1 / step,
  learningRate: 0.1,
  gradientNorm: 2,
  staleness: step % 4,
  examples: 64,
  ...change,
});

test('curves stay thin, even and complete however long the run', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 30_000 }), (steps) => {
      const curves = new Curves();
      for (let step = 1; step <= steps; step++) curves.applied(push(step));
      const { training } = curves.metrics();
      expect(training.step.length).toBeLessThanOrEqual(2000);
      expect(training.step.length).toBeGreaterThanOrEqual(Math.min(steps, 1000) - 1);
      const gaps = new Set(training.step.slice(1).map((step, i) => step - training.step[i]!));
      expect(gaps.size).toBeLessThanOrEqual(1);
      expect(steps - training.step.at(-1)!).toBeLessThan([...gaps][0] ?? 1);
      expect(training.loss.length).toBe(training.step.length);
    }),
    { numRuns: 12 },
  );
});

test('the training loss is an exponential mean, corrected for its start', () => {
  const curves = new Curves();
  const losses = [4, 2, 8, 1, 3];
  expect(curves.trainingLoss).toBeNull();
  for (const [i, loss] of losses.entries()) curves.applied(push(i + 1, { loss }));
  // Σ wᵢ lossᵢ / Σ wᵢ with wᵢ = 0.98^(age): no weight is left to an initial value.
  const weights = losses.map((_, i) => 0.98 ** (losses.length - 1 - i));
  const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
  const expected = sum(losses.map((loss, i) => loss * weights[i]!)) / sum(weights);
  expect(curves.trainingLoss).toBeCloseTo(expected, 12);
  curves.restartSmoothing();
  curves.applied(push(6, { loss: 7 }));
  expect(curves.trainingLoss).toBeCloseTo(7, 12);
});

test('staleness is that of all pushes, by the histogram', () => {
  const curves = new Curves();
  expect(curves.staleness()).toBeNull();
  for (let step = 1; step <= 500; step++) curves.applied(push(step, { staleness: 300 }));
  for (let i = 0; i < 1500; i++) curves.applied(push(501 + i, { staleness: i % 100 }));
  expect(curves.staleness()).toEqual({ p50: 66, p95: 300, max: 300 });
  const { stalenessHistogram } = curves.metrics();
  expect(stalenessHistogram).toHaveLength(129);
  expect(stalenessHistogram[7]).toBe(15);
  expect(stalenessHistogram.at(-1)).toBe(500);
  expect(stalenessHistogram.reduce((a, b) => a + b, 0)).toBe(2000);
});

test('staleness is the same from what is saved, and agrees with sorting', () => {
  const values = fc.array(fc.nat({ max: 200 }), { minLength: 1, maxLength: 200 });
  fc.assert(
    fc.property(values, (staleness) => {
      const curves = new Curves();
      for (const [i, each] of staleness.entries()) curves.applied(push(i + 1, { staleness: each }));
      const sorted = staleness.toSorted((a, b) => a - b);
      const at = (share: number) =>
        sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
      const told = { p50: at(0.5), p95: at(0.95), max: sorted.at(-1) };
      expect(curves.staleness()).toEqual(told);
      const again = new Curves(JSON.parse(JSON.stringify(curves.state())));
      expect(again.staleness()).toEqual(told);
      expect(again.gradientNorm).toBe(curves.gradientNorm);
      expect(again.metrics()).toEqual(curves.metrics());
    }),
  );
});

test('a state of release 0.1.0 tells its staleness and the norm of its last point', () => {
  const curves = new Curves();
  for (let step = 1; step <= 20; step++) curves.applied(push(step, { staleness: 1 }));
  const { gradientNorm: _, histogram, ...older } = curves.state();
  const full = [...histogram, ...new Array<number>(129 - histogram.length).fill(0)];
  const again = new Curves({ ...older, histogram: full });
  expect(again.staleness()).toEqual({ p50: 1, p95: 1, max: 1 });
  expect(again.gradientNorm).toBe(2);
});

test('the speed is that of the last ten seconds', () => {
  const curves = new Curves();
  expect(curves.speed(0)).toBeNull();
  // 10 steps a second, then 2 a second for 10 seconds.
  for (let step = 1; step <= 200; step++) curves.applied(push(step));
  for (let i = 1; i <= 20; i++) curves.applied(push(200 + i, { seconds: 20 + i / 2 }));
  const { stepsPerSecond, examplesPerSecond } = curves.speed(30)!;
  expect(stepsPerSecond).toBeCloseTo(2, 1);
  expect(examplesPerSecond).toBeCloseTo(128, 0);
  expect(curves.speed(60)).toEqual({ examplesPerSecond: 0, stepsPerSecond: 0 });
});

test('a gradient that takes longer than ten seconds has a speed, too', () => {
  const curves = new Curves();
  curves.applied(push(1, { seconds: 20 }));
  expect(curves.speed(25)).toBeNull();
  curves.applied(push(2, { seconds: 40 }));
  expect(curves.speed(40)!.examplesPerSecond).toBeCloseTo(64 / 20, 6);
  expect(curves.speed(60)!.examplesPerSecond).toBeCloseTo(64 / 40, 6);
  expect(curves.speed(101)!.examplesPerSecond).toBe(0);
});

test('the first seconds, in which workers compile, are in no speed', () => {
  const curves = new Curves();
  // A first minibatch of 5 seconds, 10 slow ones within 2 seconds, then 100 a second.
  curves.applied(push(1, { seconds: 5 }));
  expect(curves.speed(5)).toBeNull();
  for (let i = 1; i <= 10; i++) {
    curves.applied(push(1 + i, { seconds: 5 + i / 5 }));
    expect(curves.speed(5 + i / 5)).toBeNull();
  }
  expect(curves.meanSpeed()).toBeNull();
  for (let i = 1; i <= 300; i++) curves.applied(push(11 + i, { seconds: 7 + i / 100 }));
  expect(curves.speed(10)!.stepsPerSecond).toBeCloseTo(100, 6);
  expect(curves.speed(10)!.examplesPerSecond).toBeCloseTo(6_400, 6);
  expect(curves.meanSpeed()).toBeCloseTo(6_400, 6);
  // A server that takes the run over knows the mean, and measures the present speed anew.
  const later = new Curves(JSON.parse(JSON.stringify(curves.state())));
  expect(later.meanSpeed()).toBeCloseTo(6_400, 6);
  expect(later.speed(10)).toBeNull();
});

test('the mean speed of a run of an older release is not known', () => {
  const curves = new Curves();
  for (let step = 1; step <= 100; step++) curves.applied(push(step));
  const state = curves.state();
  const points = state.points.map(({ examplesSoFar: _, ...point }) => point);
  expect(new Curves({ ...state, points }).meanSpeed()).toBeNull();
});

test('its state continues through JSON', () => {
  const first = new Curves();
  const whole = new Curves();
  for (let step = 1; step <= 3000; step++) {
    first.applied(push(step));
    whole.applied(push(step));
  }
  const second = new Curves(JSON.parse(JSON.stringify(first.state())));
  for (let step = 3001; step <= 5000; step++) {
    second.applied(push(step));
    whole.applied(push(step));
  }
  expect(second.metrics()).toEqual(whole.metrics());
  expect(second.trainingLoss).toBe(whole.trainingLoss);
  expect(second.examples).toBe(whole.examples);
});

test('curves in fewer points keep their peaks, their ends and the count of examples', () => {
  const curves = new Curves();
  for (let step = 1; step <= 1500; step++) {
    curves.applied(push(step, { gradientNorm: step === 777 ? 500 : 2 }));
  }
  const { training } = curves.metrics(100);
  expect(training.step).toHaveLength(100);
  expect(training.step).toContain(777);
  expect([training.step[0], training.step.at(-1)]).toEqual([1, 1500]);
  expect(training.examples).toEqual(training.step.map((step) => 64 * step));
  expect(curves.sparkline()).toHaveLength(40);
  expect(curves.sparkline().at(-1)).toBe(Number(curves.trainingLoss!.toPrecision(4)));
});
