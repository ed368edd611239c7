import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { homeOf, interrupt, LONG_COMMANDS } from '../test/support/long-commands.ts';
import { formatTable } from './report.ts';

/**
 * `npx tsx bench/interrupt.ts [command …]`: how long each command that runs for long takes to end after Ctrl-C, one after the other.
 * It runs what bin/downpour.js runs: the sources in a clone.
 */

const PROGRAM = join(import.meta.dirname, '..', 'bin/downpour.js');
const LIMIT_MS = 120_000;

const wanted = process.argv.slice(2);
const isWanted = (command: string) => wanted.length === 0 || wanted.includes(command);
const folder = mkdtempSync(join(tmpdir(), 'downpour-interrupt-'));
try {
  const rows: { command: string; seconds: string }[] = [];
  for (const [command, each] of Object.entries(LONG_COMMANDS)) {
    const isNeeded = Object.values(LONG_COMMANDS).some(
      ({ uses }, i) => uses === command && isWanted(Object.keys(LONG_COMMANDS)[i]!),
    );
    if (!isWanted(command) && !isNeeded) continue;
    const { code, seconds, text } = await interrupt(
      PROGRAM,
      each,
      homeOf(folder, command),
      LIMIT_MS,
    );
    if (code !== each.code) throw new Error(`${command} ended with ${code}:\n${text}`);
    if (each.works !== 'ends') rows.push({ command, seconds: seconds.toFixed(2) });
  }
  console.log(
    formatTable({
      columns: [
        { key: 'command', title: 'command' },
        { key: 'seconds', title: 's from Ctrl-C to the end' },
      ],
      rows,
    }),
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
