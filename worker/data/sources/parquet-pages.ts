import type { ColumnMetaData, PageHeader, SchemaTree } from 'hyparquet';
import { parquetHeader, readPage } from 'hyparquet/src/column.js';
import { convert, DEFAULT_PARSERS } from 'hyparquet/src/convert.js';
import { compressors } from 'hyparquet-compressors';
import { errorText } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { ByteWindow } from '../byte-window.ts';
import { corrupt } from '../files.ts';
import type { PositionedFile } from '../positioned-file.ts';

/** A column of a row group, page by page, so that no more than a page of it is decoded at a time. */

export interface ColumnPage {
  /** Its first row, from the beginning of the row group. */
  readonly start: number;
  readonly count: number;
  /** Null: it was passed over. */
  readonly values: ArrayLike<unknown> | null;
}

/** Where the values of a column of a row group are, and how they are written. */
export interface ColumnChunk {
  readonly name: string;
  readonly metadata: ColumnMetaData;
  /** The root of the schema, and the column. */
  readonly schemaPath: SchemaTree[];
  /** Rows of the row group. */
  readonly count: number;
}

/** Headers with the smallest and the largest text of a page are longer than most. */
const HEADER_BYTES = [2 ** 12, 2 ** 20] as const;

/**
 * The pages in their order. @param from pages that end before this row are passed over
 * @throws DownpourError DP_DATA_CORRUPT, with the file and the column.
 */
export async function* columnPages(
  file: PositionedFile,
  { name, metadata, schemaPath, count }: ColumnChunk,
  from: number,
): AsyncGenerator<ColumnPage, void> {
  const where = `${file.path}: column '${name}'`;
  const decoder: Parameters<typeof readPage>[2] = {
    ...metadata,
    ...{ pathInSchema: metadata.path_in_schema, element: schemaPath.at(-1)!.element, schemaPath },
    ...{ compressors, parsers: { ...DEFAULT_PARSERS, ...PARSERS } },
  };
  const bytes = new ByteWindow(file);
  const { start, end } = bytesOfChunk(metadata);
  let dictionary: ReturnType<typeof convert> | undefined;
  let row = 0;
  for (let at = start; row < count && at < end; ) {
    const { header, length } = await headerAt(bytes, at, end, where);
    const { compressed_page_size: size, uncompressed_page_size: decoded } = header;
    at += length;
    if (!(size >= 0 && at + size <= end && decoded <= LIMITS.columnChunkBytesMax)) {
      throw corrupt(
        where,
        `a page at byte ${at} is said to have ${size} bytes, ${decoded} decompressed; the column ends at byte ${end}. The file is damaged`,
      );
    }
    const page = await bytes.at(at, size);
    at += size;
    const reader = { view: new DataView(page.buffer, page.byteOffset, page.length), offset: 0 };
    const read = decoding(where, () =>
      readPage(reader, header, decoder, dictionary, undefined, from - row),
    );
    if (header.type === 'DICTIONARY_PAGE') {
      dictionary = decoding(where, () => convert(read.data!, decoder));
      continue;
    }
    const rows = read.skipped || read.data?.length || 0;
    if (rows > 0) yield { start: row, count: rows, values: read.skipped ? null : read.data! };
    row += rows;
  }
  if (row >= count) return;
  throw corrupt(
    where,
    `it has ${row} values in a row group; its description says ${count}. The file is damaged`,
  );
}

/** Where a column chunk lies; a dictionary is before the pages. */
export function bytesOfChunk(metadata: ColumnMetaData): { start: number; end: number } {
  const begins = [metadata.data_page_offset, metadata.dictionary_page_offset ?? 0n];
  const start = Math.min(...begins.filter((at) => at > 0).map(Number));
  return { start, end: start + Number(metadata.total_compressed_size) };
}

async function headerAt(
  bytes: ByteWindow,
  at: number,
  end: number,
  where: string,
): Promise<{ header: PageHeader; length: number }> {
  for (const most of HEADER_BYTES) {
    const length = Math.min(most, end - at);
    const own = await bytes.at(at, length);
    const reader = { view: new DataView(own.buffer, own.byteOffset, own.length), offset: 0 };
    try {
      const header = parquetHeader(reader);
      if (reader.offset <= length) return { header, length: reader.offset };
    } catch (error) {
      if (length === end - at || most === HEADER_BYTES.at(-1)) throw undecoded(where, error);
    }
  }
  throw undecoded(where, new Error('a page without a header'));
}

/** What the library throws of a file becomes an error with its name. */
function decoding<T>(where: string, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    throw undecoded(where, error);
  }
}

export const undecoded = (where: string, error: unknown) =>
  corrupt(
    where,
    `it cannot be decoded (${errorText(error)}); is it damaged? Fetch it again`,
    error,
  );

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
