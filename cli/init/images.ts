import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { pictureSizes } from '../../worker/data/pictures/sizes.ts';
import { groups } from '../output/progress.ts';
import { comment } from './source.ts';
import { type Draft, LOGITS, minibatchSize, SEARCH, testShare } from './table.ts';

/** Experiments for pictures. */

export type ModelKind = 'mlp' | 'cnn';

/** So many names of classes stand in the comment and on the screen, no more. */
const CLASSES_SHOWN = 10;
/** Fewer pictures than this of a class say little about it. */
const PICTURES_FEW = 10;
/** Numbers of one picture from which a dense layer on all of them has too many weights. */
const DENSE_INPUTS_MAX = 12_000;
/** Pixels of a side that pictures of different sizes are brought to, at most: a CNN on 2 cores learns them in minutes. */
const SIZE_MAX = 64;

/** @param values of three channels. */
const isGrey = (values: ArrayLike<number>): boolean => {
  for (let i = 0; i < values.length; i += 3) {
    if (values[i] !== values[i + 1] || values[i] !== values[i + 2]) return false;
  }
  return true;
};

/**
 * @param data as the user named it. @param place source code that gives the path
 * @param choose asks for the model, with the one that fits the size of the pictures as the default
 */
export async function imagesDraft(
  data: string,
  place: string,
  choose: (fitting: ModelKind) => Promise<ModelKind>,
  testFraction?: number,
): Promise<Draft> {
  const sizes = await pictureSizes(data);
  const size = sizes.isOne ? undefined : Math.min(SIZE_MAX, sizes.shorter);
  const loaded = await loadImageFolder(data, size === undefined ? {} : { size });
  const { train, validation, test, classes, notes } = loaded;
  const [, height = 0, width = 0, channels = 0] = train.inputs.shape;
  const grey = [train, validation, test].every((part) => !part || isGrey(part.inputs.values));
  const isLarge = height * width * channels > DENSE_INPUTS_MAX;
  const model = await choose(isLarge || !grey ? 'cnn' : 'mlp');
  const share = test === undefined ? testShare(train.count, testFraction) : 0;
  const options = [
    ...(grey ? ['channels: 1'] : []),
    ...(size === undefined ? [] : [`size: ${size}`]),
    ...(share > 0 ? [`testFraction: ${share}`] : []),
    'log',
  ];
  const counts = new Array<number>(classes.length).fill(0);
  for (const label of train.targets.values) counts[label]!++;
  const told = (named: (name: string, i: number) => string) => {
    const names = classes.slice(0, CLASSES_SHOWN).map((name, i) => named(comment(name), i));
    return `${names.join(', ')}${classes.length > CLASSES_SHOWN ? ` … (${classes.length})` : ''}`;
  };
  const others = Object.entries({ validation, test })
    .filter(([, part]) => part !== undefined)
    .map(([name, part]) => `${groups(part!.count)} for ${name}`);
  const rare = classes.filter((_, i) => counts[i]! < PICTURES_FEW);
  return {
    notes: [
      `${data}: ${groups(train.count)} images of ${width} × ${height}${others.length > 0 ? `, ${others.join(', ')}` : ''}; classes ${told((name, i) => `${name} (${groups(counts[i]!)})`)}`,
      ...notes.map((note) => `${data}: ${note}`),
      ...(share > 0 ? [`sets ${100 * share} % of the images apart for \`downpour test\``] : []),
      ...(rare.length > 0
        ? [
            `${rare.length === 1 ? 'class' : 'classes'} ${rare
              .slice(0, CLASSES_SHOWN)
              .map((name) => comment(name))
              .join(', ')}: fewer than ${PICTURES_FEW} training images; add more`,
          ]
        : []),
    ],
    source: imageSource({
      title: `The class of an image: ${told((name) => name)}.`,
      imports: `import { resolve } from 'node:path';\nimport { defineExperiment, loadImageFolder } from 'downpour';`,
      load: `({ log }) => loadImageFolder(${place}, { ${options.join(', ')} })`,
      model: model === 'cnn' ? cnn(Math.min(height, width)) : MLP,
      minibatch: minibatchSize(Math.round(train.count * (1 - share)), validation !== undefined),
      policy: grey
        ? `batch: augment('digits'), // 'text' for lines of text, 'photos' for things that may be mirrored`
        : `batch: augment('photos'), // 'digits' for characters, 'text' for lines of text`,
    }),
  };
}

