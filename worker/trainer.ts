import type { Aside, ShownExamples } from '../shared/asides.ts';
import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { fragmentsOf, localOf } from '../shared/local-steps.ts';
import { measuredOf } from '../shared/message-fields.ts';
import type { Observed } from '../shared/observed.ts';
import type { Range } from '../shared/partition.ts';
import type {
  Acknowledgement,
  Evaluated,
  Lease,
  LocalWork,
  Phase,
  Push,
  Work,
} from '../shared/protocol.ts';
import { causeOf, Said } from '../shared/said.ts';
import type { Landing } from '../wire/connection.ts';
import { CarriedState } from './carried.ts';
import { type Compressor, createCompressor, type Settle } from './compressor.ts';
import type { Minibatch, PreparedData } from './data/examples.ts';
import { evaluate } from './evaluate.ts';
import { type LocalGradient, LocalSteps, minibatchesOf } from './local-steps.ts';
import { Minibatches, minibatchSeed } from './minibatches.ts';
import type { Model } from './model.ts';
import { createObserver, type Observer } from './observer.ts';
import type { FrozenRows } from './rows/kept-rows.ts';
import { RowsLost } from './rows/requests.ts';
import { mustPull, type RowPuller, RowsExchange, type RowsOfPush } from './rows/rows-exchange.ts';
import { nextTurn } from './turn.ts';

/** What the trainer needs of the connection; `Client` has it. */
export interface Exchange extends Partial<RowPuller> {
  /** A message waits to be worked on: newer parameters, probably. */
  readonly hasReceived: boolean;
  readonly unacknowledged: readonly { readonly lease: number }[];
  push(
    push: Omit<Push, 'type' | 'sequence'>,
    payloadBytes: readonly number[],
    write: (payloads: readonly Uint8Array[]) => void,
    rows?: readonly RowsOfPush[],
  ): number;
  pushReady(
    push: Omit<Push, 'type' | 'sequence'>,
    payloads: readonly Landing[],
    rows?: readonly RowsOfPush[],
  ): number;
  send(message: Evaluated | Observed): void;
  acknowledge(acknowledgement: Acknowledgement): void;
  /** Whether the server takes this beside work; absent: it takes nothing. */
  takes?(aside: Aside): boolean;
  resend(run: string): number;
}

export interface TrainerOptions {
  readonly run: string;
  readonly config: Pick<
    RunConfig,
    | 'seed'
    | 'compression'
    | 'consistency'
    | 'minibatchSize'
    | 'optimizer'
    | 'weightDecay'
    | 'clip'
    | 'local'
  > &
    Partial<Pick<RunConfig, 'evaluateTraining' | 'observe' | 'tables'>>;
  readonly model: Model;
  readonly prepared: PreparedData;
  /** Rows of a table that are never changed; absent: none are. */
  readonly frozenRows?: ((table: string) => FrozenRows | null) | undefined;
  /** Examples with what the model says of them now; absent: none are shown. */
  readonly show?: () => Promise<ShownExamples>;
  /** The ranges of the shards that get the parts of each push; absent: one gets all. */
  readonly ranges?: readonly Range[];
  readonly exchange: Exchange;
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
  /** What other runs of the experiment may have said already. Default: `log`. */
  readonly warn?: (line: string) => void;
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
  /** The loss of the minibatch. */
  readonly loss: number | null;
  readonly examples: number;
  readonly computeMs: number;
}

export interface Trainer {
  /** Other groups may be frozen now. @param groups by name; absent: none ever is. */
  freeze(groups: readonly string[] | undefined): void;
  /** The connection is new and `join` has been sent: what was not acknowledged goes out again. */
  noteRejoin(): void;
  /**
   * Does what the server asks for, and answers it.
   * @param payload the trainer's from now: nobody may write to it until `release` is called.
   * @param release called once, when no tensor can share the payload's memory any more: the
   *   connection may then receive into it again. That is after newer parameters have been put on the
   *   device, not when `work` resolves.
   * @param rows of tables that came with it, as `encodeRows` has them, from each shard.
   */
  work(
    message: Work,
    payload: Float32Array,
    release?: () => void,
    rows?: readonly Uint8Array[],
  ): Promise<void>;
  /** Releases every payload. Call it when the model has been disposed of. */
  close(): void;
}

const NOTHING_OBSERVED = { everySteps: null, costMax: 0.02 };

/** Computes gradients of leased minibatches for one run. */
export function createTrainer(options: TrainerOptions): Trainer {
  return new RunTrainer(options);
}

