import { DownpourError } from '../../../shared/errors.ts';
import { corrupt } from '../files.ts';
import {
  isMissing,
  isNumber,
  type NameList,
  type NumberForm,
  nameList,
  nameOf,
  numberReader,
  numberWithUnit,
  type ReadNumber,
} from './cells.ts';
import { DATE_ORDERS, type DateOrder, dateParts } from './dates.ts';
import { PARQUET, tableFiles, tableKind } from './table-files.ts';
import { type OnRow, readRows, type TableFacts, type TableOptions } from './table-rows.ts';
import { wordsOf } from './words.ts';

/** What stands in the columns of a table, cell by cell, before anybody decides what it means. */

/** A cell that is neither missing nor a plain number, by how it is written. */
export type CellForm =
  | 'date'
  | 'money'
  | 'percent'
  | 'grouped'
  | 'decimalComma'
  | 'unit'
  | 'code'
  | 'infinite'
  | 'tooLarge'
  | 'absent'
  | 'text';

export interface Cell {
  /** The line of the file, from 1. */
  readonly line: number;
  readonly text: string;
}

export interface ColumnProfile {
  readonly name: string;
  /** The header has no name for it; this one says its place. */
  readonly isUnnamed: boolean;
  /** Rows of the table. */
  readonly count: number;
  readonly missing: number;
  readonly firstMissing: Cell | null;
  /** One a row; NaN where the cell is not a number. */
  readonly values: Float64Array;
  readonly numberCount: number;
  /** Numbers with a point in them. */
  readonly pointCount: number;
  /** Cells that are dates as `loadCsv` reads them: in any order of day and month, and by each. */
  readonly dates: { readonly anyOrder: number } & Readonly<Record<DateOrder, number>>;
  /** Words of the cells that are text, and how many different ones; at most `WORD_KINDS_MAX` are told apart. */
  readonly words: { readonly count: number; readonly kinds: number };
  /** Unit behind the numbers, the same in all cells that have one: they count as numbers. Null: there is none. */
  readonly unit: string | null;
  /** Cells that are neither missing nor numbers, by form. */
  readonly forms: ReadonlyMap<CellForm, number>;
  /** The first of each form. */
  readonly firsts: ReadonlyMap<CellForm, Cell>;
  /** Cells by text; null when there are more than `KINDS_MAX` texts. */
  readonly kinds: ReadonlyMap<string, number> | null;
  /** One a row: which of `kinds`, in their order, −1 where the value is missing; null as `kinds`. */
  readonly codes: Int32Array | null;
  /** What the reader makes of `kinds` as names; null as `kinds`. */
  readonly names: NameList | null;
}

export interface ProfileOptions extends TableOptions, NumberForm {}

export interface TableProfile {
  readonly columns: readonly ColumnProfile[];
  readonly count: number;
  /** Given, or found. */
  readonly delimiter: string;
  /** What was left out without being asked for. */
  readonly notes: readonly string[];
  /** `parquetSource` reads it, not `loadCsv`. */
  readonly isParquet: boolean;
  /** Columns that hold lists or structures, which are not read. */
  readonly nested: readonly string[];
}

const WORD_KINDS_MAX = 100_000;
/** Texts of a column that are told apart. */
const KINDS_MAX = 1000;
/** A column of at most so many texts such as 3a has names rather than numbers with the unit a. */
const GLUED_KINDS_FEW = 20;
/** A zip code or the like, no quantity, though it can be read as one. Two digits may be an hour. */
const CODE = /^0\d{2,}$/;
const FLOAT32_MAX = 3.4028234663852886e38;

