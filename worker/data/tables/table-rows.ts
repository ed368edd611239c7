import { extname } from 'node:path';
import type { FieldRules } from '../../fields.ts';
import { HEAD_BYTES, refuseOtherKind } from '../file-kinds.ts';
import { corrupt, type FileReadOptions, filePieces, PIECE_BYTES } from '../files.ts';
import { isText, optional, READ_FIELDS } from '../reader-options.ts';
import { BytePositions } from './byte-positions.ts';
import { nameOf } from './cells.ts';
import { decoded, isEncoding, StrictText } from './strict-text.ts';
import { type Dialect, Tokens } from './tokens.ts';

/** The rows of a table as text, with the line of the file that each begins in. */

export interface TableOptions extends FileReadOptions {
  /** What stands between cells. Default: found in the first lines, of comma, semicolon, tab and |. */
  readonly delimiter?: string;
  /** A label of TextDecoder. Default: UTF-8, or what the byte order mark says. */
  readonly encoding?: string;
  /** Default: `"`. Null: quotes are ordinary characters. */
  readonly quote?: string | null;
  /** Lines that begin with this text are left out. Default: none. */
  readonly comment?: string;
  /** The decimal mark. Default: a point. */
  readonly decimal?: '.' | ',';
}

export interface TableFacts {
  /** Names of the columns, as `TableHeader` has them. */
  readonly header: readonly string[];
  /** Rows after the header. */
  readonly count: number;
  /** Given, or found. */
  readonly delimiter: string;
  /** What was left out without being asked for. */
  readonly notes: readonly string[];
}

export interface TableHeader {
  /** A column without a name is called `column 3`, by its place from 1. */
  readonly names: readonly string[];
  /** Indices of columns without a name. */
  readonly unnamed: ReadonlySet<number>;
}

/**
 * @param line of the file, from 1. @param header the same for all rows
 * @param at where the row begins in the file, in bytes; −1 where nobody asked for it
 */
export type OnRow = (
  cells: readonly string[],
  line: number,
  header: TableHeader,
  at: number,
) => void;

const one = (value: unknown) => isText(value) && value.length === 1 && !/[\r\n]/.test(value);

export const TABLE_FIELDS: FieldRules<keyof TableOptions> = {
  ...READ_FIELDS,
  delimiter: optional({
    allowed: "the text between cells, such as ';' or '\\t', without quotes or line ends",
    test: (value) => isText(value) && !/["\r\n]/.test(value),
  }),
  encoding: optional({
    allowed: "the name of an encoding, such as 'utf-8', 'windows-1252', 'utf-16le', 'shift_jis'",
    test: isEncoding,
  }),
  quote: optional({ allowed: 'one character, or null', test: (v) => v === null || one(v) }),
  comment: optional({ allowed: "the text that comments begin with, such as '#'", test: isText }),
  decimal: optional({ allowed: "'.' or ','", test: (v) => v === '.' || v === ',' }),
};

/** What of the options a run keeps, so that new files are read in the same way. */
export function keptOptions({ delimiter, encoding, quote, comment, decimal }: TableOptions) {
  return {
    ...(delimiter !== undefined && { delimiter }),
    ...(encoding !== undefined && { encoding }),
    ...(quote !== undefined && { quote }),
    ...(comment !== undefined && { comment }),
    ...(decimal !== undefined && { decimal }),
  };
}

/**
 * Calls `onRow` for every row of a file, gzip or not, of any size: it is read in pieces.
 * @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT for bytes that are no text or another kind of
 * file, a bad header, a row of another length, a quote out of place
 */
export async function readRows(
  path: string,
  options: TableOptions,
  onRow: OnRow,
): Promise<TableFacts> {
  return (await readAll(new Rows(path, options, onRow), path, options)).facts();
}

async function readAll(rows: Rows, path: string, options: FileReadOptions): Promise<Rows> {
  for await (const piece of filePieces(path, options)) rows.push(piece, false);
  rows.push(new Uint8Array(0), true);
  return rows;
}

/** How the rows of one file are written: enough to read one of them alone. */
export interface RowForm {
  readonly dialect: Dialect;
  readonly encoding: string;
  readonly header: TableHeader;
  /** Each row ends in a delimiter that the header lacks. */
  readonly trailing: boolean;
}

/**
 * As `readRows`, and `onRow` is given the place of each row.
 * @throws DownpourError also DP_DATA_CORRUPT: the encoding has no such places, or the file is compressed.
 */
export async function readRowPlaces(
  path: string,
  options: TableOptions,
  onRow: OnRow,
): Promise<TableFacts & { readonly form: RowForm }> {
  const rows = new Rows(path, options, onRow, new BytePositions(path));
  await readAll(rows, path, options);
  return { ...rows.facts(), form: rows.form() };
}

/**
 * The cells of one row. @param bytes from its beginning to that of the next one, or to the end of the file
 * @returns null: there is no such row
 */
export function parseRow(bytes: Buffer, name: string, form: RowForm): string[] | null {
  const text = decoded(bytes, form.encoding);
  if (text === null) return null;
  const tokens = new Tokens(name, form.dialect);
  tokens.push(text, true);
  const cells = tokens.next();
  if (cells === null) return null;
  const fitted = fitCells(cells, form.header, form.trailing);
  return fitted.length === form.header.names.length ? fitted : null;
}

/** @param trailing whether rows end in a delimiter that the header lacks */
function fitCells(cells: string[], { names, unnamed }: TableHeader, trailing: boolean): string[] {
  const width = names.length;
  if (trailing && cells.length === width + 1 && cells[width]!.trim() === '') {
    return cells.slice(0, width);
  }
  // The header ends in a delimiter that the row lacks.
  if (cells.length === width - 1 && unnamed.has(width - 1)) return [...cells, ''];
  return cells;
}

/** As `readRows`, of bytes. @param name for errors */
export function parseRows(
  bytes: Uint8Array,
  name: string,
  options: TableOptions,
  onRow: OnRow,
): TableFacts {
  const rows = new Rows(name, options, onRow);
  for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
    rows.push(bytes.subarray(at, at + PIECE_BYTES), false);
  }
  rows.push(new Uint8Array(0), true);
  return rows.facts();
}

