/** Nested fields by their dotted names, each with its value as text. */
export function fieldsOf(value: unknown, prefix = ''): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return [[prefix, typeof value === 'string' ? value : JSON.stringify(value)]];
  }
  return Object.entries(value).flatMap(([key, inner]) =>
    fieldsOf(inner, prefix === '' ? key : `${prefix}.${key}`),
  );
}
