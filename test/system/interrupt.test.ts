import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, inject, test } from 'vitest';
import { checkpointsIn, homeOf, interrupt, LONG_COMMANDS } from '../support/long-commands.ts';

/**
 * Ctrl-C ends each command by itself. How soon is measured by `npx tsx bench/interrupt.ts`, since timings decide no test; a command
 * that does not end in a minute is killed here, and has failed.
 */
const LIMIT_MS = 90_000;

const folder = mkdtempSync(join(tmpdir(), 'downpour-interrupt-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const commands = Object.entries(LONG_COMMANDS);
const first = commands.filter(([, { uses }]) => !uses);
const others = commands.filter(([, { uses }]) => uses);

// One after the other: those that use the run of `train` come when it is there.
describe.each([
  ['those that need nothing', first],
  ['those that use a run', others],
])('Ctrl-C ends %s:', (_, some) => {
  test.concurrent.each(some)(
    '%s',
    async (name, command) => {
      const home = homeOf(folder, name);
      const ended = await interrupt(inject('program'), command, home, LIMIT_MS);
      expect(ended.code, ended.text).toBe(command.code);
      expect(ended.left).toBe(0);
      if (command.says) expect(ended.text).toMatch(command.says);
      // The end of its workers is no crash that somebody should know of.
      expect(ended.text).not.toContain('starting it again');
      const checkpoints = checkpointsIn(home);
      if (command.trains) expect(Object.keys(checkpoints).length, ended.text).toBeGreaterThan(0);
      for (const [run, has] of Object.entries(checkpoints)) expect(has, run).toBe(true);
    },
    2 * LIMIT_MS,
  );
});
