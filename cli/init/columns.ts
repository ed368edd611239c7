import { shellCommand } from '../../shared/shell.ts';
import { DATE_ORDERS, type DateOrder } from '../../worker/data/tables/dates.ts';
import { readableForms } from '../../worker/data/tables/number-problem.ts';
import type { Cell, CellForm, ColumnProfile } from '../../worker/data/tables/table-profile.ts';
import { groups } from '../output/progress.ts';

/** What a column of a table is good for, decided by counting its cells. */

/**
 * `count`: counts the rows. `odd`: left out for what is wrong with some or all of its cells. `date`: all are dates that can be
 * read. `words`: texts of many kinds, of several words each. `sparse`: nearly all values are missing.
 */
export type ColumnKind =
  | 'numbers'
  | 'category'
  | 'count'
  | 'unnamed'
  | 'constant'
  | 'date'
  | 'odd'
  | 'words'
  | 'text'
  | 'sparse'
  | 'empty';

export interface Judged {
  readonly profile: ColumnProfile;
  readonly kind: ColumnKind;
  /** Why it is of no use as it is, and what to do; empty where it is of use. */
  readonly reason: string;
  /** What to do about it; empty where nothing can be done. */
  readonly remedy: string;
  /** Whether somebody may mean its cells as kinds, though most look like numbers. */
  readonly mayBeKinds: boolean;
}

/** Texts of at most so many kinds are a category; of more where each kind has `ROWS_A_KIND` rows. */
const CATEGORIES_FEW = 20;
const CATEGORIES_MANY = 200;
const ROWS_A_KIND = 20;
/** Fewer rows cannot be said to be counted; in any order. */
const COUNTED_MIN = 5;
const SHUFFLED_MIN = 20;
/** Share of the cells that makes a column one of numbers, though some are none. */
const NUMBERS_SHARE = 0.5;
const DATES_SHARE = 0.9;
/** The share of missing values above which a column says too little. */
const SPARSE_SHARE = 0.9;
/** Texts with fewer words than this, as a mean, are rather names or codes. */
const WORDS_MIN = 3;
/** Fewer rows cannot tell what a word means. */
const WORDS_ROWS_MIN = 200;
/** Kinds of numbers beside which a text that comes again and again may be one more kind: 0, 1, 2, 3+. */
const NUMBER_KINDS_FEW = 10;
const ODD_SHARE = 0.02;

export function judgeColumn(profile: ColumnProfile): Judged {
  const { count, missing, firstMissing, numberCount, kinds } = profile;
  const given = count - missing;
  const judged: Judge = (kind, reason = '', remedy = '', mayBeKinds = false) => ({
    ...{ profile, kind, reason, remedy, mayBeKinds },
  });
  if (given === 0) return judged('empty', 'it has no values');
  if (profile.isUnnamed)
    return judged('unnamed', 'the header has no name for it', 'add a name to the header');
  if (missing > SPARSE_SHARE * count) {
    return judged(
      'sparse',
      `${groups(missing)} of ${groups(count)} values are missing, the first in line ${firstMissing!.line}`,
      'fill them in',
    );
  }
  if (kinds?.size === 1 && missing === 0 && count > 1) {
    const [only] = kinds.keys();
    return judged('constant', `every row has ${quotedText(only!)}`);
  }
  if (numberCount === given) return judgeNumbers(judged, profile);
  const dates = formCount(profile, 'date');
  if (dates >= DATES_SHARE * given) {
    const canBeRead = dates === given && dateOrderOf(profile) !== null;
    const reason = `it has dates or times (${example(profile, 'date')})`;
    return judged(canBeRead ? 'date' : 'odd', reason, DATES);
  }
  return judgeText(judged, profile, given);
}

const DATES =
  'write all of them as 2024-12-31 or 2024-12-31T18:30, or convert them to numbers, such as the hour';

/**
 * In which order day and month stand in a column of dates; undefined: it needs none; null: some cells are no dates, or
 * nobody can tell.
 */
export function dateOrderOf({
  dates,
  count,
  missing,
}: ColumnProfile): DateOrder | null | undefined {
  const given = count - missing;
  if (dates.anyOrder === given) return undefined;
  const fits = DATE_ORDERS.filter((order) => dates[order] === given);
  return fits.length === 1 ? fits[0]! : null;
}

type Judge = (kind: ColumnKind, reason?: string, remedy?: string, mayBeKinds?: boolean) => Judged;

function judgeNumbers(judged: Judge, profile: ColumnProfile): Judged {
  const { name } = profile;
  const values = presentNumbers(profile);
  const counted = countsRows(values, name);
  if (counted !== null) return judged('count', counted, '');
  if (isDays(values))
    return judged('date', `it has dates written as numbers (${values[0]})`, DATES);
  return judged('numbers');
}

