import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  diskError,
  errnoOf,
  makeFolder,
  sha256Of,
  syncFolder,
  writeSealed,
} from '../../../files/atomic-file.ts';
import { checkpointFolder, readCheckpoint } from '../../../files/checkpoint.ts';
import { isDamage } from '../../../files/damage.ts';
import type { CheckpointManifest } from '../../../files/manifest.ts';
import { LABELS_FILE } from '../../../files/records.ts';
import { BUNDLE_HASH } from '../../../shared/bundle.ts';
import { NAME_PATTERN } from '../../../shared/config.ts';
import { DownpourError, errorText } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import type { Log } from '../../../shared/log.ts';
import type { RunState } from '../../core/run/state.ts';
import { BUNDLE_FOLDER } from '../../fleet/bundles.ts';
import {
  type CheckpointCopy,
  copiesAmong,
  MANIFEST,
  placeOfBundle,
  placeOfLabels,
  TENSORS,
} from './places.ts';
import type { Bucket } from './s3.ts';

/**
 * Fills a state folder without a run from a bucket: of each run the newest whole checkpoint of each kind. Everything is
 * downloaded and checked beside the runs first, and moved to its place at the end, so that a server that dies meanwhile
 * begins again, or ends what it began.
 */

/** No run can have this name. */
const BESIDE = '.restore';
/** It is there: all has been downloaded, what is left is to be moved. */
const COMPLETE = 'complete.json';
const NAME = new RegExp(NAME_PATTERN);

/**
 * @returns the runs that were restored.
 * @throws DownpourError DP_S3_UNAVAILABLE, DP_DISK; DP_CHECKPOINT_CORRUPT when a run has copies and none is whole.
 */
export async function restoreInto(
  root: string,
  bucket: Bucket,
  log: Log,
  signal?: AbortSignal,
): Promise<readonly string[]> {
  const beside = join(root, BESIDE);
  if (await exists(join(beside, COMPLETE))) return moveIn(root, beside, log);
  await removeAll(beside);
  if ((await runsIn(root)).length > 0) return [];
  try {
    const { copies, halves } = copiesAmong(await bucket.list('', signal));
    if (copies.length === 0) return [];
    for (const key of halves) {
      log(`${bucket.name}/${key}${TENSORS} has no manifest: passed over`, { level: 'warn' });
    }
    const runs = [...new Set(copies.map(({ run }) => run))];
    log(`the state folder has no run: restoring ${runs.join(', ')} from ${bucket.name}`);
    for (const run of runs) {
      const own = copies.filter((copy) => copy.run === run);
      await download(run, own, { beside, bucket, log, signal });
    }
    await writeSealed(beside, COMPLETE, { runs });
  } catch (error) {
    await removeAll(beside).catch(() => {});
    if (!signal?.aborted) throw error;
    throw new DownpourError(
      'DP_SERVER_STOPPING',
      `the server was stopped while it restored its runs from ${bucket.name}: the next start begins again`,
    );
  }
  return moveIn(root, beside, log);
}

/** Names of folders that hold a run's checkpoints. */
async function runsIn(root: string): Promise<string[]> {
  const runs: string[] = [];
  for (const name of await names(root)) {
    if (!NAME.test(name)) continue;
    if ((await names(checkpointFolder(root, name))).length > 0) runs.push(name);
  }
  return runs;
}

interface Source {
  readonly beside: string;
  readonly bucket: Bucket;
  readonly log: Log;
  readonly signal: AbortSignal | undefined;
}

async function download(
  run: string,
  oldestFirst: readonly CheckpointCopy[],
  source: Source,
): Promise<void> {
  const { beside, bucket, log } = source;
  const folder = checkpointFolder(beside, run);
  await makeFolder(folder);
  let whole = 0;
  for (const kind of ['last', 'best', 'final'] as const) {
    for (const copy of oldestFirst.filter((one) => one.kind === kind).toReversed()) {
      const manifest = await downloadOne(folder, copy, source);
      if (!manifest) continue;
      if (kind === 'last') {
        await downloadBundle(manifest, source);
        await bucket.get(placeOfLabels(run), join(beside, run, LABELS_FILE), source.signal);
      }
      log(`run ${run}: step ${copy.step} (${kind}) restored`, { run, step: copy.step });
      whole++;
      break;
    }
    if (kind === 'last' && whole === 0) {
      throw new DownpourError(
        'DP_CHECKPOINT_CORRUPT',
        `${bucket.name}/${run} has copies of checkpoints and no complete one of kind 'last': the server does not start new runs next to them; move them away, or start it without --checkpoint-copy`,
      );
    }
  }
}

