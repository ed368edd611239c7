import { DownpourError } from '../../shared/errors.ts';
import { isMissing, isNumber, sortNames } from './cells.ts';
import type { Column } from './columns.ts';
import type { ExperimentData } from './examples.ts';
import { corrupt, type ReadOptions, readDataFile } from './files.ts';
import { parseRows, type TableOptions } from './table-rows.ts';

/**
 * Tables with a header line, as examples. Columns are numbers unless they are named as categories: a
 * slip of the pen in one cell must not turn a number into hundreds of categories.
 */

export interface CsvOptions extends ReadOptions, TableOptions {
  /** Names of the target columns: one for a classification, one or more for a regression. */
  readonly targets: readonly string[];
  /** `classification`: the target is a category, as class numbers in sorted order. Default: regression. */
  readonly task?: 'regression' | 'classification';
  /** Default: all columns that are neither targets nor ignored. */
  readonly inputs?: readonly string[];
  readonly ignore?: readonly string[];
  /** Input columns that hold categories: each becomes one 0/1 input a category, in sorted order. */
  readonly categorical?: readonly string[];
  /** Classes as whole numbers (the default) or as one 0/1 column each. */
  readonly labels?: 'index' | 'oneHot';
}

export interface CsvData extends ExperimentData {
  /** One a feature; of a category `column=value`. */
  readonly inputNames: readonly string[];
  readonly targetNames: readonly string[];
  /** Of a classification: the category of each class number. */
  readonly classes: readonly string[] | null;
}

/** More categories than this in a column are rather an identifier or a number. */
const CATEGORIES_MAX = 1000;
const TABLE_BYTES_MAX = 2 * 2 ** 30;
const FLOAT32_MAX = 3.4028234663852886e38;

/**
 * Reads a CSV file, gzip or not, as training data: inputs Float64Array [n, features]; targets
 * Float64Array [n, targets] of a regression, Int32Array [n] of a classification.
 *
 *     loadCsv('auto-mpg.csv', { targets: ['mpg'], categorical: ['origin'], ignore: ['name'] })
 *
 * @throws DownpourError DP_DATA_MISSING; DP_EXPERIMENT_INVALID for a column that the header lacks;
 * DP_DATA_CORRUPT with line and column for a missing value, a cell that is no number, a line with too
 * few or too many cells.
 */
export async function loadCsv(path: string, options: CsvOptions): Promise<CsvData> {
  return parseCsv(await readDataFile(path, options), path, options);
}

/** @param bytes of the whole file, UTF-8. @param name for errors and for `source` */
export function parseCsv(bytes: Buffer, name: string, options: CsvOptions): CsvData {
  const classification = options.task === 'classification';
  let columns: CellColumn[] | undefined;
  const { count: rowCount } = parseRows(bytes, name, options, (cells, line, header) => {
    columns ??= chooseColumns(header, name, options);
    for (const column of columns) column.add(cells[column.index]!, line);
  });
  if (columns === undefined) throw corrupt(name, 'it has no line after the header');

  const inputs = columns.filter((column) => column.role === 'input').flatMap(expand);
  const targetColumns = columns.filter((column) => column.role === 'target');
  const classes = classification ? sortedCategories(targetColumns[0]!) : null;
  if (rowCount * inputs.length * 8 > TABLE_BYTES_MAX) {
    throw corrupt(
      name,
      `${rowCount} lines with ${inputs.length} inputs each are more than ${TABLE_BYTES_MAX} bytes; use fewer inputs or categories`,
    );
  }
  const oneHot = classification && options.labels === 'oneHot';
  const targets =
    classification && !oneHot
      ? classNumbers(targetColumns[0]!)
      : table(targetColumns.flatMap(expand));
  const named = classes ? { ...targets, classes } : targets;
  return {
    train: { count: rowCount, inputs: table(inputs), targets: named },
    ...(classes ? { classCount: classes.length } : {}),
    source: `${rowCount} examples with ${inputs.length} inputs from ${name}`,
    inputNames: inputs.map((input) => input.name),
    targetNames: targetColumns.map((column) => column.name),
    classes,
  };
}

/** A column while its cells come in. */
interface CellColumn {
  readonly name: string;
  readonly index: number;
  readonly role: 'input' | 'target';
  /** Category → code in the order of appearance; null for numbers. */
  readonly codes: Map<string, number> | null;
  readonly cells: number[];
  add(cell: string, line: number): void;
}

