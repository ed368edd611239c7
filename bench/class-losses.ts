import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defineExperiment, type Tensor } from '../library/index.ts';
import { train } from '../library/train.ts';
import { serve } from '../server/main.ts';
import { intervalText } from '../study/report.ts';
import { estimate } from '../study/statistics.ts';
import { openEngine } from '../worker/engine.ts';
import { losses } from '../worker/layers.ts';
import { buildVocabulary } from '../worker/text.ts';

/**
 * Losses over many classes side by side: which word of tinyshakespeare follows four words. The full softmax, the sampled
 * softmax and noise-contrastive estimation are tested by the full softmax, the hierarchical softmax by its own probabilities,
 * which sum to 1. The text is `input.txt` of `karpathy/char-rnn` in the data folder.
 *
 *     DOWNPOUR_DATA=/folder/of/the/file npx tsx bench/class-losses.ts [seeds] [epochs]
 */

const SEEDS = Number(process.argv[2] ?? 3);
const EPOCHS = Number(process.argv[3] ?? 3);
const DATA = process.env.DOWNPOUR_DATA ?? 'data';
const LOSSES = ['full', 'sampled', 'noise-contrastive', 'hierarchical'] as const;
type LossKind = (typeof LOSSES)[number];
const [CONTEXT, UNITS, DRAWN, MINIBATCH] = [4, 32, 256, 256];

const file = ['input.txt', 'tinyshakespeare/input.txt']
  .map((name) => join(DATA, name))
  .find((path) => existsSync(path));
if (!file) throw new Error(`there is no input.txt in ${DATA}: set DOWNPOUR_DATA`);
const text = readFileSync(file, 'utf8');
// The last tenth is the test part, the tenth before it the validation part.
const cuts = [0, 0.8, 0.9, 1].map((share) => Math.floor(share * text.length));
const texts = [0, 1, 2].map((i) => text.slice(cuts[i]!, cuts[i + 1]!));
const words = buildVocabulary([texts[0]!], { lowerCase: true, minCount: 3 });
const parts = texts.map((part) => words.encode(part));
const counts = new Array<number>(words.size).fill(0);
for (const id of parts[0]!) counts[id]!++;
// A word that the training part lacks has a probability too.
const known = counts.map((count) => count + 1);
const sampler = losses.unigramSampler(known);
const tree = losses.classTree(known);
const total = known.reduce((sum, count) => sum + count, 0);

function examplesOf(ids: Int32Array) {
  const count = ids.length - CONTEXT;
  const inputs = Int32Array.from(
    { length: count * CONTEXT },
    (_, i) => ids[Math.floor(i / CONTEXT) + (i % CONTEXT)]!,
  );
  return {
    inputs: { values: inputs, shape: [count, CONTEXT] },
    targets: { values: ids.slice(CONTEXT), shape: [count] },
  };
}
const [trained, validation, test] = parts.map(examplesOf);

