import { randomBytes } from 'node:crypto';
import type { Readable } from 'node:stream';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError, type ErrorCode, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { Acknowledgement, Hello, Push, ShardAddress } from '../../shared/protocol.ts';
import type {
  Alert,
  Bundle,
  CheckpointSummary,
  CreateRun,
  RunDetail,
  RunSummary,
  ServerFacts,
  Timeline,
  WorkerSummary,
} from '../../shared/rest.ts';
import { MemoryBudget } from '../access/memory.ts';
import type { TlsMaterial } from '../access/tls.ts';
import type { Copier } from '../checkpoints/elsewhere/copier.ts';
import type { Keeper } from '../checkpoints/keeper.ts';
import { Run, type RunOptions } from '../core/run.ts';
import { WaitingLine } from '../payloads/landings.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { ShardReport } from '../shards/protocol.ts';
import type { Replication } from '../standby/replication.ts';
import {
  type AlertFacts,
  alertsOf,
  isAlarming,
  type RunAlertFacts,
  waitsForWorker,
} from '../watch/alerts.ts';
import { PushCounts } from '../watch/counts.ts';
import type { RunFacts } from '../watch/prometheus.ts';
import type { PushLog } from '../watch/push-log.ts';
import { WorkerHistory } from '../watch/worker-history.ts';
import type { Bundles } from './bundles.ts';
import { Listing } from './listing.ts';
import type { Session } from './session.ts';

/** Between two ticks, which come every second: longer means that the whole process was held up … */
const LATE_MS = 2_000;
/** … and so long that it must look again before it believes anything. */
const HELD_UP_MS = 5_000;

/** Of one token the log is not told more often that it is throttled. */
const THROTTLE_TOLD_MS = 60_000;

/**
 * All runs and all workers of a server: who works on what, and what must be written down. Decisions
 * about a run are the run's own; writing is the keeper's.
 */
export class Coordinator {
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly log: Log;
  readonly #keeper: Keeper;
  readonly #runs = new Map<string, Run>();
  /** Those of them that are not over. */
  readonly #unfinished = new Set<Run>();
  /** When the newest one was created, ms since 1970. */
  #newestAt = 0;
  /** As they are told. While a shard is lost: as they were, until they go on from their checkpoints. */
  readonly listing: Listing<Run>;
  readonly #sessions = new Set<Session>();
  readonly #byId = new Map<string, Session>();
  /** The shards know them. */
  readonly #admitted = new WeakSet<Session>();
  /** Connections that stand still until there is room for a push, and what connections take. */
  readonly line: WaitingLine;
  readonly #shards: ShardPool | null;
  readonly pushLog: PushLog | null;
  /** Null: no standby may follow. */
  replication: Replication | null = null;
  /** Null: checkpoints are copied nowhere. */
  copier: Copier | null = null;
  /** Null: in the clear. */
  tls: TlsMaterial | null = null;
  /** Null: none can be sent. */
  #bundles: Bundles | null = null;
  /** Joined at least once and gone since, the latest only. */
  readonly #gone = new Map<string, { readonly summary: WorkerSummary; readonly at: number }>();
  readonly #errors = new Map<ErrorCode, number>();
  /** Messages of workers that the server had not asked for. */
  unasked = 0;
  #throttles = 0;
  /** When the log was told of each holder. */
  readonly #throttlesTold = new Map<string, number>();
  /** Of each run since this process has it. */
  readonly #pushCounts = new WeakMap<Run, PushCounts>();
  readonly #history = new WorkerHistory();
  #tickedAt: number;
  readonly #runCountMax: number;
  /** Names of runs that are being made from others. */
  readonly #forking = new Set<string>();
  /** Nobody is let in any more, and nothing begun. */
  #closing = false;
  /** A shard is lost: the runs go on from their checkpoints later. */
  #resting = false;

