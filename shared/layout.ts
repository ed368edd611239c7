import { digestText } from './digest.ts';
import { DownpourError } from './errors.ts';
import { LIMITS } from './limits.ts';

/**
 * How named tensors lie in a run's one flat f32 vector: first all trainable ones, then statistics,
 * then frozen ones, each in the order the model names them. So a push (trainable and statistics)
 * and a pull are a prefix of the vector.
 */

/**
 * `trainable`: moved by the optimizer. `statistics`: moving averages, merged by averaging and never
 * optimised. `frozen`: sent once when a worker joins, never pushed.
 */
export type TensorRole = 'trainable' | 'statistics' | 'frozen';
const ROLES: readonly TensorRole[] = ['trainable', 'statistics', 'frozen'];

/** Begins the names of a server's own tensors in a checkpoint; no tensor of a model may begin so. */
export const STATE_PREFIX = '@';

/** Begins the names of tensors that are carried from minibatch to minibatch: statistics with a momentum of 0. */
export const CARRIED_PREFIX = 'carried/';

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly role: TensorRole;
  /** The share of the old value of statistics that one merge keeps, in [0, 1). */
  readonly momentum?: number;
}

export interface PlacedTensor extends TensorSpec {
  /** The place of its first element in the flat vector. */
  readonly offset: number;
  /** Elements. */
  readonly size: number;
}

export interface Layout {
  readonly tensors: readonly PlacedTensor[];
  readonly trainableSize: number;
  readonly statisticsSize: number;
  readonly frozenSize: number;
  /** Elements of a push and of a pull: trainable and statistics. */
  readonly exchangedSize: number;
  /** Elements of the whole vector. */
  readonly size: number;
  /** The same for the same names, shapes, roles and order. */
  readonly hash: string;
}

/**
 * Places tensors in the flat vector.
 * @throws DownpourError DP_LAYOUT_INVALID: a doubled or bad name, a bad shape.
 */
export function createLayout(specs: readonly TensorSpec[]): Layout {
  const invalid = (what: string) => new DownpourError('DP_LAYOUT_INVALID', what);
  if (specs.length > LIMITS.tensorCountMax) {
    throw invalid(`${specs.length} tensors; at most ${LIMITS.tensorCountMax} are allowed`);
  }
  const names = new Set<string>();
  for (const { name, shape, role, momentum } of specs) {
    if (name.length === 0 || name.length > LIMITS.nameLengthMax) {
      throw invalid(
        `a tensor name has ${name.length} characters; allowed: 1 to ${LIMITS.nameLengthMax}`,
      );
    }
    if (name.startsWith(STATE_PREFIX)) {
      throw invalid(
        `tensor '${name}' begins with '${STATE_PREFIX}', which is kept for the server's own`,
      );
    }
    if (names.has(name)) throw invalid(`two tensors are named '${name}'; each needs its own name`);
    names.add(name);
    if (shape.length > LIMITS.rankMax || !shape.every((d) => Number.isSafeInteger(d) && d >= 0)) {
      throw invalid(
        `tensor '${name}' has shape [${shape}]; allowed: at most ${LIMITS.rankMax} whole numbers from 0`,
      );
    }
    if (role === 'statistics' && !(momentum !== undefined && momentum >= 0 && momentum < 1)) {
      throw invalid(`statistics tensor '${name}' has momentum ${momentum}; it needs one in [0, 1)`);
    }
  }
  const tensors: PlacedTensor[] = [];
  const sizes: Record<TensorRole, number> = { trainable: 0, statistics: 0, frozen: 0 };
  let offset = 0;
  for (const role of ROLES) {
    for (const spec of specs) {
      if (spec.role !== role) continue;
      const size = spec.shape.reduce((product, d) => product * d, 1);
      tensors.push({ ...spec, offset, size });
      sizes[role] += size;
      offset += size;
    }
  }
  const bytesMax = LIMITS.frameBytesMax * LIMITS.shardCountMax;
  if (offset * 4 > bytesMax) {
    throw invalid(
      `the model has ${offset} parameters, ${offset * 4} bytes; ${LIMITS.shardCountMax} shards hold at most ${bytesMax} bytes`,
    );
  }
  const hash = digestText(
    JSON.stringify(tensors.map((t) => [t.name, t.shape, t.role, t.momentum ?? null])),
  );
  return {
    tensors,
    trainableSize: sizes.trainable,
    statisticsSize: sizes.statistics,
    frozenSize: sizes.frozen,
    exchangedSize: sizes.trainable + sizes.statistics,
    size: offset,
    hash,
  };
}

/** The specifications that give this layout again. */
export function layoutSpecs(layout: Layout): TensorSpec[] {
  return layout.tensors.map(({ name, shape, role, momentum }) =>
    momentum === undefined ? { name, shape, role } : { name, shape, role, momentum },
  );
}
