import type { RunConfig } from '../../shared/config.ts';
import { groupOf, groupsOf } from '../../shared/groups.ts';
import type { PreparedData } from '../data/examples.ts';
import type { Experiment } from '../experiment.ts';
import { isRecord } from '../fields.ts';
import { buildModel, type Model } from '../model.ts';
import type { Objective } from '../objective.ts';
import type { RowSource } from '../rows/model-rows.ts';
import { tf } from '../tf.ts';

/** The loss that reaches each tensor: of losses with the names of groups, only that of the tensor's own group. */
export interface TensorLosses {
  /** A model whose loss is that of this tensor; null: the tensor has no loss. */
  modelOf(tensor: string): Model | null;
  dispose(): void;
}

/** What is checked. */
export interface CheckSubject {
  readonly experiment: Experiment;
  readonly config: RunConfig;
  readonly prepared: PreparedData;
  /** Rows of the tables; null: there are none. */
  readonly rows: RowSource | null;
}

/**
 * @param model of the experiment, which stands for all tensors if no loss has the name of a group.
 * @throws DownpourError of `buildModel`.
 */
export async function tensorLosses(
  { experiment, config, prepared, rows }: CheckSubject,
  model: Model,
): Promise<TensorLosses> {
  const groups = groupsOf(config);
  const { objective } = experiment;
  if (!groups || !objective) return { modelOf: () => model, dispose: () => {} };
  const names = Object.keys(groups);
  const models = new Map<string | null, Model | null>();
  const groupsThere = model.layout.tensors
    .filter(({ role }) => role === 'trainable')
    .map(({ name }) => groupOf(name, groups));
  for (const group of new Set(groupsThere)) {
    const kept = { any: false, all: true };
    const own = { ...experiment, objective: withLossesOf(objective, group, names, kept) };
    const built = await buildModel(own, config, prepared, { record: false }).catch((error) => {
      if (kept.any) throw error;
      return null;
    });
    built?.rows?.from(rows);
    // Without losses by group there is one loss for all.
    if (kept.all) built?.dispose();
    models.set(group, kept.all ? model : built);
  }
  return {
    modelOf: (tensor) => models.get(groupOf(tensor, groups)) ?? null,
    dispose() {
      for (const each of models.values()) if (each !== model) each?.dispose();
    },
  };
}

/** @param kept is told whether some losses are kept, and whether all are. */
function withLossesOf(
  objective: Objective,
  group: string | null,
  names: readonly string[],
  kept: { any: boolean; all: boolean },
): Objective {
  return (args) => {
    const given = objective(args);
    const loss = 'loss' in given ? given.loss : undefined;
    if (given instanceof tf.Tensor || !isRecord(loss) || loss instanceof tf.Tensor) {
      kept.any = true;
      return given;
    }
    const own = Object.entries(loss).filter(([name]) => name === group || !names.includes(name));
    kept.any ||= own.length > 0;
    kept.all &&= own.length === Object.keys(loss).length;
    return { ...given, loss: Object.fromEntries(own) } as ReturnType<Objective>;
  };
}
