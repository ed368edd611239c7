import type { NumberKind } from '../columns.ts';
import type { DataPart } from '../examples.ts';
import type { ExampleSource, SourceRows } from '../source.ts';
import type { TableCell } from '../tables/cells.ts';
import { columnFor } from '../tables/read-inputs.ts';
import { classNumbers, partsOfTable, type TableSchema } from '../tables/table.ts';
import { CategoryColumn, featuresOf, featureTable, NumberColumn } from '../tables/table-columns.ts';
import { lastNotAbove } from './offsets.ts';
import { holdOutRows, type SourceData } from './parts.ts';

/** Sources of tables whose rows are read when they are needed: cells become numbers by what one pass has found. */

export interface TableSourceData extends SourceData {
  /** One name for each input; for a category, `column=value`. */
  readonly inputNames: readonly string[];
  readonly targetNames: readonly string[];
  /** The name of class 0, 1, … of a classification; null for a regression. */
  readonly classes: readonly string[] | null;
}

/** A file of a table. */
export interface TableFile {
  readonly part: DataPart;
  readonly path: string;
  /** Differs where the file has been changed. */
  readonly version: string;
  /** Rows that are examples. */
  readonly count: number;
  /** Names of the cells of a row, in order. */
  readonly columns: readonly string[];
  /** @param rows each below `count`, in any order */
  cells(rows: readonly number[], signal: AbortSignal): Promise<readonly (readonly TableCell[])[]>;
}

/** @param files at least one of the training part; of each part in their order */
export function tableSources(schema: TableSchema, files: readonly TableFile[]): TableSourceData {
  const { inputs, targetColumns, targets } = schema;
  const partOf = (part: DataPart): ExampleSource =>
    partSource(
      schema,
      files.filter((file) => file.part === part),
    );
  return {
    ...partsOfTable(schema, partOf, holdOutRows),
    inputNames: inputs.map(({ name }) => name),
    targetNames: targets?.map(({ name }) => name) ?? [targetColumns[0]!.name],
  };
}

function partSource(schema: TableSchema, files: readonly TableFile[]): ExampleSource {
  const { classes, hasGaps, inputs, reading, targetColumns, targets } = schema;
  const starts: number[] = [];
  let count = 0;
  for (const file of files) {
    starts.push(count);
    count += file.count;
  }
  const fileOf = (index: number): number => lastNotAbove(starts, index);
  const type: NumberKind = targets ? 'float64' : 'int32';
  const names = targets?.map(({ name }) => name) ?? [targetColumns[0]!.name];
  return {
    count,
    name: files.map(({ path }) => path).join(', '),
    key: JSON.stringify([files.map(({ path, version }) => [path, version]), reading, classes]),
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
      const rows = new Array<readonly TableCell[]>(indices.length);
      const wanted = files.map((): number[] => []);
      indices.forEach((index, i) => {
        wanted[fileOf(index)]!.push(i);
      });
      for (const [at, own] of wanted.entries()) {
        if (own.length === 0) continue;
        const asked = own.map((i) => indices[i]! - starts[at]!);
        const cells = await files[at]!.cells(asked, signal);
        own.forEach((i, k) => {
          rows[i] = cells[k]!;
        });
      }
      return numbersOf(schema, files, rows, (i) => fileOf(indices[i]!));
    },
  };
}

/** Cells as numbers, by the columns that have read all rows before. */
function numbersOf(
  schema: TableSchema,
  files: readonly TableFile[],
  rows: readonly (readonly TableCell[])[],
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
  const places = files.map((file) => {
    const indices = new Map(file.columns.map((name, i) => [name, i]));
    return columns.map(({ name }) => indices.get(name)!);
  });
  rows.forEach((cells, i) => {
    const file = fileAt(i);
    // No line is known here, but these cells have been read before.
    const place = { file: files[file]!.path, line: 0 };
    columns.forEach((column, c) => {
      column.add(cells[places[file]![c]!]!, place);
    });
  });
  const wide = inputs.flatMap((column, i) => featuresOf(column, reading.columns[i]!));
  const target = features
    ? featureTable(
        targets.flatMap((column) => featuresOf(column)),
        0,
        rows.length,
      )
    : classNumbers(targets[0] as CategoryColumn, 0, rows.length);
  return { inputs: featureTable(wide, 0, rows.length).values, targets: target.values };
}
