import { DownpourError, errorText } from '../../../shared/errors.ts';
import { nearest } from '../../../shared/spelling.ts';
import {
  ARRAYS,
  type Column,
  type FieldRole,
  kindOf,
  type NumberKind,
  sizeOf,
} from '../columns.ts';
import { describe } from '../described.ts';
import { corrupt } from '../files.ts';
import { parseNpy } from '../npy.ts';
import { numbersOf } from '../numbers.ts';
import { PICTURE_FIELDS, type PictureOptions } from '../pictures/images.ts';
import { PICTURE_ENDINGS } from '../pictures/pictures.ts';
import { checkOptions, FIELD_RULES, isText, isTexts, oneOf, optional } from '../reader-options.ts';

/** What members of a tar shard become, by their endings, as WebDataset has them. */

export interface TarField extends PictureOptions {
  /** The ending of its members: `jpg`, `cls`, `seg.png`; or several, of which each example has one: `['jpg', 'png']`. */
  readonly member: string | readonly string[];
  /** Default: `target` for the field `targets`, else `input`. */
  readonly role?: FieldRole;
  /** The name of class 0, 1, …, for targets that are classes. A text is then the name of a class. */
  readonly classes?: readonly string[];
  /** Number of classes, instead of their names. */
  readonly classCount?: number;
  /** One for each number of an example. */
  readonly names?: readonly string[];
  /** For JSON: where the value is in it, such as `label` or `boxes.0`. */
  readonly key?: string;
  /** All numbers become float64. Default: whole numbers become int32, others keep their type. */
  readonly type?: 'float64';
}

const KINDS = {
  npy: ['npy'],
  json: ['json', 'jsn'],
  whole: ['cls', 'cls2', 'class', 'count', 'index', 'inx', 'id'],
  text: ['txt', 'text', 'transcript'],
} as const satisfies Readonly<Record<string, readonly string[]>>;
export type TarMemberKind = keyof typeof KINDS | 'picture';

const FIELDS = {
  member: {
    allowed: "the ending of its members, such as 'jpg', or a list of endings",
    test: (value: unknown) => isText(value) || (isTexts(value) && value.length > 0),
  },
  ...FIELD_RULES,
  key: optional({ allowed: "where the value is in the JSON, such as 'label'", test: isText }),
  type: optional(oneOf('float64')),
  ...PICTURE_FIELDS,
};

/** A field whose options have been checked. */
export interface CheckedTarField extends TarField {
  readonly name: string;
  readonly kind: TarMemberKind;
  /** In lower case. */
  readonly endings: readonly string[];
}

/** @throws DownpourError DP_EXPERIMENT_INVALID */
export function checkedField(name: string, given: unknown): CheckedTarField {
  const where = `tarSource, field '${name}'`;
  const field = isText(given) || Array.isArray(given) ? { member: given } : given;
  checkOptions(where, field, FIELDS);
  const own = field as TarField;
  const endings = [own.member].flat().map((ending) => ending.toLowerCase().replace(/^\./, ''));
  const kinds = new Set(endings.map((ending) => kindOfEnding(ending, where)));
  if (kinds.size > 1) {
    throw invalid(
      `${where}: member is ${describe(own.member)}, which are of different kinds (${[...kinds].join(', ')}); allowed: endings of one kind`,
    );
  }
  const [kind] = kinds as Set<TarMemberKind> & Iterable<TarMemberKind>;
  const pictureOptions = Object.keys(PICTURE_FIELDS).filter((option) => option in (own as object));
  if (kind !== 'picture' && pictureOptions.length > 0) {
    throw invalid(
      `${where}: '${pictureOptions[0]}' is an option of pictures, but '${endings[0]}' is none`,
    );
  }
  if ((kind === 'json') !== (own.key !== undefined)) {
    throw invalid(
      kind === 'json'
        ? `${where}: key is missing; say where the value is in the JSON, such as key: 'label'`
        : `${where}: 'key' is an option of JSON, but '${endings[0]}' is none`,
    );
  }
  const isKnown = name === 'inputs' || name === 'targets' || own.role;
  return { ...own, ...(isKnown ? {} : { role: 'input' }), name, kind: kind!, endings };
}

function kindOfEnding(ending: string, where: string): TarMemberKind {
  const last = ending.slice(ending.lastIndexOf('.') + 1);
  if (PICTURE_ENDINGS.includes(last)) return 'picture';
  for (const [kind, some] of Object.entries(KINDS)) {
    if ((some as readonly string[]).includes(last)) return kind as TarMemberKind;
  }
  const known = [...PICTURE_ENDINGS, ...Object.values(KINDS).flat()];
  const near = nearest(last, known);
  throw invalid(
    `${where}: members that end in '.${ending}' are not read${near ? `; did you mean '${near}'?` : ''} Allowed: pictures (${PICTURE_ENDINGS.join(', ')}), ${Object.values(KINDS).flat().join(', ')}`,
  );
}

