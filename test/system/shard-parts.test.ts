import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { checkpointFolder, newestValidCheckpoint } from '../../files/checkpoint.ts';
import { type Serving, serve } from '../../server/main.ts';
import { serveShard } from '../../server/shards/server.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { createLayout } from '../../shared/layout.ts';
import { partition } from '../../shared/partition.ts';
import type { Join } from '../../shared/protocol.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import type { Connection, FrameHeader } from '../../wire/connection.ts';
import { dial } from '../../wire/handshake.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { runWorker } from '../../worker/main.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { until as untilTrue } from '../support/until.ts';

/** A server with a shard, a worker that trains, and others that send the shard what nobody waits for. */

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const LONG_MS = 180_000;
/** Held up once a second, as all were before, a run comes as far as this in five minutes. */
const STEPS = 300;

let engine: Engine;
beforeAll(async () => {
  engine = await openEngine({ engine: 'wasm' });
});

let folder: string;
const ends: (() => Promise<unknown>)[] = [];
const lines: string[] = [];
const log = (line: string) => void lines.push(line);
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-parts-'));
  lines.length = 0;
});
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
  await rm(folder, { recursive: true, force: true });
});

const until = <T>(what: string, look: () => Promise<T | null | undefined | false>): Promise<T> =>
  untilTrue(what, look, {
    withinMs: LONG_MS,
    everyMs: 20,
    logs: () => lines.slice(-40).join('\n'),
  });

interface Cluster {
  readonly url: string;
  readonly client: RestClient;
  /** The shard's address for workers. */
  readonly shard: string;
  readonly hash: string;
  /** Ends the worker that trains: while a deadline is waited for, it would take a processor from other tests. */
  rest(): Promise<void>;
  /** Lets it train again. */
  work(): void;
}

/** A run without end, with a worker, and a shard in a process of the test's. */
async function train(): Promise<Cluster> {
  const stop = new AbortController();
  const { signal } = stop;
  const here = { host: '127.0.0.1', port: 0, localSocket: false, log, signal };
  const shard = await serveShard({ ...here, tokens: {}, tls: null });
  const store = openFileStore({ folder });
  const record = { id: 's', host: '127.0.0.1', port: shard.port };
  await store.announceShard('s', record, 10 * LONG_MS);
  const serving: Serving = await serve({ ...here, state: folder, shards: 2, shardsFrom: 'store' });
  const client = createRestClient({ server: serving.url });
  const hash = await hashExperiment(join(EXAMPLES, 'mnist-mlp.ts'));
  const config = { minibatchSize: 16, epochsMax: 1_000, evaluateEverySteps: 1_000_000 };
  await client.createRun({
    ...{ id: 'b', experiment: 'mnist-mlp', experimentHash: hash },
    config: { ...config, earlyStopping: { enabled: false }, checkpoint: { everySeconds: 0.5 } },
  });
  let rest = async () => {};
  const work = () => {
    const own = new AbortController();
    const done = runWorker({
      ...{ server: serving.url.replace('http', 'ws'), run: 'b', name: 'honest', engine },
      ...{ folders: [EXAMPLES], dataFolder: folder, once: true, signal: own.signal },
      log: (line) => log(`honest: ${line}`),
    });
    done.catch(() => {});
    rest = async () => {
      own.abort();
      await done.catch(() => {});
    };
  };
  work();
  ends.push(async () => {
    await rest();
    stop.abort();
    await serving.closed;
    await shard.closed;
    await store.close();
  });
  await until('it trains', async () => {
    const { checkpoint } = await client.run('b');
    return checkpoint !== null && checkpoint.step > 20;
  });
  const at = `ws://127.0.0.1:${shard.port}/ws`;
  return { url: serving.url, client, shard: at, hash, rest: () => rest(), work };
}

interface Hostile {
  readonly connection: Connection;
  readonly said: FrameHeader[];
  /** What it was closed with. */
  closed: string | null;
}

/** A connection to the shard. */
function connect(url: string): Promise<Hostile> {
  return new Promise((resolve, reject) => {
    dial({
      ...{ url, handshakeMs: 10_000 },
      opened: (connection) => {
        const hostile: Hostile = { connection, said: [], closed: null };
        queueMicrotask(() => resolve(hostile));
        return {
          ...{ land: () => null, malformed() {}, broken() {}, alive() {} },
          message: (header) => void hostile.said.push(header),
          closed: (_, reason) => {
            hostile.closed = reason;
          },
        };
      },
      failed: reject,
    });
  });
}

