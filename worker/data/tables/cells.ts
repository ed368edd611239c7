/** What the text of one cell of a table means. */

const MISSING: ReadonlySet<string> = new Set(['', '?', 'na', 'n/a', 'nan', 'null']);
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
/** A code such as a zip code: as a number it would lose what tells it from others. */
const LEADING_ZERO = /^[+-]?0\d/;

/** A cell as a file has it: text of a file of text, else also numbers (NaN: missing) and booleans. */
export type TableCell = string | number | boolean;

/** What a cell would be in a table of text. */
export function cellText(cell: TableCell): string {
  return typeof cell === 'string' ? cell : Number.isNaN(cell) ? '' : String(cell);
}

/** How numbers are written in a file. */
export interface NumberForm {
  readonly decimal?: '.' | ',';
  /** Between groups of three digits. */
  readonly thousands?: string;
}

/** @param text trimmed @param missing the texts that say so, beside the empty one; default: ?, NA, N/A, NaN, null in any case */
export function isMissing(text: string, missing?: readonly string[]): boolean {
  if (missing === undefined) return MISSING.has(text.toLowerCase());
  return text === '' || missing.includes(text);
}

/** The numbers among the texts that mean a missing value: a cell may write −999 as -999.0, too. */
export function missingNumbers(
  texts: readonly string[] | undefined,
  read: ReadNumber,
): ReadonlySet<number> {
  return new Set((texts ?? []).map(read).filter((value) => !Number.isNaN(value)));
}

/** @param text trimmed */
export function isNumber(text: string): boolean {
  return NUMBER.test(text);
}

/** The number that a trimmed text is; NaN: none that is finite. Hexadecimal and the like are none. */
export type ReadNumber = (text: string) => number;

/** @param form.unit may stand behind a number, with space between or without. */
export function numberReader(form: NumberForm & { readonly unit?: string } = {}): ReadNumber {
  const { decimal = '.', thousands, unit } = form;
  if (unit !== undefined) {
    const read = numberReader({ decimal, ...(thousands !== undefined && { thousands }) });
    return (text) => read(text.endsWith(unit) ? text.slice(0, -unit.length).trimEnd() : text);
  }
  if (decimal === '.' && thousands === undefined) return plainNumber;
  const mark = decimal === ',' ? ',' : '\\.';
  const groups = thousands === undefined ? undefined : thousandsOf(thousands);
  const grouped =
    groups === undefined ? null : new RegExp(`^[+-]?\\d{1,3}(${groups}\\d{3})+(${mark}\\d*)?$`);
  const separator = new RegExp(groups ?? '', 'g');
  return (given) => {
    let text = given;
    if (grouped?.test(text)) text = text.replace(separator, '');
    if (decimal === ',') {
      if (text.includes('.')) return Number.NaN;
      text = text.replace(',', '.');
    }
    return plainNumber(text);
  };
}

