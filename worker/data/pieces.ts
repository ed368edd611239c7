import { DownpourError } from '../../shared/errors.ts';
import { ARRAYS, type Column, emptyColumn, kindOf, rowSize, sizeOf } from './columns.ts';
import { DATA_PARTS, type Examples, type ExperimentData, type PreparedData } from './examples.ts';
import { mapFields } from './fields.ts';
import { rawFingerprint } from './fingerprint.ts';
import { partsOf } from './parts.ts';
import type { ExampleSource, SourceField } from './source.ts';
import { takeExamples } from './split.ts';
import { examplesAt } from './stored.ts';

/** Reading all examples of a source once, piece by piece. */

/** One piece, unless a single example is larger. These two decide fingerprints: do not change them. */
const PIECE_BYTES = 2 ** 22;
const PIECE_ROWS = 2 ** 16;

/** Examples of a piece: the same on every machine. */
function pieceRows({ stored }: Examples): number {
  const fields = Object.values(stored!.source.fields);
  const bytes = fields.reduce(
    (sum, { shape, type }) => sum + sizeOf(shape) * ARRAYS[type].BYTES_PER_ELEMENT,
    0,
  );
  return Math.min(PIECE_ROWS, Math.max(1, Math.floor(PIECE_BYTES / bytes)));
}

/**
 * All examples of a part in their order. While one piece is worked on, the next one is read.
 * @throws what `readSourceRows` throws.
 */
export async function* readPieces(
  examples: Examples,
  signal?: AbortSignal,
): AsyncGenerator<Examples> {
  const { count } = examples;
  const rows = pieceRows(examples);
  const readFrom = (start: number) => {
    const wanted = Int32Array.from({ length: Math.min(rows, count - start) }, (_, i) => start + i);
    const reading = examplesAt(examples, wanted, signal);
    // Who waits for it is told; until then nobody may be there.
    reading.catch(() => {});
    return reading;
  };
  let next = readFrom(0);
  for (let start = 0; start < count; start += rows) {
    const piece = await next;
    if (start + rows < count) next = readFrom(start + rows);
    yield startingAt(piece, start);
  }
}

/** Columns that say which rows of the part they are. */
function startingAt(piece: Examples, firstRow: number): Examples {
  const { inputs, targets, fields } = piece;
  return {
    ...piece,
    inputs: { ...inputs, firstRow },
    targets: { ...targets, firstRow },
    ...(fields && { fields: mapFields(fields, (field) => ({ ...field, firstRow })) }),
  };
}

/** The parts after the split. */
export interface SplitParts {
  readonly train: Examples;
  readonly validation: Examples;
  readonly test: Examples | null;
}

/** Takes pieces of the whole data apart into those of the parts. */
export class RowsFeeder {
  readonly #wanted: readonly { readonly part: keyof SplitParts; readonly from: string }[];
  readonly #parts: SplitParts;
  readonly #feed: (part: keyof SplitParts, piece: Examples) => void;
  /** Rows of each part that have been fed. */
  readonly #fed = { train: 0, validation: 0, test: 0 };

  constructor(
    data: ExperimentData,
    parts: SplitParts,
    feed: (part: keyof SplitParts, piece: Examples) => void,
  ) {
    this.#parts = parts;
    this.#feed = feed;
    this.#wanted = [
      { part: 'train', from: 'train' },
      { part: 'validation', from: data.validation ? 'validation' : 'train' },
      { part: 'test', from: 'test' },
    ];
  }

  /** @param from a part of the data. @param piece the next one of it. */
  add(from: string, piece: Examples): void {
    const start = piece.inputs.firstRow ?? 0;
    for (const each of this.#wanted) {
      const examples = this.#parts[each.part];
      if (each.from !== from || !examples) continue;
      const rows = examples.stored!.rows;
      if (!rows) {
        this.#feed(each.part, piece);
        continue;
      }
      const first = this.#fed[each.part];
      let last = first;
      while (last < rows.length && rows[last]! < start + piece.count) last++;
      this.#fed[each.part] = last;
      if (last === first) continue;
      const own = takeExamples(
        piece,
        rows.subarray(first, last).map((row) => row - start),
      );
      this.#feed(each.part, startingAt(own, first));
    }
  }
}

/** So many examples show most mistakes. */
const HEAD_ROWS = 1000;

/** The first examples of each part, in memory. */
export async function headsOf(data: ExperimentData, signal?: AbortSignal): Promise<ExperimentData> {
  const parts = await Promise.all(
    partsOf(data).map(async ([part, examples]) => {
      const length = Math.min(examples.count, HEAD_ROWS, pieceRows(examples));
      const rows = Int32Array.from({ length }, (_, i) => i);
      return [part, await examplesAt(examples, rows, signal)] as const;
    }),
  );
  return { ...data, ...Object.fromEntries(parts) };
}

