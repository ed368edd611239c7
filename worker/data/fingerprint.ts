import { dataDigest } from '../../shared/digest.ts';
import { type Column, kindOf } from './columns.ts';
import type { ExampleField, ExperimentData } from './examples.ts';
import { partsOf } from './parts.ts';
import type { InputTransform } from './transform.ts';

/** What tells data sets apart: workers must train on the same, and a run's parameters belong to one. */

/** Before the digits: what they are computed from. Releases up to 0.1.0 had no prefix, and looked at a sample. */
const VERSION = '2:';

const text = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));

/**
 * A hash of all inputs and targets of all parts, with their types, shapes, names and classes, before split and transform:
 * the same on every machine, another where one element differs.
 */
export function rawFingerprint(data: ExperimentData): string {
  const sum = dataDigest();
  sum.update(text([data.classCount ?? null, data.classes ?? null]));
  for (const [part, examples] of partsOf(data)) {
    const { inputs, targets } = examples;
    for (const { values, shape, names = null, classes = null } of [inputs, targets]) {
      sum.update(text([part, kindOf(values), shape, names, classes])).update(values);
    }
    for (const [name, field] of Object.entries(examples.fields ?? {})) {
      const { values, shape, role, names = null, classes = null, classCount = null } = field;
      const what = [part, name, role, kindOf(values), shape, names, classes, classCount];
      sum.update(text(what)).update(values);
    }
  }
  return VERSION + sum.hex();
}

/**
 * The same of data that are read by pieces. For the same numbers in memory the result is another: there the columns follow each
 * other as a whole.
 * @param digests of the numbers of each column, by part and name.
 */
export function storedFingerprint(
  data: ExperimentData,
  digests: Readonly<Partial<Record<string, Readonly<Record<string, string>>>>>,
): string {
  const sum = dataDigest();
  sum.update(text(['pieces', data.classCount ?? null, data.classes ?? null]));
  for (const [part, { inputs, targets, fields = {} }] of partsOf(data)) {
    for (const [name, column] of Object.entries<Column & Partial<Pick<ExampleField, 'role'>>>({
      ...{ inputs, targets },
      ...fields,
    })) {
      const { values, shape, role = null, names = null, classes = null } = column;
      const digest = digests[part]?.[name] ?? null;
      const what = [part, name, role, kindOf(values), shape, names, classes];
      sum.update(text([...what, column.classCount ?? null, digest]));
    }
  }
  return VERSION + sum.hex();
}

/** Rows of the data's training part, as the split chose them. */
export interface ChosenRows {
  /** The rows in the order of the training part; null: all, as they are. */
  readonly train: Int32Array | null;
  /** Null: the data have a validation part of their own. */
  readonly validation: Int32Array | null;
}

/** A hash of the same, with the split and what is done to inputs. @param raw of `rawFingerprint` */
export function fingerprint(
  raw: string,
  { train, validation }: ChosenRows,
  transform: InputTransform,
  transforms?: Readonly<Record<string, InputTransform>>,
): string {
  const how = ({ kind, scale, epsilon }: InputTransform) => [
    ...[kind, scale],
    ...(epsilon === undefined ? [] : [epsilon]),
  ];
  const own = Object.entries(transforms ?? {}).map(([name, each]) => [name, ...how(each)]);
  const sum = dataDigest().update(text([raw, ...how(transform), ...own]));
  for (const rows of [train, validation]) {
    sum.update(text(rows === null ? null : 'rows')).update(rows ?? new Int32Array());
  }
  return VERSION + sum.hex();
}
