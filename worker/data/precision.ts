import { DownpourError } from '../../shared/errors.ts';
import { type Column, columnName, elementAt, isFloat, rowSize } from './columns.ts';
import type { Examples } from './examples.ts';
import { type InputTransform, type Lines, meanAndDeviation, transformLines } from './transform.ts';

/**
 * Models compute with float32, which keeps 24 bits of a number. A column is refused if this would remove the
 * differences between its examples: training would look as if there were nothing to learn.
 */

/**
 * Rounding may be this share of a column's standard deviation. Rounding at random then adds 0.01 % to its
 * variance, far below the noise of anything measured; a time in ms of one day has 44 %, of one year 0.0004 %.
 */
const ROUNDING_SHARE = 0.01;
/** What came as float32 is refused above this: it has but ten steps or so left. */
const LOST_SHARE = 0.1;
/** Differences of a few float64 roundings (0.1 + 0.2 and 0.3) are none. */
const NOISE = 2 ** -48;

interface NamedExamples {
  readonly name: string;
  readonly examples: Examples;
}

/** @throws DownpourError DP_DATA_CORRUPT with part, row and column of NaN or infinity. */
export function mustBeFinite(where: string, column: Column): void {
  const { values } = column;
  if (!isFloat(values)) return;
  const isGap = column.missing !== undefined;
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i]!) || (isGap && Number.isNaN(values[i]!))) continue;
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `${where}, ${elementAt(column, i)}: the value ${values[i]} is not a finite number; remove the row or fill it in`,
    );
  }
}

/**
 * @param parts the training part first.
 * @throws DownpourError DP_DATA_CORRUPT with part, row and column of a number beyond float32, or the
 *   column that would lose its differences.
 */
export function mustFitFloat32(parts: readonly NamedExamples[], transform: InputTransform): void {
  const inputs = parts.map(({ name, examples }) => ({ name, column: examples.inputs }));
  const targets = parts.map(({ name, examples }) => ({ name, column: examples.targets }));
  mustNotBeRounded('inputs of the train part', inputs[0]!.column);
  mustNotBeRounded('targets of the train part', targets[0]!.column);
  for (const { of, columns, lines, advice } of [
    { of: 'inputs', columns: inputs, ...inputChecks(inputs[0]!.column, transform) },
    { of: 'targets', columns: targets, ...targetChecks(targets[0]!.column) },
  ]) {
    if (lines) mustKeepDifferences(of, columns, lines, advice);
  }
}

/** What must be looked at so that a column keeps its differences. */
export interface RoundingChecks {
  /** What is done to the numbers; null: nothing need be looked at. */
  readonly lines: Lines | null;
  /** What to do where they are lost; null: only the range matters. */
  readonly advice: string | null;
}

export function inputChecks(column: Column, transform: InputTransform): RoundingChecks {
  const { kind } = transform;
  if (column.values instanceof Uint8Array || (kind === 'none' && isFloat32(column))) {
    return { lines: null, advice: null };
  }
  // By their own mean and deviation, all columns are near 1. Under one for all, a dark corner of pictures may be
  // as good as constant; a column of a table may not.
  const scaled =
    kind === 'feature' ||
    kind === 'zca' ||
    (kind === 'global' && (column.shape.length > 2 || rowSize(column) === 1));
  return {
    lines: transformLines(transform, rowSize(column)),
    advice: scaled ? null : "set standardise: 'feature', or subtract an offset in data()",
  };
}

export const targetChecks = (column: Column): RoundingChecks => ({
  lines: isFloat32(column) ? null : transformLines(NOTHING, rowSize(column)),
  advice: 'in data(), subtract an offset from the target, its mean for example',
});

/** Refuses float32 that was rounded to a few steps. */
export function mustNotBeRounded(where: string, column: Column): void {
  const lost = roundedColumns(column).find(({ share }) => share > LOST_SHARE);
  if (lost === undefined) return;
  throw new DownpourError(
    'DP_DATA_CORRUPT',
    `${roundedText(lost, where)} Their differences are lost. Use a Float64Array; for inputs also set standardise: 'feature', for targets also subtract an offset`,
  );
}

const isFloat32 = ({ values }: Column) => values instanceof Float32Array;
const NOTHING: InputTransform = { kind: 'none', scale: 1, mean: [], deviation: [] };

function mustKeepDifferences(
  of: string,
  parts: readonly { readonly name: string; readonly column: Column }[],
  lines: Lines,
  /** What to do; null: only the range matters. */
  advice: string | null,
): void {
  const train = parts[0]!.column;
  let deviation: readonly number[] | null = null;
  for (const { name, column } of parts) {
    const where = `${of} of the ${name} part`;
    if (advice === null && !mayOverflow(largest(column), lines)) continue;
    const rounding = new Rounding(where, lines);
    rounding.add(column);
    if (advice === null || !rounding.changes) continue;
    const size = rowSize(train);
    deviation ??= meanAndDeviation(train.values, size).deviation;
    // A value of another part may be far outside; it must differ from others there to be lost.
    const here = column === train ? deviation : meanAndDeviation(column.values, size).deviation;
    rounding.mustBeSmall({ deviation, here, advice });
  }
}

const FLOAT32_MAX = 3.4028234663852886e38;

