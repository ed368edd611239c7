import { pino } from 'pino';
import { errorCode } from '../shared/errors.ts';
import type { Log, LogFacts } from '../shared/log.ts';
import { errorLine, exitCodeOf, type LogFormat, tell } from './options.ts';
import { colorsOf } from './progress.ts';

/** What `serve`, `shard` and `work` say of what goes on, on standard error. */

export interface Logging {
  readonly format: LogFormat;
  readonly log: Log;
}

/** @param format undefined: what suits standard error. */
export function openLog(format: LogFormat | undefined): Logging {
  const chosen = format ?? (process.stderr.isTTY ? 'pretty' : 'text');
  if (chosen === 'json') return { format: chosen, log: structured() };
  return { format: chosen, log: chosen === 'pretty' ? pretty : tell };
}

function structured(): Log {
  const logger = pino(
    {
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (level) => ({ level }) },
    },
    // At once: what a process said before it was killed is there.
    pino.destination({ dest: 2, sync: true }),
  );
  return (line, { level = 'info', ...facts } = {}) => logger[level](facts, line);
}

function pretty(line: string, { level = 'info' }: LogFacts = {}): void {
  const time = new Date().toISOString().slice(11, 19);
  const { dim, reset, yellow, red } = colorsOf(process.stderr);
  tell(`${dim(time)} ${{ info: reset, warn: yellow, error: red }[level](line)}`);
}

/** Runs a command whose last words are a line of its log as well, where it is read by programs. */
export async function withLog(
  format: LogFormat | undefined,
  command: (logging: Logging) => Promise<void>,
): Promise<void> {
  const logging = openLog(format);
  try {
    await command(logging);
  } catch (error) {
    if (logging.format !== 'json') throw error;
    logging.log(errorLine(error), { level: 'error', code: errorCode(error) });
    process.exitCode = exitCodeOf(error);
  }
}
