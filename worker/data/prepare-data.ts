import type { ExperimentData, PreparedData, PrepareOptions } from './examples.ts';
import { transformFor } from './facts.ts';
import { fingerprint, rawFingerprint } from './fingerprint.ts';
import { agreeing, partsOf } from './parts.ts';
import { mustBeFinite, mustFitFloat32 } from './precision.ts';
import { split } from './split.ts';
import { checkTargets, mustVary } from './targets.ts';
import { fitTransform } from './transform.ts';

/** The seeded split, and standardisation by the training part alone (Deep Learning §12.2.1). */

/**
 * Splits, checks and measures what an experiment's `data` returned. The validation part is chosen by
 * integer arithmetic from the seed, so every worker has the same one; rows keep their order.
 * @throws DownpourError DP_DATA_MISMATCH when parts don't fit together, DP_DATA_CORRUPT for a value that
 * is not finite or lost in float32, DP_DATA_LABEL for targets that do not suit classes or loss,
 * DP_EXPERIMENT_INVALID for too few examples.
 */
export function prepareData(given: ExperimentData, options: PrepareOptions): PreparedData {
  const agreed = agreeing(given);
  for (const [part, { inputs, targets }] of partsOf(agreed)) {
    mustBeFinite(`inputs of the ${part} part`, inputs);
    if (agreed.classCount === undefined) mustBeFinite(`targets of the ${part} part`, targets);
  }
  const { loss = null } = options;
  const data = checkTargets(agreed, loss);
  const { train, validation, rows } = split(data, options);
  mustVary(data, loss);
  const transform = options.facts
    ? transformFor(options.facts, train.inputs)
    : fitTransform(train.inputs, options.standardise);
  const test = data.test ?? null;
  const parts = Object.entries({ train, validation, test }).flatMap(([name, examples]) =>
    examples === null || examples.count === 0 ? [] : [{ name, examples }],
  );
  mustFitFloat32(parts, transform);
  const raw = rawFingerprint(data);
  return {
    train,
    validation,
    test,
    fingerprint: fingerprint(raw, rows, transform),
    rawFingerprint: raw,
    source: data.source,
    classCount: data.classCount ?? null,
    classes: data.classes ?? null,
    inputNames: data.train.inputs.names ?? null,
    targetNames: data.train.targets.names ?? null,
    transform,
  };
}
