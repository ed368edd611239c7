import { meanAndDeviation } from '../transform.ts';
import { type ColumnProfile, type ProfileOptions, profileTable } from './table-profile.ts';

/** What a column of a table looks like, whatever is wrong with it. */
export interface ColumnSummary {
  readonly name: string;
  readonly count: number;
  readonly missing: number;
  /** Unit behind the numbers; null: there is none. */
  readonly unit: string | null;
  /** Null when a cell is not a number. */
  readonly numbers: { mean: number; deviation: number; min: number; max: number } | null;
  /** Cells by category, at most 20, in the order of their numbers; null when there are more. */
  readonly categories: Readonly<Record<string, number>> | null;
  /** Cells that are dates or times, and the first of them; null: there are none. */
  readonly dates: { readonly count: number; readonly first: string } | null;
}

const SUMMARY_CATEGORIES_MAX = 20;

export interface TableSummary {
  readonly columns: readonly ColumnSummary[];
  /** Rows after the header. */
  readonly count: number;
  /** Given, or found. */
  readonly delimiter: string;
  /** What was left out without being asked for. */
  readonly notes: readonly string[];
  readonly isParquet: boolean;
}

/** Describes every column of a file; unlike `loadCsv` it only counts what is missing. */
export async function describeCsv(
  path: string,
  options: ProfileOptions = {},
): Promise<TableSummary> {
  const { columns, ...facts } = await profileTable(path, options);
  const summaries = columns.map((profile) => {
    const { name, count: rows, missing, values, numberCount, unit } = profile;
    const isNumbers = numberCount > 0 && numberCount === rows - missing;
    const numbers = missing > 0 ? values.filter((value) => !Number.isNaN(value)) : values;
    return {
      ...{ name, count: rows, missing, unit },
      numbers: isNumbers ? summarise(numbers) : null,
      categories: categoriesOf(profile),
      dates: datesOf(profile),
    };
  });
  return { ...facts, columns: summaries };
}

function datesOf({ forms, firsts }: ColumnProfile): ColumnSummary['dates'] {
  const count = forms.get('date');
  return count === undefined ? null : { count, first: firsts.get('date')!.text };
}

/** Cells by the name that the reader gives them, in its order: 1 and 1.0 are one. */
function categoriesOf({ kinds, names }: ColumnProfile): Record<string, number> | null {
  if (kinds === null || names === null || names.names.length > SUMMARY_CATEGORIES_MAX) return null;
  const counts = names.names.map(() => 0);
  for (const [text, count] of kinds) counts[names.indexOf(text)]! += count;
  return Object.fromEntries(names.names.map((name, i) => [name, counts[i]!]));
}

/** Mean, standard deviation (of the population) and extremes of numbers; at least one. */
export function summarise(numbers: ArrayLike<number>) {
  const { mean, deviation } = meanAndDeviation(numbers, 1);
  let min = numbers[0]!;
  let max = min;
  for (let i = 1; i < numbers.length; i++) {
    const value = numbers[i]!;
    if (value < min) min = value;
    if (value > max) max = value;
  }
  return { mean: mean[0]!, deviation: deviation[0]!, min, max };
}
