import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { train } from '../library/index.ts';
import { type DataPackage, fetchedPackage } from './packages.ts';

/**
 * Examples of sequences on real data that packages carry inside themselves; the packages are fetched into
 * ~/.cache/downpour. An LSTM that reads in both directions beside one that reads forwards:
 *
 *     npx tsx bench/sequences.ts vowels [seeds]
 */

/** It carries JapaneseVowels of the UCI archive (BSD-3-Clause). */
const AEON: DataPackage = {
  registry: 'pypi',
  name: 'aeon',
  version: '1.6.0',
  sha512:
    'MQc3nywMOS1gadVVLkVnlGFZuFqE/AlpRMDhEQl2+CtAQ5njRYNOviBto5M3KPCGqaqirh247W78VtTvTbEWMg==',
};

const example = (name: string) => fileURLToPath(new URL(`../examples/${name}.ts`, import.meta.url));

const folder = await mkdtemp(join(tmpdir(), 'downpour-sequences-'));
try {
  const seeds = Number(process.argv[3] ?? 5);
  const data = join(fetchedPackage(AEON), 'aeon/datasets/data/JapaneseVowels');
  for (const bidirectional of [true, false]) {
    const name = bidirectional ? 'in both directions' : 'forwards';
    const shares: number[] = [];
    for (let seed = 1; seed <= seeds; seed++) {
      const state = join(folder, 'state');
      const { run } = await train(example('vowels'), {
        ...{ workers: 1, state, data, log: () => {} },
        config: { seed, hyperparameters: { bidirectional } },
      });
      await rm(state, { recursive: true });
      const share = 100 * (1 - run.test!.error!);
      shares.push(share);
      console.log(`seed ${seed}, ${name}: ${share.toFixed(1)} % of the test part right`);
    }
    const mean = shares.reduce((sum, share) => sum + share, 0) / seeds;
    console.log(`mean of ${seeds} seeds, ${name}: ${mean.toFixed(1)} %`);
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