export function mnistDraft(model: ModelKind): Draft {
  return {
    notes: ['MNIST: handwritten digits; 10,000, or all 70,000 after `downpour data mnist`'],
    source: imageSource({
      title: 'Handwritten digits.',
      imports: `import { defineExperiment, loadMnist } from 'downpour';`,
      load: '({ folder, log }) => loadMnist({ dataFolder: folder, log })',
      model: model === 'cnn' ? cnn(28) : MLP,
      minibatch: 64,
      policy: `batch: augment('digits'),`,
    }),
  };
}

interface ImageSource {
  readonly title: string;
  readonly imports: string;
  readonly load: string;
  readonly model: string;
  readonly minibatch: number;
  /** The augmentation that is proposed. */
  readonly policy: string;
}

function imageSource({ title, imports, load, model, minibatch, policy }: ImageSource): string {
  const usesLayers = model.includes('...layers.');
  return `${imports}
${usesLayers ? `import { layers } from 'downpour/layers';\n` : ''}
/** ${title} */
export default defineExperiment({
  data: ${load},
  standardise: 'global',
  // With few images, changed copies help: import { augment } from 'downpour/images', and add
  // ${policy}

${model}
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: ${minibatch},
    learningRate: 0.001,
    optimizer: { kind: 'adam' },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3 },
    epochsMax: 30,
  },

${usesLayers ? SEARCH : CNN_SEARCH}});
`;
}

const CNN_SEARCH = `  // Where \`downpour search\` looks for better values.
  search: {
    learningRate: { kind: 'log', low: 0.0001, high: 0.01 },
    'hyperparameters.dropout': { kind: 'uniform', low: 0, high: 0.6 },
  },
`;

const MLP = `  model: (args) =>
    args.tf.sequential({
      layers: [
        ...layers.hidden(args, { units: 256, dropout: 0.2 }),
${LOGITS}
      ],
    }),`;

/** @param side pixels of the shorter side, which each pooling halves */
function cnn(side: number): string {
  const blocks = [16, 32].slice(0, Math.max(1, Math.min(2, Math.floor(Math.log2(side)))));
  return `  model: ({ tf, inputShape, classCount, hyperparameters }) =>
    tf.sequential({
      layers: [
${blocks.map((filters, i) => convolution(filters, i === 0, side > 1)).join('\n')}
        tf.layers.flatten(),
        tf.layers.dropout({ rate: Number(hyperparameters.dropout ?? 0.3) }),
        // Logits: the softmax is in the loss.
        tf.layers.dense({ units: classCount }),
      ],
    }),`;
}

function convolution(filters: number, isFirst: boolean, pools: boolean): string {
  const lines = [
    'tf.layers.conv2d({',
    ...(isFirst ? ['  inputShape,'] : []),
    `  filters: ${filters},`,
    '  kernelSize: 5,',
    `  padding: 'same',`,
    ...(isFirst ? ['  // The normalisation has an offset of its own.'] : []),
    '  useBias: false,',
    `  kernelInitializer: 'heUniform',`,
    '}),',
    ...(pools ? ['tf.layers.maxPooling2d({ poolSize: 2 }),'] : []),
    'tf.layers.batchNormalization({ momentum: 0.9 }),',
    'tf.layers.reLU(),',
  ];
  return lines.map((line) => `        ${line}`).join('\n');
}