/** Reads a table and says what its cells look like. Nothing that stands in a cell is refused. */
export async function profileTable(
  path: string,
  options: ProfileOptions = {},
): Promise<TableProfile> {
  const read = numberReader(options);
  const collectors = new Map<string, Collector>();
  let first: { readonly file: string; readonly facts: ParquetFacts } | null = null;
  let unnamed: ReadonlySet<number> = new Set();
  let count = 0;
  const notes: string[] = [];
  const kind = await tableKind(path);
  const files = await tableFiles(path, kind);
  for (const file of files) {
    const readFile: typeof parquetRows = kind === PARQUET ? parquetRows : readRows;
    const facts = await readFile(file, options, (cells, line, given) => {
      if (!first) unnamed = given.unnamed;
      for (let i = 0; i < cells.length; i++) {
        const name = given.names[i]!;
        let collector = collectors.get(name);
        if (!collector) {
          collector = new Collector(read);
          collectors.set(name, collector);
        }
        collector.add(nameOf(cells[i]!), line);
      }
    });
    first ??= { file, facts };
    mustBeAlike(first, file, facts);
    count += facts.count;
    notes.push(...facts.notes.map((note) => (files.length > 1 ? `${file}: ${note}` : note)));
  }
  const { facts } = first!;
  const columns = facts.header.map((name, i) =>
    (collectors.get(name) ?? new Collector(read)).done(name, unnamed.has(i)),
  );
  const isParquet = kind === PARQUET;
  return { ...facts, count, notes, columns, isParquet, nested: facts.nested ?? [] };
}

interface ParquetFacts extends TableFacts {
  readonly nested?: readonly string[];
}

/** The rows of a Parquet file as those of a table of text, numbered from 0. @throws as `ParquetFile.open` */
async function parquetRows(
  path: string,
  options: ProfileOptions,
  onRow: OnRow,
): Promise<ParquetFacts> {
  const given = Object.keys(options).find((name) => options[name as keyof ProfileOptions] != null);
  if (given !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `\`${given}\` says how text is written, but ${path} is a Parquet file: leave it out`,
    );
  }
  // Tables of text need no decoder.
  const { ParquetFile } = await import('../sources/parquet-file.ts');
  const parquet = await ParquetFile.open(path);
  const { names, nested, count } = parquet;
  const header = { names, unnamed: new Set<number>() };
  for await (const block of parquet.scan(names)) {
    for (let i = 0; i < block.count; i++) {
      const cells = names.map((_, column) => {
        const cell = block.cellOf(column, i);
        return typeof cell === 'number' && Number.isNaN(cell) ? '' : String(cell);
      });
      onRow(cells, block.start + i, header, 0);
    }
  }
  const notes = nested.map((name) => `column '${name}' holds lists or structures and is left out`);
  return { header: names, count, delimiter: ',', notes, nested };
}

/** @throws DownpourError DP_DATA_CORRUPT: a file has other columns than the first one. */
function mustBeAlike(
  first: { readonly file: string; readonly facts: TableFacts },
  file: string,
  { header }: TableFacts,
): void {
  const expected = first.facts.header;
  const lacking = expected.find((name) => !header.includes(name));
  const more = header.find((name) => !expected.includes(name));
  if (lacking === undefined && more === undefined) return;
  const what =
    lacking === undefined
      ? `it has a column '${more}', which ${first.file} does not have`
      : `it has no column '${lacking}', as ${first.file} has`;
  throw corrupt(file, `${what}; files of one table have the same columns`);
}

class Collector {
  readonly #read: ReadNumber;
  readonly #values = new Growing(Float64Array);
  #codes: Growing<Int32Array> | null = new Growing(Int32Array);
  #order: Map<string, number> | null = new Map();
  readonly #counts: number[] = [];
  #missing = 0;
  #firstMissing: Cell | null = null;
  #numberCount = 0;
  readonly #forms = new Map<CellForm, number>();
  readonly #firsts = new Map<CellForm, Cell>();
  #pointCount = 0;
  readonly #dates = { anyOrder: 0, dayFirst: 0, monthFirst: 0 };
  #wordCount = 0;
  readonly #words = new Set<string>();
  /** Unit of the numbers that have one; null: they have several, or a cell cannot be read as one. */
  #unit: string | null | undefined;
  /** Numbers with the unit in the same cell without space between. */
  #isGlued = false;
  readonly #unitRows = new Growing(Int32Array);
  readonly #unitValues = new Growing(Float64Array);

  constructor(read: ReadNumber) {
    this.#read = read;
  }

