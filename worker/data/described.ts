import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';

/** What functions of an experiment gave: the tests that tell its kinds apart, and the words of a message. */

/** What kind a typed array is, also one of another realm or of a subclass; undefined: it is none. */
export const typedArrayName = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get! as (this: unknown) => string | undefined;

export const isAbsent = (value: unknown) => value === undefined || value === null;

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' &&
  value !== null &&
  !Array.isArray(value) &&
  !ArrayBuffer.isView(value) &&
  !isBuffer(value) &&
  !isTensor(value);

export const isBuffer = (value: unknown) =>
  /^\[object (Shared)?ArrayBuffer\]$/.test(Object.prototype.toString.call(value));

/** Whether it is a tensor of any copy of TensorFlow.js. */
export const isTensor = (value: unknown) =>
  typeof value === 'object' &&
  value !== null &&
  typeof (value as { dataSync?: unknown }).dataSync === 'function';

export const listed = (names: readonly string[]) =>
  names.length === 0 ? 'no fields' : names.map((name) => `'${name}'`).join(', ');

/** A value for a message, in a few words. */
export function describe(value: unknown): string {
  if (value === undefined || value === null) return value === null ? 'null' : 'nothing';
  if (isTensor(value)) return 'a TensorFlow.js tensor';
  const kind = typedArrayName.call(value);
  if (kind !== undefined) return withArticle(kind);
  if (Array.isArray(value)) return `an array (${short(value)})`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'object') {
    const name = Object.prototype.toString.call(value).slice(8, -1);
    return name === 'Object' ? `an object with ${listed(Object.keys(value))}` : withArticle(name);
  }
  if (typeof value === 'string') return `the text '${value.slice(0, 40)}'`;
  return String(value);
}

const withArticle = (name: string) =>
  `${/^[AEIOU]/i.test(name) && !name.startsWith('Ui') ? 'an' : 'a'} ${name}`;

function short(value: readonly unknown[]): string {
  const some = value
    .slice(0, 4)
    .map((each) => (each !== null && typeof each === 'object' ? '…' : String(each)));
  return `[${some.join(', ')}${value.length > 4 ? ', …' : ''}]`;
}

export const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);

/** Names that other libraries use for these fields. */
const ALIASES: Readonly<Record<string, string>> = {
  ...{ training: 'train', val: 'validation', valid: 'validation', dev: 'validation' },
  ...{ x: 'inputs', xs: 'inputs', features: 'inputs', data: 'values' },
  ...{ y: 'targets', ys: 'targets', labels: 'targets', label: 'targets', outputs: 'targets' },
};
/** Misspelt fields would be passed over in silence. @throws DownpourError naming the right one. */
export function mustKnow(
  where: string,
  given: Record<string, unknown>,
  fields: readonly string[],
): void {
  for (const key of Object.keys(given)) {
    if (fields.includes(key)) continue;
    const lower = key.toLowerCase();
    const alias = fields.find((field) => field.toLowerCase() === (ALIASES[lower] ?? lower));
    // Too many words are near to a short one: `text` is no misspelt `test`.
    const meant = alias ?? (key.length < 5 ? null : nearest(key, fields));
    if (meant === null || given[meant] !== undefined) continue;
    throw invalid(`${where} has an unknown field '${key}'; did you mean '${meant}'?`);
  }
}

export function textsOf(given: unknown, what: string): readonly string[] {
  if (Array.isArray(given) && Array.from(given).every((name) => typeof name === 'string')) {
    return given;
  }
  throw invalid(`${what}: ${describe(given)}; allowed: an array of strings`);
}

/** Names of class 0, 1, …: two of one name could not be told apart. */
export function classesOf(given: unknown, what: string): readonly string[] {
  const classes = textsOf(given, what);
  const twice = classes.find((name, i) => classes.indexOf(name) !== i);
  if (twice === undefined) return classes;
  throw invalid(`${what}: two classes are named '${twice}'; give each class its own name`);
}
