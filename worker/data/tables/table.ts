import { DownpourError } from '../../../shared/errors.ts';
import type { TableReading } from '../../../shared/reading.ts';
import type { Column } from '../columns.ts';
import { DATA_PARTS, type DataPart, type Examples, type ExperimentData } from '../examples.ts';
import { corrupt } from '../files.ts';
import { holdOut } from '../split.ts';
import type { TableCell } from './cells.ts';
import {
  chooseColumns,
  lacks,
  type NamedOptions,
  named,
  type TargetColumn,
} from './csv-columns.ts';
import type { CsvOptions } from './csv-options.ts';
import { readingOf } from './read-inputs.ts';
import {
  CategoryColumn,
  type CellColumn,
  type Feature,
  featuresOf,
  featureTable,
  type InputColumn,
  UnnamedColumn,
} from './table-columns.ts';
import type { TableFacts, TableHeader } from './table-rows.ts';

/** The columns of all files of a table while they are read, and the examples that come of them. */

export interface CsvData extends ExperimentData {
  /** One name for each input; for a category, `column=value`. */
  readonly inputNames: readonly string[];
  readonly targetNames: readonly string[];
  /** The name of class 0, 1, … of a classification; null for a regression. */
  readonly classes: readonly string[] | null;
}

/** The most bytes of the inputs as float64. */
const TABLE_BYTES_MAX = 4 * 2 ** 30;

/** A file and the part that it belongs to. */
export interface PartFile {
  readonly part: DataPart;
  readonly file: string;
}

/** What is known of a table when all of its rows have been seen, whether they were kept or not. */
export interface TableSchema {
  readonly options: NamedOptions;
  readonly inputs: readonly Feature[];
  /** Null where the target is the number of its class. */
  readonly targets: readonly Feature[] | null;
  readonly targetColumns: readonly TargetColumn[];
  readonly classes: readonly string[] | null;
  readonly reading: TableReading;
  /** An input lacks a value in some row: NaN stands there. */
  readonly hasGaps: boolean;
  /** Rows of each part. */
  readonly counts: Readonly<Record<DataPart, number>>;
  /** One line that describes the data. */
  readonly source: string;
}

interface UsedCell {
  readonly column: CellColumn;
  readonly index: number;
}

