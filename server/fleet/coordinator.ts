import { randomBytes } from 'node:crypto';
import { resolveConfig } from '../../shared/config.ts';
import { shardsProblem } from '../../shared/consistency.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { edited, type LabelsEdit } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { ShardAddress } from '../../shared/message-fields.ts';
import type { Alert, Bundle, CreateRun, RunsRead, ServerFacts } from '../../shared/rest.ts';
import { MemoryBudget } from '../access/memory.ts';
import type { TlsMaterial } from '../access/tls.ts';
import type { Copier } from '../checkpoints/elsewhere/copier.ts';
import type { Keeper } from '../checkpoints/keeper.ts';
import type { RunOptions } from '../core/run/state.ts';
import { Run } from '../core/run.ts';
import { WaitingLine } from '../payloads/landings.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { ShardReport } from '../shards/protocol.ts';
import type { Replication } from '../standby/replication.ts';
import { type AlertFacts, alertsOf } from '../watch/alerts.ts';
import type { PushLog } from '../watch/push-log.ts';
import type { RunLog } from '../watch/run-log.ts';
import { RunAsides } from './asides.ts';
import type { Backlog } from './brakes.ts';
import { Consequences } from './consequences.ts';
import type { Listing } from './listing.ts';
import { Reports } from './reports.ts';
import type { RunsToCome } from './run-loader.ts';
import { SentExperiments } from './sent-experiments.ts';
import type { WorkerSession } from './session.ts';
import { lackOf, mustHaveExperiment } from './suitability.ts';
import { Workers } from './workers.ts';

/** Between two ticks, which come every second: longer means that the whole process was held up … */
const LATE_MS = 2_000;
/** … and so long that it must look again before it believes anything. */
const HELD_UP_MS = 5_000;

/**
 * All runs and all workers of a server: who works on what, and what must be written down. Decisions
 * about a run are the run's own; writing is the keeper's.
 */
export class Coordinator {
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly log: Log;
  readonly asides: RunAsides;
  readonly #keeper: Keeper;
  readonly #runs = new Map<string, Run>();
  /** Those of them that are not over. */
  readonly #unfinished = new Set<Run>();
  /** When the newest one was created, ms since 1970. */
  #newestAt = 0;
  readonly workers: Workers;
  readonly reports: Reports;
  readonly experiments: SentExperiments;
  /** Connections that stand still until there is room for a push, and what connections take. */
  readonly line: WaitingLine;
  readonly #shards: ShardPool | null;
  /** Null: no standby may follow. */
  replication: Replication | null = null;
  /** Null: checkpoints are copied nowhere. */
  copier: Copier | null = null;
  /** Null: in the clear. */
  tls: TlsMaterial | null = null;
  /** Null: all runs of the state folder are read. */
  #loader: RunsToCome | null = null;
  #tickedAt: number;
  readonly #runCountMax: number;
  /** Names of runs that are being made from others. */
  readonly #forking = new Set<string>();
  readonly #leaving = new Set<string>();
  /** Names of removed runs, the latest. */
  readonly #removed = new Set<string>();
  readonly #consequences: Consequences;
  /** Nobody is let in any more, and nothing begun. */
  #closing = false;
  /** A shard is lost: the runs go on from their checkpoints later. */
  #resting = false;

