import {
  type BestRecord,
  BestRecordSchema,
  type Check,
  CheckpointSummarySchema,
  checkOf,
  RunRecordSchema,
} from '../../files/records.ts';
import { readRecord } from '../../server/store/file-store.ts';
import type { RedisFiles } from '../../server/store/redis-address.ts';
import { RedisConnection } from '../../server/store/redis-connection.ts';
import {
  bySequence,
  type CheckpointRecord,
  type RunRecord,
} from '../../server/store/state-store.ts';

/** What a store holds of a run, for people and tools: the server itself does not read all of it back. */
export interface Stored {
  run(id: string): Promise<RunRecord | null>;
  /** Oldest first. */
  checkpoints(run: string): Promise<readonly CheckpointRecord[]>;
  best(run: string): Promise<BestRecord | null>;
  earlyStopping(run: string): Promise<unknown>;
}

export function storedInFiles(folder: string): Stored {
  return {
    run: (id) => readRecord(folder, id, 'run'),
    checkpoints: async (run) =>
      bySequence((await readRecord(folder, run, 'registry'))?.checkpoints ?? []),
    best: (run) => readRecord(folder, run, 'best'),
    earlyStopping: (run) => readRecord(folder, run, 'early-stopping'),
  };
}

const checkRun = checkOf<RunRecord>(RunRecordSchema);
const checkBest = checkOf<BestRecord>(BestRecordSchema);
const checkSummary = checkOf<CheckpointRecord>(CheckpointSummarySchema);

/** Each read has a connection of its own. */
export function storedInRedis(options: {
  readonly url: string;
  readonly prefix?: string;
  readonly files?: RedisFiles;
}): Stored {
  async function read<T>(how: (redis: RedisConnection) => Promise<T>): Promise<T> {
    const redis = new RedisConnection(options, (error) => {
      throw error;
    });
    try {
      return await how(redis);
    } finally {
      redis.close();
    }
  }
  const field = <T>(key: string, id: string, check: Check<T>) =>
    read((redis) => redis.read(redis.key(key), id, check));
  return {
    run: (id) => field('runs', id, checkRun),
    checkpoints: (run) =>
      read(async (redis) => {
        const all = await redis.readAll(redis.key('run', run, 'checkpoints'), checkSummary);
        return bySequence(all.map(([, summary]) => summary));
      }),
    best: (run) => field('best', run, checkBest),
    earlyStopping: (run) => field<unknown>('early-stopping', run, (_, value) => value),
  };
}
