import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, vi } from 'vitest';
import { serve } from '../../server/main.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { type Board, pythonTest, readBoard } from '../support/python.ts';
import { createProblem } from '../support/regression.ts';
import { mountSmallDisk, smallDiskMissing } from '../support/small-disk.ts';

/** Event files of real trainings, read by TensorBoard's own code. */

const test = pythonTest(['tensorboard']);

const stepsOf = (board: Board, tag: string) => board.scalars[tag]!.map(({ step }) => step);
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

const folder = mkdtempSync(join(tmpdir(), 'downpour-tensorboard-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('of a run with histograms, whose server was started again in the middle', () => {
  let cluster: Cluster;
  const logs = join(folder, 'logs');
  const STEPS = 100;

  beforeAll(async () => {
    cluster = await Cluster.start(await openEngine({ engine: 'cpu' }), { tensorboard: logs });
    // On a busy machine samples that are due would be left out for their cost.
    const observe = { everySteps: 10, costMax: 1 };
    const config = { stepsMax: STEPS, evaluateEverySteps: 25, observe };
    await cluster.createRun('cars', join(FIXTURES, 'cars.ts'), config);
    const worker = cluster.work('cars', 'w');
    await vi.waitFor(
      async () => expect((await cluster.client.run('cars')).step).toBeGreaterThan(10),
      {
        timeout: 60_000,
        interval: 10,
      },
    );
    const port = Number(new URL(cluster.url).port);
    await cluster.stopServer();
    await cluster.serve(port);
    await worker.done;
  });
  afterAll(() => cluster?.close());

  test('the curves are those of REST, each step once; the histograms and the configuration too', async () => {
    const { client } = cluster;
    const [metrics, observed, run] = await Promise.all([
      client.metrics('cars'),
      client.observations('cars'),
      client.run('cars'),
    ]);
    // With a last look at all runs.
    await cluster.stopServer();
    expect(readdirSync(join(logs, 'cars'))).toHaveLength(1);
    const board = await readBoard(join(logs, 'cars'));
    expect(stepsOf(board, 'train/loss')).toEqual(upTo(STEPS));
    const { training, evaluations } = metrics;
    for (const [tag, column] of [
      ['train/loss', training.loss],
      ['train/minibatch_loss', training.minibatchLoss],
      ['train/learning_rate', training.learningRate],
      ['train/staleness', training.staleness],
    ] as const) {
      const values = board.scalars[tag]!.map(({ value }) => value);
      expect(values).toEqual(column.map((value) => Math.fround(value!)));
    }
    const validations = evaluations.filter(({ part }) => part === 'validation');
    expect(validations.length).toBeGreaterThanOrEqual(4);
    expect(board.scalars['validation/loss']!.map(({ step, value }) => [step, value])).toEqual(
      validations.map(({ step, loss }) => [step, Math.fround(loss!)]),
    );
    const [first] = board.scalars['train/loss']!;
    expect(first!.wallTime).toBeCloseTo(Date.parse(run.createdAt) / 1000 + training.seconds[0]!, 3);

    expect(observed.samples.length).toBeGreaterThanOrEqual(2);
    for (const [i, { step, tensors }] of observed.samples.entries()) {
      for (const { name, weights } of tensors) {
        const seen = board.histograms[`weights/${name}`]![i]!;
        expect([seen.step, seen.min, seen.max]).toEqual([step, weights.low, weights.high]);
        expect(seen.counts).toEqual(weights.counts);
        expect(seen.num).toBe(weights.counts.reduce((a, b) => a + b));
        expect(seen.limits).toEqual([...seen.limits].sort((a, b) => a - b));
      }
    }
    expect(board.texts.config).toContain(`"stepsMax": ${STEPS}`);
  });
});

describe('of a server', () => {
  const problem = createProblem();
  const cleanUps: (() => Promise<unknown>)[] = [];
  afterEach(async () => {
    for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  });

  async function start(state: string, tensorboard: string) {
    const lines: string[] = [];
    const controller = new AbortController();
    const { url, closed } = await serve({
      ...{ host: '127.0.0.1', port: 0, localSocket: false, state, tensorboard },
      signal: controller.signal,
      log: (line) => lines.push(line),
    });
    const stop = async () => {
      controller.abort();
      await closed;
    };
    cleanUps.push(stop);
    return { url, stop, client: createRestClient({ server: url }), log: () => lines.join('\n') };
  }
  const create = (client: RestClient) =>
    client.createRun({
      ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
      config: {
        ...{ minibatchSize: 4, learningRate: 0.01, evaluateEverySteps: 10_000, leaseSeconds: 60 },
        ...{ checkpoint: { everySeconds: 1e6 } },
      },
    });
  const patience = { timeout: 60_000, interval: 20 };

  test('that crashed: what the crash took back is not in it twice', async () => {
    const logs = join(folder, 'crashed');
    const [state, later] = [join(folder, 'state'), join(folder, 'state-later')];
    const first = await start(state, logs);
    await create(first.client);
    let worker = await ProtocolWorker.connect(first.url);
    const work = await worker.trainTo(problem, await worker.enter(problem), 10);
    await first.client.checkpoint('r');
    await worker.trainTo(problem, work, 25);
    // As after a crash at this moment, while the event file goes on to the end.
    const isWritten = (path: string) => !path.endsWith('.tmp');
    cpSync(join(state, 'r'), join(later, 'r'), { recursive: true, filter: isWritten });
    await first.stop();
    expect(stepsOf(await readBoard(join(logs, 'r')), 'train/loss')).toEqual(upTo(25));

    const second = await start(later, logs);
    expect((await second.client.run('r')).step).toBe(10);
    worker = await ProtocolWorker.connect(second.url);
    await worker.trainTo(problem, await worker.enter(problem), 23);
    await second.stop();
    const board = await readBoard(join(logs, 'r'));
    expect(stepsOf(board, 'train/loss')).toEqual(upTo(23));
    expect(stepsOf(board, 'train/gradient_norm')).toEqual(upTo(23));
  });

  const missing = smallDiskMissing();
  (missing === '' ? test : test.skip)(
    `whose disk is full${missing}: training goes on, it is said once, and later all is there`,
    async () => {
      const disk = mountSmallDisk(1e6);
      cleanUps.push(async () => disk.remove());
      const logs = join(disk.path, 'logs');
      const server = await start(join(folder, 'full'), logs);
      await create(server.client);
      const worker = await ProtocolWorker.connect(server.url);
      let work = await worker.trainTo(problem, await worker.enter(problem), 5);
      await vi.waitFor(() => expect(existsSync(join(logs, 'r'))).toBe(true), patience);
      const free = disk.fill();
      const told = () => server.log().match(/the event files in .* are not written.*ENOSPC/g);
      for (let step = 10; told() === null; step += 5) {
        work = await worker.trainTo(problem, work, step);
        await new Promise((resolve) => setImmediate(resolve));
      }
      const { step } = await server.client.run('r');
      work = await worker.trainTo(problem, work, step + 20);
      free();
      await vi.waitFor(() => expect(server.log()).toContain('are whole again'), patience);
      expect(told()).toHaveLength(1);
      await worker.trainTo(problem, work, step + 30);
      await server.stop();
      const steps = stepsOf(await readBoard(join(logs, 'r')), 'train/loss');
      // Beyond 2,000 steps the run itself remembers every second one, then every fourth.
      expect(steps.at(-1)).toBeGreaterThan(step + 10);
      expect(new Set(steps).size).toBe(steps.length);
      expect(steps[0]).toBeLessThanOrEqual(8);
    },
  );
});
