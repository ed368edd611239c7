import { readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { KeyedRows } from '../shared/row-groups.ts';
import type { CheckpointKind } from '../shared/trained-last.ts';
import { namesIn, unseal } from './atomic-file.ts';
import { checkpointDamage, NOT_READ, type OnDamaged, readError, unlessDamaged } from './damage.ts';
import { checkOf, ManifestSchema } from './records.ts';

/** Manifests of checkpoints, and the list of those in a folder. */

/** What a checkpoint needs besides its own file. */
export interface Continues {
  /** Tensor files in the same folder, oldest first: the first has all rows, each other one those that changed since the one before. */
  readonly after: readonly { readonly file: string; readonly sha256: string }[];
  /** The tensors that have changed rows alone. */
  readonly rows: readonly KeyedRows[];
}

export interface CheckpointManifest {
  /** 2: it continues others. A release that does not know this refuses it. */
  readonly version: 1 | 2;
  readonly run: string;
  readonly step: number;
  readonly kind: CheckpointKind;
  /** Counts the checkpoints of a folder from 1: higher is newer, whatever step or clock say. */
  readonly sequence: number;
  /** ISO 8601. */
  readonly createdAt: string;
  /** Name of the tensor file, in the manifest's folder. */
  readonly file: string;
  /** Size of the tensor file. */
  readonly bytes: number;
  /** The SHA-256 of the tensor file, hexadecimal. */
  readonly sha256: string;
  readonly layoutHash: string;
  /** All that is not a tensor: sequences, leases, schedule, random state, configuration. JSON. */
  readonly state: unknown;
  /** Numbers of the state that JSON cannot keep, and that are null there; absent: none. */
  readonly leftOut?: readonly string[];
  /** Absent: it is read alone. */
  readonly continues?: Continues;
}

/** The largest manifest that is read, and written. */
export const MANIFEST_BYTES_MAX = 256 * 1024 * 1024;

const checkManifest = checkOf<CheckpointManifest>(ManifestSchema);
const STEM = /^step-(\d{9,16})-(last|best|final)-(\d{4,16})$/;
export const TENSORS = '.safetensors';
export const MANIFEST = '.json';

/**
 * The checkpoints of a folder, oldest first; of a folder that does not exist, none. Manifests are
 * checked whole, of the tensor files only their sizes: `readCheckpoint` checks the rest.
 */
export async function listCheckpoints(
  folder: string,
  options: { readonly onDamaged?: OnDamaged } = {},
): Promise<readonly CheckpointManifest[]> {
  const manifests: CheckpointManifest[] = [];
  const notRead = new Set<string>();
  const { onDamaged } = options;
  for (const name of await namesIn(folder)) {
    if (sequenceOf(name) === 0 || !name.endsWith(MANIFEST)) continue;
    const told = (error: DownpourError) => {
      const stem = basename(name, MANIFEST);
      if (error.cause === NOT_READ) notRead.add(stem + TENSORS);
      onDamaged?.(error, stem);
    };
    const manifest = await unlessDamaged(sizedManifest(folder, name), told);
    if (manifest !== null) manifests.push(manifest);
  }
  const sums = new Map(manifests.map(({ file, sha256 }) => [file, sha256]));
  return manifests
    .filter(({ file, continues }) => {
      const lost = continues?.after.find((link) => sums.get(link.file) !== link.sha256);
      if (!lost) return true;
      const cause = notRead.has(lost.file) ? NOT_READ : undefined;
      const what = `it continues ${lost.file}, which is damaged or not there`;
      onDamaged?.(checkpointDamage(join(folder, file), what, cause), basename(file, TENSORS));
      return false;
    })
    .sort((a, b) => a.sequence - b.sequence);
}

/** The newest manifest of a folder that is whole; null: there is none. Of the others not one is read. */
export async function newestManifest(folder: string): Promise<CheckpointManifest | null> {
  const names = (await namesIn(folder)).filter((name) => name.endsWith(MANIFEST));
  const newestFirst = names.filter((name) => sequenceOf(name) > 0);
  newestFirst.sort((a, b) => sequenceOf(b) - sequenceOf(a));
  for (const name of newestFirst) {
    const manifest = await unlessDamaged(readManifest(join(folder, name)), () => {});
    if (manifest !== null) return manifest;
  }
  return null;
}

/** @throws DownpourError DP_CHECKPOINT_CORRUPT, DP_CHECKPOINT_MISSING, DP_DISK, DP_USAGE: it is of a newer release. */
export async function readManifest(path: string): Promise<CheckpointManifest> {
  const stem = basename(path, MANIFEST);
  try {
    const found = await stat(path);
    const { size } = found;
    // A pipe would have no end.
    if (!found.isFile()) throw checkpointDamage(path, 'it is no file', NOT_READ);
    if (size > MANIFEST_BYTES_MAX) {
      throw checkpointDamage(
        path,
        `it has ${size} bytes, a manifest has at most ${MANIFEST_BYTES_MAX}`,
        NOT_READ,
      );
    }
    const manifest = parseManifest(path, await readFile(path));
    // The name is checked so that a manifest cannot lead to a file outside its folder.
    if (manifest.file !== stem + TENSORS) {
      throw checkpointDamage(
        path,
        `it is the manifest of ${JSON.stringify(manifest.file)}`,
        NOT_READ,
      );
    }
    return manifest;
  } catch (error) {
    throw readError(error, path);
  }
}

function parseManifest(path: string, bytes: Buffer): CheckpointManifest {
  let value: unknown;
  try {
    value = unseal(bytes);
  } catch (error) {
    throw checkpointDamage(path, errorText(error));
  }
  const { version } = Object(value) as { version?: unknown };
  // Not damage: were it passed over, training would start anew beside a good checkpoint.
  if (Number.isInteger(version) && version !== 1 && version !== 2) {
    throw new DownpourError(
      'DP_USAGE',
      `${path} is of version ${version}, this Downpour reads versions 1 and 2: use the newer one that wrote it`,
    );
  }
  try {
    const manifest = checkManifest(path, value);
    if ((manifest.version === 2) === (manifest.continues !== undefined)) return manifest;
    throw new Error(
      `a manifest of version ${version} ${version === 1 ? 'continues nothing' : 'says what it continues'}`,
    );
  } catch (error) {
    throw checkpointDamage(path, errorText(error), NOT_READ);
  }
}

/** The manifest of that name, its tensor file being there and of the right size. */
async function sizedManifest(folder: string, name: string): Promise<CheckpointManifest> {
  const manifest = await readManifest(join(folder, name));
  const path = join(folder, manifest.file);
  const size = await stat(path).then(
    (stats) => stats.size,
    (error: unknown) => {
      throw readError(error, path);
    },
  );
  if (size !== manifest.bytes) {
    throw checkpointDamage(path, `it has ${size} bytes, the manifest says ${manifest.bytes}`);
  }
  return manifest;
}

/** The count in a checkpoint file's name; 0 for a file that is none. */
export function sequenceOf(name: string): number {
  const stem = name.replace(/\.(safetensors|json)$/, '');
  return stem === name ? 0 : Number(STEM.exec(stem)?.[3] ?? 0);
}

export function isTensors(name: string): boolean {
  return name.endsWith(TENSORS);
}
