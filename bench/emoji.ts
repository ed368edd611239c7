import { copyFileSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { initCommand } from '../cli/init/init.ts';
import { train } from '../library/index.ts';
import { random } from '../shared/random.ts';
import { writeNsfwjs } from '../test/support/nsfwjs.ts';
import { type DataPackage, fetchedPackage } from './packages.ts';

/**
 * A pretrained trunk against raw pixels: pictures of emoji in seven categories, a few labels of each. The trunk is the
 * MobileNetV2 of the npm package nsfwjs (MIT), frozen; the pictures are those of emoji-datasource-twitter (Twemoji, CC BY
 * 4.0). Both packages are fetched into ~/.cache/downpour, and their hashes are compared. `downpour init` writes
 * the experiments.
 *
 *     npx tsx bench/emoji.ts [labels a class] [seeds]
 */

const labels = Number(process.argv[2] ?? 5);
const seeds = Number(process.argv[3] ?? 5);
/** Test pictures of each category. The smallest category has 85 pictures. */
const TESTS = 40;
const STEPS = 300;
/** The stream of random numbers that choose pictures. */
const STREAM = 1;

const EMOJI: DataPackage = {
  registry: 'npm',
  name: 'emoji-datasource-twitter',
  version: '16.0.0',
  sha512:
    '7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==',
};
const CATEGORIES = [
  'Activities',
  'Animals & Nature',
  'Food & Drink',
  'Objects',
  'People & Body',
  'Smileys & Emotion',
  'Travel & Places',
];

interface Emoji {
  readonly image: string;
  readonly category: string;
  readonly has_img_twitter: boolean;
}

/** In an order that the seed decides. */
function shuffled<T>(given: readonly T[], seed: number): T[] {
  const draw = random(seed, STREAM);
  const items = [...given];
  for (let i = items.length - 1; i > 0; i--) {
    const j = draw.below(i + 1);
    [items[i], items[j]] = [items[j]!, items[i]!];
  }
  return items;
}

/** Pictures of one seed: `labels` to train, a few by which nothing is chosen, and the test pictures. */
function writePictures(folder: string, seed: number): void {
  const from = fetchedPackage(EMOJI);
  const all: Emoji[] = JSON.parse(readFileSync(join(from, 'emoji.json'), 'utf8'));
  rmSync(folder, { recursive: true, force: true });
  for (const category of CATEGORIES) {
    const own = all.filter((each) => each.category === category && each.has_img_twitter);
    // Test pictures are the same for every seed. The file has emoji that are alike side by side.
    const mixed = shuffled(own, 0);
    const others = shuffled(mixed.slice(TESTS), seed);
    const parts = {
      train: others.slice(0, labels),
      validation: others.slice(-Math.min(labels, 5)),
      test: mixed.slice(0, TESTS),
    };
    for (const [part, emojis] of Object.entries(parts)) {
      const to = join(folder, part, category);
      mkdirSync(to, { recursive: true });
      for (const { image } of emojis)
        copyFileSync(join(from, 'img/twitter/64', image), join(to, image));
    }
  }
}

const folder = await mkdtemp(join(tmpdir(), 'downpour-emoji-'));
try {
  const from = writeNsfwjs(folder);
  const data = join(folder, 'pictures');
  const common = { data, yes: true, force: true };
  const kinds = {
    trunk: { from, until: 'block_10_project_BN', size: 96, frozen: true },
    mlp: { model: 'mlp' },
    cnn: { model: 'cnn' },
  } as const;
  const correct: Record<keyof typeof kinds, number[]> = { trunk: [], mlp: [], cnn: [] };
  for (let seed = 1; seed <= seeds; seed++) {
    writePictures(data, seed);
    const told: string[] = [];
    for (const kind of ['trunk', 'mlp', 'cnn'] as const) {
      const file = join(folder, `${kind}-${seed}.mjs`);
      await initCommand(file, { ...common, ...kinds[kind] });
      const state = join(folder, 'state');
      const { run } = await train(file, {
        ...{ workers: 1, state, log: () => {} },
        config: {
          ...{ seed, stepsMax: STEPS, evaluateEverySteps: STEPS, averaging: { kind: 'none' } },
          ...{ earlyStopping: { enabled: false }, schedule: { kind: 'constant' } },
        },
      });
      await rm(state, { recursive: true });
      const share = 100 * (1 - run.test!.error!);
      correct[kind].push(share);
      told.push(`${kind} ${share.toFixed(1)} %`);
    }
    console.log(`${labels} labels a class, seed ${seed}: ${told.join(', ')}`);
  }
  for (const [kind, shares] of Object.entries(correct)) {
    const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
    console.log(
      `${kind}: ${mean.toFixed(1)} % (${shares.map((each) => each.toFixed(1)).join(', ')})`,
    );
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}
