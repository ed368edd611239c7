import { type FileHandle, open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { errnoOf, seal, unseal } from '../../../files/atomic-file.ts';
import { checkpointFolder, readCheckpoint } from '../../../files/checkpoint.ts';
import { isDamage } from '../../../files/damage.ts';
import { type CheckpointManifest, listCheckpoints } from '../../../files/manifest.ts';
import { LABELS_FILE } from '../../../files/records.ts';
import { openWhole, wholeManifest } from '../../../files/whole-checkpoint.ts';
import { DownpourError, errorCode, errorText } from '../../../shared/errors.ts';
import type { Log } from '../../../shared/log.ts';
import type { CopyFacts } from '../../../shared/rest.ts';
import type { RunState } from '../../core/run/state.ts';
import { BUNDLE_FOLDER } from '../../fleet/bundles.ts';
import {
  type CheckpointCopy,
  copiesAmong,
  copiesTooMany,
  copyOf,
  MANIFEST,
  placeOfBundle,
  placeOfLabels,
  placeOfRun,
  TENSORS,
} from './places.ts';
import type { Bucket, UploadedFile } from './s3.ts';

/**
 * Copies checkpoints into a bucket once they are on disk, one at a time, beside training. What waits is a name, not a
 * content: the newest of each run and kind. Nothing that goes wrong here reaches the run.
 */

const RETRY_MS = 5_000;
const RETRY_MS_MAX = 300_000;
/** While the server stops, the grace is short. */
const RETRY_CLOSING_MS = 1_000;

export interface CopierOptions {
  readonly bucket: Bucket;
  /** The state folder. */
  readonly root: string;
  /** Checkpoints of kind `last` that stay for each run. */
  readonly keepLast: number;
  /** @throws DownpourError DP_STATE_FENCED when another server owns the state now. */
  readonly mayWrite: () => Promise<void>;
  readonly now: () => number;
  readonly log: Log;
  readonly retryMs?: number;
}

interface WantedCopy {
  readonly copy: CheckpointCopy;
  readonly file: string;
  readonly sha256: string;
  /** Its rows are in several files: the bucket gets one with all of them. */
  readonly isJoined: boolean;
  /** When the run was created: another run may have had its name. */
  readonly createdAt: string | null;
  /** That its experiment was sent as. */
  readonly bundle: string | null;
}

export class Copier {
  readonly #options: CopierOptions;
  readonly #waiting = new Map<string, WantedCopy>();
  /** What is in the bucket, of runs that have been looked at; oldest first. */
  readonly #known = new Map<string, CheckpointCopy[]>();
  /** Runs that have been removed, and whose copies go. */
  readonly #removing = new Map<
    string,
    { readonly createdAt: string; readonly gone: () => Promise<void> }
  >();
  /** None is tried to be removed sooner. */
  #removeAt = 0;
  /** Runs whose labels are to be copied. */
  readonly #labels = new Set<string>();
  /** Bundles that are there, or that the disk has lost. */
  readonly #bundles = new Set<string>();
  /** Step of the newest copy of each run. */
  readonly #steps = new Map<string, number>();
  /** Why the newest checkpoint of a run is not copied, where trying again does not help. */
  readonly #refused = new Map<string, string>();
  readonly #ending = new AbortController();
  #underWay: WantedCopy | null = null;
  #working: Promise<void> | null = null;
  #wake = new AbortController();
  #closing = false;
  #failedInRow = 0;
  #away: { readonly since: number; why: string } | null = null;
  readonly #counts = { copied: 0, bytes: 0, failed: 0, removed: 0 };

  constructor(options: CopierOptions) {
    this.#options = options;
  }

  get bucket(): Bucket {
    return this.#options.bucket;
  }

  /** A checkpoint is on disk. Returns at once. */
  written(manifest: CheckpointManifest): void {
    if (this.#ending.signal.aborted) return;
    const copy = copyOf(manifest);
    const { options } = manifest.state as RunState;
    const { file, sha256 } = manifest;
    const { createdAt = null, bundle = null } = options ?? {};
    const isJoined = manifest.continues !== undefined;
    const wanted = { copy, file, sha256, isJoined, createdAt, bundle };
    // One that waits already keeps its place in the line.
    this.#waiting.set(`${copy.run} ${copy.kind}`, wanted);
    this.#work();
  }

  /** The labels of a run have changed, and are on disk. They are copied once a checkpoint of the run is. */
  labelled(run: string): void {
    if (this.#ending.signal.aborted) return;
    this.#labels.add(run);
    this.#work();
  }

  /** Removes all copies of a run that there is no more, before anything else is copied. Returns at once. */
  removeRun(run: string, createdAt: string, gone: () => Promise<void>): void {
    if (this.#ending.signal.aborted) return;
    for (const kind of ['last', 'best', 'final']) this.#waiting.delete(`${run} ${kind}`);
    this.#labels.delete(run);
    this.#forget(run);
    this.#removing.set(run, { createdAt, gone });
    this.#work();
  }

  /** What the bucket has of a run is not known any more. */
  #forget(run: string): void {
    this.#known.delete(run);
    this.#steps.delete(run);
    this.#refused.delete(run);
    const ofRun = placeOfBundle(run, '');
    for (const key of this.#bundles) if (key.startsWith(ofRun)) this.#bundles.delete(key);
  }

  /** What an earlier life left on disk and perhaps not in the bucket. */
  async catchUp(runs: readonly string[]): Promise<void> {
    for (const run of runs) {
      const manifests = await listCheckpoints(checkpointFolder(this.#options.root, run));
      for (const kind of ['last', 'best', 'final'] as const) {
        const newest = manifests.findLast((manifest) => manifest.kind === kind);
        if (newest) this.written(newest);
      }
    }
  }

  /** Waits until all is copied, at most so long, and ends. What is left is said in the log. */
  async close(graceMs: number): Promise<void> {
    this.#closing = true;
    this.#wake.abort();
    if (this.#working) {
      await Promise.race([this.#working, delay(graceMs, null, { ref: false })]);
    }
    const left = [...this.#waiting.values()];
    if (this.#underWay) left.unshift(this.#underWay);
    this.#ending.abort();
    this.#wake.abort();
    await this.#working;
    for (const { copy } of left) {
      this.#options.log(
        `run ${copy.run}: its checkpoint of step ${copy.step} (${copy.kind}) was not copied to ${this.#options.bucket.name} within ${graceMs / 1000} s: it is on disk alone; this server copies it when it is started again`,
        { level: 'error', run: copy.run, step: copy.step },
      );
    }
  }

  facts(): CopyFacts {
    const { bucket, now } = this.#options;
    const refused = [...this.#refused].map(([run, why]) => ({ run, why }));
    return {
      to: bucket.name,
      waiting: this.#waiting.size + (this.#underWay ? 1 : 0),
      ...this.#counts,
      away: this.#away && { seconds: (now() - this.#away.since) / 1000, why: this.#away.why },
      refused,
      runs: [...this.#steps].map(([run, step]) => ({ run, step })),
    };
  }

  #work(): void {
    if (this.#working) return;
    this.#working = this.#drain().finally(() => {
      this.#working = null;
    });
  }

  async #drain(): Promise<void> {
    await null;
    while (!this.#ending.signal.aborted) {
      if (this.#mayRemove) {
        await this.#removeNext();
        continue;
      }
      const [key, wanted] = this.#waiting.entries().next().value ?? [];
      if (key === undefined || !wanted) {
        if (!(await this.#copyLabels())) continue;
        if (this.#removing.size === 0) return;
        const { signal } = this.#wake;
        await delay(this.#pause(), null, { signal, ref: false }).catch(() => {});
        if (this.#closing) return;
        continue;
      }
      this.#waiting.delete(key);
      this.#underWay = wanted;
      try {
        await this.#copy(wanted);
        this.#refused.delete(wanted.copy.run);
        this.#failedInRow = 0;
        this.#away = null;
      } catch (error) {
        if (this.#ending.signal.aborted) return;
        if (await this.#failed(key, wanted, error)) return;
      } finally {
        this.#underWay = null;
      }
    }
  }

  get #mayRemove(): boolean {
    return this.#removing.size > 0 && this.#options.now() >= this.#removeAt;
  }

  /** The copies of one run that has been removed. */
  async #removeNext(): Promise<void> {
    const [run, removal] = this.#removing.entries().next().value!;
    const { bucket, log, now } = this.#options;
    const { signal } = this.#ending;
    try {
      const objects = await bucket.list(`${run}/`, signal);
      // Copies of another run of that name are not ours to remove.
      await this.#mustBeTheSame(copiesAmong(objects).copies, removal.createdAt, signal);
      await this.#options.mayWrite();
      // A copy without its manifest is none, so those go first.
      const keys = objects.map(({ key }) => key);
      const inOrder = [
        ...keys.filter((key) => key.endsWith(MANIFEST)),
        ...keys.filter((key) => !key.endsWith(MANIFEST)),
      ];
      for (const key of inOrder) await bucket.remove(key, signal);
      // One may have been under way when its removal was asked for.
      this.#forget(run);
      if (keys.length > 0) log(`run ${run}: its copies in ${bucket.name} are removed`, { run });
    } catch (error) {
      if (signal.aborted) return;
      const code = errorCode(error);
      if (code === 'DP_STATE_FENCED') {
        this.#ending.abort();
        return;
      }
      const lasting = code === 'DP_RUN_EXISTS' || /answered 40[13]/.test(errorText(error));
      const next = lasting
        ? `they stay, and would come back into an empty folder: remove ${bucket.name}/${run}/ by hand`
        : 'trying again';
      log(`run ${run}: its copies are not removed (${errorText(error)}); ${next}`, {
        ...{ level: 'warn', run, code, kind: 'copies of a removed run' },
      });
      if (!lasting) {
        // Behind the others. Who closes leaves it to the next start, as its note on disk says.
        this.#removing.delete(run);
        if (!this.#closing) this.#removing.set(run, removal);
        this.#removeAt = now() + this.#pause();
        return;
      }
    }
    if (this.#removing.get(run) === removal) this.#removing.delete(run);
    await removal.gone().catch(() => {});
  }

  /** Those of runs that have a copy. @returns true: nothing is left to be done. */
  async #copyLabels(): Promise<boolean> {
    const [run] = this.#labels;
    if (run === undefined) return true;
    this.#labels.delete(run);
    if (!this.#known.get(run)?.length) return false;
    const { bucket, root, mayWrite, log } = this.#options;
    const { signal } = this.#ending;
    const path = join(root, run, LABELS_FILE);
    // Nobody has labelled it.
    if (!(await stat(path).catch(() => null))) return false;
    try {
      await mayWrite();
      await bucket.put(placeOfLabels(run), path, null, signal);
    } catch (error) {
      if (signal.aborted) return false;
      log(
        `run ${run}: its labels are not copied: ${errorText(error)}; the next checkpoint or edit tries again`,
        {
          ...{ level: 'warn', run, code: errorCode(error) },
        },
      );
    }
    return false;
  }

  #pause(): number {
    const { retryMs = RETRY_MS } = this.#options;
    return this.#closing ? RETRY_CLOSING_MS : Math.min(RETRY_MS_MAX, retryMs);
  }

  /** @returns true: there is no sense in going on. */
  async #failed(key: string, wanted: WantedCopy, error: unknown): Promise<boolean> {
    const { log, now, retryMs = RETRY_MS } = this.#options;
    const { run, step, kind } = wanted.copy;
    const code = errorCode(error);
    const why = `${code} ${errorText(error)}`;
    this.#counts.failed++;
    const about = { run, step, code };
    if (code === 'DP_STATE_FENCED') {
      this.#waiting.clear();
      this.#ending.abort();
      return true;
    }
    if (
      code === 'DP_CHECKPOINT_CORRUPT' ||
      // The copies of a removed run of that name are still to go.
      (code === 'DP_RUN_EXISTS' && !this.#removing.has(run))
    ) {
      this.#refused.set(run, why);
      log(`run ${run}: its checkpoint of step ${step} (${kind}) is not copied: ${why}`, {
        ...{ level: 'error', ...about },
      });
      return false;
    }
    // A newer one may have come meanwhile.
    if (!this.#waiting.has(key)) this.#waiting.set(key, wanted);
    this.#underWay = null;
    const pause = this.#closing
      ? RETRY_CLOSING_MS
      : Math.min(RETRY_MS_MAX, retryMs * 2 ** this.#failedInRow);
    this.#failedInRow++;
    this.#away = { since: this.#away?.since ?? now(), why };
    log(
      `run ${run}: its checkpoint of step ${step} (${kind}) is not copied yet, trying again in ${pause / 1000} s: ${why}`,
      { level: 'warn', ...about },
    );
    // Closing wakes it once; afterwards only the end does.
    const signal = this.#closing ? this.#ending.signal : this.#wake.signal;
    await delay(pause, null, { signal, ref: false }).catch(() => {});
    return false;
  }

  async #copy({ copy, file, sha256, isJoined, createdAt, bundle }: WantedCopy): Promise<void> {
    const { root, mayWrite } = this.#options;
    const { signal } = this.#ending;
    const folder = checkpointFolder(root, copy.run);
    const known = await this.#look(copy.run, createdAt, signal);
    if (!known.some(({ key }) => key === copy.key)) {
      await mayWrite();
      // First, so that no copy of a checkpoint is without it.
      if (bundle !== null) await this.#copyBundle(copy.run, bundle, signal);
      const bytes = isJoined
        ? await this.#uploadWhole(copy, folder, file, signal)
        : await this.#upload(copy, join(folder, file), sha256, signal);
      // Pruned before its turn: a newer one waits, or is written now.
      if (bytes === null) return;
      this.#counts.bytes += bytes;
      known.push(copy);
      known.sort((a, b) => a.life - b.life || a.sequence - b.sequence);
      this.#counts.copied++;
      if (known.length === 1) this.#labels.add(copy.run);
    }
    const newest = known.findLast(({ kind }) => kind === 'last') ?? copy;
    this.#steps.set(copy.run, newest.step);
    await this.#prune(copy.run, known, signal);
  }

  /** Copies the bundle of a run, once. If the disk has lost or damaged the bundle, the log says so, and checkpoints are copied all the same. */
  async #copyBundle(run: string, sha256: string, signal: AbortSignal): Promise<void> {
    const { bucket, root, log } = this.#options;
    const key = placeOfBundle(run, sha256);
    if (this.#bundles.has(key)) return;
    if ((await bucket.list(key, signal)).length === 0) {
      try {
        await bucket.put(key, join(root, BUNDLE_FOLDER, sha256), sha256, signal);
      } catch (error) {
        const isLost = errnoOf(error) === 'ENOENT' || errorCode(error) === 'DP_CHECKPOINT_CORRUPT';
        if (!isLost) throw error;
        log(`run ${run}: bundle ${sha256} of its experiment is not copied: ${errorText(error)}`, {
          ...{ level: 'warn', run },
        });
      }
    }
    this.#bundles.add(key);
  }

  /** @param path of its tensors. @returns bytes; null: it is not on disk any more. */
  async #upload(
    { key }: CheckpointCopy,
    path: string,
    sha256: string,
    signal: AbortSignal,
  ): Promise<number | null> {
    const { bucket, mayWrite } = this.#options;
    const files: { ending: string; path: string; handle: FileHandle }[] = [];
    try {
      // Both are opened first: an upload may last longer than the disk keeps the checkpoint.
      for (const ending of [TENSORS, MANIFEST]) {
        const own = path.slice(0, -TENSORS.length) + ending;
        files.push({ ending, path: own, handle: await open(own, 'r') });
      }
      let bytes = 0;
      for (const { ending, path: own, handle } of files) {
        // Another server may have begun to copy meanwhile.
        if (ending === MANIFEST) await mayWrite();
        const checksum = ending === TENSORS ? sha256 : null;
        bytes += await bucket.putOpen(key + ending, handle, own, checksum, signal);
      }
      return bytes;
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return null;
      throw error;
    } finally {
      for (const { handle } of files) await handle.close();
    }
  }

  /** The same of a checkpoint whose rows are in several files: each copy is read alone. */
  async #uploadWhole(
    copy: CheckpointCopy,
    folder: string,
    file: string,
    signal: AbortSignal,
  ): Promise<number | null> {
    const { bucket, mayWrite } = this.#options;
    const { key } = copy;
    const path = join(folder, file);
    const opened = await this.#openWhole(folder, file, copy);
    if (!opened) return null;
    const { whole, manifest } = opened;
    try {
      const tensors = inOrder(whole.stream(), manifest.bytes);
      let bytes = await bucket.putOpen(key + TENSORS, tensors, path, manifest.sha256, signal);
      await mayWrite();
      const sealed = seal(manifest);
      const said = inOrder(
        (async function* () {
          yield sealed;
        })(),
        sealed.length,
      );
      bytes += await bucket.putOpen(key + MANIFEST, said, path, null, signal);
      return bytes;
    } finally {
      await whole.close();
    }
  }

  /** @returns null: it is not on disk any more. */
  async #openWhole(folder: string, file: string, { kind, sequence }: CheckpointCopy) {
    try {
      const { manifest } = await readCheckpoint(folder, file, false);
      const whole = await openWhole(folder, file);
      return { whole, manifest: await wholeManifest(manifest, whole) };
    } catch (error) {
      // It, or one that it continues, may have been pruned since.
      const newer = (await listCheckpoints(folder)).some(
        (one) => one.kind === kind && one.sequence > sequence,
      );
      if (newer && isDamage(error)) return null;
      throw error;
    }
  }

  /** What the bucket has of a run, and that it is this run; asked once. What was begun and never ended goes. */
  async #look(
    run: string,
    createdAt: string | null,
    signal: AbortSignal,
  ): Promise<CheckpointCopy[]> {
    const { bucket } = this.#options;
    const before = this.#known.get(run);
    if (before) return before;
    const { copies, halves } = copiesAmong(await bucket.list(placeOfRun(run), signal));
    if (createdAt !== null) await this.#mustBeTheSame(copies, createdAt, signal);
    await this.#options.mayWrite();
    for (const stem of halves) await bucket.remove(stem + TENSORS, signal);
    await bucket.removeUnfinished(placeOfRun(run), signal);
    this.#known.set(run, copies);
    this.#labels.add(run);
    return copies;
  }

  /**
   * The newest copy that can be read says whose they are.
   * @param copies oldest first. @throws DownpourError DP_RUN_EXISTS: copies of one run would take the place of another's.
   */
  async #mustBeTheSame(
    copies: readonly CheckpointCopy[],
    createdAt: string,
    signal: AbortSignal,
  ): Promise<void> {
    const { bucket } = this.#options;
    let other: string | undefined;
    for (const { key } of copies.toReversed()) {
      const bytes = await bucket.read(key + MANIFEST, signal);
      try {
        other = ((unseal(bytes) as CheckpointManifest).state as RunState).options.createdAt;
        break;
      } catch {
        // It is damaged, and says nothing: an older one may.
      }
    }
    if (other === undefined || other === createdAt) return;
    const [{ run }] = copies as [CheckpointCopy];
    throw new DownpourError(
      'DP_RUN_EXISTS',
      `${bucket.name}/${run} has the checkpoints of another run of that name, made at ${other}, which stay as they are: give this server another prefix, or the run another name`,
    );
  }

  async #prune(run: string, known: CheckpointCopy[], signal: AbortSignal): Promise<void> {
    const { bucket, keepLast, log } = this.#options;
    for (const { key } of copiesTooMany(known, keepLast)) {
      try {
        await bucket.remove(key + MANIFEST, signal);
        await bucket.remove(key + TENSORS, signal);
      } catch (error) {
        signal.throwIfAborted();
        // The copy itself is there: credentials that may not remove anything are one way to protect it.
        log(`run ${run}: an old copy stays: ${errorCode(error)} ${errorText(error)}`, {
          ...{ level: 'warn', run, code: errorCode(error) },
        });
        continue;
      }
      this.#counts.removed++;
      known.splice(
        known.findIndex((copy) => copy.key === key),
        1,
      );
    }
  }
}

/** Bytes that come one after the other, to be uploaded as a file is. */
function inOrder(pieces: AsyncGenerator<Uint8Array>, size: number): UploadedFile {
  let piece: Uint8Array = new Uint8Array();
  return {
    stat: async () => ({ size }),
    async read(into, offset, length) {
      while (piece.length === 0) {
        const { done, value } = await pieces.next();
        if (done) return { bytesRead: 0 };
        piece = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
      }
      const some = piece.subarray(0, length);
      into.set(some, offset);
      piece = piece.subarray(some.length);
      return { bytesRead: some.length };
    },
  };
}
