import type { RunConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { Range } from '../shared/partition.ts';
import {
  type Acknowledgement,
  type Evaluated,
  type Lease,
  measuredOf,
  type Observed,
  type Phase,
  type Push,
  type Work,
} from '../shared/protocol.ts';
import { mix, permutation, STREAMS } from '../shared/random.ts';
import type { Landing } from '../wire/connection.ts';
import { createCompressor, type Settle } from './compressor.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { gather } from './data/gather.ts';
import { evaluate, partCount } from './evaluate.ts';
import type { Model } from './model.ts';
import { createObserver } from './observer.ts';
import { nextTurn } from './turn.ts';

/** What the trainer needs of the connection; `Client` has it. */
export interface Exchange {
  /** A message waits to be worked on: newer parameters, probably. */
  readonly hasReceived: boolean;
  readonly unacknowledged: readonly { readonly lease: number }[];
  push(
    push: Omit<Push, 'type' | 'sequence'>,
    payloadBytes: readonly number[],
    write: (payloads: readonly Uint8Array[]) => void,
  ): number;
  pushReady(push: Omit<Push, 'type' | 'sequence'>, payloads: readonly Landing[]): number;
  send(message: Evaluated | Observed): void;
  acknowledge(acknowledgement: Acknowledgement): void;
  resend(run: string): number;
}

export interface TrainerOptions {
  readonly run: string;
  readonly config: Pick<RunConfig, 'seed' | 'compression' | 'consistency'> &
    Partial<Pick<RunConfig, 'evaluateTraining' | 'observe'>>;
  readonly model: Model;
  readonly prepared: PreparedData;
  /** Of the shards that get the parts of each push; absent: one gets all. */
  readonly ranges?: readonly Range[];
  readonly exchange: Exchange;
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
  readonly onProgress?: ((progress: TrainerProgress) => void) | undefined;
  readonly onAcknowledged?: ((acknowledgement: Acknowledgement) => void) | undefined;
  /** Monotonic ms. */
  readonly now?: () => number;
}

/** After each push. */
export interface TrainerProgress {
  readonly run: string;
  readonly phase: Phase;
  readonly step: number;
  /** Of the minibatch. */
  readonly loss: number | null;
  readonly examples: number;
  readonly computeMs: number;
}

export interface Trainer {
  /** The connection is new and `join` has been sent: what was not acknowledged goes out again. */
  rejoined(): void;
  /**
   * Does what the server asks for, and answers it.
   * @param payload the trainer's from now: nobody may write to it until `release` is called.
   * @param release called once, when no tensor can share the payload's memory any more: the
   *   connection may then receive into it again. That is after newer parameters have been put on the
   *   device, not when `work` resolves.
   */
  work(message: Work, payload: Float32Array, release?: () => void): Promise<void>;
  /** Releases every payload. Call it when the model has been disposed of. */
  close(): void;
}

/** Which examples a lease means: the order of an epoch is the same on every worker. */
export function createOrders(seed: number, prepared: PreparedData) {
  const orders = new Map<string, Int32Array>();
  return (lease: Lease): Int32Array => {
    const key = `${lease.part} ${lease.epoch}`;
    let order = orders.get(key);
    if (!order) {
      // Epochs overlap by a few minibatches, so that of the last one is still needed.
      for (const old of [...orders.keys()].slice(0, -1)) orders.delete(old);
      order = permutation(seed, STREAMS.epoch + lease.epoch, partCount(prepared, lease.part));
      orders.set(key, order);
    }
    return order.subarray(lease.start, lease.start + lease.count);
  };
}

/** Of the dropout of one minibatch: the same whichever worker computes it, and however often. */
export function minibatchSeed(seed: number, lease: Pick<Lease, 'epoch' | 'start'>): number {
  return mix(seed >>> 0, mix(lease.epoch, lease.start));
}

const NOTHING_OBSERVED = { everySteps: null, costMax: 0.02 };

/** Computes gradients of leased minibatches for one run. */
export function createTrainer(options: TrainerOptions): Trainer {
  const { run, config, model, prepared, exchange, signal } = options;
  const { depth } = config.consistency;
  const now = options.now ?? (() => performance.now());
  const examplesOf = createOrders(config.seed, prepared);
  const compressor = createCompressor(config.compression, model.layout, options.ranges);
  /** Of the pushes under way whose payloads were written, by sequence. */
  const settles = new Map<number, { readonly settle: Settle; discard(): void }>();
  /** The parameters that gradients are computed at. */
  let current: { values: Float32Array; step: number; generation: number } | null = null;
  const observer = createObserver({
    ...{ run, model, now, config: config.observe ?? NOTHING_OBSERVED },
    send: (message) => exchange.send(message),
  });
  /** Payloads not released yet: `current`, and what the model was loaded with last. */
  const payloads = new Map<Float32Array, () => void>();
  const releaseUnused = () => {
    for (const [values, release] of payloads) {
      if (values === current?.values || values === model.loaded) continue;
      payloads.delete(values);
      release();
    }
  };
  let resend = false;
  /** The last result, and whether it has been sent: with several pushes under way each answer asks for it. */
  let evaluated: Evaluated | null = null;
  let isTold = false;
  /** Two, by turns: a tensor may share the memory of the minibatch it was made from. */
  const rooms: (Minibatch | undefined)[] = [undefined, undefined];
  let turn = 0;
  let ready: { lease: number; minibatch: Minibatch } | null = null;

  const minibatchOf = (lease: Lease): Minibatch => {
    if (ready?.lease === lease.id) return ready.minibatch;
    turn = 1 - turn;
    const minibatch = gather(prepared, lease.part, examplesOf(lease), rooms[turn]);
    // The last minibatch of an epoch is smaller, a view of the room: the room stays.
    const room = rooms[turn];
    if (!room || room.inputs.length < minibatch.inputs.length) rooms[turn] = minibatch;
    return minibatch;
  };
  const waiting = (leases: readonly Lease[]): Lease | undefined =>
    leases.find(({ id }) => !exchange.unacknowledged.some(({ lease }) => lease === id));

  const settlePushes = ({ sequence, outcome }: Acknowledgement) => {
    settles.get(sequence)?.settle(outcome);
    for (const [earlier, { discard }] of settles) {
      if (earlier > sequence) continue;
      settles.delete(earlier);
      discard();
    }
  };

  async function pushGradient(lease: Lease, phase: Phase): Promise<void> {
    const { values, step, generation } = current!;
    const minibatch = minibatchOf(lease);
    ready = null;
    const start = now();
    if (model.loaded !== values) {
      model.load(values);
      releaseUnused();
    }
    const seed = minibatchSeed(config.seed, lease);
    const { loss, gradient, discard } = await model.step(minibatch, seed);
    const computeMs = now() - start;
    const told = measuredOf(loss);
    const { encoding } = compressor;
    const push = { run, lease: lease.id, step, generation, loss: told, computeMs, encoding };
    const whole = compressor.asItStands(gradient);
    if (whole) exchange.pushReady(push, [{ bytes: whole, release: discard }]);
    else {
      let settle: Settle | null = null;
      const sequence = exchange.push(push, compressor.payloadBytes(lease.epoch), (payloads) => {
        settle = compressor.write(gradient, lease.epoch, payloads);
      });
      settles.set(sequence, { settle: settle!, discard });
    }
    options.onProgress?.({ run, phase, step, loss: told, examples: lease.count, computeMs });
    // While the push travels: nobody waits for a sample but the next gradient.
    const computed = { lease, minibatch, values, gradient, step, generation, computeMs };
    if (told !== null) await observer?.computed(computed);
  }

  return {
    rejoined() {
      resend = true;
      // The result may have been lost with the connection: it is told once more when it is asked for.
      isTold = false;
    },

    async work(message, received, release) {
      // An odd number of elements in bf16 comes with one of padding.
      const { exchangedSize } = model.layout;
      const padded = message.encoding !== 'f32' && received.length === exchangedSize + 1;
      const payload = padded ? received.subarray(0, exchangedSize) : received;
      if (release && payload.length > 0) payloads.set(payload, release);
      else release?.();
      const { acknowledgements, leases, evaluation, step, generation, phase } = message;
      for (const acknowledgement of acknowledgements) settlePushes(acknowledgement);
      const newest = acknowledgements.at(-1);
      if (newest) exchange.acknowledge(newest);
      for (const acknowledgement of acknowledgements) {
        options.onAcknowledged?.(acknowledgement);
        tellRejection(acknowledgement, options.log);
      }
      if (resend) {
        resend = false;
        exchange.resend(run);
      }
      if (evaluation) {
        if (evaluation.id !== evaluated?.evaluation) {
          const { id, part } = evaluation;
          const alsoTraining = part === 'validation' ? config.evaluateTraining : 0;
          const result = await evaluate(model, payload, prepared, part, { signal, alsoTraining });
          evaluated = { type: 'evaluated', run, evaluation: id, ...result };
          isTold = false;
        }
        releaseUnused();
        if (!isTold) exchange.send(evaluated);
        isTold = true;
        return;
      }
      // Without a payload, those that came last are still the newest.
      if (generation !== current?.generation) compressor.reset();
      if (payload.length > 0) {
        current = { values: payload, step, generation };
        observer?.pulled(payload, step, generation, message.encoding === 'f32');
      }
      releaseUnused();
      if (!current) return;
      while (exchange.unacknowledged.length < depth) {
        const lease = waiting(leases);
        if (!lease) return;
        if (depth > 1) {
          // A step holds the process up; what has arrived meanwhile is read in one turn of the event
          // loop. It will call again, and the gradient is then computed at those newer parameters.
          await nextTurn();
          if (exchange.hasReceived) return;
        }
        await pushGradient(lease, phase);
      }
      // While the push is on its way: the examples of the next minibatch.
      const next = waiting(leases);
      if (next && ready?.lease !== next.id) {
        ready = { lease: next.id, minibatch: minibatchOf(next) };
      }
    },

    close() {
      for (const release of payloads.values()) release();
      payloads.clear();
      current = null;
    },
  };
}

/** Ordinary under asynchrony, and counted by the server. */
const QUIET: readonly (string | null)[] = ['DP_PUSH_STALE', 'DP_PUSH_PHASE', 'DP_PUSH_LEASE_LOST'];

function tellRejection(
  { outcome, sequence, code, message }: Acknowledgement,
  log: (line: string) => void,
): void {
  if (outcome !== 'rejected' || QUIET.includes(code)) return;
  // The next one would be of the same size, and be sent at once.
  if (code === 'DP_TENSOR_SIZE') throw new DownpourError(code, message ?? 'rejected');
  log(`push ${sequence} was rejected: ${code} ${message}`);
}
