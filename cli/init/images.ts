import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { pictureSizes } from '../../worker/data/pictures/sizes.ts';
import { groups as thousands } from '../output/progress.ts';
import { type Draft, LOGITS, minibatchSize, SEARCH, testShare, VALIDATION_SHARE } from './draft.ts';
import type { Trunk } from './pretrained.ts';
import { comment } from './source.ts';

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

export interface ImagesRequest {
  /** As the user named it. */
  readonly data: string;
  /** Source code that gives the path. */
  readonly place: string;
  readonly testFraction?: number;
}

/** Asks for the model, with the one that fits the size of the pictures as the default. */
type Choose = (fitting: ModelKind) => Promise<ModelKind>;

export async function imagesDraft(request: ImagesRequest, choose: Choose): Promise<Draft> {
  const sizes = await pictureSizes(request.data);
  const size = sizes.isOne ? undefined : Math.min(SIZE_MAX, sizes.shorter);
  const { notes, title, options, grey, minibatch, shape } = await survey(request, size);
  const [height, width, channels] = shape;
  const isLarge = height * width * channels > DENSE_INPUTS_MAX;
  const model = await choose(isLarge || !grey ? 'cnn' : 'mlp');
  const chosen = [
    ...(grey ? ['channels: 1'] : []),
    ...(size === undefined ? [] : [`size: ${size}`]),
    ...options,
  ];
  return {
    notes,
    source: imageSource({
      title,
      imports: IMPORTS,
      load: `({ log }) => loadImageFolder(${request.place}, { ${chosen.join(', ')} })`,
      model: model === 'cnn' ? cnn(Math.min(height, width)) : MLP,
      minibatch,
      policy: policyFor(grey),
    }),
  };
}

const IMPORTS = `import { resolve } from 'node:path';\nimport { defineExperiment, loadImageFolder } from 'downpour';`;

const policyFor = (grey: boolean): string =>
  grey
    ? `batch: augment('digits'), // 'text' for lines of text, 'photos' for things that may be mirrored`
    : `batch: augment('photos'), // 'digits' for characters, 'text' for lines of text`;

/** Steps for which the head alone is trained, at least: five passes of a thousand images, and enough for a few dozen. */
const HEAD_STEPS_MIN = 200;
const HEAD_EPOCHS = 5;
/** Epochs of the whole, in which each stage has at least as many as the head alone. */
const EPOCHS_MIN = 30;
const STAGES = 4;
/** Evaluations without progress after the last stage has begun. */
const PATIENCE = 3;

/** An experiment that begins with a pretrained model: a new head first, then its upper layers too. */
export async function pretrainedDraft(
  request: ImagesRequest,
  open: (sizeOfPictures: () => Promise<number>) => Promise<Trunk>,
): Promise<Draft> {
  const trunk = await open(async () =>
    Math.min(SIZE_MAX, (await pictureSizes(request.data)).shorter),
  );
  const [height, width, channels] = trunk.inputShape;
  // What is surveyed is only counted, so it need not have the size that the model takes.
  const { notes, title, options, minibatch, trains } = await survey(request, SIZE_MAX, [
    height,
    width,
  ]);
  const perEpoch = Math.max(1, Math.ceil(trains / minibatch));
  const headEpochs = Math.max(HEAD_EPOCHS, Math.ceil(HEAD_STEPS_MIN / perEpoch));
  const stage = headEpochs * perEpoch;
  const { pretrained, model, groups } = trunk.source([stage, 2 * stage]);
  const hasStages = groups !== '';
  const size = height === width ? `${height}` : `[${height}, ${width}]`;
  const chosen = [`channels: ${channels}`, `size: ${size}`, ...options];
  const source = `${IMPORTS}

/** ${title} */
export default defineExperiment({
  data: ({ log }) => loadImageFolder(${request.place}, { ${chosen.join(', ')} }),
  // With few images, changed copies help: import { augment } from 'downpour/images', and add
  // ${policyFor(channels === 1)}

${pretrained}

${model}
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: ${minibatch},
    learningRate: 0.001,
    optimizer: { kind: 'adam' },
    earlyStopping: { patience: ${hasStages ? 2 * headEpochs + PATIENCE : headEpochs} },
    epochsMax: ${Math.max(EPOCHS_MIN, STAGES * headEpochs)},
${
  hasStages
    ? `    // The head is trained alone for ${headEpochs} epochs of ${perEpoch} steps, since its first gradients would spoil the layers before it.
    // Then the upper layers are trained with it, by a tenth of its rate.
    groups: {
${groups}
    },
`
    : ''
}  },

${CNN_SEARCH}});
`;
  return {
    notes: [
      ...notes,
      trunk.note,
      ...(hasStages
        ? [
            `trains the new head for ${thousands(stage)} steps, then the upper layers with it, by a tenth of the rate`,
          ]
        : []),
    ],
    source,
  };
}

/**
 * What is said about a folder of images, and follows from their number.
 * @param size that they are read in. @param shown height and width that the experiment reads them in; default: that size.
 */
async function survey(
  { data, testFraction }: ImagesRequest,
  size: number | undefined,
  shown?: readonly [number, number],
) {
  const loaded = await loadImageFolder(data, size === undefined ? {} : { size });
  const { train, validation, test, classes, notes } = loaded;
  const [, height = 0, width = 0, channels = 0] = train.inputs.shape;
  const grey = [train, validation, test].every((part) => !part || isGrey(part.inputs.values));
  const share = test === undefined ? testShare(train.count, testFraction) : 0;
  const options = [...(share > 0 ? [`testFraction: ${share}`] : []), 'log'];
  const counts = new Array<number>(classes.length).fill(0);
  for (const label of train.targets.values) counts[label]!++;
  const told = (named: (name: string, i: number) => string) => {
    const names = classes.slice(0, CLASSES_SHOWN).map((name, i) => named(comment(name), i));
    return `${names.join(', ')}${classes.length > CLASSES_SHOWN ? ` … (${classes.length})` : ''}`;
  };
  const others = Object.entries({ validation, test })
    .filter(([, part]) => part !== undefined)
    .map(([name, part]) => `${thousands(part!.count)} for ${name}`);
  const kept = Math.round(train.count * (1 - share));
  const trains = validation === undefined ? kept - Math.round(kept * VALIDATION_SHARE) : kept;
  const rare = classes.filter((_, i) => counts[i]! < PICTURES_FEW);
  return {
    notes: [
      `${data}: ${thousands(train.count)} images of ${shown?.[1] ?? width} × ${shown?.[0] ?? height}${others.length > 0 ? `, ${others.join(', ')}` : ''}; classes ${told((name, i) => `${name} (${thousands(counts[i]!)})`)}`,
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
    title: `The class of an image: ${told((name) => name)}.`,
    shape: [height, width, channels] as const,
    ...{ options, grey, trains },
    minibatch: minibatchSize(kept, validation !== undefined),
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
