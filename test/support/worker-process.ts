import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { inject, vi } from 'vitest';

/** A command of ours as a process of its own. */
export interface CommandProcess {
  /** What it has printed, on both streams. */
  text(): string;
  /** Waits until it has printed this. */
  said(what: RegExp): Promise<void>;
  /** SIGTERM. */
  stop(): Promise<void>;
  /** SIGKILL. */
  kill(): Promise<void>;
  /** Its exit code, when all that it said has come. */
  readonly closed: Promise<number | null>;
}

/** @param cwd its working folder. @param env of ours, beside what is none of ours. */
export function startCommand(
  args: readonly string[],
  { cwd, env = {} }: { cwd: string; env?: NodeJS.ProcessEnv },
): CommandProcess {
  const clean = Object.entries(process.env).filter(([name]) => !name.startsWith('DOWNPOUR_'));
  const child = spawn(process.execPath, [inject('program'), ...args], {
    ...{ cwd, env: { ...Object.fromEntries(clean), NO_COLOR: '1', ...env } },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => lines.push(line));
  }
  const text = () => lines.join('\n');
  const closed = once(child, 'close').then(([code]) => code as number | null);
  return {
    text,
    closed,
    async said(what) {
      await vi
        .waitUntil(() => what.test(text()), { timeout: 90_000, interval: 50 })
        .catch(() => {
          throw new Error(`it has not said ${what}:\n${text()}`);
        });
    },
    async stop() {
      child.kill('SIGTERM');
      await closed;
    },
    async kill() {
      child.kill('SIGKILL');
      await closed;
    },
  };
}
