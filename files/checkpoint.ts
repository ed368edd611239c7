import { rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import type { DownpourError } from '../shared/errors.ts';
import type { CheckpointKind } from '../shared/trained-last.ts';
import {
  diskError,
  keepable,
  makeFolder,
  namesIn,
  syncFolder,
  TEMPORARY,
  writeSealed,
} from './atomic-file.ts';
import { checkpointDamage, isDamage, NOT_READ, type OnDamaged, unlessDamaged } from './damage.ts';
import { joinRows } from './joined-rows.ts';
import {
  type CheckpointManifest,
  type Continues,
  isTensors,
  listCheckpoints,
  MANIFEST,
  MANIFEST_BYTES_MAX,
  readManifest,
  sequenceOf,
  TENSORS,
} from './manifest.ts';
import {
  type CheckpointTensor,
  type OpenTensors,
  openTensors,
  readTensors,
  type StreamedTensor,
  writeTensors,
} from './tensor-file.ts';

// A checkpoint is two files of one stem, `step-000001234-last-0007`: `.safetensors` holds the
// tensors, `.json` is the manifest that holds the rest and the checksums of both. The last number
// counts the folder's checkpoints, so that no file is ever written over: whatever dies at whatever
// byte, older checkpoints stand as they were. A tensor file without a manifest is not a checkpoint.
// One that continues others has the changed rows of tables alone, and their files are read with it.

/** What is written. */
export interface CheckpointInput {
  readonly run: string;
  readonly step: number;
  readonly kind: CheckpointKind;
  readonly layoutHash: string;
  readonly tensors: readonly (CheckpointTensor | StreamedTensor)[];
  readonly state: unknown;
  /** Absent: all is in the tensors. */
  readonly continues?: Continues;
  readonly now: Date;
}

export interface Checkpoint {
  readonly manifest: CheckpointManifest;
  /** In the order in which they were written. The caller owns the arrays. */
  readonly tensors: readonly CheckpointTensor[];
}

/** Numbers that a manifest names. */
const LEFT_OUT_MAX = 20;

/** Where the checkpoints of a run lie. */
export function checkpointFolder(root: string, run: string): string {
  return join(root, run, 'checkpoints');
}

/**
 * Writes a checkpoint and returns its manifest once both files are safe on disk. Writes and prunes
 * of one folder wait for each other.
 *
 * @param input.tensors private copies: they are read bit by bit while training goes on.
 *
 * Throws DP_DISK (full, read-only, …) or DP_LIMIT (the manifest would be too large to be read); nothing is left
 * behind then, older checkpoints stand.
 */
export function writeCheckpoint(
  folder: string,
  input: CheckpointInput,
  manifestBytesMax = MANIFEST_BYTES_MAX,
): Promise<CheckpointManifest> {
  return inTurn(folder, async () => {
    const { run, step, kind, layoutHash, tensors, now } = input;
    const { value: state, leftOut } = keepable(input.state);
    await makeFolder(folder);
    const sequence = 1 + Math.max(0, ...(await namesIn(folder)).map(sequenceOf));
    const stem = `step-${String(step).padStart(9, '0')}-${kind}-${String(sequence).padStart(4, '0')}`;
    const file = stem + TENSORS;
    const metadata = tensorMetadata(input);
    try {
      const { bytes, sha256 } = await writeTensors(join(folder, file), tensors, metadata);
      const manifest: CheckpointManifest = {
        version: input.continues ? 2 : 1,
        run,
        step,
        kind,
        sequence,
        createdAt: now.toISOString(),
        file,
        bytes,
        sha256,
        layoutHash,
        state,
        ...(leftOut.length > 0 ? { leftOut: leftOut.slice(0, LEFT_OUT_MAX) } : {}),
        ...(input.continues && { continues: input.continues }),
      };
      await writeSealed(folder, stem + MANIFEST, manifest, manifestBytesMax);
      return manifest;
    } catch (error) {
      for (const name of [stem + MANIFEST, file]) {
        await rm(join(folder, name), { force: true }).catch(() => {});
      }
      throw error;
    }
  });
}

/** What the tensor file of a checkpoint says of itself. */
export function tensorMetadata({
  run,
  step,
  layoutHash,
}: Pick<CheckpointInput, 'run' | 'step' | 'layoutHash'>): Record<string, string> {
  return { writer: 'downpour', run, step: String(step), layoutHash };
}

/**
 * Reads a checkpoint and checks all of it: sizes, the manifest's checksum, the tensors' checksum; and the same of
 * those that it continues.
 *
 * @param which a manifest, or the path or name of either of the checkpoint's files; `folder` is
 *   where names are looked up.
 * @param load false: checked, but without its tensors.
 *
 * Throws DP_CHECKPOINT_CORRUPT that names what is wrong, DP_CHECKPOINT_MISSING, DP_DISK.
 */
export async function readCheckpoint(
  folder: string,
  which: { readonly file: string } | string,
  load = true,
): Promise<Checkpoint> {
  const path = resolve(folder, typeof which === 'string' ? which : which.file);
  const manifestPath = path.endsWith(TENSORS) ? path.slice(0, -TENSORS.length) + MANIFEST : path;
  const manifest = await readManifest(manifestPath);
  const { continues } = manifest;
  const place = join(manifestPath, '..');
  const tensors = await readSummed(place, manifest, load && !continues);
  if (!continues) return { manifest, tensors };
  for (const link of continues.after) {
    await readLink(place, manifest, link, (of) => readSummed(place, of, false));
  }
  if (!load) return { manifest, tensors };
  const file = await openCheckpointTensors(place, manifest);
  try {
    const read = async ({ name, shape }: CheckpointPlace) => {
      return { name, shape, values: await file.read(name, 0, file.size(name)) };
    };
    const all: CheckpointTensor[] = [];
    for (const tensor of file.tensors) all.push(await read(tensor));
    return { manifest, tensors: all };
  } finally {
    await file.close();
  }
}

type CheckpointPlace = Pick<CheckpointTensor, 'name' | 'shape'>;

/** The tensors of a file whose checksum is right. */
async function readSummed(
  folder: string,
  { file, bytes, sha256: expected }: CheckpointManifest,
  load: boolean,
): Promise<readonly CheckpointTensor[]> {
  const path = join(folder, file);
  const { tensors, sha256 } = await readTensors(path, bytes, load);
  if (sha256 === expected) return tensors;
  throw checkpointDamage(path, `its SHA-256 is ${sha256}, the manifest says ${expected}`);
}

/** Does something with one of the checkpoints that another one continues. @throws DownpourError DP_CHECKPOINT_CORRUPT, DP_DISK. */
async function readLink<T>(
  folder: string,
  { file: of }: CheckpointManifest,
  { file, sha256 }: Continues['after'][number],
  read: (manifest: CheckpointManifest) => Promise<T>,
): Promise<T> {
  try {
    const manifest = await readManifest(join(folder, file.slice(0, -TENSORS.length) + MANIFEST));
    if (manifest.sha256 !== sha256) throw checkpointDamage(join(folder, file), 'it is another one');
    return await read(manifest);
  } catch (error) {
    if (!isDamage(error)) throw error;
    throw checkpointDamage(join(folder, of), `it continues ${file}, and ${error.message}`);
  }
}

/**
 * Opens a checkpoint to be read piece by piece, with the rows of those that it continues. Check it first:
 * `readCheckpoint` with `load: false`. What it needs may be removed meanwhile.
 */
export async function openCheckpointTensors(
  folder: string,
  manifest: CheckpointManifest,
): Promise<OpenTensors> {
  const open: OpenTensors[] = [];
  const close = async () => {
    for (const file of open) await file.close();
  };
  try {
    const links = [];
    for (const link of manifest.continues?.after ?? []) {
      const { continues } = await readLink(folder, manifest, link, async (of) => of);
      open.push(await openTensors(join(folder, link.file)));
      links.push({ tensors: open.at(-1)!, groups: continues?.rows ?? [] });
    }
    open.push(await openTensors(join(folder, manifest.file)));
    links.push({ tensors: open.at(-1)!, groups: manifest.continues?.rows ?? [] });
    return { ...(await joinRows(links)), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/**
 * The newest checkpoint that is whole, read and checked; null when there is none. Damaged ones are
 * passed over and told to `onDamaged`.
 */
export async function newestValidCheckpoint(
  folder: string,
  options: {
    readonly kinds?: readonly CheckpointKind[];
    readonly onDamaged?: OnDamaged;
    /** False: checked, but without its tensors; `openTensors` reads them piece by piece. */
    readonly load?: boolean;
    /** Others are passed over without a word. */
    readonly isFit?: (manifest: CheckpointManifest) => boolean;
    /** The manifests of the folder, when they have been listed just now. */
    readonly manifests?: readonly CheckpointManifest[];
  } = {},
): Promise<Checkpoint | null> {
  const { kinds, onDamaged, load = true, isFit = () => true } = options;
  const manifests =
    options.manifests ??
    (await listCheckpoints(folder, onDamaged === undefined ? {} : { onDamaged }));
  for (const manifest of manifests.toReversed()) {
    if ((kinds !== undefined && !kinds.includes(manifest.kind)) || !isFit(manifest)) continue;
    const stem = basename(manifest.file, TENSORS);
    const told = (error: DownpourError) => onDamaged?.(error, stem);
    const checkpoint = await unlessDamaged(readCheckpoint(folder, manifest, load), told);
    if (checkpoint !== null) return checkpoint;
  }
  return null;
}

/**
 * Removes what is no longer needed: all but the newest `keepLast` of kind `last`, all but the
 * newest `keepBest` (1) of kind `best`, what an interrupted write left, and checkpoints that were read and are damaged.
 * Those of kind `final`, those named in `keep` and those that one that stays continues stay. Returns the tensor files'
 * names of the checkpoints that went.
 *
 * @param options.keep tensor files that somebody still points to, such as the best on record.
 *
 * Throws DP_DISK.
 */
export function pruneCheckpoints(
  folder: string,
  options: {
    readonly keepLast: number;
    readonly keepBest?: number;
    readonly keep?: readonly string[];
    readonly onDamaged?: OnDamaged;
  },
): Promise<readonly string[]> {
  return inTurn(folder, async () => {
    const { keepLast, keepBest = 1, keep = [], onDamaged } = options;
    const kept = new Set(keep.map((file) => basename(file, TENSORS)));
    const manifests = await listCheckpoints(folder, {
      onDamaged(error, stem) {
        // It may be as good as any: only this disk, or this release, does not read it now.
        if (error.cause === NOT_READ) kept.add(stem);
        onDamaged?.(error, stem);
      },
    });
    const left = { last: keepLast, best: keepBest, final: Number.POSITIVE_INFINITY };
    for (const { kind, file } of manifests.toReversed()) {
      if (left[kind]-- > 0) kept.add(basename(file, TENSORS));
    }
    for (const { file, continues } of manifests) {
      if (!kept.has(basename(file, TENSORS))) continue;
      for (const link of continues?.after ?? []) kept.add(basename(link.file, TENSORS));
    }
    const gone = new Set<string>();
    const names = await namesIn(folder);
    // Manifests go first, the newest before those that it continues: at any moment, one that is there has all that it needs.
    names.sort(
      (a, b) => Number(isTensors(a)) - Number(isTensors(b)) || sequenceOf(b) - sequenceOf(a),
    );
    for (const name of names) {
      const stem = name.replace(/\.(safetensors|json)$/, '');
      const ours = name.startsWith('step-') && name.endsWith(TEMPORARY);
      if (!ours && (sequenceOf(name) === 0 || kept.has(stem))) continue;
      try {
        await rm(join(folder, name), { force: true });
      } catch (error) {
        throw diskError(error, join(folder, name), 'remove');
      }
      if (!ours) gone.add(stem + TENSORS);
    }
    if (gone.size > 0) await syncFolder(folder);
    return [...gone];
  });
}

/** Removes both files of a checkpoint, as far as they are there. Throws DP_DISK. */
export async function removeCheckpoint(folder: string, file: string): Promise<void> {
  for (const name of [file.slice(0, -TENSORS.length) + MANIFEST, file]) {
    try {
      await rm(join(folder, name), { force: true });
    } catch (error) {
      throw diskError(error, join(folder, name), 'remove');
    }
  }
}

const turns = new Map<string, Promise<unknown>>();

/** Runs one action at a time for each folder, in the order asked for. */
async function inTurn<T>(folder: string, action: () => Promise<T>): Promise<T> {
  const key = resolve(folder);
  const before = turns.get(key) ?? Promise.resolve();
  const mine = before.then(action, action);
  turns.set(key, mine);
  try {
    return await mine;
  } finally {
    if (turns.get(key) === mine) turns.delete(key);
  }
}
