import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, inject, test } from 'vitest';
import { WebSocket } from 'ws';
import { encodeFrame } from '../../shared/codec.ts';
import { LIMITS } from '../../shared/limits.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';

/** What `serve` writes on standard error, for people and for programs. */

const PROGRAM = inject('program');
const folder = mkdtempSync(join(tmpdir(), 'downpour-log-'));
let server: ServerProcess | null = null;
afterEach(() => server?.kill());
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A server, a run and a worker that trains it for some steps, then a good end. @returns its lines. */
async function linesOf(format: string, meanwhile = (_state: string) => {}): Promise<string[]> {
  const state = join(folder, format);
  server = await startServerProcess(state, 0, ['--log', format]);
  const { client, child, log } = server;
  const config = { minibatchSize: 4 };
  await client.createRun({ id: 'r', experiment: 'regression', experimentHash: 'hash', config });
  const worker = await ProtocolWorker.connect(server.url, { name: 'w' });
  await worker.trainTo(createProblem(), await worker.enter(createProblem()), 3);
  worker.terminate();
  await expect.poll(log, { timeout: 60_000 }).toContain('worker w has gone');
  meanwhile(state);
  const ended = new Promise((resolve) => child.once('close', resolve));
  child.kill('SIGTERM');
  await ended;
  return log().split('\n');
}

test('json: each line is an object with level, time and message, and what it is about', async () => {
  let second: SpawnSyncReturns<string> | null = null;
  const meanwhile = (state: string) => {
    const env = { ...process.env, DOWNPOUR_LOG: 'json' };
    const args = ['serve', '--port', '0', '--state', state];
    second = spawnSync(process.execPath, [PROGRAM, ...args], { env, encoding: 'utf8' });
  };
  const lines = (await linesOf('json', meanwhile)).map(
    (line) => JSON.parse(line) as Record<string, unknown>,
  );
  for (const { level, time, msg, pid } of lines) {
    expect(['info', 'warn', 'error']).toContain(level);
    expect(new Date(String(time)).toISOString()).toBe(time);
    expect(String(msg)).not.toBe('');
    expect(pid).toBe(server!.child.pid);
  }
  expect(lines).toContainEqual(
    expect.objectContaining({ level: 'info', run: 'r', msg: 'run r created: regression' }),
  );
  expect(lines).toContainEqual(expect.objectContaining({ worker: 'w', msg: 'worker w has gone' }));
  const phase = lines.find(({ msg }) => String(msg).startsWith('run r: waiting → training'));
  expect(phase).toMatchObject({ run: 'r', step: 0 });
  // So is the last word of a command that cannot begin.
  const { status, stderr } = second!;
  expect(status).toBe(1);
  expect(JSON.parse(stderr)).toMatchObject({
    ...{ level: 'error', code: 'DP_STATE_LOCKED' },
    msg: expect.stringMatching(/^error DP_STATE_LOCKED: /),
  });
});

test('pretty: lines with the time, for whom a terminal is', async () => {
  const time = /^\d\d:\d\d:\d\d /;
  const lines = await linesOf('pretty');
  expect(lines.filter((line) => !time.test(line))).toEqual([]);
  expect(lines.map((line) => line.replace(time, ''))).toContain('run r created: regression');
});

const HOSTILE = 'cpu\x1b[2J\n{"level":"error","msg":"forged"}\u202e\x9b31m\r';

/** Connections that come and go, of others' names and with others' words, wrong tokens and broken frames. */
async function flood(url: string, token: string, count: number): Promise<void> {
  const headers = { authorization: `Bearer ${token}` };
  for (let i = 0; i < count; i++) {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/ws`, { headers });
    await new Promise((resolve) => socket.once('open', resolve));
    const name = `w-${'abcdefghij'[i % 10]}${'klmnopqrst'[Math.floor(i / 10) % 10]}`;
    const hello = {
      ...{ type: 'hello', worker: name, incarnation: `${i}`.padStart(16, 'a'), run: null },
      ...{ experiments: {}, engine: `e ${i}`, device: HOSTILE },
    };
    socket.send(i % 4 === 3 ? Buffer.from('not a frame') : encodeFrame(hello));
    // Answered: it has been read.
    await new Promise((resolve) => socket.once('message', resolve));
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.terminate();
    await closed;
    await fetch(`${url}/runs/${encodeURIComponent(HOSTILE)}`, {
      headers: { authorization: `Bearer ${HOSTILE.length}-${i}` },
    });
  }
}

for (const format of ['text', 'pretty', 'json']) {
  test(`${format}: a flood of connections writes a few lines, which nobody can forge or colour`, async () => {
    const token = 'a-token-of-an-operator';
    const state = join(folder, `flood-${format}`);
    server = await startServerProcess(state, 0, ['--log', format, '--token', token]);
    const { child, log, closed } = server;
    await flood(server.url, token, 200);
    child.kill('SIGTERM');
    await closed;
    const lines = log().split('\n');
    // Each kind has so many, and one that counts the rest: connected, gone, and what the server says of itself.
    expect(lines.length).toBeLessThan(2 * (LIMITS.logRepeatsMax + 1) + 10);
    expect(lines.length).toBeGreaterThan(2 * LIMITS.logRepeatsMax);
    const counted = lines.filter((line) => / more lines like this in the last /.test(line));
    expect(counted.map((line) => /… (\d+) more/.exec(line)?.[1])).toEqual(['140', '140']);
    for (const line of lines) {
      expect(line).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u);
      if (format === 'json') expect(JSON.parse(line).msg).not.toBe('forged');
      else expect(line).not.toMatch(/^(\S+ )?\{"level"/);
    }
    const first = lines.find((line) => line.includes('connected: e 0 on'))!;
    if (format === 'json') expect(JSON.parse(first).msg).toContain(HOSTILE);
    else expect(first).toContain('cpu\\u001b[2J\\n{"level":"error"');
  });
}
