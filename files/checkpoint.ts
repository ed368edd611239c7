import { createHash } from 'node:crypto';
import { type FileHandle, open, readFile, rm, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { DownpourError, type ErrorCode, errorText } from '../shared/errors.ts';
import type { KeyedRows } from '../shared/row-groups.ts';
import {
  decodeSafetensorsHeader,
  encodeSafetensorsHeader,
  PREFIX_BYTES,
  type SafetensorsHeader,
  safetensorsHeaderLength,
} from '../shared/safetensors.ts';
import type { CheckpointKind } from '../shared/trained-last.ts';
import {
  diskError,
  errnoOf,
  keepable,
  makeFolder,
  namesIn,
  syncFolder,
  TEMPORARY,
  unseal,
  writeAll,
  writeFileAtomic,
  writeSealed,
} from './atomic-file.ts';
import { joinRows, type TensorSource } from './joined-rows.ts';
import { checkOf, ManifestSchema } from './records.ts';

// A checkpoint is two files of one stem, `step-000001234-last-0007`: `.safetensors` holds the
// tensors, `.json` is the manifest that holds the rest and the checksums of both. The last number
// counts the folder's checkpoints, so that no file is ever written over: whatever dies at whatever
// byte, older checkpoints stand as they were. A tensor file without a manifest is not a checkpoint.
// One that continues others has the changed rows of tables alone, and their files are read with it.

export interface CheckpointTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Row-major. Must not change until the write has ended: give copies of live parameters. */
  readonly values: Float32Array;
}

/** A tensor too large to be held at once, or that lies elsewhere. */
export interface StreamedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** All of its bytes, row-major, little-endian. Called once. */
  pieces(): AsyncIterable<Uint8Array>;
}

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

export interface Checkpoint {
  readonly manifest: CheckpointManifest;
  /** In the order in which they were written. The caller owns the arrays. */
  readonly tensors: readonly CheckpointTensor[];
}

/** What is wrong with a checkpoint that was passed over. */
export type OnDamaged = (error: DownpourError, stem: string) => void;

/** The largest manifest that is read, and written. */
export const MANIFEST_BYTES_MAX = 256 * 1024 * 1024;

