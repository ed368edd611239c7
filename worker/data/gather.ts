import { DownpourError } from '../../shared/errors.ts';
import type { LeasePart } from '../../shared/protocol.ts';
import { isFloat, rowSize, sizeOf } from './columns.ts';
import type { ExampleField, Examples, FieldRows, Minibatch, PreparedData } from './examples.ts';
import { isWhole, mapFields } from './fields.ts';
import { lookUpInto } from './lookup.ts';
import { copy, copyScaled, scalerOf } from './transform.ts';

/** Minibatches out of prepared examples. */

/**
 * Copies rows out of a part, transformed. In `trainAndValidation` (the refit of Algorithms 7.2 and
 * 7.3) an index ≥ train.count addresses validation.
 * @param into an earlier result for as many rows, overwritten and returned: nothing is allocated. With
 * more room than needed, views of it are returned; with too little, new arrays. Since an upload may
 * share the array with its tensor, alternate between two.
 * @throws DownpourError DP_DATA_MISMATCH for an index that the part lacks.
 */
export function gather(
  prepared: PreparedData,
  part: LeasePart,
  indices: Int32Array | readonly number[],
  into?: Minibatch,
): Minibatch {
  const { first, second } = partsFor(prepared, part);
  if (first.stored) {
    throw new DownpourError(
      'DP_USAGE',
      `this needs all examples of the ${part} part in memory, but they are read from a ${first.stored.where}: give arrays, or the first examples alone`,
    );
  }
  const firstCount = first.count;
  const count = firstCount + (second?.count ?? 0);
  const n = indices.length;
  const inputSize = rowSize(first.inputs);
  const targetSize = rowSize(first.targets);
  const batch = room(first, prepared.transforms, n, into);
  const scaler = scalerOf(prepared.transform);
  const lookup = scaler.table === null ? null : lookUpInto(batch.inputs, scaler.table);
  for (let i = 0; i < n; i++) {
    const index = indices[i]!;
    mustHaveExample(index, count, part);
    const from = index < firstCount ? first : second!;
    const row = index < firstCount ? index : index - firstCount;
    const { values } = from.inputs;
    if (lookup && values instanceof Uint8Array) {
      lookup.add(values, row * inputSize, inputSize, i * inputSize);
    } else {
      copyScaled(scaler, values, row * inputSize, batch.inputs, i * inputSize, inputSize);
    }
    copy(from.targets.values, row * targetSize, batch.targets, i * targetSize, targetSize);
  }
  lookup?.flush();
  for (const [name, rows] of Object.entries(batch.fields ?? {})) {
    gatherField(prepared, { name, first, second, indices, rows });
  }
  return batch;
}

/** The part that a lease means, and the one that follows it. @throws DownpourError DP_DATA_MISMATCH: there is no such part. */
export function partsFor(
  prepared: PreparedData,
  part: LeasePart,
): { readonly first: Examples; readonly second: Examples | null } {
  const first = part === 'trainAndValidation' ? prepared.train : prepared[part];
  if (first === null) {
    throw new DownpourError('DP_DATA_MISMATCH', 'this data has no test part to take rows from');
  }
  return { first, second: part === 'trainAndValidation' ? prepared.validation : null };
}

/** @throws DownpourError DP_DATA_MISMATCH */
export function mustHaveExample(index: number, count: number, part: LeasePart): void {
  if (index >= 0 && index < count && Number.isInteger(index)) return;
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `example ${index} was requested from the ${part} part, which has only ${count}: this worker's data differ from the run's`,
  );
}

interface FieldRequest {
  readonly name: string;
  readonly first: Examples;
  readonly second: Examples | null;
  readonly indices: Int32Array | readonly number[];
  /** Written to. */
  readonly rows: FieldRows;
}

/** @param request indices that have been checked. */
function gatherField({ transforms }: PreparedData, request: FieldRequest): void {
  const { name, first, second, indices, rows } = request;
  const transform = transforms?.[name];
  const size = sizeOf(rows.shape);
  const isScaled = transform !== undefined && rows.values instanceof Float32Array;
  const scaler = isScaled ? scalerOf(transform) : null;
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i]!;
    const isFirst = index < first.count;
    const { values } = (isFirst ? first : second!).fields![name]!;
    const start = (isFirst ? index : index - first.count) * size;
    if (scaler) {
      copyScaled(scaler, values, start, rows.values as Float32Array, i * size, size);
    } else copy(values, start, rows.values, i * size, size);
  }
}

function room(
  like: Examples,
  transforms: PreparedData['transforms'],
  n: number,
  into: Minibatch | undefined,
): Minibatch {
  const inputLength = n * rowSize(like.inputs);
  const targetLength = n * rowSize(like.targets);
  const Targets = isFloat(like.targets.values) ? Float32Array : Int32Array;
  // Fields have no room that is used again: there may be many, of kinds of their own.
  const fits = into?.targets instanceof Targets && !like.fields && inputLength > 0;
  if (fits && into.inputs.length === inputLength && into.targets.length === targetLength) {
    return into;
  }
  const enough = fits && into.inputs.length >= inputLength && into.targets.length >= targetLength;
  return {
    inputs: enough ? into.inputs.subarray(0, inputLength) : new Float32Array(inputLength),
    inputShape: like.inputs.shape.slice(1),
    targets: enough ? into.targets.subarray(0, targetLength) : new Targets(targetLength),
    targetShape: like.targets.shape.slice(1),
    ...(like.fields || inputLength === 0 ? { count: n } : {}),
    ...(like.fields && { fields: fieldRooms(like.fields, transforms, n) }),
  };
}

function fieldRooms(
  fields: Readonly<Record<string, ExampleField>>,
  transforms: PreparedData['transforms'],
  n: number,
): NonNullable<Minibatch['fields']> {
  return mapFields(fields, (field, name) => {
    const Rows = isWhole(field, transforms?.[name]) ? Int32Array : Float32Array;
    return { values: new Rows(n * rowSize(field)), shape: field.shape.slice(1) };
  });
}

/** Some of the examples of a minibatch, as copies. */
export function sliceMinibatch(minibatch: Minibatch, start: number, end: number): Minibatch {
  const { inputs, targets, inputShape, targetShape, fields, count } = minibatch;
  const rowsOf = <V extends Float32Array | Int32Array>(values: V, shape: readonly number[]) =>
    values.slice(start * sizeOf(shape), end * sizeOf(shape)) as V;
  return {
    ...minibatch,
    ...{ inputs: rowsOf(inputs, inputShape), targets: rowsOf(targets, targetShape) },
    ...(count === undefined ? {} : { count: Math.min(end, count) - start }),
    ...(fields && {
      fields: Object.fromEntries(
        Object.entries(fields).map(([name, { values, shape }]) => [
          name,
          { values: rowsOf(values, shape), shape },
        ]),
      ),
    }),
  };
}
