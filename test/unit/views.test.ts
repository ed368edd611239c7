import { expect, test } from 'vitest';
import { answerLines, captionOf } from '../../shared/answer-lines.ts';
import type { Answers } from '../../shared/answers.ts';
import { inputNamesOf, type TableReading } from '../../shared/reading.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { viewerOf } from '../../worker/data/views.ts';

const READING: TableReading = {
  ...{ kind: 'table', targets: ['price (€)'] },
  columns: [
    { name: 'weight (kg)', as: 'number', gap: true },
    { name: 'origin', as: 'category', names: ['Europe', 'Japan'], gap: false },
    { name: 'built', as: 'date', time: false, gap: false },
    { name: 'remarks', as: 'hashed', size: 4, gap: false },
  ],
};

function tableOf(rows: readonly (readonly number[])[], names = inputNamesOf(READING)) {
  const shape = [rows.length, rows[0]!.length];
  const inputs = { values: Float32Array.from(rows.flat()), shape, names, reading: READING };
  const targets = { values: Float32Array.from(rows, () => 1), shape: [rows.length, 1] };
  const part = { count: rows.length, inputs, targets };
  return { train: part, validation: part, inputNames: names } as unknown as PreparedData;
}

test('a row of a table is shown by its columns, as the file has them', () => {
  const show = viewerOf(
    tableOf([
      [1450.5, 0, 0, 1, 2021, 3, 7, 0, 0, 2, 1, 0],
      [0, 1, 0, 0, 1999, 12, 24, 5, 0, 0, 0, 0],
    ]),
    'validation',
  );
  expect(show(0)).toEqual({
    kind: 'text',
    text: 'weight (kg): 1451\norigin: Japan\nbuilt: 2021-03-07\nremarks: text of 2 words',
  });
  expect(show(1)).toEqual({
    kind: 'text',
    text: 'weight (kg): –\norigin: other\nbuilt: 1999-12-24\nremarks: text of 0 words',
  });
});

test('inputs that are not as they were read have the names that they have, or none', () => {
  const names = ['a', 'b'];
  expect(viewerOf(tableOf([[1, 2]], names), 'train')(0)).toMatchObject({ text: 'a: 1\nb: 2' });
  const nameless = { ...tableOf([[1, 2]], names), inputNames: null };
  expect(viewerOf(nameless, 'train')(0)).toMatchObject({ text: '1 2' });
  const wide = Array.from({ length: 30 }, (_, i) => `n${i}`);
  const { text } = viewerOf(tableOf([wide.map((_, i) => i)], wide), 'train')(0) as { text: string };
  expect(text.split('\n')).toHaveLength(13);
  expect(text).toContain('and 18 more');
});

const number = (value: number | undefined) => String(value);

test('answers have the names of classes, and numbers those of their targets', () => {
  const classes: Answers = {
    ...{ kind: 'classes', count: 2, width: 2, perExample: 1 },
    ...{ outputs: Float32Array.from([0, 9, 9, 0]), truths: Int32Array.from([1, 1]) },
    losses: Float64Array.from([0, 9]),
  };
  const rows = Int32Array.from([4, 7]);
  const named = answerLines(classes, rows, { classes: ['cat', 'dog'] }, number);
  expect(named.map(({ row, truth, answer, wrong }) => [row, truth, answer, wrong])).toEqual([
    [4, 'dog', 'dog', false],
    [7, 'dog', 'cat', true],
  ]);
  expect(captionOf(named[1]!, number, 'validation 7')).toEqual([
    ...['is dog, said cat', '100 % sure, loss 9', 'validation 7'],
  ]);
  // Names of something else.
  const three = answerLines(classes, rows, { classes: ['a', 'b', 'c'] }, number);
  expect(three[0]!.truth).toBe('1');
  const numbers: Answers = {
    ...{ kind: 'numbers', count: 1, width: 2, perExample: 1 },
    ...{ outputs: Float32Array.from([20, 3]), truths: Float32Array.from([21, 2]) },
    losses: Float64Array.from([1]),
  };
  const [line] = answerLines(numbers, rows, { targetNames: ['mpg', 'price (€)'] }, number);
  expect(line).toMatchObject({ truth: 'mpg 21, price (€) 2', answer: 'mpg 20, price (€) 3' });
});