function chooseColumns(header: readonly string[], name: string, options: CsvOptions): CellColumn[] {
  const { targets, ignore = [], categorical = [], task, labels } = options;
  const inputs =
    options.inputs ?? header.filter((h) => !targets.includes(h) && !ignore.includes(h));
  for (const column of [...targets, ...inputs, ...ignore, ...categorical]) {
    if (header.includes(column)) continue;
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `${name} has no column '${column}'; it has ${header.map((h) => `'${h}'`).join(', ')}`,
    );
  }
  const invalid = (what: string) => new DownpourError('DP_EXPERIMENT_INVALID', `${name}: ${what}`);
  if (task === 'classification' ? targets.length !== 1 : targets.length === 0) {
    throw invalid(
      `${targets.length} target columns; a classification has 1, a regression at least 1`,
    );
  }
  if (labels === 'oneHot' && task !== 'classification') {
    throw invalid(`labels 'oneHot' belongs to task 'classification'`);
  }
  if (inputs.length === 0) throw invalid('no column is left for inputs');
  const both = inputs.find((column) => targets.includes(column));
  if (both !== undefined) throw invalid(`column '${both}' is both input and target`);
  const isCategory = (column: string, role: string) =>
    role === 'target' ? task === 'classification' : categorical.includes(column);
  const make = (role: 'input' | 'target') => (column: string) =>
    isCategory(column, role)
      ? categoryColumn(column, header.indexOf(column), role, name)
      : numberColumn(column, header.indexOf(column), role, name);
  return [...inputs.map(make('input')), ...targets.map(make('target'))];
}

function numberColumn(
  name: string,
  index: number,
  role: 'input' | 'target',
  file: string,
): CellColumn {
  const cells: number[] = [];
  const add = (cell: string, line: number) => {
    const text = cell.trim();
    const value = Number(text);
    if (isNumber(text) && Math.abs(value) <= FLOAT32_MAX) {
      cells.push(value);
      return;
    }
    const where = `line ${line}, column '${name}'`;
    if (isMissing(text)) throw missing(file, where, text);
    throw corrupt(
      file,
      `${where}: '${text.slice(0, 40)}' is no number; correct it, or name the column in \`categorical\` or \`ignore\``,
    );
  };
  return { name, index, role, codes: null, cells, add };
}

function categoryColumn(
  name: string,
  index: number,
  role: 'input' | 'target',
  file: string,
): CellColumn {
  const codes = new Map<string, number>();
  const cells: number[] = [];
  const add = (cell: string, line: number) => {
    const text = cell.trim();
    if (isMissing(text)) throw missing(file, `line ${line}, column '${name}'`, text);
    let code = codes.get(text);
    if (code === undefined) {
      if (codes.size === CATEGORIES_MAX) {
        throw corrupt(
          file,
          `column '${name}' has more than ${CATEGORIES_MAX} categories by line ${line}; is it a number, or an identifier to \`ignore\`?`,
        );
      }
      code = codes.size;
      codes.set(text, code);
    }
    cells.push(code);
  };
  return { name, index, role, codes, cells, add };
}

function missing(file: string, where: string, text: string): DownpourError {
  return corrupt(
    file,
    `${where}: the value is missing ('${text}'); fill it in, remove the line, or name the column in \`ignore\``,
  );
}

function sortedCategories(column: CellColumn): string[] {
  return sortNames([...column.codes!.keys()]);
}

/** A feature: its name and its value in a row. */
interface Feature {
  readonly name: string;
  readonly count: number;
  at(row: number): number;
}

function expand(column: CellColumn): Feature[] {
  const { name, cells, codes } = column;
  const count = cells.length;
  if (codes === null) return [{ name, count, at: (row) => cells[row]! }];
  return sortedCategories(column).map((category) => {
    const code = codes.get(category)!;
    return { name: `${name}=${category}`, count, at: (row) => (cells[row] === code ? 1 : 0) };
  });
}

function table(features: readonly Feature[]): Column {
  const rows = features[0]!.count;
  const width = features.length;
  const values = new Float64Array(rows * width);
  features.forEach((feature, f) => {
    for (let row = 0; row < rows; row++) values[row * width + f] = feature.at(row);
  });
  return { values, shape: [rows, width], names: features.map(({ name }) => name) };
}

function classNumbers(column: CellColumn): Column {
  const order = sortedCategories(column);
  const numbers = new Int32Array(order.length);
  order.forEach((category, i) => {
    numbers[column.codes!.get(category)!] = i;
  });
  const values = Int32Array.from(column.cells, (code) => numbers[code]!);
  return { values, shape: [values.length], names: [column.name] };
}