/** What the experiment of a run was sent as, if it was. Without it the run goes on with workers that have the files. */
async function downloadBundle({ run, state }: CheckpointManifest, source: Source): Promise<void> {
  const { beside, bucket, log, signal } = source;
  const bundle = (state as Partial<RunState>).options?.bundle;
  if (bundle === undefined || !new RegExp(BUNDLE_HASH).test(bundle)) return;
  const folder = join(beside, BUNDLE_FOLDER);
  const path = join(folder, bundle);
  const key = placeOfBundle(run, bundle);
  const [found] = await bucket.list(key, signal);
  let problem = found ? `it has ${found.bytes} bytes` : 'it is not there';
  if (found && found.bytes <= LIMITS.bundleBytesMax) {
    await makeFolder(folder);
    await bucket.get(key, path, signal);
    if (sha256Of(await readFile(path)) === bundle) return;
    problem = 'it has another SHA-256';
    await rm(path, { force: true });
  }
  log(
    `${bucket.name}/${key}, which the experiment of run ${run} was sent as, is not restored: ${problem}`,
    { level: 'warn', run },
  );
}

/** @returns null: it is damaged, which is said in the log. */
async function downloadOne(
  folder: string,
  copy: CheckpointCopy,
  source: Source,
): Promise<CheckpointManifest | null> {
  const { bucket, log, signal } = source;
  const stem = copy.key.slice(copy.key.lastIndexOf('/') + 1);
  const paths = [MANIFEST, TENSORS].map((ending) => join(folder, stem + ending));
  try {
    for (const path of paths) {
      const ending = path.endsWith(MANIFEST) ? MANIFEST : TENSORS;
      if (await bucket.get(copy.key + ending, path, signal)) continue;
      throw new DownpourError('DP_CHECKPOINT_MISSING', `${copy.key}${ending} is not there`);
    }
    const { manifest } = await readCheckpoint(folder, stem + TENSORS, false);
    if (manifest.run === copy.run) return manifest;
    throw new DownpourError('DP_CHECKPOINT_CORRUPT', `it is of run ${manifest.run}`);
  } catch (error) {
    for (const path of paths) await rm(path, { force: true }).catch(() => {});
    if (!isDamage(error)) throw error;
    log(
      `${bucket.name}/${copy.key} is damaged: ${errorText(error)}; passed over for an older copy`,
      {
        ...{ level: 'warn', run: copy.run, step: copy.step, code: error.code },
      },
    );
    return null;
  }
}

async function moveIn(root: string, beside: string, log: Log): Promise<readonly string[]> {
  const runs = (await names(beside)).filter((name) => NAME.test(name));
  for (const run of runs) {
    const place = checkpointFolder(root, run);
    // Never over what is there.
    if ((await names(place)).length > 0) {
      log(`run ${run} is in the state folder: its copy is not restored`, { level: 'warn', run });
      continue;
    }
    try {
      await mkdir(join(root, run), { recursive: true });
      await rename(join(beside, run, LABELS_FILE), join(root, run, LABELS_FILE)).catch(
        // Nobody has labelled it.
        (error) => errnoOf(error) === 'ENOENT' || Promise.reject(error),
      );
      await rm(place, { recursive: true, force: true });
      await rename(checkpointFolder(beside, run), place);
      await syncFolder(join(root, run));
    } catch (error) {
      throw diskError(error, place, 'write');
    }
  }
  for (const name of await names(join(beside, BUNDLE_FOLDER))) {
    const place = join(root, BUNDLE_FOLDER);
    await makeFolder(place);
    try {
      await rename(join(beside, BUNDLE_FOLDER, name), join(place, name));
      await syncFolder(place);
    } catch (error) {
      throw diskError(error, place, 'write');
    }
  }
  await syncFolder(root);
  await removeAll(beside);
  return runs;
}

async function names(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return [];
    throw diskError(error, folder, 'list');
  }
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

async function removeAll(folder: string): Promise<void> {
  try {
    await rm(folder, { recursive: true, force: true });
  } catch (error) {
    throw diskError(error, folder, 'remove');
  }
}
