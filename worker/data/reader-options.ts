import { DownpourError } from '../../shared/errors.ts';
import { type FieldRules, fieldProblems, fieldText, isRecord } from '../fields.ts';

/** The options of readers: a misspelt one must not be read past in silence. */

type FieldRule = FieldRules[string];

/** A field that may be absent. */
export const optional = ({ allowed, test }: FieldRule): FieldRule => ({
  allowed,
  test: (value) => value === undefined || test(value),
});

export const isText = (value: unknown): value is string =>
  typeof value === 'string' && value !== '';
export const isTexts = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((each) => typeof each === 'string');

export const oneOf = (...values: readonly (string | boolean)[]): FieldRule => ({
  allowed: values.map((value) => (typeof value === 'string' ? `'${value}'` : value)).join(', '),
  test: (value) => values.includes(value as string),
});

/** The share of the examples for the test part. */
export const TEST_FRACTION = optional({
  allowed: 'a number from 0 to below 1',
  test: (value) => typeof value === 'number' && value >= 0 && value < 1,
});

/** Where lines about progress go. */
export const LOG = optional({
  allowed: 'a function',
  test: (value) => typeof value === 'function',
});

/** Options that every reader of files has. */
export const READ_FIELDS: FieldRules<'bytesMax'> = {
  bytesMax: optional({
    allowed: 'a number of bytes above 0',
    test: (value) => typeof value === 'number' && value > 0,
  }),
};

/**
 * @param reader its name, for the message
 * @throws DownpourError DP_EXPERIMENT_INVALID with a line for each option that is unknown or wrong
 */
export function checkOptions(reader: string, options: unknown, fields: FieldRules): void {
  const problems = isRecord(options)
    ? fieldProblems(options, fields, 'option')
    : [
        `the options are ${fieldText(options)}; allowed: an object of ${Object.keys(fields).join(', ')}`,
      ];
  if (problems.length === 0) return;
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `${reader}: ${problems.length === 1 ? problems[0] : `\n${problems.map((line) => `  ${line}`).join('\n')}`}`,
  );
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: what should be the path of a file or folder is none. */
export function checkPath(reader: string, path: unknown): asserts path is string {
  if (isText(path)) return;
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `${reader}: the path is ${fieldText(path)}; allowed: a text that is not empty${path instanceof URL ? ', as fileURLToPath(new URL(…)) gives it' : ''}`,
  );
}

/** What the numbers of a field mean, where a file or a dataset cannot say it. */
export const FIELD_RULES = {
  role: optional(oneOf('input', 'target', 'mask')),
  classes: optional({ allowed: 'a list of class names', test: isTexts }),
  classCount: optional({
    allowed: 'a whole number above 1',
    test: (value: unknown) => Number.isInteger(value) && (value as number) > 1,
  }),
  names: optional({ allowed: 'a list of names', test: isTexts }),
} satisfies Readonly<Record<string, FieldRule>>;
