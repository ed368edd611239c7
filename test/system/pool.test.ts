import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Pool, type PoolOptions, startPool } from '../../cli/workers/pool.ts';

// Worker processes that crash in every way there is, played by a small program.

let folder: string;
let pool: Pool | null = null;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-pool-'));
});
afterEach(async () => {
  await pool?.stop();
  pool = null;
  rmSync(folder, { recursive: true });
});

/** A pool whose workers run `body`; `life` counts their lives from 1. */
function start(body: string, options: Partial<PoolOptions> = {}) {
  const program = join(folder, 'worker.mjs');
  writeFileSync(
    program,
    `import { appendFileSync, readFileSync } from 'node:fs';
    const name = process.argv.at(-1);
    const diary = ${JSON.stringify(folder)} + '/' + name;
    appendFileSync(diary, 'x');
    const life = readFileSync(diary, 'utf8').length;
    const stay = () => setInterval(() => {}, 1000);
    ${body}`,
  );
  const notes: string[] = [];
  let wake = () => {};
  pool = startPool({
    names: ['worker-1'],
    args: [],
    env: process.env,
    note: (line) => {
      notes.push(line);
      wake();
    },
    log: () => {},
    isOver: async () => true,
    program,
    backoffMs: { first: 5, last: 20 },
    ...options,
  });
  const noted = (text: string) =>
    new Promise<void>((done) => {
      wake = () => {
        if (notes.some((line) => line.includes(text))) done();
      };
      wake();
    });
  return { pool, notes, noted };
}

const lives = (name: string) => readFileSync(join(folder, name), 'utf8').length;

test('a worker that ends when its run is over is not started again', async () => {
  const { pool, notes } = start('');
  await pool.ended;
  expect(notes).toEqual([]);
  expect(lives('worker-1')).toBe(1);
});

test('a worker that ends in good order while its run goes on is started again', async () => {
  let asked = 0;
  const { pool, notes } = start('', { isOver: async () => ++asked > 2 });
  await pool.ended;
  expect(lives('worker-1')).toBe(3);
  expect(notes[0]).toBe('worker-1 ended although its run continues; starting it again in 0.005 s');
});

test('an error that nobody caught is told, not what Node writes behind it', async () => {
  const { pool, notes } = start(
    `if (life < 2) { Promise.reject(new RangeError('no such shelf')); stay(); }`,
  );
  await pool.ended;
  expect(notes[0]).toContain('it said: RangeError: no such shelf; starting it again');
});

test('a crash is told with its last words, and the worker started again', async () => {
  const { pool, notes } = start(`if (life < 4) { console.error('out of luck'); process.exit(7); }`);
  await pool.ended;
  expect(lives('worker-1')).toBe(4);
  // Once for one cause.
  const words = 'worker-1 ended with exit code 7; it said: out of luck; starting it again in';
  expect(notes).toEqual([`${words} 0.005 s`]);
});

test('a killed worker is told apart from one that fails', async () => {
  const { pool, notes } = start(`if (life === 1) process.kill(process.pid, 'SIGKILL');`);
  await pool.ended;
  expect(notes).toEqual(['worker-1 was ended by SIGKILL; starting it again in 0.005 s']);
});

test('a worker that crashes time and again is given up', async () => {
  const { pool, notes } = start('process.exit(1);');
  const error = await pool.failed;
  expect(error.code).toBe('DP_INTERNAL');
  expect(lives('worker-1')).toBe(5);
  expect(notes.at(-1)).toBe('worker-1 is given up after 5 crashes in a row');
});

test('a failure that would come again is not tried again; the others go on', async () => {
  const { pool, noted } = start(
    `if (name === 'worker-2') stay();
    else process.send({ code: 'DP_DATA_MISSING', message: 'no digits' }, () => process.exit(1));`,
    { names: ['worker-1', 'worker-2'] },
  );
  await noted('worker-1 cannot work: DP_DATA_MISSING: no digits');
  expect(lives('worker-1')).toBe(1);
  expect(pool.pids()).toHaveLength(1);
  let over = false;
  void pool.failed.then(() => {
    over = true;
  });
  await pool.stop();
  expect(over).toBe(false);
});

test('a failure of all that would come again is the failure of the pool, by its code', async () => {
  const { pool, notes } = start(
    `process.send({ code: 'DP_ENGINE_UNAVAILABLE', message: 'no GPU' }, () => process.exit(1));`,
    { names: ['worker-1', 'worker-2'] },
  );
  expect(await pool.failed).toMatchObject({ code: 'DP_ENGINE_UNAVAILABLE', message: 'no GPU' });
  expect(notes).toHaveLength(1);
  expect(notes[0]).toMatch(/^worker-[12] cannot work: DP_ENGINE_UNAVAILABLE: no GPU$/);
});

test('stop asks workers to end and waits for them', async () => {
  const ready = new Promise<string>((done) => {
    start(
      `process.on('SIGTERM', () => {
        appendFileSync(diary + '-left', 'x');
        process.exit(0);
      });
      console.log('ready');
      stay();`,
      { log: done, leaveMs: 60_000 },
    );
  });
  expect(await ready).toBe('worker-1: ready');
  await pool?.stop();
  expect(pool?.pids()).toEqual([]);
  expect(lives('worker-1-left')).toBe(1);
});

test('what all workers say of one thing is noted once', async () => {
  const { pool, notes } = start(
    `process.send({ note: 'engine wasm: a step takes ' + name.length + Math.random() + ' ms' }, () => process.exit(0));`,
    { names: ['worker-1', 'worker-2', 'worker-3'] },
  );
  await pool.ended;
  expect(notes).toHaveLength(1);
  expect(notes[0]).toMatch(/^engine wasm: a step takes /);
});
