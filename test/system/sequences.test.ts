import { test } from 'vitest';
import { trySequences } from '../fuzz/sequences.ts';

// `npm run fuzz -- --sequences 1000` tries more.
test('no sequence of valid messages changes a run of whom nobody asked', async () => {
  await trySequences(30);
});
