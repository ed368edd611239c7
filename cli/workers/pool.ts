import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { DownpourError, ERRORS, type ErrorCode, isLasting } from '../../shared/errors.ts';
import { OWN_COMMAND } from '../../shared/own-files.ts';
import { Said } from '../../shared/said.ts';

/** Worker processes on this machine, started again when they crash. */

const PROGRAM = fileURLToPath(OWN_COMMAND);

/** Pauses before a crashed worker is started again: doubled from the first to the last. */
const BACKOFF_MS = { first: 1_000, last: 30_000 } as const;
/** A worker that lived so long did not crash from the start: its count of crashes begins anew. */
const STEADY_MS = 60_000;
/** Crashes in a row after which a worker is given up. */
const CRASHES_MAX = 5;
/** Lines that Node writes around an error that nobody caught, and empty ones: the error says more. */
const ABOUT_CRASH = /^(\s*|\s+at .*|\s*\^+|Node\.js v[\d.]+)$/;
/** See `leaveMs`. */
const LEAVE_MS = 1_000;

/** What a worker process says to the process that started it. */
export interface WorkerFailure {
  readonly code: string;
  readonly message: string;
}

/** What the user should know, from a worker process to the process that started it. */
export interface WorkerNote {
  /** Up to the first colon is what it is about: said once for all workers, whose timings differ. */
  readonly note: string;
}

export interface PoolOptions {
  readonly names: readonly string[];
  /** Arguments of `downpour work`, without --name. */
  readonly args: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  /** Something that the user should know. */
  readonly note: (line: string) => void;
  /** What workers print. */
  readonly log: (line: string) => void;
  /** Whether a worker that ended in good order had a reason to. */
  readonly isOver: () => Promise<boolean>;
  /** Instead of bin/downpour.js. */
  readonly program?: string;
  readonly backoffMs?: { readonly first: number; readonly last: number };
  /** How long workers may take to hand back their leases. Default: a second. */
  readonly leaveMs?: number;
}

export interface Pool {
  /** Names of its workers. Absent: nobody says what happens to them but the server. */
  readonly names?: readonly string[];
  /** Whether a worker has said which engine computes, and why. Absent: workers say nothing of it. */
  readonly hasNamedEngine?: () => boolean;
  /** Resolves with the last failure once every worker has been given up; else never. */
  readonly failed: Promise<DownpourError>;
  /** Process numbers of the workers that live. */
  pids(): number[];
  /** Resolves when all workers have ended by themselves, because the run has ended. */
  readonly ended: Promise<void>;
  /** Asks all to hand back their leases and end; ends those that do not in time. */
  stop(): Promise<void>;
}

export function startPool(options: PoolOptions): Pool {
  const stopping = new AbortController();
  const living = new Set<ChildProcess>();
  const noted = new Set<string>();
  const failures = new Said();
  const noteOnce = (line: string) => {
    const [about] = line.split(':', 1);
    if (!noted.has(about!)) options.note(line);
    noted.add(about!);
  };
  const killAll = () => {
    for (const child of living) child.kill('SIGKILL');
  };
  process.on('exit', killAll);

  const all = options.names.map((name) =>
    keepRunning(name, options, { living, failures, noteOnce }, stopping.signal),
  );
  const ended = Promise.all(all).then(() => {});
  const failed = new Promise<DownpourError>((resolve) => {
    void Promise.all(all).then((failures) => {
      const last = failures.findLast((failure) => failure !== null);
      if (last && failures.every((failure) => failure !== null)) resolve(last);
    });
  });
  return {
    names: options.names,
    hasNamedEngine: () => [...noted].some((about) => about.startsWith('engine ')),
    failed,
    ended,
    pids: () => [...living].flatMap((child) => child.pid ?? []),
    async stop() {
      stopping.abort();
      for (const child of living) child.kill('SIGTERM');
      const timer = setTimeout(killAll, options.leaveMs ?? LEAVE_MS);
      await ended;
      clearTimeout(timer);
      process.off('exit', killAll);
    },
  };
}

interface PoolState {
  readonly living: Set<ChildProcess>;
  /** Why workers ended, as was noted: what ends one ends the others as well, each time. */
  readonly failures: Said;
  readonly noteOnce: (line: string) => void;
}

/** Runs one worker until the run has ended (null) or it is given up (why). */
async function keepRunning(
  name: string,
  options: PoolOptions,
  pool: PoolState,
  signal: AbortSignal,
): Promise<DownpourError | null> {
  const backoff = options.backoffMs ?? BACKOFF_MS;
  let crashes = 0;
  while (!signal.aborted) {
    const started = performance.now();
    const end = await runOnce(name, options, pool);
    // The terminal's Ctrl-C also ends a worker that has only just begun.
    const isMeant = end.failure === null || end.interrupted;
    if (signal.aborted || (isMeant && (await options.isOver()))) return null;
    if (performance.now() - started > STEADY_MS) crashes = 0;
    crashes++;
    const { code, message } = end.failure ?? {
      code: 'DP_INTERNAL',
      message: 'ended although its run continues',
    };
    const error = new DownpourError(
      code in ERRORS ? (code as ErrorCode) : 'DP_INTERNAL',
      end.said ? message : `worker ${name} ${message}`,
    );
    if (end.said && isLasting(code)) {
      const why = `${code}: ${message}`;
      if (pool.failures.isNew(why)) options.note(`${name} cannot work: ${why}`);
      return error;
    }
    if (crashes >= CRASHES_MAX) {
      options.note(`${name} is given up after ${crashes} crashes in a row`);
      return error;
    }
    const pauseMs = Math.min(backoff.last, backoff.first * 2 ** (crashes - 1));
    if (pool.failures.isNew(message)) {
      options.note(`${name} ${message}; starting it again in ${pauseMs / 1000} s`);
    }
    await wait(pauseMs, undefined, { signal }).catch(() => {});
  }
  return null;
}

/** One life of a worker: its failure, null when it ended in good order, whether it said so, and whether SIGINT ended it. */
function runOnce(
  name: string,
  options: PoolOptions,
  { living, noteOnce }: PoolState,
): Promise<{ failure: WorkerFailure | null; said: boolean; interrupted?: boolean }> {
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      [options.program ?? PROGRAM, 'work', ...options.args, '--name', name],
      {
        // The fourth channel ends with this process, however it dies; the worker then leaves too.
        stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
        env: options.env,
      },
    );
    living.add(child);
    let said: WorkerFailure | null = null;
    let lastLine = '';
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream! }).on('line', (line) => {
        if (!ABOUT_CRASH.test(line)) lastLine = line.trim();
        options.log(`${name}: ${line}`);
      });
    }
    child.on('message', (message) => {
      const { code, message: text, note } = message as Partial<WorkerFailure & WorkerNote>;
      if (typeof note === 'string') noteOnce(note);
      if (typeof code === 'string' && typeof text === 'string') said = { code, message: text };
    });
    child.on('error', (error) => {
      said ??= { code: 'DP_INTERNAL', message: error.message };
    });
    child.on('close', (code, signal) => {
      living.delete(child);
      if (code === 0) return resolve({ failure: null, said: false });
      if (said) return resolve({ failure: said, said: true });
      const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
      const last = lastLine === '' || signal === 'SIGKILL' ? '' : `; it said: ${lastLine}`;
      const failure = { code: 'DP_INTERNAL', message: how + last };
      resolve({ failure, said: false, interrupted: signal === 'SIGINT' });
    });
  });
}