/** Parameters that gradients are computed at. */
interface Pulled {
  readonly values: Float32Array;
  readonly step: number;
  readonly generation: number;
}

interface AheadMinibatch {
  readonly lease: Lease;
  readonly minibatch: Minibatch;
  readonly keys: readonly Uint32Array[];
}

class RunTrainer implements Trainer {
  readonly #options: TrainerOptions;
  readonly #now: () => number;
  readonly #minibatches: Minibatches;
  #compressor: Compressor;
  /** Null: the run takes no local steps. */
  readonly #local: LocalSteps | null;
  /** Null: the experiment carries nothing from minibatch to minibatch. */
  #carried: CarriedState | null;
  #observer: Observer | null;
  /** Null: the model has no tables. */
  readonly #rows: RowsExchange | null;
  /** The minibatch whose rows were asked for with the last push. */
  #ahead: AheadMinibatch | null = null;
  /** What to do when the pushes under way are answered, by sequence; for those whose payloads were written. */
  readonly #settles = new Map<number, { readonly settle: Settle; discard(): void }>();
  /** Why steps are not recorded, as it was told last. */
  #refusal: string | null = null;
  readonly #rejections = new Said();
  /** The newest parameters. */
  #current: Pulled | null = null;
  /** Payloads not released yet: `#current`, and what the model was loaded with last. */
  readonly #payloads = new Map<Float32Array, () => void>();
  #mustResend = false;
  /** The last result, and whether it has been sent: with several pushes under way each answer asks for it. */
  #evaluated: Evaluated | null = null;
  #isTold = false;
  #isShowingInVain = false;
  /** Other groups are frozen than at first. */
  #isRefitted = false;

  constructor(options: TrainerOptions) {
    const { config, model, prepared } = options;
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#minibatches = new Minibatches(config.seed, prepared, options.signal);
    this.#compressor = this.#newCompressor();
    this.#local = localOf(config) ? new LocalSteps(config, model.layout, options.ranges) : null;
    this.#carried = this.#newCarried();
    this.#observer = this.#newObserver();
    this.#rows = model.rows
      ? new RowsExchange(
          ...([options.run, model.rows.shapes, config, mustPull(options.exchange)] as const),
          options.ranges?.length,
          options.frozenRows,
        )
      : null;
    if (this.#rows) model.rows!.from(this.#rows.sourceOf(null));
  }

  #newCompressor(): Compressor {
    const { config, model, ranges } = this.#options;
    return createCompressor(
      config.compression,
      model.layout,
      this.#isRefitted ? undefined : ranges,
      fragmentsOf(config),
    );
  }

