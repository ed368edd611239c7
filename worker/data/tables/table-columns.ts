import { DownpourError } from '../../../shared/errors.ts';
import type { ColumnReading } from '../../../shared/reading.ts';
import type { Column } from '../columns.ts';
import { corrupt } from '../files.ts';
import {
  cellText,
  givenNames,
  isMissing,
  lookalikes,
  missingNumbers,
  type NameList,
  type NumberForm,
  nameList,
  nameOf,
  numberReader,
  numberWithUnit,
  type ReadNumber,
  shown,
  type TableCell,
} from './cells.ts';
import { numberProblem } from './number-problem.ts';

/** Columns of tables while their cells come in, of one file or of several, and what becomes of them. */

/** More categories than this in a column are rather an identifier or a number, unless they are given. */
const CATEGORIES_MAX = 1000;

/** Where a cell stands. */
export interface CellPlace {
  readonly file: string;
  readonly line: number;
  /** `row` where the file has no lines of text; then it counts from 0. */
  readonly counts?: 'line' | 'row';
}

/** `line 3`, `row 2`. */
export const lineOf = ({ line, counts = 'line' }: CellPlace): string => `${counts} ${line}`;

export interface CellOptions extends NumberForm {
  /** Texts that mean a missing value, beside an empty cell. Default: ?, NA, N/A, NaN, null in upper or lower case. */
  readonly missingTexts?: readonly string[];
  /** Unit of a column of numbers, which may stand behind each of them. */
  readonly unit?: string;
  /** Whether an input may lack values. Default: a missing value is an error. */
  readonly hasGaps?: boolean;
  /** An input says where values are missing if at least this many rows lack one. Default: 1. */
  readonly markGapsFrom?: number;
  /** A category that is not among the names given has no input that is 1. Default: it is an error. */
  readonly unknown?: 'none';
}

/** `new`: of data that a trained model is to answer to. */
export type ColumnRole = 'input' | 'target' | 'new';

export interface CellColumn {
  readonly name: string;
  /** @throws DownpourError DP_DATA_CORRUPT: the cell is missing, or not what the column holds */
  add(cell: TableCell, place: CellPlace): void;
  /** Whether the value is missing in this cell. */
  lacks(cell: TableCell): boolean;
}

/** A column whose cells are kept. */
export interface KeptColumn extends CellColumn {
  /** Drops all rows and keeps what they taught, such as categories: for tables of which no more is kept. */
  forget(): void;
}

/** An input whose cells become numbers. */
export interface InputColumn extends KeptColumn {
  /** Rows that lack a value. */
  readonly gaps: Gaps;
  /** How its cells were read. Asked for when all cells are there. */
  reading(): ColumnReading;
  /** The numbers of every row that `reading` says, without that of gaps. */
  features(reading: ColumnReading): Feature[];
}

/** All numbers of every row: the name of each is as `inputNamesOf` has it. */
export function featuresOf(column: InputColumn, reading = column.reading()): Feature[] {
  return [...column.features(reading), ...(reading.gap ? [column.gaps.feature()] : [])];
}

/** Which rows of a column lack a value. */
export class Gaps {
  readonly #name: string;
  readonly #isAllowed: boolean;
  readonly #markFrom: number;
  readonly #role: ColumnRole;
  readonly #rows = new Set<number>();
  #forgotten = 0;

  constructor(name: string, { hasGaps = false, markGapsFrom = 1 }: CellOptions, role: ColumnRole) {
    this.#name = name;
    this.#markFrom = markGapsFrom;
    this.#isAllowed = hasGaps;
    this.#role = role;
  }

  /** All that there were, forgotten ones too. */
  get count(): number {
    return this.#forgotten + this.#rows.size;
  }

  /** Whether an input says where they are. */
  get areMarked(): boolean {
    return this.count >= this.#markFrom;
  }

  forget(): void {
    this.#forgotten += this.#rows.size;
    this.#rows.clear();
  }

