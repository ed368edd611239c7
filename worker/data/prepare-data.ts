import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';
import { type Column, type FieldRole, kindOf, rowSize } from './columns.ts';
import type { Examples, ExperimentData, PreparedData, PrepareOptions } from './examples.ts';
import { fieldTransformFor, transformFor } from './facts.ts';
import { mustHaveSameFields, ofField, viewOf, withField } from './fields.ts';
import { type ChosenRows, fingerprint, rawFingerprint } from './fingerprint.ts';
import { agreeing, partsOf } from './parts.ts';
import { mustBeFinite, mustFitFloat32 } from './precision.ts';
import { split } from './split.ts';
import { mustBeTargets, mustVary } from './targets.ts';
import { fitTransform, type InputTransform, type Standardise } from './transform.ts';

/** The seeded split, and standardisation by the training part alone (Deep Learning §12.2.1). */

/**
 * Splits, checks and measures what an experiment's `data` returned. The validation part is chosen by
 * integer arithmetic from the seed, so every worker has the same one; rows keep their order.
 * @throws DownpourError DP_DATA_MISMATCH when parts don't fit together, DP_DATA_CORRUPT for a value that
 * is not finite or lost in float32, DP_DATA_LABEL for targets that do not suit classes or loss,
 * DP_EXPERIMENT_INVALID for too few examples.
 */
export function prepareData(given: ExperimentData, options: PrepareOptions): PreparedData {
  mustBeInMemory(given);
  const data = checkedData(given, options);
  const { train, validation, rows } = split(data, options);
  const { loss, targets, inputs } = fieldsToPrepare(data, options);
  if (rowSize(train.targets) > 0) mustVary(data, loss);
  for (const { name, loss } of targets) ofField(name, () => mustVary(viewOf(data, name), loss));
  const { facts } = options;
  const kinds = standardisationOf(train, options.standardise);
  const transform = facts
    ? transformFor(facts, train.inputs)
    : fitTransform(train.inputs, kinds.inputs!);
  const parts = { train, validation, test: data.test ?? null };
  mustFit(parts, transform, null);
  const transforms: Record<string, InputTransform> = {};
  for (const name of Object.keys(train.fields ?? {})) {
    const field = train.fields![name]!;
    const own = ofField(name, () =>
      !inputs.includes(name)
        ? fitTransform(field, 'none')
        : facts
          ? fieldTransformFor(facts, name, field)
          : fitTransform(field, kinds[name]!),
    );
    if (inputs.includes(name)) transforms[name] = own;
    ofField(name, () => mustFit(parts, own, name));
  }
  return preparedFrom(data, { ...parts, rows, raw: rawFingerprint(data), transform, transforms });
}

/**
 * The data with one type for each column, and one list of classes; all of them suit the losses.
 * @throws DownpourError as `prepareData`.
 */
export function checkedData(given: ExperimentData, options: PrepareOptions): ExperimentData {
  mustHaveSameFields(given);
  const { loss, targets } = fieldsToPrepare(given, options);
  let data = checkedPart(given, rowSize(given.train.targets) === 0 ? null : loss);
  for (const name of Object.keys(data.train.fields ?? {})) {
    const view = viewOf(data, name);
    const own = targets.find((target) => target.name === name)?.loss ?? null;
    data = withField(
      data,
      name,
      ofField(name, () => checkedPart(view, own)),
    );
  }
  mustHaveTargets(data, options);
  return data;
}

/** The names of the fields that are inputs, and the targets with their losses. */
export function fieldsToPrepare(
  { train }: ExperimentData,
  { loss = null, losses = {} }: PrepareOptions,
): {
  /** The loss for targets that are no field. */
  readonly loss: string | null;
  readonly inputs: readonly string[];
  readonly targets: readonly { readonly name: string; readonly loss: string | null }[];
} {
  const named = (wanted: FieldRole) =>
    Object.entries(train.fields ?? {}).flatMap(([name, { role }]) =>
      role === wanted ? [name] : [],
    );
  const targets = named('target');
  const lossOf = (name: string) => losses[name] ?? (targets.length === 1 ? loss : null);
  return {
    ...{ loss, inputs: named('input') },
    targets: targets.map((name) => ({ name, loss: lossOf(name) })),
  };
}

