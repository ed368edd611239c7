import type { Column } from './columns.ts';
import type { Examples, ExperimentData, PreparedData, PrepareOptions } from './examples.ts';
import { fieldTransformFor, transformFor } from './facts.ts';
import { InputMoments, KeptDifferences, type Measurement } from './measurements.ts';
import { columnNamed, RowsFeeder, readPieces, type SplitParts } from './pieces.ts';
import {
  inputChecks,
  mustNotBeRounded,
  roundedColumns,
  roundedText,
  targetChecks,
} from './precision.ts';
import { standardisationOf } from './prepare-data.ts';
import { ReadProgress } from './sources/read-progress.ts';
import { examplesAt } from './stored.ts';
import { columnNames, ofColumn, type Survey } from './survey.ts';
import {
  type InputTransform,
  type MeanAndDeviation,
  measuredSize,
  transformOf,
} from './transform.ts';

/** What the split decides of a source: standardisation, and whether float32 has enough digits. */

/** What was measured, by the name of the input. That it is there says that no check failed. */
export type MeasuredInputs = Readonly<Record<string, MeanAndDeviation>>;

export interface ReadingOptions {
  readonly log: (line: string) => void;
  readonly signal?: AbortSignal | undefined;
}

export class Measured {
  readonly #train: Examples;
  readonly #reading: ReadingOptions;
  readonly #kinds: ReturnType<typeof standardisationOf>;
  /** Transforms that need not be measured, by input. */
  readonly #known = new Map<string, InputTransform>();
  readonly #moments: InputMoments[] = [];
  /** Columns that can be looked at before the transforms are measured. */
  readonly #early: KeptDifferences[] = [];

  constructor({ train }: ExperimentData, options: PrepareOptions, reading: ReadingOptions) {
    this.#train = train;
    this.#reading = reading;
    this.#kinds = standardisationOf(train, options.standardise);
    for (const name of columnNames(train)) this.#begin(name, options);
  }

  #begin(name: string, { facts }: PrepareOptions): void {
    const column = columnNamed(this.#train, name);
    const isTarget = this.#isTarget(name);
    const known = ofColumn(name, () =>
      isTarget ? null : this.#knownTransform(name, column, facts ?? null),
    );
    if (known) this.#known.set(name, known);
    else if (!isTarget) {
      const kind = this.#kinds[name]!;
      this.#moments.push(new InputMoments(name, column, kind, measuredSize(column, kind)));
      return;
    }
    const checks = known ? inputChecks(column, known) : targetChecks(column);
    if (!checks.lines || checks.advice === null) return;
    this.#early.push(new KeptDifferences(name, isTarget ? 'targets' : 'inputs', checks));
  }

