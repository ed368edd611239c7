import { errorText } from '../../shared/errors.ts';
import type { LeasePart } from '../../shared/protocol.ts';
import { ARRAYS, type Column, kindOf, rowSize } from './columns.ts';
import type {
  ExampleField,
  Examples,
  ExperimentData,
  Minibatch,
  PreparedData,
} from './examples.ts';
import { mapFields } from './fields.ts';
import { gather, mustHaveExample, partsFor } from './gather.ts';
import { readSourceRows } from './source.ts';
import { takeExamples } from './split.ts';

/** Examples of a part, wherever they lie: in memory, or in a source that is asked for them. */

/**
 * Some examples in memory, in the order of the rows.
 * @param rows of the part.
 * @throws DownpourError as `readSourceRows`; the reason of the signal.
 */
export async function examplesAt(
  examples: Examples,
  rows: Int32Array,
  signal?: AbortSignal,
): Promise<Examples> {
  const { stored, ...part } = examples;
  if (!stored) return takeExamples(part, rows);
  const inSource = stored.rows ? rows.map((row) => stored.rows![row]!) : rows;
  const read = rows.length === 0 ? {} : await readSourceRows(stored, inSource, signal);
  const filled = <C extends Column>(column: C, name: string): C => {
    const shape = [rows.length, ...column.shape.slice(1)];
    const values = read[name];
    if (values === undefined || rowSize(column) === 0) return { ...column, shape };
    const kind = kindOf(column.values);
    // Rows of 0 and 1 for the classes are shares, which are numbers of float32.
    return {
      ...column,
      shape,
      values: kind === kindOf(values) ? values : ARRAYS[kind].from(values),
    };
  };
  const { inputs, targets, fields } = part;
  return {
    count: rows.length,
    inputs: filled(inputs, 'inputs'),
    targets: filled(targets, 'targets'),
    ...(fields && {
      fields: mapFields(fields, (field: ExampleField, name) => filled(field, name)),
    }),
  };
}

export interface CollectOptions {
  /** As for `gather`; a part that is read from a source asks for it when its examples have come. */
  readonly into?: Minibatch | undefined | (() => Minibatch | undefined);
  readonly signal?: AbortSignal | undefined;
}

/**
 * The minibatch of some rows of a part, as `gather` gives it. It is a promise only if the part is read from a source.
 * @throws DownpourError DP_DATA_MISMATCH for an index that the part lacks; what `readSourceRows` throws.
 */
export function collect(
  prepared: PreparedData,
  part: LeasePart,
  indices: Int32Array | readonly number[],
  { into, signal }: CollectOptions = {},
): Minibatch | Promise<Minibatch> {
  const roomOf = () => (typeof into === 'function' ? into() : into);
  if (!prepared.train.stored) return gather(prepared, part, indices, roomOf());
  return collectStored(prepared, part, Int32Array.from(indices), roomOf, signal);
}

async function collectStored(
  prepared: PreparedData,
  part: LeasePart,
  indices: Int32Array,
  roomOf: () => Minibatch | undefined,
  signal: AbortSignal | undefined,
): Promise<Minibatch> {
  const { first, second } = partsFor(prepared, part);
  const count = first.count + (second?.count ?? 0);
  for (const index of indices) mustHaveExample(index, count, part);
  const inFirst = indices.filter((index) => index < first.count);
  const inSecond = indices.filter((index) => index >= first.count);
  const [train, validation] = await Promise.all([
    examplesAt(first, inFirst, signal),
    second &&
      examplesAt(
        second,
        inSecond.map((index) => index - first.count),
        signal,
      ),
  ]);
  signal?.throwIfAborted();
  if (!validation) {
    const all = indices.map((_, i) => i);
    return gather({ ...prepared, train }, 'train', all, roomOf());
  }
  let [a, b] = [0, inFirst.length];
  const places = indices.map((index) => (index < first.count ? a++ : b++));
  return gather({ ...prepared, train, validation }, 'trainAndValidation', places, roomOf());
}

/** Closes the sources of some data, each once. What goes wrong is told: nobody can do anything about it any more. */
export async function closeSources(
  { train, validation, test }: Pick<ExperimentData, 'train'> & Partial<PreparedData>,
  log: (line: string) => void,
): Promise<void> {
  const all = [train, validation, test].flatMap((part) => (part?.stored ? [part.stored] : []));
  const sources = new Map(all.map(({ source, where }) => [source, where]));
  for (const [source, where] of sources) {
    try {
      await source.close?.();
    } catch (error) {
      log(`${where} could not be closed: ${errorText(error)}`);
    }
  }
}