interface SplitData {
  readonly train: Examples;
  readonly validation: Examples;
  readonly test: Examples | null;
  readonly rows: ChosenRows;
  /** The fingerprint of the data before the split. */
  readonly raw: string;
  readonly transform: InputTransform;
  /** The same for each field that is an input. */
  readonly transforms: Readonly<Record<string, InputTransform>>;
}

export function preparedFrom(data: ExperimentData, parts: SplitData): PreparedData {
  const { rows, raw, transforms, ...prepared } = parts;
  const named = data.train.fields ? transforms : undefined;
  return {
    ...prepared,
    fingerprint: fingerprint(raw, rows, prepared.transform, named),
    rawFingerprint: raw,
    source: data.source,
    classCount: data.classCount ?? null,
    classes: data.classes ?? null,
    inputNames: data.train.inputs.names ?? null,
    targetNames: data.train.targets.names ?? null,
    ...(named && { transforms: named }),
  };
}

function mustBeInMemory(data: ExperimentData): void {
  const stored = partsOf(data).find(([, examples]) => examples.stored)?.[1].stored;
  if (!stored) return;
  throw new DownpourError(
    'DP_USAGE',
    `this needs all examples in memory, but there is a ${stored.where}: give arrays`,
  );
}

/** Inputs and targets that agree in all parts, are finite and suit the loss. */
function checkedPart(given: ExperimentData, loss: string | null): ExperimentData {
  const agreed = agreeing(given);
  for (const [part, { inputs, targets }] of partsOf(agreed)) {
    mustBeFinite(`inputs of the ${part} part`, inputs);
    if (agreed.classCount === undefined) mustBeFinite(`targets of the ${part} part`, targets);
  }
  return rowSize(agreed.train.targets) === 0 ? agreed : mustBeTargets(agreed, loss);
}

/** @param name of a field; null: of the inputs and targets that are none. */
function mustFit(
  given: Readonly<Record<'train' | 'validation' | 'test', Examples | null>>,
  transform: InputTransform,
  name: string | null,
): void {
  const parts = Object.entries(given).flatMap(([part, examples]) => {
    if (examples === null || examples.count === 0) return [];
    const seen = name === null ? examples : viewOf({ train: examples, source: '' }, name).train;
    return [{ name: part, examples: seen }];
  });
  mustFitFloat32(parts, transform);
}

/** How each input is standardised, by name; `inputs` is the name of the one without. */
export function standardisationOf(
  { inputs, fields = {} }: Examples,
  standardise: PrepareOptions['standardise'],
): Record<string, Standardise> {
  const own: [string, Column][] = rowSize(inputs) > 0 ? [['inputs', inputs]] : [];
  for (const [name, field] of Object.entries(fields)) {
    if (field.role === 'input') own.push([name, field]);
  }
  const kinds: Record<string, Standardise> = { inputs: 'none' };
  if (isForAll(standardise)) {
    for (const [name, { values }] of own) {
      // Whole numbers of a field are ids: a model looks them up.
      const isId = name !== 'inputs' && kindOf(values) === 'int32';
      kinds[name] = isId ? 'none' : standardise;
    }
    return kinds;
  }
  const known = own.map(([name]) => name);
  for (const name of Object.keys(standardise)) {
    if (known.includes(name)) continue;
    const near = nearest(name, known);
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `standardise names '${name}', which is no input of the data; ${near ? `did you mean '${near}'?` : `inputs: ${known.join(', ')}`}`,
    );
  }
  for (const name of known) kinds[name] = standardise[name] ?? 'none';
  return kinds;
}

/** Whether it is for every input, and no object with one for each. */
const isForAll = (given: PrepareOptions['standardise']): given is Standardise =>
  typeof given === 'string' || given.kind === 'zca';

/** A loss compares targets with predictions. */
function mustHaveTargets({ train }: ExperimentData, { targetsOptional }: PrepareOptions): void {
  const fields = Object.entries(train.fields ?? {});
  const has = rowSize(train.targets) > 0 || fields.some(([, { role }]) => role === 'target');
  if (has || targetsOptional) return;
  const names = [...(rowSize(train.inputs) > 0 ? ['inputs'] : []), ...fields.map(([name]) => name)];
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `the train part of what data() returned has no targets; it has ${names.map((name) => `'${name}'`).join(', ')}. Give targets: { values, shape }, or an experiment with an objective, which needs none`,
  );
}
