import { nearest } from '../shared/spelling.ts';

/** Checking the fields of an object that a user wrote: no unknown one, each of the right kind. */

/** Each field: is it right, what is allowed. */
export type FieldRules<Key extends string = string> = Readonly<
  Record<Key, { readonly allowed: string; readonly test: (value: unknown) => boolean }>
>;

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** One line for each field that is unknown, missing or wrong. @param noun of a field: `option` */
export function fieldProblems(
  value: Readonly<Record<string, unknown>>,
  fields: FieldRules,
  noun = 'field',
): string[] {
  const known = Object.keys(fields);
  const problems: string[] = [];
  for (const key of Object.keys(value)) {
    if (known.includes(key)) continue;
    const near = nearest(key, known);
    const article = noun === 'option' ? 'an' : 'a';
    problems.push(
      `${key} is not ${article} ${noun}; ${near ? `did you mean '${near}'?` : `known: ${known.join(', ')}`}`,
    );
  }
  for (const [key, { allowed, test }] of Object.entries(fields)) {
    if (test(value[key])) continue;
    const seen = !(key in value) ? 'is missing' : `is ${fieldText(value[key])}`;
    problems.push(`${key} ${seen}; allowed: ${allowed}`);
  }
  return problems;
}

/** A value as a message shows it. */
export function fieldText(value: unknown): string {
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  try {
    return (JSON.stringify(value) ?? String(value)).slice(0, 60);
  } catch {
    // It refers to itself.
    return 'an object';
  }
}
