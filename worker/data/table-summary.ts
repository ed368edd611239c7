import { isMissing, isNumber } from './cells.ts';
import { readDataFile } from './files.ts';
import { parseRows, type TableOptions } from './table-rows.ts';
import { momentsOf } from './transform.ts';

/** What a column of a table looks like, whatever is wrong with it. */
export interface ColumnSummary {
  readonly name: string;
  readonly count: number;
  readonly missing: number;
  /** Null when a cell is no number. */
  readonly numbers: { mean: number; deviation: number; min: number; max: number } | null;
  /** Cells by category, at most 20; null when there are more. */
  readonly categories: Readonly<Record<string, number>> | null;
}

const SUMMARY_CATEGORIES_MAX = 20;

export interface TableSummary {
  readonly columns: readonly ColumnSummary[];
  /** Rows after the header. */
  readonly count: number;
  /** Given, or found. */
  readonly delimiter: string;
}

/** Describes every column of a file; unlike `loadCsv` it only counts what is missing. */
export async function describeCsv(path: string, options: TableOptions = {}): Promise<TableSummary> {
  const columns: { numbers: number[] | null; missing: number; counts: Map<string, number> }[] = [];
  const bytes = await readDataFile(path);
  const { header, count, delimiter } = parseRows(bytes, path, options, (cells) => {
    cells.forEach((cell, i) => {
      columns[i] ??= { numbers: [], missing: 0, counts: new Map() };
      const column = columns[i];
      const text = cell.trim();
      if (isMissing(text)) {
        column.missing++;
        return;
      }
      if (isNumber(text)) column.numbers?.push(Number(text));
      else column.numbers = null;
      if (column.counts.size <= SUMMARY_CATEGORIES_MAX) {
        column.counts.set(text, (column.counts.get(text) ?? 0) + 1);
      }
    });
  });
  const summaries = columns.map(({ numbers, missing, counts }, i) => ({
    name: header[i]!,
    count,
    missing,
    numbers: numbers === null || numbers.length === 0 ? null : summarise(numbers),
    categories:
      counts.size <= SUMMARY_CATEGORIES_MAX ? Object.fromEntries([...counts].sort()) : null,
  }));
  return { columns: summaries, count, delimiter };
}

/** Mean, standard deviation (of the population) and extremes of numbers; at least one. */
export function summarise(numbers: ArrayLike<number>) {
  const { mean, deviation } = momentsOf(numbers, 1);
  let min = numbers[0]!;
  let max = min;
  for (let i = 1; i < numbers.length; i++) {
    const value = numbers[i]!;
    if (value < min) min = value;
    if (value > max) max = value;
  }
  return { mean: mean[0]!, deviation: deviation[0]!, min, max };
}
