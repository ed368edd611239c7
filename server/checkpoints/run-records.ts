import { join } from 'node:path';
import { makeFolder, writeSealed } from '../../files/atomic-file.ts';
import { checkOf, LABELS_FILE, type OnDamagedRecord, readSealed } from '../../files/records.ts';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { type Labels, LabelsSchema, NO_LABELS, newerLabels } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { RunOptions } from '../core/run/state.ts';
import type { Run } from '../core/run.ts';
import type { RunRecord, StateStore } from '../store/state-store.ts';

const checkLabels = checkOf<Labels>(LabelsSchema);

/** The records of runs in the state store, and what is known of them while the store is away. */
export class RunRecords {
  readonly #root: string;
  readonly #store: StateStore;
  readonly #token: number;
  /** As they were written or read last. */
  readonly #known = new Map<string, RunRecord>();

  /** The `edits` of the labels that the file of a run is known to have. */
  readonly #labelled = new Map<string, number>();
  /** The writing that is under way, by run. */
  readonly #labelling = new Map<string, Promise<void>>();

  /** @param root the state folder. @param token the fencing token of this server. */
  constructor(root: string, store: StateStore, token: number) {
    this.#root = root;
    this.#store = store;
    this.#token = token;
  }

  /** With its labels, which are in a file of their own too. @throws what the state store throws, DP_DISK. */
  async put(run: Run): Promise<void> {
    await this.#putLabels(run);
    const record = recordOf(run);
    await this.#store.putRun(this.#token, record);
    this.#known.set(run.id, record);
  }

  /** The file outlives a Redis that comes back empty, and is what the copies of a bucket have of them. */
  async #putLabels(run: Run): Promise<void> {
    const { id } = run;
    // Two edits at the same time: the later one is written after the earlier one, or for both of them.
    while (this.#labelling.has(id)) await this.#labelling.get(id)!.catch(() => {});
    const { labels } = run;
    if (labels.edits <= (this.#labelled.get(id) ?? 0)) return;
    const writing = this.#writeLabels(id, labels).finally(() => this.#labelling.delete(id));
    this.#labelling.set(id, writing);
    await writing;
  }

  async #writeLabels(id: string, labels: Labels): Promise<void> {
    await this.#store.mayWrite(this.#token);
    const folder = join(this.#root, id);
    await makeFolder(folder);
    await writeSealed(folder, LABELS_FILE, labels);
    this.#labelled.set(id, labels.edits);
  }

  /**
   * The newest labels of a run that its record or its file has; `agree`: both have the same.
   * @param onDamaged of either, which is passed over.
   */
  async labels(
    { id, labels }: RunRecord,
    onDamaged: OnDamagedRecord,
  ): Promise<{ readonly newest: Labels; readonly agree: boolean }> {
    const path = join(this.#root, id, LABELS_FILE);
    const read = async (place: string, get: () => unknown): Promise<Labels> => {
      try {
        const value = await get();
        return value === undefined ? NO_LABELS : checkLabels(place, value);
      } catch (error) {
        if (!(error instanceof DownpourError)) throw error;
        onDamaged(error);
        return NO_LABELS;
      }
    };
    const inRecord = await read(`of run '${id}'`, () => labels);
    const inFile = await read(path, () => readSealed(path, LIMITS.recordBytesMax));
    this.#labelled.set(id, inFile.edits);
    return { newest: newerLabels(inRecord, inFile), agree: inRecord.edits === inFile.edits };
  }

  /** Before the first time only the store knows them. @throws what the state store throws. */
  async list(): Promise<readonly RunRecord[]> {
    try {
      const records = await this.#store.listRuns();
      for (const record of records) this.#known.set(record.id, record);
      return records;
    } catch (error) {
      if (this.#known.size === 0 || errorCode(error) !== 'DP_REDIS_UNAVAILABLE') throw error;
      return [...this.#known.values()];
    }
  }

  forget(id: string): void {
    this.#known.delete(id);
    this.#labelled.delete(id);
  }

  get known(): Iterable<RunRecord> {
    return this.#known.values();
  }
}

export function recordOf(run: Run): RunRecord {
  const { id, experiment, experimentHash, config, createdAt } = run.options;
  const { phase, life } = run;
  const { fork, study, bundle } = run.options;
  const origin = {
    ...(run.labels.edits > 0 && { labels: run.labels }),
    ...(fork && { fork }),
    ...(study !== undefined && { study }),
    ...(bundle !== undefined && { bundle }),
  };
  return { id, experiment, experimentHash, config, createdAt, phase, life, ...origin };
}

/** @throws DownpourError DP_STATE_CORRUPT, DP_CONFIG_INVALID. */
export function optionsOf(record: RunRecord): RunOptions {
  const { id, experiment, createdAt } = record;
  const { experimentHash, study, bundle } = record;
  if (typeof experimentHash !== 'string') {
    throw new DownpourError('DP_STATE_CORRUPT', `the record of run '${id}' has no experiment hash`);
  }
  const config = resolveConfig(record.config);
  const more = {
    ...(typeof study === 'string' && { study }),
    ...(typeof bundle === 'string' && { bundle }),
  };
  return { id, experiment, experimentHash, config, createdAt, ...more };
}
