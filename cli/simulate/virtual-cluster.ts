import { setImmediate as turn } from 'node:timers/promises';
import { bytesOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { fragmentsOf } from '../../shared/local-steps.ts';
import type { DataSummary, Join, Lease, LeasePart, LocalWork } from '../../shared/protocol.ts';
import { mix, type Random, random } from '../../shared/random.ts';
import { type Compressor, createCompressor, type Settle } from '../../worker/compressor.ts';
import { LocalSteps } from '../../worker/local-steps.ts';
import type { RowSource } from '../../worker/rows/model-rows.ts';
import { EventQueue, ServiceQueue, SharedCores } from './events.ts';
import type { ComputeLaw } from './laws.ts';
import { behind, type RowsOfStep, type SimulatedRows, VirtualStepRows } from './virtual-rows.ts';
import { VirtualServer, type VirtualWork } from './virtual-server.ts';
import { type Failures, type FleetChange, type Network, NO_NETWORK, transferMs } from './world.ts';

/**
 * A run with any number of workers in virtual time: the server's own run with its kernels, real gradients at the
 * parameters that each worker was sent, and a clock that jumps from one event to the next. Equal to the bit for
 * equal options, as far as the problem's gradients are.
 */

/** What the virtual workers train. */
export interface VirtualProblem {
  readonly tensors: Join['tensors'];
  readonly data: DataSummary;
  readonly errorMeasure?: Join['errorMeasure'];
  /** Other groups may be frozen from now on, so that the layout is another one. @param groups by name. */
  freeze?(groups: readonly string[]): void;
  /** Initial parameters, shape [layout.size]. */
  initialise(seed: number): Float32Array | Promise<Float32Array>;
  /**
   * @param parameters shape [exchangedSize] or [layout.size], to be read during the call only.
   * @param payload where gradient and statistics go, shape [exchangedSize].
   * @param seed another one for each call: noise may draw from it. @param rows of the tables; absent: there are none.
   * @returns the loss.
   */
  gradient(
    lease: Lease,
    parameters: Float32Array,
    payload: Float32Array,
    seed: number,
    rows?: RowsOfStep,
  ): number | Promise<number>;
  /** @param rows of the tables, as they were when the evaluation began; absent: there are none. */
  evaluate(
    part: LeasePart,
    parameters: Float32Array,
    rows?: RowSource,
  ): VirtualEvaluation | Promise<VirtualEvaluation>;
}

export interface VirtualEvaluation {
  readonly loss: number | null;
  readonly error: number | null;
  readonly metrics?: Readonly<Record<string, number | null>>;
}

export interface VirtualClusterOptions {
  readonly problem: VirtualProblem;
  readonly config: PartialConfig;
  readonly workers: number;
  readonly compute: ComputeLaw;
  readonly network?: Network;
  /** Time of the server's one thread for each push, ms. */
  readonly serviceMs?: number;
  /** All workers share so many; absent: each has one of its own. */
  readonly cores?: number;
  /** What the first gradient of a process takes beyond the others, ms. */
  readonly warmUpMs?: number;
  /** How long an evaluation takes, ms. */
  readonly evaluationMs?: number;
  readonly failures?: Failures;
  readonly changes?: readonly FleetChange[];
  /** Seed of the times; the run has its own. */
  readonly seed: number;
  /** Ends it earlier, between two events. */
  readonly until?: (now: { readonly step: number; readonly ms: number }) => boolean;
  /** After each applied update. */
  readonly onStep?: (step: AppliedStep) => void;
  /** Now and then. @param step updates so far. @param stepsMax null: nobody knows. */
  readonly onProgress?: (step: number, nowMs: number, stepsMax: number | null) => void;
  readonly signal?: AbortSignal;
}

export interface AppliedStep {
  readonly step: number;
  readonly nowMs: number;
  readonly worker: number;
  readonly staleness: number;
  /** At the parameters that the worker was sent. */
  readonly loss: number;
}

export interface VirtualOutcome {
  readonly server: VirtualServer;
  /** When it ended. */
  readonly nowMs: number;
  /** [i]: pushes applied with staleness i. */
  readonly staleness: readonly number[];
  readonly applied: number;
  /** Gradients that were computed and not used: rejected, lost with their worker, or for a phase that was over. */
  readonly unused: number;
  readonly failures: number;
  /** Bytes of all messages, in both directions. */
  readonly bytes: number;
  /** Bytes of pushes alone. */
  readonly pushedBytes: number;
  /** Share of the time that the server's thread works; null: its work takes no time. */
  readonly serverBusy: number | null;
  /** Share of the time that workers are there in which they compute. */
  readonly computing: number;
  readonly events: number;
}

interface VirtualWorker {
  readonly index: number;
  /** Incarnation of the process: one more each time that it comes back. */
  incarnation: number;
  key: string;
  /** Shape [exchangedSize]; made when it is needed first. */
  payload: Float32Array | null;
  compressor: Compressor | null;
  /** Made when it is needed first. */
  local: LocalSteps | null;
  readonly computeMs: () => number;
  readonly fate: Random;
  sequence: number;
  /** Generation of the parameters that it was sent last for local steps. */
  generation: number;
  /** Generation of those that it goes on from by fragments; -1: it has none. */
  base: number;
  /** It has computed a gradient. */
  isWarm: boolean;
  state: 'here' | 'away' | 'gone';
  computingMs: number;
  joinedMs: number;
  presentMs: number;
}

interface Happening {
  /** Null: of nobody in particular. */
  readonly worker: VirtualWorker | null;
  /** It is over when its worker is another process by then. */
  readonly incarnation: number;
  readonly act: (nowMs: number) => void | Promise<void>;
}

const TICK_MS = 1_000;
const FATE_STREAM = 0x5000_0000;
/** The rest of the process gets a turn so often. */
const TURN_MS = 50;
/** The world's clock is looked at once in so many events. */
const LOOK_EVENTS = 16;

/** Trains to the end. @throws DownpourError DP_USAGE: too many workers for the memory, `consistency.depth` above 1; the signal's reason. */
export function simulateRun(options: VirtualClusterOptions): Promise<VirtualOutcome> {
  return new VirtualCluster(options).run();
}

/** A virtual worker waits for the answer to its push before it computes the next gradient. */
function mustHaveOnePush(config: PartialConfig): void {
  const { depth } = resolveConfig(config).consistency;
  if (depth === 1) return;
  throw new DownpourError(
    'DP_USAGE',
    `consistency.depth is ${depth}, but virtual workers have one push under way at a time: simulate with --set consistency.depth=1`,
  );
}

class VirtualCluster {
  readonly #options: VirtualClusterOptions;
  readonly #server: VirtualServer;
  readonly #network: Network;
  readonly #queue = new EventQueue<Happening>();
  readonly #cores: SharedCores<Happening> | null;
  readonly #thread = new ServiceQueue();
  readonly #in = new ServiceQueue();
  readonly #out = new ServiceQueue();
  readonly #workers: VirtualWorker[] = [];
  readonly #idle = new Set<VirtualWorker>();
  readonly #staleness: number[] = [];
  #applied = 0;
  #computed = 0;
  #failures = 0;
  #bytes = 0;
  #pushedBytes = 0;
  #events = 0;
  #nowMs = 0;

  constructor(options: VirtualClusterOptions) {
    this.#options = options;
    mustHaveOnePush(options.config);
    const { tensors, data, errorMeasure } = options.problem;
    this.#server = new VirtualServer(options.config, {
      ...{ tensors, data },
      ...(errorMeasure === undefined ? {} : { errorMeasure }),
    });
    this.#network = options.network ?? NO_NETWORK;
    this.#cores = options.cores === undefined ? null : new SharedCores(options.cores);
  }

  async run(): Promise<VirtualOutcome> {
    const { workers, changes = [], until, onProgress, signal } = this.#options;
    const server = this.#server;
    this.#mustFit(Math.max(workers, ...totals(workers, changes)));
    await this.#come(workers);
    for (const change of changes) {
      this.#happens(1_000 * change.atSeconds, () =>
        change.workers > 0 ? this.#come(change.workers) : this.#go(-change.workers),
      );
    }
    let ticked = 0;
    let turned = performance.now();
    while (!server.over) {
      const happensAt = Math.min(this.#queue.next?.at ?? Infinity, this.#cores?.nextMs ?? Infinity);
      // A step may wait for its time, and nobody else for anything.
      const at = Math.min(happensAt, server.deadline ?? Infinity);
      if (at === Infinity) {
        throw new DownpourError(
          'DP_RUN_UNFINISHED',
          `no worker has anything left to do, and the run is ${server.phase} at step ${server.step}: nobody is left, or the configuration waits for more workers (workersMin ${server.config.workersMin}, here ${this.#here}); let workers come back or stay`,
        );
      }
      const isTick = ticked + TICK_MS <= at;
      if (isTick) ticked += TICK_MS;
      if (isTick || at < happensAt) {
        // Who has been away for too long is waited for no more.
        this.#nowMs = isTick ? ticked : at;
        server.tick(this.#nowMs);
        while (server.takeWake()) await this.#wake();
        continue;
      }
      this.#nowMs = at;
      const ends = (this.#cores?.nextMs ?? Infinity) <= (this.#queue.next?.at ?? Infinity);
      const { worker, incarnation, act } = ends ? this.#cores!.pop() : this.#queue.pop()!.item;
      // A process that is no more does nothing.
      if (worker === null || worker.incarnation === incarnation) {
        const acted = act(at);
        if (acted) await acted;
      }
      // One for whom there is nothing may have been the last that a step waited for.
      while (server.takeWake()) await this.#wake();
      if (++this.#events % LOOK_EVENTS === 0 && performance.now() - turned >= TURN_MS) {
        onProgress?.(server.step, at, server.stepsMax);
        await turn();
        signal?.throwIfAborted();
        turned = performance.now();
      }
      if (until?.({ step: server.step, ms: at })) break;
    }
    return this.#outcome();
  }

  #outcome(): VirtualOutcome {
    const nowMs = this.#nowMs;
    let present = 0;
    let computing = 0;
    for (const worker of this.#workers) {
      present += worker.presentMs + (worker.state === 'here' ? nowMs - worker.joinedMs : 0);
      computing += worker.computingMs;
    }
    return {
      ...{ server: this.#server, nowMs, staleness: this.#staleness, applied: this.#applied },
      ...{ unused: this.#computed - this.#applied, failures: this.#failures },
      ...{ bytes: this.#bytes, pushedBytes: this.#pushedBytes, events: this.#events },
      serverBusy:
        this.#options.serviceMs === undefined || nowMs === 0 ? null : this.#thread.busyMs / nowMs,
      computing: present > 0 ? computing / present : 0,
    };
  }

  get #here(): number {
    return this.#workers.filter(({ state }) => state === 'here').length;
  }

  /** Each worker's gradient, with local steps also its parameters and its optimizer's state, is kept until it has arrived. */
  #mustFit(workers: number): void {
    const numbers = this.#options.problem.tensors
      .filter(({ role }) => role !== 'frozen')
      .reduce((sum, { shape }) => sum + shape.reduce((product, d) => product * d, 1), 0);
    const bytes = 4 * numbers * workers;
    const most = LIMITS.simulatedBytesMax;
    if (bytes > most) {
      const mib = (value: number) => Math.ceil(value / 2 ** 20);
      throw new DownpourError(
        'DP_USAGE',
        `${workers} virtual workers with gradients of ${numbers} numbers take ${mib(bytes)} MiB; at most ${mib(most)} MiB are allowed: simulate at most ${Math.floor(most / (4 * numbers))} workers, or a smaller model`,
      );
    }
  }

  // Who is there.

  async #come(count: number): Promise<void> {
    const { seed, compute } = this.#options;
    const fresh: VirtualWorker[] = [];
    for (let i = 0; i < count; i++) {
      const index = this.#workers.length;
      const worker: VirtualWorker = {
        ...{
          index,
          incarnation: 1,
          key: `w${index}/1`,
          payload: null,
          compressor: null,
          local: null,
        },
        computeMs: compute.worker(index, seed),
        fate: random(seed, FATE_STREAM + index),
        ...{
          sequence: 0,
          generation: 0,
          base: -1,
          isWarm: false,
          state: 'here',
          computingMs: 0,
          joinedMs: this.#nowMs,
          presentMs: 0,
        },
      };
      this.#workers.push(worker);
      fresh.push(worker);
      this.#server.join(worker.key, this.#nowMs);
      this.#mayFail(worker);
    }
    for (const worker of fresh) await this.#begin(worker, this.#nowMs);
  }

  #go(count: number): void {
    const here = this.#workers.filter(({ state }) => state !== 'gone');
    for (const worker of here.slice(-count)) {
      this.#depart(worker, this.#nowMs, 'gone');
      this.#server.leave(worker.key);
    }
  }

  #depart(worker: VirtualWorker, nowMs: number, to: 'away' | 'gone'): void {
    if (worker.state === 'here') worker.presentMs += nowMs - worker.joinedMs;
    worker.state = to;
    worker.incarnation++;
    worker.payload = null;
    worker.compressor = null;
    worker.local = null;
    worker.base = -1;
    worker.isWarm = false;
    this.#idle.delete(worker);
  }

  #mayFail(worker: VirtualWorker): void {
    const { failures } = this.#options;
    if (!failures) return;
    const after = (seconds: number) => -1_000 * seconds * Math.log(1 - worker.fate.uniform());
    this.#happens(
      this.#nowMs + after(failures.everySeconds),
      (nowMs) => {
        this.#failures++;
        this.#server.detach(worker.key, nowMs);
        this.#depart(worker, nowMs, 'away');
        this.#happens(
          nowMs + after(failures.awaySeconds),
          async (backMs) => {
            worker.state = 'here';
            worker.joinedMs = backMs;
            worker.key = `w${worker.index}/${worker.incarnation}`;
            worker.sequence = 0;
            this.#server.join(worker.key, backMs);
            this.#mayFail(worker);
            await this.#begin(worker, backMs);
          },
          worker,
        );
      },
      worker,
    );
  }

  #happens(atMs: number, act: Happening['act'], worker: VirtualWorker | null = null): void {
    this.#queue.push(atMs, { worker, incarnation: worker?.incarnation ?? 0, act });
  }

  async #wake(): Promise<void> {
    const waiting = [...this.#idle];
    this.#idle.clear();
    for (const worker of waiting) await this.#begin(worker, this.#nowMs);
  }

  // What workers do.

  /** Asks the server for work; what is computed from it is computed at once, and ends when its time has come. */
  async #begin(worker: VirtualWorker, nowMs: number): Promise<void> {
    const { problem } = this.#options;
    const work = this.#server.assign(worker.key, nowMs, worker.base);
    if (work.kind === 'end') return;
    if (work.kind === 'wait') {
      this.#idle.add(worker);
      return;
    }
    if (work.kind === 'initialise') {
      const { grant, seed } = work;
      const values = await problem.initialise(seed);
      this.#happens(
        nowMs,
        (now) => {
          this.#server.initialised(worker.key, grant, values, now);
          return this.#begin(worker, now);
        },
        worker,
      );
      return;
    }
    if (work.kind === 'evaluation') {
      await this.#evaluate(worker, work, this.#hereMs(work.bytes, nowMs));
    } else await this.#compute(worker, work, nowMs);
  }

  /** When what the server sends has arrived. */
  #hereMs(bytes: number, nowMs: number): number {
    return this.#carried(this.#out, bytes, nowMs) + this.#onTheWay(bytes);
  }

  async #evaluate(
    worker: VirtualWorker,
    { id, part, parameters }: Extract<VirtualWork, { kind: 'evaluation' }>,
    hereMs: number,
  ): Promise<void> {
    const { problem, evaluationMs = 0 } = this.#options;
    this.#freeze();
    const server = this.#server;
    const rows: RowSource = async (keys) => server.rows(worker.key, keys, id).rows;
    const source = server.rowShapes.length > 0 ? rows : undefined;
    const { loss, error, metrics = {} } = await problem.evaluate(part, parameters, source);
    const known = (value: number | null) =>
      value !== null && Number.isFinite(value) ? value : null;
    const result = { part, evaluation: id, loss: known(loss), error: known(error), metrics };
    this.#occupies(worker, hereMs, evaluationMs, (endMs) =>
      this.#happens(
        endMs + this.#network.latencyMs,
        (now) => {
          this.#server.evaluated(worker.key, result, now);
          return this.#begin(worker, now);
        },
        worker,
      ),
    );
  }

  async #compute(
    worker: VirtualWorker,
    work: Extract<VirtualWork, { kind: 'gradient' }>,
    nowMs: number,
  ): Promise<void> {
    const { lease, local, step, generation } = work;
    const computed: Computed = local
      ? await this.#takesSteps(worker, work, local)
      : await this.#gradientOf(worker, work);
    const { loss, payload, rows } = computed;
    const hereMs = this.#hereMs(work.bytes + (rows?.pulledBytes ?? 0), nowMs);
    const computeMs = computed.computeMs + (worker.isWarm ? 0 : (this.#options.warmUpMs ?? 0));
    worker.isWarm = true;
    this.#computed++;
    const fragment = local?.fragment;
    const { bytes: own, encoding, settle } = this.#encoded(worker, payload, lease, fragment);
    const bytes = rows ? behind(own, rows.tail) : own;
    worker.computingMs += computeMs;
    this.#occupies(worker, hereMs, computeMs, (endMs) => {
      const apply = (nowMs: number) => {
        const push = {
          ...{ sequence: ++worker.sequence, lease: lease.id, step, generation, computeMs },
          ...{ loss: Number.isFinite(loss) ? loss : null, encoding },
          ...(local && { kind: local.push }),
          ...(fragment !== undefined && { fragment }),
          ...(rows && { rows: rows.header }),
        };
        const before = this.#server.step;
        const answer = this.#server.push(worker.key, push, bytes, nowMs);
        settle?.(answer.outcome);
        worker.local?.settled(answer.outcome);
        const { outcome, staleness } = answer;
        if (outcome === 'applied' || outcome === 'damped') this.#counts(staleness);
        const { step: now } = this.#server;
        if (now > before) {
          this.#options.onStep?.({ step: now, nowMs, worker: worker.index, staleness, loss });
        }
        return this.#begin(worker, nowMs);
      };
      this.#happens(
        endMs + this.#onTheWay(bytes.length),
        (now) => {
          this.#pushedBytes += bytes.length;
          const hasItMs = this.#carried(this.#in, bytes.length, now);
          // It is applied when the server's thread has come to it.
          const appliedMs = this.#thread.serve(hasItMs, this.#options.serviceMs ?? 0);
          if (appliedMs === now) return apply(now);
          this.#happens(appliedMs, apply, worker);
        },
        worker,
      );
    });
  }

  async #gradientOf(
    worker: VirtualWorker,
    { lease, parameters }: Extract<VirtualWork, { kind: 'gradient' }>,
  ): Promise<Computed> {
    const { problem } = this.#options;
    const { exchangedSize, layout } = this.#server;
    this.#freeze();
    if (worker.payload?.length !== exchangedSize) {
      worker.payload = new Float32Array(exchangedSize);
      worker.compressor = null;
    }
    const { payload } = worker;
    // Frozen values come with the parameters, since they may have been trained before.
    const isWhole = parameters.length === layout.size;
    const exchanged = isWhole ? parameters : parameters.subarray(0, exchangedSize);
    const rows =
      this.#server.rowShapes.length > 0 ? new VirtualStepRows(this.#server, worker.key) : null;
    const seed = this.#seedOf(worker);
    const given = problem.gradient(lease, exchanged, payload, seed, rows ?? undefined);
    const loss = typeof given === 'number' ? given : await given;
    return {
      loss,
      payload,
      computeMs: worker.computeMs(),
      ...(rows?.pushed && { rows: rows.pushed }),
    };
  }

  /** The problem computes for the groups that are trained now. */
  #freeze(): void {
    const { frozenGroups } = this.#server;
    if (frozenGroups) this.#options.problem.freeze?.(frozenGroups);
  }

  /** Steps of the worker's own, by the code of real workers; each takes as long as a gradient. */
  async #takesSteps(
    worker: VirtualWorker,
    { lease, parameters, generation, fragment }: Extract<VirtualWork, { kind: 'gradient' }>,
    local: LocalWork,
  ): Promise<Computed> {
    const { problem } = this.#options;
    const { exchangedSize, config, layout } = this.#server;
    worker.payload ??= new Float32Array(exchangedSize);
    worker.local ??= new LocalSteps(config, layout);
    if (generation !== worker.generation) worker.local.reset();
    worker.generation = generation;
    const gradient = new Float32Array(exchangedSize);
    const seed = this.#seedOf(worker);
    let computeMs = 0;
    let pulled = parameters.subarray(0, exchangedSize);
    if (local.fragment !== undefined) {
      pulled = worker.local.receive(parameters, fragment);
      worker.base = generation;
    }
    const result = await worker.local.take(lease, pulled, local, async (minibatch, at) => {
      computeMs += worker.computeMs();
      const from = at.subarray(0, exchangedSize);
      const loss = await problem.gradient(minibatch, from, gradient, mix(seed, minibatch.start));
      return { loss, gradient, discard: () => {} };
    });
    const { loss, payload, discard } = result!;
    worker.payload.set(payload);
    discard();
    return { loss, payload: worker.payload, computeMs };
  }

  #seedOf({ index, incarnation, sequence }: VirtualWorker): number {
    return mix(mix(this.#options.seed, index), mix(incarnation, sequence));
  }

  /** A gradient is used, for an update of its own or of several. */
  #counts(staleness: number): void {
    this.#applied++;
    while (this.#staleness.length <= staleness) this.#staleness.push(0);
    this.#staleness[staleness]!++;
  }

  /** As the production worker would write it. */
  #encoded(
    worker: VirtualWorker,
    payload: Float32Array,
    lease: Lease,
    fragment: number | undefined,
  ): { bytes: Uint8Array; encoding: Compressor['encoding']; settle: Settle | null } {
    const { config } = this.#server;
    const { compression } = config;
    if (compression.push.kind === 'f32' && fragment === undefined) {
      return { bytes: bytesOf(payload), encoding: 'f32', settle: null };
    }
    const { trainableSize, exchangedSize } = this.#server;
    const sizes = { trainableSize, exchangedSize };
    worker.compressor ??= createCompressor(compression, sizes, undefined, fragmentsOf(config));
    const [length] = worker.compressor.payloadBytes(lease.epoch, fragment);
    const bytes = new Uint8Array(length!);
    const settle = worker.compressor.write(payload, lease.epoch, [bytes], fragment);
    return { bytes, encoding: worker.compressor.encoding, settle };
  }

  /** Takes a worker's processor, or its share of one. */
  #occupies(
    worker: VirtualWorker,
    fromMs: number,
    cpuMs: number,
    then: (endMs: number) => void,
  ): void {
    const cores = this.#cores;
    if (!cores) {
      // Nobody else can be in the way, so that what follows is known already.
      then(fromMs + cpuMs);
      return;
    }
    const { incarnation } = worker;
    this.#happens(
      fromMs,
      (now) => cores.add({ worker, incarnation, act: then }, cpuMs, now),
      worker,
    );
  }

  // The network.

  /** Through the server's line, which all share, one after the other. @returns when it is through. */
  #carried(line: ServiceQueue, bytes: number, nowMs: number): number {
    this.#bytes += bytes;
    return line.serve(nowMs, transferMs(bytes, this.#network.serverBandwidth));
  }

  /** Through the rest of the network, ms: no faster than the worker's own line. */
  #onTheWay(bytes: number): number {
    const { latencyMs, bandwidth, serverBandwidth } = this.#network;
    const shared = transferMs(bytes, serverBandwidth);
    return Math.max(0, transferMs(bytes, bandwidth) - shared) + latencyMs;
  }
}

/** What a worker has computed. */
interface Computed {
  readonly loss: number;
  readonly payload: Float32Array;
  readonly computeMs: number;
  /** Absent: the run has no tables. */
  readonly rows?: SimulatedRows;
}

/** Workers after each change. */
function totals(workers: number, changes: readonly FleetChange[]): number[] {
  let total = workers;
  return changes.map((change) => {
    total += Math.max(0, change.workers);
    return total;
  });
}
