import type { CheckpointManifest, Continues } from '../../files/manifest.ts';
import type { DownpourError } from '../../shared/errors.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { WriteCounts } from '../watch/counts.ts';
import { SharedCopies } from './copies.ts';

/** What is written of a run. */
export type WriteTask = 'registry' | 'record' | 'best' | 'last' | 'final' | 'earlyStopping';

/** `last` before `best`: so the best on disk is never of a time that a restart would not know. */
export const WRITE_ORDER: readonly WriteTask[] = [
  ...(['registry', 'last', 'best', 'final', 'earlyStopping', 'record'] as const),
];

/** Checkpoints that the next one may continue. */
export interface WrittenChain {
  /** Oldest first. */
  readonly after: Continues['after'];
  /** Bytes of the rows of all but the first. */
  readonly changedBytes: number;
}

/** How far the writing of one run is. */
export interface WriteState {
  /** What is still to be written. */
  readonly tasks: Set<WriteTask>;
  /** The writing that is under way. */
  writing: Promise<void> | null;
  retryAt: number;
  /** Step and time of the newest checkpoint of kind `last`. */
  lastStep: number;
  lastAt: number;
  /** Something has happened to the run that its newest checkpoint does not hold. */
  touched: boolean;
  latest: RunSummary['checkpoint'];
  latestBytes: number | null;
  /** The newest checkpoint of kind `best` in the folder. */
  best: Pick<CheckpointManifest, 'step' | 'file'> | null;
  readonly counts: WriteCounts;
  /** The step of the newest checkpoint that the store is known to have. */
  publishedStep: number;
  /** What the progress file says. */
  notedStep: number;
  noting: boolean;
  /** Counts the notes. */
  notes: number;
  readonly copies: SharedCopies;
  /** Null: the next checkpoint of kind `last` has all rows. */
  chain: WrittenChain | null;
  /** Why the last attempt at each of `tasks` failed. */
  readonly problems: Map<WriteTask, unknown>;
  /** The tasks whose record the store cannot take, since something else is in its place. */
  readonly spoilt: Map<WriteTask, DownpourError>;
  spoiltRetryAt: number;
  /** Numbers that the newest checkpoint lacks, since JSON cannot keep them. */
  leftOut: readonly string[];
  /** Callers that wait until the next `last` is written, or is not. */
  waiting: { resolve(): void; reject(why: unknown): void }[];
  /** Checkpoints that are on disk and not yet in the state store. */
  readonly unpublished: CheckpointManifest[];
}

/** @param step of the run, @param now ms: nothing is to be written before something happens. */
export function newWriteState(step: number, now: number): WriteState {
  return {
    tasks: new Set(),
    writing: null,
    retryAt: 0,
    lastStep: step,
    lastAt: now,
    touched: false,
    latest: null,
    latestBytes: null,
    best: null,
    counts: new WriteCounts(),
    publishedStep: step,
    notedStep: step,
    noting: false,
    notes: 0,
    copies: new SharedCopies(),
    chain: null,
    problems: new Map(),
    spoilt: new Map(),
    spoiltRetryAt: 0,
    leftOut: [],
    waiting: [],
    unpublished: [],
  };
}

/** As REST tells of it. */
export function writtenSummary(
  manifest: CheckpointManifest,
): NonNullable<RunSummary['checkpoint']> {
  return { step: manifest.step, file: manifest.file, at: manifest.createdAt };
}
