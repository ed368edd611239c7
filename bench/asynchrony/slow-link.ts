import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import type { PartialConfig } from '../../shared/config.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { end, ROOT, runProgram, startServer, temporaryFolder } from '../processes.ts';

/**
 * Bytes and time to the same validation error with local steps and without, with worker processes behind slow lines:
 *
 *     npx tsx bench/asynchrony/slow-link.ts --data /path/to/data
 *
 * Each worker reaches the server through a proxy of its own that lets so many Mbit/s through, each way. The bytes are
 * those that the server has counted.
 */

const { values } = parseArgs({
  options: {
    data: { type: 'string', default: 'data' },
    mbits: { type: 'string', default: '1' },
    workers: { type: 'string', default: '2' },
    units: { type: 'string', default: '32' },
    error: { type: 'string', default: '0.1' },
    only: { type: 'string' },
  },
});
const EXPERIMENT = join(ROOT, 'examples', 'mnist-mlp.ts');
const workers = Number(values.workers);
const target = Number(values.error);

const inRounds = { mode: 'synchronous' } as const;
const outer = { learningRate: 0.7, momentum: 0.9 };
/** As each is used: DiLoCo in rounds, the plain way without. */
const ARMS: Readonly<Record<string, PartialConfig>> = {
  plain: { evaluateEverySteps: 20 },
  'local SGD, H = 10': { local: { steps: 10 }, consistency: inRounds, evaluateEverySteps: 2 },
  'local SGD, H = 100': { local: { steps: 100 }, consistency: inRounds, evaluateEverySteps: 1 },
  'DiLoCo, H = 100': { local: { steps: 100 }, outer, consistency: inRounds, evaluateEverySteps: 1 },
  'DiLoCo, H = 100, int8': {
    ...{ local: { steps: 100 }, outer, consistency: inRounds, evaluateEverySteps: 1 },
    compression: { push: { kind: 'int8' } },
  },
};

/** A line that carries so many bits a millisecond, one piece after the other. */
class Line {
  #freeMs = 0;

  async carries(bytes: number): Promise<void> {
    const now = performance.now();
    this.#freeMs = Math.max(now, this.#freeMs) + (8 * bytes) / (1_000 * Number(values.mbits));
    await wait(this.#freeMs - now);
  }
}

const PIECE_BYTES = 4_096;

async function carry(from: Socket, to: Socket, line: Line): Promise<void> {
  try {
    for await (const chunk of from as AsyncIterable<Buffer>) {
      for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
        const piece = chunk.subarray(at, at + PIECE_BYTES);
        await line.carries(piece.length);
        if (!to.write(piece)) await once(to, 'drain');
      }
    }
  } catch {
    // One end has gone, and so does the other.
  }
  to.destroy();
}

/** @returns the port of a proxy that leads to this one. */
async function slowly(port: number) {
  const [up, down] = [new Line(), new Line()];
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1');
    for (const socket of [near, far]) socket.on('error', () => {});
    void carry(near, far, up);
    void carry(far, near, down);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, close: () => server.close() };
}

async function measure(name: string, config: PartialConfig) {
  const server = await startServer();
  const folder = temporaryFolder();
  const links = await Promise.all(
    Array.from({ length: workers }, () => slowly(Number(new URL(server.url).port))),
  );
  const id = 'slow';
  await server.client.createRun({
    ...{ id, experiment: 'mnist-mlp', experimentHash: await hashExperiment(EXPERIMENT) },
    config: {
      ...{ minibatchSize: 64, learningRate: 0.02, optimizer: { kind: 'momentum', momentum: 0.9 } },
      ...{ epochsMax: 30, earlyStopping: { enabled: false }, leaseSeconds: 120 },
      ...{
        hyperparameters: { units: Number(values.units) },
        workersMin: workers,
        testAtEnd: false,
      },
      ...config,
    },
  });
  const children = links.map(({ port }, i) =>
    runProgram(folder.path, [
      ...['work', '--server', `ws://127.0.0.1:${port}`, '--run', id, '--name', `w${i}`],
      ...['--experiments', join(ROOT, 'examples'), '--data', resolve(values.data)],
      ...['--engine', 'wasm', '--threads', '1', '--once'],
    ]),
  );
  try {
    for (;;) {
      await wait(250);
      const { evaluations } = await server.client.metrics(id);
      const reached = evaluations.find(
        ({ part, error }) => part === 'validation' && error !== null && error <= target,
      );
      const run = await server.client.run(id);
      if (!reached && run.phase !== 'finished' && run.phase !== 'failed') continue;
      let received = 0;
      let sent = 0;
      for (const { bytes } of await server.client.workers(id)) {
        received += bytes.received;
        sent += bytes.sent;
      }
      const { seconds, step, error } = reached ?? evaluations.at(-1)!;
      const mb = (bytes: number) => (bytes / 1e6).toFixed(1);
      console.log(
        `| ${name} | ${reached ? '' : 'not reached: '}${(100 * error!).toFixed(1)} | ${seconds.toFixed(0)} | ${step} | ${run.examples} | ${mb(received)} | ${mb(sent)} |`,
      );
      return;
    }
  } finally {
    await Promise.all(children.map(end));
    for (const link of links) link.close();
    await server.close();
    folder.remove();
  }
}

console.log(
  `${workers} workers, ${values.mbits} Mbit/s each, ${values.units} hidden units, to a validation error of ${100 * target} %\n`,
);
console.log('| | error, % | s | steps | examples | MB pushed | MB pulled |');
console.log('|---|---|---|---|---|---|---|');
for (const [name, config] of Object.entries(ARMS)) {
  if (values.only === undefined || name === values.only) await measure(name, config);
}
process.exit();
