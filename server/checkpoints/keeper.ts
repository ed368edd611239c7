import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type Checkpoint,
  type CheckpointKind,
  type CheckpointManifest,
  checkpointFolder,
  listCheckpoints,
  newestManifest,
  newestValidCheckpoint,
  readCheckpoint,
  removeCheckpoint,
  writeCheckpoint,
} from '../../files/checkpoint.ts';
import { NAME_PATTERN, resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { CheckpointSummary, CreateRun, RunSummary } from '../../shared/rest.ts';
import { Run, type RunOptions, type RunState } from '../core/run.ts';
import { restoreShards, saveShards } from '../shards/checkpoint.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { RunRecord, StateStore } from '../store/state-store.ts';
import { WriteCounts } from '../watch/counts.ts';
import { SharedCopies } from './copies.ts';
import { nextLife, noteProgress, noteProgressNow, readProgress } from './lives.ts';
import { type CheckpointWriter, directWriter } from './writer.ts';

/**
 * Writes down what must survive: checkpoints on disk, records in the state store. Training never
 * waits for it. What could not be written (disk full, Redis gone) is tried again, newest state
 * first, and said in the log.
 */

/** What is still to be written of a run. */
type Task = 'registry' | 'record' | 'best' | 'last' | 'final' | 'earlyStopping';
/** `last` before `best`: so the best on disk is never of a time that a restart would not know. */
const ORDER: readonly Task[] = ['registry', 'last', 'best', 'final', 'earlyStopping', 'record'];
const RETRY_MS = 5_000;
/** Between two lines that say how far it is. */
const PROGRESS_MS = 2_000;
const AT_ONCE = 16;

interface Entry {
  readonly tasks: Set<Task>;
  /** The writing that is under way. */
  writing: Promise<void> | null;
  retryAt: number;
  lastStep: number;
  lastAt: number;
  /** Something has happened to it that its newest checkpoint does not hold. */
  touched: boolean;
  latest: RunSummary['checkpoint'];
  latestBytes: number | null;
  readonly counts: WriteCounts;
  /** Of the newest checkpoint that the store is known to have. */
  publishedStep: number;
  /** What the progress file says. */
  notedStep: number;
  noting: boolean;
  /** Counts the notes. */
  notes: number;
  readonly copies: SharedCopies;
  /** Why the last attempt at each of what is still to be written failed. */
  readonly problems: Map<Task, unknown>;
  /** The same of records in whose place the store has something that is none. */
  readonly spoilt: Map<Task, DownpourError>;
  spoiltRetryAt: number;
  /** Of the newest checkpoint: numbers that could not be kept. */
  leftOut: readonly string[];
  /** Who wants to know when the next `last` is written, or that it is not. */
  waiting: { resolve(): void; reject(why: unknown): void }[];
  /** Checkpoints that are on disk and not yet in the state store. */
  readonly unpublished: CheckpointManifest[];
}

export interface KeeperOptions {
  readonly root: string;
  readonly store: StateStore;
  /** That share the vectors of runs. */
  readonly shards?: ShardPool | null;
  /** Default: in this thread. */
  readonly writer?: CheckpointWriter;
  /** The fencing token of this server. */
  readonly token: number;
  readonly now: () => number;
  readonly log: Log;
  /** Another server owns the state now: this one must stop. */
  readonly onFenced: (error: DownpourError) => void;
  /** A checkpoint is on disk, and this server's. */
  readonly onWritten?: (manifest: CheckpointManifest) => void;
}

export class Keeper {
  readonly #options: KeeperOptions;
  readonly #writer: CheckpointWriter;
  readonly #entries = new Map<string, Entry>();
  readonly #runs = new Map<string, Run>();
  #closing = false;
  #closed = false;
  /** What is written of a run, or why it is not, may be another. */
  changed: (run: Run) => void = () => {};
  /** Of the server, from `recover` on. */
  #life = 1;
  /** As they were written or read last: what a `recover` goes by while the store is away. */
  readonly #records = new Map<string, RunRecord>();

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#writer = options.writer ?? directWriter;
  }

  /** Of the server, counted over all that have held the state. */
  get life(): number {
    return this.#life;
  }

  /** Makes a new or resumed run known. @throws what the state store throws. */
  async register(run: Run): Promise<void> {
    this.#entry(run);
    await this.#putRecord(run);
  }

  async #putRecord(run: Run): Promise<void> {
    await this.#options.store.putRun(this.#options.token, record(run));
    this.#records.set(run.id, record(run));
  }

  /** Before the first time only the store knows them. */
  async #listRecords(): Promise<readonly RunRecord[]> {
    try {
      const records = await this.#options.store.listRuns();
      for (const known of records) this.#records.set(known.id, known);
      return records;
    } catch (error) {
      if (this.#records.size === 0 || errorCode(error) !== 'DP_REDIS_UNAVAILABLE') throw error;
      return [...this.#records.values()];
    }
  }

  /**
   * Makes a run that begins with the parameters of another, known and on disk before anybody works for
   * it. The other one is left as it is; of a live one a checkpoint is written first.
   * @throws DownpourError DP_CHECKPOINT_MISSING, DP_CHECKPOINT_CORRUPT, DP_DISK or what the store throws.
   */
  async fork(
    source: Run,
    { checkpoint: which, data }: Omit<NonNullable<CreateRun['fork']>, 'run'>,
    options: Omit<RunOptions, 'fork'>,
  ): Promise<Run> {
    const { root, store, token, now } = this.#options;
    if (which === 'last' && !source.over && source.hasParameters) await this.checkpointNow(source);
    // It may just have ended, and its final parameters not be written yet.
    else await this.#flush(source);
    const from = checkpointFolder(root, source.id);
    const written = await listCheckpoints(from);
    const manifest = written.findLast(({ kind, file }) => kind === which || file === which);
    if (!manifest) {
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `run '${source.id}' has no checkpoint '${which}'; it has: ${written.map(({ file }) => file).join(', ') || 'none yet'}`,
      );
    }
    const { tensors } = await readCheckpoint(from, manifest);
    const { step, file: checkpoint } = manifest;
    const origin = { run: source.id, step, checkpoint, ...(data && { data }) };
    const state = manifest.state as RunState;
    // More may be known by now than an old checkpoint says.
    const known = { data: source.data ?? state.data, facts: source.facts ?? state.facts ?? null };
    const fork = Run.fork({ ...options, fork: origin }, { ...state, ...known }, tensors);
    await store.mayWrite(token);
    const begun = await writeCheckpoint(checkpointFolder(root, fork.id), {
      run: fork.id,
      step: 0,
      kind: 'last',
      layoutHash: manifest.layoutHash,
      tensors: fork.tensors(),
      state: { ...fork.state(now()), life: this.#life },
      now: new Date(),
    });
    await this.#putRecord(fork);
    this.#options.onWritten?.(begun);
    const run = await this.#recoverOne(record(fork));
    this.#want(run, 'registry');
    return run;
  }

  /**
   * All runs of the state store, each from its newest valid checkpoint.
   * @param replicas that a standby inherits: of each, the newer of it and the checkpoint. Not used any more.
   */
  async recover(replicas: ReadonlyMap<string, Run> | null = null): Promise<Run[]> {
    const { root, log } = this.#options;
    const runs: Run[] = [];
    const registered = await this.#listRecords();
    // What the registry has forgotten, or was not told any more.
    const only = [...(replicas?.values() ?? [])].filter(
      (replica) => !registered.some(({ id }) => id === replica.id),
    );
    const records = [...registered, ...only.map(record)];
    const ids = [...records.map(({ id }) => id), ...(await this.#unregistered(records))];
    let life = 0;
    for (const replica of replicas?.values() ?? []) life = Math.max(life, replica.life);
    await eachOf(ids, async (id) => {
      life = Math.max(life, await this.#lifeOf(id));
    });
    this.#life = await nextLife(root, life, this.#passedOver);
    const told = this.#progress(ids.length);
    for (const known of records) {
      told(runs.length);
      try {
        const run = replicas
          ? await this.#inherit(known, replicas.get(known.id) ?? null)
          : await this.#recoverOne(known);
        this.#entry(run);
        runs.push(run);
      } catch (error) {
        log(`run ${known.id} cannot be continued: ${errorCode(error)} ${errorText(error)}`, {
          ...{ level: 'error', run: known.id, code: errorCode(error) },
        });
      }
    }
    for (const id of ids.slice(records.length)) {
      told(runs.length);
      try {
        const run = await this.#recoverFromDisk(id);
        if (run) runs.push(run);
      } catch (error) {
        log(`run ${id} cannot be rebuilt: ${errorCode(error)} ${errorText(error)}`, {
          ...{ level: 'error', run: id, code: errorCode(error) },
        });
      }
    }
    return runs;
  }

  /** Says how far it is, where it takes long. */
  #progress(count: number): (done: number) => void {
    const { now, log } = this.#options;
    let at = now();
    return (done) => {
      if (now() - at < PROGRESS_MS) return;
      at = now();
      log(`${done} of ${count} runs are read from their checkpoints`, { kind: 'reading' });
    };
  }

  /** Runs that the state folder has and the registry lacks: Redis came back empty, a record is damaged. */
  async #unregistered(known: readonly RunRecord[]): Promise<string[]> {
    const { root } = this.#options;
    const ids = new Set(known.map(({ id }) => id));
    const inside = await readdir(root, { withFileTypes: true });
    const folders = inside.filter((entry) => entry.isDirectory() || entry.isSymbolicLink());
    const names = folders.map(({ name }) => name).filter((name) => !ids.has(name));
    return names.filter((name) => new RegExp(NAME_PATTERN).test(name));
  }

  readonly #passedOver = (error: DownpourError) =>
    this.#options.log(`${error.message}; passed over`, { level: 'warn', code: error.code });

  /** The last life of the server that wrote a checkpoint of a run; 0: none. */
  async #lifeOf(id: string): Promise<number> {
    const folder = checkpointFolder(this.#options.root, id);
    // What cannot be read is told where the run is recovered.
    const newest = await newestManifest(folder).catch(() => null);
    const { life } = Object(newest?.state) as Partial<RunState>;
    return isLife(life) ? life : 0;
  }

  async #recoverFromDisk(id: string): Promise<Run | null> {
    const { log } = this.#options;
    const folder = checkpointFolder(this.#options.root, id);
    const manifests = await listCheckpoints(folder);
    const manifest = manifests.findLast(
      ({ kind, state }) => kind === 'last' && isStateOf(id, state),
    );
    if (!manifest) {
      const other = manifests.findLast(({ kind }) => kind === 'last');
      if (other) throw notOf(id, folder, other);
      return null;
    }
    const { options, phase } = manifest.state as RunState;
    const run = await this.#recoverOne({ ...options, phase });
    try {
      await this.#putRecord(run);
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      this.#want(run, 'record');
    }
    this.#want(run, 'registry', 'earlyStopping');
    log(`run ${id} was not in the registry: entered again from its checkpoints`, { run: id });
    return run;
  }

  /** The store has forgotten all: writes all of it again. */
  rebuild(): void {
    this.#options.log('the registry came back empty or old: entering all runs again', {
      level: 'warn',
    });
    for (const run of this.#runs.values()) this.#want(run, 'record', 'registry', 'earlyStopping');
  }

  /** From a replica, or from a checkpoint that is newer: the replica's original may have gone on without it. */
  async #inherit(known: RunRecord, replica: Run | null): Promise<Run> {
    const { root, store, log } = this.#options;
    const manifests = await listCheckpoints(checkpointFolder(root, known.id));
    const manifest = manifests.findLast(({ kind }) => kind === 'last');
    const state = manifest?.state as RunState | undefined;
    if (!replica) {
      // Else it would begin anew beside a checkpoint that another server's folder has.
      const elsewhere = state ? null : await store.lastCheckpoint(known.id).catch(() => null);
      if (!elsewhere) return this.#recoverOne(known);
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `this standby was not told of it, and its checkpoint ${elsewhere.file} is in the folder of the old primary: start a server there`,
      );
    }
    if (state && isNewer(state, replica)) {
      log(`run ${known.id}: its checkpoint at step ${state.step} is newer than the replica`);
      return this.#recoverOne(known);
    }
    const run = Run.restore(
      replica.state(replica.nowMs),
      // Taken over as they are: nobody else has them.
      replica.tensors((values) => values),
      null,
      this.#life,
    );
    this.#want(run, 'record', 'last', 'earlyStopping', ...(run.best ? (['best'] as const) : []));
    if (run.phase === 'finished') this.#want(run, 'final');
    if (!run.over) log(`run ${run.id} continues from its replica at step ${run.step}`);
    await this.#learnLost(run);
    return run;
  }

  async #recoverOne(known: RunRecord): Promise<Run> {
    const { root, log, shards = null } = this.#options;
    const folder = checkpointFolder(root, known.id);
    const passOver = (error: DownpourError) =>
      log(`run ${known.id}: ${error.message}; using an older checkpoint`, {
        ...{ level: 'warn', run: known.id, code: error.code },
      });
    const refused = new Set<string>();
    const manifests = await listCheckpoints(folder, { onDamaged: passOver });
    let run: Run | null = null;
    let checkpoint: Checkpoint | null = null;
    while (!run) {
      checkpoint = await newestValidCheckpoint(folder, {
        ...{ kinds: ['last'], load: shards === null, manifests },
        isFit: ({ file }) => !refused.has(file),
        onDamaged(error, stem) {
          refused.add(`${stem}.safetensors`);
          passOver(error);
        },
      });
      if (!checkpoint) break;
      try {
        run = await this.#restore(known.id, folder, checkpoint);
      } catch (error) {
        if (error instanceof DownpourError && error.code !== 'DP_CHECKPOINT_CORRUPT') throw error;
        const { file } = checkpoint.manifest;
        refused.add(file);
        passOver(
          error instanceof DownpourError
            ? error
            : new DownpourError(
                'DP_CHECKPOINT_CORRUPT',
                `${join(folder, file)} has a state that cannot be restored (${errorText(error)})`,
                { cause: error },
              ),
        );
      }
    }
    if (!run || !checkpoint) {
      if (known.fork) {
        throw new DownpourError(
          'DP_CHECKPOINT_MISSING',
          `it began with the parameters of another run and has no checkpoint left: fork it again`,
        );
      }
      const since = typeof known.life === 'number' ? known.life : this.#life - 1;
      const fresh = new Run(optionsOf(known), shards, { life: this.#life, since });
      await this.#learnLost(fresh);
      if (known.phase === 'stopped') fresh.stop('stopped by a user; `downpour resume` goes on');
      return fresh;
    }
    const entry = this.#entry(run);
    entry.latest = summaryOf(checkpoint.manifest);
    entry.latestBytes = checkpoint.manifest.bytes;
    entry.lastStep = run.step;
    if (run.best && !bestAmong(manifests, run)) this.#want(run, 'best');
    // A server that dies between the `last` of the end and the `final` leaves the former alone.
    const hasFinal = manifests.some(({ kind }) => kind === 'final');
    if (run.phase === 'finished' && !hasFinal) this.#want(run, 'final');
    if (!run.over) {
      log(`run ${run.id} continues from its checkpoint at step ${run.step}`, {
        ...{ run: run.id, step: run.step, kind: 'continues' },
      });
    }
    await this.#learnLost(run);
    return run;
  }

  /** @throws DownpourError DP_CHECKPOINT_CORRUPT; anything else that a state which is none makes fail. */
  async #restore(id: string, folder: string, { manifest, tensors }: Checkpoint): Promise<Run> {
    const { shards = null } = this.#options;
    if (!isStateOf(id, manifest.state)) throw notOf(id, folder, manifest);
    const state = manifest.state as RunState;
    if (!shards) return Run.restore(state, tensors, null, this.#life);
    const first = await restoreShards(shards, join(folder, manifest.file), state);
    return Run.restore(state, first, shards, this.#life);
  }

  /** That a run names, also one that cannot be continued. */
  get bundles(): Set<string> {
    const options = [...this.#runs.values()].map((run) => run.options);
    const named = [...this.#records.values(), ...options].map(({ bundle }) => bundle);
    return new Set(named.filter((bundle) => typeof bundle === 'string'));
  }

  /** What is known here of what came after the checkpoint; the workers may know of more. */
  async #learnLost(run: Run): Promise<void> {
    const { root, store } = this.#options;
    const noted = await readProgress(root, run.id, this.#passedOver);
    if (noted) {
      const { base, lost, total } = noted;
      if (base && lost && total !== undefined) run.recallLost({ base, lost, total });
      run.learnLost(noted);
      // This life may be as short as the last one, and its checkpoint never written. Of one that is over nothing is lost.
      if (!run.over) await noteProgress(root, run.id, run.progress).catch(() => {});
    }
    // Told, and not counted: whoever can write there could make up any number.
    const registered = await store.lastCheckpoint(run.id).catch((error: unknown) => {
      // That it is away is told where it is asked first.
      if (errorCode(error) === 'DP_STATE_CORRUPT') this.#passedOver(error as DownpourError);
      return null;
    });
    if (!registered || registered.step <= run.step) return;
    this.#options.log(
      `run ${run.id}: the registry knows checkpoint ${registered.file} of step ${registered.step}, which is not in ${checkpointFolder(root, run.id)} or damaged; going on from step ${run.step}`,
      { level: 'warn', run: run.id, step: run.step },
    );
  }

  /** More is known of lost steps: on disk before the worker that told it is answered, since it then forgets it. */
  lost(run: Run): void {
    this.#entry(run).notes++;
    try {
      noteProgressNow(this.#options.root, run.id, run.progress);
    } catch {
      // The checkpoint that follows says it as well, and tells why the disk takes nothing.
    }
    this.#want(run, 'record', 'last');
  }

  rolledBack(run: Run): void {
    this.#want(run, 'record', 'last', 'earlyStopping');
  }

  phaseChanged(run: Run): void {
    this.#want(run, 'record', 'last', 'earlyStopping');
    if (run.phase === 'finished') this.#want(run, 'final');
  }

  bestChanged(run: Run): void {
    this.#want(run, 'last', 'best', 'earlyStopping');
  }

  evaluated(run: Run): void {
    this.#want(run, 'earlyStopping');
  }

  /** After anything has happened to a run: a checkpoint when enough steps or seconds have gone by. */
  stepped(run: Run, now: number): void {
    const entry = this.#entry(run);
    entry.touched = true;
    this.#due(run, entry, now);
  }

  #due(run: Run, entry: Entry, now: number): void {
    if (run.over || run.step === entry.lastStep) return;
    const { everySteps, everySeconds } = run.config.checkpoint;
    const bySteps = everySteps !== null && run.step - entry.lastStep >= everySteps;
    if (bySteps || now - entry.lastAt >= everySeconds * 1000) this.#want(run, 'last');
  }

  tick(now: number): void {
    for (const [id, entry] of this.#entries) {
      const run = this.#runs.get(id)!;
      this.#due(run, entry, now);
      if (run.step !== entry.notedStep && !entry.noting) this.#note(run, entry);
      if (entry.spoilt.size > 0 && now >= entry.spoiltRetryAt) {
        for (const task of entry.spoilt.keys()) entry.tasks.add(task);
      }
      if (entry.tasks.size > 0 && now >= entry.retryAt) this.#write(run, entry);
    }
  }

  #note(run: Run, entry: Entry): void {
    const { step } = run;
    const note = ++entry.notes;
    entry.noting = true;
    const { root } = this.#options;
    noteProgress(root, run.id, run.progress, () => entry.notes === note).then(
      () => {
        entry.noting = false;
        entry.notedStep = step;
      },
      // Workers and checkpoints tell more; a disk that is full is told where they are written.
      () => {
        entry.noting = false;
      },
    );
  }

  /**
   * A checkpoint of this moment or a little later, on disk when the promise resolves. Training goes on, and what
   * it wants written meanwhile is not waited for.
   * @throws what the disk or the state store throws; it is tried again all the same.
   */
  checkpointNow(run: Run): Promise<void> {
    const entry = this.#entry(run);
    const written = new Promise<void>((resolve, reject) => entry.waiting.push({ resolve, reject }));
    this.#want(run, 'last');
    return written;
  }

  /** All that is to be written of a run that stands still, on disk when the promise resolves. */
  async saveNow(run: Run): Promise<void> {
    const entry = this.#want(run, 'record', 'last', 'earlyStopping');
    await entry.writing;
    if (entry.tasks.size > 0) await this.#write(run, entry);
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

  /** Forgets all runs, after what is being written has been, or has failed. */
  async abandon(): Promise<void> {
    const entries = [...this.#entries.values()];
    const why = new DownpourError('DP_SHARD_LOST', 'all runs go on from their last checkpoints');
    for (const { tasks, waiting } of entries) {
      tasks.clear();
      for (const { reject } of waiting.splice(0)) reject(why);
    }
    this.#entries.clear();
    this.#runs.clear();
    await Promise.allSettled(entries.map(({ writing }) => writing));
  }

  /** Writes all that is left, and nothing after that. What fails is said, never thrown. */
  async close(runs: readonly Run[]): Promise<void> {
    this.#closing = true;
    // What its newest checkpoint holds already costs nothing: of 10,000 runs few have anything to be written.
    await eachOf(runs, (run) =>
      run.over || !this.#entry(run).touched ? this.#flush(run) : this.saveNow(run),
    );
    this.#closed = true;
    // Of runs that were being recovered, too.
    await Promise.all([...this.#entries.values()].map(({ writing }) => writing));
    for (const run of runs) this.#sayUnwritten(run);
  }

  /** This process ends, and tries no more. */
  #sayUnwritten(run: Run): void {
    const { tasks, latest } = this.#entry(run);
    if (tasks.size === 0) return;
    const what = `run ${run.id}: ${[...tasks].join(', ')} is not written (${this.problem(run.id)})`;
    const from = latest ? `step ${latest.step}` : 'its beginning';
    const back = `; it goes back from step ${run.step} to ${from} when a server has it again`;
    this.#options.log(`${what}${tasks.has('last') ? back : ''}`, {
      ...{ level: 'error', run: run.id, step: run.step },
    });
  }

  async #flush(run: Run): Promise<void> {
    const entry = this.#entry(run);
    await entry.writing;
    if (entry.tasks.size > 0) await this.#write(run, entry);
  }

  latest(id: string): RunSummary['checkpoint'] {
    return this.#entries.get(id)?.latest ?? null;
  }

  /** Bytes of the newest checkpoint. */
  latestBytes(id: string): number | null {
    return this.#entries.get(id)?.latestBytes ?? null;
  }

  counts(id: string): WriteCounts | null {
    return this.#entries.get(id)?.counts ?? null;
  }

  /** Why something of a run could not be written; null: all is, as far as was tried. */
  problem(id: string): string | null {
    const entry = this.#entries.get(id);
    if (!entry) return null;
    // Checkpoints first: the rest can be made again from them.
    for (const task of ORDER) {
      const problem = entry.problems.get(task);
      if (problem !== undefined) return `${errorCode(problem)} ${errorText(problem)}`;
    }
    return null;
  }

  /** What the state store has in the place of a record of a run; null: all are as they should be. */
  spoilt(id: string): string | null {
    const [error] = this.#entries.get(id)?.spoilt.values() ?? [];
    return error?.message ?? null;
  }

  /** Numbers that the newest checkpoint of a run lacks, since JSON cannot keep them. */
  leftOut(id: string): readonly string[] {
    return this.#entries.get(id)?.leftOut ?? [];
  }

  /** The step that another server would go on from, as far as this one knows. */
  publishedStep(run: Run): number {
    return this.#entry(run).publishedStep;
  }

  async checkpoints(id: string): Promise<CheckpointSummary[]> {
    const manifests = await listCheckpoints(checkpointFolder(this.#options.root, id));
    return manifests.map(({ kind, step, createdAt, file, bytes, sha256 }) => ({
      kind,
      step,
      createdAt,
      file,
      bytes,
      sha256,
    }));
  }

  #want(run: Run, ...tasks: Task[]): Entry {
    const entry = this.#entry(run);
    for (const task of tasks) entry.tasks.add(task);
    if (this.#closed) return entry;
    if (this.#options.now() >= entry.retryAt) this.#write(run, entry);
    return entry;
  }

  /** One writer a run; what is asked for meanwhile is written after it, once, at its newest. */
  #write(run: Run, entry: Entry): Promise<void> {
    entry.writing ??= this.#drain(run, entry).finally(() => {
      entry.writing = null;
    });
    return entry.writing;
  }

  async #drain(run: Run, entry: Entry): Promise<void> {
    const { log, onFenced, now } = this.#options;
    // All state is read after the event that asked for it has been dealt with entirely.
    await null;
    const failed = new Set<Task>();
    for (;;) {
      // What fails keeps nothing else from being written.
      const task = ORDER.find((candidate) => entry.tasks.has(candidate) && !failed.has(candidate));
      if (!task) return;
      entry.tasks.delete(task);
      const waiting = task === 'last' ? entry.waiting.splice(0) : [];
      try {
        await this.#perform(run, entry, task);
        entry.problems.delete(task);
        entry.spoilt.delete(task);
        for (const { resolve } of waiting) resolve();
      } catch (error) {
        failed.add(task);
        if (error instanceof DownpourError && error.code === 'DP_STATE_CORRUPT') {
          this.#spoilt(run, entry, task, error);
          for (const { reject } of waiting) reject(error);
          continue;
        }
        entry.problems.set(task, error);
        entry.counts.failed++;
        for (const { reject } of waiting) reject(error);
        entry.tasks.add(task);
        entry.retryAt = now() + RETRY_MS;
        if (!this.#closing) {
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
  #spoilt(run: Run, entry: Entry, task: Task, error: DownpourError): void {
    const { log, now } = this.#options;
    const told = entry.spoilt.get(task)?.message;
    entry.spoilt.set(task, error);
    entry.spoiltRetryAt = now() + RETRY_MS;
    this.changed(run);
    if (told === error.message) return;
    log(`run ${run.id}: not entered in the state store, training goes on: ${error.message}`, {
      ...{ level: 'error', run: run.id, code: error.code },
    });
  }

  async #perform(run: Run, entry: Entry, task: Task): Promise<void> {
    const { store, token } = this.#options;
    if (task === 'record') await this.#putRecord(run);
    else if (task === 'earlyStopping') {
      await store.putEarlyStopping(token, run.id, run.earlyStoppingState);
    } else if (task === 'registry') {
      const manifests = await listCheckpoints(checkpointFolder(this.#options.root, run.id));
      for (const { state: _, leftOut: __, ...summary } of manifests) {
        await store.publishCheckpoint(token, run.id, summary);
      }
    } else await this.#checkpoint(run, entry, task);
    if (task === 'registry') await this.#recordBest(run);
    // A record of the best that is none is no reason to write its parameters again and again.
    else if (task === 'best') {
      await this.#recordBest(run).catch((error: unknown) => {
        if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
        this.#spoilt(run, entry, 'registry', error as DownpourError);
      });
    }
  }

  async #checkpoint(run: Run, entry: Entry, kind: CheckpointKind): Promise<void> {
    const { root, store, token, now } = this.#options;
    const folder = checkpointFolder(root, run.id);
    if (kind === 'last') entry.touched = false;
    if (run.layout && run.hasParameters) {
      await store.mayWrite(token);
      const { best } = run;
      const step = kind === 'best' ? best!.step : run.step;
      const began = now();
      const { tensors, done } = this.#copies(run, kind, entry.copies);
      const state = run.state(now());
      entry.lastStep = kind === 'last' ? step : entry.lastStep;
      entry.lastAt = now();
      const layoutHash = run.layout.hash;
      const manifest = await this.#writer
        .write(folder, {
          run: run.id,
          step,
          kind,
          layoutHash,
          tensors,
          state,
          now: new Date(),
        })
        .finally(done);
      await this.#mustStillOwn(folder, manifest);
      this.#options.onWritten?.(manifest);
      entry.counts.seconds.add((now() - began) / 1000);
      if (kind === 'last') {
        entry.latest = summaryOf(manifest);
        entry.latestBytes = manifest.bytes;
        this.#sayLeftOut(run, entry, manifest.leftOut ?? []);
      }
      entry.unpublished.push(manifest);
    }
    await store.mayWrite(token);
    try {
      await this.#publish(run, entry);
      await this.#prune(run, folder);
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      // It is on disk; the registry is told of all that are there once it takes them again.
      entry.unpublished.length = 0;
      this.#spoilt(run, entry, 'registry', error as DownpourError);
      await this.#writer.prune(folder, { keepLast: run.config.checkpoint.keepLast });
    }
  }

  async #publish(run: Run, entry: Entry): Promise<void> {
    const { store, token } = this.#options;
    while (entry.unpublished.length > 0) {
      const { state: _, leftOut: __, ...summary } = entry.unpublished[0]!;
      const { moved } = await store.publishCheckpoint(token, run.id, summary);
      if (moved) entry.publishedStep = summary.step;
      entry.unpublished.shift();
    }
  }

  async #prune(run: Run, folder: string): Promise<void> {
    const { store, token } = this.#options;
    const { keepLast } = run.config.checkpoint;
    const removed = await this.#writer.prune(folder, { keepLast });
    if (removed.length > 0) await store.forgetCheckpoints(token, run.id, removed);
  }

  /** Once for the same numbers. */
  #sayLeftOut(run: Run, entry: Entry, leftOut: readonly string[]): void {
    const isNew = leftOut.join() !== entry.leftOut.join();
    entry.leftOut = leftOut;
    if (leftOut.length === 0 || !isNew) return;
    this.#options.log(
      `run ${run.id}: its checkpoint is written without ${leftOut.join(', ')}, which JSON cannot keep`,
      { level: 'error', run: run.id, step: run.step },
    );
  }

  /** Of this moment. `done` when they have been written. */
  #copies(run: Run, kind: CheckpointKind, copies: SharedCopies) {
    const { shards } = this.#options;
    const { make } = copies;
    const written = () => copies.written({ keep: !run.over });
    if (shards && run.parts > 1) {
      const { tensors, done } = saveShards(shards, run, kind, make);
      return {
        tensors,
        done() {
          done();
          written();
        },
      };
    }
    const tensors =
      kind === 'last'
        ? run.tensors(make)
        : kind === 'best'
          ? run.bestTensors(make)
          : run.finalTensors(make);
    return { tensors, done: written };
  }

  /** A checkpoint that was written while another server took over must not be resumed from. */
  async #mustStillOwn(folder: string, { file }: CheckpointManifest): Promise<void> {
    const { store, token } = this.#options;
    try {
      await store.mayWrite(token);
    } catch (error) {
      if (errorCode(error) === 'DP_STATE_FENCED') await removeCheckpoint(folder, file);
      throw error;
    }
  }

  async #recordBest(run: Run): Promise<void> {
    const { store, token } = this.#options;
    const { best, config } = run;
    const value = best && (config.earlyStopping.metric === 'loss' ? best.loss : best.error);
    if (!best || value === null) return;
    const checkpoint = await this.#bestCheckpoint(run);
    await store.recordBest(token, run.id, {
      step: best.step,
      value,
      checkpoint: checkpoint?.file ?? '',
    });
  }

  /** The checkpoint of the run's best evaluation, null: not on disk yet. */
  async #bestCheckpoint(run: Run): Promise<CheckpointManifest | null> {
    const folder = checkpointFolder(this.#options.root, run.id);
    return bestAmong(await listCheckpoints(folder), run);
  }

  #entry(run: Run): Entry {
    let entry = this.#entries.get(run.id);
    if (!entry) {
      entry = {
        tasks: new Set(),
        writing: null,
        retryAt: 0,
        lastStep: run.step,
        lastAt: this.#options.now(),
        touched: false,
        latest: null,
        latestBytes: null,
        counts: new WriteCounts(),
        publishedStep: run.step,
        notedStep: run.step,
        noting: false,
        notes: 0,
        problems: new Map(),
        spoilt: new Map(),
        spoiltRetryAt: 0,
        leftOut: [],
        waiting: [],
        copies: new SharedCopies(),
        unpublished: [],
      };
      this.#entries.set(run.id, entry);
    }
    this.#runs.set(run.id, run);
    return entry;
  }
}