  constructor(options: {
    keeper: Keeper;
    shards?: ShardPool | null;
    pushLog?: PushLog | null;
    now: () => number;
    log: Log;
    /** Fewer than `LIMITS` allow. */
    runCountMax?: number;
    /** For connections; default: a share of the memory that there is. */
    memoryBytesMax?: number;
  }) {
    this.#keeper = options.keeper;
    this.listing = new Listing({
      summaryOf: (run) => this.runSummary(run),
      alarms: (summary) => isAlarming(summary, this.#alertFacts),
      waits: waitsForWorker,
    });
    this.#keeper.changed = (run) => this.listing.touch(run);
    this.#shards = options.shards ?? null;
    this.pushLog = options.pushLog ?? null;
    if (this.#shards) this.#shards.report = (index, report) => this.#onShard(index, report);
    this.now = options.now;
    this.log = options.log;
    this.line = new WaitingLine(new MemoryBudget(options.now, options.memoryBytesMax), options.now);
    this.#tickedAt = options.now();
    this.#runCountMax = Math.min(options.runCountMax ?? Infinity, LIMITS.runCountMax);
  }

  // Runs.

  get runs(): readonly Run[] {
    return [...this.#runs.values()];
  }

  find(id: string): Run | null {
    return this.#runs.get(id) ?? null;
  }

  /** For those who may list runs: the error names some. @throws DownpourError DP_RUN_UNKNOWN. */
  mustFind(id: string): Run {
    const run = this.#runs.get(id);
    if (run) return run;
    this.#mustNotRest();
    throw this.unknown(id);
  }

  /** Names some that there are. */
  unknown(id: string): DownpourError {
    const known = this.#lastIds(5).join(', ') || 'none';
    return new DownpourError('DP_RUN_UNKNOWN', `no run '${id}' on this server; known: ${known}`);
  }

  #lastIds(count: number): string[] {
    const { size } = this.listing;
    const indices = Array.from({ length: Math.min(count, size) }, (_, i) => size - i - 1).reverse();
    return indices.flatMap((index) => this.listing.at(index)?.run.id ?? []);
  }

  /** @throws DownpourError DP_CONFIG_INVALID, DP_RUN_EXISTS, DP_LIMIT, DP_SERVER_STOPPING or what the state store throws. */
  async create(body: CreateRun): Promise<Run> {
    this.mustBeOpen();
    const config = resolveConfig(body.config);
    if (this.#runs.size >= this.#runCountMax) {
      throw new DownpourError('DP_LIMIT', `${this.#runs.size} runs; at most ${this.#runCountMax}`);
    }
    const id = body.id ?? `${body.experiment.slice(0, 50)}-${randomBytes(3).toString('hex')}`;
    if (this.#runs.has(id)) {
      throw new DownpourError('DP_RUN_EXISTS', `run '${id}' exists already: choose another id`);
    }
    const { experiment, experimentHash, study, bundle } = body;
    if (bundle !== undefined) this.#mustBundles().mustHave(bundle);
    const createdAt = this.#timeOfCreation();
    const more = { ...(study !== undefined && { study }), ...(bundle !== undefined && { bundle }) };
    const options = { id, experiment, experimentHash, config, createdAt, ...more };
    if (body.fork) return this.#fork(body.fork, options);
    const run = new Run(options, this.#shards, { life: this.#keeper.life });
    this.#enter(run);
    this.replication?.began(run);
    try {
      await this.#keeper.register(run);
    } catch (error) {
      this.#runs.delete(id);
      this.#unfinished.delete(run);
      this.listing.remove(id);
      this.replication?.forget(run);
      throw error;
    }
    const sent = bundle === undefined ? '' : `, sent as bundle ${bundle}`;
    this.log(`run ${id} created: ${experiment}${sent}`, { run: id });
    this.#employAll();
    return run;
  }

  // Experiments that were sent.

  set bundles(bundles: Bundles) {
    this.#bundles = bundles;
    for (const { id, options } of this.unfinished) {
      if (options.bundle === undefined || bundles.find(options.bundle)) continue;
      this.log(
        `run ${id}: its experiment was sent as bundle ${options.bundle}, which is not in the state folder: workers without its files wait until it is sent again, or copied to them`,
        { level: 'warn', run: id },
      );
    }
    // What a finished or failed run named is of use to nobody but a late `test`.
    const isOver = ({ phase }: Run) => phase === 'finished' || phase === 'failed';
    bundles.needed = () => {
      const open = [...this.#runs.values()].filter((run) => !isOver(run));
      return new Set(open.flatMap(({ options }) => options.bundle ?? []));
    };
  }

  #mustBundles(): Bundles {
    if (this.#bundles) return this.#bundles;
    throw new DownpourError('DP_USAGE', 'this server keeps no bundles');
  }

  /** @param holder of the token that it came with. @throws DownpourError of `Bundles.keep`, DP_SERVER_STOPPING. */
  async keepBundle(sha256: string, content: Uint8Array, holder: string | null): Promise<Bundle> {
    this.mustBeOpen();
    const kept = await this.#mustBundles().keep(sha256, content);
    this.log(
      `bundle ${sha256} of ${kept.bytes} bytes was sent by ${holder}: workers that accept experiments run it`,
    );
    return kept;
  }

  /**
   * What workers may fetch.
   * @throws DownpourError DP_NOT_FOUND: there is none, or no run that is not over has it; which of both is not told.
   */
  async readBundle(
    sha256: string,
  ): Promise<{ readonly bytes: number; readonly content: Readable }> {
    const bundles = this.#mustBundles();
    const found = bundles.find(sha256);
    if (found && this.unfinished.some(({ options }) => options.bundle === sha256)) {
      return { bytes: found.bytes, content: await bundles.read(sha256) };
    }
    throw new DownpourError('DP_NOT_FOUND', `no run that needs workers has bundle ${sha256}`);
  }

  /** The bundle of a run, if it was sent and is there. */
  bundleOf({ options: { bundle } }: Run): Bundle | null {
    return bundle === undefined ? null : (this.#bundles?.find(bundle) ?? null);
  }

  /** @throws DownpourError DP_RUN_UNKNOWN, DP_RUN_EXISTS or what the keeper throws. */
  async #fork(
    { run: of, ...from }: NonNullable<CreateRun['fork']>,
    options: Omit<RunOptions, 'fork'>,
  ): Promise<Run> {
    const { id } = options;
    const source = this.mustFind(of);
    if (this.#forking.has(id)) {
      throw new DownpourError('DP_RUN_EXISTS', `run '${id}' is being made already`);
    }
    this.#forking.add(id);
    try {
      const run = await this.#keeper.fork(source, from, options);
      this.adopt(run);
      this.log(`run ${id} created: a fork of ${of} at step ${run.options.fork!.step}`, { run: id });
      this.#employAll();
      return run;
    } finally {
      this.#forking.delete(id);
    }
  }

  /** ISO 8601. Later than of all other runs, though the clock may have been set back: it is their order. */
  #timeOfCreation(): string {
    this.#newestAt = Math.max(Date.now(), this.#newestAt + 1);
    return new Date(this.#newestAt).toISOString();
  }

  #enter(run: Run): void {
    this.#runs.set(run.id, run);
    if (!run.over) this.#unfinished.add(run);
    const createdAt = Date.parse(run.options.createdAt);
    if (createdAt > this.#newestAt) this.#newestAt = createdAt;
    this.listing.add(run);
  }

  /** Takes over a run from the state store. */
  adopt(run: Run): void {
    this.pushLog?.began(run);
    this.#enter(run);
    this.replication?.began(run);
  }

  /** @throws DownpourError DP_RUN_UNKNOWN, DP_SERVER_STOPPING, or what the disk or the store throws. */
  async stop(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    run.call({ call: 'stop', reason: 'stopped by a user; `downpour resume` goes on' });
    this.settle(run);
    await this.#keeper.mustKeep(run, 'is stopped');
    return run;
  }

  /** A checkpoint of this moment, on disk when the promise resolves. @throws DownpourError DP_CHECKPOINT_MISSING or DP_DISK. */
  async checkpoint(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    if (!run.hasParameters) {
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `run '${id}' has no parameters yet, so there is nothing to keep: start a worker`,
      );
    }
    await this.#keeper.checkpointNow(run);
    return run;
  }

  /** @throws DownpourError DP_RUN_ENDED, DP_RUN_FAILED, DP_SERVER_STOPPING, or what the disk or the store throws. */
  async resume(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    run.call({ call: 'resume' });
    this.settle(run);
    try {
      await this.#keeper.mustKeep(run, 'goes on');
    } finally {
      this.#employAll();
    }
    return run;
  }

  /** @throws DownpourError of the call `test`, DP_SERVER_STOPPING. */
  async test(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    run.call({ call: 'test' });
    this.settle(run);
    try {
      await this.#keeper.mustKeep(run, 'is tested');
    } finally {
      this.#employAll();
    }
    return run;
  }

  /**
   * After anything that may have changed a run: writes down what must be, wakes who may have work.
   * @param touched false: time alone has gone by.
   */
  settle(run: Run, touched = true): void {
    const events = run.takeEvents();
    if (touched || events.length > 0) this.listing.touch(run);
    let wake = false;
    for (const event of events) {
      if (event.kind === 'wake') wake = true;
      else if (event.kind === 'phase') {
        const line = `run ${run.id}: ${event.from} → ${event.to} at step ${run.step}: ${run.reason}`;
        const bad = event.to === 'failed' ? ({ level: 'error' } as const) : {};
        this.log(line, { run: run.id, step: run.step, ...bad });
        if (run.over) this.#unfinished.delete(run);
        else if (this.#runs.get(run.id) === run) this.#unfinished.add(run);
        this.#keeper.phaseChanged(run);
      } else if (event.kind === 'best') this.#keeper.bestChanged(run);
      else if (event.kind === 'rollback') {
        const { step, to, learningRate, reason } = event.rollback;
        const where = to === null ? 'its initial parameters' : `the best ones, of step ${to}`;
        this.log(
          `run ${run.id} diverged at step ${step} and goes back to ${where}, with learning rate ${learningRate}: ${reason}`,
          { level: 'warn', run: run.id, step, code: 'DP_DIVERGED' },
        );
        this.#keeper.rolledBack(run);
      } else if (event.kind === 'correction') {
        this.log(`run ${run.id}: ${event.text}`, { run: run.id, step: run.step });
      } else if (event.kind === 'lost') {
        const { steps, restored } = event;
        this.log(
          `run ${run.id}: ${steps} steps after step ${restored} are lost with an earlier life of the server, ${run.stepsLost} in all`,
          { level: 'warn', run: run.id, step: restored },
        );
        this.#keeper.lost(run);
      } else {
        if (event.evaluation.part === 'test') {
          run.call({ call: 'tested', at: new Date().toISOString() });
        }
        this.#keeper.evaluated(run);
      }
    }
    if (touched) this.#keeper.stepped(run, this.now());
    if (!wake) return;
    for (const session of this.#sessions) {
      if (session.run !== run || !session.joined) continue;
      if (session.waiting || run.over) session.proceed();
    }
  }

  /** Once a second: what is out of time, who is silent, what is due to be written. */
  tick(): void {
    const now = this.now();
    const pauseMs = now - this.#tickedAt;
    this.#tickedAt = now;
    // This process stood still (a long collection, a suspended machine): nobody's time has run.
    if (pauseMs > LATE_MS) {
      for (const run of this.#runs.values()) run.call({ call: 'postpone', ms: pauseMs });
    }
    if (pauseMs > HELD_UP_MS) {
      // What the workers have sent meanwhile is read first, and nobody is blamed for the silence.
      for (const session of this.#sessions) session.excuse();
      return;
    }
    for (const run of this.#unfinished) {
      run.call({ call: 'tick', now });
      this.settle(run, false);
    }
    for (const session of this.#sessions) {
      // A worker in the middle of a slow gradient answers nothing for as long as its lease lasts.
      const leaseMs = (session.run?.config.leaseSeconds ?? 0) * 1000;
      const silenceMs = Math.max(LIMITS.silenceMs, leaseMs);
      session.lookAtParts(silenceMs);
      // What it has sent is not read, so it cannot answer; whether it is there still, writing tells.
      if (session.standsStill) session.excuse();
      if (session.stands) session.ping();
      session.look(now, silenceMs);
      if (now - session.lastSeen > silenceMs) session.terminate();
      else if (now - session.lastSeen > LIMITS.heartbeatMs) session.ping();
    }
    this.line.tick();
    this.#history.note(now, this.workers(null));
    this.#keeper.tick(now);
  }

  /** Another server owns the state, and goes on from what it knows. */
  tellLost(): void {
    for (const run of this.#runs.values()) {
      const published = this.#keeper.publishedStep(run);
      if (run.step <= published) continue;
      this.log(
        `run ${run.id}: ${run.step - published} steps after step ${published}, which the registry knows, are lost: another server has the run`,
        { level: 'error', run: run.id, step: published },
      );
    }
  }

  /** Stops taking work in, leaves a checkpoint of every run, and closes all connections. */
  async close(): Promise<void> {
    this.#closing = true;
    const sessions = [...this.#sessions];
    // Nothing that comes in from now on is looked at: it would change runs that are being written.
    for (const session of sessions) session.dismissed(1012, 'server stops');
    await this.#keeper.close([...this.#runs.values()]);
    await this.replication?.settled();
    this.replication?.close();
    for (const session of sessions) session.terminate();
  }

  /** @throws DownpourError DP_SHARD_LOST. */
  #mustNotRest(): void {
    if (!this.#resting) return;
    throw new DownpourError('DP_SHARD_LOST', `${this.problem}: try again in a moment`);
  }

  /** What all runs wait for; null: nothing. Tells no addresses. */
  get problem(): string | null {
    const facts = this.shards;
    if (!facts?.lost) {
      return this.#resting
        ? 'a shard was lost, and all runs are read from their last checkpoints'
        : null;
    }
    const { count, lost } = facts;
    return `shard ${lost.index} of ${count} is lost for ${Math.round(lost.seconds)} s: all runs wait until it, or another one, is there`;
  }

  /** @throws DownpourError DP_SERVER_STOPPING: what began now would not be in the last checkpoints. */
  mustBeOpen(): void {
    if (!this.#closing) return;
    this.#mustNotRest();
    throw new DownpourError('DP_SERVER_STOPPING', 'this server is stopping: try again in a moment');
  }

  // Workers.

  /** @throws DownpourError DP_LIMIT. */
  opened(session: Session): void {
    if (this.#sessions.size >= LIMITS.workerCountMax) {
      throw new DownpourError(
        'DP_LIMIT',
        `${this.#sessions.size} workers are connected; at most ${LIMITS.workerCountMax}`,
      );
    }
    this.#sessions.add(session);
    this.#byId.set(session.id, session);
  }

  /**
   * While a worker is connected its name is its own: only the same process, with the same token, may connect anew.
   * @throws DownpourError DP_NAME_TAKEN.
   */
  mustBeItsName({ worker, incarnation }: Hello, holder: string | null): void {
    for (const { hello, holder: owner, connected } of this.#sessions) {
      if (hello?.worker !== worker || !connected) continue;
      if (hello.incarnation === incarnation && owner === holder) continue;
      throw new DownpourError(
        'DP_NAME_TAKEN',
        `a worker named '${worker}' is connected already: give each its own --name; if that one has died, the server knows it soon`,
      );
    }
  }

  /** A worker has said who it is; an older connection of the same process is dead. */
  welcome(session: Session): void {
    const name = session.hello!.worker;
    for (const other of this.#sessions) {
      if (other !== session && other.hello?.worker === name) other.replaced();
    }
    this.#gone.delete(session.key);
    this.log(`worker ${name} connected: ${session.hello!.engine} on ${session.hello!.device}`, {
      ...{ worker: name, kind: 'connected' },
    });
  }

  /** A connection is not read for a while: its messages have taken more time than its token may. */
  throttled(session: Session): void {
    this.#throttles++;
    const holder = session.holder ?? 'everybody';
    const told = this.#throttlesTold.get(holder) ?? Number.NEGATIVE_INFINITY;
    if (this.now() - told < THROTTLE_TOLD_MS) return;
    this.#throttlesTold.delete(holder);
    this.#throttlesTold.set(holder, this.now());
    if (this.#throttlesTold.size > LIMITS.holderCountMax) {
      this.#throttlesTold.delete(this.#throttlesTold.keys().next().value!);
    }
    const { messageTimeShareMax } = LIMITS;
    const worker = session.hello?.worker;
    const who = worker === undefined ? 'a connection' : `worker ${worker}`;
    const whose = session.holder === null ? '' : ` of token ${session.holder}`;
    this.log(
      `${who}${whose} sends messages that nobody asked for, or the same again; they may take ${100 * messageTimeShareMax} % of the time of this server, so its connection is read less often`,
      { level: 'warn', ...(worker === undefined ? {} : { worker }) },
    );
  }

  /** Of messages that nobody asked for, how often a connection was throttled for them, and how many are now. */
  get unaskedFacts(): {
    readonly messages: number;
    readonly throttles: number;
    readonly throttled: number;
  } {
    let throttled = 0;
    for (const session of this.#sessions) if (session.stands) throttled++;
    return { messages: this.unasked, throttles: this.#throttles, throttled };
  }

  /** The standby has come or gone. */
  tellStandby(): void {
    for (const session of this.#sessions) if (session.hello) session.tellStandby();
  }

  // Shards.

  /** It is told its session in a moment, and may go to the shards with it. */
  admit(session: Session): void {
    if (this.#admitted.has(session)) return;
    this.#admitted.add(session);
    this.#shards?.admit(session.id);
  }

  /** Of all shards but the first, which is this server. */
  shardAddresses(): ShardAddress[] {
    return this.#shards?.addresses ?? [];
  }

  #onShard(index: number, report: ShardReport): void {
    const run = this.#runs.get(report.run);
    if (!run) return;
    if (report.type === 'overflowed') {
      run.call({ call: 'overflowed', generation: report.generation });
      this.settle(run);
      return;
    }
    const session = this.#byId.get(report.session);
    if (report.type === 'initialLanded') {
      session?.initialLanded(run, index, report.grant, report.finite);
      return;
    }
    if (session?.landed(run, index, report)) return;
    this.#shards!.tellOne(index, {
      kind: 'drop',
      run: run.id,
      session: report.session,
      sequence: report.sequence,
    });
  }

  /** A shard is lost, and with it a part of every run: as if this server had been killed. */
  interrupt(why: string): void {
    this.log(`${why}: all runs go back to their last checkpoints`, {
      level: 'error',
      code: 'DP_SHARD_LOST',
    });
    this.#closing = true;
    this.listing.freeze();
    this.#resting = true;
    for (const session of [...this.#sessions]) {
      session.fail(new DownpourError('DP_SHARD_LOST', why));
      session.dismissed(1012, 'DP_SHARD_LOST');
    }
    this.#runs.clear();
    this.#unfinished.clear();
  }

  /** All shards are there again. @param runs from their checkpoints. */
  goOn(runs: readonly Run[]): void {
    this.listing.reset([]);
    for (const run of runs) this.adopt(run);
    this.#resting = false;
    this.#closing = false;
  }

  farewell(session: Session): void {
    this.#byId.delete(session.id);
    this.#shards?.leave(session.id);
    if (!this.#sessions.delete(session) || !session.hello) return;
    const { worker } = session.hello;
    this.log(`worker ${worker} has gone`, { worker, kind: 'gone' });
    const summary = { ...this.#workerSummary(session), examplesPerSecond: 0, leases: 0 };
    this.#gone.set(session.key, { summary, at: this.now() });
    if (this.#gone.size > 100) this.#gone.delete(this.#gone.keys().next().value!);
  }

  /** Gives a worker without a run one that it can serve and that has room: the one with the fewest. */
  employ(session: Session): void {
    const counts = new Map<Run, number>();
    for (const { run } of this.#sessions) if (run) counts.set(run, (counts.get(run) ?? 0) + 1);
    let chosen: Run | null = null;
    for (const run of this.#unfinished) {
      if (!session.canServe(run)) continue;
      if ((counts.get(run) ?? 0) >= (run.config.workersMax ?? Infinity)) continue;
      if (!chosen || (counts.get(run) ?? 0) < (counts.get(chosen) ?? 0)) chosen = run;
    }
    if (chosen) {
      session.assignTo(chosen);
      return;
    }
    const only = session.hello?.run;
    const run = only == null ? undefined : this.#runs.get(only);
    if (run?.over) session.end(run);
    else session.idle();
  }

  /** Runs that workers may be needed for. */
  get unfinished(): Run[] {
    return [...this.#unfinished];
  }

  /** One that could work, were it not shut out, is told so instead of being left idle. @throws DownpourError DP_QUARANTINED. */
  mustNotBeQuarantined(session: Session): void {
    const fit = this.unfinished.filter((run) => session.isFit(run));
    if (fit.some((run) => session.canServe(run))) return;
    for (const run of fit) run.mustBeTrusted(session.key);
  }

  #employAll(): void {
    for (const session of this.#sessions) {
      if (session.hello && !session.run) this.employ(session);
    }
  }

  recordRejection(run: Run, key: string, push: Push, acknowledgement: Acknowledgement): void {
    this.countError((acknowledgement.code ?? 'DP_INTERNAL') as ErrorCode);
    if (acknowledgement.code === 'DP_PUSH_STALE' || acknowledgement.code === 'DP_PUSH_PHASE')
      return;
    this.log(
      `run ${run.id}: push ${push.sequence} of ${key} rejected: ${acknowledgement.code} ${acknowledgement.message}`,
      {
        ...{ level: 'warn', run: run.id, worker: key.split('/')[0]! },
        kind: `rejected ${acknowledgement.code}`,
        ...(acknowledgement.code === null ? {} : { code: acknowledgement.code }),
      },
    );
  }

  /** @param seconds from the whole push to its answer. */
  countPush(run: Run, push: Push, acknowledgement: Acknowledgement, seconds: number): void {
    this.#countsOf(run).answered(push, acknowledgement, seconds);
  }

  #countsOf(run: Run): PushCounts {
    let counts = this.#pushCounts.get(run);
    if (!counts) {
      counts = new PushCounts();
      this.#pushCounts.set(run, counts);
    }
    return counts;
  }

  countError(code: ErrorCode): void {
    this.#errors.set(code, (this.#errors.get(code) ?? 0) + 1);
  }

  // What others want to know.

  runSummary(run: Run): RunSummary {
    return { ...run.summary(this.now()), ...this.#written(run) };
  }

  runDetail(run: Run): RunDetail {
    return { ...run.detail(this.now()), ...this.#written(run) };
  }

  #written({ id }: Run): Pick<RunSummary, 'checkpoint' | 'unwritten'> {
    return { checkpoint: this.#keeper.latest(id), unwritten: this.#keeper.problem(id) };
  }

  checkpoints(run: Run): Promise<readonly CheckpointSummary[]> {
    return this.#keeper.checkpoints(run.id);
  }

  /** @param run only its workers, null: all. */
  workers(run: Run | null): WorkerSummary[] {
    const summaries: WorkerSummary[] = [];
    for (const session of this.#sessions) {
      if (session.hello && (!run || session.run === run))
        summaries.push(this.#workerSummary(session));
    }
    for (const { summary, at } of this.#gone.values()) {
      if (run && summary.run !== run.id) continue;
      const since = (this.now() - at) / 1000;
      summaries.push({ ...summary, lastSeenSecondsAgo: summary.lastSeenSecondsAgo + since });
    }
    return summaries;
  }

  #workerSummary(session: Session): WorkerSummary {
    const hello = session.hello!;
    const { run } = session;
    // What a worker did is told after it has left, too.
    const tally = session.served?.workerTally(session.key);
    const connected = this.#sessions.has(session);
    const busy = tally?.evaluating ? 'evaluating' : session.waiting ? 'waiting' : 'training';
    const state = !connected ? 'gone' : !run ? 'idle' : !session.joined ? 'joining' : busy;
    return {
      worker: hello.worker,
      incarnation: hello.incarnation,
      run: run?.id ?? null,
      state,
      engine: hello.engine,
      device: hello.device,
      connectedAt: session.connectedAt,
      transport: session.transport,
      lastSeenSecondsAgo: Math.max(0, (this.now() - session.lastSeen) / 1000),
      leases: tally?.leases ?? 0,
      pushes: tally?.pushes ?? { applied: 0, damped: 0, duplicate: 0, rejected: 0 },
      stalenessMean: tally?.stalenessMean ?? null,
      computeMsMean: tally?.computeMsMean ?? null,
      computeMsRecent: tally?.computeMsRecent ?? null,
      examples: tally?.examples ?? 0,
      examplesPerSecond: this.#history.speed(hello),
      bytes: session.bytes,
      lastError: session.lastError,
      quarantine: session.quarantine,
    };
  }

  /** Null: the server has no shards. */
  get shards(): ServerFacts['shards'] {
    return this.#shards?.facts() ?? null;
  }

  timeline(): Timeline {
    return this.#history.timeline(this.now());
  }

  /** What a person should look at. */
  alerts(stateStoreAway: AlertFacts['stateStoreAway']): Alert[] {
    const { alarming, waiting } = this.listing;
    return alertsOf({
      stateStoreAway,
      shards: this.shards,
      standby: this.replication?.facts() ?? null,
      copies: this.copier?.facts() ?? null,
      certificate: this.tls?.validity ?? null,
      wallMs: Date.now(),
      connections: this.line.facts(),
      ...{ runs: alarming, waiting },
      workers: this.workers(null),
      ...this.#alertFacts,
    });
  }

  readonly #alertFacts: RunAlertFacts = {
    evaluationSeconds: (id) => this.#runs.get(id)?.evaluationSeconds(this.now()) ?? null,
    unwritten: (id) => this.#keeper.problem(id),
    spoilt: (id) => this.#keeper.spoilt(id),
    leftOut: (id) => this.#keeper.leftOut(id),
    behind: (id) => this.#runs.get(id)?.stepsBehind ?? 0,
    missing: (id) => this.#runs.get(id)?.workersMissing ?? 0,
  };

  /** Of the runs that Prometheus is told of, and how many there are in each phase. */
  prometheusFacts(): { readonly runs: RunFacts[]; readonly phases: ReadonlyMap<string, number> } {
    const runs = this.listing.newest(LIMITS.scrapedRunsMax).map(({ run, summary }) => ({
      summary,
      pushes: this.#countsOf(run),
      writes: this.#keeper.counts(run.id),
      checkpointBytes: this.#keeper.latestBytes(run.id),
      unwritten: this.#keeper.problem(run.id),
    }));
    return { runs, phases: this.listing.phases };
  }

  /** How often each error has been answered. */
  get errorCounts(): ReadonlyMap<ErrorCode, number> {
    return this.#errors;
  }
}

/** One line for the log of something that went wrong and was survived. */
export function warning(what: string, error: unknown): string {
  return `${what}: ${errorCode(error)} ${errorText(error)}`;
}