function largest({ values }: Column): number {
  let most = 0;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]!);
    if (size > most) most = size;
  }
  return most;
}

/** Whether any number could come to lie beyond float32. @param most the largest size of all. */
export function mayOverflow(most: number, { scale, mean, inverse }: Lines): boolean {
  return !mean.every((m, f) => (most * scale + Math.abs(m)) * inverse[f]! <= FLOAT32_MAX);
}

/** What rounding to float32 changes in a column, whose examples may come in pieces. */
export class Rounding {
  readonly #where: string;
  readonly #lines: Lines;
  /** The first piece. */
  #column: Column | null = null;
  #squares = new Float64Array(0);
  #count = 0;

  constructor(where: string, lines: Lines) {
    this.#where = where;
    this.#lines = lines;
  }

  /** @throws DownpourError DP_DATA_CORRUPT: a number beyond the range of float32. */
  add(column: Column): void {
    const { values } = column;
    const { scale, mean, inverse } = this.#lines;
    const size = rowSize(column);
    if (!this.#column) {
      this.#column = { ...column, values: values.slice(0, size) };
      this.#squares = new Float64Array(size);
    }
    const squares = this.#squares;
    for (let i = 0, f = 0; i < values.length; i++) {
      const exact = (values[i]! * scale - mean[f]!) * inverse[f]!;
      const error = Number.isNaN(exact) ? 0 : Math.fround(exact) - exact;
      if (!Number.isFinite(error)) {
        const after = exact === values[i] ? '' : `, ${short(exact)} after standardisation,`;
        throw new DownpourError(
          'DP_DATA_CORRUPT',
          `${this.#where}, ${elementAt(column, i)}: the value ${values[i]}${after} is beyond the range of float32 (±3.4e38), which models use; use another unit`,
        );
      }
      squares[f]! += error * error;
      if (++f === size) f = 0;
    }
    this.#count += values.length;
  }

  /** Whether any number changes. */
  get changes(): boolean {
    return this.#squares.some((sum) => sum !== 0);
  }

  /** @throws DownpourError DP_DATA_CORRUPT: a column that would lose its differences. */
  mustBeSmall({ deviation, here, advice }: Differences): void {
    const column = this.#column!;
    const size = rowSize(column);
    const { scale, inverse } = this.#lines;
    for (const [f, sum] of this.#squares.entries()) {
      // Root mean square, by column.
      const error = Math.sqrt((sum * size) / this.#count);
      if (here[f] === 0) continue;
      const raw = Math.max(deviation[f]!, here[f]!);
      const own = raw * scale * inverse[f]!;
      if (error <= ROUNDING_SHARE * own || raw <= NOISE * Math.abs(column.values[f]!)) continue;
      throw new DownpourError(
        'DP_DATA_CORRUPT',
        `${this.#where}, ${columnName(column, f)}: numbers such as ${column.values[f]} differ too little for their size. Models compute with float32. Rounding to float32 changes them by ${short((100 * error) / own)} % of their standard deviation (allowed: ${100 * ROUNDING_SHARE} %); ${advice}`,
      );
    }
  }
}

interface Differences {
  /** Standard deviation in the training part, by column; and in the part itself. */
  readonly deviation: readonly number[];
  readonly here: readonly number[];
  /** What to do. */
  readonly advice: string;
}

const short = (value: number) => String(Number(value.toPrecision(2)));

/** A column of float32 whose numbers were probably rounded when they became float32. */
export interface RoundedColumn {
  readonly name: string;
  /** One of its numbers. */
  readonly like: number;
  /** From one float32 of this size to the next. */
  readonly spacing: number;
  /** The rounding, as a share of the standard deviation. */
  readonly share: number;
}

/** Rows that are looked at: enough for a deviation. */
const ROWS = 2000;

/** Columns of tables and lists of float32 whose numbers are so large, and so near each other, that float32 has no digits for it. */
export function roundedColumns(column: Column): RoundedColumn[] {
  const { values, shape } = column;
  const size = rowSize(column);
  if (!isFloat32(column) || shape.length > 2) return [];
  const step = Math.max(1, Math.floor(shape[0]! / ROWS));
  const found: RoundedColumn[] = [];
  for (let f = 0; f < size; f++) {
    const some: number[] = [];
    for (let i = f; i < values.length; i += size * step) some.push(values[i]!);
    const most = some.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
    // Whole numbers up to 2²⁴ are float32 numbers.
    if (most <= 2 ** 24 && some.every(Number.isInteger)) continue;
    const deviation = meanAndDeviation(some, 1).deviation[0]!;
    const spacing = 2 ** (Math.floor(Math.log2(most)) - 23);
    const share = spacing / Math.sqrt(12) / deviation;
    if (!(deviation > 0 && share > ROUNDING_SHARE)) continue;
    found.push({ name: columnName(column, f), like: some[0]!, spacing, share });
  }
  return found;
}

/** @param of `Inputs` or `inputs of the train part` */
export const roundedText = ({ name, like, spacing, share }: RoundedColumn, of = 'Inputs') =>
  `${of}, ${name}: as float32, numbers such as ${like} are ${spacing} apart, so rounding changes them by ${short(100 * share)} % of their standard deviation.`;