  constructor(options: {
    keeper: Keeper;
    shards?: ShardPool | null;
    pushLog?: PushLog | null;
    /** What `log` keeps of each run; default: nothing. */
    runLog?: RunLog;
    now: () => number;
    log: Log;
    /** Fewer than `LIMITS` allow. */
    runCountMax?: number;
    /** For connections; default: a share of the memory that there is. */
    memoryBytesMax?: number;
    /** Calls back after so many ms; default: by a timer. */
    later?: (ms: number, act: () => void) => void;
  }) {
    this.#keeper = options.keeper;
    this.#shards = options.shards ?? null;
    if (this.#shards) this.#shards.report = (index, report) => this.#onShard(index, report);
    this.now = options.now;
    this.log = options.log;
    this.asides = new RunAsides(options.runLog);
    const { keeper, now, log, pushLog = null } = options;
    const find = (id: string) => this.find(id);
    this.workers = new Workers({
      ...{ now, log, shards: this.#shards },
      runs: { find, unfinished: this.#unfinished },
    });
    this.reports = new Reports({ now, log, keeper, find, pushLog });
    const bundlesToCome = () => this.#loader?.bundles ?? [];
    this.experiments = new SentExperiments({ log, runs: () => this.runs, bundlesToCome });
    keeper.changed = (run) => this.listing.touch(run);
    this.line = new WaitingLine(new MemoryBudget(options.now, options.memoryBytesMax), options.now);
    this.#consequences = new Consequences({
      ...{ now, log, keeper, asides: this.asides, workers: this.workers, listing: this.listing },
      unfinished: this.#unfinished,
      later: options.later ?? ((ms, act) => void setTimeout(act, ms).unref()),
      isHere: (run) => this.#runs.get(run.id) === run,
      isClosing: () => this.#closing,
    });
    this.#tickedAt = options.now();
    this.#runCountMax = Math.min(options.runCountMax ?? Infinity, LIMITS.runCountMax);
  }

  get listing(): Listing<Run> {
    return this.reports.listing;
  }

  // Runs.

  get runs(): readonly Run[] {
    return [...this.#runs.values()];
  }

  /** Runs that are read while the server listens. @param created when they were, ISO 8601. */
  load(loader: RunsToCome, created: readonly string[]): void {
    this.#loader = loader;
    for (const each of created) {
      const at = Date.parse(each);
      if (at > this.#newestAt) this.#newestAt = at;
    }
    const end = () => {
      if (loader.left === 0 && this.#loader === loader) this.#loader = null;
    };
    // What went wrong is told by who has made it.
    loader.done.then(end, () => {});
  }

  /** What is not read yet stays on disk. */
  async stopReading(): Promise<void> {
    await this.#loader?.stop().catch(() => {});
  }

  /** It is being read; resolves when it has been. Null: it is here, or there is none. */
  reading(id: string): Promise<void> | null {
    return this.#loader?.want(id) ?? null;
  }

  /** Resolves when all runs that workers are needed for are here; null: they are. */
  get readingUnfinished(): Promise<void> | null {
    return this.#loader?.unfinished ?? null;
  }

  /** Gives a worker work after its `hello`, when the runs are here that it may get: as a rule they are. */
  place(session: WorkerSession): void {
    const { run } = session.hello!;
    const reading = run === null ? this.readingUnfinished : this.reading(run);
    if (!reading) {
      this.#placeNow(session);
      return;
    }
    this.workers.toBePlaced.add(session);
    void reading.then(() => {
      this.workers.toBePlaced.delete(session);
      try {
        if (session.connected) this.#placeNow(session);
      } catch (error) {
        session.fail(error);
      }
    });
  }

  #placeNow(session: WorkerSession): void {
    const hello = session.hello!;
    if (hello.run !== null) {
      const run = this.find(hello.run);
      // Which others there are is not for a worker to know.
      if (!run) throw new DownpourError('DP_RUN_UNKNOWN', `no run '${hello.run}' on this server`);
      if (!run.over) {
        run.mustBeTrusted(session.key);
        const wasSent = this.experiments.of(run) !== null;
        mustHaveExperiment(hello, run, { wasSent, fetches: session.able.bundles === true });
        const lack = lackOf(session.able, run);
        if (lack) throw lack;
      }
    }
    this.workers.mustNotBeQuarantined(session);
    this.workers.employ(session);
  }

  /** How many of the runs of the state folder are here; null: all. */
  get runsRead(): RunsRead | null {
    return this.#loader?.facts ?? null;
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
    const unfit = this.#shards && this.#shards.count > 1 ? shardsProblem(config) : null;
    if (unfit !== null) throw new DownpourError('DP_CONFIG_INVALID', unfit);
    const count = this.#runs.size + (this.#loader?.left ?? 0);
    if (count >= this.#runCountMax) {
      throw new DownpourError('DP_LIMIT', `${count} runs; at most ${this.#runCountMax}`);
    }
    const id = body.id ?? `${body.experiment.slice(0, 50)}-${randomBytes(3).toString('hex')}`;
    if (this.#runs.has(id) || this.#loader?.has(id) || this.#isLeaving(id)) {
      throw new DownpourError('DP_RUN_EXISTS', `run '${id}' exists already: choose another id`);
    }
    if (this.#forking.has(id)) {
      throw new DownpourError('DP_RUN_EXISTS', `run '${id}' is being made already`);
    }
    const { experiment, experimentHash, study, bundle } = body;
    if (bundle !== undefined) this.experiments.mustHave(bundle);
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
      // Workers may have it already. After the loss of a shard it is gone anyway.
      if (this.#runs.get(id) === run) {
        run.call({ call: 'stop', reason: 'it could not be registered' });
        this.followUp(run);
        this.#drop(run);
        run.vector.removeParts();
      }
      this.#keeper.forget(run);
      throw error;
    }
    if (this.#runs.get(id) !== run) {
      // A shard was lost meanwhile, and with it what it had of the run: it is read as all others are.
      this.#mustNotRest();
      return this.mustFind(id);
    }
    const sent = bundle === undefined ? '' : `, sent as bundle ${bundle}`;
    this.log(`run ${id} created: ${experiment}${sent}`, { run: id });
    this.workers.employAll();
    return run;
  }

  /** @param holder of the token that it came with. @throws DownpourError of `SentExperiments.keep`, DP_SERVER_STOPPING. */
  async keepBundle(sha256: string, content: Uint8Array, holder: string | null): Promise<Bundle> {
    this.mustBeOpen();
    return this.experiments.keep(sha256, content, holder);
  }

  /** @throws DownpourError DP_RUN_UNKNOWN, DP_RUN_EXISTS or what the keeper throws. */
  async #fork(
    { run: of, ...from }: NonNullable<CreateRun['fork']>,
    options: Omit<RunOptions, 'fork'>,
  ): Promise<Run> {
    const { id } = options;
    this.#forking.add(id);
    try {
      await this.reading(of);
      const run = await this.#keeper.fork(this.mustFind(of), from, options);
      this.adopt(run);
      this.log(`run ${id} created: a fork of ${of} at step ${run.options.fork!.step}`, { run: id });
      this.workers.employAll();
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

  /** Takes over a run from the state store. One that was read before the loss of a shard is read again after it. */
  adopt(run: Run): void {
    if (this.#resting) return;
    this.reports.began(run);
    this.#enter(run);
    this.replication?.began(run);
  }

  /** The same of one that was read while the server listens. */
  adoptLate(run: Run): void {
    this.adopt(run);
    this.experiments.sayMissing(run);
    if (!run.over && !this.readingUnfinished) this.workers.employAll();
  }

  /** @throws DownpourError DP_RUN_UNKNOWN, DP_SERVER_STOPPING, or what the disk or the store throws. */
  async stop(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    run.call({ call: 'stop', reason: 'stopped by a user; `downpour resume` continues it' });
    this.followUp(run);
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
    this.#mustNotBeArchived(run);
    run.call({ call: 'resume' });
    this.followUp(run);
    try {
      await this.#keeper.mustKeep(run, 'goes on');
    } finally {
      this.workers.employAll();
    }
    return run;
  }

  /**
   * Changes what users say of a run; it is on disk when the promise resolves.
   * @throws DownpourError DP_RUN_UNKNOWN, DP_RUN_UNFINISHED, DP_BODY_INVALID, DP_SERVER_STOPPING, or what the disk or the
   *   store throws.
   */
  async edit(id: string, edit: LabelsEdit): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    const labels = edited(run.labels, edit);
    if (labels.archived && !run.over) {
      throw new DownpourError(
        'DP_RUN_UNFINISHED',
        `run '${id}' is in phase '${run.phase}' at step ${run.step}: only a run that has ended or is stopped can be archived; stop it first with \`downpour stop ${id}\``,
      );
    }
    if (labels !== run.labels) {
      run.call({ call: 'label', labels });
      this.followUp(run);
    }
    await this.#keeper.mustLabel(run);
    return run;
  }

  /** @throws DownpourError DP_RUN_ENDED. */
  #mustNotBeArchived({ id, labels }: Run): void {
    if (!labels.archived) return;
    throw new DownpourError(
      'DP_RUN_ENDED',
      `run '${id}' is archived, so workers do not train or test it: \`downpour edit ${id} --unarchive\` first`,
    );
  }

  /**
   * Removes a run with its files; one that is not over is stopped first.
   * @param force also one that workers are at.
   * @throws DownpourError DP_RUN_UNKNOWN, DP_RUN_UNFINISHED, DP_SERVER_STOPPING, or what the disk or the store throws.
   */
  async remove(id: string, force: boolean): Promise<void> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    if (!run.over) {
      if (run.phase !== 'waiting' && !force) {
        throw new DownpourError(
          'DP_RUN_UNFINISHED',
          `run '${id}' is in phase '${run.phase}' at step ${run.step}: stop it first with \`downpour stop ${id}\`, or remove it with --force (?force=true)`,
        );
      }
      run.call({ call: 'stop', reason: 'removed by a user' });
      this.followUp(run);
    }
    this.#leave(run);
    try {
      await this.#keeper.remove(run);
    } catch (error) {
      // After the loss of a shard it is read from its checkpoint like all others.
      if (!this.#resting) {
        this.#enter(run);
        this.replication?.began(run);
      }
      throw error;
    } finally {
      this.#leaving.delete(id);
    }
    run.vector.removeParts();
    this.log(`run ${id} is removed with its files`, { run: id });
    this.asides.forget(id);
  }

  #drop(run: Run): void {
    const { id } = run;
    this.#runs.delete(id);
    this.#unfinished.delete(run);
    this.listing.remove(id);
    this.replication?.forget(run);
  }

