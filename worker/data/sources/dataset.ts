import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import {
  ARRAYS,
  type Column,
  type FieldRole,
  kindOf,
  type NumberKind,
  sizeOf,
} from '../columns.ts';
import { describe, isRecord, isTensor } from '../described.ts';
import { checkOptions, FIELD_RULES, optional } from '../reader-options.ts';
import type { ExampleSource, SourceField } from '../source.ts';
import { readSpool, rowsAtOnce, type SpoolBatch, writeSpool } from './spool.ts';
import { SPOOL_FIELDS, type SpoolOptions } from './spooled.ts';

/** Datasets of `tf.data`, which give their examples one after the other: written once to a file and read by position. */

/** What of a dataset is used: `tf.data` has the first, generators of JavaScript have the others. */
export type DatasetLike =
  | { iterator(): Promise<{ next(): Promise<{ value: unknown; done?: boolean }> }> }
  | AsyncIterable<unknown>
  | Iterable<unknown>;

/** What the numbers of a field mean, where the dataset cannot say it. */
export interface DatasetField {
  readonly role?: FieldRole;
  readonly classes?: readonly string[];
  readonly classCount?: number;
  readonly names?: readonly string[];
}

export interface DatasetOptions extends SpoolOptions {
  /** By the name of the field. */
  readonly fields?: Readonly<Record<string, DatasetField>>;
  /** Each element holds several examples: its first dimension counts them. Default: false. */
  readonly batched?: boolean;
}

/**
 * A `tf.data` dataset, or any iterable of examples, as a source. All elements are asked for once, in their order, and written
 * to the file `<folder>/<name>.rows`; later starts read that file, and never look at the dataset. So give another `name`, or
 * `refresh: true`, when the dataset has changed. A file that was not finished is written anew.
 *
 * An element is `{ xs, ys }` or `[xs, ys]`, which become `inputs` and `targets` (several by name stay fields by name), or an
 * object of fields by name. Tensors, numbers, typed arrays and nested arrays are read; tensors are disposed of.
 *
 *     train: await fromDataset(tf.data.generator(examples), { folder, name: 'clicks-train' })
 *
 * @throws DownpourError DP_EXPERIMENT_INVALID for a wrong option, and for an element that is none or differs in shape or type
 * from the first; DP_DISK: the disk is full, and nothing of the file is left; DP_DATA_CORRUPT for a damaged file, a dataset
 * without elements; what the dataset throws
 */
export async function fromDataset(
  dataset: DatasetLike,
  options: DatasetOptions,
): Promise<ExampleSource> {
  checkOptions('fromDataset', options, {
    ...SPOOL_FIELDS,
    fields: optional({ allowed: 'an object with an entry for each field', test: isRecord }),
    batched: optional({ allowed: 'true, false', test: (value) => typeof value === 'boolean' }),
  });
  const { fields = {}, batched = false, refresh = false } = options;
  for (const [name, field] of Object.entries(fields)) {
    checkOptions(`fromDataset, field '${name}'`, field, FIELD_RULES);
  }
  const of = JSON.stringify(['dataset', fields, batched]);
  const known = refresh ? null : await readSpool(options, of);
  if (known) return known;
  const elements = await iteratorOf(dataset);
  await writeSpool(options, of, batchesOf(elements, { fields, batched }), null);
  return (await readSpool(options, of))!;
}

interface Elements {
  next(): unknown;
}

async function iteratorOf(dataset: DatasetLike): Promise<Elements> {
  const any = dataset as Partial<AsyncIterable<unknown> & Iterable<unknown>> & {
    iterator?: () => Promise<Elements>;
  };
  if (typeof any?.iterator === 'function') return any.iterator();
  if (typeof any?.[Symbol.asyncIterator] === 'function') return any[Symbol.asyncIterator]!();
  if (typeof dataset !== 'string' && typeof any?.[Symbol.iterator] === 'function') {
    return any[Symbol.iterator]!();
  }
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `fromDataset: the dataset is ${describe(dataset)}; allowed: a dataset of tf.data, or an iterable of examples`,
  );
}

/** The numbers of a field of one element. */
interface FieldNumbers {
  readonly values: Column['values'];
  /** The shape of one example. */
  readonly shape: readonly number[];
}

