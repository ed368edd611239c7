import { readFileSync } from 'node:fs';
import { random } from '../../shared/random.ts';
import type { Point } from '../../shared/space.ts';

/**
 * A training so quick that a test can afford thousands: a linear model of miles per gallon on the
 * 392 real cars, by stochastic gradient descent with momentum in plain arithmetic, three epochs long.
 */

const rows = readFileSync(new URL('../../examples/data/auto-mpg.csv', import.meta.url), 'utf8')
  .trim()
  .split('\n')
  .slice(1)
  .map((line) => line.split(',').slice(0, 7).map(Number));
const FEATURES = 6;
/** Mean 0 and deviation 1, the target too. */
const columns = Array.from({ length: FEATURES + 1 }, (_, c) => {
  const values = rows.map((row) => row[c]!);
  const mean = values.reduce((a, b) => a + b) / values.length;
  const deviation = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
  return values.map((value) => (value - mean) / deviation);
});
const EPOCHS = 3;

/**
 * @param point learningRate and momentum matter; initialScale, clip and order hardly do.
 * @param seed of the split. @returns the mean squared error on a third of the cars; diverged: Infinity.
 */
export function quickTraining(point: Point, seed: number): number {
  const number = (name: string, fallback: number) => Number(point[name] ?? fallback);
  const learningRate = number('learningRate', 0.01);
  const momentum = number('momentum', 0);
  const clip = number('clip', 1e3);
  const draw = random(Math.round(number('order', 1)), 77);
  const weights = Float64Array.from(
    { length: FEATURES + 1 },
    () => draw.normal() * number('initialScale', 1e-3),
  );
  const velocity = new Float64Array(FEATURES + 1);
  const isValidating = (i: number) => (i * 7 + seed) % 3 === 0;
  const training = rows.map((_, i) => i).filter((i) => !isValidating(i));
  const residual = (i: number): number => {
    let sum = weights[FEATURES]! - columns[0]![i]!;
    for (let f = 0; f < FEATURES; f++) sum += weights[f]! * columns[f + 1]![i]!;
    return sum;
  };
  for (let n = 0; n < EPOCHS * training.length; n++) {
    const i = training[draw.below(training.length)]!;
    const error = Math.max(-clip, Math.min(clip, residual(i)));
    for (let f = 0; f <= FEATURES; f++) {
      const x = f === FEATURES ? 1 : columns[f + 1]![i]!;
      velocity[f] = momentum * velocity[f]! - learningRate * error * x;
      weights[f]! += velocity[f]!;
    }
  }
  let sum = 0;
  let count = 0;
  for (let i = 0; i < rows.length; i++) {
    if (!isValidating(i)) continue;
    sum += residual(i) ** 2;
    count++;
  }
  return Number.isFinite(sum) ? sum / count : Infinity;
}
