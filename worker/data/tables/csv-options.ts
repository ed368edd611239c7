import { type FieldRules, isRecord } from '../../fields.ts';
import { isText, isTexts, oneOf, optional, TEST_FRACTION } from '../reader-options.ts';
import { isUnit, type NumberForm } from './cells.ts';
import type { DateOrder } from './dates.ts';
import { TABLE_FIELDS, type TableOptions } from './table-rows.ts';

/** How a table is to be read as examples. */

export interface CsvOptions extends TableOptions, NumberForm {
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
  /** Input columns that hold dates, with or without times: each becomes year, month, day and weekday, and hour. */
  readonly dates?: readonly string[];
  /** How 1/2/2024 is meant in `dates`. Default: such a date is an error. */
  readonly dateOrder?: DateOrder;
  /**
   * Units of columns of numbers, such as { weight: 'kg' }: both `12 kg` and `12` are read as 12. Another unit is an error.
   */
  readonly units?: Readonly<Record<string, string>>;
  /** Input columns that hold texts of many kinds, each with the number of inputs that its words are hashed to. */
  readonly hashed?: Readonly<Record<string, number>>;
  /**
   * What is done about a missing value. `drop` leaves its row out. `mean` puts the mean of the training part in the place of
   * an input (this needs `standardise: 'feature'`) and adds an input `<column> is missing`, which is 0 or 1; a row without a
   * target is left out. Default: a missing value is an error. A list is read as `missingTexts`.
   */
  readonly missing?: 'drop' | 'mean' | readonly string[];
  /**
   * With `missing: 'mean'`: a column has the input `<column> is missing` if at least this many rows lack its value. Standardised, the 1 of
   * a few rows is a large number of which nothing can be learnt. Default: 1.
   */
  readonly markGapsFrom?: number;
  /** Texts that mean a missing value, beside an empty cell. Default: ?, NA, N/A, NaN, null in upper or lower case. */
  readonly missingTexts?: readonly string[];
  /** Share of the rows that becomes the test part: the same rows in every run, whatever its seed. Default: 0. */
  readonly testFraction?: number;
  /** The mark between groups of three digits, such as `,` in 1,234.5. Default: none. */
  readonly thousands?: string;
}

const isHashSize = (value: unknown) =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= 65536;
const texts = (allowed: string) => optional({ allowed, test: isTexts });

/** What each option must be. */
export const CSV_FIELDS: FieldRules<keyof CsvOptions> = {
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
  dates: texts('a list of column names'),
  dateOrder: optional(oneOf('dayFirst', 'monthFirst')),
  hashed: optional({
    allowed: 'an object of whole numbers from 1 to 65536, such as { title: 64 }',
    test: (value) => isRecord(value) && Object.values(value).every(isHashSize),
  }),
  units: optional({
    allowed: "an object of units of 1 to 12 characters, such as { weight: 'kg' }",
    test: (value) =>
      isRecord(value) && Object.values(value).every((unit) => isText(unit) && isUnit(unit)),
  }),
  missing: optional({
    allowed: "'drop' or 'mean'",
    test: (value) => value === 'drop' || value === 'mean' || isTexts(value),
  }),
  markGapsFrom: optional({
    allowed: 'a whole number from 1',
    test: (value) => Number.isInteger(value) && (value as number) >= 1,
  }),
  missingTexts: texts("a list of strings, such as ['NA', '-']"),
  testFraction: TEST_FRACTION,
  thousands: optional({
    allowed: "one character, such as ',', ' ' or '\\''",
    test: (value) => isText(value) && /^[^\d+-]$/.test(value),
  }),
};
