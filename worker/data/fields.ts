import { DownpourError } from '../../shared/errors.ts';
import { emptyColumn, isFloat } from './columns.ts';
import { DATA_PARTS, type ExampleField, type Examples, type ExperimentData } from './examples.ts';
import type { InputTransform } from './transform.ts';

/** Fields by name: several inputs, several targets. */

export function mapFields<T>(
  fields: Readonly<Record<string, ExampleField>>,
  change: (field: ExampleField, name: string) => T,
): Record<string, T> {
  return Object.fromEntries(
    Object.entries(fields).map(([name, field]) => [name, change(field, name)]),
  );
}

/** Ids of an input stay whole numbers up to the model, as do classes; other numbers become float32. */
export function isWhole(
  { role, values }: ExampleField,
  transform: InputTransform | undefined,
): boolean {
  if (role === 'target') return !isFloat(values);
  return role === 'input' && values instanceof Int32Array && (transform?.kind ?? 'none') === 'none';
}

/**
 * The data as if one field were all of its role: what is checked and measured of inputs and targets then is of a field.
 * @returns null: a part does not have it.
 */
export function viewOf(data: ExperimentData, name: string): ExperimentData {
  const { role, classes, classCount } = data.train.fields![name]!;
  const view = (examples: Examples): Examples => {
    const { count } = examples;
    const { role: _, classCount: __, ...column } = examples.fields![name]!;
    const [inputs, targets] =
      role === 'target' ? [emptyColumn(count), column] : [column, emptyColumn(count)];
    return { count, inputs, targets };
  };
  const parts = DATA_PARTS.flatMap((part) => {
    const examples = data[part];
    return examples ? [[part, view(examples)]] : [];
  });
  const known = classes?.length ?? classCount;
  return {
    ...(Object.fromEntries(parts) as Pick<ExperimentData, 'train'>),
    ...(role === 'target' && known !== undefined ? { classCount: known } : {}),
    source: data.source,
  };
}

/** Puts a field of `viewOf` back. */
export function withField(
  data: ExperimentData,
  name: string,
  view: ExperimentData,
): ExperimentData {
  const parts = DATA_PARTS.flatMap((part) => {
    const examples = data[part];
    if (!examples) return [];
    const old = examples.fields![name]!;
    const { inputs, targets } = view[part]!;
    const column = old.role === 'target' ? targets : inputs;
    const classes = view.classes ?? column.classes;
    const field: ExampleField = {
      ...{ ...old, ...column },
      ...(old.role === 'target' && classes ? { classes } : {}),
      ...(old.role === 'target' && view.classCount !== undefined
        ? { classCount: view.classCount }
        : {}),
    };
    return [[part, { ...examples, fields: { ...examples.fields, [name]: field } }]];
  });
  return { ...data, ...Object.fromEntries(parts) };
}

/** Runs what checks a view; an error names the field. */
export function ofField<T>(name: string, check: () => T): T {
  try {
    return check();
  } catch (cause) {
    if (!(cause instanceof DownpourError)) throw cause;
    throw new DownpourError(cause.code, `field '${name}': ${cause.message}`, { cause });
  }
}

/** @throws DownpourError DP_DATA_MISMATCH: a part has other fields than the training part. */
export function mustHaveSameFields(data: ExperimentData): void {
  const told = ({ fields = {}, inputs, targets }: Examples) => {
    const short = [inputs.shape[1] === 0 ? '' : 'inputs', targets.shape[1] === 0 ? '' : 'targets'];
    const named = Object.entries(fields).map(([name, { role }]) => `${name} (${role})`);
    return [...short, ...named].filter((name) => name !== '');
  };
  const wanted = told(data.train);
  for (const part of DATA_PARTS) {
    const examples = data[part];
    if (!examples) continue;
    const own = told(examples);
    const missing = wanted.find((name) => !own.includes(name));
    const extra = own.find((name) => !wanted.includes(name));
    if (missing === undefined && extra === undefined) continue;
    const what = missing === undefined ? `has a field ${extra} that` : `has no field ${missing};`;
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `the ${part} part ${what} ${missing === undefined ? 'the train part does not have' : 'the train part has it'}; give all parts the same fields (${wanted.join(', ')})`,
    );
  }
}
