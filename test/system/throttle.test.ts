import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { FloodClient } from '../../bench/floods/client.ts';
import type { ServeOptions } from '../../server/main.ts';
import { encodeFrame, floatsOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { ServerMessage, Work } from '../../shared/protocol.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { encodeKeys } from '../../shared/rows.ts';
import { TABLES_HEADER } from '../../shared/tables.ts';
import { openTestServer } from '../support/open-server.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem, EXCHANGED, examplesOf, gradientOf, lossOf } from '../support/regression.ts';

/** Who sends what nobody asked for is read less often; all others, of the same token too, go on. */

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const problem = createProblem();
const TOKEN = 'everybodys';
/** What is taken does not come back while a test lasts. It is enough for three workers to join on a busy machine. */
const ONCE = { messageTimeShareMax: 1e-7, messageTimeBurstMs: 2_000 };

async function start(config: PartialConfig = {}, options: Partial<ServeOptions> = {}) {
  const { url, close, lines } = await openTestServer({ token: TOKEN, ...options });
  cleanUps.push(close);
  const client = createRestClient({ server: url, token: TOKEN, timeoutMs: 60_000 });
  await client.createRun({
    ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
    config: {
      ...{ learningRate: 1e-6, minibatchSize: 4, testAtEnd: false },
      ...{ earlyStopping: { enabled: false }, stepsMax: 1e9, evaluateEverySteps: 1e9, ...config },
    },
  });
  const enter = async (name: string) => {
    const headers = { [TABLES_HEADER]: 'yes' };
    const worker = await ProtocolWorker.connect(url, { name, token: TOKEN, headers });
    cleanUps.push(() => worker.terminate());
    return { worker, work: await worker.enter(problem) };
  };
  return { url, client, lines, enter };
}

async function seriesOf(client: RestClient, name: string): Promise<number> {
  const line = (await client.prometheus()).split('\n').find((each) => each.startsWith(`${name} `));
  return Number(line!.split(' ')[1]);
}

const bytesFrom = async (client: RestClient, name: string) =>
  (await client.status()).workers.find(({ worker }) => worker === name)!.bytes.received;

const histogram = { low: -1, high: 1, counts: Array.from({ length: 64 }, (_, i) => i) };
const tensor = {
  ...{ name: 'weights', weights: histogram, gradients: histogram, updates: histogram },
  ...{ gradientNorm: 1, updateRatio: 1, elements: 6, never: 0, rare: 0 },
};
const observed = (step: number, tensorCount: number) => ({
  ...{ type: 'observed', run: 'r', step, updateSteps: 1, samples: 1, costMs: 1 },
  ...{ tensors: Array.from({ length: tensorCount }, () => tensor), layers: [] },
});
const push = {
  ...{ type: 'push', run: 'r', sequence: 2 ** 40, lease: 2 ** 40, step: 0, generation: 2 },
  ...{ loss: 1, computeMs: 1, encoding: 'f32' },
};

/** A masked frame with the mask 0. */
function frame(opcode: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(payload.length > 125 ? 8 : 6);
  head[0] = opcode;
  head[1] = 0x80 | (payload.length > 125 ? 126 : payload.length);
  if (payload.length > 125) head.writeUInt16BE(payload.length, 2);
  return Buffer.concat([head, payload]);
}
const message = (header: object, payload?: Float32Array) =>
  frame(0x82, encodeFrame(header, payload));

interface Flood {
  readonly first?: Buffer;
  readonly config?: PartialConfig;
}
const FLOODS: [what: string, again: Buffer, more?: Flood][] = [
  ['samples', message(observed(1, 60))],
  [
    'evaluations',
    message({
      ...{ type: 'evaluated', run: 'r', evaluation: 1, loss: 1, error: 1, examples: 10 },
      metrics: {},
    }),
  ],
  ['pushes of minibatches that it does not hold', message(push, new Float32Array(EXCHANGED))],
  ['pushes of another size', message(push, new Float32Array(1))],
  [
    'pushes that were applied before',
    message({ ...push, sequence: 1 }, new Float32Array(EXCHANGED)),
  ],
  ['goodbyes', message({ type: 'leave', failure: null })],
  ['pings', frame(0x89, Buffer.alloc(0))],
  ['pongs', frame(0x8a, Buffer.alloc(0))],
  ['fragments of nothing', frame(0x00, Buffer.alloc(0)), { first: frame(0x02, Buffer.from('DP')) }],
  [
    'questions for rows, though it has a minibatch',
    message(
      { type: 'pullRows', run: 'r', request: 1, evaluation: null },
      floatsOf(encodeKeys([Uint32Array.of(3, 7)])),
    ),
    { config: { tables: { word: { rows: 40, width: 2 } } } },
  ],
];
const BLOCK_BYTES = 2 ** 16;
/** A server that takes so much is not slowed down by it. */
const FLOOD_BYTES_MAX = 2 ** 29;

describe('a worker that goes on and on with', () => {
  test.each(FLOODS)(
    '%s is not read any more, and its token works on',
    async (_, again, { first, config } = {}) => {
      const { client, enter, lines } = await start(config, { limits: ONCE });
      const honest = await enter('honest');
      const flood = await enter('flood');
      if (first) flood.worker.write(first);
      const block = Buffer.concat(Array(Math.ceil(BLOCK_BYTES / again.length)).fill(again));
      let sent = 0;
      while ((await seriesOf(client, 'downpour_throttled_connections')) === 0) {
        for (let i = 0; i < 64; i++) {
          if (flood.worker.unsentBytes < 16 * BLOCK_BYTES) {
            flood.worker.write(block);
            sent += block.length;
          }
          await turn();
        }
        expect(sent).toBeLessThan(FLOOD_BYTES_MAX);
        expect(flood.worker.isOpen).toBe(true);
      }
      const read = await bytesFrom(client, 'flood');
      const at = await honest.worker.trainTo(problem, honest.work, honest.work.step + 200);
      expect(at.step).toBeGreaterThanOrEqual(200);
      expect(await bytesFrom(client, 'flood')).toBe(read);
      expect(await seriesOf(client, 'downpour_throttled_connections')).toBe(1);
      const told = lines.filter((line) => line.includes('read less often'));
      expect(told).toEqual([expect.stringContaining('worker flood of token ')]);
    },
  );
});

const join = {
  ...{ type: 'join', run: 'r', experimentHash: 'hash', tensors: [] },
  data: { trainCount: 1, validationCount: 1, testCount: 0, fingerprint: '', source: '' },
};

describe('a connection that was told to go and goes on with', () => {
  test.each([
    ['a join for which there was no assignment', message(join)],
    ['what is no message', message({ type: 'nonsense' })],
    ['broken frames', Buffer.from([0xff, 0x80, 0, 0, 0, 0])],
  ])('%s is read no more often than its token may take time', async (_, again) => {
    const limits = { ...ONCE, messageTimeBurstMs: 300 };
    const { url, client, enter } = await start({}, { limits });
    const honest = await enter('honest');
    const flood = await FloodClient.open(url, { token: TOKEN });
    cleanUps.push(() => flood.destroy());
    // It does not see that it is told to go.
    flood.deafen();
    const block = Buffer.concat(Array(Math.ceil(BLOCK_BYTES / again.length)).fill(again));
    let sent = 0;
    while ((await seriesOf(client, 'downpour_throttled_connections')) === 0) {
      for (let i = 0; i < 64; i++) {
        if (flood.unsentBytes < 16 * BLOCK_BYTES) {
          flood.write(block);
          sent += block.length;
        }
        await turn();
      }
      expect(flood.ended).toBe(null);
      expect(sent).toBeLessThan(FLOOD_BYTES_MAX);
    }
    const at = await honest.worker.trainTo(problem, honest.work, honest.work.step + 200);
    expect(at.step).toBeGreaterThanOrEqual(200);
  });
});

test('one that joins twice is refused: each join is the answer to an assignment', async () => {
  const { enter } = await start();
  const { worker } = await enter('w');
  worker.join({ run: 'r', experimentHash: 'hash' } as never, problem);
  expect(await worker.expect('error')).toMatchObject({
    code: 'DP_PROTOCOL_ORDER',
    message: expect.stringContaining("a second 'join' for run 'r'"),
  });
  expect(await worker.next()).toMatchObject({ kind: 'closed', code: 1002 });
});

/** Evaluates and samples all that it is asked for. @returns how often. */
async function workHonestly(
  worker: ProtocolWorker,
  first: Work & { payload: Float32Array },
  steps: number,
): Promise<{ evaluated: number; sampled: number }> {
  let [work, theta, evaluated, sampled] = [first, first.payload, 0, 0];
  while (work.step < steps) {
    if (work.payload.length > 0) theta = work.payload;
    const { run, evaluation, step, generation } = work;
    if (evaluation) {
      const { id, part } = evaluation;
      const loss = lossOf(problem, part, theta);
      const examples = examplesOf(problem, part);
      worker.send({
        ...{ type: 'evaluated', run, evaluation: id, loss, error: loss, examples, metrics: {} },
      } as never);
      evaluated++;
    } else if (work.leases.length > 0) {
      const lease = work.leases[0]!;
      worker.send(observed(step, 1));
      sampled++;
      const { payload, loss } = gradientOf(problem, 1, lease, theta);
      const sequence = ++worker.sequence;
      worker.send({ ...push, sequence, lease: lease.id, step, generation, loss } as never, payload);
    }
    const incoming = await worker.next();
    if (incoming.kind === 'closed') throw new Error(`closed with ${incoming.code}`);
    if (incoming.message.type !== 'work') throw new Error(JSON.stringify(incoming.message));
    work = { ...(incoming.message as Work), payload: incoming.payload };
  }
  return { evaluated, sampled };
}

test('32 workers of one token that only do their work cost it nothing but their hello and join', async () => {
  const config = {
    ...{ observe: { everySteps: 1 }, evaluateEverySteps: 1 },
    consistency: { stalenessMax: 8, depth: 1 },
  };
  const { client, enter } = await start(config);
  const workers = [await enter('w-0')];
  for (let i = 1; i < 32; i++) workers.push(await enter(`w-${i}`));
  const done = await Promise.all(workers.map((each) => workHonestly(each.worker, each.work, 300)));
  const sum = (of: (each: (typeof done)[number]) => number) =>
    done.reduce((total, each) => total + of(each), 0);
  expect(sum(({ evaluated }) => evaluated)).toBeGreaterThan(10);
  expect(sum(({ sampled }) => sampled)).toBeGreaterThan(200);
  // Too old, too: they were rejected, and that is no fault of theirs.
  const { pushes } = await client.run('r');
  expect(pushes.rejected).toBeGreaterThan(32);
  expect(await seriesOf(client, 'downpour_unasked_messages_total')).toBe(2 * 32);
  expect(await seriesOf(client, 'downpour_throttles_total')).toBe(0);
});

test('stale pushes are free as often as they can be honest', async () => {
  const { client, enter } = await start({ consistency: { stalenessMax: 0, depth: 1 } });
  const [slow, fast] = [await enter('slow'), await enter('fast')];
  await fast.worker.trainTo(problem, fast.work, fast.work.step + 5);
  const before = await seriesOf(client, 'downpour_unasked_messages_total');
  const old = slow.work;
  const answers: ServerMessage[] = [];
  for (let i = 0; i < 20; i++) {
    slow.worker.push(problem, old);
    const incoming = await slow.worker.next();
    if (incoming.kind === 'message') answers.push(incoming.message);
  }
  const codes = answers.flatMap((each) =>
    each.type === 'work' ? each.acknowledgements.map(({ code }) => code) : [],
  );
  expect(codes).toEqual(Array(20).fill('DP_PUSH_STALE'));
  // Two may be under way; after them it has been told the newest parameters.
  expect((await seriesOf(client, 'downpour_unasked_messages_total')) - before).toBe(18);
});
