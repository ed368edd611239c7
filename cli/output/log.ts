import { pino } from 'pino';
import { clean, cleanJsonText } from '../../shared/clean.ts';
import { errorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log, LogFacts } from '../../shared/log.ts';
import { errorLine, exitCodeOf, type LogFormat, tell } from '../options.ts';
import { colorsOf, groups } from './progress.ts';

/** What `serve`, `shard` and `work` say of what goes on, on standard error: clean, and not more than a disk can hold. */

export interface Logging {
  readonly format: LogFormat;
  readonly log: Log;
  /** Tells what was only counted so far. */
  readonly flush: () => void;
}

/** @param format undefined: what suits standard error. */
function openLog(format: LogFormat | undefined): Logging {
  const chosen = format ?? (process.stderr.isTTY ? 'pretty' : 'text');
  const write = { json: structured(), pretty, text: (line: string) => tell(line) }[chosen];
  return { format: chosen, ...bounded(write) };
}

function structured(): Log {
  const logger = pino(
    {
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (level) => ({ level }) },
      // A line ends with its own line break, which stays.
      hooks: { streamWrite: cleanJsonText },
    },
    // Written at once, so that the last words of a process that is killed are there.
    pino.destination({ dest: 2, sync: true }),
  );
  return (line, { level = 'info', ...facts } = {}) => logger[level](facts, line);
}

function pretty(line: string, { level = 'info' }: LogFacts = {}): void {
  const time = new Date().toISOString().slice(11, 19);
  const { dim, reset, yellow, red } = colorsOf(process.stderr);
  const paint = { info: reset, warn: yellow, error: red }[level];
  process.stderr.write(`${dim(time)} ${paint(clean(line))}\n`);
}

/** What is known of the lines of one kind in a window of time. */
interface LineCount {
  written: number;
  /** That came after those, and the last of them. */
  left: number;
  last: string;
  facts: LogFacts;
  /** It is all that came when there were too many kinds. */
  readonly mixed: boolean;
}

/** Errors are counted apart, so that no flood of other lines hides them. */
class Ledger {
  readonly kinds = new Map<string, LineCount>();
  lines = 0;

  get isFull(): boolean {
    return this.lines >= LIMITS.logLinesMax;
  }

  /** @returns the kind that a line is counted with: when there are too many kinds, or lines, all new ones are one. */
  of(line: string, facts: LogFacts): LineCount {
    const full = this.kinds.size >= LIMITS.logKindsMax || this.isFull;
    const name = kindOf(line, facts);
    const mixed = full && !this.kinds.has(name);
    const key = mixed ? 'others' : name;
    let kind = this.kinds.get(key);
    if (!kind) {
      kind = { written: 0, left: 0, last: '', facts: {}, mixed };
      this.kinds.set(key, kind);
    }
    return kind;
  }
}

/**
 * Writes the first lines of each kind and counts the rest: at the end of a window of time their number is told, with
 * the last of them. What it keeps in mind is bounded as well, whatever comes.
 * @param windowMs how long a window lasts.
 */
export function bounded(
  write: Log,
  windowMs: number = LIMITS.logWindowMs,
): Pick<Logging, 'log' | 'flush'> {
  let errors = new Ledger();
  let others = new Ledger();
  let since = 0;
  let timer: NodeJS.Timeout | null = null;

  function flush(): void {
    if (timer) clearTimeout(timer);
    timer = null;
    const seconds = Math.max(1, Math.round((performance.now() - since) / 1000));
    const kinds = [...errors.kinds.values(), ...others.kinds.values()];
    errors = new Ledger();
    others = new Ledger();
    for (const { left, last, facts, mixed } of kinds) {
      if (left === 1) write(last, facts);
      if (left <= 1) continue;
      const what = mixed ? 'more lines of other kinds' : 'more lines like this';
      const line = `… ${groups(left)} ${what} in the last ${seconds} s; the last one is: ${last}`;
      write(short(line), { ...facts, repeated: left });
    }
  }

  function log(given: string, { kind: named, ...facts }: LogFacts = {}): void {
    const line = short(given);
    if (!timer) {
      since = performance.now();
      timer = setTimeout(flush, windowMs).unref();
    }
    const ledger = facts.level === 'error' ? errors : others;
    const kind = ledger.of(line, named === undefined ? facts : { ...facts, kind: named });
    if (kind.written < (ledger.isFull ? 1 : LIMITS.logRepeatsMax)) {
      kind.written++;
      ledger.lines++;
      write(line, facts);
      return;
    }
    kind.left++;
    kind.last = line;
    kind.facts = facts;
  }

  return { log, flush };
}

/** Lines of one kind differ in their numbers, and in the name of the worker: workers choose theirs. */
function kindOf(line: string, { kind, run = '', worker, level = 'info' }: LogFacts): string {
  if (kind !== undefined) return `${level} ${kind}`;
  const words = line
    .slice(0, 300)
    .replace(/[\w-]+/g, (word) => (word === worker || /\d/.test(word) ? '*' : word));
  return `${level} ${run} ${words}`;
}

function short(line: string): string {
  const most = LIMITS.logLineCharactersMax;
  if (line.length <= most) return line;
  return `${line.slice(0, most - 40)} … ${groups(line.length - most + 40)} more characters`;
}

/** Runs a command whose last words are a line of its log as well, where it is read by programs. */
export async function withLog(
  format: LogFormat | undefined,
  command: (logging: Pick<Logging, 'format' | 'log'>) => Promise<void>,
): Promise<void> {
  const { flush, ...logging } = openLog(format);
  process.once('exit', flush);
  try {
    await command(logging);
  } catch (error) {
    if (logging.format !== 'json') throw error;
    logging.log(errorLine(error), { level: 'error', code: errorCode(error) });
    process.exitCode = exitCodeOf(error);
  } finally {
    process.off('exit', flush);
    flush();
  }
}
