import { resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import type { RunOptions } from '../core/run/state.ts';
import type { Run } from '../core/run.ts';
import type { RunRecord, StateStore } from '../store/state-store.ts';

/** The records of runs in the state store, and what is known of them while the store is away. */
export class RunRecords {
  readonly #store: StateStore;
  readonly #token: number;
  /** As they were written or read last. */
  readonly #known = new Map<string, RunRecord>();

  /** @param token the fencing token of this server. */
  constructor(store: StateStore, token: number) {
    this.#store = store;
    this.#token = token;
  }

  /** @throws what the state store throws. */
  async put(run: Run): Promise<void> {
    const record = recordOf(run);
    await this.#store.putRun(this.#token, record);
    this.#known.set(run.id, record);
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