  /**
   * A row whose cell says that its value is missing. @param way what else may be done about it.
   * @throws DownpourError DP_DATA_CORRUPT: the column may lack none.
   */
  add(row: number, text: string, place: CellPlace, way = ''): void {
    if (!this.#isAllowed) throw missing(this.#name, text, place, this.#role, way);
    this.#rows.add(row);
  }

  has(row: number): boolean {
    return this.#rows.has(row);
  }

  /** 1 where the value is missing. */
  feature(): Feature {
    return { name: `${this.#name} is missing`, at: (row) => (this.#rows.has(row) ? 1 : 0) };
  }
}

export class NumberColumn implements InputColumn {
  readonly name: string;
  readonly #options: CellOptions;
  readonly #read: ReadNumber;
  readonly #missing: ReadonlySet<number>;
  readonly #role: ColumnRole;
  readonly #numbers = new NumberList();
  readonly gaps: Gaps;

  constructor(name: string, options: CellOptions, role: ColumnRole) {
    this.name = name;
    this.#role = role;
    this.#options = options;
    this.#read = numberReader(options);
    this.#missing = missingNumbers(options.missingTexts, this.#read);
    this.gaps = new Gaps(name, options, role);
  }

  lacks(cell: TableCell): boolean {
    const value = this.#numberOf(cell);
    if (!Number.isNaN(value)) return this.#missing.has(value);
    return isMissing(cellText(cell).trim(), this.#options.missingTexts);
  }

  /** NaN: it is no number that is finite. */
  #numberOf(cell: TableCell): number {
    if (typeof cell === 'string') return this.#read(cell.trim());
    const value = Number(cell);
    // Adding 0 makes -0 to 0, as in text.
    return Number.isFinite(value) ? value + 0 : Number.NaN;
  }

  add(cell: TableCell, place: CellPlace): void {
    const value = this.#numberOf(cell);
    if (!Number.isNaN(value) && !this.#missing.has(value)) {
      this.#numbers.push(value);
      return;
    }
    const text = cellText(cell).trim();
    if (this.lacks(cell)) {
      this.gaps.add(this.#numbers.length, text, place);
      this.#numbers.push(Number.NaN);
      return;
    }
    const { unit } = this.#options;
    const other = unit === undefined ? null : numberWithUnit(text, numberReader(this.#options));
    const problem = other
      ? `'${shown(text)}' is not in ${unit}, the unit of the column: convert it`
      : numberProblem(text, this.#options, this.#role);
    throw corrupt(place.file, `${lineOf(place)}, column '${this.name}': ${problem}`);
  }

  forget(): void {
    this.#numbers.clear();
    this.gaps.forget();
  }

  reading(): ColumnReading {
    const { unit } = this.#options;
    const gap = this.gaps.areMarked;
    return { name: this.name, as: 'number', ...(unit !== undefined && { unit }), gap };
  }

  features(): Feature[] {
    return [{ name: this.name, at: (row) => this.#numbers.at(row) }];
  }
}

export class CategoryColumn implements InputColumn {
  readonly name: string;
  readonly #options: CellOptions;
  readonly #read: ReadNumber;
  readonly #given: NameList | null;
  /** For each text its code, by appearance, and where it was first seen. */
  readonly #texts = new Map<string, { readonly code: number; readonly place: CellPlace }>();
  readonly #codes = new NumberList();
  #list: NameList | undefined;
  /** Cells with a category that is not among the names given, and the first of them. */
  #unknown: { count: number; readonly text: string; readonly place: CellPlace } | null = null;
  readonly #role: ColumnRole;
  readonly gaps: Gaps;

  /** @param given the names, where they are fixed beforehand */
  constructor(name: string, options: CellOptions, role: ColumnRole, given?: readonly string[]) {
    this.name = name;
    this.#role = role;
    this.#options = options;
    this.#read = numberReader(options);
    this.#given = given === undefined ? null : givenNames(given, this.#read);
    this.gaps = new Gaps(name, options, role);
  }

  /** A name that was given is never missing. */
  lacks(cell: TableCell): boolean {
    const text = nameOf(cellText(cell));
    if (this.#given !== null && this.#given.indexOf(text) >= 0) return false;
    return isMissing(text, this.#options.missingTexts);
  }

  add(cell: TableCell, place: CellPlace): void {
    const text = nameOf(cellText(cell));
    let seen = this.#texts.get(text);
    if (seen === undefined) {
      if (this.lacks(text)) {
        const way =
          text === ''
            ? ''
            : `; if '${text}' is a category, set the option \`missingTexts\` to the texts that mean a missing value`;
        this.gaps.add(this.#codes.length, text, place, way);
        this.#codes.push(-1);
        return;
      }
      if (this.#takeUnknown(text, place)) return;
      this.#check(text, place);
      seen = { code: this.#texts.size, place };
      // A piece of a long text would keep all of it in memory.
      this.#texts.set(Buffer.from(text).toString(), seen);
    }
    this.#codes.push(seen.code);
  }

  #takeUnknown(text: string, place: CellPlace): boolean {
    if (this.#options.unknown === undefined || !this.#given) return false;
    if (this.#given.indexOf(text) >= 0) return false;
    this.#unknown ??= { count: 0, text, place };
    this.#unknown.count++;
    this.#codes.push(-1);
    return true;
  }

  /** One line about the cells whose category is not among the names given; null: there are none. */
  unknownNote(): string | null {
    if (!this.#unknown) return null;
    const { count, text, place } = this.#unknown;
    const cells = count === 1 ? 'one cell has a category' : `${count} cells have categories`;
    return `${place.file}: column '${this.name}': ${cells} that the model has never seen, the first in ${lineOf(place)}: '${shown(text)}'. None of the inputs of the column is set there`;
  }

  #check(text: string, place: CellPlace): void {
    const { file } = place;
    const where = `${lineOf(place)}, column '${this.name}'`;
    if (this.#given !== null && this.#given.indexOf(text) >= 0) return;
    if (this.#given !== null) {
      const names = this.#given.names.slice(0, 20).map((name) => `'${shown(name)}'`);
      throw new DownpourError(
        this.#role === 'target' ? 'DP_DATA_LABEL' : 'DP_DATA_CORRUPT',
        `${file}: ${where}: '${shown(text)}' is not one of the ${this.#given.names.length} listed names: ${names.join(', ')}${names.length < this.#given.names.length ? ', …' : ''}`,
      );
    }
    if (this.#texts.size < CATEGORIES_MAX) return;
    throw corrupt(
      file,
      `column '${this.name}' has more than ${CATEGORIES_MAX} categories by ${lineOf(place)}; does it hold numbers, or identifiers (then name it in \`ignore\`)? If you list the names (\`categories\`, \`classes\`), more are allowed`,
    );
  }

  /** The names of all files. Asked for when all cells are there. */
  list(): NameList {
    this.#list ??= this.#given ?? nameList([...this.#texts.keys()], this.#read);
    const { conflict } = this.#list;
    if (conflict === null) return this.#list;
    const [a, b] = conflict.map((text) => {
      const place = this.#texts.get(text)?.place;
      return `'${text}'${place ? ` (${place.file}, ${lineOf(place)})` : ''}`;
    });
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `column '${this.name}': ${a} and ${b} are the same number in two spellings; write them in the same way. If they are two different names, list all names in \`classes\` or \`categories\``,
    );
  }

  /** Number of the name of each row. */
  numbers(): (row: number) => number {
    const list = this.list();
    const numbers = Int32Array.from(this.#texts.keys(), (text) => list.indexOf(text));
    return (row) => numbers[this.#codes.at(row)] ?? -1;
  }

  forget(): void {
    this.#codes.clear();
    this.gaps.forget();
  }

  reading(): ColumnReading {
    const names = [...this.list().names];
    return { name: this.name, as: 'category', names, gap: this.gaps.areMarked };
  }

  /** One 0/1 a name. */
  features(): Feature[] {
    const at = this.numbers();
    return this.list().names.map((name, i) => ({
      name: `${this.name}=${name}`,
      at: (row) => (at(row) === i ? 1 : 0),
    }));
  }

  /** What somebody should look at. */
  notes(): string[] {
    const alike = lookalikes(this.list().names);
    if (alike === null) return [];
    const [a, b] = alike.map((name) => `'${shown(name)}'`);
    return [
      `column '${this.name}' has ${a} and ${b} as two names that differ only in case or spaces`,
    ];
  }
}

/**
 * A column without a name, which nothing asks for. It may be empty, as after a delimiter at the end of
 * each line, or tell the rows apart by whole numbers, as the index that pandas writes.
 */
export class UnnamedColumn implements CellColumn {
  readonly name: string;
  #empty = true;
  #index = true;
  #last = -1;
  #rising = true;
  /** Numbers seen, once they do not rise. */
  readonly #numbers = new NumberList();
  #first: CellPlace | undefined;

  constructor(name: string) {
    this.name = name;
  }

  lacks(): boolean {
    return false;
  }

  add(cell: TableCell, place: CellPlace): void {
    this.#first ??= place;
    const text = cellText(cell).trim();
    if (text !== '') this.#empty = false;
    // pandas writes an index that went through float64 as 0.0, 1.0, …
    const value = Number(text);
    if (this.#index && /^\d+(\.0+)?$/.test(text)) {
      if (value <= this.#last) this.#rising = false;
      this.#last = value;
      this.#numbers.push(value);
    } else {
      this.#index = false;
    }
    if (!this.#empty && !this.#index) throw this.#refusal(place, shown(text));
  }

  /** Why it is left out. @throws DownpourError DP_DATA_CORRUPT: it is not clear that it may be */
  end(): string {
    if (this.#empty) return `${this.name} is left out: it has no name and is empty`;
    const count = this.#numbers.length;
    if (!this.#rising) {
      const seen = new Set<number>();
      for (let i = 0; i < count; i++) seen.add(this.#numbers.at(i));
      if (seen.size < count) throw this.#refusal(this.#first!, 'numbers that occur twice');
    }
    return `${this.name} is left out: it has no name and numbers the rows`;
  }

  #refusal(place: CellPlace, seen: string) {
    return corrupt(
      place.file,
      `${this.name} has no name in the header, but it holds ${seen} (${lineOf(place)}); name it there, or set \`ignore: ['${this.name}']\``,
    );
  }
}

const WAYS: Readonly<Record<ColumnRole, string>> = {
  target: "fill it in, or set `missing: 'drop'`, which leaves such lines out",
  input:
    "fill it in; or set `missing: 'mean'`, which puts the mean of the column there, or `missing: 'drop'`, which leaves such lines out; or name the column in `ignore`",
  new: 'fill it in: the model was trained on data that never lacked it',
};

function missing(column: string, text: string, place: CellPlace, role: ColumnRole, way = '') {
  return corrupt(
    place.file,
    `${lineOf(place)}, column '${column}': the value is missing ('${text}'); ${WAYS[role]}${way}`,
  );
}

/** A number that every row has: its name and its value in a row. */
export interface Feature {
  readonly name: string;
  at(row: number): number;
}

/** Rows `from` up to `to` of features side by side. */
export function featureTable(features: readonly Feature[], from: number, to: number): Column {
  const rows = to - from;
  const width = features.length;
  const values = new Float64Array(rows * width);
  features.forEach((feature, f) => {
    for (let row = 0; row < rows; row++) values[row * width + f] = feature.at(from + row);
  });
  return { values, shape: [rows, width], names: features.map(({ name }) => name) };
}

const CHUNK_BITS = 16;
const CHUNK = 2 ** CHUNK_BITS;

/** Numbers that come one by one, in more of them than an array of JavaScript's holds well. */
export class NumberList {
  readonly #chunks: Float64Array[] = [new Float64Array(64)];
  length = 0;

  push(value: number): void {
    const c = this.length >>> CHUNK_BITS;
    const at = this.length & (CHUNK - 1);
    let chunk = this.#chunks[c] ?? new Float64Array(CHUNK);
    if (at === chunk.length) {
      const larger = new Float64Array(2 * chunk.length);
      larger.set(chunk);
      chunk = larger;
    }
    this.#chunks[c] = chunk;
    chunk[at] = value;
    this.length++;
  }

  /** Keeps the room of the first chunk. */
  clear(): void {
    this.#chunks.length = 1;
    this.length = 0;
  }

  at(i: number): number {
    return this.#chunks[i >>> CHUNK_BITS]![i & (CHUNK - 1)]!;
  }
}
