import { PassThrough } from 'node:stream';
import { text } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import { askAt, Interrupted, unasked } from '../../cli/init/ask.ts';
import { DownpourError } from '../../shared/errors.ts';

const even = (given: string) => {
  const value = Number(given);
  if (value % 2 === 0) return value;
  throw new DownpourError('DP_USAGE', `${given} is not even`);
};

/** Types each line when a question is asked, and hears all that is written. */
function someone(...lines: readonly string[]) {
  const [input, output] = [new PassThrough(), new PassThrough()];
  const heard = new PassThrough();
  const waiting = [...lines];
  output.on('data', (bytes: Buffer) => {
    heard.write(bytes);
    if (bytes.toString().includes('?') && waiting.length > 0) input.write(waiting.shift());
  });
  return { answers: askAt(input, output), input, heard: () => text(heard.end()) };
}

describe('questions of init', () => {
  test('are asked again where the answer is wrong, with the reason', async () => {
    const { answers, heard } = someone('7\r', '8\r');
    expect(await answers.answer(undefined, 'How many?', '2', even)).toBe(8);
    answers.close();
    expect(await heard()).toContain('7 is not even');
  });

  test('take the default for an empty line, and an option for an answer', async () => {
    const { answers } = someone('\r');
    expect(await answers.answer(undefined, 'How many?', '2', even)).toBe(2);
    expect(await answers.answer('4', 'How many?', '2', even)).toBe(4);
    await expect(answers.answer('5', 'How many?', '2', even)).rejects.toThrow('5 is not even');
    answers.close();
  });

  test('end by Ctrl-C', async () => {
    const { answers } = someone('\x03');
    await expect(answers.answer(undefined, 'How many?', '2', even)).rejects.toThrow(Interrupted);
  });

  test('end with the input, and say how to answer otherwise', async () => {
    const { answers } = someone('\x04');
    const asked = answers.answer(undefined, 'How many?', '2', even);
    await expect(asked).rejects.toThrow(/input ended before .* --yes/);
    // And so does the next one.
    await expect(answers.answer(undefined, 'How many?', '2', even)).rejects.toThrow('--yes');
  });

  test('are not asked where nobody can answer: the same checks, once', async () => {
    expect(await unasked.answer(undefined, 'How many?', '2', even)).toBe(2);
    await expect(unasked.answer('5', 'How many?', '2', even)).rejects.toThrow('5 is not even');
  });
});
