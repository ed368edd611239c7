import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { checkPushLog, openPushLog } from '../../server/watch/push-log.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

let folder: string | null = null;
afterEach(() => {
  if (folder) rmSync(folder, { recursive: true });
  folder = null;
});

test('what a run applied is there, line by line, and checks', () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-'));
  const path = join(folder, 'pushes');
  const log = openPushLog(path, () => {});
  const run = createRun({ epochsMax: 1 });
  log.began(run);
  const worker = new VirtualWorker(run, createProblem());
  let seen = 0;
  worker.train(() => {
    if (run.step > seen) log.applied(run, worker.key, run.step);
    seen = run.step;
    return false;
  });
  log.close();
  const text = readFileSync(path, 'utf8');
  expect(text.split('\n').slice(0, 3)).toEqual([
    'begin 1 r 0',
    'push 1 r 1 w/1 1',
    'push 1 r 2 w/1 2',
  ]);
  expect(checkPushLog(text)).toEqual({ applied: 5, lost: 0, twice: [], steps: [] });
});

test('what a kill took back may be applied again, what a checkpoint has may not', () => {
  const first = ['begin 1 r 0', 'push 1 r 1 a/1 1', 'push 1 r 2 b/1 1', 'push 1 r 3 a/1 2'];
  const again = [...first, 'begin 2 r 2', 'push 2 r 3 a/1 2', ''].join('\n');
  expect(checkPushLog(again)).toEqual({ applied: 3, lost: 1, twice: [], steps: [] });
  const twice = [...first, 'begin 2 r 2', 'push 2 r 3 b/1 1', ''].join('\n');
  expect(checkPushLog(twice)).toMatchObject({ twice: ['r b/1 1'], steps: [] });
});

test('what a server applies that was halted while another one took over is in no history', () => {
  const first = ['begin 1 r 0', 'push 1 r 1 a/1 1', 'push 1 r 2 b/1 1'];
  const heir = ['begin 2 r 2', 'push 2 r 3 a/1 2'];
  const back = ['push 1 r 3 a/1 2', 'push 1 r 4 b/1 2'];
  const log = [...first, ...heir, ...back, 'push 2 r 4 b/1 2'];
  expect(checkPushLog(log.join('\n'))).toEqual({ applied: 4, lost: 2, twice: [], steps: [] });
});

test('where several pushes make a step it is there for each of them, and a checkpoint may have some of the next', () => {
  const first = ['begin 1 r 0', 'take 1 r 1 a/1 1', 'take 1 r 1 b/1 1', 'take 1 r 2 a/1 2'];
  const more = [...first, 'take 1 r 2 b/1 2', 'take 1 r 3 a/1 3'];
  expect(checkPushLog(more.join('\n'))).toEqual({ applied: 5, lost: 0, twice: [], steps: [] });
  const again = [...more, 'begin 2 r 1 1', 'take 2 r 2 c/1 1', 'take 2 r 3 c/1 2'];
  expect(checkPushLog(again.join('\n'))).toEqual({ applied: 5, lost: 2, twice: [], steps: [] });
  const twice = [...more, 'begin 2 r 1 1', 'take 2 r 2 a/1 2', 'take 2 r 4 a/1 3'];
  expect(checkPushLog(twice.join('\n'))).toMatchObject({ twice: ['r a/1 2'], steps: ['r 4'] });
});

test('a step that is missing, or that is there twice, is told', () => {
  const log = ['begin 1 r 0', 'push 1 r 1 a/1 1', 'push 1 r 3 a/1 2', 'push 1 r 3 a/1 3'];
  expect(checkPushLog(log.join('\n')).steps).toEqual(['r 3']);
});

test.runIf(existsSync('/dev/full'))(
  'a full disk is said once, and keeps no push from being applied',
  () => {
    const said: string[] = [];
    const log = openPushLog('/dev/full', (line) => said.push(line));
    const run = createRun({ epochsMax: 1 });
    log.began(run);
    for (let sequence = 1; sequence < 4; sequence++) log.applied(run, 'w/1', sequence);
    log.close();
    expect(said).toEqual([expect.stringContaining('DP_DISK cannot write /dev/full (ENOSPC)')]);
  },
);

test('a place where it cannot be is named', () => {
  expect(() => openPushLog('/nowhere/pushes', () => {})).toThrow('cannot open /nowhere/pushes');
});
