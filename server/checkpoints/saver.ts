import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as immediate } from 'node:timers/promises';
import {
  type CheckpointInput,
  checkpointFolder,
  removeCheckpoint,
} from '../../files/checkpoint.ts';
import { type CheckpointManifest, type Continues, listCheckpoints } from '../../files/manifest.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { CheckpointKind } from '../../shared/trained-last.ts';
import type { Run } from '../core/run.ts';
import type { RunTables } from '../core/tables/run-tables.ts';
import { saveShards } from '../shards/checkpoint.ts';
import type { ShardPool } from '../shards/pool.ts';
import type { CheckpointRecord, StateStore } from '../store/state-store.ts';
import { type WriteState, type WrittenChain, writtenSummary } from './write-state.ts';
import type { CheckpointWriter } from './writer.ts';

export interface SaverOptions {
  readonly root: string;
  readonly store: StateStore;
  /** The fencing token of this server. */
  readonly token: number;
  readonly shards: ShardPool | null;
  readonly writer: CheckpointWriter;
  /** Rows that take fewer bytes are written with each checkpoint. */
  readonly changesBytesMin: number;
  readonly now: () => number;
  readonly log: Log;
  /** A checkpoint is on disk, and this server's. */
  readonly onWritten: (manifest: CheckpointManifest) => void;
}

/** The tensors of a run as they were at one moment. */
interface CopiesOfRun {
  /** All of them, when they are copied. Rows are copied in pieces: what arrives is dealt with between two of them. */
  tensors(): Promise<CheckpointInput['tensors']>;
  /** What they continue; absent: they are all. */
  readonly continues?: Continues;
  /** They are written, or never will be. */
  done(isWritten: boolean): void;
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
    const folder = this.#folderOf(run);
    const chain = kind === 'last' ? await standing(folder, state.chain) : null;
    // One moment from here on.
    const copies = this.#copies(run, kind, state, chain);
    const content = run.state(now());
    const rowBytes = run.tables?.copyBytes();
    if (kind === 'last') state.lastStep = step;
    state.lastAt = now();
    const layoutHash = run.layout.hash;
    let manifest: CheckpointManifest;
    let isWritten = false;
    try {
      const tensors = await copies.tensors();
      const what = { run: run.id, step, kind, layoutHash, tensors };
      const { continues } = copies;
      manifest = await this.#options.writer.write(folder, {
        ...{ ...what, state: content },
        ...(continues && { continues }),
        now: new Date(),
      });
      await this.#mustStillOwn(folder, manifest);
      isWritten = true;
    } catch (error) {
      // Whatever went wrong with the changes, here or on a shard, all rows may be written yet.
      if (!(error instanceof DownpourError) || error.code === 'DP_SHARD_LOST') state.chain = null;
      throw error;
    } finally {
      copies.done(isWritten);
    }
    if (kind === 'last') {
      const changed = copies.continues ? (chain?.changedBytes ?? 0) + (rowBytes?.changed ?? 0) : 0;
      const { file, sha256 } = manifest;
      const after = [...(copies.continues?.after ?? []), { file, sha256 }];
      state.chain = run.tables ? { after, changedBytes: changed } : null;
    }
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
      const summary = summaryOf(state.unpublished[0]!);
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
    for (const manifest of manifests) {
      await store.publishCheckpoint(token, run.id, summaryOf(manifest));
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
  #copies(
    run: Run,
    kind: CheckpointKind,
    { copies }: WriteState,
    chain: WrittenChain | null,
  ): CopiesOfRun {
    const { shards } = this.#options;
    const { make, room } = copies;
    const changes =
      chain !== null && isForChanges(chain, run.tables, this.#options.changesBytesMin);
    const parts =
      shards && run.rangeCount > 1
        ? saveShards(shards, run, kind, { changes, copy: make })
        : { tensors: run.withoutRows(kind, make), rows: null, done: null };
    const rows = run.copyRows(kind, { changes, room });
    return {
      ...(changes && { continues: { after: chain.after, rows: rows!.groups } }),
      async tensors() {
        while (rows?.more()) await immediate();
        const own = rows?.tensors() ?? [];
        return [...parts.tensors, ...((await parts.rows?.(own)) ?? own)];
      },
      done(isWritten) {
        if (parts.done) parts.done(isWritten);
        run.tables?.endCopy(isWritten);
        copies.written({ keep: !run.over });
      },
    };
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

/** As the registry has a checkpoint: what only its own file needs is left out. */
function summaryOf(manifest: CheckpointManifest): CheckpointRecord {
  const { state: _, leftOut: __, continues: ___, ...summary } = manifest;
  return { ...summary, version: 1 };
}

/** Whether the next checkpoint is one of changed rows alone. */
function isForChanges(
  { after, changedBytes }: WrittenChain,
  tables: RunTables | null,
  bytesMin: number,
): boolean {
  const { all, changed } = tables?.copyBytes() ?? { all: 0, changed: null };
  if (changed === null || all < bytesMin) return false;
  return after.length <= LIMITS.checkpointLinksMax && changedBytes + changed <= all;
}

/** Those that are still on disk: a person may have removed them. @returns null: the next one has all rows. */
async function standing(folder: string, chain: WrittenChain | null): Promise<WrittenChain | null> {
  for (const { file } of chain?.after ?? []) {
    const found = await stat(join(folder, file)).catch(() => null);
    if (!found) return null;
  }
  return chain;
}

/** The checkpoint of the run's best evaluation; null: it is not on disk. */
export function bestAmong(
  manifests: readonly CheckpointManifest[],
  { best }: Run,
): CheckpointManifest | null {
  return manifests.findLast(({ kind, step }) => kind === 'best' && step === best?.step) ?? null;
}
