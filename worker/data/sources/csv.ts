import type { NumberKind } from '../columns.ts';
import { DATA_PARTS, type DataPart } from '../examples.ts';
import { corrupt } from '../files.ts';
import { type ByteRange, PositionedFile } from '../positioned-file.ts';
import { checkOptions, optional } from '../reader-options.ts';
import type { ExampleSource, SourceRows } from '../source.ts';
import { type CsvParts, partFiles } from '../tables/csv.ts';
import { CSV_FIELDS, type CsvOptions } from '../tables/csv-options.ts';
import { columnFor } from '../tables/read-inputs.ts';
import { classNumbers, Table, type TableSchema } from '../tables/table.ts';
import { CategoryColumn, featuresOf, NumberColumn, tableOf } from '../tables/table-columns.ts';
import { parseRow, type RowForm, readRowPlaces } from '../tables/table-rows.ts';
import { Offsets } from './offsets.ts';
import { holdOutRows, type SourceData } from './parts.ts';
import { ReadProgress } from './read-progress.ts';

/** Tables of text of any size: one pass finds out what `loadCsv` does and where each row is, and rows are read by position. */

export interface CsvSourceOptions extends CsvOptions {
  /** Receives lines about progress. */
  readonly log?: (line: string) => void;
}

export interface CsvSourceData extends SourceData {
  /** One name for each input; for a category, `column=value`. */
  readonly inputNames: readonly string[];
  readonly targetNames: readonly string[];
  readonly classes: readonly string[] | null;
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
): Promise<CsvSourceData> {
  const parts = await partFiles('csvSource', files);
  checkOptions('csvSource', options, {
    ...CSV_FIELDS,
    log: optional({ allowed: 'a function', test: (value) => typeof value === 'function' }),
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
  return sourcesOf(table.schema(), indexed);
}

function sourcesOf(schema: TableSchema, files: readonly IndexedFile[]): CsvSourceData {
  const { classes, counts, inputs, options, source, targetColumns, targets } = schema;
  const partOf = (part: DataPart): ExampleSource => {
    const own = files.filter((each) => each.part === part);
    return tableSource(schema, own);
  };
  const { train, test: heldOut } = holdOutRows(partOf('train'), options.testFraction);
  const [, validation, test] = DATA_PARTS.map((part) => (counts[part] > 0 ? partOf(part) : null));
  const apart = heldOut ?? test;
  return {
    train,
    ...(validation ? { validation } : {}),
    ...(apart ? { test: apart } : {}),
    ...(classes ? { classCount: classes.length } : {}),
    source,
    inputNames: inputs.map(({ name }) => name),
    targetNames: targets?.map(({ name }) => name) ?? [targetColumns[0]!.name],
    classes,
  };
}

function tableSource(schema: TableSchema, files: readonly IndexedFile[]): ExampleSource {
  const { classes, hasGaps, inputs, reading, targetColumns, targets } = schema;
  const starts: number[] = [];
  let count = 0;
  for (const { offsets } of files) {
    starts.push(count);
    count += offsets.length;
  }
  const type: NumberKind = targets ? 'float64' : 'int32';
  const names = targets?.map(({ name }) => name) ?? [targetColumns[0]!.name];
  return {
    count,
    name: files.map(({ file }) => file.path).join(', '),
    key: JSON.stringify([files.map(({ file }) => [file.path, file.version]), reading, classes]),
    fields: {
      inputs: {
        ...{ shape: [inputs.length], type: 'float64', reading },
        names: inputs.map(({ name }) => name),
        ...(hasGaps ? { missing: 'mean' as const } : {}),
      },
      targets: {
        ...{ shape: targets ? [targets.length] : [], type, names },
        ...(classes ? { classes, classCount: classes.length } : {}),
      },
    },
    async read(indices, { signal }) {
      const rows = new Array<string[]>(indices.length);
      const wanted = files.map((): number[] => []);
      indices.forEach((index, i) => {
        wanted[fileOf(starts, index)]!.push(i);
      });
      for (const [at, own] of wanted.entries()) {
        if (own.length === 0) continue;
        const each = files[at]!;
        const ranges = own.map((i) => rangeOf(each, indices[i]! - starts[at]!));
        await each.file.readAll(
          ranges,
          (bytes, k) => {
            const cells = parseRow(bytes, each.file.path, each.form);
            if (cells === null) {
              throw corrupt(
                each.file.path,
                `byte ${ranges[k]!.start} does not begin the row that was found there; the file has changed: start the worker again`,
              );
            }
            rows[own[k]!] = cells;
          },
          signal,
        );
      }
      return numbersOf(schema, files, rows, (i) => fileOf(starts, indices[i]!));
    },
  };
}

function fileOf(starts: readonly number[], index: number): number {
  let at = starts.length - 1;
  while (at > 0 && starts[at]! > index) at--;
  return at;
}

function rangeOf({ file, offsets }: IndexedFile, row: number): ByteRange {
  const start = offsets.at(row);
  const end = row + 1 < offsets.length ? offsets.at(row + 1) : file.size;
  return { start, length: end - start };
}

/** Cells as numbers, by the columns that read all rows before. */
function numbersOf(
  schema: TableSchema,
  files: readonly IndexedFile[],
  rows: readonly (readonly string[])[],
  fileAt: (i: number) => number,
): SourceRows {
  const { classes, options, reading, targetColumns, targets: features } = schema;
  const inputs = reading.columns.map((column) => columnFor(column, reading));
  const whole = { ...options, hasGaps: false };
  const targets = targetColumns.map(({ name }) =>
    classes
      ? new CategoryColumn(name, whole, 'target', classes)
      : new NumberColumn(name, whole, 'target'),
  );
  const columns = [...inputs, ...targets];
  const places = files.map(({ form }) => {
    const indices = new Map(form.header.names.map((name, i) => [name, i]));
    return columns.map(({ name }) => indices.get(name)!);
  });
  rows.forEach((cells, i) => {
    const file = fileAt(i);
    // No line is known here; the cell has been read before.
    const place = { file: files[file]!.file.path, line: 0 };
    columns.forEach((column, c) => {
      column.add(cells[places[file]![c]!]!, place);
    });
  });
  const wide = inputs.flatMap((column, i) => featuresOf(column, reading.columns[i]!));
  const target = features
    ? tableOf(
        targets.flatMap((column) => featuresOf(column)),
        0,
        rows.length,
      )
    : classNumbers(targets[0] as CategoryColumn, 0, rows.length);
  return { inputs: tableOf(wide, 0, rows.length).values, targets: target.values };
}
