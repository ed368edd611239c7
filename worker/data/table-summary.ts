import { profileTable } from './table-profile.ts';
import type { TableOptions } from './table-rows.ts';
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
  const { columns, count, delimiter } = await profileTable(path, options);
  const summaries = columns.map(({ name, count: rows, missing, values, numberCount, kinds }) => {
    const isNumbers = numberCount > 0 && numberCount === rows - missing;
    const numbers = missing > 0 ? values.filter((value) => !Number.isNaN(value)) : values;
    const isFew = kinds !== null && kinds.size <= SUMMARY_CATEGORIES_MAX;
    return {
      ...{ name, count: rows, missing },
      numbers: isNumbers ? summarise(numbers) : null,
      categories: isFew ? Object.fromEntries([...kinds].sort()) : null,
    };
  });
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
