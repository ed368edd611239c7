import { type Fields, isRecord } from '../../fields.ts';
import { isText, isTexts, oneOf, optional } from '../reader-options.ts';
import type { CellOptions } from './table-columns.ts';
import { TABLE_FIELDS, type TableOptions } from './table-rows.ts';

/** How a table is to be read as examples. */

export interface CsvOptions extends TableOptions, CellOptions {
  /** Names of the target columns: one for a classification, one or more for a regression. */
  readonly targets: readonly string[];
  /** `classification`: the target is a category, as class numbers in sorted order. Default: regression. */
  readonly task?: 'regression' | 'classification';
  /** The classes 0, 1, … of a classification. Any other class in a file is an error. Default: the classes of the files. */
  readonly classes?: readonly string[];
  /** Default: all columns that are neither targets nor ignored. */
  readonly inputs?: readonly string[];
  readonly ignore?: readonly string[];
  /** Input columns that hold categories: each category becomes one 0/1 input, in sorted order. */
  readonly categorical?: readonly string[];
  /** Input columns that hold categories, each with its list of categories in order. */
  readonly categories?: Readonly<Record<string, readonly string[]>>;
  /** Classes as whole numbers (the default) or as one 0/1 column each. */
  readonly labels?: 'index' | 'oneHot';
  /** Texts that mean a missing value, beside an empty cell. Default: ?, NA, N/A, NaN, null in upper or lower case. */
  readonly missing?: readonly string[];
  /** The mark between groups of three digits, such as `,` in 1,234.5. Default: none. */
  readonly thousands?: string;
}

const texts = (allowed: string) => optional({ allowed, test: isTexts });

/** What each option must be. */
export const CSV_FIELDS: Fields<keyof CsvOptions> = {
  ...TABLE_FIELDS,
  targets: { allowed: "a list of column names, such as ['price']", test: isTexts },
  task: optional(oneOf('regression', 'classification')),
  classes: texts('a list of class names'),
  inputs: texts('a list of column names'),
  ignore: texts('a list of column names'),
  categorical: texts('a list of column names'),
  categories: optional({
    allowed: "an object of lists, such as { colour: ['blue', 'red'] }",
    test: (value) => isRecord(value) && Object.values(value).every(isTexts),
  }),
  labels: optional(oneOf('index', 'oneHot')),
  missing: texts("a list of strings, such as ['NA', '-']"),
  thousands: optional({
    allowed: "one character, such as ',', ' ' or '\\''",
    test: (value) => isText(value) && /^[^\d+-]$/.test(value),
  }),
};
