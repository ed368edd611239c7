import { spawn } from 'node:child_process';

/** Programs that are run to their end, each with a limit. */

export interface Ended {
  readonly code: number | null;
  /** Standard output and error as they came, the last of it. */
  readonly text: string;
  readonly stdout: string;
}

export interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  /** After it the program is killed, with all that it started. */
  readonly timeoutMs?: number;
  readonly input?: string;
  /** Shows what it says, too. */
  readonly show?: boolean;
  /** Gets what it says, as it comes. */
  readonly onText?: (text: string) => void;
}

const CHARS_KEPT = 200_000;
const TIMEOUT_MS = 60_000;

/** What became of a program; one that cannot be started has the code null and the reason as its text. */
export function attempt(words: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const [program, ...args] = words;
  const { timeoutMs = TIMEOUT_MS } = options;
  const child = spawn(program!, args, {
    cwd: options.cwd,
    env: options.env ?? process.env,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    // A group of its own, that ends as a whole.
    detached: true,
  });
  // One that ends before it has read all says so by its code.
  child.stdin?.on('error', () => {}).end(options.input);
  let text = '';
  let stdout = '';
  child.stdout!.setEncoding('utf8').on('data', (chunk: string) => {
    stdout = (stdout + chunk).slice(-CHARS_KEPT);
    text = (text + chunk).slice(-CHARS_KEPT);
    if (options.show) process.stdout.write(chunk);
    options.onText?.(chunk);
  });
  child.stderr!.setEncoding('utf8').on('data', (chunk: string) => {
    text = (text + chunk).slice(-CHARS_KEPT);
    if (options.show) process.stderr.write(chunk);
    options.onText?.(chunk);
  });
  const end = () => {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  };
  const timer = setTimeout(() => {
    text += `\nit took longer than ${timeoutMs / 1000} s`;
    end();
  }, timeoutMs);
  running.add(end);
  return new Promise((resolve) => {
    const finish = (code: number | null) => {
      clearTimeout(timer);
      running.delete(end);
      resolve({ code, text, stdout });
    };
    child.on('error', (error) => {
      text += error.message;
      finish(null);
    });
    child.on('close', finish);
  });
}

/** What a program printed. @throws Error with the last lines of all that it said, unless it ended well. */
export async function run(words: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, text, stdout } = await attempt(words, options);
  if (code === 0) return stdout;
  const tail = text.trim().split('\n').slice(-40).join('\n');
  throw new Error(`${words.join(' ')}: ended with ${code}\n${tail}`);
}

const running = new Set<() => void>();

/** Ends what is still running; for when we are ended ourselves. */
export function endAll(): void {
  for (const end of running) end();
}

/**
 * Ctrl-C and its like: what is to be done before we end, once. They come more than once, from the terminal and from npm,
 * which passes them on.
 */
export function whenInterrupted(end: () => Promise<void>): void {
  let isEnding = false;
  const onSignal = () => {
    if (isEnding) return;
    isEnding = true;
    endAll();
    end()
      .catch((error: Error) => console.error(error.message))
      .finally(() => process.exit(130));
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, onSignal);
}
