import { DownpourError } from '../../../shared/errors.ts';
import { isRecord } from '../../fields.ts';
import type { Column } from '../columns.ts';
import { DATA_PARTS, type DataPart, type Examples, type ExperimentData } from '../examples.ts';
import { corrupt } from '../files.ts';
import { checkOptions, checkPath, isText, optional } from '../reader-options.ts';
import { holdOut } from '../split.ts';
import {
  chooseColumns,
  lacks,
  type NamedOptions,
  named,
  type TargetColumn,
} from './csv-columns.ts';
import { CSV_FIELDS, type CsvOptions } from './csv-options.ts';
import { readingOf } from './read-inputs.ts';
import {
  CategoryColumn,
  type CellColumn,
  featuresOf,
  type InputColumn,
  tableOf,
  UnnamedColumn,
} from './table-columns.ts';
import { tableFiles } from './table-files.ts';
import { parseRows, readRows, type TableFacts, type TableHeader } from './table-rows.ts';

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

export interface CsvData extends ExperimentData {
  /** One name for each input; for a category, `column=value`. */
  readonly inputNames: readonly string[];
  readonly targetNames: readonly string[];
  /** The name of class 0, 1, … of a classification; null for a regression. */
  readonly classes: readonly string[] | null;
}

/** The most bytes of the inputs as float64. */
const TABLE_BYTES_MAX = 4 * 2 ** 30;

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
  const parts: PartFile[] = [];
  for (const { part, file } of partsOf(files)) {
    for (const each of await tableFiles(file)) parts.push({ part, file: each });
  }
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

interface PartFile {
  readonly part: DataPart;
  readonly file: string;
}

function partsOf(given: string | readonly string[] | CsvParts): PartFile[] {
  if (Array.isArray(given)) return partsOf({ train: given });
  if (!isRecord(given) || given instanceof URL) {
    checkPath('loadCsv', given);
    return [{ part: 'train', file: given }];
  }
  const isFiles = (value: unknown) =>
    isText(value) || (Array.isArray(value) && value.length > 0 && value.every(isText));
  const files = { allowed: 'a path, or a list of paths', test: isFiles };
  checkOptions('loadCsv', given, {
    train: files,
    validation: optional(files),
    test: optional(files),
  });
  return DATA_PARTS.flatMap((part) => {
    const named = given[part] ?? [];
    return [named].flat().map((file) => ({ part, file: file as string }));
  });
}

interface UsedCell {
  readonly column: CellColumn;
  readonly index: number;
}

/** The columns of all files while they are read. */
class Table {
  readonly #options: NamedOptions;
  readonly #parts: readonly PartFile[];
  #columns: { inputs: InputColumn[]; targets: TargetColumn[] } | undefined;
  /** Which column each cell of the file being read belongs to; undefined before its header. */
  #cells: UsedCell[] | undefined;
  #unnamed: UnnamedColumn[] = [];
  #place: { file: string; line: number } = { file: '', line: 0 };
  #part: DataPart = 'train';
  #first: (PartFile & { header: TableHeader }) | undefined;
  readonly #names = new Set<string>();
  readonly #counts: Record<DataPart, number> = { train: 0, validation: 0, test: 0 };
  #count = 0;
  /** Rows left out since a value is missing. */
  readonly #dropped = { input: 0, target: 0 };
  readonly #notes: string[] = [];