  #newCarried(): CarriedState | null {
    const { carriedSize, layout } = this.#options.model;
    return carriedSize > 0 ? new CarriedState(carriedSize, layout.exchangedSize) : null;
  }

  #newObserver(): Observer | null {
    const { run, config, model, exchange } = this.#options;
    return createObserver({
      ...{ run, model, now: this.#now, config: config.observe ?? NOTHING_OBSERVED },
      send: (message) => exchange.send(message),
    });
  }

  freeze(frozen: readonly string[] | undefined): void {
    const { model, log } = this.#options;
    if (!frozen || !model.freeze(frozen)) return;
    log(frozen.length > 0 ? `frozen now: ${frozen.join(', ')}` : 'no group is frozen any more');
    // What waits to be sent later belongs to another layout, as the pushes under way do. With several shards no group thaws.
    this.#isRefitted = true;
    this.#compressor = this.#newCompressor();
    this.#observer = this.#newObserver();
    this.#carried = this.#newCarried();
    for (const { discard } of this.#settles.values()) discard();
    this.#settles.clear();
    this.#current = null;
    this.#releaseUnused();
  }

  noteRejoin(): void {
    this.#mustResend = true;
    this.#carried?.noteRejoin();
    // The result may have been lost with the connection: it is told once more when it is asked for.
    this.#isTold = false;
  }

  async work(
    message: Work,
    received: Float32Array,
    release?: () => void,
    rows?: readonly Uint8Array[],
  ): Promise<void> {
    const { evaluation } = message;
    this.freeze(message.frozen);
    const payload = this.#receive(message, received, release);
    this.#acknowledge(message.acknowledgements);
    if (this.#mustResend) {
      this.#mustResend = false;
      this.#options.exchange.resend(this.#options.run);
    }
    this.#rows?.receive(message, rows);
    try {
      if (evaluation) return await this.#evaluate(evaluation, payload, message.step);
      this.#pull(message, payload);
      if (this.#current) await this.#pushGradients(message);
    } catch (error) {
      // What the server sends next says what is to be done.
      if (!(error instanceof RowsLost)) throw error;
    }
  }

  close(): void {
    this.#minibatches.close();
    for (const release of this.#payloads.values()) release();
    this.#payloads.clear();
    this.#current = null;
  }

  /** @returns the payload without padding: an odd number of elements in bf16 comes with one more. */
  #receive({ encoding }: Work, received: Float32Array, release?: () => void): Float32Array {
    const { exchangedSize } = this.#options.model.layout;
    const isPadded = encoding !== 'f32' && received.length === exchangedSize + 1;
    const payload = isPadded ? received.subarray(0, exchangedSize) : received;
    if (release && payload.length > 0) this.#payloads.set(payload, release);
    else release?.();
    return payload;
  }

  #acknowledge(acknowledgements: readonly Acknowledgement[]): void {
    const { exchange, onAcknowledged, log } = this.#options;
    for (const acknowledgement of acknowledgements) this.#settle(acknowledgement);
    const newest = acknowledgements.at(-1);
    if (newest) exchange.acknowledge(newest);
    for (const acknowledgement of acknowledgements) {
      onAcknowledged?.(acknowledgement);
      tellRejection(acknowledgement, this.#rejections, log);
    }
  }

  #settle({ sequence, outcome }: Acknowledgement): void {
    // Its rows may be why, and the minibatch is computed again.
    if (outcome === 'rejected') this.#rows?.reset();
    this.#local?.settled(outcome);
    this.#carried?.settled(sequence, outcome);
    this.#settles.get(sequence)?.settle(outcome);
    for (const [earlier, { discard }] of this.#settles) {
      if (earlier > sequence) continue;
      this.#settles.delete(earlier);
      discard();
    }
  }

  async #evaluate(
    { id, part }: NonNullable<Work['evaluation']>,
    payload: Float32Array,
    step: number,
  ): Promise<void> {
    const { run, config, model, prepared, exchange, signal } = this.#options;
    if (id !== this.#evaluated?.evaluation) {
      const alsoTraining = part === 'validation' ? config.evaluateTraining : 0;
      let shown: ShownExamples = [];
      const meanwhile = async () => {
        if (part === 'validation' && exchange.takes?.('examples')) shown = await this.#show();
      };
      const options = { signal, alsoTraining, step, meanwhile };
      const result = await this.#withRows(id, () =>
        evaluate(model, payload, prepared, part, options),
      );
      const more = shown.length > 0 ? { shown } : {};
      this.#evaluated = { type: 'evaluated', run, evaluation: id, ...result, ...more };
      this.#isTold = false;
    }
    this.#releaseUnused();
    if (!this.#isTold) exchange.send(this.#evaluated!);
    this.#isTold = true;
  }

  /** Rows of tables are those of an evaluation meanwhile. */
  async #withRows<T>(evaluation: number, run: () => Promise<T>): Promise<T> {
    const { rows } = this.#options.model;
    if (!rows) return run();
    rows.load(null);
    rows.from(this.#rows!.sourceOf(evaluation));
    try {
      return await run();
    } finally {
      rows.load(null);
      rows.from(this.#rows!.sourceOf(null));
    }
  }

  /** They are for people: an evaluation does not fail for lack of them. */
  async #show(): Promise<ShownExamples> {
    const { show, log, warn = log } = this.#options;
    if (!show || this.#isShowingInVain) return [];
    try {
      return await show();
    } catch (error) {
      this.#isShowingInVain = true;
      warn(`no examples are shown with their predictions: ${errorText(error)}`);
      return [];
    }
  }

  /** Without a payload, the parameters that came last are still the newest. */
  #pull(message: Work, payload: Float32Array): void {
    const { step, generation, encoding, local, fragment = null } = message;
    if (generation !== this.#current?.generation) {
      this.#compressor.reset();
      this.#local?.reset();
      this.#carried?.reset();
    }
    // A model of rows alone has no numbers there, and is at the step of each message.
    const isNew = payload.length > 0 || this.#options.model.layout.exchangedSize === 0;
    if (isNew && local?.fragment !== undefined) {
      // What has come is in its place now, and nobody reads it from the payload.
      const values = this.#local!.receive(payload, fragment);
      this.#current = { values, step, generation };
    } else if (isNew) {
      this.#current = { values: payload, step, generation };
      this.#observer?.notePull(payload, step, generation, encoding === 'f32');
    }
    this.#releaseUnused();
  }

  async #pushGradients({ leases, phase, local }: Work): Promise<void> {
    const { exchange, config } = this.#options;
    const { depth } = config.consistency;
    while (exchange.unacknowledged.length < depth) {
      const lease = this.#waiting(leases);
      if (!lease) return;
      if (depth > 1) {
        // A step holds the process up; what has arrived meanwhile is read in one turn of the event
        // loop. It will call again, and the gradient is then computed at those newer parameters.
        await nextTurn();
        if (exchange.hasReceived) return;
      }
      if (local) await this.#pushLocal(lease, phase, this.#current!, local);
      else await this.#pushGradient(lease, phase, this.#current!, leases);
      if (this.#options.signal.aborted) return;
    }
    // While the push is on its way: the examples of the next minibatch.
    const next = this.#waiting(leases);
    if (next && !local && !this.#isAhead(next)) this.#minibatches.prepare(next);
  }

  /** Reads a minibatch of a source; while it is computed, the next one is read. */
  #read(lease: Lease, leases: readonly Lease[]): Minibatch | Promise<Minibatch> {
    const minibatch = this.#minibatches.take(lease);
    const at = leases.findIndex(({ id, start }) => id === lease.id && start === lease.start);
    const next = leases[at + 1];
    if (next) this.#minibatches.prepare(next);
    return minibatch;
  }

  #waiting(leases: readonly Lease[]): Lease | undefined {
    const { unacknowledged } = this.#options.exchange;
    return leases.find(({ id }) => !unacknowledged.some(({ lease }) => lease === id));
  }

  async #pushGradient(
    lease: Lease,
    phase: Phase,
    current: Pulled,
    leases: readonly Lease[],
  ): Promise<void> {
    const { run, config, model } = this.#options;
    const { values, step, generation } = current;
    const ahead = this.#isAhead(lease) ? this.#ahead : null;
    const minibatch =
      ahead?.minibatch ??
      (this.#minibatches.areRead
        ? await this.#read(lease, leases)
        : (this.#minibatches.take(lease) as Minibatch));
    const seed = minibatchSeed(config.seed, lease);
    const keys = ahead?.keys ?? (await model.rows?.keysOf(minibatch, seed));
    const held = keys ? await this.#loadRows(keys, generation) : null;
    const start = this.#now();
    this.#load(values, step, this.#carried?.next(values));
    const { loss, gradient, rows, discard } = await model.step(minibatch, seed);
    const computeMs = this.#now() - start;
    this.#tellRefusal();
    const told = measuredOf(loss);
    const { encoding } = this.#compressor;
    const push = { run, lease: lease.id, step, generation, loss: told, computeMs, encoding };
    const pushed = this.#carried?.take(gradient);
    const more = held && this.#rows!.pushed(rows!, held.step, await this.#wanted(lease, leases));
    const sequence = this.#send(push, lease, { values: gradient, discard }, more);
    pushed?.(sequence);
    const { onProgress } = this.#options;
    onProgress?.({ run, phase, step, loss: told, examples: lease.count, computeMs });
    // While the push travels: nobody waits for a sample but the next gradient.
    const computed = { lease, minibatch, values, gradient, step, generation, computeMs };
    if (told !== null) await this.#observer?.noteGradient(computed);
  }

  async #loadRows(keys: readonly Uint32Array[], generation: number) {
    const held = await this.#rows!.rowsFor(keys, generation);
    this.#options.model.rows!.load(held.rows);
    return held;
  }

  /** Keys of the rows of the minibatch after a lease. @returns null: it is not known yet. */
  async #wanted(lease: Lease, leases: readonly Lease[]) {
    const { config, model } = this.#options;
    const next = this.#waiting(leases.filter(({ id }) => id !== lease.id));
    if (!next) return null;
    const minibatch = await this.#minibatches.take(next);
    const keys = await model.rows!.keysOf(minibatch, minibatchSeed(config.seed, next));
    this.#ahead = { lease: next, minibatch, keys };
    return keys;
  }

  #isAhead({ id, start, count }: Lease): boolean {
    const lease = this.#ahead?.lease;
    return lease?.id === id && lease.start === start && lease.count === count;
  }

  /** Trains on all minibatches of a lease, and pushes what came of it. */
  async #pushLocal(lease: Lease, phase: Phase, current: Pulled, work: LocalWork): Promise<void> {
    const { run, onProgress } = this.#options;
    const { values, step, generation } = current;
    const start = this.#now();
    const all = minibatchesOf(lease, this.#options.config.minibatchSize);
    const result = await this.#local!.take(lease, values, work, (minibatch, at) =>
      this.#gradientOf(minibatch, at, current, all),
    );
    if (!result) return;
    const computeMs = this.#now() - start;
    const { loss, payload, discard } = result;
    const told = measuredOf(loss);
    const { encoding } = this.#compressor;
    const { push: kind, fragment } = work;
    const what = { kind, ...(fragment !== undefined && { fragment }) };
    const push = {
      run,
      lease: lease.id,
      step,
      generation,
      loss: told,
      computeMs,
      encoding,
      ...what,
    };
    this.#send(push, lease, { values: payload, discard });
    onProgress?.({ run, phase, step, loss: told, examples: lease.count, computeMs });
  }

  /** @param at where the worker is after its steps so far. @returns null: the worker ends. */
  async #gradientOf(
    lease: Lease,
    at: Float32Array,
    { values, step, generation }: Pulled,
    leases: readonly Lease[],
  ): Promise<LocalGradient | null> {
    const { config, model, signal } = this.#options;
    // A lease takes long: meanwhile the connection is to be answered, and the worker to hear that it ends.
    await nextTurn();
    if (signal.aborted) return null;
    const minibatch = await this.#read(lease, leases);
    const start = this.#now();
    this.#load(at, step);
    const given = await model.step(minibatch, minibatchSeed(config.seed, lease));
    this.#tellRefusal();
    if (at !== values || measuredOf(given.loss) === null) return given;
    const { gradient } = given;
    const computeMs = this.#now() - start;
    const computed = { lease, minibatch, values, gradient, step, generation, computeMs };
    await this.#observer?.noteGradient(computed);
    return given;
  }

  /** @param carried absent: nothing is carried from minibatch to minibatch. */
  #load(values: Float32Array, step: number, carried?: Float32Array): void {
    const { model } = this.#options;
    if (model.loaded === values && !carried) return;
    model.load(values, step, carried);
    this.#releaseUnused();
  }

  #send(
    push: Omit<Push, 'type' | 'sequence'>,
    { epoch }: Lease,
    { values, discard }: { readonly values: Float32Array; discard(): void },
    more: readonly RowsOfPush[] | null = null,
  ): number {
    const { exchange } = this.#options;
    const { fragment } = push;
    const header = more ? { ...push, rows: more[0]!.rows } : push;
    const whole = fragment === undefined ? this.#compressor.asItStands(values) : null;
    if (whole) {
      return exchange.pushReady(header, [{ bytes: whole, release: discard }], more ?? undefined);
    }
    let settle: Settle | null = null;
    const bytes = this.#compressor.payloadBytes(epoch, fragment);
    const write = (payloads: readonly Uint8Array[]) => {
      settle = this.#compressor.write(values, epoch, payloads, fragment);
    };
    const sequence = exchange.push(header, bytes, write, more ?? undefined);
    this.#settles.set(sequence, { settle: settle!, discard });
    return sequence;
  }

  /** Once: a step by single operations takes longer, and somebody may want to know why. */
  #tellRefusal(): void {
    const { model, log, warn = log } = this.#options;
    if (model.refusal === this.#refusal) return;
    this.#refusal = model.refusal;
    warn(
      `steps run by single operations, which takes longer than a recorded step: ${this.#refusal}`,
    );
  }

  #releaseUnused(): void {
    const { model } = this.#options;
    for (const [values, release] of this.#payloads) {
      if (values === this.#current?.values || values === model.loaded) continue;
      this.#payloads.delete(values);
      release();
    }
  }
}

/** Ordinary under asynchrony, and counted by the server. */
const QUIET: readonly (string | null)[] = ['DP_PUSH_STALE', 'DP_PUSH_PHASE', 'DP_PUSH_LEASE_LOST'];

/** Once for each reason: the server counts them all. */
function tellRejection(
  { outcome, sequence, code, message }: Acknowledgement,
  said: Said,
  log: (line: string) => void,
): void {
  if (outcome !== 'rejected' || QUIET.includes(code)) return;
  // The next one would be made in the same way, and be sent at once.
  if (code === 'DP_TENSOR_SIZE' || code === 'DP_ROWS_INVALID') {
    throw new DownpourError(code, message ?? 'rejected');
  }
  if (said.isNew(causeOf(`${code} ${message}`))) {
    log(`push ${sequence} was rejected: ${code} ${message}`);
  }
}