/** The examples of one element, by field. */
interface ElementExamples {
  readonly count: number;
  readonly fields: ReadonlyMap<string, FieldNumbers & { readonly role: FieldRole | null }>;
}

interface ElementReading {
  readonly fields: Readonly<Record<string, DatasetField>>;
  readonly batched: boolean;
}

async function* batchesOf(
  elements: Elements,
  reading: ElementReading,
): AsyncGenerator<SpoolBatch, void> {
  let like: Record<string, SourceField> | null = null;
  let waiting: ElementExamples[] = [];
  let count = 0;
  for (let i = 0; ; i++) {
    const { value, done } = (await elements.next()) as { value: unknown; done?: boolean };
    if (done) break;
    const where = `fromDataset: element ${i} of the dataset`;
    const element = await examplesOf(value, reading.batched, where);
    like ??= fieldsOf(element, reading.fields, where);
    mustBeLike(element, like, where);
    waiting.push(element);
    count += element.count;
    if (count < rowsAtOnce(like)) continue;
    yield joined(waiting, like);
    waiting = [];
    count = 0;
  }
  if (like && count > 0) yield joined(waiting, like);
}

async function examplesOf(
  value: unknown,
  batched: boolean,
  where: string,
): Promise<ElementExamples> {
  const fields = new Map<string, FieldNumbers & { readonly role: FieldRole | null }>();
  let count: number | null = null;
  for (const [name, role, given] of partsOfElement(value, where)) {
    const { values, shape } = await numbersOf(given, `${where}, field '${name}'`);
    const own = batched ? shape[0] : 1;
    if (own === undefined || own === 0 || (count ?? own) !== own) {
      throw wrong(
        `${where}, field '${name}' has the shape [${shape.join(', ')}]; with \`batched: true\` the first dimension of all fields is the number of examples${count === null ? ', at least 1' : `, here ${count}`}`,
      );
    }
    count = own;
    fields.set(name, { values, shape: batched ? shape.slice(1) : shape, role });
  }
  if (count !== null && fields.size <= LIMITS.fieldsMax) return { count, fields };
  throw wrong(`${where} has ${fields.size} fields; allowed: 1 to ${LIMITS.fieldsMax}`);
}

/** The fields of an element: `{ xs, ys }` and `[xs, ys]` are inputs and targets, each one tensor or several by name. */
function partsOfElement(value: unknown, where: string): [string, FieldRole | null, unknown][] {
  const isPair = Array.isArray(value) && value.length === 2;
  const isNamed = isRecord(value);
  if (!isPair && !isNamed) {
    throw wrong(
      `${where} is ${describe(value)}; allowed: { xs, ys }, [xs, ys] or an object with a tensor, a number or an array for each field`,
    );
  }
  const { xs, ys } = isPair ? { xs: value[0], ys: value[1] } : (value as Record<string, unknown>);
  if (xs === undefined)
    return Object.entries(value as object).map(([name, own]) => [name, null, own]);
  const several = (given: unknown, short: string, role: FieldRole) =>
    isRecord(given)
      ? Object.entries(given).map(([name, own]): [string, FieldRole, unknown] => [name, role, own])
      : [[short, null, given] as [string, null, unknown]];
  const targets = ys === undefined ? [] : several(ys, 'targets', 'target');
  return [...several(xs, 'inputs', 'input'), ...targets];
}

interface TensorLike {
  readonly shape: readonly number[];
  readonly dtype: string;
  data(): Promise<ArrayLike<number>>;
  dispose(): void;
}

async function numbersOf(given: unknown, where: string): Promise<FieldNumbers> {
  if (isTensor(given)) {
    const tensor = given as TensorLike;
    const { shape, dtype } = tensor;
    const kind: NumberKind | null =
      dtype === 'float32' ? 'float32' : dtype === 'int32' || dtype === 'bool' ? 'int32' : null;
    if (kind === null)
      throw wrong(`${where} is a tensor of ${dtype}; allowed: float32, int32, bool`);
    // A copy, since a backend may write to what it has given.
    const values = ARRAYS[kind].from(await tensor.data());
    tensor.dispose();
    return { values, shape: [...shape] };
  }
  if (typeof given === 'number' || typeof given === 'boolean') {
    return { values: Float64Array.of(Number(given)), shape: [] };
  }
  if (given instanceof Uint8Array || given instanceof Uint8ClampedArray) {
    return { values: Uint8Array.from(given), shape: [given.length] };
  }
  if (given instanceof Float32Array) return { values: given.slice(), shape: [given.length] };
  if (ArrayBuffer.isView(given) && !(given instanceof DataView)) {
    const numbers = given as unknown as ArrayLike<number>;
    const isShort = [Int8Array, Int16Array, Uint16Array, Int32Array].some(
      (type) => given instanceof type,
    );
    if (typeof numbers[0] !== 'bigint') {
      const values = isShort ? Int32Array.from(numbers) : Float64Array.from(numbers);
      return { values, shape: [numbers.length] };
    }
  }
  if (Array.isArray(given)) return nested(given, where);
  throw wrong(
    `${where} is ${describe(given)}; allowed: a tensor, a number, a typed array or nested arrays of numbers`,
  );
}

