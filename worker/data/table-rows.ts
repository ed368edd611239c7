import { extname } from 'node:path';
import { type CsvError, parse } from 'csv-parse/sync';
import { corrupt } from './files.ts';

/** The rows of a table as text, with the line of the file that each begins in. */

export interface TableOptions {
  /** Default: a tab for files named .tsv, else a comma. */
  readonly delimiter?: string;
}

export interface TableFacts {
  readonly header: readonly string[];
  /** Rows after the header. */
  readonly count: number;
  /** Given, or found. */
  readonly delimiter: string;
}

const LINE_BYTES_MAX = 2 ** 20;

/**
 * Calls `onRow` for every line after the header.
 * @throws DownpourError DP_DATA_CORRUPT for a bad header or a line of another length
 */
export function parseRows(
  bytes: Buffer,
  name: string,
  options: TableOptions,
  onRow: (cells: readonly string[], line: number, header: readonly string[]) => void,
): TableFacts {
  const isTabs = extname(name.replace(/\.gz$/, '')) === '.tsv';
  const delimiter = options.delimiter ?? (isTabs ? '\t' : ',');
  let header: string[] | undefined;
  let count = 0;
  let failure: unknown;
  try {
    parse(bytes, {
      bom: true,
      delimiter,
      skip_empty_lines: true,
      max_record_size: LINE_BYTES_MAX,
      // Returning null keeps the rows out of memory.
      on_record: (cells: string[], { lines }) => {
        try {
          if (header === undefined) {
            header = checkHeader(cells, name);
          } else {
            count++;
            onRow(cells, lines, header);
          }
        } catch (error) {
          failure = error;
          throw error;
        }
        return null;
      },
    });
  } catch (error) {
    if (failure !== undefined) throw failure;
    const { code, lines } = error as CsvError;
    const where = typeof lines === 'number' ? `line ${lines}: ` : '';
    if (code === 'CSV_RECORD_INCONSISTENT_FIELDS_LENGTH') {
      const cells = (error as CsvError).record;
      const seen = Array.isArray(cells) ? cells.length : 'another number of';
      throw corrupt(
        name,
        `${where}${seen} cells; the header has ${header?.length ?? 'others'}`,
        error,
      );
    }
    throw corrupt(name, `${where}${(error as Error).message}`, error);
  }
  if (header === undefined)
    throw corrupt(name, 'it is empty; a header line with names comes first');
  return { header, count, delimiter };
}

function checkHeader(cells: readonly string[], name: string): string[] {
  const header = cells.map((cell) => cell.trim());
  const seen = new Set<string>();
  for (const [i, column] of header.entries()) {
    if (column === '') throw corrupt(name, `line 1: column ${i + 1} has no name`);
    if (seen.has(column)) throw corrupt(name, `line 1: two columns are named '${column}'`);
    seen.add(column);
  }
  return header;
}