/** What its last words were. */
const codeOf = ({ said }: Hostile) => said.find(({ type }) => type === 'error')?.code;

async function mustGoOn({ client }: Cluster): Promise<void> {
  const { step } = await client.run('b');
  await until(
    `${STEPS} more steps are done`,
    async () => (await client.run('b')).step > step + STEPS,
  );
}

describe('parts at a shard of pushes that nobody sends', { timeout: 4 * LONG_MS }, () => {
  test('are not taken from those that no server has announced', async () => {
    const cluster = await train();
    const tensors = await tensorsOf();
    const { start, end } = partition(createLayout(tensors), 2)[1]!;
    const part = new Uint8Array(4 * (end - start));
    const many: Hostile[] = [];
    for (let i = 0; i < 70; i++) {
      const hostile = await connect(cluster.shard);
      hostile.connection.send({ type: 'attach', session: randomBytes(8).toString('hex') });
      const initial = { type: 'initialPart', run: 'b', grant: 1 };
      if (i % 2 === 0) hostile.connection.send(initial, [part]);
      many.push(hostile);
    }
    await mustGoOn(cluster);
    await cluster.rest();
    // Those that wait for an answer have none, and do not wait for long.
    await until('all are closed', async () => many.every(({ closed }) => closed !== null));
    expect(new Set(many.map(codeOf))).toEqual(new Set(['DP_PROTOCOL_ORDER', 'DP_SHARD_LOST']));
    expect(many.flatMap(({ said }) => said).filter(({ type }) => type !== 'error')).toEqual([]);
  });

  test('are of one session few, have a deadline, and go with the connection to the server', async () => {
    const cluster = await train();
    const { client, url, shard, hash } = cluster;
    const tensors = await tensorsOf();
    const { data } = await client.run('b');
    const { start, end } = partition(createLayout(tensors), 2)[1]!;
    const payload = new Uint8Array(4 * (end - start));
    const parts: { hostile: Hostile; worker: ProtocolWorker }[] = [];
    for (let i = 0; i < 20; i++) {
      const worker = await ProtocolWorker.connect(url, { name: `hostile-${i}` });
      const experiments = { 'mnist-mlp': hash };
      const { incarnation, name } = worker;
      worker.send({
        ...{ type: 'hello', worker: name, incarnation, run: 'b', experiments },
        ...{ engine: 'none', device: 'none' },
      });
      const { session } = await worker.expect('assign');
      worker.send({ type: 'join', run: 'b', experimentHash: hash, tensors, data: data! });
      await worker.expect('work');
      const hostile = await connect(shard);
      hostile.connection.send({ type: 'attach', session });
      await until('it is attached', async () => hostile.said.length > 0);
      for (let sequence = 1; sequence <= 4; sequence++) {
        hostile.connection.send({ type: 'part', run: 'b', sequence, encoding: 'f32' }, [payload]);
      }
      parts.push({ hostile, worker });
    }
    await mustGoOn(cluster);
    await cluster.rest();
    const { hostile } = parts[0]!;
    hostile.connection.send({ type: 'part', run: 'b', sequence: 5, encoding: 'f32' }, [payload]);
    await until('one more is refused', async () => hostile.closed !== null);
    expect(codeOf(hostile)).toBe('DP_LIMIT');
    for (const { worker } of parts) {
      for (;;) {
        const incoming = await worker.next();
        if (incoming.kind === 'closed') break;
        if (incoming.message.type !== 'error') continue;
        expect(incoming.message).toMatchObject({
          code: 'DP_SLOW_SENDER',
          message: expect.stringMatching(/push 1 waits for the push itself for more than \d+ s/),
        });
      }
    }
    // The shard hears of it, and lets all of it go.
    await until('they are off the shard', async () =>
      parts.every(({ hostile: { closed } }) => closed !== null),
    );
    cluster.work();
    await mustGoOn(cluster);
  });
});

/** Tensors of the run, as its workers have them. */
async function tensorsOf(): Promise<Join['tensors']> {
  const found = await newestValidCheckpoint(checkpointFolder(folder, 'b'), { kinds: ['last'] });
  return found!.tensors
    .filter(({ name }) => !name.startsWith('@'))
    .map(({ name, shape }) => ({ name, shape: [...shape], role: 'trainable' as const }));
}