/** Nested arrays: each level must have one length. */
function nested(given: readonly unknown[], where: string): FieldNumbers {
  const shape: number[] = [];
  for (let level: unknown = given; Array.isArray(level); level = level[0]) {
    shape.push(level.length);
    if (shape.length <= LIMITS.rankMax) continue;
    throw wrong(
      `${where} is nested deeper than ${LIMITS.rankMax} arrays; allowed: ${LIMITS.rankMax}`,
    );
  }
  const isWhole = (array: readonly unknown[], depth: number): boolean =>
    array.length === shape[depth] &&
    // Holes are visited, too.
    Array.from(array).every((each) =>
      depth + 1 < shape.length
        ? Array.isArray(each) && isWhole(each, depth + 1)
        : typeof each === 'number' || typeof each === 'boolean',
    );
  if (!isWhole(given, 0)) {
    throw wrong(
      `${where} is an array that is not of one shape, or holds something else than numbers`,
    );
  }
  return { values: Float64Array.from(given.flat(Number.POSITIVE_INFINITY) as number[]), shape };
}

function fieldsOf(
  { fields }: ElementExamples,
  given: ElementReading['fields'],
  where: string,
): Record<string, SourceField> {
  const unknown = Object.keys(given).find((name) => !fields.has(name));
  if (unknown !== undefined) {
    throw wrong(
      `fromDataset: \`fields\` names '${unknown}', which ${where.replace('fromDataset: ', '')} does not have; it has ${[...fields.keys()].join(', ')}`,
    );
  }
  const entries = [...fields].map(([name, { values, shape, role }]): [string, SourceField] => {
    const known = role ?? given[name]?.role;
    if (known === undefined && name !== 'inputs' && name !== 'targets') {
      throw wrong(
        `${where} has a field '${name}' without a role; set it: fields: { ${name}: { role: 'input' } }`,
      );
    }
    return [
      name,
      { ...(known ? { role: known } : {}), ...given[name], shape, type: kindOf(values) },
    ];
  });
  return Object.fromEntries(entries);
}

function mustBeLike({ fields }: ElementExamples, like: Record<string, SourceField>, where: string) {
  const names = Object.keys(like);
  if (fields.size !== names.length || names.some((name) => !fields.has(name))) {
    throw wrong(
      `${where} has the fields ${[...fields.keys()].join(', ')}; the first has ${names.join(', ')}. All must have the same`,
    );
  }
  for (const [name, { values, shape }] of fields) {
    const first = like[name]!;
    const isLike = kindOf(values) === first.type && String(shape) === String(first.shape);
    if (isLike && shape.length === first.shape.length) continue;
    throw wrong(
      `${where}, field '${name}' has the shape [${shape.join(', ')}] and the type ${kindOf(values)}; the first has [${first.shape.join(', ')}] and ${first.type}. All must have the same: pad or cut sequences`,
    );
  }
}

function joined(
  elements: readonly ElementExamples[],
  like: Record<string, SourceField>,
): SpoolBatch {
  const count = elements.reduce((sum, element) => sum + element.count, 0);
  const rows = Object.entries(like).map(([name, { type, shape }]) => {
    const values = new ARRAYS[type](count * sizeOf(shape));
    let at = 0;
    for (const { fields } of elements) {
      const own = fields.get(name)!.values;
      values.set(own, at);
      at += own.length;
    }
    return [name, values] as const;
  });
  return { count, fields: like, rows: Object.fromEntries(rows) };
}

const wrong = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
