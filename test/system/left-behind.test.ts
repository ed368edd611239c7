import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openScratch } from '../../cli/scratch.ts';
import { checkpointFolder, writeCheckpoint } from '../../files/checkpoint.ts';
import { bundled } from '../support/bundled.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { mountSmallDisk, type SmallDisk, smallDiskMissing } from '../support/small-disk.ts';

/** What killed processes leave, and a start where there is no room. */

const PROGRAM = await bundled(join(import.meta.dirname, '..', 'fixtures', 'left-behind.ts'));
const missing = smallDiskMissing();
let folder: string;
let disk: SmallDisk | null;
let server: ServerProcess | null;
let children: ChildProcess[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-left-'));
  [disk, server, children] = [null, null, []];
});
afterEach(async () => {
  await server?.kill();
  for (const child of children) child.kill('SIGKILL');
  disk?.remove();
  rmSync(folder, { recursive: true, force: true });
});

/** In the middle of a file and with a folder of its own. @returns the folder. */
async function begun(
  state: string,
  bytes = 1_000,
): Promise<{ child: ChildProcess; scratch: string }> {
  mkdirSync(state, { recursive: true });
  const args = [PROGRAM, state, folder, String(bytes)];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  const [line] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string];
  return { child, scratch: line };
}

async function killed(child: ChildProcess): Promise<void> {
  const gone = once(child, 'exit');
  child.kill('SIGKILL');
  await gone;
}

const temporary = (path: string) =>
  readdirSync(path, { recursive: true }).filter((name) => String(name).endsWith('.tmp'));

test('the folder of a command that was killed goes with the next command, that of a live one stays', async () => {
  const state = join(folder, 'state');
  const [dead, live] = [await begun(state), await begun(state)];
  await killed(dead.child);
  const stranger = join(folder, 'downpour-join-strangr');
  mkdirSync(stranger);
  const other = join(folder, 'somebody-else');
  mkdirSync(other);
  const own = await openScratch('trained', folder);
  expect([dead.scratch, live.scratch, own.folder, stranger, other].map(existsSync)).toEqual([
    ...[false, true, true],
    // Nobody knows whose it is.
    ...[true, true],
  ]);
  await own.remove();
  expect(existsSync(own.folder)).toBe(false);
});

test('temporary files of a server that was killed go at the next start, and files of others stay', async () => {
  const state = join(folder, 'state');
  const { child } = await begun(state);
  await killed(child);
  const run = join(state, 'r');
  const checkpoints = join(run, 'checkpoints');
  mkdirSync(checkpoints, { recursive: true });
  for (const path of [
    join(run, 'run.000001.json.0123abcd.tmp'),
    join(run, 'progress.json.tmp'),
    join(checkpoints, 'step-000000001-last-0001.safetensors.0123abcd.tmp'),
  ]) {
    writeFileSync(path, 'half');
  }
  const notes = join(run, 'my-notes.tmp');
  writeFileSync(notes, 'mine');
  expect(temporary(state)).toHaveLength(5);
  server = await startServerProcess(state, 0);
  expect(temporary(state)).toEqual([join('r', 'my-notes.tmp')]);
  expect(server.log()).toContain(
    '4 temporary files (1012 bytes) of a server that was killed are removed',
  );
});

describe.skipIf(missing !== '')(`on a disk that is full${missing}`, () => {
  /** A state folder with a run of some size, left in good order. */
  async function prepared(): Promise<string> {
    disk = mountSmallDisk(3e6);
    const state = join(disk.path, 'state');
    const run = createRun({ evaluateEverySteps: 1000 });
    const worker = new VirtualWorker(run, createProblem());
    while (run.step < 2) {
      worker.pull();
      worker.push();
    }
    const values = new Float32Array(100_000);
    await writeCheckpoint(checkpointFolder(state, 'r'), {
      ...{ run: 'r', step: 2, kind: 'last', layoutHash: run.layout!.hash, now: new Date(0) },
      tensors: [...run.tensors(), { name: '@large', shape: [100_000], values }],
      state: run.state(0),
    });
    server = await startServerProcess(state, 0);
    server.child.kill('SIGTERM');
    await server.closed;
    server = null;
    return state;
  }

  test('a start says how much there is, how much it takes and what is largest; with room it goes on', async () => {
    const state = await prepared();
    const free = disk!.fill();
    const error = await startServerProcess(state, 0).catch((thrown: Error) => thrown);
    expect(String(error)).toMatch(
      /error DP_DISK: cannot write .*the disk is full.*state has \d+ bytes and \d+ files left, a start takes up to 65536 bytes and 4 files; the largest there: r \(\d{6} bytes\).*nothing is lost/s,
    );
    free();
    server = await startServerProcess(state, 0);
    expect((await server.client.run('r')).step).toBe(2);
  });

  test('what a killed server left makes room for the start by itself', async () => {
    const state = await prepared();
    const { child } = await begun(state, 400_000);
    await killed(child);
    disk!.fill();
    server = await startServerProcess(state, 0);
    expect(server.log()).toContain('1 temporary files (400000 bytes) of a server that was killed');
    expect((await server.client.run('r')).step).toBe(2);
  });
});
