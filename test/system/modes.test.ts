import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkPushLog } from '../../server/watch/push-log.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { sharedData } from '../data-folder.ts';
import { freePort } from '../redis-server.ts';
import { copyDigits } from '../support/pages.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { type CommandProcess, startCommand } from '../support/worker-process.ts';

/**
 * Worker processes learn digits in each mode while one is killed, one leaves, one comes and the server is killed: no push
 * counts twice, no minibatch is forgotten, nobody waits for those that have gone, and the digits are learnt.
 */

const ROOT = join(import.meta.dirname, '..', '..');
const EXPERIMENT = join(ROOT, 'examples', 'mnist-mlp.ts');
const DIGITS = { train: 5_000, test: 1_000 };
const EPOCHS = 3;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-modes-'));
  if (sharedData()) copyDigits(sharedData()!, join(folder, 'data'), DIGITS);
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Minibatches of a push. */
const STEPS = 5;

type Consistency = NonNullable<PartialConfig['consistency']>;
const MODES: readonly (readonly [Consistency, PartialConfig])[] = [
  [
    { mode: 'bounded', aheadMax: 1 },
    {
      groups: {
        first: { pattern: 'dense_1/*', frozen: { untilStep: 60 }, learningRate: 0.5 },
        last: { pattern: 'dense_2/*', optimizer: { kind: 'adam' }, learningRate: 0.02 },
      },
    },
  ],
  [{ mode: 'synchronous' }, {}],
  [{ mode: 'async' }, { local: { steps: STEPS }, outer: { learningRate: 0.5 } }],
  [{ mode: 'backup', quorum: 2, graceMs: 20, aggregate: 'median' }, {}],
  [{ mode: 'async', correction: 'lookahead', velocity: 'worker' }, {}],
  [{ mode: 'buffered', bufferSize: 3, damping: 'root', correction: 'gap' }, {}],
];

describe.skipIf(sharedData() === null)('worker processes', () => {
  test.each(MODES)(
    'in mode %j %j, with kills and newcomers',
    async (consistency, more) => {
      const state = await mkdtemp(join(folder, 'state-'));
      const pushLog = `${state}.pushes`;
      const port = await freePort();
      let server: ServerProcess = await startServerProcess(state, port, ['--push-log', pushLog]);
      const workers = new Map<string, CommandProcess>();
      const hire = (name: string) => {
        const args = ['work', '--server', server.url.replace('http', 'ws'), '--run', 'r'];
        const how = ['--name', name, '--engine', 'wasm', '--threads', '1'];
        const where = ['--experiments', join(ROOT, 'examples'), '--data', join(folder, 'data')];
        workers.set(name, startCommand([...args, ...how, ...where, '--once'], { cwd: folder }));
      };
      /** Minibatches that updates are made of. */
      const until = async (minibatches: number) => {
        for (;;) {
          const run = await server.client.run('r').catch(() => null);
          const isOver = run && ['finished', 'failed', 'stopped'].includes(run.phase);
          if (run && (isOver || run.examples >= 32 * minibatches)) return run;
          await wait(100);
        }
      };
      try {
        await server.client.createRun({
          ...{ id: 'r', experiment: 'mnist-mlp', experimentHash: await hashExperiment(EXPERIMENT) },
          config: {
            ...{ minibatchSize: 32, learningRate: 0.05, optimizer: { kind: 'momentum' } },
            ...{ epochsMax: EPOCHS, earlyStopping: { enabled: false }, leaseSeconds: 20 },
            ...{ averaging: { kind: 'ema', decay: 0.99 }, workersMin: 3 },
            ...{ checkpoint: { everySteps: 15 }, hyperparameters: {}, consistency },
            ...more,
          },
        });
        for (const name of ['a', 'b', 'c']) hire(name);
        await until(40);
        workers.get('a')!.kill();
        hire('d');
        const early = await until(120);
        await server.kill();
        server = await startServerProcess(state, port, ['--push-log', pushLog]);
        await until(200);
        await workers.get('b')!.stop();
        const run = await until(Number.POSITIVE_INFINITY);
        expect(run).toMatchObject({ phase: 'finished', reason: `reached epochsMax ${EPOCHS}` });
        expect(run.examples).toBe(EPOCHS * 4_000);
        const log = checkPushLog(readFileSync(pushLog, 'utf8'));
        // An epoch is of 125 minibatches.
        const pushes = (EPOCHS * 125) / (more.local ? STEPS : 1);
        expect(log).toMatchObject({ twice: [], steps: [], applied: pushes });
        const { staleness, step } = run;
        const isEach = consistency.mode === 'bounded' || consistency.mode === 'async';
        if (isEach) expect(step).toBe(pushes);
        // Later one may be alone for a while: the first that has found the server again.
        else expect(early.step).toBeLessThan((early.examples / 32) * 0.75);
        if (consistency.mode === 'synchronous' || consistency.mode === 'backup') {
          expect(staleness!.max).toBe(0);
        }
        // One worker that takes as many steps of as many digits: 90 %, or 86 % with a third of the steps.
        expect(1 - run.test!.error!).toBeGreaterThan(0.8);
      } finally {
        await Promise.all([...workers.values()].map((worker) => worker.kill()));
        await server.kill();
      }
    },
    240_000,
  );
});