class Rows {
  readonly #name: string;
  readonly #options: TableOptions;
  readonly #onRow: OnRow;
  readonly #text: StrictText;
  #head: Buffer | null = Buffer.alloc(0);
  #tokens: Tokens | undefined;
  #dialect: Dialect | undefined;
  /** Text before the dialect is known. */
  #waiting = '';
  #header: TableHeader | undefined;
  #count = 0;
  /** Rows of empty cells, which count when another row follows. */
  #blank: { cells: string[]; line: number; at: number }[] = [];
  /** Each row ends in a delimiter that the header lacks. */
  #trailing: boolean | undefined;
  readonly #notes: string[] = [];
  readonly #positions: BytePositions | null;
  /** Characters of the file before those that are taken apart into cells. */
  #cut = 0;

  constructor(
    name: string,
    options: TableOptions,
    onRow: OnRow,
    positions: BytePositions | null = null,
  ) {
    this.#positions = positions;
    this.#name = name;
    this.#options = options;
    this.#onRow = onRow;
    this.#text = new StrictText(name, options.encoding);
  }

  push(bytes: Uint8Array, final: boolean): void {
    if (this.#head !== null) {
      this.#head = Buffer.concat([this.#head, bytes]);
      if (this.#head.length < HEAD_BYTES && !final) return;
      const head = this.#head;
      this.#head = null;
      refuseOtherKind(head, this.#name, 'a CSV file');
      this.push(head, final);
      return;
    }
    const text = this.#text.push(bytes, final, () => this.#tokens?.lineEnds() ?? 0);
    const { position, given, encoding } = this.#text;
    this.#positions?.add(text, position - given, given, encoding);
    if (this.#tokens === undefined) {
      this.#waiting += text;
      if (this.#waiting === '' && !final) return;
      this.#begin(final);
    } else {
      this.#tokens.push(text, final);
    }
    const tokens = this.#tokens!;
    for (let cells = tokens.next(); cells !== null; cells = tokens.next()) {
      this.#row(cells, tokens.line, this.#positions?.at(this.#cut + tokens.begin) ?? -1);
    }
  }

  facts(): TableFacts {
    const header = this.#header;
    if (header === undefined) {
      throw corrupt(
        this.#name,
        'it is empty; the first line must be a header with the names of the columns',
      );
    }
    if (this.#blank.length > 0) {
      const lines = this.#blank.length;
      this.#notes.push(
        `${lines} ${lines === 1 ? 'line' : 'lines'} of empty cells at the end left out`,
      );
    }
    const { delimiter } = this.#dialect!;
    return { header: header.names, count: this.#count, delimiter, notes: this.#notes };
  }

  /** Asked for after `facts`. */
  form(): RowForm {
    return {
      dialect: this.#dialect!,
      encoding: this.#text.encoding,
      header: this.#header!,
      trailing: this.#trailing ?? false,
    };
  }

  #begin(final: boolean): void {
    const { quote = '"', comment = null } = this.#options;
    let text = this.#waiting;
    this.#waiting = '';
    // Excel's way to say it in the file.
    const said = /^sep=(.)(\r\n|\r|\n)/.exec(text);
    const delimiter = this.#options.delimiter ?? said?.[1] ?? this.#find(text, final);
    // An empty line keeps the count of lines right.
    if (said) this.#cut = said[0].length - said[2]!.length;
    text = text.slice(this.#cut);
    this.#dialect = { delimiter, quote, comment };
    this.#tokens = new Tokens(this.#name, this.#dialect);
    this.#tokens.push(text, final);
  }

  #find(text: string, final: boolean): string {
    const { quote = '"', comment = null, decimal } = this.#options;
    const tabs = extname(this.#name.replace(/\.gz$/, '')) === '.tsv';
    const found = DELIMITERS.filter((delimiter) => delimiter !== decimal)
      .map((delimiter) => ({
        delimiter,
        ...widths(text, final, { delimiter, quote, comment }),
      }))
      .filter(({ header }) => header > 1);
    if (tabs && found.some(({ delimiter }) => delimiter === '\t')) return '\t';
    const fitting = found.filter(({ fits }) => fits);
    const chosen = fitting.length > 0 ? fitting : found;
    if (chosen.length === 0) return ',';
    if (chosen.length === 1) return chosen[0]!.delimiter;
    throw corrupt(
      this.#name,
      `the delimiter may be ${chosen.map(({ delimiter }) => JSON.stringify(delimiter)).join(' or ')}: set the option \`delimiter\``,
    );
  }

  #row(given: string[], line: number, at: number): void {
    if (this.#header === undefined) {
      this.#header = headerOf(given, line, this.#name);
      return;
    }
    const width = this.#header.names.length;
    this.#trailing ??= given.length === width + 1 && given[width]!.trim() === '';
    const cells = fitCells(given, this.#header, this.#trailing);
    if (cells.length !== width) throw this.#length(given, line);
    if (width > 1 && cells.every((cell) => cell.trim() === '')) {
      this.#blank.push({ cells, line, at });
      return;
    }
    if (this.#blank.length > 0) {
      for (const blank of this.#blank) this.#give(blank.cells, blank.line, blank.at);
      this.#blank = [];
    }
    this.#give(cells, line, at);
  }

  #give(cells: readonly string[], line: number, at: number): void {
    this.#count++;
    this.#onRow(cells, line, this.#header!, at);
  }

  #length(cells: readonly string[], line: number) {
    const seen = cells.length;
    const first = cells[0]!;
    const wanted = this.#header!.names.length;
    const hints: string[] = [];
    const { comment } = this.#options;
    const mark = [first, this.#header!.names[0]!].find((cell) => /^\s*[#%]/.test(cell))?.trim()[0];
    if (mark && comment === undefined) {
      hints.push(`To leave out lines that begin with ${mark}, set \`comment: '${mark}'\``);
    } else {
      if (seen === wanted + 1 && this.#count === 0) {
        hints.push(
          'If the first column has no name, begin the header with a delimiter (in R: col.names = NA)',
        );
      }
      if (this.#dialect!.delimiter === ',' && seen > wanted) {
        hints.push('A cell that has a comma must be in quotes');
      }
    }
    return corrupt(
      this.#name,
      `line ${line}: ${seen} ${seen === 1 ? 'cell' : 'cells'}; the header has ${wanted}${hints.map((hint) => `. ${hint}`).join('')}`,
    );
  }
}

const DELIMITERS = [',', ';', '\t', '|'];
const TRIED_ROWS = 50;

/** How many cells the header has with a delimiter, and whether the rows after it have as many. */
function widths(text: string, final: boolean, dialect: Dialect): { header: number; fits: boolean } {
  const tokens = new Tokens('', dialect);
  tokens.push(text, final);
  let header = 0;
  let extra: boolean | undefined;
  try {
    for (let row = 0; row <= TRIED_ROWS; row++) {
      const cells = tokens.next();
      if (cells === null) break;
      if (row === 0) {
        header = cells.length;
        continue;
      }
      const trailing = cells.length === header + 1 && cells[header]!.trim() === '';
      extra ??= trailing;
      if (cells.length !== header && !(extra && trailing)) return { header, fits: false };
    }
  } catch {
    return { header, fits: false };
  }
  return { header, fits: true };
}

function headerOf(cells: readonly string[], line: number, file: string): TableHeader {
  const names = cells.map(nameOf);
  const unnamed = new Set<number>();
  const places = new Map<string, number>();
  for (const [i, name] of names.entries()) {
    if (name === '') {
      names[i] = `column ${i + 1}`;
      unnamed.add(i);
    }
    const other = places.get(names[i]!);
    if (other !== undefined) {
      throw corrupt(
        file,
        `line ${line}: columns ${other + 1} and ${i + 1} are both named '${names[i]}'; rename one`,
      );
    }
    places.set(names[i]!, i);
  }
  return { names, unnamed };
}