  add(text: string, line: number): void {
    if (isMissing(text)) {
      this.#missing++;
      this.#firstMissing ??= { line, text };
      this.#values.push(Number.NaN);
      this.#codes?.push(-1);
      return;
    }
    const value = this.#read(text);
    if (Math.abs(value) <= FLOAT32_MAX && !CODE.test(text)) {
      this.#numberCount++;
      if (text.includes('.')) this.#pointCount++;
      this.#values.push(value);
    } else {
      const form = Math.abs(value) <= FLOAT32_MAX ? 'code' : formOf(text);
      this.#forms.set(form, (this.#forms.get(form) ?? 0) + 1);
      if (!this.#firsts.has(form)) this.#firsts.set(form, { line, text });
      if (form === 'date') this.#countDate(text);
      else if (form === 'text') this.#countWords(text);
      else if (form === 'unit') this.#addWithUnit(text);
      this.#values.push(Number.NaN);
    }
    this.#count(text);
  }

  #addWithUnit(text: string): void {
    if (this.#unit === null) return;
    const found = numberWithUnit(text, this.#read);
    if (!found || (this.#unit ?? found.unit) !== found.unit) {
      this.#unit = null;
      return;
    }
    // A piece of a long text would keep all of it in memory.
    this.#unit ??= Buffer.from(found.unit).toString();
    this.#isGlued ||= !found.isApart;
    this.#unitRows.push(this.#values.length);
    this.#unitValues.push(found.value);
  }

  /** All cells that are there are numbers, some with the unit behind them. Few kinds such as 3a and 3b are rather names. */
  #takeUnit(): string | null {
    const given = this.#values.length - this.#missing;
    const rows = this.#unitRows.taken();
    if (!this.#unit || this.#numberCount + rows.length !== given) return null;
    const kinds = this.#order?.size ?? KINDS_MAX;
    if (this.#isGlued && kinds <= GLUED_KINDS_FEW) return null;
    const [values, numbers] = [this.#values.taken(), this.#unitValues.taken()];
    rows.forEach((row, i) => {
      values[row] = numbers[i]!;
    });
    this.#numberCount = given;
    this.#forms.clear();
    this.#firsts.clear();
    return this.#unit;
  }

  #countDate(text: string): void {
    if (dateParts(text)) this.#dates.anyOrder++;
    for (const order of DATE_ORDERS) if (dateParts(text, order)) this.#dates[order]++;
  }

  #countWords(text: string): void {
    for (const word of wordsOf(text)) {
      this.#wordCount++;
      if (this.#words.size < WORD_KINDS_MAX) this.#words.add(Buffer.from(word).toString());
    }
  }

  #count(text: string): void {
    if (this.#order === null) return;
    let code = this.#order.get(text);
    if (code === undefined) {
      code = this.#order.size;
      if (code === KINDS_MAX) {
        this.#order = null;
        this.#codes = null;
        return;
      }
      // A piece of a long text would keep all of it in memory.
      this.#order.set(Buffer.from(text).toString(), code);
      this.#counts.push(0);
    }
    this.#counts[code]!++;
    this.#codes!.push(code);
  }

  done(name: string, isUnnamed: boolean): ColumnProfile {
    const unit = this.#takeUnit();
    const values = this.#values.taken();
    return {
      name,
      unit,
      isUnnamed,
      count: values.length,
      missing: this.#missing,
      firstMissing: this.#firstMissing,
      values,
      numberCount: this.#numberCount,
      pointCount: this.#pointCount,
      dates: this.#dates,
      words: { count: this.#wordCount, kinds: this.#words.size },
      forms: this.#forms,
      firsts: this.#firsts,
      kinds:
        this.#order && new Map([...this.#order].map(([text, code]) => [text, this.#counts[code]!])),
      codes: this.#codes?.taken() ?? null,
      names: this.#order && nameList([...this.#order.keys()], this.#read),
    };
  }
}

type NumberArray = Float64Array | Int32Array;

/** Numbers whose count is not known beforehand. */
class Growing<A extends NumberArray> {
  #array: A;
  #length = 0;
  readonly #Type: new (
    length: number,
  ) => A;

  constructor(Type: new (length: number) => A) {
    this.#Type = Type;
    this.#array = new Type(64);
  }

  push(value: number): void {
    if (this.#length === this.#array.length) {
      const larger = new this.#Type(2 * this.#length);
      larger.set(this.#array);
      this.#array = larger;
    }
    this.#array[this.#length++] = value;
  }

  get length(): number {
    return this.#length;
  }

  taken(): A {
    return this.#array.subarray(0, this.#length) as A;
  }
}

const MONTH = '(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\\.?';
const TIME = '\\d{1,2}:\\d{2}(?::\\d{2}(?:[.,]\\d+)?)?(?:\\s*[ap]\\.?m\\.?)?';
const ZONE = '(?:\\s*(?:z|utc|gmt|[a-z]{3,4}|[+-]\\d{2}:?(?:\\d{2})?))?';
const DAYS = [
  '\\d{4}[-/]\\d{1,2}(?:[-/]\\d{1,2})?',
  '\\d{1,2}([-/.])\\d{1,2}\\1(?:\\d{4}|\\d{2})',
  `(?:[a-z]{3,9},?\\s+)?${MONTH}\\s+\\d{1,2}(?:st|nd|rd|th)?,?\\s+\\d{4}`,
  `(?:[a-z]{3,9},?\\s+)?\\d{1,2}\\.?[-\\s]${MONTH}[-\\s]\\d{2,4}`,
].join('|');
/** ISO, with slashes or points in any order, or with the month's name; a time alone. */
const DATE = new RegExp(`^(?:(?:${DAYS})(?:(?:t|,?\\s+)${TIME}${ZONE})?|${TIME}${ZONE})$`, 'i');

const AMOUNT = "\\d{1,3}(?:[,.'’ \\u00a0\\u202f]\\d{3})+(?:[.,]\\d+)?|\\d+(?:[.,]\\d+)?|[.,]\\d+";
const CURRENCY = '(?:\\p{Sc}|R\\$|Rs\\.?|USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|kr\\.?)';
const MONEY = new RegExp(
  `^(?:\\(?[-+−]?\\s*${CURRENCY}\\s*[-+−]?(?:${AMOUNT})\\s*[kmb]?\\)?|[-+−]?(?:${AMOUNT})\\s*${CURRENCY})$`,
  'iu',
);
const PERCENT = new RegExp(`^[-+−]?(?:${AMOUNT})\\s*[%‰]$`);
/** Thousands in groups, in brackets as a loss, or with a minus that is no hyphen. */
const GROUPED = new RegExp(
  `^(?:\\([-+]?(?:${AMOUNT})\\)|−(?:${AMOUNT})|[-+]?\\d{1,3}(?:[,'’ \\u00a0\\u202f]\\d{3})+(?:\\.\\d+)?|[-+]?\\d{1,3}(?:\\.\\d{3}){2,}(?:,\\d+)?|[-+]?\\d{1,3}\\.\\d{3},\\d+)$`,
);
const DECIMAL_COMMA = /^[-+]?\d*,\d+(?:e[-+]?\d+)?$/i;
const UNIT = new RegExp(`^[-+−]?(?:${AMOUNT})\\s*[\\p{L}°µΩ"″'′/²³^]{1,12}\\d?$`, 'u');
const ABSENT =
  /^(?:[-–—_.*#]+|n\.a\.?|n\/d|n\.d\.?|#n\/a|#null!?|#value!|#div\/0!|nil|none|<na>|missing|unknown|undefined|not available|tbd)$/i;

/** @param text trimmed, neither missing nor a number that is kept. */
export function formOf(text: string): CellForm {
  if (isNumber(text)) return 'tooLarge';
  if (/^[-+−]?(?:inf|infinity|∞)$/i.test(text)) return 'infinite';
  if (ABSENT.test(text)) return 'absent';
  if (DATE.test(text)) return 'date';
  if (PERCENT.test(text)) return 'percent';
  if (GROUPED.test(text)) return 'grouped';
  if (DECIMAL_COMMA.test(text)) return 'decimalComma';
  if (MONEY.test(text)) return 'money';
  return UNIT.test(text) ? 'unit' : 'text';
}
