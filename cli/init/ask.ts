import { createInterface } from 'node:readline/promises';
import type { Readable, Writable } from 'node:stream';
import { DownpourError, errorText } from '../../shared/errors.ts';

/** Questions to somebody at a terminal. */

/** @returns what somebody answers; nothing said: `fallback`. */
type Question = (question: string, fallback: string) => Promise<string>;

export interface Interview {
  /**
   * A value that is given by an option, else asked for, else the default.
   * @param read makes the value of its text and throws a DownpourError for a wrong one: somebody who was
   *   asked reads it and is asked again
   */
  answer<T>(
    given: string | undefined,
    question: string,
    fallback: string,
    read: (text: string) => T | Promise<T>,
  ): Promise<T>;
  readonly isAsking: boolean;
  close(): void;
}

/** Somebody pressed Ctrl-C at a question. */
export class Interrupted extends Error {}

/** Takes the options and the defaults, asks nothing. */
export const unasked: Interview = {
  isAsking: false,
  answer: async (given, _question, fallback, read) => read(given ?? fallback),
  close() {},
};

/** @param terminal whether lines can be edited */
export function askAt(input: Readable, output: Writable, terminal = true): Interview {
  const lines = createInterface({ input, output, terminal });
  const over = new AbortController();
  lines.on('SIGINT', () => {
    over.abort(new Interrupted());
    lines.close();
  });
  lines.on('close', () => over.abort(ended()));
  const question: Question = async (text, fallback) => {
    over.signal.throwIfAborted();
    try {
      const given = await lines.question(`${text} [${fallback}] `, { signal: over.signal });
      return given.trim() === '' ? fallback : given.trim();
    } catch (error) {
      output.write('\n');
      throw over.signal.aborted ? over.signal.reason : error;
    }
  };
  return {
    isAsking: true,
    async answer(given, text, fallback, read) {
      if (given !== undefined) return read(given);
      for (;;) {
        try {
          return await read(await question(text, fallback));
        } catch (error) {
          if (!(error instanceof DownpourError) || over.signal.aborted) throw error;
          output.write(`${errorText(error)}\n`);
        }
      }
    },
    close: () => lines.close(),
  };
}

const ended = () =>
  new DownpourError(
    'DP_USAGE',
    'the input ended before all questions were answered: give the answers as options (--data, --target, --task, --model), or accept the defaults with --yes',
  );
