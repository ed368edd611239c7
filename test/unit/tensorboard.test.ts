import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { TensorBoard } from '../../server/watch/tensorboard.ts';
import { createRun } from '../support/regression.ts';

test('a folder that cannot be written keeps the event files of no other run from being written', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-board-'));
  try {
    const lines: string[] = [];
    let now = 0;
    const board = new TensorBoard({ folder, now: () => now, log: (line) => lines.push(line) });
    const runs = ['a', 'b', 'c'].map((id) => createRun({}, id));
    writeFileSync(join(folder, 'a'), 'a file where a folder should be');
    await board.close(runs);
    expect(['b', 'c'].map((id) => readdirSync(join(folder, id)).length)).toEqual([1, 1]);
    expect(lines).toEqual([
      expect.stringMatching(/^the event files in .* are not written for 1 runs/),
    ]);
    rmSync(join(folder, 'a'));
    mkdirSync(join(folder, 'a'));
    now = 10_000;
    await board.close(runs);
    expect(readdirSync(join(folder, 'a'))).toHaveLength(1);
    expect(lines.at(-1)).toMatch(/are whole again$/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test('a run that was removed does not keep its memory', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-board-'));
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  try {
    const board = new TensorBoard({ folder, now: () => 0, log: () => {} });
    const write = async () => {
      const run = createRun({}, 'removed');
      await board.close([run]);
      return new WeakRef(run);
    };
    const removed = await write();
    const stays = createRun({}, 'stays');
    await board.close([stays]);
    await turn();
    collect();
    expect(removed.deref()).toBeUndefined();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