export class Table {
  readonly #options: NamedOptions;
  readonly #parts: readonly PartFile[];
  #columns: { inputs: InputColumn[]; targets: TargetColumn[] } | undefined;
  /** Which column each cell of the file being read belongs to; undefined before its header. */
  #cells: UsedCell[] | undefined;
  #unnamed: UnnamedColumn[] = [];
  #place: { file: string; line: number; counts: 'line' | 'row' } = {
    ...{ file: '', line: 0, counts: 'line' },
  };
  #part: DataPart = 'train';
  #first: (PartFile & { header: TableHeader }) | undefined;
  readonly #names = new Set<string>();
  readonly #counts: Record<DataPart, number> = { train: 0, validation: 0, test: 0 };
  #count = 0;
  /** Rows left out since a value is missing. */
  readonly #dropped = { input: 0, target: 0 };
  readonly #notes: string[] = [];

  readonly #keeps: boolean;

  /**
   * @param keeps false: rows are forgotten once they have been seen, for tables that are read by position
   * @param reader its name, for messages
   */
  constructor(
    options: CsvOptions,
    parts: readonly PartFile[],
    { keeps = true, reader = 'loadCsv' } = {},
  ) {
    this.#options = named(options);
    this.#parts = parts;
    this.#keeps = keeps;
    const test = parts.find(({ part }) => part === 'test');
    if (test && this.#options.testFraction) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `${reader}: \`testFraction\` is ${this.#options.testFraction}, but ${test.file} is the test part already; leave one of them out`,
      );
    }
  }

  /** @param counts what messages count: `row` where the file has no lines of text */
  begin(part: DataPart, file: string, counts: 'line' | 'row' = 'line'): void {
    this.#part = part;
    this.#place = { file, line: 0, counts };
    this.#cells = undefined;
    this.#unnamed = [];
  }

  /** @returns whether the row is an example: one that lacks a value may be left out. */
  row(cells: readonly TableCell[], line: number, header: TableHeader): boolean {
    this.#cells ??= this.#open(header);
    this.#place.line = line;
    if (this.#isLeftOut(cells)) return false;
    // A category keeps the place where it was first seen.
    const place = { ...this.#place };
    for (const { column, index } of this.#cells) column.add(cells[index]!, place);
    this.#counts[this.#part]++;
    this.#count++;
    if (this.#keeps) this.#mustFit(this.#columns!.inputs.length);
    else if (this.#count % FORGET_ROWS === 0) this.#forget();
    return true;
  }

  #forget(): void {
    for (const column of [...this.#columns!.inputs, ...this.#columns!.targets]) column.forget();
  }

  /** Whether a value is missing that nothing can stand for. */
  #isLeftOut(cells: readonly TableCell[]): boolean {
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

  end({ count, notes }: Pick<TableFacts, 'count' | 'notes'>): void {
    const { file } = this.#place;
    if (count === 0) throw corrupt(file, 'it has no line after the header');
    if (this.#count === 0)
      throw corrupt(file, `a value is missing in each of its ${this.#place.counts}s`);
    const all = [...notes, ...this.#unnamed.map((column) => column.end())];
    this.#notes.push(...all.map((note) => (this.#parts.length > 1 ? `${file}: ${note}` : note)));
  }

  /** Asked for once, when all files have been read. @throws DownpourError as `loadCsv` does */
  schema(): TableSchema {
    const { inputs: inputColumns, targets: targetColumns } = this.#columns!;
    const { ignore = [], labels, task } = this.#options;
    for (const name of ignore) {
      if (!this.#names.has(name)) throw lacks(this.#first!.file, name, [...this.#names]);
    }
    const inputs = inputColumns.flatMap((column) => featuresOf(column));
    if (this.#keeps) this.#mustFit(inputs.length);
    this.#noteGaps(inputColumns);
    const target = targetColumns[0] as CategoryColumn;
    const classes = task === 'classification' ? target.list().names : null;
    for (const column of [...inputColumns, ...targetColumns]) {
      if (column instanceof CategoryColumn) this.#notes.push(...column.notes());
    }
    const byIndex = classes !== null && labels !== 'oneHot';
    return {
      options: this.#options,
      inputs,
      targets: byIndex ? null : targetColumns.flatMap((column) => featuresOf(column)),
      ...{ targetColumns, classes },
      reading: readingOf(this.#options, inputColumns),
      hasGaps: inputColumns.some((column) => column.gaps.count > 0),
      counts: this.#counts,
      source: this.#source(inputs.length),
    };
  }

  data(): CsvData {
    const schema = this.schema();
    const { inputs, targets, targetColumns, classes, reading, hasGaps } = schema;
    let from = 0;
    const examples = (part: DataPart): Examples => {
      const count = this.#counts[part];
      const to = from + count;
      const column = targets
        ? featureTable(targets, from, to)
        : classNumbers(targetColumns[0] as CategoryColumn, from, to);
      const result = {
        count,
        inputs: {
          ...featureTable(inputs, from, to),
          ...(hasGaps ? { missing: 'mean' as const } : {}),
          reading,
        },
        targets: classes ? { ...column, classes } : column,
      };
      from = to;
      return result;
    };
    const data = partsOfTable(schema, examples, holdOut);
    const { inputs: columns, targets: column } = data.train;
    return { ...data, inputNames: columns.names!, targetNames: column.names! };
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

/** Rows that are kept at least until they are forgotten. */
const FORGET_ROWS = 1024;

/** Rows `from` up to `to` of a target as the numbers of its classes. */
export function classNumbers(target: CategoryColumn, from: number, to: number): Column {
  const numberOf = target.numbers();
  const values = Int32Array.from({ length: to - from }, (_, row) => numberOf(from + row));
  return { values, shape: [to - from], names: [target.name] };
}

/**
 * A table's parts, without those that it lacks.
 * @param partOf asked in the order of the parts. @param apart takes the test part out of the training part.
 */
export function partsOfTable<P>(
  { classes, counts, options, source }: TableSchema,
  partOf: (part: DataPart) => P,
  apart: (train: P, share: number | undefined) => { readonly train: P; readonly test: P | null },
) {
  const { train, test: heldOut } = apart(partOf('train'), options.testFraction);
  const validation = counts.validation > 0 ? partOf('validation') : null;
  const test = heldOut ?? (counts.test > 0 ? partOf('test') : null);
  return {
    train,
    ...(validation ? { validation } : {}),
    ...(test ? { test } : {}),
    ...(classes ? { classCount: classes.length } : {}),
    ...{ source, classes },
  };
}
