import type { RunConfig } from '../shared/config.ts';
import type { SeenExample } from '../shared/example-view.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { collect } from './data/stored.ts';
import { inputsView } from './data/views.ts';
import { createOrders, minibatchSeed } from './minibatches.ts';
import type { Model } from './model.ts';

/**
 * The first minibatch of a run's first epoch, standardised and changed by `batch`, with the numbers that were drawn for it in
 * training.
 * @param examplesMax shown of it; all are changed, since what is drawn may depend on how many there are.
 */
export async function seenMinibatch(
  model: Model,
  prepared: PreparedData,
  { seed, minibatchSize }: Pick<RunConfig, 'seed' | 'minibatchSize'>,
  examplesMax: number,
): Promise<readonly SeenExample[]> {
  const count = Math.min(minibatchSize, prepared.train.count);
  const lease = { id: 0, part: 'train', epoch: 0, start: 0, count } as const;
  const rows = createOrders(seed, prepared)(lease);
  const seen = await model.seen(await collect(prepared, 'train', rows), minibatchSeed(seed, lease));
  const targets = targetOf(seen, prepared);
  const total = seen.count ?? count;
  const size = targets.length / total;
  return Array.from({ length: Math.min(examplesMax, total) }, (_, i) => ({
    shown: inputsView(seen, i, prepared),
    row: total === count ? rows[i]! : null,
    target: [...targets.subarray(i * size, (i + 1) * size)],
  }));
}

/** The target, or the first of several by name. */
function targetOf({ targets, fields = {} }: Minibatch, { train }: PreparedData) {
  const named = Object.entries(train.fields ?? {}).find(([, { role }]) => role === 'target');
  return named ? fields[named[0]]!.values : targets;
}
