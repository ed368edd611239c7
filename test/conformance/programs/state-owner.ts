import { createInterface } from 'node:readline';
import { openFileStore } from '../../../server/store/file-store.ts';
import { journaled } from '../../../server/store/journal.ts';
import { openRedisStore } from '../../../server/store/redis.ts';
import { errorCode, errorText } from '../../../shared/errors.ts';

// An owner in a process of its own, for the tests to stop and to kill. Arguments: kind, place (URL and
// folder of a journal with a blank between), prefix, ttlMs, waitMs. It acquires, then records a best for each line that it reads; it tells
// each result in a line of JSON.

const [kind, place, prefix, ttlMs, waitMs] = process.argv.slice(2) as [string, ...string[]];
const tell = (what: unknown) => process.stdout.write(`${JSON.stringify(what)}\n`);

const [url, folder] = place!.split(' ');
const redis = () => openRedisStore({ url: url!, prefix: prefix! });
const store =
  kind === 'files'
    ? openFileStore({ folder: place! })
    : kind === 'redis'
      ? redis()
      : journaled(redis(), { folder: folder!, id: url!, log: () => {} });
try {
  const owner = `child ${process.pid}`;
  const lease = await store.acquire(owner, { ttlMs: Number(ttlMs), waitMs: Number(waitMs) });
  lease.lost.addEventListener('abort', () => tell({ lost: errorCode(lease.lost.reason) }));
  tell({ token: lease.token });
  for await (const line of createInterface({ input: process.stdin })) {
    const best = { step: 1, value: Number(line), checkpoint: 'of-child' };
    const { token } = lease;
    tell(
      await store.recordBest(token, 'r1', best).then(
        ({ kept }) => ({ kept }),
        (error) => ({ error: errorCode(error) }),
      ),
    );
  }
} catch (error) {
  tell({ error: errorCode(error), message: errorText(error) });
}
await store.close();
