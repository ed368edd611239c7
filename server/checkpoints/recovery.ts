import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type Checkpoint,
  checkpointFolder,
  newestValidCheckpoint,
} from '../../files/checkpoint.ts';
import { type CheckpointManifest, listCheckpoints, newestManifest } from '../../files/manifest.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { eachOf } from '../../shared/each-of.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import { isOver } from '../../shared/phases.ts';
import type { RunState } from '../core/run/state.ts';
import { Run } from '../core/run.ts';
import { restoreShards } from '../shards/checkpoint.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { RunRecord, StateStore } from '../store/state-store.ts';
import { nextLife, noteProgress, readProgress } from './lives.ts';
import type { Removals } from './removal.ts';
import { optionsOf, type RunRecords, recordOf } from './run-records.ts';
import { bestAmong } from './saver.ts';
import { type WriteState, type WriteTask, writtenSummary } from './write-state.ts';

/** Between two lines that say how far the reading is. */
const PROGRESS_MS = 2_000;

export interface RecoveryOptions {
  readonly root: string;
  readonly store: StateStore;
  readonly records: RunRecords;
  readonly removals: Removals;
  readonly shards: ShardPool | null;
  readonly now: () => number;
  readonly log: Log;
  readonly stateOf: (run: Run) => WriteState;
  /** Writes what the folder or the store of a recovered run lacks. */
  readonly want: (run: Run, ...tasks: WriteTask[]) => void;
}

/** Runs that a standby inherits, by id; null: this server is none. */
export type InheritedRuns = ReadonlyMap<string, Run> | null;

/** A run that there is, as far as it is known without reading its checkpoints. */
export interface KnownRun {
  readonly id: string;
  /** Null: the store has none, only a folder has its name. */
  readonly record: RunRecord | null;
  /** No worker is needed for it. */
  readonly isOver: boolean;
  /** As far as its record says. */
  readonly isArchived: boolean;
  /** The bundle that its experiment was sent as. */
  readonly bundle: string | null;
}

/** Makes the runs of a state folder anew: from checkpoints, from the registry, from a standby's replicas. */
export class Recovery {
  readonly #options: RecoveryOptions;
  #life = 1;
  #lives: Promise<void> = Promise.resolve();

  constructor(options: RecoveryOptions) {
    this.#options = options;
  }

  /** The life of this server, counted over all servers that have held the state; known from `known` on. */
  get life(): number {
    return this.#life;
  }