  /** From now on nobody finds it. */
  #leave(run: Run): void {
    const { id } = run;
    this.#leaving.add(id);
    this.#drop(run);
    this.#removed.delete(id);
    this.#removed.add(id);
    if (this.#removed.size > LIMITS.runCountMax) {
      this.#removed.delete(this.#removed.keys().next().value!);
    }
  }

  /** It is being removed, or something of it is still there. */
  #isLeaving(id: string): boolean {
    return this.#leaving.has(id) || this.#keeper.isBeingRemoved(id);
  }

  /** Workers may not know yet that there is no such run any more. */
  wasRemoved(id: string): boolean {
    return this.#removed.has(id);
  }

  /** @throws DownpourError of the call `test`, DP_SERVER_STOPPING. */
  async test(id: string): Promise<Run> {
    this.mustBeOpen();
    const run = this.mustFind(id);
    this.#mustNotBeArchived(run);
    run.call({ call: 'test' });
    this.followUp(run);
    try {
      await this.#keeper.mustKeep(run, 'is tested');
    } finally {
      this.workers.employAll();
    }
    return run;
  }

  /** What follows from calls of a run, once they are answered. @param touched false: time alone has gone by. */
  followUp(run: Run, touched = true): void {
    this.#consequences.of(run, touched);
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
      this.workers.excuse();
      return;
    }
    for (const run of this.#unfinished) {
      run.call({ call: 'tick', now });
      this.followUp(run, false);
    }
    this.workers.look(now);
    this.line.tick();
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
    const sessions = this.workers.sessions;
    // Nothing that comes in from now on is looked at: it would change runs that are being written.
    for (const session of sessions) session.dismissed(1012, 'server stops');
    await this.stopReading();
    await this.#keeper.close([...this.#runs.values()]);
    await this.replication?.whenIdle();
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

  // Shards.

  /** Addresses of all shards but the first, which is this server. */
  shardAddresses(): ShardAddress[] {
    return this.#shards?.addresses ?? [];
  }

  get shardBacklog(): Backlog | null {
    return this.#shards;
  }

  #onShard(index: number, report: ShardReport): void {
    const run = this.#runs.get(report.run);
    if (!run) return;
    if (report.type === 'overflowed') {
      run.call({ call: 'overflowed', generation: report.generation });
      this.followUp(run);
      return;
    }
    if (report.type === 'rowFacts') {
      run.rowParts?.note(index, report.tables);
      this.followUp(run);
      return;
    }
    const session = this.workers.find(report.session);
    if (report.type === 'initialLanded') {
      session?.parts.initialLanded(run, index, report.grant, report.problem);
      return;
    }
    if (session?.parts.landed(run, index, report)) return;
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
    // What it is at fails, and is read again.
    void this.stopReading();
    this.listing.freeze();
    this.#resting = true;
    for (const session of this.workers.sessions) {
      session.fail(new DownpourError('DP_SHARD_LOST', why));
      session.dismissed(1012, 'DP_SHARD_LOST');
    }
    this.#runs.clear();
    this.#unfinished.clear();
  }

  /** All shards are there again, and runs come from their checkpoints. */
  goOn(): void {
    this.listing.reset([]);
    this.#resting = false;
    this.#closing = false;
  }

  /** Runs that workers may be needed for. */
  get unfinished(): Run[] {
    return [...this.#unfinished];
  }

  // What others want to know.

  /** Null: the server has no shards. */
  get shards(): ServerFacts['shards'] {
    return this.#shards?.facts() ?? null;
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
      workers: this.workers.summaries(null),
      runsRead: this.runsRead,
      ...this.reports.alertFacts,
    });
  }
}

/** One line for the log of something that went wrong and was survived. */
export function warning(what: string, error: unknown): string {
  return `${what}: ${errorCode(error)} ${errorText(error)}`;
}
