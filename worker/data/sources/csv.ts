import type { DataPart } from '../examples.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import { checkOptions, LOG } from '../reader-options.ts';
import { type CsvParts, partFiles } from '../tables/csv.ts';
import { CSV_FIELDS, type CsvOptions } from '../tables/csv-options.ts';
import { Table } from '../tables/table.ts';
import { parseRow, type RowForm, readRowPlaces } from '../tables/table-rows.ts';
import { Offsets } from './offsets.ts';
import { ReadProgress } from './read-progress.ts';
import { type TableFile, type TableSourceData, tableSources } from './table-sources.ts';

/** Tables of text of any size: one pass finds out what `loadCsv` does and where each row is, and rows are read by position. */

export interface CsvSourceOptions extends CsvOptions {
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

interface IndexedFile {
  readonly part: DataPart;
  readonly file: PositionedFile;
  readonly form: RowForm;
  readonly offsets: Offsets;
}

/**
 * The same as `loadCsv`, with the same files, options and numbers, for tables that are larger than memory. All files are
 * read once, which takes as long as `loadCsv` does; then 4.2 bytes are kept for each row, and rows are read when they are needed.
 *
 *     data: ({ log }) => csvSource('clicks.csv', { targets: ['clicked'], log })
 *
 * @throws DownpourError as `loadCsv` does; DP_DATA_CORRUPT also for a compressed file, for an encoding whose rows have no
 * positions, and, when examples are read, for a file that has changed.
 */
export async function csvSource(
  files: string | readonly string[] | CsvParts,
  options: CsvSourceOptions,
): Promise<TableSourceData> {
  const parts = await partFiles('csvSource', files);
  checkOptions('csvSource', options, {
    ...CSV_FIELDS,
    log: LOG,
  });
  const { log, ...own } = options;
  const table = new Table(own, parts, { keeps: false, reader: 'csvSource' });
  const indexed: IndexedFile[] = [];
  for (const { part, file: path } of parts) {
    const file = await PositionedFile.open(path);
    const progress = new ReadProgress(log, path, 'bytes', file.size);
    const offsets = new Offsets();
    table.begin(part, path);
    const { form, ...facts } = await readRowPlaces(path, own, (cells, line, header, at) => {
      if (!table.row(cells, line, header)) return;
      progress.tell(at);
      if (!offsets.push(at)) {
        throw corrupt(path, `line ${line} is 4 GiB or more behind rows near it; is it a table?`);
      }
    });
    table.end(facts);
    offsets.trim();
    // Written to while it was read: rows are not where they were found.
    await file.head(1);
    indexed.push({ part, file, form, offsets });
  }
  return tableSources(table.schema(), indexed.map(fileOf));
}

function fileOf({ part, file, form, offsets }: IndexedFile): TableFile {
  const { path, size, version } = file;
  const count = offsets.length;
  const rangeOf = (row: number) => {
    const start = offsets.at(row);
    return { start, length: (row + 1 < count ? offsets.at(row + 1) : size) - start };
  };
  return {
    ...{ part, path, version, count },
    columns: form.header.names,
    async cells(rows, signal) {
      const ranges = rows.map(rangeOf);
      const found = new Array<readonly string[]>(rows.length);
      const take = (bytes: Buffer, i: number) => {
        const cells = parseRow(bytes, path, form);
        if (cells === null) {
          throw corrupt(
            path,
            `byte ${ranges[i]!.start} does not begin the row that was found there; the file has changed: start the worker again`,
          );
        }
        found[i] = cells;
      };
      await file.readAll(ranges, take, signal);
      return found;
    },
  };
}
