import type { FileMetaData, SchemaTree } from 'hyparquet';
import { parquetMetadataAsync, parquetSchema } from 'hyparquet';
import { DownpourError } from '../../../shared/errors.ts';
import { HEAD_BYTES, refuseOtherKind } from '../file-kinds.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import type { TableCell } from '../tables/cells.ts';
import {
  bytesOfChunk,
  type ColumnChunk,
  type ColumnPage,
  columnPages,
  undecoded,
} from './parquet-pages.ts';

/** Parquet files: which columns there are, and their rows in order or by row groups. */

/** The most bytes of the part that describes all others. */
const FOOTER_BYTES_MAX = 64 * 2 ** 20;

export interface RowGroup {
  /** Its place in the file's description. */
  readonly index: number;
  /** The first row of the file that it has. */
  readonly start: number;
  readonly count: number;
}

/** The cells of a column of a row group: texts, numbers, NaN for a number that is missing. */
export type ColumnCells = Float64Array | readonly TableCell[];

/** Rows that follow each other. */
export interface RowBlock {
  /** The first row. */
  readonly start: number;
  readonly count: number;
  /** @param column its place among those asked for @param i of the row in the block. Only until the next block is asked for. */
  cellOf(column: number, i: number): TableCell;
}

export class ParquetFile {
  readonly file: PositionedFile;
  /** Columns that hold single values. */
  readonly names: readonly string[];
  /** Columns that hold lists or structures. */
  readonly nested: readonly string[];
  readonly groups: readonly RowGroup[];
  readonly #metadata: FileMetaData;
  readonly #schema: SchemaTree;

  private constructor(file: PositionedFile, metadata: FileMetaData) {
    this.file = file;
    this.#metadata = metadata;
    this.#schema = parquetSchema(metadata);
    const { children } = this.#schema;
    this.names = children.filter(isFlat).map(({ element }) => element.name);
    this.nested = children.filter((child) => !isFlat(child)).map(({ element }) => element.name);
    let start = 0;
    this.groups = metadata.row_groups.flatMap(({ num_rows }, index) => {
      const group = { index, start, count: Number(num_rows) };
      start += group.count;
      return group.count > 0 ? [group] : [];
    });
  }

  /** @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT: it is no Parquet file, cut off, damaged, encrypted or without rows. */
  static async open(path: string): Promise<ParquetFile> {
    const file = await PositionedFile.open(path);
    if (file.size === 0) throw corrupt(path, 'it is empty: it has 0 bytes');
    const head = await file.head(HEAD_BYTES);
    if (head.toString('latin1', 0, 4) === 'PARE') {
      throw corrupt(path, 'its footer is encrypted; write it without encryption');
    }
    if (head.toString('latin1', 0, 4) !== 'PAR1') {
      refuseOtherKind(head, path, 'a Parquet file');
      throw corrupt(path, 'it is not a Parquet file: it does not begin with PAR1');
    }
    const end = await file.read({
      start: Math.max(0, file.size - 8),
      length: Math.min(8, file.size),
    });
    if (file.size < 12 || end.toString('latin1', 4) !== 'PAR1') {
      throw corrupt(path, 'it does not end with PAR1: the file is truncated; fetch it again');
    }
    const footerBytes = end.readUInt32LE(0);
    if (footerBytes > Math.min(FOOTER_BYTES_MAX, file.size - 12)) {
      throw corrupt(
        path,
        `its last bytes say that its description takes ${footerBytes} bytes; allowed: ${Math.min(FOOTER_BYTES_MAX, file.size - 12)}. It is damaged`,
      );
    }
    const metadata = await parquetMetadataAsync(bufferOf(file), { geoparquet: false }).catch(
      (error: unknown) => {
        throw error instanceof DownpourError ? error : undecoded(path, error);
      },
    );
    mustBeTrue(file, metadata);
    return new ParquetFile(file, metadata);
  }

  get count(): number {
    const last = this.groups.at(-1)!;
    return last.start + last.count;
  }

  /** Bytes of a column of a row group, decoded. */
  bytesOf(group: RowGroup, name: string): number {
    const { metadata } = this.#chunk(group, name);
    return Math.max(Number(metadata.total_uncompressed_size), 8 * group.count);
  }

