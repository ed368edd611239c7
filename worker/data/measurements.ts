import { type Column, rowSize } from './columns.ts';
import type { DataPart } from './examples.ts';
import { mayOverflow, Rounding, type RoundingChecks } from './precision.ts';
import type { NumberRange } from './source.ts';
import {
  type MeanAndDeviation,
  momentsFor,
  RunningMoments,
  type Standardise,
} from './transform.ts';

/** What is measured of the parts of a source after the split, in one pass or two. */

export interface Measurement {
  readonly name: string;
  /** @param piece of the column of a part. */
  addFirst(part: DataPart, piece: Column): void;
  /** Whether the other parts are not looked at. */
  readonly isOfTrain: boolean;
  /** Whether a second pass over the same is needed. */
  readonly needsSecond: boolean;
  addSecond(part: DataPart, piece: Column): void;
}

/** Mean and deviation of an input in the training part, and its covariance where it is whitened. */
export class InputMoments implements Measurement {
  readonly isOfTrain = true;
  readonly needsSecond = true;
  readonly name: string;
  readonly #moments: ReturnType<typeof momentsFor>;

  /** @param size of `measuredSize`, above 0 */
  constructor(name: string, column: Column, standardise: Standardise, size: number) {
    this.name = name;
    this.#moments = momentsFor(column, standardise, size);
  }

  addFirst(_: DataPart, { values }: Column): void {
    this.#moments.addFirst(values);
  }

  addSecond(_: DataPart, { values }: Column): void {
    this.#moments.addSecond(values);
  }

  result(): MeanAndDeviation {
    return this.#moments.result();
  }
}

/** Whether a column keeps its differences as float32, as `mustFitFloat32` says. */
export class KeptDifferences implements Measurement {
  readonly isOfTrain = false;
  readonly name: string;
  readonly #of: string;
  readonly #checks: RoundingChecks;
  readonly #parts = new Map<
    DataPart,
    { readonly rounding: Rounding; readonly moments: RunningMoments }
  >();

  /** @param of for messages: `inputs` or `targets`. */
  constructor(name: string, of: string, checks: RoundingChecks) {
    this.name = name;
    this.#of = of;
    this.#checks = checks;
  }

  /** Null: nothing need be looked at. @param ranges of the column in all parts. */
  static of(
    name: string,
    of: string,
    checks: RoundingChecks,
    ranges: readonly NumberRange[],
  ): KeptDifferences | null {
    const { lines, advice } = checks;
    if (!lines) return null;
    const most = Math.max(...ranges.map(({ min, max }) => Math.max(Math.abs(min), Math.abs(max))));
    return advice === null && !mayOverflow(most, lines)
      ? null
      : new KeptDifferences(name, of, checks);
  }

  addFirst(part: DataPart, piece: Column): void {
    let own = this.#parts.get(part);
    if (!own) {
      const rounding = new Rounding(`${this.#of} of the ${part} part`, this.#checks.lines!);
      own = { rounding, moments: new RunningMoments(rowSize(piece)) };
      this.#parts.set(part, own);
    }
    own.rounding.add(piece);
    if (this.#checks.advice !== null) own.moments.addFirst(piece.values);
  }

  get needsSecond(): boolean {
    return (
      this.#checks.advice !== null &&
      [...this.#parts.values()].some(({ rounding }) => rounding.changes)
    );
  }

  addSecond(part: DataPart, piece: Column): void {
    this.#parts.get(part)!.moments.addSecond(piece.values);
  }

  /** @throws DownpourError DP_DATA_CORRUPT: differences would be lost. */
  mustBeKept(): void {
    const { advice } = this.#checks;
    const train = this.#parts.get('train');
    if (!this.needsSecond || advice === null || !train) return;
    const { deviation } = train.moments.result();
    for (const { rounding, moments } of this.#parts.values()) {
      if (!rounding.changes) continue;
      rounding.mustBeSmall({ deviation, here: moments.result().deviation, advice });
    }
  }
}
