import {
  type CheckpointInput,
  type CheckpointManifest,
  checkpointFolder,
  listCheckpoints,
  removeCheckpoint,
} from '../../files/checkpoint.ts';
import { errorCode } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { CheckpointKind } from '../../shared/trained-last.ts';
import type { Run } from '../core/run.ts';
import { saveShards } from '../shards/checkpoint.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { StateStore } from '../store/state-store.ts';
import type { SharedCopies } from './copies.ts';
import { type WriteState, writtenSummary } from './write-state.ts';
import type { CheckpointWriter } from './writer.ts';

export interface SaverOptions {
  readonly root: string;
  readonly store: StateStore;
  /** The fencing token of this server. */
  readonly token: number;
  readonly shards: ShardPool | null;
  readonly writer: CheckpointWriter;
  readonly now: () => number;
  readonly log: Log;
  /** A checkpoint is on disk, and this server's. */
  readonly onWritten: (manifest: CheckpointManifest) => void;
}

/** The tensors of a run as they were at one moment. */
interface CopiesOfRun {
  tensors(): Promise<CheckpointInput['tensors']>;
  /** They are written, or never will be. */
  done(): void;
}

/** Writes one checkpoint of a run and enters it in the registry, once. What fails is thrown to the keeper. */
export class CheckpointSaver {
  readonly #options: SaverOptions;

  constructor(options: SaverOptions) {
    this.#options = options;
  }

  /** On disk, if the run has parameters; `publish` follows. @throws what the disk or the state store throws. */
  async save(run: Run, state: WriteState, kind: CheckpointKind): Promise<void> {
    const { store, token, now } = this.#options;
    if (kind === 'last') state.touched = false;
    if (!run.layout || !run.hasParameters) return;
    await store.mayWrite(token);
    const { best } = run;
    const step = kind === 'best' ? best!.step : run.step;
    const began = now();
    const copies = this.#copies(run, kind, state.copies);
    const content = run.state(now());
    if (kind === 'last') state.lastStep = step;
    state.lastAt = now();
    const folder = this.#folderOf(run);
    const layoutHash = run.layout.hash;
    let manifest: CheckpointManifest;
    try {
      const tensors = await copies.tensors();
      const what = { run: run.id, step, kind, layoutHash, tensors };
      manifest = await this.#options.writer.write(folder, {
        ...{ ...what, state: content },
        now: new Date(),
      });
    } finally {
      copies.done();
    }
    await this.#mustStillOwn(folder, manifest);
    this.#options.onWritten(manifest);
    state.counts.seconds.add((now() - began) / 1000);
    if (kind === 'best') state.best = { step, file: manifest.file };
    if (kind === 'last') {
      state.latest = writtenSummary(manifest);
      state.latestBytes = manifest.bytes;
      this.#sayLeftOut(run, state, manifest.leftOut ?? []);
    }
    state.unpublished.push(manifest);
  }

  /** Tells the registry of what was saved, and of what is removed for it. @throws what the disk or the state store throws. */
  async publish(run: Run, state: WriteState): Promise<void> {
    const { store, token } = this.#options;
    await store.mayWrite(token);
    while (state.unpublished.length > 0) {
      const { state: _, leftOut: __, ...summary } = state.unpublished[0]!;
      const { moved } = await store.publishCheckpoint(token, run.id, summary);
      if (moved) state.publishedStep = summary.step;
      state.unpublished.shift();
    }
    const removed = await this.prune(run);
    if (removed.length > 0) await store.forgetCheckpoints(token, run.id, removed);
  }

  /** Removes what the run keeps no longer. @returns the files that went. @throws DownpourError DP_DISK. */
  prune(run: Run): Promise<readonly string[]> {
    const { keepLast } = run.config.checkpoint;
    return this.#options.writer.prune(this.#folderOf(run), { keepLast });
  }

  /** Enters all that lies in the run's folder. @throws what the disk or the state store throws. */
  async publishAll(run: Run, entry: WriteState): Promise<void> {
    const { store, token } = this.#options;
    const manifests = await listCheckpoints(this.#folderOf(run));
    entry.best = bestAmong(manifests, run);
    for (const { state: _, leftOut: __, ...summary } of manifests) {
      await store.publishCheckpoint(token, run.id, summary);
    }
    await this.recordBest(run, entry);
  }

  /** The best evaluation so far, with the file of its parameters if that is on disk. */
  async recordBest(run: Run, { best: saved }: WriteState): Promise<void> {
    const { store, token } = this.#options;
    const { best, config } = run;
    const value = best && (config.earlyStopping.metric === 'loss' ? best.loss : best.error);
    if (!best || value === null) return;
    const { step } = best;
    const checkpoint = saved?.step === step ? saved.file : '';
    await store.recordBest(token, run.id, { step, value, checkpoint });
  }

  #folderOf(run: Run): string {
    return checkpointFolder(this.#options.root, run.id);
  }

  /** Once for the same numbers. */
  #sayLeftOut(run: Run, state: WriteState, leftOut: readonly string[]): void {
    const isNew = leftOut.join() !== state.leftOut.join();
    state.leftOut = leftOut;
    if (leftOut.length === 0 || !isNew) return;
    this.#options.log(
      `run ${run.id}: its checkpoint is written without ${leftOut.join(', ')}, which JSON cannot keep`,
      { level: 'error', run: run.id, step: run.step },
    );
  }

  /** The tensors of this moment. `done` is called when they have been written. */
  #copies(run: Run, kind: CheckpointKind, copies: SharedCopies): CopiesOfRun {
    const { shards } = this.#options;
    const { make } = copies;
    const written = () => copies.written({ keep: !run.over });
    if (shards && run.rangeCount > 1) {
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
    return { tensors: async () => tensors, done: written };
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
}

/** The checkpoint of the run's best evaluation; null: it is not on disk. */
export function bestAmong(
  manifests: readonly CheckpointManifest[],
  { best }: Run,
): CheckpointManifest | null {
  return manifests.findLast(({ kind, step }) => kind === 'best' && step === best?.step) ?? null;
}
