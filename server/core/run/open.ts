import { DownpourError } from '../../../shared/errors.ts';
import { forkTablesProblem } from '../../../shared/tables.ts';
import type { RunShards } from '../shard.ts';
import type { NamedTensor } from '../vectors.ts';
import { capturesInUse } from './evaluations.ts';
import { frozenOf, takePlaces } from './groups.ts';
import { GENERATIONS_A_LIFE, passLives } from './lives.ts';
import {
  Components,
  newFields,
  openComponents,
  openFields,
  type RunInternals,
  type RunOptions,
  type RunReplica,
  type RunState,
  replicateComponents,
} from './state.ts';
import { RESTORED_BEST } from './vector.ts';

/** How a run begins: as new, with the parameters of another one, from a checkpoint, or as the replica of another one. */

/**
 * @param shards that share the vector; null: all of it is here.
 * @param life of the server. @param lives that have passed since the run was made, and of which nothing is left.
 */
export function openNew(
  options: RunOptions,
  shards: RunShards | null,
  life: number,
  lives: number,
): RunInternals {
  const fields = newFields();
  fields.life = life;
  passLives(fields, lives);
  return { options, fields, components: new Components(options, shards) };
}

/**
 * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size; DP_CONFIG_INVALID: tables
 *   cannot have the rows of the other run.
 */
export function openFork(
  inside: RunInternals,
  source: Pick<
    RunState,
    'options' | 'tensors' | 'parameters' | 'tables' | 'data' | 'facts' | 'originData'
  >,
  tensors: readonly NamedTensor[],
): void {
  const { fields, components, options } = inside;
  const { vector } = components;
  const unfit = forkTablesProblem(options.config, source.options.config);
  if (unfit !== null) throw new DownpourError('DP_CONFIG_INVALID', unfit);
  // Its parameters belong to inputs that are standardised as they were.
  fields.facts = source.facts ?? null;
  // A fork that nobody has worked for does not know its own data.
  fields.originData = source.data ?? source.originData ?? null;
  takePlaces(inside, vector.place(source.tensors ?? [], frozenOf(inside)));
  vector.mustParameters.kept.adopt(source.parameters, tensors);
  vector.tables?.adopt(source.tables, tensors);
  fields.initialisations = 1;
  fields.reason = 'waiting for a worker';
}

/** @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size. */
export function openCheckpoint(
  inside: RunInternals,
  state: RunState,
  tensors: readonly NamedTensor[],
): void {
  const { fields, components } = inside;
  const { life } = fields;
  const { vector } = components;
  // Each of several lives since the checkpoint has numbers of its own.
  const lives = Math.max(1, life - (state.life ?? life - 1));
  const { step, generation, firstGeneration = 0 } = state;
  Object.assign(fields, openFields(state), { life });
  fields.restored = { step, generation, firstGeneration };
  passLives(fields, lives);
  // The result of an evaluation that was given out in a lost time is not one of now.
  fields.evaluationsGiven += lives * GENERATIONS_A_LIFE;
  openComponents(components, state, lives);
  if (!state.tensors || !state.parameters || state.initialisations === 0) return;
  takePlaces(inside, vector.place(state.tensors, frozenOf(inside)));
  vector.restore(state.parameters, state.tables, tensors, state.best !== null);
  fields.captures = RESTORED_BEST;
  if (state.best) fields.best = { ...state.best, capture: RESTORED_BEST };
}

/** @throws DownpourError DP_CHECKPOINT_CORRUPT when a vector has another size. */
export function openReplica(
  inside: RunInternals,
  replica: RunReplica,
  vectors: ReadonlyMap<string, Float32Array>,
): void {
  const { fields, components } = inside;
  Object.assign(fields, structuredClone(replica.fields));
  replicateComponents(components, replica);
  const { tensors, parameters } = replica;
  if (!tensors) return;
  const hasParameters = fields.initialisations > 0;
  const inUse = { ...capturesInUse(fields), hasParameters, frozen: frozenOf(inside) };
  takePlaces(
    inside,
    components.vector.replicate(tensors, parameters, replica.tables, vectors, inUse),
  );
}