/** Those that are there. */
export function presentNumbers({ values, missing }: ColumnProfile): Float64Array {
  return missing === 0 ? values : values.filter((value) => !Number.isNaN(value));
}

function judgeText(judged: Judge, profile: ColumnProfile, given: number): Judged {
  const { numberCount, kinds, names } = profile;
  const isCategory = names !== null && isFew(names.names.length, given);
  if (isCategory && names.conflict !== null) {
    const [a, b] = names.conflict.map(quotedText);
    return judged(
      'odd',
      `${a} and ${b} are the same number in two spellings`,
      'write them in the same way',
    );
  }
  if (formCount(profile, 'code') > 0 && !isCategory) {
    return judged(
      'odd',
      `it has codes that begin with a 0 (${example(profile, 'code')}), not quantities`,
    );
  }
  const dressed = DRESSED.reduce((sum, form) => sum + formCount(profile, form), 0);
  const units = formCount(profile, 'unit');
  if (numberCount >= NUMBERS_SHARE * given) {
    if (isCategory && isOneMoreKind(profile, given)) return judged('category');
    return judged('odd', ...slips(profile, given), isCategory);
  }
  if (numberCount + dressed + units >= DATES_SHARE * given && !(isCategory && dressed === 0)) {
    return judged('odd', ...dressedNumbers(profile, given));
  }
  if (isCategory) return judged('category');
  if (numberCount > 0 && numberCount + dressed + units >= NUMBERS_SHARE * given) {
    return judged('odd', ...slips(profile, given), isCategory);
  }
  const as = hasWords(profile, given) ? 'words' : 'text';
  const many = kinds === null ? 'more than 1,000' : groups(kinds.size);
  return kinds?.size === given
    ? judged(as, 'it has a different text in each row, such as names')
    : judged(
        as,
        `it has too many different texts (${many} in ${groups(given)} rows), such as names`,
      );
}

/** Whether the texts share words from which something can be learnt: each stands there twice or more, as a mean. */
function hasWords({ words, forms }: ColumnProfile, given: number): boolean {
  return (
    given >= WORDS_ROWS_MIN &&
    (forms.get('text') ?? 0) >= DATES_SHARE * given &&
    words.count >= WORDS_MIN * given &&
    words.count >= 2 * words.kinds
  );
}

/** Whether texts of so many kinds are a category in so many rows. */
function isFew(kinds: number, rows: number): boolean {
  const most = Math.max(CATEGORIES_FEW, Math.min(CATEGORIES_MANY, rows / ROWS_A_KIND));
  return kinds <= most && 2 * kinds <= rows;
}

const DRESSED: readonly CellForm[] = ['money', 'percent', 'grouped', 'decimalComma'];
/** Never a kind of its own beside numbers. */
const NO_KIND: readonly CellForm[] = [...DRESSED, 'infinite', 'tooLarge', 'absent'];

const formCount = ({ forms }: ColumnProfile, form: CellForm) => forms.get(form) ?? 0;
const example = ({ firsts }: ColumnProfile, form: CellForm) => {
  const { line, text } = firsts.get(form)!;
  return `line ${line}: ${quotedText(text)}`;
};

/** Few numbers, and beside them texts that come again and again: a category rather than a slip. */
function isOneMoreKind(profile: ColumnProfile, given: number): boolean {
  const { kinds, numberCount } = profile;
  if (NO_KIND.some((form) => formCount(profile, form) > 0)) return false;
  const texts = [...kinds!].filter(([text]) => Number.isNaN(Number(text)));
  const numbers = kinds!.size - texts.length;
  return (
    numbers <= NUMBER_KINDS_FEW &&
    given - numberCount >= ODD_SHARE * given &&
    texts.every(([, cells]) => cells > 1)
  );
}

/** A number that stands for a missing value, as −999 among ages. */
export interface StrayNumber {
  readonly value: number;
  readonly rows: number;
  /** The range of all others. */
  readonly low: number;
  readonly high: number;
}

/**
 * Nines that come again and again at one end of a column, further from all other values than these are from each other.
 * @returns null: there are none.
 */
export function strayNumber(profile: ColumnProfile): StrayNumber | null {
  const values = Float64Array.from(presentNumbers(profile)).sort();
  for (const value of [values[0]!, values.at(-1)!]) {
    if (!/^-?99+$/.test(String(value))) continue;
    const others = values.filter((other) => other !== value);
    const rows = values.length - others.length;
    const [low, high] = [others[0]!, others.at(-1)!];
    const apart = value < low ? low - value : value - high;
    if (rows > 1 && high > low && apart > high - low) return { value, rows, low, high };
  }
  return null;
}