function bestAmong(manifests: readonly CheckpointManifest[], { best }: Run) {
  return manifests.findLast(({ kind, step }) => kind === 'best' && step === best?.step) ?? null;
}

/** A few at a time, so that neither descriptors nor memory run out. */
async function eachOf<T>(all: readonly T[], action: (one: T) => Promise<unknown>): Promise<void> {
  const rest = all.values();
  const one = async () => {
    for (const next of rest) await action(next);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, one));
}

const isLife = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= LIMITS.livesMax;

/** What `restore` and the registry take for granted; the rest is looked at when the run is restored. */
function isStateOf(id: string, state: unknown): boolean {
  const { options, life = 0 } = Object(state) as { options?: unknown; life?: unknown };
  return (Object(options) as { id?: unknown }).id === id && isLife(life);
}

function notOf(id: string, folder: string, { file }: CheckpointManifest): DownpourError {
  return new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `${join(folder, file)} does not hold the state of run '${id}': put the folder back under the name of its run, or move it away`,
  );
}

/** Of one life the generation and the step rise; each life has generations of its own, above the older ones. */
function isNewer(state: Pick<RunState, 'generation' | 'step'>, { generation, step }: Run): boolean {
  if (state.generation !== generation) return state.generation > generation;
  return state.step > step;
}

function record(run: Run): RunRecord {
  const { id, experiment, experimentHash, config, createdAt } = run.options;
  const { phase, life } = run;
  const { fork, study, bundle } = run.options;
  const origin = {
    ...(fork && { fork }),
    ...(study !== undefined && { study }),
    ...(bundle !== undefined && { bundle }),
  };
  return { id, experiment, experimentHash, config, createdAt, phase, life, ...origin };
}

function optionsOf(known: RunRecord): ConstructorParameters<typeof Run>[0] {
  const { id, experiment, createdAt } = known;
  const { experimentHash, study, bundle } = known;
  if (typeof experimentHash !== 'string') {
    throw new DownpourError('DP_STATE_CORRUPT', `the record of run '${id}' has no experiment hash`);
  }
  const config = resolveConfig(known.config);
  const more = {
    ...(typeof study === 'string' && { study }),
    ...(typeof bundle === 'string' && { bundle }),
  };
  return { id, experiment, experimentHash, config, createdAt, ...more };
}

function summaryOf(manifest: CheckpointManifest): RunSummary['checkpoint'] {
  return { step: manifest.step, file: manifest.file, at: manifest.createdAt };
}
