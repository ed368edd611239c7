import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { pathArgument, shellCommand } from '../../shared/shell.ts';

describe('a command that is printed', () => {
  test('is read by a shell as the words that were meant, whatever they hold', () => {
    // No NUL: no argument can hold one. No lone surrogates: they are no UTF-8.
    const word = fc.string({ unit: 'grapheme' }).filter((text) => !text.includes('\0'));
    const lists = fc.sample(fc.array(word, { minLength: 1, maxLength: 8 }), { numRuns: 40 });
    lists.push(
      ['sales 2024.csv', "it's", '-x', '~/a', '=ls', '$HOME', '`id`', '!!', 'a\nb', ''],
      [],
    );
    // One shell for all of them: `count` first, then the words.
    const script = lists
      .map((words) => `printf '%s\\0' ${words.length} ${shellCommand(...words)}`)
      .join('\n');
    const { stdout, stderr } = spawnSync('sh', ['-c', script], { encoding: 'utf8' });
    expect(stderr).toBe('');
    const read = stdout.split('\0').slice(0, -1);
    expect(read).toEqual(lists.flatMap((words) => [String(words.length), ...words]));
  });

  test('stays as it is where nothing needs quotes', () => {
    expect(shellCommand('npx', 'downpour', 'train', 'a/b-1.ts', '--set', 'learningRate=0.1')).toBe(
      'npx downpour train a/b-1.ts --set learningRate=0.1',
    );
  });

  test('names a file that begins with a dash so that no command takes it for an option', () => {
    expect(pathArgument('-my data/x.ts')).toBe('./-my data/x.ts');
    expect(pathArgument('x.ts')).toBe('x.ts');
  });
});