/** The first cell that is not a number, how many there are, and what may be done. */
function slips(profile: ColumnProfile, given: number): [string, string] {
  const { numberCount } = profile;
  const first = firstOdd(profile);
  const others = given - numberCount;
  const more = others === 1 ? 'is' : `is the first of ${groups(others)} that are`;
  const reason = `${groups(numberCount)} of ${groups(given)} values are numbers, but ${quotedText(first.text)} in line ${first.line} ${more} not`;
  return [reason, `${hintOf(first)}correct ${others === 1 ? 'it' : 'them'}`];
}

function dressedNumbers(profile: ColumnProfile, given: number): [string, string] {
  const first = firstOdd(profile);
  const others = given - profile.numberCount;
  const reason = `it has numbers in another notation: ${quotedText(first.text)} in line ${first.line}${others > 1 ? `, the first of ${groups(others)}` : ''}`;
  return [reason, `${hintOf(first)}write them as 1234.5`];
}

/** What may be done about a cell that is not a number. */
function hintOf({ form, text }: ReturnType<typeof firstOdd>): string {
  if (form !== 'grouped' && form !== 'decimalComma') return HINTS[form];
  const ways = readableForms(text).map(({ form: { decimal, thousands }, value }) => {
    const marks = [
      ...(decimal === ',' ? ['--decimal', ','] : []),
      ...(thousands === undefined ? [] : ['--thousands', thousands]),
    ];
    return `${shellCommand(...marks)} reads it as ${value}`;
  });
  if (ways.length > 0) return `${ways.join(', ')}; otherwise `;
  return /^[(−]/.test(text) ? 'write negative numbers with a hyphen, as -2; ' : '';
}

const HINTS: Readonly<Record<Exclude<CellForm, 'grouped' | 'decimalComma'>, string>> = {
  date: '',
  money: 'remove the currency; ',
  percent: 'remove the percent sign; ',
  unit: 'remove the unit; ',
  code: '',
  infinite: 'a model cannot learn from infinite numbers; ',
  tooLarge: 'it is too large for a float32; ',
  absent: 'write a missing value as an empty cell, ?, NA, NaN, n/a or null; otherwise ',
  text: '',
};

export function firstOdd({ firsts }: ColumnProfile): Cell & { readonly form: CellForm } {
  const all = [...firsts].map(([form, cell]) => ({ ...cell, form }));
  return all.reduce((a, b) => (b.line < a.line ? b : a));
}

/** Names that columns have which tell rows apart. */
const ID_NAME =
  /(?:^|[_\s.-])(?:id|ids|uuid|guid|key|index|idx|no|nr|number|rownum|row)$|[a-z](?:Id|ID|Idx|Index|Key|No|Nr)$/;

/** Why whole numbers tell rows apart and nothing else; null where they may tell more. */
function countsRows(values: Float64Array, name: string): string | null {
  const n = values.length;
  if (n < COUNTED_MIN || !values.every(Number.isInteger)) return null;
  const [first, last] = [values[0]!, values[n - 1]!];
  const step = Math.sign(values[1]! - first);
  if (step !== 0 && values.every((value, i) => value === first + step * i)) {
    return `it counts the rows: ${first}, ${values[1]} … ${last}`;
  }
  if (n < SHUFFLED_MIN) return null;
  const sorted = values.slice().sort();
  if (sorted.some((value, i) => i > 0 && value === sorted[i - 1])) return null;
  const span = sorted[n - 1]! - sorted[0]! + 1;
  if (span === n)
    return `it counts the rows in another order: ${sorted[0]} … ${sorted[n - 1]}, each once`;
  const rises = values.every((value, i) => i === 0 || value > values[i - 1]!);
  if (rises && 2 * n >= span) return `it counts rows, with gaps: ${first} … ${last}, rising`;
  if (ID_NAME.test(name) || /^id$/i.test(name))
    return 'its name and its values, which are all different, show that it is an id of the rows';
  return null;
}

/** 20240131: eight digits that are a day, in every row. */
function isDays(values: Float64Array): boolean {
  return values.every((value) => {
    const [month, day] = [Math.floor(value / 100) % 100, value % 100];
    return (
      Number.isInteger(value) &&
      value >= 19_000_101 &&
      value <= 21_001_231 &&
      month >= 1 &&
      month <= 12 &&
      day >= 1 &&
      day <= 31
    );
  });
}

/** A text as part of a sentence. */
export function quotedText(text: string): string {
  const line = text.replace(/[\p{C}\p{Zl}\p{Zp}]+/gu, ' ');
  return `'${line.length > 40 ? `${line.slice(0, 40)}…` : line}'`;
}
