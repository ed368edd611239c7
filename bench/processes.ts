import { type ChildProcess, fork, type StdioOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { OWN_COMMAND } from '../shared/own-files.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';

/** Processes and temporary folders of a benchmark: none outlives it, however it ends. */

export const ROOT = join(import.meta.dirname, '..');
/** The command's program. A test has the built one here, which starts in a third of the time. */
export const PROGRAM = process.env.DOWNPOUR_BENCH_PROGRAM ?? fileURLToPath(OWN_COMMAND);
/** For this machine's own processes alone: no Redis, no token. */
export const ENVIRONMENT = { ...process.env, DOWNPOUR_REDIS_URL: '', DOWNPOUR_TOKEN: '' };

const children = new Set<ChildProcess>();
const folders = new Set<string>();
let watched = false;

function watch(): void {
  if (watched) return;
  watched = true;
  process.once('exit', () => {
    for (const child of children) child.kill('SIGKILL');
    for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  });
}

/** Ends with this process at the latest. */
export function keep(child: ChildProcess): ChildProcess {
  watch();
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/** A new empty folder, removed by `remove` or when this process ends. */
export function temporaryFolder(): { readonly path: string; remove(): void } {
  watch();
  const path = mkdtempSync(join(tmpdir(), 'downpour-bench-'));
  folders.add(path);
  shareCompiled(path);
  return {
    path,
    remove() {
      rmSync(path, { recursive: true, force: true });
      folders.delete(path);
    },
  };
}

/**
 * Lets programs whose temporary files lie in a folder find what tsx has compiled before, in the folder that it chooses in
 * `tmpdir()`: otherwise each server compiles all of its sources.
 */
export function shareCompiled(folder: string): void {
  const name = `tsx-${process.geteuid?.() ?? userInfo().username}`;
  mkdirSync(join(tmpdir(), name), { recursive: true });
  symlinkSync(join(tmpdir(), name), join(folder, name), 'junction');
}

/** Starts `downpour …`. @param folder for its temporary files; its unix socket goes with it although it is killed. */
export function runProgram(folder: string, args: readonly string[]): ChildProcess {
  const env = { ...ENVIRONMENT, TMPDIR: folder };
  const stdio = ['ignore', 'pipe', 'pipe'] satisfies StdioOptions;
  return keep(spawn(process.execPath, [PROGRAM, ...args], { env, stdio }));
}

// The server.

export interface ServerProcess {
  readonly pid: number;
  readonly url: string;
  readonly client: RestClient;
  close(): Promise<void>;
}

/** The tokens of a server: limits count for each of them by itself. */
export const TOKENS = {
  ...{ operator: 'bench-operator', observer: 'bench-observer' },
  ...{ honest: 'bench-honest', hostile: 'bench-hostile' },
} as const;

/**
 * Starts `downpour serve` as a user would, on a free port. @param state its folder; default: one of its own, which
 * goes with it.
 */
export async function startServer({
  shards = 1,
  state,
  tokens = false,
}: {
  readonly shards?: number;
  readonly state?: string;
  /** It asks for `TOKENS`. */
  readonly tokens?: boolean;
} = {}): Promise<ServerProcess> {
  const folder = temporaryFolder();
  const args = ['serve', '--port', '0', '--state', state ?? join(folder.path, 'state'), '--json'];
  if (shards > 1) args.push('--shards', String(shards));
  if (tokens) {
    const file = join(folder.path, 'tokens');
    const { operator, observer, honest, hostile } = TOKENS;
    const roles = [
      ['operator', operator],
      ['observer', observer],
      ['worker', honest],
      ['worker', hostile],
    ];
    writeFileSync(file, roles.map((words) => words.join(' ')).join('\n'));
    args.push('--tokens', file);
  }
  const child = runProgram(folder.path, args);
  const close = async () => {
    await end(child);
    folder.remove();
  };
  try {
    const url = await listening(child);
    // The answer of a server that copies 100 MB at that moment takes longer than usual.
    const client = createRestClient({
      ...{ server: url, timeoutMs: 60_000 },
      ...(tokens ? { token: TOKENS.operator } : {}),
    });
    return { pid: child.pid!, url, client, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** User and system time of a process, ms, to 10 ms; NaN where there is no /proc. */
export async function cpuMs(pid: number): Promise<number> {
  try {
    // Fields 14 and 15, in hundredths of a second; the name before them may hold anything.
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * 10;
  } catch {
    return Number.NaN;
  }
}

// Processes that are told what to do by messages.

export interface Told {
  /** Its answer to a message. @throws what it threw. */
  ask<A>(message: object): Promise<A>;
  close(): Promise<void>;
}

/** Runs a module of ours in a process of its own; it must call `obey`. */
export function startTold(module: string, args: readonly string[] = []): Told {
  const child = keep(
    fork(module, args, {
      serialization: 'advanced',
      env: ENVIRONMENT,
      execArgv: ['--import', 'tsx'],
      cwd: ROOT,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    }),
  );
  let next = 0;
  const waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  child.on('message', ({ id, value, error }: Answer) => {
    const question = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) question?.resolve(value);
    else question?.reject(new Error(error));
  });
  child.once('exit', (code, signal) => {
    for (const { reject } of waiting.values()) {
      reject(new Error(`a process of the benchmark ended with ${code ?? signal}`));
    }
    waiting.clear();
  });
  return {
    ask: <A>(message: object) =>
      new Promise<A>((resolve, reject) => {
        const id = next++;
        waiting.set(id, { resolve: resolve as (value: unknown) => void, reject });
        child.send({ id, message });
      }),
    close: () => end(child),
  };
}

interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: string;
}

/** In a told process: answers each message, and ends when its parent is gone. */
export function obey<M>(answer: (message: M) => Promise<unknown>): void {
  process.on('message', ({ id, message }: { id: number; message: M }) => {
    answer(message).then(
      (value) => process.send!({ id, value }),
      (error: unknown) =>
        process.send!({ id, error: error instanceof Error ? error.stack : error }),
    );
  });
  process.once('disconnect', () => process.exit());
  // Ctrl-C reaches the whole group: the parent decides.
  process.on('SIGINT', () => {});
}

/** Where `downpour serve --json` listens. @throws Error when it ends before, with its last words. */
export async function listening(child: ChildProcess): Promise<string> {
  const said: string[] = [];
  createInterface({ input: child.stderr! }).on('line', (line) => {
    if (said.push(line) > 20) said.shift();
  });
  for await (const line of createInterface({ input: child.stdout! })) {
    child.stdout!.resume();
    return (JSON.parse(line) as { url: string }).url;
  }
  throw new Error(`the server ended before it listened: ${said.join('\n')}`);
}

/** Looks again and again, also after a look that failed, until there is something. */
export async function until<T>(look: () => Promise<T | null | false>, pauseMs: number): Promise<T> {
  for (;;) {
    const seen = await look().catch(() => null);
    if (seen) return seen;
    await wait(pauseMs);
  }
}