/** The numbers of one example, and their shape. */
export interface MemberNumbers {
  readonly values: Column['values'];
  readonly shape: readonly number[];
}

/**
 * The numbers of a member that is no picture.
 * @param where for messages: the shard and the member
 * @throws DownpourError DP_DATA_CORRUPT; DP_DATA_LABEL for a text that is no class
 */
export function memberNumbers(field: CheckedTarField, bytes: Buffer, where: string): MemberNumbers {
  const read = readMember(field, bytes, where);
  const { values, shape } = read;
  const isClass = field.classes !== undefined || field.classCount !== undefined;
  if (field.type === 'float64') return { values: Float64Array.from(values), shape };
  if (!isClass || kindOf(values) !== 'float64') return read;
  const bad = (values as Float64Array).find((value) => value !== (value | 0));
  if (bad === undefined) return { values: Int32Array.from(values), shape };
  throw corrupt(where, `it has ${bad}; allowed: the number of a class, from 0`);
}

function readMember(field: CheckedTarField, bytes: Buffer, where: string): MemberNumbers {
  if (field.kind === 'npy') {
    // Elements begin at any byte of the archive.
    const { values, shape } = parseNpy(Uint8Array.from(bytes), where, 0);
    return { values, shape };
  }
  const text = utf8(bytes, where);
  if (field.kind === 'json') return jsonNumbers(field, text, where);
  const trimmed = text.trim();
  if (field.kind === 'text' && field.classes) return classOf(field.classes, trimmed, where);
  const number = /^[-+]?(\d|\.\d)/.test(trimmed) ? Number(trimmed) : Number.NaN;
  const isWhole = field.kind === 'whole';
  if (Number.isFinite(number) && (!isWhole || number === (number | 0) || field.type)) {
    return one(isWhole && !field.type ? Int32Array.of(number) : Float64Array.of(number));
  }
  throw corrupt(
    where,
    `it is ${describe(trimmed)}; allowed: ${isWhole ? "a whole number of 32 bits; for larger ones set type: 'float64'" : 'a number; for names of classes give `classes`'}`,
  );
}

const one = (values: Column['values']): MemberNumbers => ({ values, shape: [] });

function classOf(classes: readonly string[], name: string, where: string): MemberNumbers {
  const at = classes.indexOf(name);
  if (at >= 0) return one(Int32Array.of(at));
  const near = nearest(name, classes);
  throw new DownpourError(
    'DP_DATA_LABEL',
    `${where}: '${name.slice(0, 100)}' is not in \`classes\`${near ? `; did you mean '${near}'?` : ''} It has ${classes.slice(0, 20).join(', ')}`,
  );
}

function utf8(bytes: Buffer, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw corrupt(where, 'it is not text in UTF-8', cause);
  }
}

function jsonNumbers(
  { key, classes }: CheckedTarField,
  text: string,
  where: string,
): MemberNumbers {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw corrupt(where, `it is not JSON: ${errorText(cause)}`, cause);
  }
  for (const name of key!.split('.')) {
    const keys = typeof value === 'object' && value !== null ? Object.keys(value) : [];
    if (!keys.includes(name)) {
      const near = nearest(name, keys);
      throw corrupt(
        where,
        `it has no '${key}'${near ? `; did you mean '${near}'?` : keys.length > 0 ? `; there is ${keys.slice(0, 20).join(', ')}` : ''}`,
      );
    }
    value = (value as Record<string, unknown>)[name];
  }
  if (typeof value === 'string' && classes) return classOf(classes, value, where);
  if (typeof value === 'number' || typeof value === 'boolean') {
    return one(Float64Array.of(Number(value)));
  }
  if (!Array.isArray(value)) {
    throw corrupt(
      where,
      `'${key}' is ${describe(value)}; allowed: a number, true, false, an array of numbers, and a text if \`classes\` are given`,
    );
  }
  try {
    const { values, shape } = numbersOf(value, null, `'${key}'`, undefined);
    return { values: Float64Array.from(values), shape };
  } catch (error) {
    throw corrupt(where, errorText(error), error);
  }
}

/** Puts the numbers of one example among those of others. @throws DownpourError DP_DATA_CORRUPT: they are not like the first. */
export function putNumbers(
  { values, shape }: MemberNumbers,
  like: { readonly type: NumberKind; readonly shape: readonly number[] },
  into: Column['values'],
  row: number,
  where: string,
): void {
  const kind = kindOf(values);
  if (
    kind !== like.type ||
    String(shape) !== String(like.shape) ||
    shape.length !== like.shape.length
  ) {
    throw corrupt(
      where,
      `it has the shape [${shape.join(', ')}] and the type ${kind}; the first example has [${like.shape.join(', ')}] and ${like.type}. All must have the same; type: 'float64' converts all numbers`,
    );
  }
  into.set(values, row * sizeOf(like.shape));
}

export const emptyRows = (
  type: NumberKind,
  shape: readonly number[],
  count: number,
): Column['values'] => new ARRAYS[type](count * sizeOf(shape));

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
