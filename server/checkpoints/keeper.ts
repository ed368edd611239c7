import { setTimeout as delay } from 'node:timers/promises';
import { checkpointFolder, removeCheckpoint } from '../../files/checkpoint.ts';
import { type CheckpointManifest, listCheckpoints } from '../../files/manifest.ts';
import { eachOf } from '../../shared/each-of.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { CheckpointSummary, CreateRun, RunSummary } from '../../shared/rest.ts';
import { causeOf, Said } from '../../shared/said.ts';
import type { RunOptions } from '../core/run/state.ts';
import type { Run } from '../core/run.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { StateStore } from '../store/state-store.ts';
import type { WriteCounts } from '../watch/counts.ts';
import { beginFork } from './fork.ts';
import { noteProgress, noteProgressNow } from './lives.ts';
import { type InheritedRuns, type KnownRun, Recovery } from './recovery.ts';
import { Removals, type RemoveCopies } from './removal.ts';
import { RunRecords, recordOf } from './run-records.ts';
import { CheckpointSaver } from './saver.ts';
import { newWriteState, WRITE_ORDER, type WriteState, type WriteTask } from './write-state.ts';
import { type CheckpointWriter, directWriter } from './writer.ts';

/**
 * Writes down what must survive: checkpoints on disk, records in the state store. Training never
 * waits for it. What could not be written (disk full, Redis gone) is tried again, newest state
 * first, and said in the log.
 */

const RETRY_MS = 5_000;

export interface KeeperOptions {
  readonly root: string;
  readonly store: StateStore;
  /** That share the vectors of runs. */
  readonly shards?: ShardPool | null;
  /** Default: in this thread. */
  readonly writer?: CheckpointWriter;
  /** Rows of a run that take fewer bytes are written with each checkpoint. Default: `LIMITS.checkpointChangesBytesMin`. */
  readonly changesBytesMin?: number;
  /** Who asks for the checkpoints of a run that has just ended waits so long for the last. Default: `LIMITS.endWrittenMs`. */
  readonly endWrittenMs?: number;
  /** The fencing token of this server. */
  readonly token: number;
  readonly now: () => number;
  readonly log: Log;
  /** Another server owns the state now: this one must stop. */
  readonly onFenced: (error: DownpourError) => void;
  /** A checkpoint is on disk, and this server's. */
  readonly onWritten?: (manifest: CheckpointManifest) => void;
  /** Absent: checkpoints are copied nowhere. */
  readonly removeCopies?: RemoveCopies;
  /** The labels of a run have changed, and are on disk. */
  readonly onLabelled?: (run: Run) => void;
}

export class Keeper {
  readonly #options: KeeperOptions;
  readonly #saver: CheckpointSaver;
  readonly #records: RunRecords;
  readonly #recovery: Recovery;
  readonly #removals: Removals;
  /** No sooner what is left of removed runs is tried to be cleared again. */
  #clearAt = 0;
  readonly #states = new Map<string, WriteState>();
  readonly #runs = new Map<string, Run>();
  #closing = false;
  /** Records that are being written, beside `WriteState.writing`, and the run of each. */
  readonly #registering = new Map<Promise<void>, string>();
  /** Removed runs that something is left of, and why, as the log has said. */
  readonly #uncleared = new Said();
  /** Runs that are being removed, or made from others. */
  readonly #changing = new Set<Promise<unknown>>();
  /** The store has come back empty: what is read later is entered anew, too. */
  #hasForgotten = false;
  #closed = false;
  /** What is written of a run, or why it is not, may be another. */
  changed: (run: Run) => void = () => {};

