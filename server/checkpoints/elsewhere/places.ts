import { basename } from 'node:path';
import type { CheckpointManifest } from '../../../files/manifest.ts';
import { LABELS_FILE } from '../../../files/records.ts';
import type { CheckpointKind } from '../../../shared/trained-last.ts';
import type { RunState } from '../../core/run/state.ts';
import type { S3Object } from './s3.ts';

// A copy of a checkpoint is two objects, `RUN/checkpoints/life-00003/step-000001234-last-0007`, `.safetensors` and `.json`,
// as they are on disk. The life of the server that wrote it is in the key, since another server, such as a standby, counts
// its checkpoints from 1 again: a later life is newer, and within one the higher count. The manifest comes last and goes
// first: an object of tensors without one is no copy.

export interface CheckpointCopy {
  readonly run: string;
  readonly life: number;
  readonly step: number;
  readonly kind: CheckpointKind;
  readonly sequence: number;
  /** Without its ending. */
  readonly key: string;
}

export const TENSORS = '.safetensors';
export const MANIFEST = '.json';

const KEY =
  /^([a-z0-9][a-z0-9_-]{0,63})\/checkpoints\/life-(\d{5,})\/step-(\d{9,16})-(last|best|final)-(\d{4,16})(\.safetensors|\.json)$/;

/** What the experiment of a run was sent as: beside its checkpoints, so that it goes with them. */
export const placeOfBundle = (run: string, sha256: string) => `${run}/bundles/${sha256}`;

/** Its name, tags, note and whether it is archived. */
export const placeOfLabels = (run: string) => `${run}/${LABELS_FILE}`;

/** Where all copies of checkpoints of a run are. */
export const placeOfRun = (run: string) => `${run}/checkpoints/`;

export function copyOf({
  run,
  step,
  kind,
  sequence,
  file,
  state,
}: CheckpointManifest): CheckpointCopy {
  const life = (state as RunState).life ?? 0;
  const folder = `life-${String(life).padStart(5, '0')}`;
  const key = `${placeOfRun(run)}${folder}/${basename(file, TENSORS)}`;
  return { run, life, step, kind, sequence, key };
}

/** Whole copies, oldest first; and tensors without a manifest. What is no copy of ours is left out. */
export function copiesAmong(objects: readonly S3Object[]): {
  readonly copies: CheckpointCopy[];
  readonly halves: string[];
} {
  const copies: CheckpointCopy[] = [];
  const tensors = new Set<string>();
  for (const { key } of objects) {
    const [, run, life, step, kind, sequence, ending] = KEY.exec(key) ?? [];
    if (run === undefined) continue;
    const stem = key.slice(0, -ending!.length);
    if (ending === TENSORS) tensors.add(stem);
    else {
      const numbers = { life: Number(life), step: Number(step), sequence: Number(sequence) };
      copies.push({ run, ...numbers, kind: kind as CheckpointKind, key: stem });
    }
  }
  copies.sort((a, b) => a.life - b.life || a.sequence - b.sequence);
  for (const { key } of copies) tensors.delete(key);
  return { copies, halves: [...tensors] };
}

/** Those that go: all but the newest `keep` of kind `last` and the newest of kind `best`. Kind `final` stays. */
export function copiesTooMany(
  oldestFirst: readonly CheckpointCopy[],
  keep: number,
): CheckpointCopy[] {
  const left = { last: keep, best: 1, final: Number.POSITIVE_INFINITY };
  return oldestFirst.toReversed().filter(({ kind }) => left[kind]-- <= 0);
}
