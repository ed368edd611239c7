/**
 * A model larger than any one memory of WebAssembly: initial parameters, then a few pushes and pulls, over
 * shards in threads, and whether what comes back is right.
 *
 *     npx tsx bench/large.ts --parameters 1200000000 --shards 5
 *
 * Server and shards hold the parameters, one push that has landed and one snapshot: 12 bytes a parameter. The
 * worker sends the same bytes to all shards, and reads what they send into one memory.
 */
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { bytesOf, floatsOf } from '../shared/codec.ts';
import { createLayout } from '../shared/layout.ts';
import { partition } from '../shared/partition.ts';
import type { Assign, Initialise, Work } from '../shared/protocol.ts';
import { webSocketAddress } from '../shared/rest-client.ts';
import type { Connection, FrameHeader } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { createRun } from './exchange.ts';
import { EXPERIMENT } from './load.ts';
import { startServer } from './processes.ts';

const { values: options } = parseArgs({
  options: {
    parameters: { type: 'string', default: '1200000000' },
    shards: { type: 'string', default: '5' },
    pushes: { type: 'string', default: '3' },
  },
});
const parameters = Number(options.parameters);
const shards = Number(options.shards);
const RATE = 0.5;
const tensors = [{ name: 'weights', shape: [parameters], role: 'trainable' as const }];
const layout = createLayout(tensors);
const ranges = partition(layout, shards);
const longest = Math.max(...ranges.map(({ start, end }) => end - start));
const sent = new Float32Array(longest);
const landed = bytesOf(new Float32Array(longest));
const elementsOf = (k: number) => ranges[k]!.end - ranges[k]!.start;

interface Link {
  readonly connection: Connection;
  next(): Promise<{ header: FrameHeader; bytes: number; first: number; last: number }>;
}

function open(url: string, first: object): Promise<Link> {
  const inbox: { header: FrameHeader; bytes: number; first: number; last: number }[] = [];
  let wake = () => {};
  return new Promise((resolve, reject) => {
    dial({
      url,
      handshakeMs: 10_000,
      failed: reject,
      opened: (connection) => {
        connection.send(first);
        resolve({
          connection,
          async next() {
            while (inbox.length === 0) await new Promise<void>((done) => (wake = done));
            return inbox.shift()!;
          },
        });
        return {
          land: (_, bytes) => ({ bytes: landed.subarray(0, bytes ?? 0), release: () => {} }),
          message: (header, payload) => {
            if (header.type === 'error') throw new Error(JSON.stringify(header));
            const values = payload.length > 0 ? floatsOf(payload) : new Float32Array(1);
            const [first, last] = [values[0]!, values.at(-1)!];
            inbox.push({ header, bytes: payload.length, first, last });
            wake();
          },
          malformed: (error) => {
            throw error;
          },
          broken: (error) => {
            throw error;
          },
          alive: () => {},
          closed: (code, reason) => {
            if (!ended && code !== 1000) throw new Error(`closed with ${code} ${reason}`);
          },
        };
      },
    });
  });
}

let ended = false;
const server = await startServer({ shards });
const began = performance.now();
const say = (text: string) =>
  console.log(`${((performance.now() - began) / 1000).toFixed(1)} s  ${text}`);
const memory = () => {
  const rss = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))?.[1];
  return `server ${(Number(rss) / 1e6).toFixed(1)} GB, worker ${(process.memoryUsage().rss / 1e9).toFixed(1)} GB resident`;
};
try {
  say(`${parameters} parameters, ${(4 * parameters) / 1e9} GB, on ${ranges.length} shards`);
  await createRun(server, { learningRate: RATE, consistency: { depth: 1 } });
  const address = new URL(webSocketAddress(server.url));
  address.pathname = '/ws';
  const main = await open(address.href, {
    ...{ type: 'hello', worker: 'large', incarnation: '0123456789abcdef', run: 'bench' },
    ...{ experiments: { [EXPERIMENT.experiment]: EXPERIMENT.experimentHash } },
    ...{ engine: 'none', device: 'none' },
  });
  const assign = (await main.next()).header as unknown as Assign;
  const links = [main];
  for (const { port } of assign.shards.slice(0, ranges.length - 1)) {
    const url = new URL(address);
    url.port = String(port);
    const link = await open(url.href, { type: 'attach', session: assign.session });
    await link.next();
    links.push(link);
  }
  main.connection.send({
    ...{ type: 'join', run: 'bench', experimentHash: EXPERIMENT.experimentHash, tensors },
    data: {
      ...{ trainCount: 2 ** 31 - 1, validationCount: 1, testCount: 0 },
      ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
    },
  });
  const { grant } = (await main.next()).header as unknown as Initialise;
  sent.fill(1);
  const toAll = (first: object, other: object) =>
    links.map(({ connection }, k) =>
      connection.send(k === 0 ? first : other, [bytesOf(sent.subarray(0, elementsOf(k)))]),
    );
  toAll({ type: 'initialised', run: 'bench', grant }, { type: 'initialPart', run: 'bench', grant });
  let expected = 1;
  for (let push = 0; push <= Number(options.pushes); push++) {
    const { header, ...own } = await main.next();
    const work = header as unknown as Work;
    const parts = [own, ...(await Promise.all(links.slice(1).map((link) => link.next())))];
    const right = parts.every(
      ({ bytes, first, last }, k) =>
        bytes === 4 * elementsOf(k) && first === expected && last === expected,
    );
    say(`step ${work.step}: all parameters are ${expected}: ${right}; ${memory()}`);
    if (!right) throw new Error(JSON.stringify(parts));
    if (push === Number(options.pushes)) break;
    if (push === 0) sent.fill(0.25);
    expected -= 0.25 * RATE;
    const [lease] = work.leases;
    const sequence = push + 1;
    toAll(
      {
        ...{ type: 'push', run: 'bench', sequence, lease: lease!.id, step: work.step },
        ...{ generation: work.generation, loss: 1, computeMs: 0, encoding: 'f32' },
      },
      { type: 'part', run: 'bench', sequence, encoding: 'f32' },
    );
  }
} finally {
  ended = true;
  await server.close();
}
process.exit();
