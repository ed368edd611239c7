import { type Command, InvalidArgumentError, Option } from 'commander';
import { DownpourError } from '../../shared/errors.ts';
import type { NumberForm } from '../../worker/data/tables/cells.ts';
import { isEncoding } from '../../worker/data/tables/strict-text.ts';
import type { TableOptions } from '../../worker/data/tables/table-rows.ts';

/** How a CSV file is written, as options of commands that read one. */

export interface GivenTableOptions
  extends NumberForm,
    Pick<TableOptions, 'delimiter' | 'encoding' | 'comment'> {}

export function addTableOptions(command: Command): Command {
  return command
    .option(
      '--delimiter <character>',
      'separator of the cells in a CSV file, \\t for a tab (default: detected)',
      oneCharacter,
    )
    .addOption(
      new Option(
        '--decimal <mark>',
        'decimal mark in a CSV file, such as the comma in 1,5',
      ).choices(['.', ',']),
    )
    .option(
      '--thousands <mark>',
      'thousands separator in a CSV file, such as the comma in 1,234',
      oneCharacter,
    )
    .option(
      '--encoding <name>',
      'encoding of a CSV file, such as windows-1252 (default: UTF-8)',
      knownEncoding,
    )
    .option('--comment <text>', 'skip lines of a CSV file that start with this text');
}

/** Those that were given. */
export function tableOptionsOf(options: GivenTableOptions): GivenTableOptions {
  const { delimiter, encoding, decimal, thousands, comment } = options;
  return {
    ...(delimiter === undefined ? {} : { delimiter }),
    ...(encoding === undefined ? {} : { encoding }),
    ...(decimal === undefined ? {} : { decimal }),
    ...(thousands === undefined ? {} : { thousands }),
    ...(comment === undefined ? {} : { comment }),
  };
}

/** Waits for a reader. What is an option in a program is one of the command in its error. */
export async function withOptions<T>(reading: Promise<T>): Promise<T> {
  try {
    return await reading;
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    const option = /`(delimiter|encoding|decimal|thousands|comment)(?:: ([^`]+))?`/g;
    const text = error.message.replace(option, (_, name: string, value?: string) =>
      value === undefined ? `--${name}` : `--${name} ${value}`,
    );
    throw new DownpourError(error.code, text, { cause: error });
  }
}

function oneCharacter(text: string): string {
  const character = text === '\\t' ? '\t' : text;
  if (character.length !== 1 || /["\r\n]/.test(character)) {
    throw new InvalidArgumentError('It must be one character, or \\t.');
  }
  return character;
}

function knownEncoding(text: string): string {
  if (isEncoding(text)) return text;
  throw new InvalidArgumentError('It must be a name such as utf-8, windows-1252, shift_jis.');
}
