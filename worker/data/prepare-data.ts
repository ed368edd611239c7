import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';
import { type Column, kindOf, rowSize } from './columns.ts';
import type {
  Examples,
  ExperimentData,
  PreparedData,
  PrepareOptions,
  Standardise,
} from './examples.ts';
import { fieldTransformFor, transformFor } from './facts.ts';
import { mustHaveSameFields, ofField, viewOf, withField } from './fields.ts';
import { fingerprint, rawFingerprint } from './fingerprint.ts';
import { agreeing, partsOf } from './parts.ts';
import { mustBeFinite, mustFitFloat32 } from './precision.ts';
import { split } from './split.ts';
import { checkTargets, mustVary } from './targets.ts';
import { fitTransform, type InputTransform } from './transform.ts';

/** The seeded split, and standardisation by the training part alone (Deep Learning §12.2.1). */

/**
 * Splits, checks and measures what an experiment's `data` returned. The validation part is chosen by
 * integer arithmetic from the seed, so every worker has the same one; rows keep their order.
 * @throws DownpourError DP_DATA_MISMATCH when parts don't fit together, DP_DATA_CORRUPT for a value that
 * is not finite or lost in float32, DP_DATA_LABEL for targets that do not suit classes or loss,
 * DP_EXPERIMENT_INVALID for too few examples.
 */
export function prepareData(given: ExperimentData, options: PrepareOptions): PreparedData {
  mustHaveSameFields(given);
  mustBeInMemory(given);
  const { loss = null, losses = {}, facts } = options;
  let data = checkedPart(given, rowSize(given.train.targets) === 0 ? null : loss);
  const names = Object.keys(data.train.fields ?? {});
  const targets = Object.values(data.train.fields ?? {}).filter(({ role }) => role === 'target');
  const lossOf = (name: string) => losses[name] ?? (targets.length === 1 ? loss : null);
  for (const name of names) {
    const view = viewOf(data, name);
    const own = data.train.fields![name]!.role === 'target' ? lossOf(name) : null;
    data = withField(
      data,
      name,
      ofField(name, () => checkedPart(view, own)),
    );
  }
  mustHaveTargets(data, options);
  const { train, validation, rows } = split(data, options);
  if (rowSize(train.targets) > 0) mustVary(data, loss);
  for (const name of names) {
    const view = viewOf(data, name);
    if (data.train.fields![name]!.role !== 'target') continue;
    ofField(name, () => mustVary(view, lossOf(name)));
  }
  const kinds = standardisationOf(train, options.standardise);
  const transform = facts
    ? transformFor(facts, train.inputs)
    : fitTransform(train.inputs, kinds.inputs!);
  const test = data.test ?? null;
  const parts = { train, validation, test };
  mustFit(parts, transform, null);
  const transforms: Record<string, InputTransform> = {};
  for (const name of names) {
    const field = train.fields![name]!;
    const own = ofField(name, () =>
      field.role !== 'input'
        ? fitTransform(field, 'none')
        : facts
          ? fieldTransformFor(facts, name, field)
          : fitTransform(field, kinds[name]!),
    );
    if (field.role === 'input') transforms[name] = own;
    ofField(name, () => mustFit(parts, own, name));
  }
  const raw = rawFingerprint(data);
  return {
    train,
    validation,
    test,
    fingerprint: fingerprint(raw, rows, transform, names.length > 0 ? transforms : undefined),
    rawFingerprint: raw,
    source: data.source,
    classCount: data.classCount ?? null,
    classes: data.classes ?? null,
    inputNames: data.train.inputs.names ?? null,
    targetNames: data.train.targets.names ?? null,
    transform,
    ...(names.length > 0 ? { transforms } : {}),
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
  return rowSize(agreed.train.targets) === 0 ? agreed : checkTargets(agreed, loss);
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
function standardisationOf(
  { inputs, fields = {} }: Examples,
  standardise: PrepareOptions['standardise'],
): Record<string, Standardise> {
  const own: [string, Column][] = rowSize(inputs) > 0 ? [['inputs', inputs]] : [];
  for (const [name, field] of Object.entries(fields)) {
    if (field.role === 'input') own.push([name, field]);
  }
  const kinds: Record<string, Standardise> = { inputs: 'none' };
  if (typeof standardise === 'string') {
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
