import { dataDigest } from '../../shared/digest.ts';
import { type Column, rowSize } from './columns.ts';
import type { DataPart, Examples, ExperimentData, PrepareOptions } from './examples.ts';
import { mapFields, ofField } from './fields.ts';
import { storedFingerprint } from './fingerprint.ts';
import { partsOf } from './parts.ts';
import { columnNamed, readPieces } from './pieces.ts';
import { fieldsToPrepare } from './prepare-data.ts';
import type { NumberRange, NumberRanges } from './source.ts';
import { isOneHot, mustSuit, mustVary, type Variety, varietyOf } from './targets.ts';

/** What one pass over all examples of a source finds out, whatever the split: fingerprint, ranges, and labels that are wrong. */

export interface Survey {
  readonly fingerprint: string;
  readonly ranges: Readonly<Partial<Record<DataPart, NumberRanges>>>;
  /** Targets whose rows of whole numbers are shares of the classes. */
  readonly shares: readonly string[];
  /** What the targets of the training part are like, by name. */
  readonly varieties: Readonly<Record<string, Variety>>;
}

/** A target with what it must suit. */
export interface Target {
  readonly name: string;
  readonly loss: string | null;
  readonly classCount: number | undefined;
}

export function targetsOf(data: ExperimentData, options: PrepareOptions): Target[] {
  const { train } = data;
  const { loss, targets } = fieldsToPrepare(data, options);
  const own: Target = { name: 'targets', loss, classCount: data.classCount };
  return [
    ...(rowSize(train.targets) > 0 ? [own] : []),
    ...targets.map((target): Target => {
      const { classes, classCount } = train.fields![target.name]!;
      return { ...target, classCount: classes?.length ?? classCount };
    }),
  ];
}

/** The names of all columns that have numbers. */
export const columnNames = ({ inputs, targets, fields = {} }: Examples): string[] => [
  ...(rowSize(inputs) > 0 ? ['inputs'] : []),
  ...(rowSize(targets) > 0 ? ['targets'] : []),
  ...Object.keys(fields),
];

/** An error names the field, if the column is one. */
export const ofColumn = <T>(name: string, check: () => T): T =>
  name === 'inputs' || name === 'targets' ? check() : ofField(name, check);

/**
 * Reads everything once.
 * @param onPiece is given each piece as well, with the part that it is of.
 * @throws DownpourError DP_DATA_LABEL: a target that the loss or the classes do not allow; what reading throws.
 */
export async function survey(
  data: ExperimentData,
  targets: readonly Target[],
  signal: AbortSignal | undefined,
  onPiece: (part: DataPart, piece: Examples) => void,
): Promise<Survey> {
  const ranges: Partial<Record<DataPart, Record<string, NumberRange>>> = {};
  const digests: Partial<Record<DataPart, Record<string, string>>> = {};
  const labels = new Map<string, Variety>();
  const rows = new Map<string, Variety>();
  const shares = new Set(targets.flatMap(({ name, classCount }) => (classCount ? [name] : [])));
  for (const [part, examples] of partsOf(data) as [DataPart, Examples][]) {
    const names = columnNames(examples);
    const sums = new Map(names.map((name) => [name, dataDigest()]));
    const own: Record<string, NumberRange> = {};
    ranges[part] = own;
    for await (const piece of readPieces(examples, signal)) {
      for (const name of names) {
        const column = columnNamed(piece, name);
        sums.get(name)!.update(column.values);
        own[name] = rangeOf(column, own[name]);
      }
      for (const { name, loss, classCount } of targets) {
        const column = columnNamed(piece, name);
        ofColumn(name, () => mustSuit(column, `${part} part`, loss, classCount));
        if (shares.has(name) && !isOneHot(column, classCount!)) shares.delete(name);
        if (part !== 'train') continue;
        labels.set(name, varietyOf(column, classCount, labels.get(name)));
        if (!shares.has(name)) continue;
        const asShares = { ...column, values: Float32Array.from(column.values) };
        rows.set(name, varietyOf(asShares, classCount, rows.get(name)));
      }
      onPiece(part, piece);
    }
    digests[part] = Object.fromEntries(names.map((name) => [name, sums.get(name)!.hex()]));
  }
  const varieties = targets.map(({ name }) => {
    const { first, varies } = (shares.has(name) ? rows : labels).get(name)!;
    return [name, { first: Array.from(first), varies }] as const;
  });
  return {
    fingerprint: storedFingerprint(data, digests as Record<DataPart, Record<string, string>>),
    ranges,
    shares: [...shares],
    varieties: Object.fromEntries(varieties),
  };
}

/** @throws DownpourError DP_DATA_LABEL: all examples have the same label. */
export function mustVaryAsSeen(
  data: ExperimentData,
  targets: readonly Target[],
  { varieties }: Survey,
  viewOf: (name: string) => ExperimentData,
): void {
  for (const { name, loss } of targets) {
    const view = name === 'targets' ? data : viewOf(name);
    ofColumn(name, () => mustVary(view, loss, varieties[name]!));
  }
}

/** The data with what was found: targets that are shares have their type, and each part knows the ranges of its numbers. */
export function surveyed(data: ExperimentData, { ranges, shares }: Survey): ExperimentData {
  const asShares = <C extends Column>(column: C, name: string): C =>
    shares.includes(name) ? { ...column, values: new Float32Array(0) } : column;
  const parts = partsOf(data).map(([part, examples]) => {
    const { targets, fields, stored } = examples;
    const known = ranges[part as DataPart];
    return [
      part,
      {
        ...{ ...examples, targets: asShares(targets, 'targets') },
        ...(fields && { fields: mapFields(fields, asShares) }),
        stored: { ...stored!, ...(known && { ranges: known }) },
      },
    ];
  });
  return { ...data, ...Object.fromEntries(parts) };
}

function rangeOf(column: Column, before: NumberRange | undefined): NumberRange {
  const { values, firstRow = 0 } = column;
  // Nobody asks of bytes: they are neither ids nor too large for anything.
  if (values instanceof Uint8Array) {
    return { min: 0, max: 255, minRow: 0, maxRow: 0, fractionRow: null };
  }
  const size = rowSize(column);
  let { min, max, minRow, maxRow, fractionRow } = before ?? {
    ...{ min: Infinity, max: -Infinity, minRow: 0, maxRow: 0 },
    fractionRow: null,
  };
  const isFloat = values instanceof Float32Array || values instanceof Float64Array;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (value < min) {
      min = value;
      minRow = firstRow + Math.floor(i / size);
    }
    if (value > max) {
      max = value;
      maxRow = firstRow + Math.floor(i / size);
    }
    if (isFloat && fractionRow === null && !Number.isInteger(value)) {
      fractionRow = firstRow + Math.floor(i / size);
    }
  }
  return { min, max, minRow, maxRow, fractionRow };
}