  /** Null: it is to be measured. */
  #knownTransform(
    name: string,
    column: Column,
    facts: (PrepareOptions['facts'] & {}) | null,
  ): InputTransform | null {
    const isMask = this.#train.fields?.[name]?.role === 'mask';
    if (facts && !isMask) {
      return name === 'inputs'
        ? transformFor(facts, column)
        : fieldTransformFor(facts, name, column);
    }
    const kind = isMask ? 'none' : this.#kinds[name]!;
    if (measuredSize(column, kind) > 0) return null;
    return transformOf(column, kind, { mean: [], deviation: [] });
  }

  #isTarget(name: string): boolean {
    return name === 'targets' || this.#train.fields?.[name]?.role === 'target';
  }

  get #first(): Measurement[] {
    return [...this.#moments, ...this.#early];
  }

  /** Takes in the pieces of the whole data, as a first pass over the parts of the split; null: nothing is to be measured. */
  feeder(data: ExperimentData, parts: SplitParts): RowsFeeder | null {
    if (this.#first.length === 0) return null;
    return new RowsFeeder(data, parts, (part, piece) => {
      for (const each of this.#first) add(each, 'addFirst', part, piece);
    });
  }

  /**
   * @param isBegun a feeder has had all pieces.
   * @throws DownpourError DP_DATA_CORRUPT: numbers that are too large, or that float32 does not tell apart.
   */
  async finish(parts: SplitParts, { ranges }: Survey, isBegun: boolean): Promise<MeasuredInputs> {
    if (!isBegun) await this.#pass(parts, this.#first, 'addFirst');
    await this.#second(parts, this.#first, this.#early);
    const measures = Object.fromEntries(
      this.#moments.map((each) => [each.name, each.result()] as const),
    );
    const late: KeptDifferences[] = [];
    for (const [name, transform] of Object.entries(this.#all(measures))) {
      if (this.#early.some((each) => each.name === name)) continue;
      const own = Object.values(ranges).map((range) => range[name]!);
      const checks = inputChecks(columnNamed(this.#train, name), transform);
      const check = KeptDifferences.of(name, 'inputs', checks, own);
      if (check) late.push(check);
    }
    await this.#pass(parts, late, 'addFirst');
    await this.#second(parts, late, late);
    await this.#mustHaveDigits(parts.train);
    return measures;
  }

  async #second(
    parts: SplitParts,
    all: readonly Measurement[],
    checks: readonly KeptDifferences[],
  ): Promise<void> {
    await this.#pass(
      parts,
      all.filter(({ needsSecond }) => needsSecond),
      'addSecond',
    );
    for (const check of checks) ofColumn(check.name, () => check.mustBeKept());
  }

  async #pass(parts: SplitParts, all: readonly Measurement[], method: Method): Promise<void> {
    if (all.length === 0) return;
    const { log, signal } = this.#reading;
    const isOfTrain = all.every((each) => each.isOfTrain);
    const read = Object.entries(parts).filter(([part]) => part === 'train' || !isOfTrain);
    const total = read.reduce((sum, [, examples]) => sum + (examples?.count ?? 0), 0);
    const progress = new ReadProgress(log, 'measuring the data', 'examples', total);
    let done = 0;
    for (const [part, examples] of read as [keyof SplitParts, Examples | null][]) {
      if (!examples || examples.count === 0) continue;
      for await (const piece of readPieces(examples, signal)) {
        for (const each of all) add(each, method, part, piece);
        done += piece.count;
        progress.tell(done);
      }
    }
  }

  /** By a few examples: float32 that was rounded to a few steps. */
  async #mustHaveDigits(train: Examples): Promise<void> {
    const names = columnNames(train).filter((name) => {
      const { values, shape } = columnNamed(train, name);
      return values instanceof Float32Array && shape.length <= 2;
    });
    if (names.length === 0) return;
    const step = Math.max(1, Math.floor(train.count / DIGITS_ROWS));
    const rows = Int32Array.from({ length: Math.ceil(train.count / step) }, (_, i) => i * step);
    const some = await examplesAt(train, rows, this.#reading.signal);
    for (const name of names) {
      const column = columnNamed(some, name);
      const of = this.#isTarget(name) ? 'targets' : 'inputs';
      ofColumn(name, () => mustNotBeRounded(`${of} of the train part`, column));
      if (name !== 'inputs') continue;
      for (const rounded of roundedColumns(column)) {
        this.#reading.log(
          `${roundedText(rounded)} Give it as a Float64Array, with standardise: 'feature'`,
        );
      }
    }
  }

  /** The transforms of all inputs and masks that have numbers. */
  #all(measures: MeasuredInputs): Record<string, InputTransform> {
    const measured = Object.entries(measures).map(([name, moments]) => {
      const column = columnNamed(this.#train, name);
      return [
        name,
        ofColumn(name, () => transformOf(column, this.#kinds[name]!, moments)),
      ] as const;
    });
    return { ...Object.fromEntries(this.#known), ...Object.fromEntries(measured) };
  }

  transforms(measures: MeasuredInputs): Required<Pick<PreparedData, 'transform' | 'transforms'>> {
    const all = this.#all(measures);
    const none = () => transformOf(this.#train.inputs, 'none', { mean: [], deviation: [] });
    const inputs = Object.entries(this.#train.fields ?? {}).flatMap(([name, { role }]) =>
      role === 'input' ? [[name, all[name]!] as const] : [],
    );
    return { transform: all.inputs ?? none(), transforms: Object.fromEntries(inputs) };
  }
}

/** As many examples show whether digits are lost. */
const DIGITS_ROWS = 2000;

type Method = 'addFirst' | 'addSecond';

function add(
  measurement: Measurement,
  method: Method,
  part: keyof SplitParts,
  piece: Examples,
): void {
  if (measurement.isOfTrain && part !== 'train') return;
  const { name } = measurement;
  ofColumn(name, () => measurement[method](part, columnNamed(piece, name)));
}
