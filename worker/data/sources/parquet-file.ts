import type { FileMetaData, SchemaTree } from 'hyparquet';
import { parquetMetadataAsync, parquetRead, parquetSchema } from 'hyparquet';
import { compressors } from 'hyparquet-compressors';
import { DownpourError, errorText } from '../../../shared/errors.ts';
import { HEAD_BYTES, refuseOtherKind } from '../file-kinds.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import type { TableCell } from '../tables/cells.ts';

/** Parquet files: which columns there are, and some row groups decoded at a time. */

/** The most bytes of the part that describes all others. */
const FOOTER_BYTES_MAX = 64 * 2 ** 20;

export interface RowGroup {
  /** The first row of the file that it has. */
  readonly start: number;
  readonly count: number;
}

/** The cells of a row group by the name of their column; texts, numbers, NaN for a number that is missing. */
export type GroupCells = ReadonlyMap<string, Float64Array | readonly TableCell[]>;

export class ParquetFile {
  readonly file: PositionedFile;
  /** Columns that hold single values. */
  readonly names: readonly string[];
  /** Columns that hold lists or structures. */
  readonly nested: readonly string[];
  readonly groups: readonly RowGroup[];
  readonly #metadata: FileMetaData;
  readonly #buffer: {
    byteLength: number;
    slice(start: number, end?: number): Promise<ArrayBuffer>;
  };

  private constructor(file: PositionedFile, metadata: FileMetaData) {
    this.file = file;
    this.#metadata = metadata;
    this.#buffer = bufferOf(file);
    const { children } = parquetSchema(metadata);
    this.names = children.filter(isFlat).map(({ element }) => element.name);
    this.nested = children.filter((child) => !isFlat(child)).map(({ element }) => element.name);
    let start = 0;
    this.groups = metadata.row_groups.flatMap(({ num_rows }) => {
      const group = { start, count: Number(num_rows) };
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
    const metadata = await decoding(path, () =>
      parquetMetadataAsync(bufferOf(file), { geoparquet: false }),
    );
    mustBeTrue(file, metadata);
    return new ParquetFile(file, metadata);
  }

  get count(): number {
    const last = this.groups.at(-1)!;
    return last.start + last.count;
  }

  /** Bytes of a row group that are read and decoded for some columns. */
  bytesOf(group: RowGroup, columns: readonly string[]): number {
    const chunks = this.#metadata.row_groups[this.#indexOf(group)]!.columns;
    let bytes = 0;
    for (const { meta_data: meta } of chunks) {
      if (meta && columns.includes(meta.path_in_schema[0]!)) {
        bytes += Math.max(Number(meta.total_uncompressed_size), 8 * group.count);
      }
    }
    return bytes;
  }

  #indexOf(group: RowGroup): number {
    let start = 0;
    return this.#metadata.row_groups.findIndex(({ num_rows }) => {
      const own = start;
      start += Number(num_rows);
      return own === group.start && Number(num_rows) === group.count;
    });
  }

  /**
   * Decodes columns of a row group, one after the other.
   * @throws DownpourError DP_DATA_CORRUPT: it is damaged, or a cell is no single value.
   */
  async decode(
    group: RowGroup,
    columns: readonly string[],
    signal?: AbortSignal,
  ): Promise<GroupCells> {
    const cells = new Map<string, Float64Array | readonly TableCell[]>();
    for (const name of columns) {
      signal?.throwIfAborted();
      const pages: ArrayLike<unknown>[] = [];
      await decoding(`${this.file.path}: column '${name}'`, () =>
        parquetRead({
          ...{ file: this.#buffer, metadata: this.#metadata, columns: [name] },
          ...{ rowStart: group.start, rowEnd: group.start + group.count },
          ...{ compressors, parsers: PARSERS, geoparquet: false },
          onChunk: ({ columnData }) => pages.push(columnData),
        }),
      );
      const count = pages.reduce((sum, { length }) => sum + length, 0);
      if (count < group.count) {
        throw corrupt(
          this.file.path,
          `column '${name}' has ${count} values in the row group from row ${group.start} on; its description says ${group.count}. The file is damaged`,
        );
      }
      cells.set(name, this.#cells(pages, group, name));
    }
    return cells;
  }

  #cells(pages: readonly ArrayLike<unknown>[], group: RowGroup, name: string) {
    const numbers = new Float64Array(group.count);
    let texts: TableCell[] | null = null;
    let at = 0;
    for (const page of pages) {
      for (let i = 0; i < page.length && at < group.count; i++, at++) {
        const cell = cellOf(page[i]);
        if (cell === null) {
          throw corrupt(
            this.file.path,
            `row ${group.start + at}, column '${name}': a value that is no number, text, boolean or date; name the column in \`ignore\``,
          );
        }
        if (texts === null && typeof cell === 'number') {
          numbers[at] = cell;
          continue;
        }
        // The first text: the cells before it are cells, too.
        texts ??= Array.from(numbers.subarray(0, at));
        texts.push(cell);
      }
    }
    return texts ?? numbers;
  }
}

/** Dates and times as a table of text has them, in UTC. */
const PARSERS = {
  dateFromDays: (days: number) => isoOf(86_400_000 * days)?.slice(0, 10),
  timestampFromMilliseconds: (time: bigint) => isoOf(Number(time)),
  timestampFromMicroseconds: (time: bigint) => isoOf(Number(time / 1000n)),
  timestampFromNanoseconds: (time: bigint) => isoOf(Number(time / 1_000_000n)),
};

function isoOf(ms: number): string | undefined {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? undefined : date.toISOString();
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
      const begins = [meta.data_page_offset, meta.dictionary_page_offset ?? 0n].filter(
        (at) => at > 0,
      );
      const start = begins.reduce((least, at) => Math.min(least, Number(at)), Infinity);
      const end = start + Number(meta.total_compressed_size);
      if (start >= 4 && end <= file.size - 8) continue;
      throw corrupt(
        file.path,
        `column '${meta.path_in_schema.join('.')}' of row group ${i} is said to be at bytes ${start} to ${end} of ${file.size}. The file is truncated or damaged: fetch it again`,
      );
    }
  }
}

/** What the library throws of a file becomes an error with its name. */
async function decoding<T>(name: string, decode: () => Promise<T>): Promise<T> {
  try {
    return await decode();
  } catch (error) {
    if (error instanceof DownpourError) throw error;
    throw corrupt(
      name,
      `it cannot be decoded (${errorText(error)}); is it damaged? Fetch it again`,
      error,
    );
  }
}
