import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, inject, test } from 'vitest';
import type { BenchReport } from '../../bench/main.ts';
import { shareCompiled } from '../../bench/processes.ts';

/** The benchmark as a user runs it. What it measures is never looked at: machines differ. */

const ROOT = join(import.meta.dirname, '..', '..');

let folder: string;
beforeEach(() => {
  // Not /tmp/…/…: a unix socket's path has at most 107 bytes.
  folder = mkdtempSync(join(tmpdir(), 'dp-'));
  shareCompiled(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function start(args: readonly string[], program = 'bench/main.ts') {
  const child = spawn(process.execPath, ['--import', 'tsx', program, ...args], {
    cwd: ROOT,
    env: { ...process.env, TMPDIR: folder, DOWNPOUR_BENCH_PROGRAM: inject('program') },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    output.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    output.stderr += chunk;
  });
  const closed = once(child, 'close').then(([code]) => ({ code: code as number, ...output }));
  return { child, closed };
}

/** What the benchmark leaves behind. */
const leftovers = () => readdirSync(folder).filter((name) => name.startsWith('downpour'));

test('a quick run of some questions prints its tables as JSON, beside their limits', async () => {
  const { closed } = start(['--quick', '--json', '--only', 'limits,exchange']);
  const { code, stdout, stderr } = await closed;
  expect(code, stderr).toBe(0);
  const report = JSON.parse(stdout) as BenchReport;
  expect(report).toMatchObject({ quick: true, machine: { node: process.versions.node } });
  expect(report.sections.map(({ name }) => name)).toEqual(['limits', 'exchange']);
  const [limits, exchange] = report.sections.map(({ tables }) => tables[0]!);
  expect(limits!.rows).toHaveLength(3);
  const cells = exchange!.rows.map(({ size, workers, transport, inFlight }) =>
    [size, workers, transport, inFlight].join(' '),
  );
  expect(cells).toEqual(
    ['1 KB', '1 MB'].flatMap((size) => [
      ...['1 tcp 1', '1 unix 1', '2 tcp 1', '2 unix 1'].map((cell) => `${size} ${cell}`),
      ...(size === '1 KB' ? ['1 KB 2 tcp 8', '1 KB 2 unix 8'] : []),
    ]),
  );
  const limited = ['gigabytesPerSecond', 'plainGigabytesPerSecond', 'share', 'p50Ms', 'p99Ms'];
  for (const table of [limits!, exchange!]) {
    for (const { key } of table.columns) {
      for (const row of table.rows) expect(row, `${table.name} ${key}`).toHaveProperty(key);
    }
  }
  for (const row of exchange!.rows) {
    for (const key of limited) expect(row[key]).toBeGreaterThan(0);
  }
  expect(leftovers()).toEqual([]);
});

test('Ctrl-C leaves no process and no folder behind', async () => {
  const { child, closed } = start(['--quick', '--only', 'exchange']);
  // It says what it measures as soon as all its processes run.
  await once(child.stderr, 'data');
  const children = childrenOf(child.pid!);
  if (process.platform === 'linux') expect(children.length).toBeGreaterThan(2);
  child.kill('SIGINT');
  expect((await closed).code).toBe(130);
  await expect.poll(() => children.filter(isAlive)).toEqual([]);
  expect(leftovers()).toEqual([]);
});

test('a question that there is not is refused with those that there are', async () => {
  const { code, stdout, stderr } = await start(['--only', 'exchang']).closed;
  expect(code).toBe(2);
  expect(stdout).toBe('');
  expect(stderr).toMatch(/^error DP_USAGE: there is no 'exchang'.*exchange/);
});

test('two checkouts by turns: a row with its interval, and of no other rows', async () => {
  const args = [
    ROOT,
    '1 KB, 1 workers',
    'unix',
    '--rounds',
    '2',
    '--pairs',
    '1',
    '--seconds',
    '0.1',
  ];
  const { code, stdout, stderr } = await start(args, 'bench/against.ts').closed;
  expect(code, stderr).toBe(0);
  const [, , row, ...rest] = stdout.split('\n');
  const [what, ...ratios] = row!.split('|').slice(1, -1);
  expect(what).toContain('exchange 1 KB, 1 workers, unix');
  const [speed, low, high, cpu, rate] = ratios.map((cell) => Number(cell.replace(',', '')));
  expect(low).toBeLessThanOrEqual(speed!);
  expect(high).toBeGreaterThanOrEqual(speed!);
  for (const number of [cpu, rate]) expect(number).toBeGreaterThan(0);
  expect(rest.join('\n')).not.toContain('exchange');
  expect(leftovers()).toEqual([]);
});

test('a comparison with a folder that has no benchmarks is refused', async () => {
  const { code, stderr } = await start([folder], 'bench/against.ts').closed;
  expect(code).toBe(2);
  expect(stderr).toContain(`${folder} has no benchmarks of the project; npx tsx bench/against.ts`);
});

function childrenOf(pid: number): number[] {
  if (process.platform !== 'linux') return [];
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((other) => parentOf(other) === pid);
}

function parentOf(pid: number): number {
  return Number(statOf(pid)?.[1] ?? Number.NaN);
}

/** A dead one whose parent died too may stay listed until somebody looks after it. */
function isAlive(pid: number): boolean {
  const state = statOf(pid)?.[0];
  return state !== undefined && state !== 'Z';
}

/** State, parent and all that follows. */
function statOf(pid: number): string[] | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  } catch {
    return null;
  }
}