const experimentOf = (kind: LossKind) =>
  defineExperiment({
    data: () => ({
      ...{ train: trained!, validation: validation!, test: test! },
      ...{ classCount: words.size, source: `words of ${file}` },
    }),
    model: ({ tf, seed }) => {
      const rows = kind === 'hierarchical' ? tree.nodeCount : words.size;
      // With these the scores begin as logarithms of the words' shares. A Huffman tree has them by its shape.
      const shares = known.map((count) => (kind === 'hierarchical' ? 0 : Math.log(count / total)));
      const kernel = tf.variable(tf.randomNormal([rows, UNITS], 0, 0.05, 'float32', seed));
      const bias = tf.variable(tf.tensor1d(shares.slice(0, rows)));
      return {
        context: tf.sequential({
          layers: [
            tf.layers.embedding({ inputDim: words.size, outputDim: UNITS, inputLength: CONTEXT }),
            tf.layers.flatten(),
            tf.layers.dense({ units: UNITS, activation: 'tanh' }),
          ],
        }),
        scores: {
          variables: { kernel, bias },
          predict: (states: Tensor) => tf.matMul(states, kernel, false, true).add(bias),
        },
      };
    },
    objective: ({ model, batch: { inputs, targets }, random, training, tf }) => {
      const states = model.context!.apply(inputs);
      const { kernel, bias } = model.scores!.variables as { kernel: Tensor; bias: Tensor };
      const count = states.shape[0]!;
      /** Scores of other rows for each example. @param ids shape [examples, rows]. */
      const scoresOf = (ids: Tensor) => {
        const flat = ids.reshape([-1]);
        const own = tf.gather(kernel, flat).reshape([...ids.shape, UNITS]);
        return own.mul(states.expandDims(1)).sum(2).add(tf.gather(bias, flat).reshape(ids.shape));
      };
      if (kind === 'hierarchical') {
        const shape = [words.size, tree.depth] as [number, number];
        const nodes = tf.gather(tf.tensor2d(tree.nodes, shape, 'int32'), targets).maximum(0);
        const signs = tf.gather(tf.tensor2d(tree.signs, shape), targets);
        return losses.hierarchicalSoftmax({ scores: scoresOf(nodes.toInt()), signs });
      }
      if (kind === 'full' || !training) {
        const truth = tf.oneHot(targets, words.size).toFloat();
        return tf.logSoftmax(model.scores!.apply(states)).mul(truth).sum(1).neg();
      }
      // The same drawn words for the whole minibatch, so that their scores are one product of matrices.
      const drawn = sampler.draw(random, [DRAWN]);
      const others = states
        .matMul(tf.gather(kernel, drawn), false, true)
        .add(tf.gather(bias, drawn));
      const right = targets.reshape([-1, 1]);
      const ids = tf.concat([right, drawn.reshape([1, -1]).tile([count, 1])], 1);
      const scores = tf.concat([scoresOf(right), others], 1);
      const given = { scores, ids, logProbabilities: sampler.logProbability(ids) };
      return kind === 'sampled' ? losses.sampledSoftmax(given) : losses.noiseContrastive(given);
    },
    config: {
      ...{ minibatchSize: MINIBATCH, learningRate: 0.003, optimizer: { kind: 'adam' } },
      ...{ epochsMax: EPOCHS, evaluateEverySteps: 1_000_000, earlyStopping: { enabled: false } },
      observe: { everySteps: null },
    },
  });

const folder = await mkdtemp(join(tmpdir(), 'downpour-class-losses-'));
const stop = new AbortController();
const served = await serve({
  ...{ host: '127.0.0.1', port: 0, state: join(folder, 'state'), signal: stop.signal },
});
try {
  const engine = (await openEngine()).name;
  console.log(
    `${trained!.targets.values.length} training, ${test!.targets.values.length} test examples, ${words.size} words, tree of depth ${tree.depth} (mean ${tree.meanDepth.toFixed(1)}), engine ${engine}`,
  );
  const found = new Map(LOSSES.map((kind) => [kind, [] as { perplexity: number; ms: number }[]]));
  for (let seed = 1; seed <= SEEDS; seed++) {
    for (const kind of LOSSES) {
      const before = process.cpuUsage();
      const { run } = await train(experimentOf(kind), {
        ...{ server: served.url, name: kind, engine, config: { seed } },
      });
      const { user, system } = process.cpuUsage(before);
      const measured = {
        perplexity: Math.exp(run.test!.loss!),
        ms: (user + system) / 1_000 / run.step,
      };
      found.get(kind)!.push(measured);
      console.log(
        `seed ${seed}, ${kind}: test perplexity ${measured.perplexity.toFixed(1)}, ${measured.ms.toFixed(1)} ms of processor time a step, ${run.step} steps`,
      );
    }
  }
  for (const [kind, all] of found) {
    const own = estimate(all.map(({ perplexity }) => perplexity));
    const one = (value: number) => value.toFixed(1);
    const ms = all.map((each) => each.ms).sort((a, b) => a - b)[Math.floor(all.length / 2)]!;
    console.log(
      `${kind}: perplexity ${one(own.mean)}, ${intervalText(own, one)}; ${one(ms)} ms a step`,
    );
  }
} finally {
  stop.abort();
  await served.closed;
  await rm(folder, { recursive: true, force: true });
}
