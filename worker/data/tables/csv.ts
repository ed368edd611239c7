import { isRecord } from '../../fields.ts';
import { DATA_PARTS } from '../examples.ts';
import { checkOptions, checkPath, isText, optional } from '../reader-options.ts';
import { CSV_FIELDS, type CsvOptions } from './csv-options.ts';
import { type CsvData, type PartFile, Table } from './table.ts';
import { type TableKind, tableFiles } from './table-files.ts';
import { parseRows, readRows } from './table-rows.ts';

/**
 * Reads tables with a header line as examples. A column is read as numbers unless it is named as categorical: a
 * mistyped cell must not turn a column of numbers into hundreds of categories. All files of one call share one
 * list of classes, and one list of categories for each column.
 */

/** The files of one data set. The files of one part are read one after the other. */
export interface CsvParts {
  readonly train: string | readonly string[];
  readonly validation?: string | readonly string[];
  readonly test?: string | readonly string[];
}

/**
 * Reads a CSV file, gzip or not, as training data: inputs Float64Array [n, features]; targets
 * Float64Array [n, targets] of a regression, Int32Array [n] of a classification.
 *
 *     loadCsv('auto-mpg.csv', { targets: ['mpg'], categorical: ['origin'], ignore: ['name'] })
 *
 * Several files with the same columns are read one after the other as one table: a list, a folder (its .csv and .tsv files,
 * sorted by name), or a pattern for the name of the file:
 *
 *     loadCsv(['2025.csv', '2026.csv'], { targets: ['mpg'] })
 *     loadCsv('measurements/', { targets: ['mpg'] })
 *     loadCsv('measurements/2026-*.csv', { targets: ['mpg'] })
 *
 * If there are files for several parts, columns are found by name. All files share the classes and categories:
 *
 *     loadCsv({ train: 'train.csv', test: 'test.csv' }, { targets: ['kind'], task: 'classification' })
 *
 * @throws DownpourError DP_DATA_MISSING; DP_EXPERIMENT_INVALID for a wrong option and a missing or additional
 * column; DP_DATA_CORRUPT with line and column for a missing value, a cell that is not a number, a line with
 * too few or too many cells, a date that does not exist, and bytes that are not text; DP_DATA_LABEL for a class that is
 * not in `classes`.
 */
export async function loadCsv(
  files: string | readonly string[] | CsvParts,
  options: CsvOptions,
): Promise<CsvData> {
  const parts = await partFiles('loadCsv', files);
  checkOptions('loadCsv', options, CSV_FIELDS);
  const table = new Table(options, parts);
  for (const { part, file } of parts) {
    table.begin(part, file);
    table.end(
      await readRows(file, options, (cells, line, header) => table.row(cells, line, header)),
    );
  }
  return table.data();
}

/** Does the same as `loadCsv` with the bytes of a file. @param name of the file, for errors and for `source` */
export function parseCsv(bytes: Uint8Array, name: string, options: CsvOptions): CsvData {
  checkOptions('loadCsv', options, CSV_FIELDS);
  const table = new Table(options, [{ part: 'train', file: name }]);
  table.begin('train', name);
  table.end(
    parseRows(bytes, name, options, (cells, line, header) => table.row(cells, line, header)),
  );
  return table.data();
}

/**
 * The files of each part, in order: folders and patterns are followed.
 * @param reader its name, for messages @param kind which files of a folder are tables
 */
export async function partFiles(
  reader: string,
  files: string | readonly string[] | CsvParts,
  kind?: TableKind,
): Promise<PartFile[]> {
  const parts: PartFile[] = [];
  for (const { part, file } of partsOf(reader, files)) {
    for (const each of await tableFiles(file, kind)) parts.push({ part, file: each });
  }
  return parts;
}

function partsOf(reader: string, given: string | readonly string[] | CsvParts): PartFile[] {
  if (Array.isArray(given)) return partsOf(reader, { train: given });
  if (!isRecord(given) || given instanceof URL) {
    checkPath(reader, given);
    return [{ part: 'train', file: given }];
  }
  const isFiles = (value: unknown) =>
    isText(value) || (Array.isArray(value) && value.length > 0 && value.every(isText));
  const files = { allowed: 'a path, or a list of paths', test: isFiles };
  checkOptions(reader, given, {
    train: files,
    validation: optional(files),
    test: optional(files),
  });
  return DATA_PARTS.flatMap((part) => {
    const named = given[part] ?? [];
    return [named].flat().map((file) => ({ part, file: file as string }));
  });
}