  #chunk(group: RowGroup, name: string): ColumnChunk {
    const { columns } = this.#metadata.row_groups[group.index]!;
    const metadata = columns.find(
      ({ meta_data: meta }) => meta?.path_in_schema[0] === name,
    )?.meta_data;
    if (!metadata) {
      throw corrupt(
        this.file.path,
        `the row group from row ${group.start} on has no column '${name}'. The file is damaged`,
      );
    }
    const column = this.#schema.children.find(({ element }) => element.name === name)!;
    return { name, metadata, schemaPath: [this.#schema, column], count: group.count };
  }

  /**
   * Decodes a column of a row group.
   * @throws DownpourError DP_DATA_CORRUPT: it is damaged, or a cell is no single value.
   */
  async decode(group: RowGroup, name: string): Promise<ColumnCells> {
    const numbers = new Float64Array(group.count);
    let texts: TableCell[] | null = null;
    for await (const { start, values } of columnPages(this.file, this.#chunk(group, name), 0)) {
      const count = Math.min(values!.length, group.count - start);
      for (let i = 0; i < count; i++) {
        const cell = this.#cell(values![i], group.start + start + i, name);
        if (texts === null && typeof cell === 'number') {
          numbers[start + i] = cell;
          continue;
        }
        // The first text: the cells before it are cells, too.
        texts ??= Array.from(numbers.subarray(0, start + i));
        texts.push(cell);
      }
    }
    return texts ?? numbers;
  }

  /**
   * Rows in their order, as many at a time as one page of each column has: of a row group of any size no more is in memory.
   * @param from the first row that is needed. @throws DownpourError as `decode`
   */
  async *scan(names: readonly string[], from = 0): AsyncGenerator<RowBlock, void> {
    for (const group of this.groups) {
      if (group.start + group.count <= from) continue;
      const skipped = Math.max(0, from - group.start);
      const cursors = names.map((name) => ({
        name,
        pages: columnPages(this.file, this.#chunk(group, name), skipped),
        page: { start: 0, count: 0, values: null } as ColumnPage,
      }));
      for (let row = skipped; row < group.count; ) {
        let end = group.count;
        for (const cursor of cursors) {
          while (row >= cursor.page.start + cursor.page.count) {
            const next = await cursor.pages.next();
            if (next.done) throw new Error('a column has ended that has rows left');
            cursor.page = next.value;
          }
          end = Math.min(end, cursor.page.start + cursor.page.count);
        }
        const start = row;
        yield {
          ...{ start: group.start + start, count: end - start },
          cellOf: (column, i) => {
            const { page, name } = cursors[column]!;
            const value = page.values![start + i - page.start];
            return this.#cell(value, group.start + start + i, name);
          },
        };
        row = end;
      }
      for (const { pages } of cursors) await pages.return();
    }
  }

  #cell(value: unknown, row: number, name: string): TableCell {
    const cell = cellOf(value);
    if (cell !== null) return cell;
    throw corrupt(
      this.file.path,
      `row ${row}, column '${name}': a value that is no number, text, boolean or date; name the column in \`ignore\``,
    );
  }
}

/** A value as the cell of a table; NaN: it is missing; null: it is no single value. */
function cellOf(value: unknown): TableCell | null {
  switch (typeof value) {
    case 'number':
    case 'string':
    case 'boolean':
      return value;
    case 'bigint':
      // An id with more digits than float64 has stays what it is, as a text.
      return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
    default:
      return value === null || value === undefined ? Number.NaN : null;
  }
}

const isFlat = ({ children, element }: SchemaTree): boolean =>
  children.length === 0 && element.repetition_type !== 'REPEATED';

function bufferOf(file: PositionedFile) {
  return {
    byteLength: file.size,
    async slice(start: number, end = file.size): Promise<ArrayBuffer> {
      const bytes = await file.read({ start, length: end - start });
      return bytes.buffer as ArrayBuffer;
    },
  };
}

/** @throws DownpourError DP_DATA_CORRUPT: the description of the file contradicts itself or the file. */
function mustBeTrue(file: PositionedFile, { num_rows, row_groups }: FileMetaData): void {
  const rows = row_groups.reduce((sum, group) => sum + Number(group.num_rows), 0);
  if (rows !== Number(num_rows) || row_groups.some((group) => group.num_rows < 0)) {
    throw corrupt(
      file.path,
      `its description says ${num_rows} rows, and ${rows} in its ${row_groups.length} row groups. It is damaged`,
    );
  }
  if (rows === 0) throw corrupt(file.path, 'it has no rows');
  if (rows >= 2 ** 31) {
    throw corrupt(file.path, `it has ${rows} rows; allowed: ${2 ** 31 - 1}. Split it`);
  }
  for (const [i, { columns }] of row_groups.entries()) {
    for (const { meta_data: meta } of columns) {
      if (!meta)
        throw corrupt(file.path, `row group ${i} has no description of a column; is it encrypted?`);
      const { start, end } = bytesOfChunk(meta);
      if (start >= 4 && end <= file.size - 8) continue;
      throw corrupt(
        file.path,
        `column '${meta.path_in_schema.join('.')}' of row group ${i} is said to be at bytes ${start} to ${end} of ${file.size}. The file is truncated or damaged: fetch it again`,
      );
    }
  }
}