/** Bytes of all examples as they lie in memory. */
export function examplesBytes(examples: Examples): number {
  const columns = [examples.inputs, examples.targets, ...Object.values(examples.fields ?? {})];
  const one = columns.reduce(
    (sum, column) => sum + rowSize(column) * ARRAYS[kindOf(column.values)].BYTES_PER_ELEMENT,
    0,
  );
  return examples.count * one;
}

/** The same data with all examples of sources in memory: those who call it know that there is room. */
export async function readWhole(
  data: ExperimentData,
  signal?: AbortSignal,
): Promise<ExperimentData> {
  const parts: [string, Examples][] = [];
  for (const [part, examples] of partsOf(data)) {
    if (!examples.stored) continue;
    const rows = Int32Array.from({ length: examples.count }, (_, i) => i);
    parts.push([part, await examplesAt(examples, rows, signal)]);
  }
  return { ...data, ...Object.fromEntries(parts) };
}

/** Bytes that a sample may have. */
const SAMPLE_BYTES = 2 ** 28;

/**
 * Prepared data in memory: of each part that is read from a source, examples that are evenly spaced.
 * @param rowsMax of each part.
 */
export async function inMemorySample(
  prepared: PreparedData,
  rowsMax: number,
  signal?: AbortSignal,
): Promise<PreparedData> {
  const sampled = async (examples: Examples): Promise<Examples> => {
    const { count } = examples;
    const most = Math.max(1, Math.floor(SAMPLE_BYTES / (examplesBytes(examples) / count)));
    const length = Math.min(count, rowsMax, most);
    const rows = Int32Array.from({ length }, (_, i) => Math.floor((i * count) / length));
    return examplesAt(examples, rows, signal);
  };
  const { train, validation, test } = prepared;
  if (!train.stored) return prepared;
  return {
    ...prepared,
    train: await sampled(train),
    validation: await sampled(validation),
    test: test && (await sampled(test)),
  };
}

/** @throws DownpourError DP_DATA_MISMATCH: numbers that are not all known cannot be brought to one type. */
export function mustHaveOneType(data: ExperimentData): void {
  const typesOf = ({ inputs, targets, fields }: Examples) =>
    Object.entries({ inputs, targets, ...fields }).flatMap(([name, column]) =>
      rowSize(column) > 0 ? [[name, kindOf(column.values)] as const] : [],
    );
  const wanted = new Map(typesOf(data.train));
  for (const [part, examples] of partsOf(data)) {
    for (const [name, type] of typesOf(examples)) {
      const known = wanted.get(name);
      if (known === undefined || known === type) continue;
      throw new DownpourError(
        'DP_DATA_MISMATCH',
        `${name} of the ${part} part are ${type}, but those of the train part are ${known}; give all parts of a source the same type`,
      );
    }
  }
}

/** Every part as one that is read: arrays beside a source are read from memory. */
export function allStored(data: ExperimentData): ExperimentData {
  const parts = DATA_PARTS.flatMap((part) => {
    const examples = data[part];
    return examples ? [[part, examples.stored ? examples : fromMemory(part, examples)]] : [];
  });
  return { ...data, ...Object.fromEntries(parts) };
}

function fromMemory(part: string, examples: Examples): Examples {
  const { count, inputs, targets, fields } = examples;
  const all: Record<string, Column & Pick<SourceField, 'role'>> = {
    ...(inputs.values.length > 0 && { inputs }),
    ...(targets.values.length > 0 && { targets }),
    ...fields,
  };
  const source: ExampleSource = {
    count,
    fields: Object.fromEntries(
      Object.entries(all).map(([name, { values, shape, ...texts }]) => [
        name,
        { ...texts, shape: shape.slice(1), type: kindOf(values) },
      ]),
    ),
    read(indices) {
      const taken = takeExamples(examples, indices);
      return Object.fromEntries(
        Object.keys(all).map((name) => [name, columnNamed(taken, name).values]),
      );
    },
    key: rawFingerprint({ train: examples, source: '' }),
  };
  const like = <C extends Column>(column: C): C => ({
    ...column,
    values: new ARRAYS[kindOf(column.values)](0),
  });
  return {
    count,
    inputs: inputs.values.length > 0 ? like(inputs) : emptyColumn(count),
    targets: targets.values.length > 0 ? like(targets) : emptyColumn(count),
    ...(fields && { fields: mapFields(fields, like) }),
    stored: { source, where: `array of the ${part} part`, rows: null },
  };
}

/** A column by its name. */
export function columnNamed(examples: Examples, name: string): Column {
  return name === 'inputs' || name === 'targets' ? examples[name] : examples.fields![name]!;
}