  /** All runs that there are, the oldest first; they are not read yet. Begins a life of the server. */
  async known(replicas: InheritedRuns = null): Promise<KnownRun[]> {
    const { root, removals } = this.#options;
    await removals.find();
    const inStore = await this.#options.records.list();
    const registered = inStore.filter(({ id }) => !removals.has(id));
    // What the registry has forgotten, or was not told any more.
    const only = [...(replicas?.values() ?? [])].filter(
      (replica) => !registered.some(({ id }) => id === replica.id),
    );
    const records = [...registered, ...only.map(recordOf)];
    const unregistered = await this.#unregistered(records);
    let life = 0;
    for (const replica of replicas?.values() ?? []) life = Math.max(life, replica.life);
    for (const record of records) if (isLife(record.life)) life = Math.max(life, record.life);
    this.#life = await nextLife(root, life, async (error) => {
      if (error) this.#passedOver(error);
      const ids = [...records.map(({ id }) => id), ...unregistered];
      await eachOf(ids, async (id) => {
        life = Math.max(life, await this.#lifeOf(id));
      });
      return life;
    });
    const ofRecord = (record: RunRecord): KnownRun => {
      const { id, phase, bundle } = record;
      const isArchived = Object(record.labels).archived === true;
      const sentAs = typeof bundle === 'string' ? bundle : null;
      return { id, record, isOver: isOver(phase), isArchived, bundle: sentAs };
    };
    const unknown = { record: null, isOver: false, isArchived: false, bundle: null };
    const ofFolder = (id: string): KnownRun => ({ id, ...unknown });
    return [...records.map(ofRecord), ...unregistered.map(ofFolder)];
  }

  /** @returns null: it cannot be read, which is told, or its folder holds no run. */
  async read({ id, record }: KnownRun, replicas: InheritedRuns = null): Promise<Run | null> {
    const { log, stateOf } = this.#options;
    try {
      if (!record) return await this.#recoverFromDisk(id);
      const run = replicas
        ? await this.#inherit(record, replicas.get(id) ?? null)
        : await this.recoverOne(record);
      stateOf(run);
      return run;
    } catch (error) {
      const what = record ? 'continued' : 'rebuilt';
      log(`run ${id} cannot be ${what}: ${errorCode(error)} ${errorText(error)}`, {
        ...{ level: 'error', run: id, code: errorCode(error) },
      });
      return null;
    }
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
    const run = await this.recoverOne({ ...options, phase });
    try {
      await this.#options.records.put(run);
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      this.#options.want(run, 'record');
    }
    this.#options.want(run, 'registry', 'earlyStopping');
    log(`run ${id} was not in the registry: entered again from its checkpoints`, { run: id });
    return run;
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
      if (!elsewhere) return this.recoverOne(known);
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `this standby has no record of it, and its checkpoint ${elsewhere.file} is in the folder of the old primary: start a server there`,
      );
    }
    if (state && isNewer(state, replica)) {
      log(`run ${known.id}: its checkpoint at step ${state.step} is newer than the replica`, {
        ...{ run: known.id, step: state.step },
      });
      return this.recoverOne(known);
    }
    const run = Run.restore(
      replica.state(replica.nowMs),
      // Taken over as they are: nobody else has them.
      replica.tensors((values) => values),
      null,
      this.#life,
    );
    this.#options.want(
      run,
      'record',
      'last',
      'earlyStopping',
      ...(run.best ? (['best'] as const) : []),
    );
    if (run.phase === 'finished') this.#options.want(run, 'final');
    if (!run.over) {
      log(`run ${run.id} continues from its replica at step ${run.step}`, {
        ...{ run: run.id, step: run.step },
      });
    }
    await this.#learnLost(run);
    await this.#learnLabels(run, known);
    return run;
  }

  /** @param isOwn its checkpoint was written in this life. */
  async recoverOne(known: RunRecord, isOwn = false): Promise<Run> {
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
        if (!isOwn) await this.#outlive(checkpoint.manifest);
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
      await this.#learnLabels(fresh, known);
      if (known.phase === 'stopped') {
        fresh.call({ call: 'stop', reason: 'stopped by a user; `downpour resume` continues it' });
      } else if (known.phase === 'failed') {
        const what = 'it failed before it had parameters, in an earlier life of the server';
        fresh.call({ call: 'stop', reason: `${what}; \`downpour resume\` tries again` });
      }
      return fresh;
    }
    const state = this.#options.stateOf(run);
    state.latest = writtenSummary(checkpoint.manifest);
    state.latestBytes = checkpoint.manifest.bytes;
    state.lastStep = run.step;
    state.best = bestAmong(manifests, run);
    if (run.best && !state.best) this.#options.want(run, 'best');
    // A server that dies between the `last` of the end and the `final` leaves the former alone.
    const hasFinal = manifests.some(({ kind }) => kind === 'final');
    if (run.phase === 'finished' && !hasFinal) this.#options.want(run, 'final');
    if (!run.over) {
      log(`run ${run.id} continues from its checkpoint at step ${run.step}`, {
        ...{ run: run.id, step: run.step, kind: 'continues' },
      });
    }
    await this.#learnLost(run);
    await this.#learnLabels(run, known);
    return run;
  }

  /** A checkpoint has those of its moment. */
  async #learnLabels(run: Run, known: RunRecord): Promise<void> {
    const { newest, agree } = await this.#options.records.labels(known, this.#passedOver);
    if (newest.edits > run.labels.edits) run.call({ call: 'label', labels: newest });
    // A Redis that has forgotten, or the folder of another server: what is behind is written again.
    if (!agree || newest.edits < run.labels.edits) this.#options.want(run, 'record');
  }

  /** @throws DownpourError DP_CHECKPOINT_CORRUPT; anything else that a state which is none makes fail. */
  async #restore(id: string, folder: string, { manifest, tensors }: Checkpoint): Promise<Run> {
    const { shards = null } = this.#options;
    if (!isStateOf(id, manifest.state)) throw notOf(id, folder, manifest);
    const state = manifest.state as RunState;
    if (!shards) return Run.restore(state, tensors, null, this.#life);
    const first = await restoreShards(shards, folder, manifest, state);
    return Run.restore(state, first, shards, this.#life);
  }

  /** A checkpoint may come from another folder, or the count of lives from an older copy of this one. */
  #outlive({ state }: CheckpointManifest): Promise<void> {
    const { root } = this.#options;
    const { life } = Object(state) as Partial<RunState>;
    const later = this.#lives.then(async () => {
      if (isLife(life) && life >= this.#life) this.#life = await nextLife(root, life);
    });
    this.#lives = later.catch(() => {});
    return later;
  }

  /** What is known here of what came after the checkpoint; the workers may know of more. */
  async #learnLost(run: Run): Promise<void> {
    const { root, store } = this.#options;
    const noted = await readProgress(root, run.id, this.#passedOver);
    if (noted) {
      const { base, lost, total } = noted;
      if (base && lost && total !== undefined) run.call({ call: 'recallLost', base, lost, total });
      const { step, generation } = noted;
      run.call({ call: 'learnLost', seen: { step, generation } });
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
}

/** Says how far the reading of so many is, where it takes long. */
export function readingProgress(
  count: number,
  { now, log }: { readonly now: () => number; readonly log: Log },
): (done: number) => void {
  let at = now();
  return (done) => {
    if (now() - at < PROGRESS_MS) return;
    at = now();
    log(`${done} of ${count} runs are read from their checkpoints`, { kind: 'reading' });
  };
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

/** Within one life the generation and the step rise; each life has generations of its own, above the older ones. */
function isNewer(state: Pick<RunState, 'generation' | 'step'>, { generation, step }: Run): boolean {
  if (state.generation !== generation) return state.generation > generation;
  return state.step > step;
}
