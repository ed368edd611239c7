import { DownpourError } from '../../../shared/errors.ts';
import type { ColumnReading, TableReading } from '../../../shared/reading.ts';
import type { Column } from '../columns.ts';
import { corrupt, type FileReadOptions } from '../files.ts';
import { lacks, type NamedOptions } from './csv-columns.ts';
import { DateColumn } from './date-column.ts';
import { HashedColumn } from './hashed-column.ts';
import {
  CategoryColumn,
  type CellOptions,
  featuresOf,
  featureTable,
  type InputColumn,
  NumberColumn,
} from './table-columns.ts';
import { keptOptions, readRows } from './table-rows.ts';

/** New tables, read as those were that a model was trained on. */

/** How a table was read, for a run to keep. */
export function readingOf(options: NamedOptions, columns: readonly InputColumn[]): TableReading {
  const { targets, units = {}, task, missingTexts, thousands } = options;
  const isQuantity = task !== 'classification';
  const targetUnits = Object.entries(units).filter(
    ([column]) => isQuantity && targets.includes(column),
  );
  return {
    kind: 'table',
    columns: columns.map((column) => column.reading()),
    targets: [...targets],
    ...(targetUnits.length > 0 && { targetUnits: Object.fromEntries(targetUnits) }),
    ...(columns.some(({ gaps }) => gaps.count > 0) && { missing: 'mean' as const }),
    ...(missingTexts && { missingTexts: [...missingTexts] }),
    ...keptOptions(options),
    ...(thousands !== undefined && { thousands }),
  };
}

export interface NewTable {
  /** Float64, shape [rows, inputs], raw: as `inputs` of training examples are before standardisation. */
  readonly inputs: Column;
  /** The line of each row in the file, from 1. */
  readonly lines: readonly number[];
  /** What somebody should know of it. */
  readonly notes: readonly string[];
}

/**
 * Reads the inputs of a table; targets and other columns may be there and are not looked at.
 * @throws DownpourError of `readRows`; DP_EXPERIMENT_INVALID: a column is missing; DP_DATA_CORRUPT with line and column: a
 * cell is not what the column holds, such as a category that the model has never seen.
 */
export async function readNewTable(
  file: string,
  reading: TableReading,
  { bytesMax }: FileReadOptions = {},
): Promise<NewTable> {
  const columns = reading.columns.map((column) => columnFor(column, reading));
  const lines: number[] = [];
  let cellsOf: readonly number[] | null = null;
  const options = { ...reading, ...(bytesMax === undefined ? {} : { bytesMax }) };
  await readRows(file, options, (cells, line, { names }) => {
    cellsOf ??= columns.map(({ name }) => {
      const index = names.indexOf(name);
      if (index < 0) throw lacks(file, name, names, ', which the model needs');
      return index;
    });
    columns.forEach((column, i) => {
      column.add(cells[cellsOf![i]!]!, { file, line });
    });
    lines.push(line);
  });
  if (lines.length === 0) throw corrupt(file, 'it has no line after the header');
  const features = columns.flatMap((column, i) => featuresOf(column, reading.columns[i]!));
  const notes = columns.flatMap((column) =>
    column instanceof CategoryColumn ? (column.unknownNote() ?? []) : [],
  );
  return { inputs: { ...featureTable(features, 0, lines.length), missing: 'mean' }, lines, notes };
}

const unitOf = ({ unit }: { readonly unit?: string }) => (unit === undefined ? {} : { unit });

export function columnFor(column: ColumnReading, reading: TableReading): InputColumn {
  const { name, gap } = column;
  const hasGaps = gap || reading.missing === 'mean' || reading.unknown === 'none';
  const options: CellOptions = { ...reading, hasGaps };
  switch (column.as) {
    case 'number':
      return new NumberColumn(name, { ...options, ...unitOf(column) }, 'new');
    case 'category':
      return new CategoryColumn(name, options, 'new', column.names);
    case 'date':
      return new DateColumn(name, options, 'new', column.order);
    case 'hashed':
      return new HashedColumn(name, options, 'new', column.size);
    default:
      throw new DownpourError('DP_DATA_CORRUPT', `column '${name}' is of an unknown kind`);
  }
}
