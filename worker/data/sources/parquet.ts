import { LIMITS } from '../../../shared/limits.ts';
import { corrupt } from '../files.ts';
import { checkOptions, LOG } from '../reader-options.ts';
import { nameOf, type TableCell } from '../tables/cells.ts';
import { type CsvParts, partFiles } from '../tables/csv.ts';
import { CSV_FIELDS, type CsvOptions } from '../tables/csv-options.ts';
import { type PartFile, Table } from '../tables/table.ts';
import { PARQUET } from '../tables/table-files.ts';
import { ParquetFile } from './parquet-file.ts';
import { type ChosenColumns, KeptColumns, ParquetRows, usedOf } from './parquet-rows.ts';
import { ReadProgress } from './read-progress.ts';
import { type TableFile, type TableSourceData, tableSources } from './table-sources.ts';

/** Tables in Parquet files, of any size: one pass finds out what `loadCsv` does, and rows are decoded when they are needed. */

type TextOption =
  | 'delimiter'
  | 'encoding'
  | 'quote'
  | 'comment'
  | 'decimal'
  | 'thousands'
  | 'bytesMax';

/** As of `csvSource`, without those that say how text is written. */
export interface ParquetSourceOptions extends Omit<CsvOptions, TextOption> {
  /** Receives lines about progress, and what a reader should know about its speed. */
  readonly log?: (line: string) => void;
}

const TEXT_OPTIONS: Readonly<Record<TextOption, true>> = {
  ...{ delimiter: true, encoding: true, quote: true, comment: true, decimal: true },
  ...{ thousands: true, bytesMax: true },
};
const FIELDS = Object.fromEntries(
  Object.entries(CSV_FIELDS).filter(([name]) => !(name in TEXT_OPTIONS)),
) as typeof CSV_FIELDS;

/**
 * A table in one or several Parquet files, with the options of `csvSource` for columns. Numbers, texts, booleans, dates and
 * times are read; a column of lists or structures must be in `ignore`, or not in `inputs`. One pass over the columns that are
 * used finds categories, missing values and rows that are left out.
 *
 *     data: ({ log }) => parquetSource('rides.parquet', { targets: ['fare'], categorical: ['zone'], log })
 *
 * A column of a row group is decoded as a whole. Those that were used last are kept, up to 64 MiB. Minibatches are drawn from
 * all rows, so with more data than that each one decodes several row groups: then use `spooled`, which writes all examples once
 * to a file that is read by position. Rows that are read in their order are decoded once, page by page.
 *
 * @throws DownpourError DP_DATA_MISSING; DP_EXPERIMENT_INVALID for a wrong option and a column that is not there;
 * DP_DATA_CORRUPT for a file of another kind, truncated, damaged, or with row groups that are too large, a missing value and a
 * value that does not suit its column, with column and row (from 0); DP_DATA_LABEL
 */
export async function parquetSource(
  files: string | readonly string[] | CsvParts,
  options: ParquetSourceOptions,
): Promise<TableSourceData> {
  const parts = await partFiles('parquetSource', files, PARQUET);
  checkOptions('parquetSource', options, { ...FIELDS, log: LOG });
  const { log: _, ...own } = options;
  const table = new Table(own, parts, { keeps: false, reader: 'parquetSource' });
  const kept = new KeptColumns();
  const found: TableFile[] = [];
  for (const each of parts) found.push(await surveyed(each, options, table, kept));
  return tableSources(table.schema(), found);
}

/** Shows all rows of a file to the table. */
async function surveyed(
  { part, file: path }: PartFile,
  { log, ...options }: ParquetSourceOptions,
  table: Table,
  kept: KeptColumns,
): Promise<TableFile> {
  const chosen = await chooseFrom(path, options);
  const { parquet, names } = chosen;
  const { count, file } = parquet;
  const header = { names, unnamed: new Set<number>() };
  const progress = new ReadProgress(log, path, 'rows', count);
  table.begin(part, path, 'row');
  // Rows that are examples, once one is left out; null: all are.
  let rows: Int32Array | null = null;
  let examples = 0;
  const cells = new Array<TableCell>(names.length).fill('');
  for await (const block of parquet.scan(usedOf(chosen))) {
    for (let i = 0; i < block.count; i++) {
      const row = block.start + i;
      chosen.places.forEach((place, column) => {
        cells[place] = block.cellOf(column, i);
      });
      const isExample = table.row(cells, row, header);
      if (!isExample) rows ??= Int32Array.from({ length: count }, (_, k) => k);
      else {
        if (rows) rows[examples] = row;
        examples++;
      }
    }
    progress.tell(block.start + block.count);
  }
  table.end({ count, notes: [] });
  const own = rows?.slice(0, examples) ?? null;
  const reader = new ParquetRows(chosen, kept, log);
  return {
    ...{ part, path, version: file.version, columns: names, count: examples },
    cells: (asked, signal) => reader.cells(own ? asked.map((index) => own[index]!) : asked, signal),
  };
}

async function chooseFrom(
  path: string,
  { inputs, ignore = [], targets }: Omit<ParquetSourceOptions, 'log'>,
): Promise<ChosenColumns> {
  const parquet = await ParquetFile.open(path);
  const named = (list: readonly string[]) => new Set(list.map(nameOf));
  const [ignored, listed] = [named(ignore), inputs && named([...inputs, ...targets])];
  const isUsed = (name: string) => (listed ? listed.has(name) : !ignored.has(name));
  const nested = parquet.nested.map(nameOf).find(isUsed);
  if (nested !== undefined) {
    throw corrupt(
      path,
      `column '${nested}' holds lists or structures; only single values are read: name it in \`ignore\`, or write each of its values as a column`,
    );
  }
  const names = [...parquet.names, ...parquet.nested].map(nameOf);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw corrupt(path, `two columns are named '${twice}'; rename one`);
  const places = names.flatMap((name, i) => (isUsed(name) ? [i] : []));
  const chosen: ChosenColumns = { parquet, names, places };
  for (const group of parquet.groups) {
    for (const name of usedOf(chosen)) {
      const bytes = parquet.bytesOf(group, name);
      if (bytes <= LIMITS.columnChunkBytesMax) continue;
      throw corrupt(
        path,
        `column '${name}' of the row group from row ${group.start} on takes ${bytes} bytes; allowed: ${LIMITS.columnChunkBytesMax}, since it is decoded as a whole. Write smaller row groups: df.to_parquet('x.parquet', row_group_size=100_000)`,
      );
    }
  }
  return chosen;
}
