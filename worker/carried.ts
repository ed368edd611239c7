import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { CARRIED_PREFIX } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import type { Acknowledgement } from '../shared/protocol.ts';
import { STREAMS } from '../shared/random.ts';
import { type Draws, drawsOf } from './draws.ts';
import { isRecord } from './fields.ts';
import { described } from './minibatch-value.ts';
import { invalid } from './model/data-shape.ts';
import type { ModelWeight } from './model/instance.ts';
import { withSeed } from './noise.ts';
import { type Tensor, type Tf, tf } from './tf.ts';

/**
 * Carried state: tensors that live from minibatch to minibatch beside the parameters, such as persistent Markov chains. An
 * objective gets them and returns what the next minibatch gets. They travel as statistics with a momentum of 0: the server
 * keeps those of the push that it applied last. So checkpoints, copies, standbys and shards have them as they are.
 */

export interface CarriedArguments {
  readonly tf: Tf;
  /** The same numbers for the same seed of the run. */
  readonly random: Draws;
  readonly seed: number;
  readonly hyperparameters: Readonly<RunConfig['hyperparameters']>;
  /** The shape of one example, without the minibatch. */
  readonly inputShape: number[];
}

/** Gives the tensors that the first minibatch gets, float32, by name. */
export type Carried = (args: CarriedArguments) => Readonly<Record<string, Tensor>>;

/** The name in the experiment of a tensor of the layout. */
export const carriedName = (name: string): string => name.slice(CARRIED_PREFIX.length);

/**
 * @param config fields that are not known are not looked at.
 * @throws DownpourError DP_EXPERIMENT_INVALID: no tensors of float32 by name, too large, or not for this configuration.
 */
export function carriedWeights(
  carried: Carried,
  args: Omit<CarriedArguments, 'tf' | 'random'>,
  config: Partial<Pick<RunConfig, 'consistency' | 'local'>>,
): ModelWeight[] {
  mustSuit(config);
  const given = tensorsOf(carried, args);
  const isMap = isRecord(given) && typeof given.then !== 'function';
  if (!isMap || given instanceof tf.Tensor || Object.keys(given).length === 0) {
    throw invalid(
      `carried() returned ${described(given)}; it must return tensors of float32 by name, such as { chains: random.uniform([100, 784]) }`,
    );
  }
  let bytes = 0;
  const entries = Object.entries(given).map(([name, value]) => {
    if (!/^[A-Za-z_][A-Za-z0-9_]{0,49}$/.test(name)) {
      throw invalid(
        `carried() returned a tensor with the name '${name.slice(0, 60)}'; allowed: letters, digits and '_', 50 at most`,
      );
    }
    if (!(value instanceof tf.Tensor) || value.dtype !== 'float32' || value.size === 0) {
      const seen =
        value instanceof tf.Tensor ? `${value.dtype} of shape [${value.shape}]` : described(value);
      throw invalid(
        `carried() returned ${seen} as '${name}'; it must be a tensor of float32 with at least one element`,
      );
    }
    bytes += 4 * value.size;
    return [name, value] as const;
  });
  if (bytes > LIMITS.carriedBytesMax) {
    throw invalid(
      `carried() returned ${bytes} bytes; at most ${LIMITS.carriedBytesMax} are allowed, because each push and each pull brings them: carry fewer chains, or what they can be computed from`,
    );
  }
  const weights = entries.map(([name, value]): ModelWeight => {
    const variable = tf.variable(value);
    const { shape } = variable;
    return {
      name: CARRIED_PREFIX + name,
      shape,
      variable,
      role: 'statistics',
      momentum: 0,
      isCarried: true,
    };
  });
  for (const [, value] of entries) value.dispose();
  return weights;
}

function tensorsOf(carried: Carried, args: Omit<CarriedArguments, 'tf' | 'random'>): unknown {
  const run = () => tf.tidy(() => carried({ ...args, tf, random: drawsOf() }) as never);
  try {
    return withSeed(args.seed, run, STREAMS.carried);
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw invalid(`carried() of the experiment failed: ${errorText(cause)}`, cause);
  }
}

function mustSuit({ consistency, local }: Partial<Pick<RunConfig, 'consistency' | 'local'>>): void {
  const mode = consistency?.mode ?? 'async';
  if (mode !== 'async' && mode !== 'bounded') {
    throw invalid(
      `the experiment has carried tensors, and consistency.mode is ${mode}, in which the server would take the mean of several workers' tensors; allowed: async, bounded`,
    );
  }
  if (local?.steps != null) {
    throw invalid(
      `the experiment has carried tensors, and local.steps is ${local.steps}, which pushes the mean of the tensors of several minibatches; allowed: local.steps null`,
    );
  }
}

/**
 * The tensors of one worker: those that its last push left behind, unless that was refused. The server's take their place at
 * the beginning, after a rollback, and when the connection is new: the server may have gone back to a checkpoint.
 */
export class CarriedState {
  readonly #start: number;
  readonly #end: number;
  /** What the next minibatch gets; null: what the server has. */
  #newest: Float32Array | null = null;
  /** What the pushes under way began with, oldest first. */
  #pending: { readonly sequence: number; before: Float32Array }[] = [];
  /** Once no push is under way, the server's are taken. */
  #isVoid = true;
  readonly #free: Float32Array[] = [];

  /** @param size elements of all carried tensors. @param end of them in the flat vector. */
  constructor(size: number, end: number) {
    this.#start = end - size;
    this.#end = end;
  }

  /** What was pushed is of no use any more. */
  reset(): void {
    this.#newest = null;
    this.#pending = [];
    this.#isVoid = true;
  }

  /** The connection is new. */
  noteRejoin(): void {
    this.#isVoid = true;
  }

  /**
   * @param pulled the newest parameters. @returns what this minibatch gets, shape [size]; nobody writes to it until the
   *   push of the minibatch has been answered and another minibatch has been computed.
   */
  next(pulled: Float32Array): Float32Array {
    if (this.#newest === null || (this.#isVoid && this.#pending.length === 0)) {
      this.#newest = this.#copy(pulled);
      this.#isVoid = false;
    }
    return this.#newest;
  }

  /** @param computed gradient and statistics, shape [exchangedSize]. @returns what is to be said of the push. */
  take(computed: Float32Array): (sequence: number) => void {
    const before = this.#newest!;
    this.#newest = this.#copy(computed);
    return (sequence) => void this.#pending.push({ sequence, before });
  }

  settled(sequence: number, outcome: Acknowledgement['outcome']): void {
    const at = this.#pending.findIndex((push) => push.sequence === sequence);
    if (at < 0) return;
    const [{ before } = { before: null }] = this.#pending.splice(at, 1);
    if (outcome !== 'rejected') {
      this.#free.push(before!);
      return;
    }
    // The minibatch is computed again from what it began with.
    const next = this.#pending[at];
    if (next) next.before = before!;
    else this.#newest = before;
  }

  #copy(vector: Float32Array): Float32Array {
    const copy = this.#free.pop() ?? new Float32Array(this.#end - this.#start);
    // The server, which merges it with 0 times its own, has no −0.
    for (let i = 0; i < copy.length; i++) copy[i] = vector[this.#start + i]! + 0;
    return copy;
  }
}
