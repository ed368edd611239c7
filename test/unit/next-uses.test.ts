import { expect, test } from 'vitest';
import { nextUses } from '../../cli/runs/train.ts';
import { usesOf } from '../../worker/main.ts';

const text = (as: 'next' | 'padded') =>
  JSON.stringify({
    ...{ kind: 'text', tokens: 'words', lowerCase: true, size: 3, vocabulary: ['', 'a', 'b'] },
    ...{ unknown: 1, length: 4, as },
  });
const uses = (predicts: boolean, hasTopology: boolean, evaluation = false) =>
  usesOf({ predicts, hasTopology }, { batch: { change: (batch) => batch, evaluation } });

test('after a training only commands are named that take its model', () => {
  const none = { tables: [] };
  const plain = uses(true, true);
  expect(nextUses(none, { reading: text('next'), uses: plain })).toEqual({
    ...{ use: 'sample', format: 'tfjs' },
  });
  expect(nextUses(none, { reading: text('padded'), uses: plain }).use).toBe('predict');
  // Several models do not answer, in no form.
  const several = uses(false, false);
  for (const as of ['next', 'padded'] as const) {
    expect(nextUses(none, { reading: text(as), uses: several })).toEqual({
      ...{ use: null, format: 'safetensors' },
    });
  }
  // A function of variables answers here alone, and so does a model that needs its `batch`.
  for (const own of [uses(true, false), uses(true, true, true)]) {
    expect(nextUses(none, { reading: text('next'), uses: own })).toEqual({
      ...{ use: 'sample', format: 'safetensors' },
    });
  }
  const tables = [{ name: 'word' }] as never;
  expect(nextUses({ tables }, { uses: plain })).toEqual({ use: null, format: 'safetensors' });
  // A worker of an older release says less.
  expect(nextUses(none, { reading: text('next') })).toEqual({
    ...{ use: 'sample', format: 'safetensors' },
  });
  expect(nextUses(none, null)).toEqual({ use: null, format: 'safetensors' });
});
