import { loadImageFolder } from '../../worker/data/images.ts';
import { groups } from '../progress.ts';
import { comment } from './source.ts';
import { type Draft, LOGITS } from './table.ts';

/** Experiments for pictures. */

export type ModelKind = 'mlp' | 'cnn';

/** So many names of classes stand in the comment and on the screen, no more. */
const CLASSES_SHOWN = 10;

/** @param data as the user named it. @param place source code that gives the path */
export async function imagesDraft(data: string, place: string, model: ModelKind): Promise<Draft> {
  const { train, classes } = await loadImageFolder(data);
  const [, height, width] = train.inputs.shape;
  const names = classes
    .slice(0, CLASSES_SHOWN)
    .map((name) => comment(name))
    .join(', ');
  const listed = classes.length > CLASSES_SHOWN ? `${names} … (${classes.length})` : names;
  return {
    notes: [`${data}: ${groups(train.count)} images of ${width} × ${height}; classes ${listed}`],
    source: imageSource({
      title: `The class of an image: ${listed}.`,
      imports: `import { resolve } from 'node:path';\nimport { defineExperiment, loadImageFolder } from 'downpour';`,
      load: `() => loadImageFolder(${place})`,
      model,
    }),
  };
}

export function mnistDraft(model: ModelKind): Draft {
  return {
    notes: ['MNIST: handwritten digits, all 70,000 after `downpour data mnist`, else 10,000'],
    source: imageSource({
      title: 'Handwritten digits.',
      imports: `import { defineExperiment, loadMnist } from 'downpour';`,
      load: '({ folder, log }) => loadMnist({ dataFolder: folder, log })',
      model,
    }),
  };
}

function imageSource(parts: {
  title: string;
  imports: string;
  load: string;
  model: ModelKind;
}): string {
  const { title, imports, load, model } = parts;
  const cnn = model === 'cnn';
  return `${imports}
${cnn ? '' : `import { layers } from 'downpour/layers';\n`}
/** ${title} */
export default defineExperiment({
  data: ${load},
  standardise: 'global',

${cnn ? CNN : MLP}
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: 64,
    learningRate: 0.001,
    optimizer: { kind: 'adam' },
    averaging: { kind: 'ema', decay: 0.999 },
    schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
    earlyStopping: { patience: 3 },
    epochsMax: 30,
  },
});
`;
}

const MLP = `  model: (args) =>
    args.tf.sequential({
      layers: [
        ...layers.hidden(args, { units: 256, dropout: 0.2 }),
${LOGITS}
      ],
    }),`;

const CNN = `  model: ({ tf, inputShape, classCount }) => {
    const convolution = (filters: number, shape?: number[]) => [
      tf.layers.conv2d({
        filters,
        kernelSize: 5,
        padding: 'same',
        // The normalisation has an offset of its own.
        useBias: false,
        kernelInitializer: 'heUniform',
        ...(shape ? { inputShape: shape } : {}),
      }),
      tf.layers.maxPooling2d({ poolSize: 2 }),
      tf.layers.batchNormalization({ momentum: 0.9 }),
      tf.layers.reLU(),
    ];
    return tf.sequential({
      layers: [
        ...convolution(16, inputShape),
        ...convolution(32),
        tf.layers.flatten(),
        tf.layers.dropout({ rate: 0.3 }),
        // Logits: the softmax is in the loss.
        tf.layers.dense({ units: classCount }),
      ],
    });
  },`;
