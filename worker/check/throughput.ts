import { freemem } from 'node:os';
import type { RunConfig } from '../../shared/config.ts';
import type { PreparedData } from '../data/examples.ts';
import { gather } from '../data/gather.ts';
import type { Experiment } from '../experiment.ts';
import { buildModel } from '../model.ts';
import { madeUpRows } from '../rows/model-rows.ts';
import { type Finding, finding, short, tooFew } from './finding.ts';

/** Examples a second by the size of the minibatch, and how large one may be. */

export interface SizeTiming {
  readonly size: number;
  readonly examplesPerSecond: number;
  readonly stepMs: number;
}

const FIRST = 16;
const LARGEST = 8192;
/** The first steps of a size are recorded and tried both ways. */
const WARM_STEPS = 3;
const TIMED_MS = 150;
const TIMED_STEPS = 3;
/** Beyond it larger sizes take long to look at, and are of no use. */
const STEP_MS_MAX = 1000;
/** The share of the memory that is free that one more doubling may take. */
const MEMORY_SHARE = 0.4;
/** The share of the best speed among 32 … 256 that a smaller size must reach to be chosen. */
const ENOUGH = 0.8;
/** So many times the speed is worth another minibatch size … */
const MUCH_FASTER = 4;
/** … as long as an epoch still has so many updates. */
const UPDATES_MIN = 10;

/**
 * Doubles the size from 16 until a step takes over a second, memory runs short or fails, or there are no
 * more examples. Of advice only: timings are never a verdict.
 */
export async function checkThroughput(
  experiment: Experiment,
  config: RunConfig,
  prepared: PreparedData,
): Promise<Finding> {
  const timings: SizeTiming[] = [];
  let why = `larger than ${LARGEST} was not tried`;
  for (let size = FIRST; size <= LARGEST; size *= 2) {
    if (size > prepared.train.count) {
      why = `there are ${prepared.train.count} training examples`;
      break;
    }
    // One model a size: what it has recorded goes with it.
    const model = await buildModel(experiment, config, prepared);
    const rssBefore = process.memoryUsage().rss;
    try {
      model.load((await model.initialise(config.seed)).slice());
      const tables = model.rows;
      tables?.from(async (keys) => madeUpRows(tables.shapes, keys));
      const rows = Int32Array.from({ length: size }, (_, i) => i);
      const minibatch = gather(prepared, 'train', rows);
      for (let i = 0; i < WARM_STEPS; i++) await model.step(minibatch, i);
      const start = performance.now();
      let steps = 0;
      while (steps < TIMED_STEPS || performance.now() - start < TIMED_MS) {
        await model.step(minibatch, steps++);
      }
      const stepMs = (performance.now() - start) / steps;
      timings.push({ size, stepMs, examplesPerSecond: (1000 * size) / stepMs });
      if (stepMs > STEP_MS_MAX && size >= 256) {
        why = 'a step then takes more than a second';
        break;
      }
    } catch (error) {
      why = `${size} failed: ${error instanceof Error ? error.message.slice(0, 100) : String(error)}`;
      break;
    } finally {
      model.dispose();
    }
    const grown = Math.max(0, process.memoryUsage().rss - rssBefore);
    if (2 * grown > MEMORY_SHARE * freemem()) {
      why = 'memory would run short';
      break;
    }
  }
  return judgeThroughput(timings, config.minibatchSize, why, prepared.train.count);
}

/** @param examples of the training part. */
export function judgeThroughput(
  timings: readonly SizeTiming[],
  minibatchSize: number,
  why: string,
  examples = Number.POSITIVE_INFINITY,
): Finding {
  if (examples < FIRST) {
    return tooFew('minibatch', 'how fast minibatch sizes are', examples, FIRST);
  }
  const usual = timings.filter(({ size }) => size >= 32 && size <= 256);
  const most = Math.max(0, ...usual.map(({ examplesPerSecond }) => examplesPerSecond));
  const chosen = usual.find(({ examplesPerSecond }) => examplesPerSecond >= ENOUGH * most)?.size;
  const largest = timings.at(-1)?.size ?? null;
  const speeds = timings
    .map(({ size, examplesPerSecond }) => `${size}: ${short(examplesPerSecond)}`)
    .join(', ');
  const numbers = { timings, chosen: chosen ?? null, largest };
  const text = `Examples a second by size of the minibatch: ${speeds || 'none'}. ${chosen === undefined ? '' : `Of 32 to 256, ${chosen} is the smallest with ${100 * ENOUGH} % of the best speed. `}The largest tried that fits is ${largest ?? 'none'} (${why}).`;
  if (largest !== null && minibatchSize > largest && why.includes('failed')) {
    const next = `lower minibatchSize to ${largest} at most`;
    return finding('minibatch', 'problem', text, next, numbers);
  }
  // A size that there are not the examples for is no use.
  const unusual = minibatchSize > 256 || (minibatchSize < 16 && examples >= 32);
  const faster = unusual ? null : muchFaster(timings, minibatchSize, examples);
  if (faster) {
    const { size, times } = faster;
    return finding(
      'minibatch',
      'advice',
      `${text} minibatchSize is ${minibatchSize}; ${size} has ${short(times)} times the examples a second.`,
      `try minibatchSize ${size}; it makes fewer updates an epoch, so look for the learning rate again with \`downpour lr-find\``,
      { ...numbers, faster: size },
    );
  }
  return finding(
    'minibatch',
    unusual ? 'advice' : 'ok',
    unusual
      ? `${text} minibatchSize is ${minibatchSize}; 32 to 256 is usual, 16 for large models (Deep Learning §8.1.3).`
      : text,
    `try minibatchSize ${chosen ?? 32}`,
    numbers,
  );
}

/** The smallest larger size that is so much faster; null: there is none. */
function muchFaster(
  timings: readonly SizeTiming[],
  minibatchSize: number,
  examples: number,
): { readonly size: number; readonly times: number } | null {
  // The nearest that was measured; the speed of a size below the smallest one is lower still.
  const own = timings.findLast(({ size }) => size <= minibatchSize) ?? timings[0];
  if (!own) return null;
  const faster = timings.find(
    ({ size, examplesPerSecond }) =>
      size > minibatchSize &&
      size * UPDATES_MIN <= examples &&
      examplesPerSecond >= MUCH_FASTER * own.examplesPerSecond,
  );
  return faster
    ? { size: faster.size, times: faster.examplesPerSecond / own.examplesPerSecond }
    : null;
}
