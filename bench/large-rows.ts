/**
 * A large table over shards in threads: created, trained by pushes until each of some rows has been in one, stopped with a
 * checkpoint, and resumed on another number of shards, where all of these rows are read and compared.
 *
 *     npx tsx bench/large-rows.ts --rows 10000000 --width 64 --shards 4 --resume-on 3
 *
 * `--touched` rows are pushed, default: all. Needs memory for their values twice while a checkpoint is written, and disk for
 * one checkpoint.
 */
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { checkpointFolder } from '../files/checkpoint.ts';
import { listCheckpoints } from '../files/manifest.ts';
import { createLayout } from '../shared/layout.ts';
import { createRestClient, webSocketAddress } from '../shared/rest-client.ts';
import type { TableRows } from '../shared/rows.ts';
import { rowShapes } from '../shared/tables.ts';
import { Client } from '../worker/client.ts';
import { RowsExchange } from '../worker/rows/rows-exchange.ts';
import { rangesFor } from '../worker/shard-links.ts';
import { createRun } from './exchange.ts';
import { EXPERIMENT } from './load.ts';
import { type ServerProcess, startServer, temporaryFolder } from './processes.ts';

const { values: options } = parseArgs({
  options: {
    rows: { type: 'string', default: '10000000' },
    touched: { type: 'string' },
    width: { type: 'string', default: '64' },
    shards: { type: 'string', default: '4' },
    'resume-on': { type: 'string', default: '3' },
    push: { type: 'string', default: '262144' },
  },
});
const [rows, width, shards, later, push] = [
  ...[options.rows, options.width, options.shards, options['resume-on'], options.push],
].map(Number) as [number, number, number, number, number];
const touched = Math.min(rows, Number(options.touched ?? rows));
const RUN = 'bench';
const RATE = 0.5;
const GRADIENT = 0.25;
/** The answer to a stop, and to a resume, comes when a checkpoint is on disk. */
const patient = ({ url }: ServerProcess) => createRestClient({ server: url, timeoutMs: 1_800_000 });
const tensors = [{ name: 'weights', shape: [1_000], role: 'trainable' as const }];
const table = {
  ...{ rows, width, initializer: { kind: 'zeros' as const }, optimizer: { kind: 'sgd' as const } },
};
const config = { learningRate: RATE, consistency: { depth: 1 }, tables: { word: table } };

const began = performance.now();
const say = (text: string) =>
  console.log(`${((performance.now() - began) / 1000).toFixed(1)} s  ${text}`);
const memoryOf = ({ pid }: ServerProcess) => {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const [now, most] = ['VmRSS', 'VmHWM'].map((name) =>
    (Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1]) / 1e6).toFixed(2),
  );
  return `server ${now} GB resident, at most ${most} GB`;
};

/** Keys of push i, which are neighbours; null: all have been pushed. */
function keysOf(i: number): Uint32Array | null {
  const start = i * push;
  if (start >= touched) return null;
  return Uint32Array.from({ length: Math.min(push, touched - start) }, (_, k) => start + k);
}

/** A worker that pushes all rows once, or reads them and compares. */
async function serve({ url, client: rest }: ServerProcess, kind: 'push' | 'read'): Promise<void> {
  const client = new Client({
    server: webSocketAddress(url),
    hello: {
      ...{ worker: 'large', run: RUN, engine: 'none', device: 'none' },
      experiments: { [EXPERIMENT.experiment]: EXPERIMENT.experimentHash },
    },
    signal: new AbortController().signal,
    log: () => {},
    localSocket: false,
  });
  const layout = createLayout(tensors);
  const shapes = rowShapes({ tables: (await rest.run(RUN)).config.tables });
  const zeros = new Float32Array(1_000);
  let exchange: RowsExchange | null = null;
  let ranges = rangesFor(layout, { shards: [], config: {} });
  let piece = 0;
  for (;;) {
    const { message, rows: parts, release } = await client.next();
    release?.();
    if (message.type === 'end') throw new Error(`the run ended: ${message.reason}`);
    if (message.type === 'assign') {
      if (!(await client.attach(message, layout))) continue;
      ranges = rangesFor(layout, message);
      const plain = { compression: { push: { kind: 'f32' as const }, pull: 'f32' as const } };
      exchange = new RowsExchange(RUN, shapes, plain, client, ranges.length);
      client.send({
        ...{ type: 'join', run: RUN, experimentHash: EXPERIMENT.experimentHash, tensors },
        data: {
          ...{ trainCount: 2 ** 31 - 1, validationCount: 1, testCount: 0 },
          ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
        },
      });
    } else if (message.type === 'initialise') {
      client.initialise({ type: 'initialised', run: RUN, grant: message.grant }, zeros);
    } else if (message.type === 'work') {
      for (const { outcome, message: why } of message.acknowledgements) {
        if (outcome !== 'applied') throw new Error(`a push was ${outcome}: ${why}`);
      }
      const newest = message.acknowledgements.at(-1);
      if (newest) client.acknowledge(newest);
      exchange!.receive(message, parts);
      const [lease] = message.leases;
      if (!lease) continue;
      const { step, generation } = message;
      if (kind === 'read') {
        for (let i = 0; ; i++) {
          const keys = keysOf(i);
          if (!keys) break;
          const held = await exchange!.rowsFor([keys], generation);
          const wrong = held.rows[0]!.values.findIndex((x) => x !== -RATE * GRADIENT);
          if (wrong >= 0) throw new Error(`row ${keys[Math.floor(wrong / width)]} is wrong`);
        }
        break;
      }
      const keys = keysOf(piece);
      if (!keys) break;
      const held = await exchange!.rowsFor([keys], generation);
      const gradient: TableRows = {
        keys,
        values: new Float32Array(keys.length * width).fill(GRADIENT),
      };
      const next = keysOf(++piece);
      const pushed = exchange!.pushed([gradient], held.step, next && [next]);
      const dense = ranges.map(({ start, end }) => ({
        bytes: new Uint8Array(4 * (end - start)),
        release() {},
      }));
      client.pushReady(
        {
          ...{ run: RUN, lease: lease.id, step, generation, loss: 1, computeMs: 0 },
          ...{ encoding: 'f32', rows: pushed[0]!.rows },
        },
        dense,
        pushed,
      );
    }
  }
  await client.close();
}

const folder = temporaryFolder();
let server = await startServer({ shards, state: folder.path });
try {
  say(`${rows} rows of ${width}, ${((4 * rows * width) / 1e9).toFixed(2)} GB, on ${shards} shards`);
  await createRun(server, config);
  say(`created; ${memoryOf(server)}`);
  const pushes = Math.ceil(touched / push);
  const from = performance.now();
  await serve(server, 'push');
  const seconds = (performance.now() - from) / 1000;
  say(
    `${pushes} pushes with ${touched} rows, ${Math.round(touched / seconds)} rows/s pushed and pulled; ${memoryOf(server)}`,
  );
  await patient(server).stop(RUN);
  const stopped = (await listCheckpoints(checkpointFolder(folder.path, RUN))).at(-1)!;
  say(`stopped with a checkpoint of ${(stopped.bytes / 1e9).toFixed(2)} GB; ${memoryOf(server)}`);
  await server.close();
  server = await startServer({ shards: later, state: folder.path });
  say(`resumed on ${later} shards; ${memoryOf(server)}`);
  await patient(server).resume(RUN);
  await serve(server, 'read');
  say(`all ${touched} rows are right; ${memoryOf(server)}`);
} finally {
  await server.close();
  folder.remove();
}
process.exit();