  constructor(options: KeeperOptions) {
    const { root, store, token, shards = null, writer = directWriter, now, log } = options;
    this.#options = options;
    const onWritten = options.onWritten ?? (() => {});
    const { changesBytesMin = LIMITS.checkpointChangesBytesMin } = options;
    this.#saver = new CheckpointSaver({
      ...{ root, store, token, shards, writer, changesBytesMin, now, log, onWritten },
    });
    this.#records = new RunRecords(root, store, token);
    const removals = new Removals(root, store, token, options.removeCopies);
    this.#removals = removals;
    this.#recovery = new Recovery({
      ...{ root, store, records: this.#records, removals, shards, now, log },
      stateOf: (run) => this.#stateOf(run),
      want: (run, ...tasks) => this.#want(run, ...tasks),
    });
  }

  /** The life of this server, counted over all servers that have held the state; known from `known` on. */
  get life(): number {
    return this.#recovery.life;
  }

  /** Makes a new or resumed run known. @throws what the state store throws. */
  async register(run: Run): Promise<void> {
    this.#stateOf(run);
    const writing = this.#records.put(run).finally(() => this.#registering.delete(writing));
    this.#registering.set(writing, run.id);
    await writing;
  }

  /** It could not be registered: there is no such run. */
  forget({ id }: Run): void {
    this.#states.get(id)?.tasks.clear();
    this.#states.delete(id);
    this.#runs.delete(id);
    this.#records.forget(id);
  }

  /** All runs that there are, the oldest first, to be read one by one. Begins a life of the server. */
  known(replicas: InheritedRuns = null): Promise<KnownRun[]> {
    return this.#recovery.known(replicas);
  }

  /**
   * Reads one of the `known` runs, from its newest valid checkpoint.
   * @param replicas that a standby inherits: the newer of a run's replica and its checkpoint is used. A replica is
   *   not used any more afterwards.
   * @returns null: it cannot be read, and the log says so, or its folder holds no run.
   */
  async read(known: KnownRun, replicas: InheritedRuns = null): Promise<Run | null> {
    const run = await this.#recovery.read(known, replicas);
    if (run && this.#hasForgotten) this.#want(run, 'record', 'registry', 'earlyStopping');
    return run;
  }

  /**
   * Makes a run that begins with the parameters of another, known and on disk before anybody works for
   * it. The other one is left as it is; of a live one a checkpoint is written first.
   * @throws DownpourError DP_CHECKPOINT_MISSING, DP_CHECKPOINT_CORRUPT, DP_DISK or what the store throws.
   */
  fork(
    source: Run,
    from: Omit<NonNullable<CreateRun['fork']>, 'run'>,
    options: Omit<RunOptions, 'fork'>,
  ): Promise<Run> {
    return this.#change(this.#fork(source, from, options));
  }

  /** Whoever gives all runs up waits for it: it would tell the shards of another life about a run. */
  async #change<T>(change: Promise<T>): Promise<T> {
    this.#changing.add(change);
    try {
      return await change;
    } finally {
      this.#changing.delete(change);
    }
  }

  async #fork(
    source: Run,
    from: Omit<NonNullable<CreateRun['fork']>, 'run'>,
    options: Omit<RunOptions, 'fork'>,
  ): Promise<Run> {
    const isLive = !source.over && source.hasParameters;
    if (from.checkpoint === 'last' && isLive) await this.checkpointNow(source);
    // It may just have ended, and its final parameters not be written yet.
    else await this.#flush(source);
    const { life } = this;
    const { fork, manifest } = await beginFork(source, from, options, { ...this.#options, life });
    try {
      await this.#records.put(fork);
      const run = await this.#recovery.recoverOne(recordOf(fork), true);
      this.#options.onWritten?.(manifest);
      this.#want(run, 'registry');
      return run;
    } catch (error) {
      await this.#withdraw(fork, manifest);
      throw error;
    }
  }

  /** There is to be no such run: else it would be there after a restart, or begin in the place of another one of that name. */
  async #withdraw(fork: Run, { file }: CheckpointManifest): Promise<void> {
    const { root, store, token, log } = this.#options;
    const { id } = fork;
    this.forget(fork);
    try {
      // Another server may have a run of that name by now.
      await store.mayWrite(token);
      await removeCheckpoint(checkpointFolder(root, id), file);
      await store.removeRun(token, id);
    } catch (error) {
      log(
        `run ${id} was not made, and what was written of it is still there: ${errorCode(error)} ${errorText(error)}; remove its folder from ${root}`,
        { level: 'error', run: id, code: errorCode(error) },
      );
    }
  }

  /** Something of a removed run of this name is still there. */
  isBeingRemoved(id: string): boolean {
    return this.#removals.has(id);
  }

  /**
   * Removes a run that nothing happens to any more, with its files and records. When the promise resolves there is no such run,
   * also after a crash; what could not be cleared is cleared later, and told.
   * @throws DownpourError DP_DISK, DP_STATE_FENCED: it stays as it was.
   */
  async remove(run: Run): Promise<void> {
    await this.#change(this.#remove(run));
  }

  async #remove(run: Run): Promise<void> {
    const { id } = run;
    const state = this.#stateOf(run);
    state.tasks.clear();
    const why = new DownpourError('DP_RUN_UNKNOWN', `run '${id}' is removed`);
    for (const { reject } of state.waiting.splice(0)) reject(why);
    await state.writing;
    // A note or a record that is being written would make its folder anew.
    const records = [...this.#registering].filter(([, of]) => of === id);
    await Promise.allSettled(records.map(([writing]) => writing));
    while (state.noting) await delay(1);
    await this.#removals.begin(id);
    this.forget(run);
    await this.#clear(id);
  }

  async #clear(id: string): Promise<void> {
    const { log, now } = this.#options;
    try {
      await this.#removals.finish(id);
    } catch (error) {
      this.#clearAt = now() + RETRY_MS;
      if (!this.#uncleared.isNew(`${id} ${causeOf(errorText(error))}`)) return;
      log(
        `run ${id} is removed, and not all of it is cleared yet, trying again: ${errorCode(error)} ${errorText(error)}`,
        { level: 'warn', run: id, code: errorCode(error), kind: 'clearing' },
      );
    }
  }

  /** The store has forgotten all: writes all of it again. */
  rebuild(): void {
    this.#hasForgotten = true;
    this.#options.log('the registry came back empty or old: entering all runs again', {
      level: 'warn',
    });
    for (const run of this.#runs.values()) this.#want(run, 'record', 'registry', 'earlyStopping');
  }

  /** The bundles that runs name, also runs that cannot be continued. */
  get bundles(): Set<string> {
    const options = [...this.#runs.values()].map((run) => run.options);
    const named = [...this.#records.known, ...options].map(({ bundle }) => bundle);
    return new Set(named.filter((bundle) => typeof bundle === 'string'));
  }

  /** More is known of lost steps: on disk before the worker that told it is answered, since it then forgets it. */
  onLost(run: Run): void {
    this.#stateOf(run).notes++;
    try {
      noteProgressNow(this.#options.root, run.id, run.progress);
    } catch {
      // The checkpoint that follows says it as well, and tells why the disk takes nothing.
    }
    this.#want(run, 'record', 'last');
  }

  onRollback(run: Run): void {
    this.#want(run, 'record', 'last', 'earlyStopping');
  }

  onPhase(run: Run): void {
    this.#want(run, 'record', 'last', 'earlyStopping');
    if (run.phase === 'finished') this.#want(run, 'final');
  }

  onBest(run: Run): void {
    this.#want(run, 'last', 'best', 'earlyStopping');
  }

  onEvaluation(run: Run): void {
    this.#want(run, 'earlyStopping');
  }

  /** After anything has happened to a run: a checkpoint when enough steps or seconds have gone by. */
  onStep(run: Run, now: number): void {
    const state = this.#stateOf(run);
    state.touched = true;
    this.#due(run, state, now);
  }

  #due(run: Run, state: WriteState, now: number): void {
    if (run.over || run.step === state.lastStep) return;
    const { everySteps, everySeconds } = run.config.checkpoint;
    const bySteps = everySteps !== null && run.step - state.lastStep >= everySteps;
    if (bySteps || now - state.lastAt >= everySeconds * 1000) this.#want(run, 'last');
  }

  tick(now: number): void {
    if (now >= this.#clearAt && this.#removals.begun.length > 0 && !this.#closing) {
      this.#clearAt = now + RETRY_MS;
      for (const id of this.#removals.begun) void this.#clear(id);
    }
    for (const [id, state] of this.#states) {
      const run = this.#runs.get(id)!;
      this.#due(run, state, now);
      if (run.step !== state.notedStep && !state.noting) this.#note(run, state);
      if (state.spoilt.size > 0 && now >= state.spoiltRetryAt) {
        for (const task of state.spoilt.keys()) state.tasks.add(task);
      }
      if (state.tasks.size > 0 && now >= state.retryAt) this.#write(run, state);
    }
  }

  #note(run: Run, state: WriteState): void {
    const { step } = run;
    const note = ++state.notes;
    state.noting = true;
    const { root } = this.#options;
    noteProgress(root, run.id, run.progress, () => state.notes === note).then(
      () => {
        state.noting = false;
        state.notedStep = step;
      },
      // Workers and checkpoints tell more; a disk that is full is told where they are written.
      () => {
        state.noting = false;
      },
    );
  }

  /**
   * A checkpoint of this moment or a little later, on disk when the promise resolves. Training goes on, and what
   * it wants written meanwhile is not waited for.
   * @throws what the disk or the state store throws; it is tried again all the same.
   */
  checkpointNow(run: Run): Promise<void> {
    const state = this.#stateOf(run);
    const written = new Promise<void>((resolve, reject) => state.waiting.push({ resolve, reject }));
    this.#want(run, 'last');
    return written;
  }

  /** All that is to be written of a run that stands still, on disk when the promise resolves. */
  async saveNow(run: Run): Promise<void> {
    const state = this.#want(run, 'record', 'last', 'earlyStopping');
    await state.writing;
    if (state.tasks.size > 0) await this.#write(run, state);
  }

  /**
   * What was asked of a run is on disk when the promise resolves: its newest state, and its record. Training goes on.
   * @param done what is so meanwhile, for the message.
   * @throws DownpourError what the disk or the state store throws; it is tried again all the same.
   */
  async mustKeep(run: Run, done: string): Promise<void> {
    try {
      await Promise.all([this.checkpointNow(run), this.register(run)]);
    } catch (error) {
      if (!(error instanceof DownpourError)) throw error;
      const text = `run ${run.id} ${done}, but that is not on disk yet, and a restart would forget it: ${error.message}; the server tries again`;
      throw new DownpourError(error.code, text, { cause: error });
    }
  }

  /**
   * The labels of a run are on disk and in the store when the promise resolves.
   * @throws DownpourError what the disk or the state store throws; it is tried again all the same.
   */
  async mustLabel(run: Run): Promise<void> {
    try {
      await this.register(run);
    } catch (error) {
      this.#want(run, 'record');
      if (!(error instanceof DownpourError)) throw error;
      throw new DownpourError(
        error.code,
        `run ${run.id} is labelled, but that is not on disk yet, and a restart would forget it: ${error.message}; the server tries again`,
        { cause: error },
      );
    }
    this.changed(run);
    this.#options.onLabelled?.(run);
  }

  /** Forgets all runs, after what is being written has been, or has failed. */
  async abandon(): Promise<void> {
    const states = [...this.#states.values()];
    const why = new DownpourError('DP_SHARD_LOST', 'all runs continue from their last checkpoints');
    for (const { tasks, waiting } of states) {
      tasks.clear();
      for (const { reject } of waiting.splice(0)) reject(why);
    }
    this.#states.clear();
    this.#runs.clear();
    await Promise.allSettled([...states.map(({ writing }) => writing), ...this.#changing]);
  }

  /** Writes all that is left, and nothing after that. What fails is said, never thrown. */
  async close(runs: readonly Run[]): Promise<void> {
    this.#closing = true;
    // What its newest checkpoint holds already costs nothing: of 10,000 runs few have anything to be written.
    await eachOf(runs, (run) =>
      run.over || !this.#stateOf(run).touched ? this.#flush(run) : this.saveNow(run),
    );
    this.#closed = true;
    // Runs that were being recovered are among them.
    await Promise.all([...this.#states.values()].map(({ writing }) => writing));
    for (const run of runs) this.#sayUnwritten(run);
  }

  /** This process ends, and tries no more. */
  #sayUnwritten(run: Run): void {
    const { tasks, latest } = this.#stateOf(run);
    if (tasks.size === 0) return;
    const what = `run ${run.id}: ${[...tasks].join(', ')} is not written (${this.problem(run.id)})`;
    const from = latest ? `step ${latest.step}` : 'its beginning';
    const back = `; it goes back from step ${run.step} to ${from} when a server has it again`;
    this.#options.log(`${what}${tasks.has('last') ? back : ''}`, {
      ...{ level: 'error', run: run.id, step: run.step },
    });
  }

  async #flush(run: Run): Promise<void> {
    const state = this.#stateOf(run);
    await state.writing;
    if (state.tasks.size > 0) await this.#write(run, state);
  }

  latest(id: string): RunSummary['checkpoint'] {
    return this.#states.get(id)?.latest ?? null;
  }

  /** Bytes of the newest checkpoint. */
  latestBytes(id: string): number | null {
    return this.#states.get(id)?.latestBytes ?? null;
  }

  counts(id: string): WriteCounts | null {
    return this.#states.get(id)?.counts ?? null;
  }

  /** Why something of a run could not be written; null: all is, as far as was tried. */
  problem(id: string): string | null {
    const state = this.#states.get(id);
    if (!state) return null;
    // Checkpoints first: the rest can be made again from them.
    for (const task of WRITE_ORDER) {
      const problem = state.problems.get(task);
      if (problem !== undefined) return `${errorCode(problem)} ${errorText(problem)}`;
    }
    return null;
  }

  /** What the state store has in the place of a record of a run; null: all are as they should be. */
  spoilt(id: string): string | null {
    const [error] = this.#states.get(id)?.spoilt.values() ?? [];
    return error?.message ?? null;
  }

  /** Numbers that the newest checkpoint of a run lacks, since JSON cannot keep them. */
  leftOut(id: string): readonly string[] {
    return this.#states.get(id)?.leftOut ?? [];
  }

  /** The step that another server would go on from, as far as this one knows. */
  publishedStep(run: Run): number {
    return this.#stateOf(run).publishedStep;
  }

  /** A run that has just ended has those that its end writes among them, unless the disk takes long. */
  async checkpoints(id: string): Promise<CheckpointSummary[]> {
    const writing = this.#runs.get(id)?.over ? this.#states.get(id)?.writing : null;
    if (writing) {
      const { endWrittenMs = LIMITS.endWrittenMs } = this.#options;
      const answered = new AbortController();
      const { signal } = answered;
      const late = delay(endWrittenMs, undefined, { signal }).catch(() => {});
      await Promise.race([writing, late]);
      answered.abort();
    }
    const manifests = await listCheckpoints(checkpointFolder(this.#options.root, id));
    return manifests.map(({ kind, step, createdAt, file, bytes, sha256, continues }) => ({
      ...{ kind, step, createdAt, file, bytes, sha256 },
      ...(continues && { continues: continues.after.length }),
    }));
  }

  #want(run: Run, ...tasks: WriteTask[]): WriteState {
    const state = this.#stateOf(run);
    for (const task of tasks) state.tasks.add(task);
    if (this.#closed) return state;
    if (this.#options.now() >= state.retryAt) this.#write(run, state);
    return state;
  }

  /** One writer a run; what is asked for meanwhile is written after it, once, at its newest. */
  #write(run: Run, state: WriteState): Promise<void> {
    state.writing ??= this.#drain(run, state).finally(() => {
      state.writing = null;
    });
    return state.writing;
  }

  async #drain(run: Run, state: WriteState): Promise<void> {
    const { log, onFenced, now } = this.#options;
    // All state is read after the event that asked for it has been dealt with entirely.
    await null;
    const failed = new Set<WriteTask>();
    for (;;) {
      // What fails keeps nothing else from being written.
      const task = WRITE_ORDER.find(
        (candidate) => state.tasks.has(candidate) && !failed.has(candidate),
      );
      if (!task) return;
      state.tasks.delete(task);
      const waiting = task === 'last' ? state.waiting.splice(0) : [];
      try {
        await this.#perform(run, state, task);
        if (state.problems.delete(task)) {
          log(`run ${run.id}: ${task} is written again`, { run: run.id });
        }
        state.spoilt.delete(task);
        for (const { resolve } of waiting) resolve();
      } catch (error) {
        failed.add(task);
        const before = state.problems.get(task);
        if (error instanceof DownpourError && error.code === 'DP_STATE_CORRUPT') {
          this.#spoilt(run, state, task, error);
          for (const { reject } of waiting) reject(error);
          continue;
        }
        state.problems.set(task, error);
        state.counts.failed++;
        for (const { reject } of waiting) reject(error);
        state.tasks.add(task);
        state.retryAt = now() + RETRY_MS;
        if (!this.#closing && !(before && isSameProblem(before, error))) {
          log(
            `run ${run.id}: ${task} not written, trying again: ${errorCode(error)} ${errorText(error)}`,
            { level: 'error', run: run.id, code: errorCode(error) },
          );
        }
        if (error instanceof DownpourError && error.code === 'DP_STATE_FENCED') {
          onFenced(error);
          if (!this.#closing) return;
        }
      } finally {
        this.changed(run);
      }
    }
  }

  /** What is in the place of a record is not ours to remove. Checkpoints are on disk without it; told once. */
  #spoilt(run: Run, state: WriteState, task: WriteTask, error: DownpourError): void {
    const { log, now } = this.#options;
    const told = state.spoilt.get(task)?.message;
    state.spoilt.set(task, error);
    state.spoiltRetryAt = now() + RETRY_MS;
    this.changed(run);
    if (told === error.message) return;
    log(`run ${run.id}: not entered in the state store; training continues: ${error.message}`, {
      ...{ level: 'error', run: run.id, code: error.code },
    });
  }

  async #perform(run: Run, state: WriteState, task: WriteTask): Promise<void> {
    const { store, token } = this.#options;
    if (task === 'record') await this.#records.put(run);
    else if (task === 'earlyStopping') {
      await store.putEarlyStopping(token, run.id, run.earlyStoppingState);
    } else if (task === 'registry') await this.#saver.publishAll(run, state);
    else {
      await this.#saver.save(run, state, task);
      await this.#publish(run, state);
      if (task === 'best') await this.#recordBest(run, state);
    }
  }

  async #publish(run: Run, state: WriteState): Promise<void> {
    try {
      await this.#saver.publish(run, state);
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      // It is on disk; the registry is told of all that are there once it takes them again.
      state.unpublished.length = 0;
      this.#spoilt(run, state, 'registry', error as DownpourError);
      await this.#saver.prune(run);
    }
  }

  /** A record of the best that is none is no reason to write its parameters again and again. */
  async #recordBest(run: Run, state: WriteState): Promise<void> {
    try {
      await this.#saver.recordBest(run, state);
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      this.#spoilt(run, state, 'registry', error as DownpourError);
    }
  }

  #stateOf(run: Run): WriteState {
    let state = this.#states.get(run.id);
    if (!state) {
      state = newWriteState(run.step, this.#options.now());
      this.#states.set(run.id, state);
    }
    this.#runs.set(run.id, run);
    return state;
  }
}

/** Tried again, it fails at another file and another step. */
const isSameProblem = (a: unknown, b: unknown) => causeOf(errorText(a)) === causeOf(errorText(b));
