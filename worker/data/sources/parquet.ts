import { LIMITS } from '../../../shared/limits.ts';
import { corrupt } from '../files.ts';
import { checkOptions, LOG } from '../reader-options.ts';
import { nameOf, type TableCell } from '../tables/cells.ts';
import { type CsvParts, partFiles } from '../tables/csv.ts';
import { CSV_FIELDS, type CsvOptions } from '../tables/csv-options.ts';
import { type PartFile, Table } from '../tables/table.ts';
import { PARQUET } from '../tables/table-files.ts';
import { Kept } from './kept.ts';
import { lastNotAbove } from './offsets.ts';
import { type GroupCells, ParquetFile, type RowGroup } from './parquet-file.ts';
import { ReadProgress } from './read-progress.ts';
import { type TableFile, type TableSourceData, tableSources } from './table-sources.ts';

/** Tables in Parquet files, decoded by row groups: what is in one of them is read together. */

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

/** Reads after which it is clear whether row groups are decoded again and again. */
const READS_TOLD = 20;

/**
 * A table in one or several Parquet files, with the options of `csvSource` for columns. Numbers, texts, booleans, dates and
 * times are read; a column of lists or structures must be in `ignore`, or not in `inputs`. One pass over the columns that are
 * used finds categories, missing values and rows that are left out.
 *
 *     data: ({ log }) => parquetSource('rides.parquet', { targets: ['fare'], categorical: ['zone'], log })
 *
 * A row group is decoded as a whole. Those that were used last are kept, up to 64 MiB. Minibatches are drawn from all rows,
 * so with more data than that each one decodes several row groups: then use `spooled`, which writes all examples once to a
 * file that is read by position.
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
  const { log, ...own } = options;
  const table = new Table(own, parts, { keeps: false, reader: 'parquetSource' });
  const kept = new Kept<string, GroupCells>(LIMITS.sourceCacheBytes);
  const found: TableFile[] = [];
  for (const each of parts) found.push(await surveyed(each, own, table, kept, log));
  return tableSources(table.schema(), found);
}

/** A file, and the columns of it that are used. */
interface ChosenColumns {
  readonly parquet: ParquetFile;
  /** All, as options name them. */
  readonly names: readonly string[];
  /** For each of them its name in the file; null: it is not decoded. */
  readonly decoded: readonly (string | null)[];
}

/** Shows all rows of a file to the table. */
async function surveyed(
  { part, file: path }: PartFile,
  options: Omit<ParquetSourceOptions, 'log'>,
  table: Table,
  kept: Kept<string, GroupCells>,
  log: ParquetSourceOptions['log'],
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
  for (const group of parquet.groups) {
    const cellsAt = reader(chosen, await decode(chosen, group));
    for (let i = 0; i < group.count; i++) {
      const row = group.start + i;
      const isExample = table.row(cellsAt(i), row, header);
      if (!isExample) rows ??= Int32Array.from({ length: count }, (_, k) => k);
      else {
        if (rows) rows[examples] = row;
        examples++;
      }
    }
    progress.tell(group.start + group.count);
  }
  table.end({ count, notes: [] });
  const own = rows?.slice(0, examples) ?? null;
  const starts = parquet.groups.map(({ start }) => start);
  let reads = 0;
  const misses = kept.misses;
  return {
    ...{ part, path, version: file.version, columns: names, count: examples },
    async cells(asked, signal) {
      const found = new Array<readonly TableCell[]>(asked.length);
      const byGroup = new Map<RowGroup, number[]>();
      asked.forEach((index, i) => {
        const group = parquet.groups[lastNotAbove(starts, own ? own[index]! : index)]!;
        const others = byGroup.get(group);
        if (others) others.push(i);
        else byGroup.set(group, [i]);
      });
      for (const [group, wanted] of byGroup) {
        signal.throwIfAborted();
        const key = `${path}: ${group.start}`;
        // Another read may wait for the same row group, so no signal ends the decoding of one.
        const cells = await kept.get(key, bytesOf(chosen, group), () => decode(chosen, group));
        const cellsAt = reader(chosen, cells);
        for (const i of wanted) {
          const row = own ? own[asked[i]!]! : asked[i]!;
          found[i] = [...cellsAt(row - group.start)];
        }
      }
      if (++reads === READS_TOLD && kept.misses - misses > 2 * READS_TOLD) {
        log?.(
          `${path}: ${kept.misses - misses} row groups were decoded for ${reads} minibatches, since each has examples of many of them. To decode each once, write the examples to a file: spooled(source, { folder, name })`,
        );
      }
      return found;
    },
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
  const decoded = names.map((name, i) => (isUsed(name) ? parquet.names[i]! : null));
  const chosen = { parquet, names, decoded };
  for (const group of parquet.groups) {
    const bytes = bytesOf(chosen, group);
    if (bytes <= LIMITS.rowGroupBytesMax) continue;
    throw corrupt(
      path,
      `the row group from row ${group.start} on takes ${bytes} bytes; allowed: ${LIMITS.rowGroupBytesMax}, since it is decoded as a whole. Write smaller ones: df.to_parquet('x.parquet', row_group_size=100_000), or use fewer columns`,
    );
  }
  return chosen;
}

const usedOf = ({ decoded }: ChosenColumns) => decoded.filter((name) => name !== null);
const bytesOf = (chosen: ChosenColumns, group: RowGroup) =>
  chosen.parquet.bytesOf(group, usedOf(chosen));
const decode = (chosen: ChosenColumns, group: RowGroup) =>
  chosen.parquet.decode(group, usedOf(chosen));

/** The cells of a row of a group, in an array that the next row overwrites. */
function reader({ names, decoded }: ChosenColumns, cells: GroupCells) {
  const lists = decoded.map((name) => (name === null ? null : cells.get(name)!));
  const row = new Array<TableCell>(names.length).fill('');
  return (i: number): readonly TableCell[] => {
    for (let c = 0; c < lists.length; c++) {
      const list = lists[c];
      if (list) row[c] = list[i]!;
    }
    return row;
  };
}