/** As a regular expression. A space stands for those that do not break, too. */
function thousandsOf(thousands: string): string {
  if (thousands === ' ') return '[ \\u00a0\\u202f]';
  return thousands.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

function plainNumber(text: string): number {
  const value = Number(text);
  if (value === 0 ? text === '' : !Number.isFinite(value)) return Number.NaN;
  // 0x10, 0b1 and 0o7 are numbers to JavaScript.
  if (text.charCodeAt(0) === 48 && /^0[xbo]/i.test(text)) return Number.NaN;
  // Adding 0 makes -0 to 0.
  return value + 0;
}

/** A unit behind a number: it begins with a letter or a sign such as ° or µ. */
const UNIT = /^[\p{L}°µΩ%‰"″'′][\p{L}\d°µΩ"″'′/²³^·]{0,11}$/u;

export const isUnit = (text: string): boolean => UNIT.test(text);

/** A number with the unit behind it; null: the text is something else. @param text trimmed */
export function numberWithUnit(
  text: string,
  read: ReadNumber,
): { readonly value: number; readonly unit: string; readonly isApart: boolean } | null {
  const match = /^([-+]?[\d.,' \u00a0\u202f]*\d)(\s*)(\D.*)$/u.exec(text);
  if (!match || !isUnit(match[3]!)) return null;
  const value = read(match[1]!);
  return Number.isNaN(value) ? null : { value, unit: match[3]!, isApart: match[2] !== '' };
}

/** As messages show it. */
export function shown(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

/**
 * The name that a text is: without space around it, in Unicode's composed form, with plain spaces. So é
 * written as one character or as two is the same name.
 */
export function nameOf(text: string): string {
  return text
    .trim()
    .normalize('NFC')
    .replace(/[\u00a0\u2007\u202f]/g, ' ');
}

/** By number when all are numbers, so that class 10 follows 9, else by code unit: no locale decides. */
export function sortNames(names: readonly string[]): string[] {
  return names.every(isNumber)
    ? [...names].sort((a, b) => Number(a) - Number(b) || (a < b ? -1 : 1))
    : [...names].sort();
}

/** Texts under the names that they mean. */
export interface NameList {
  /** In the order of their numbers 0, 1, … */
  readonly names: readonly string[];
  /** The number of a text's name; −1: it is none of them. */
  indexOf(text: string): number;
  /** Two texts that were found, mean one number and are two names all the same, such as '1' and '01'. */
  readonly conflict: readonly [string, string] | null;
}

/**
 * The names that the texts of a column mean, sorted. A number is one name, however it is written: '1', '1.0'
 * and '+1e0' are '1'. Where any number begins with a needless zero, as zip codes do, all are texts.
 * In a column of nothing but true and false their case does not matter.
 * @param texts as `nameOf` gives them
 */
export function nameList(texts: readonly string[], read: ReadNumber = plainNumber): NameList {
  const key = keyOf(texts, read);
  const names = sortNames([...new Set(texts.map(key))]);
  return { ...listOf(names, names, key), conflict: conflictOf(names, read) };
}

/** A list that is fixed beforehand. Texts mean its names as they would in a column of just them. */
export function givenNames(given: readonly string[], read: ReadNumber = plainNumber): NameList {
  const names = given.map(nameOf);
  const key = keyOf(names, read);
  return listOf(names, names.map(key), key);
}

function listOf(
  names: readonly string[],
  keys: readonly string[],
  key: (text: string) => string,
): NameList {
  const indices = new Map(keys.map((each, i) => [each, i]));
  const indexOf = (text: string) => indices.get(key(text)) ?? -1;
  return { names, indexOf, conflict: null };
}

const commaNumber = numberReader({ decimal: ',' });

/** Names that are one number: where they stay texts, nobody can say which of them is meant. */
function conflictOf(names: readonly string[], read: ReadNumber): readonly [string, string] | null {
  const seen = new Map<number, string>();
  for (const name of names) {
    // '1,0' in a file whose decimal mark is not known to be a comma.
    const value = exactNumber(name, read) ?? exactNumber(name, commaNumber);
    if (value === null) continue;
    const other = seen.get(value);
    if (other !== undefined) return [other, name];
    seen.set(value, name);
  }
  return null;
}

function keyOf(texts: readonly string[], read: ReadNumber): (text: string) => string {
  if (texts.length > 0 && texts.every((text) => /^(true|false)$/i.test(text))) {
    return (text) => text.toLowerCase();
  }
  const hasCodes = texts.some((text) => LEADING_ZERO.test(text) && !Number.isNaN(read(text)));
  if (hasCodes) return (text) => text;
  return (text) => {
    if (LEADING_ZERO.test(text)) return text;
    const value = exactNumber(text, read);
    return value === null ? text : String(value);
  };
}

/** Null: no number, or a whole one of so many digits that others are rounded to the same. */
function exactNumber(text: string, read: ReadNumber): number | null {
  const value = read(text);
  if (Number.isNaN(value)) return null;
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? null : value;
}

/** Names that a reader may take for one: they differ in case, spaces or how a character is written alone. */
export function lookalikes(names: readonly string[]): readonly [string, string] | null {
  const seen = new Map<string, string>();
  for (const name of names) {
    const plain = name
      .normalize('NFKC')
      .replace(/\p{Cf}/gu, '')
      .replace(/\s+/g, ' ')
      .trim();
    const key = plain.toLowerCase();
    const other = seen.get(key);
    if (other !== undefined) return [other, name];
    seen.set(key, name);
  }
  return null;
}
