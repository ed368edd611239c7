import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, inject, test } from 'vitest';

/** `downpour simulate` and `downpour paper` as processes. */

const ROOT = join(import.meta.dirname, '../..');
const folders: string[] = [];
afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true, force: true });
});

async function scratch(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-simulate-'));
  folders.push(folder);
  return folder;
}

function start(args: readonly string[]) {
  const child = spawn(process.execPath, [inject('program'), ...args], { cwd: ROOT });
  let out = '';
  const heard = new Map<string, () => void>();
  const hear = (chunk: Buffer) => {
    out += chunk.toString();
    for (const [text, done] of heard) if (out.includes(text)) done();
  };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  const ended = new Promise<number | null>((done) => child.on('close', done));
  const says = (text: string) => new Promise<void>((done) => heard.set(text, done));
  return { child, ended, says, output: () => out };
}

test('an experiment is simulated with real gradients, and table and plots are written', async () => {
  const folder = await scratch();
  const { ended, output } = start([
    ...['simulate', 'test/fixtures/few-digits.ts', '--workers', '1,4', '--epochs', '1'],
    ...['--out', folder, '--json'],
  ]);
  expect(await ended, output()).toBe(0);
  const report = JSON.parse(await readFile(join(folder, 'report.json'), 'utf8'));
  expect(report.rows.map(({ workers }: { workers: number }) => workers)).toEqual([1, 4]);
  expect(report.rows[1].staleness.mean).toBeGreaterThan(1.5);
  expect(await readFile(join(folder, 'staleness.svg'), 'utf8')).toContain('<svg');
});

test('Ctrl-C ends a result of a paper at once, and nothing is written', async () => {
  const folder = join(await scratch(), 'out');
  const { child, ended, says, output } = start([
    'paper',
    'momentum',
    '--seeds',
    '500',
    '--out',
    folder,
  ]);
  await says('exponential:100');
  child.kill('SIGINT');
  expect(await ended, output()).toBe(130);
  expect(output()).toContain('stopped; nothing was written');
  await expect(readFile(join(folder, 'report.json'))).rejects.toThrow('ENOENT');
});
