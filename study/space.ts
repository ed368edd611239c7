import type { RunConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import { random } from '../shared/random.ts';
import {
  type Dimension,
  isActive,
  type Point,
  type Space,
  type SpaceValue,
} from '../shared/space.ts';
import { SOBOL_DIMENSIONS_MAX, sobolPoint } from './sobol.ts';

/** Points of a search space: between values and the unit cube, and three ways to choose them; and a space for want of one. */

/** The trial of index i draws from stream RANDOM_STREAM + i of the study's seed. */
const RANDOM_STREAM = 0x2000_0000;
/** A grid above this many dimensions is refused. */
const GRID_DIMENSIONS_MAX = 4;

/** The value at a place of its range. @param u 0 ≤ u ≤ 1. */
export function valueAt(dimension: Dimension, u: number): SpaceValue {
  if (dimension.kind === 'choice') {
    const { values } = dimension;
    return values[Math.min(values.length - 1, Math.floor(u * values.length))]!;
  }
  const { kind, low, high } = dimension;
  if (kind === 'uniform') return clamp(low + u * (high - low), low, high);
  if (kind === 'log') return clamp(low * (high / low) ** u, low, high);
  // Each whole number has an interval of its own: from itself to the next.
  const real = kind === 'integer' ? low + u * (high + 1 - low) : low * ((high + 1) / low) ** u;
  return clamp(Math.floor(real + 1e-9), low, high);
}

/** The place of a value in its range, the middle of its interval where it has one. */
export function unitPlace(dimension: Dimension, value: SpaceValue): number {
  if (dimension.kind === 'choice') {
    const index = dimension.values.indexOf(value);
    return (index + 0.5) / dimension.values.length;
  }
  const { kind, low, high } = dimension;
  const x = Number(value);
  if (kind === 'uniform') return (x - low) / (high - low);
  if (kind === 'log') return Math.log(x / low) / Math.log(high / low);
  if (kind === 'integer') return (x + 0.5 - low) / (high + 1 - low);
  return (Math.log(x / low) + Math.log((x + 1) / low)) / 2 / Math.log((high + 1) / low);
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}

/** The point at a place of the unit cube; dimensions whose condition fails have no value. */
export function pointAt(space: Space, places: readonly number[]): Point {
  const point: Record<string, SpaceValue> = {};
  Object.entries(space).forEach(([path, dimension], i) => {
    if (isActive(dimension, point)) point[path] = valueAt(dimension, places[i]!);
  });
  return point;
}

/** The place of a point in the unit cube; where a dimension does not count: the middle. */
export function unitPoint(space: Space, point: Point): number[] {
  return Object.entries(space).map(([path, dimension]) =>
    point[path] === undefined ? 0.5 : unitPlace(dimension, point[path]),
  );
}

/** Part of the unit interval of each dimension. */
export interface Region {
  readonly low: readonly number[];
  readonly high: readonly number[];
}

export function wholeRegion(space: Space): Region {
  const dimensions = Object.keys(space).length;
  return { low: Array(dimensions).fill(0), high: Array(dimensions).fill(1) };
}

/**
 * A region around a point, each side of it `width` of the whole, moved where it would stick out. What
 * is chosen from a list is not narrowed: neighbours in a list need not be alike.
 */
export function regionAround(space: Space, point: Point, width: number): Region {
  const low: number[] = [];
  const high: number[] = [];
  const places = unitPoint(space, point);
  Object.entries(space).forEach(([path, { kind }], i) => {
    const free = kind === 'choice' || point[path] === undefined;
    const start = free ? 0 : clamp(places[i]! - width / 2, 0, 1 - width);
    low.push(start);
    high.push(free ? 1 : start + width);
  });
  return { low, high };
}

/** Deterministic: the same seed and index give the same place on every machine. */
export function placesFor(
  method: 'random' | 'sobol',
  space: Space,
  seed: number,
  index: number,
  region: Region = wholeRegion(space),
): number[] {
  const { length } = Object.keys(space);
  if (method === 'sobol' && length > SOBOL_DIMENSIONS_MAX) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `the space has ${length} dimensions; Sobol's sequence has numbers for ${SOBOL_DIMENSIONS_MAX}: use random`,
    );
  }
  const draw = random(seed, RANDOM_STREAM + index);
  const unit =
    method === 'sobol'
      ? sobolPoint(index, length, seed)
      : Array.from({ length }, () => draw.uniform());
  return unit.map((u, i) => region.low[i]! + u * (region.high[i]! - region.low[i]!));
}

/**
 * All points of a grid of at most `pointsMax`: as many values a dimension as fit, the same number for
 * each range, ends among them, at equal factors where the scale is logarithmic.
 * @throws DownpourError DP_CONFIG_INVALID above 4 dimensions, or when even the smallest grid is too
 *   large.
 */
