import { expect, test } from 'vitest';
import { readme } from '../../cli/trained/export-readme.ts';

const field = (name: string, kind: 'int32' | 'float32', more = {}) => ({
  ...{ name, role: 'input' as const, kind, shape: [1], names: null, classes: null },
  ...{ classCount: null, inputTransform: { kind: 'none', scale: 1, mean: [], deviation: [] } },
  ...more,
});
const places = (more = {}) => ({ padding: 0, zeroIsPadding: false, ids: null, ...more });
const row = (text: string, name: string) =>
  text.split('\n').find((line) => line.startsWith(`| ${name} |`));

test('the README of an export says which ids a field takes, and where their texts are', () => {
  const text = readme({
    fields: [
      field('user', 'int32'),
      field('words', 'int32', { shape: [4], vocabulary: ['', 'cat'] }),
      field('town', 'int32'),
      field('age', 'float32'),
    ] as never,
    idPlaces: [
      places({ fields: ['user'], keys: 'keys-user.bin' }),
      places({ fields: ['words'], ids: 20, zeroIsPadding: true }),
    ] as never,
  });
  expect(row(text, 'user')).toMatch(/an id that the training has not seen counts as zeros; a neg/);
  expect(row(text, 'words')).toMatch(/from 0 to 19; 0 and negative numbers are padding/);
  expect(row(text, 'town')).toMatch(/whole numbers, which are ids/);
  expect(row(text, 'age')).toMatch(/\| float32 \|$/);
  expect(text).toContain('The ids of `words` have texts: `vocabulary` of the entry');
  expect(text).toContain('`keys-user.bin`: ids, as uint32');
  expect(text).toContain('padding has the place `padding`');
});

test('of a model with one input of ids too, and nothing of ids where there are none', () => {
  const one = { inputShape: [3], vocabulary: ['', 'cat'] };
  const ids = { idPlaces: [places({ fields: ['inputs'], ids: 20 })] as never };
  expect(readme({ ...one, ...ids })).toMatch(
    /of shape \[3\]: ids, whole numbers from 0 to 19; a negative number is padding\.\n\nThe ids have texts: `vocabulary` of/,
  );
  const plain = readme({ inputShape: [3] });
  expect(plain).toContain('An example is an array of numbers, of shape [3].\n\n## In Node.js');
  expect(plain).not.toMatch(/\bids\b|padding|vocabulary/);
});