  constructor(options: CsvOptions, parts: readonly PartFile[]) {
    this.#options = named(options);
    this.#parts = parts;
    const test = parts.find(({ part }) => part === 'test');
    if (test && this.#options.testFraction) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `loadCsv: \`testFraction\` is ${this.#options.testFraction}, but ${test.file} is the test part already; leave one of them out`,
      );
    }
  }

  begin(part: DataPart, file: string): void {
    this.#part = part;
    this.#place = { file, line: 0 };
    this.#cells = undefined;
    this.#unnamed = [];
  }

  row(cells: readonly string[], line: number, header: TableHeader): void {
    this.#cells ??= this.#open(header);
    this.#place.line = line;
    if (this.#isLeftOut(cells)) return;
    // A category keeps the place where it was first seen.
    const place = { ...this.#place };
    for (const { column, index } of this.#cells) column.add(cells[index]!, place);
    this.#counts[this.#part]++;
    this.#count++;
    this.#mustFit(this.#columns!.inputs.length);
  }

  /** Whether a value is missing that nothing can stand for. */
  #isLeftOut(cells: readonly string[]): boolean {
    const { gaps } = this.#options;
    if (gaps === 'refuse') return false;
    const isMissing = ({ column, index }: UsedCell) => column.lacks(cells[index]!);
    const { targets } = this.#columns!;
    const isTarget = ({ column }: UsedCell) => targets.includes(column as TargetColumn);
    const role = this.#cells!.some((used) => isTarget(used) && isMissing(used))
      ? 'target'
      : gaps === 'drop' && this.#cells!.some(isMissing)
        ? 'input'
        : null;
    if (role === null) return false;
    this.#dropped[role]++;
    return true;
  }

  end({ count, notes }: TableFacts): void {
    const { file } = this.#place;
    if (count === 0) throw corrupt(file, 'it has no line after the header');
    if (this.#count === 0) throw corrupt(file, 'a value is missing in each of its lines');
    const all = [...notes, ...this.#unnamed.map((column) => column.end())];
    this.#notes.push(...all.map((note) => (this.#parts.length > 1 ? `${file}: ${note}` : note)));
  }

  data(): CsvData {
    const { inputs: inputColumns, targets: targetColumns } = this.#columns!;
    const { ignore = [], labels, task } = this.#options;
    for (const name of ignore) {
      if (!this.#names.has(name)) throw lacks(this.#first!.file, name, [...this.#names]);
    }
    const inputs = inputColumns.flatMap((column) => featuresOf(column));
    this.#mustFit(inputs.length);
    this.#noteGaps(inputColumns);
    const target = targetColumns[0] as CategoryColumn;
    const classes = task === 'classification' ? target.list().names : null;
    for (const column of [...inputColumns, ...targetColumns]) {
      if (column instanceof CategoryColumn) this.#notes.push(...column.notes());
    }
    const hasGaps = inputColumns.some((column) => column.gaps.count > 0);
    const reading = readingOf(this.#options, inputColumns);
    const byIndex = classes !== null && labels !== 'oneHot';
    const targets = byIndex ? null : targetColumns.flatMap((column) => featuresOf(column));
    const numberOf = byIndex ? target.numbers() : null;
    let from = 0;
    const examples = (part: DataPart): Examples => {
      const count = this.#counts[part];
      const to = from + count;
      const column: Column = targets
        ? tableOf(targets, from, to)
        : {
            values: Int32Array.from({ length: count }, (_, row) => numberOf!(from + row)),
            shape: [count],
            names: [target.name],
          };
      const result = {
        count,
        inputs: {
          ...tableOf(inputs, from, to),
          ...(hasGaps ? { missing: 'mean' as const } : {}),
          reading,
        },
        targets: classes ? { ...column, classes } : column,
      };
      from = to;
      return result;
    };
    const { train, test: heldOut } = holdOut(examples('train'), this.#options.testFraction);
    const validation = this.#counts.validation > 0 ? examples('validation') : null;
    const test = heldOut ?? (this.#counts.test > 0 ? examples('test') : null);
    return {
      train,
      ...(validation ? { validation } : {}),
      ...(test ? { test } : {}),
      ...(classes ? { classCount: classes.length } : {}),
      source: this.#source(inputs.length),
      inputNames: train.inputs.names!,
      targetNames: train.targets.names!,
      classes,
    };
  }

  #noteGaps(inputs: readonly InputColumn[]): void {
    const { input, target } = this.#dropped;
    const rows = (count: number) => (count === 1 ? '1 row is' : `${count} rows are`);
    if (target > 0) this.#notes.push(`${rows(target)} left out: the target is missing`);
    if (input > 0) this.#notes.push(`${rows(input)} left out: an input is missing`);
    for (const { name, gaps } of inputs) {
      if (gaps.count === this.#count) {
        throw new DownpourError(
          'DP_EXPERIMENT_INVALID',
          `column '${name}' has no value in any row; name it in \`ignore\``,
        );
      }
      if (gaps.count === 0) continue;
      const values = gaps.count === 1 ? '1 value' : `${gaps.count} values`;
      this.#notes.push(`column '${name}' lacks ${values}: its mean replaces them`);
    }
  }

  #source(inputCount: number): string {
    const one = this.#parts.every(({ part }) => part === 'train');
    const counts = DATA_PARTS.filter((part) => this.#counts[part] > 0)
      .map((part) => (one ? this.#counts[part] : `${this.#counts[part]} ${part}`))
      .join(', ');
    const files = this.#parts.map(({ file }) => file).join(', ');
    const inputs = inputCount === 1 ? '1 input' : `${inputCount} inputs`;
    const examples = this.#count === 1 ? 'example' : 'examples';
    const what = `${counts} ${examples} with ${inputs} from ${files}`;
    return [what, ...this.#notes].join('; ');
  }

  #mustFit(inputCount: number): void {
    if (this.#count * inputCount * 8 <= TABLE_BYTES_MAX) return;
    throw corrupt(
      this.#place.file,
      `${this.#count} lines with ${inputCount} inputs each are more than ${TABLE_BYTES_MAX} bytes; use fewer inputs or categories`,
    );
  }

  /** Finds the columns of a file by name. */
  #open(header: TableHeader) {
    const { file } = this.#place;
    for (const name of header.names) this.#names.add(name);
    this.#columns ??= chooseColumns(header, file, this.#options, this.#parts.length === 1);
    const { inputs, targets } = this.#columns;
    const columns = [...inputs, ...targets];
    const first = this.#first;
    this.#first ??= { part: this.#part, file, header };
    const indices = new Map(header.names.map((name, i) => [name, i]));
    const used: UsedCell[] = columns.map((column) => {
      const index = indices.get(column.name);
      if (index !== undefined) return { column, index };
      throw lacks(file, column.name, header.names, ` as ${first!.file} has`);
    });
    const known = new Set([...(this.#options.ignore ?? []), ...columns.map(({ name }) => name)]);
    for (const [name, index] of indices) {
      if (known.has(name)) continue;
      if (header.unnamed.has(index)) {
        const column = new UnnamedColumn(name);
        this.#unnamed.push(column);
        used.push({ column, index });
      } else if (first && this.#options.inputs === undefined) {
        throw new DownpourError(
          'DP_EXPERIMENT_INVALID',
          `${file} has a column '${name}', which ${first.file} does not have; name it in \`ignore\`, or list the input columns in \`inputs\``,
        );
      }
    }
    return used;
  }
}