export function gridPoints(space: Space, pointsMax: number): Point[] {
  const dimensions = Object.entries(space);
  if (dimensions.length > GRID_DIMENSIONS_MAX) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `a grid over ${dimensions.length} dimensions is refused (at most ${GRID_DIMENSIONS_MAX}): with 3 values each it has ${3 ** dimensions.length} trials, and where few dimensions matter most of them repeat the same values of those; use random (Deep Learning §11.4.3 and §11.4.4)`,
    );
  }
  let points: Point[] | null = null;
  for (let levels = 2; ; levels++) {
    const next = gridOf(dimensions, levels);
    if (next.length > pointsMax || next.length === points?.length) break;
    points = next;
  }
  if (points) return points;
  throw new DownpourError(
    'DP_CONFIG_INVALID',
    `the smallest grid of this space has ${gridOf(dimensions, 2).length} trials, ${pointsMax} are allowed: raise the number of trials, or use random`,
  );
}

function gridOf(dimensions: readonly (readonly [string, Dimension])[], levels: number): Point[] {
  let points: Point[] = [{}];
  for (const [path, dimension] of dimensions) {
    points = points.flatMap((point) =>
      isActive(dimension, point)
        ? gridValues(dimension, levels).map((value) => ({ ...point, [path]: value }))
        : [point],
    );
  }
  return points;
}

function gridValues(dimension: Dimension, levels: number): SpaceValue[] {
  if (dimension.kind === 'choice') return [...dimension.values];
  const { kind, low, high } = dimension;
  const values = Array.from({ length: levels }, (_, i) => {
    const u = i / (levels - 1);
    const value = kind.startsWith('log') ? low * (high / low) ** u : low + u * (high - low);
    return clamp(kind.endsWith('nteger') ? Math.round(value) : value, low, high);
  });
  return [...new Set(values)];
}

/**
 * A dimension as it is written on the command line: `learningRate=log:0.001..1`,
 * `hyperparameters.units=logInteger:16..512`, `optimizer.kind=choice:sgd,adam`, and
 * `optimizer.momentum=uniform:0..0.99 when optimizer.kind=momentum`.
 * @throws DownpourError DP_USAGE.
 */
export function parseDimension(text: string): { path: string; dimension: unknown } {
  const wrong = () =>
    new DownpourError(
      'DP_USAGE',
      `'${text}' is not a dimension; write it like learningRate=log:0.001..1, hyperparameters.units=logInteger:16..512 or optimizer.kind=choice:sgd,adam`,
    );
  const [definition, ...conditions] = text.split(/\s+when\s+/);
  const match = /^([^=]+)=(\w+):(.+)$/.exec(definition!.trim());
  if (!match) throw wrong();
  const [, path, kind, rest] = match as unknown as [string, string, string, string];
  const when = conditions.flatMap((condition) =>
    condition.split(/\s+and\s+/).map((part) => {
      const equals = part.indexOf('=');
      if (equals < 1) throw wrong();
      return [
        part.slice(0, equals).trim(),
        part
          .slice(equals + 1)
          .split(',')
          .map(scalarOf),
      ];
    }),
  );
  const condition = when.length === 0 ? {} : { when: Object.fromEntries(when) as unknown };
  if (kind === 'choice') {
    return { path, dimension: { kind, values: rest.split(',').map(scalarOf), ...condition } };
  }
  const ends = rest.split('..').map(Number);
  if (ends.length !== 2 || ends.some((end) => !Number.isFinite(end))) throw wrong();
  return { path, dimension: { kind, low: ends[0], high: ends[1], ...condition } };
}

/** A number or a truth value where it can be read as one, else the text. */
function scalarOf(text: string): SpaceValue {
  const trimmed = text.trim();
  if (trimmed === 'true' || trimmed === 'false') return trimmed === 'true';
  return trimmed !== '' && Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

/**
 * What to search over where nobody has said it: the learning rate, by factors around the configured one, weight decay where
 * there is some, and the hyperparameters that the configuration names, each within a factor of four (Deep Learning §11.4.1: the
 * learning rate matters most). A share, such as that of dropout, goes from 0 to 0.8.
 */
export function defaultSpace({ learningRate, weightDecay, hyperparameters }: RunConfig): Space {
  const space: Record<string, Dimension> = { learningRate: around(learningRate, 30, 10) };
  if (weightDecay.rate > 0) space['weightDecay.rate'] = around(weightDecay.rate, 100, 100);
  for (const [name, value] of Object.entries(hyperparameters)) {
    const path = `hyperparameters.${name}`;
    if (typeof value === 'boolean') space[path] = { kind: 'choice', values: [false, true] };
    else if (typeof value !== 'number' || value < 0) continue;
    else if (Number.isInteger(value) && value > 1) {
      space[path] = {
        kind: 'logInteger',
        low: Math.max(1, Math.round(value / 4)),
        high: 4 * value,
      };
    } else if (value < 1) space[path] = { kind: 'uniform', low: 0, high: 0.8 };
    else space[path] = around(value, 4, 4);
  }
  return space;
}

function around(value: number, below: number, above: number): Dimension {
  const round = (number: number) => Number(number.toPrecision(2));
  return { kind: 'log', low: round(value / below), high: round(value * above) };
}
