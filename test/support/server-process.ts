import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setImmediate as turn } from 'node:timers/promises';
import { inject } from 'vitest';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';

/** `downpour serve` as a process of its own, to be killed and halted. */
export interface ServerProcess {
  readonly child: ChildProcess;
  readonly url: string;
  readonly client: RestClient;
  /** What it has printed on standard error. */
  log(): string;
  /** SIGKILL. */
  kill(): Promise<void>;
  /** Its exit code, when all that it said has come. */
  readonly closed: Promise<number | null>;
}

/** @param port 0, or one that it has again when it comes back. @returns it when it listens, and `log` has all that it said before. */
export async function startServerProcess(
  state: string,
  port: number,
  more: readonly string[] = [],
): Promise<ServerProcess> {
  const env: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
  for (const name of Object.keys(env)) if (name.startsWith('DOWNPOUR_')) delete env[name];
  const args = ['serve', '--port', String(port), '--state', state, '--no-local-socket', '--json'];
  const child = spawn(process.execPath, [inject('program'), ...args, ...more], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines: string[] = [];
  createInterface({ input: child.stderr! }).on('line', (line) => lines.push(line));
  const log = () => lines.join('\n');
  const ended = once(child, 'exit');
  // From the start: a child may have closed before anybody asks.
  const closed = once(child, 'close').then(([code]) => code as number | null);
  const kill = async () => {
    child.kill('SIGKILL');
    await ended;
  };
  for await (const line of createInterface({ input: child.stdout! })) {
    const { url } = JSON.parse(line) as { url: string };
    child.stdout!.resume();
    // What it has logged before is in the other pipe by now: one look of the event loop at its sockets reads it.
    for (let i = 0; i < 2; i++) await turn();
    return { child, url, client: createRestClient({ server: url }), log, kill, closed };
  }
  // Its last words come after the end of its output.
  await closed;
  throw new Error(`the server ended before it listened:\n${log()}`);
}
