import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { hashExperiment } from '../../worker/experiment.ts';

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');

test('examples/python computes the version of mnist-mlp.ts that there is', async () => {
  const source = readFileSync(join(EXAMPLES, 'python/mlp.py'), 'utf8');
  const [, stated] = /^EXPERIMENT_HASH = "(\w+)"$/m.exec(source)!;
  const hash = await hashExperiment(join(EXAMPLES, 'mnist-mlp.ts'));
  expect(
    stated,
    'mnist-mlp.ts has changed: see whether class Model of examples/python/mlp.py must change too, then put the new hash there',
  ).toBe(hash);
});