/** Written, hashed and read at once: small enough that other work is never held up for long. */
const CHUNK_BYTES = 1024 * 1024;
/** That a manifest names. */
const LEFT_OUT_MAX = 20;
const checkManifest = checkOf<CheckpointManifest>(ManifestSchema);
const STEM = /^step-(\d{9,16})-(last|best|final)-(\d{4,16})$/;
const TENSORS = '.safetensors';
const MANIFEST = '.json';

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
  throw corrupt(path, `its SHA-256 is ${sha256}, the manifest says ${expected}`);
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
    if (manifest.sha256 !== sha256) throw corrupt(join(folder, file), 'it is another one');
    return await read(manifest);
  } catch (error) {
    if (!isDamage(error)) throw error;
    throw corrupt(join(folder, of), `it continues ${file}, and ${error.message}`);
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
      onDamaged?.(corrupt(join(folder, file), what, cause), basename(file, TENSORS));
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

/**
 * Writes a safetensors file of F32 tensors atomically, straight from the given arrays.
 * Throws DP_DISK, DP_LAYOUT_INVALID.
 */
export async function writeTensors(
  path: string,
  tensors: readonly (CheckpointTensor | StreamedTensor)[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<{ readonly bytes: number; readonly sha256: string }> {
  const header = encodeSafetensorsHeader(
    tensors.map((tensor) => {
      const { name, shape } = tensor;
      const size = shape.reduce((product, d) => product * d, 1);
      return {
        name,
        shape,
        byteLength: 'values' in tensor ? tensor.values.byteLength : 4 * size,
      };
    }),
    metadata,
  );
  const hash = createHash('sha256');
  let bytes = 0;
  await writeFileAtomic(path, async (handle) => {
    const write = async (part: Uint8Array) => {
      for (let start = 0; start < part.length; start += CHUNK_BYTES) {
        const chunk = part.subarray(start, start + CHUNK_BYTES);
        hash.update(chunk);
        await writeAll(handle, chunk);
        bytes += chunk.length;
      }
    };
    await write(header);
    for (const tensor of tensors) {
      if ('values' in tensor) await write(bytesOf(tensor.values));
      else for await (const piece of tensor.pieces()) await write(piece);
    }
  });
  return { bytes, sha256: hash.digest('hex') };
}

/**
 * Reads pieces of the tensors of a checkpoint, one after the other, for those who cannot hold it whole.
 * Check the file first: `newestValidCheckpoint` with `load: false`.
 */
export async function openTensors(path: string): Promise<OpenTensors> {
  try {
    const handle = await open(path, 'r');
    try {
      const { size } = await handle.stat();
      const header = await readHeader(handle, path, size, { update: () => {} });
      const places = new Map(header.tensors.map((tensor) => [tensor.name, tensor]));
      return {
        tensors: header.tensors,
        size(name) {
          const place = places.get(name);
          return place ? (place.end - place.begin) / 4 : 0;
        },
        async read(name, start, count) {
          const place = places.get(name);
          if (count === 0) return new Float32Array();
          if (!place || 4 * (start + count) > place.end - place.begin) {
            throw corrupt(path, `it has no tensor '${name}' of ${start + count} elements`);
          }
          const values = new Float32Array(count);
          const bytes = bytesOf(values);
          for (let at = 0; at < bytes.length; ) {
            const from = header.dataStart + place.begin + 4 * start + at;
            const length = Math.min(bytes.length - at, 16 * CHUNK_BYTES);
            const { bytesRead } = await handle.read(bytes, at, length, from);
            if (bytesRead === 0) throw corrupt(path, 'it became shorter while it was read');
            at += bytesRead;
          }
          return values;
        },
        close: () => handle.close(),
      };
    } catch (error) {
      await handle.close();
      throw error;
    }
  } catch (error) {
    throw readError(error, path);
  }
}

export interface OpenTensors extends TensorSource {
  close(): Promise<void>;
}

/**
 * Reads a safetensors file whose tensors are all F32.
 *
 * @param bytesExpected the size it must have, when that is known.
 * @param load false: for its checksum alone.
 *
 * Throws DP_CHECKPOINT_CORRUPT, DP_CHECKPOINT_MISSING, DP_DISK.
 */
export async function readTensors(
  path: string,
  bytesExpected?: number,
  load = true,
): Promise<{
  readonly tensors: readonly CheckpointTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly sha256: string;
}> {
  try {
    const handle = await open(path, 'r');
    try {
      const { size } = await handle.stat();
      if (bytesExpected !== undefined && size !== bytesExpected) {
        throw corrupt(path, `it has ${size} bytes, the manifest says ${bytesExpected}`);
      }
      const hash = createHash('sha256');
      const header = await readHeader(handle, path, size, hash);
      const tensors: CheckpointTensor[] = [];
      for (const { name, dtype, shape, begin, end } of header.tensors) {
        if (dtype !== 'F32') {
          throw corrupt(path, `tensor ${JSON.stringify(name)} is ${dtype}; only F32 is used`);
        }
        if (!load) continue;
        const values = new Float32Array((end - begin) / 4);
        await readAll(handle, path, bytesOf(values), hash);
        tensors.push({ name, shape, values });
      }
      if (!load) await hashRest(handle, path, size - header.dataStart, hash);
      return { tensors, metadata: header.metadata, sha256: hash.digest('hex') };
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw readError(error, path);
  }
}

interface Hash {
  update(bytes: Uint8Array): unknown;
}

async function readHeader(
  handle: FileHandle,
  path: string,
  fileBytes: number,
  hash: Hash,
): Promise<SafetensorsHeader> {
  const prefix = new Uint8Array(PREFIX_BYTES);
  try {
    if (fileBytes >= PREFIX_BYTES) await readAll(handle, path, prefix, hash);
    const bytes = new Uint8Array(PREFIX_BYTES + safetensorsHeaderLength(prefix, fileBytes));
    bytes.set(prefix);
    await readAll(handle, path, bytes.subarray(PREFIX_BYTES), hash);
    return decodeSafetensorsHeader(bytes, fileBytes);
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    throw new DownpourError(error.code, `${path}: ${error.message}`, { cause: error });
  }
}

async function readAll(
  handle: FileHandle,
  path: string,
  into: Uint8Array,
  hash: Hash,
): Promise<void> {
  for (let start = 0; start < into.length; ) {
    const length = Math.min(CHUNK_BYTES, into.length - start);
    const { bytesRead } = await handle.read(into, start, length, null);
    if (bytesRead === 0) throw corrupt(path, 'it became shorter while it was read');
    hash.update(into.subarray(start, start + bytesRead));
    start += bytesRead;
  }
}

async function hashRest(
  handle: FileHandle,
  path: string,
  bytes: number,
  hash: Hash,
): Promise<void> {
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, bytes));
  for (let left = bytes; left > 0; left -= chunk.length) {
    await readAll(handle, path, chunk.subarray(0, left), hash);
  }
}

async function readManifest(path: string): Promise<CheckpointManifest> {
  const stem = basename(path, MANIFEST);
  try {
    const found = await stat(path);
    const { size } = found;
    // A pipe would have no end.
    if (!found.isFile()) throw corrupt(path, 'it is no file', NOT_READ);
    if (size > MANIFEST_BYTES_MAX) {
      throw corrupt(
        path,
        `it has ${size} bytes, a manifest has at most ${MANIFEST_BYTES_MAX}`,
        NOT_READ,
      );
    }
    const manifest = parseManifest(path, await readFile(path));
    // The name is checked so that a manifest cannot lead to a file outside its folder.
    if (manifest.file !== stem + TENSORS) {
      throw corrupt(path, `it is the manifest of ${JSON.stringify(manifest.file)}`, NOT_READ);
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
    throw corrupt(path, errorText(error));
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
    throw corrupt(path, errorText(error), NOT_READ);
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
    throw corrupt(path, `it has ${size} bytes, the manifest says ${manifest.bytes}`);
  }
  return manifest;
}

const DAMAGED: readonly ErrorCode[] = ['DP_CHECKPOINT_CORRUPT', 'DP_CHECKPOINT_MISSING'];

/** A checkpoint cannot be used, and another one may do instead. */
export function isDamage(error: unknown): error is DownpourError {
  return error instanceof DownpourError && DAMAGED.includes(error.code);
}

/** The result, or null for a damaged checkpoint, which is told. Other errors go on. */
async function unlessDamaged<T>(
  result: Promise<T>,
  onDamaged: (error: DownpourError) => void,
): Promise<T | null> {
  try {
    return await result;
  } catch (error) {
    if (!isDamage(error)) throw error;
    onDamaged(error);
    return null;
  }
}

/** The count in a checkpoint file's name; 0 for a file that is none. */
function sequenceOf(name: string): number {
  const stem = name.replace(/\.(safetensors|json)$/, '');
  return stem === name ? 0 : Number(STEM.exec(stem)?.[3] ?? 0);
}

function isTensors(name: string): boolean {
  return name.endsWith(TENSORS);
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function readError(error: unknown, path: string): unknown {
  if (errnoOf(error) === 'EIO') return corrupt(path, 'the disk cannot read it', NOT_READ);
  if (errnoOf(error) !== 'ENOENT') return diskError(error, path, 'read');
  return new DownpourError(
    'DP_CHECKPOINT_MISSING',
    `there is no checkpoint file ${path}; \`downpour status\` lists those of a run`,
    { cause: error },
  );
}

/** The cause of an error that says nothing of what the file holds. */
const NOT_READ = 'not read';

function corrupt(path: string, what: string, cause?: typeof NOT_READ): DownpourError {
  return new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `${path} is damaged: ${what}; resume from an older checkpoint`,
    { cause },
  );
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
