import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { until as untilTrue } from './until.ts';

const LINES_SHOWN = 12;

/** A process that goes on until it is stopped, with its log in a file. */
export interface Program {
  readonly hasEnded: boolean;
  /** @throws Error with the end of its log when it ends, or takes too long. */
  until(what: string, look: () => Promise<boolean>): Promise<void>;
  stop(): Promise<void>;
}

export interface ProgramOptions {
  /** Where it works and its log lies. */
  readonly folder: string;
  readonly name: string;
  readonly file: string;
  readonly args: readonly string[];
  /** How long it may take until what is waited for, on a slow, busy machine. */
  readonly startMs?: number;
  /** How long it may take to end by itself. */
  readonly stopMs?: number;
  /** After it was killed because it did not end. */
  readonly onKilled?: () => void;
}

export function startProgram(options: ProgramOptions): Program {
  const { folder, name, file, args, startMs = 120_000, stopMs = 20_000, onKilled } = options;
  const log = join(folder, `${name}.log`);
  const output = openSync(log, 'a');
  // Ctrl-C is for us to pass on.
  const child: ChildProcess = spawn(file, args, {
    cwd: folder,
    stdio: ['ignore', output, output],
    detached: true,
  });
  closeSync(output);
  let ended = '';
  const end = new Promise<void>((done) => {
    child.on('error', (error) => {
      ended = error.message;
      done();
    });
    child.on('close', (code, signal) => {
      ended ||= `it ended with ${code ?? signal}`;
      done();
    });
  });
  const tail = () => readFileSync(log, 'utf8').trim().split('\n').slice(-LINES_SHOWN).join('\n');
  return {
    get hasEnded() {
      return ended !== '';
    },
    async until(what, look) {
      const answered = await untilTrue(
        `${name} ${what}`,
        async () => ended !== '' || (await look()),
        { withinMs: startMs, everyMs: 100, logs: tail },
      );
      if (answered && ended === '') return;
      throw new Error(`${name}: waited until it ${what}: ${ended}\n${tail()}`);
    },
    async stop() {
      if (ended !== '') return;
      child.kill('SIGTERM');
      const stuck = setTimeout(() => {
        child.kill('SIGKILL');
        onKilled?.();
      }, stopMs);
      await end;
      clearTimeout(stuck);
    },
  };
}
