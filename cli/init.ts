import { stat, writeFile } from 'node:fs/promises';
import { basename, dirname, relative, resolve } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { DownpourError, errorText } from '../shared/errors.ts';
import { unreadable } from '../worker/data/files.ts';
import { loadImageFolder } from '../worker/data/images.ts';
import { type ColumnSummary, describeCsv } from '../worker/data/table-summary.ts';
import { experimentName } from '../worker/experiment.ts';
import { print, printJson } from './options.ts';
import { groups } from './progress.ts';

/** `downpour init`: writes an experiment that runs at once, from what the data look like and a few answers. */

export interface InitOptions {
  readonly data?: string;
  readonly target?: string;
  readonly task?: Task;
  readonly model?: ModelKind;
  readonly force?: boolean;
  readonly yes?: boolean;
  readonly json?: boolean;
}

export type Task = 'classification' | 'regression';
export type ModelKind = 'mlp' | 'cnn';

/** What the file will say, and what is told beside it. */
interface Draft {
  readonly source: string;
  readonly notes: readonly string[];
}

/** Asks where somebody can answer; else the default. */
type Ask = (question: string, fallback: string, allowed?: readonly string[]) => Promise<string>;

const MNIST = 'mnist';
const DEFAULT_FILE = 'experiment.ts';
/** Whole numbers of at most so many kinds are classes rather than quantities. */
const CLASSES_MAX = 10;

export async function initCommand(file: string | undefined, options: InitOptions): Promise<void> {
  const asking = !options.yes && !options.json && process.stdin.isTTY === true;
  const lines = asking ? createInterface({ input: process.stdin, output: process.stdout }) : null;
  const ask: Ask = async (question, fallback, allowed) => {
    if (!lines) return fallback;
    const choices = allowed ? ` ${allowed.join(' or ')}` : '';
    for (;;) {
      const given = (await lines.question(`${question}${choices} [${fallback}] `)).trim();
      if (given === '') return fallback;
      if (!allowed || allowed.includes(given)) return given;
      print(`one of ${allowed.join(', ')}, please`);
    }
  };
  try {
    const path = resolve(file ?? (await ask('Name of the file?', DEFAULT_FILE)));
    experimentName(path);
    const data =
      options.data ?? (await ask(`Data: a CSV file, a folder of images, ${MNIST}?`, MNIST));
    const draft = await draftFor(path, data, options, ask);
    await write(path, draft.source, options.force === true);
    const shown = relative('', path) || path;
    if (options.json) {
      printJson({ file: path, notes: draft.notes });
      return;
    }
    for (const note of draft.notes) print(note);
    print(`wrote ${shown}; next:`);
    print(`  npx downpour check ${shown}     is anything wrong with data or model?`);
    print(`  npx downpour train ${shown}     trains it, with two workers on this machine`);
  } finally {
    lines?.close();
  }
}

async function write(path: string, source: string, force: boolean): Promise<void> {
  try {
    await writeFile(path, source, { flag: force ? 'w' : 'wx' });
  } catch (error) {
    const exists = (error as NodeJS.ErrnoException).code === 'EEXIST';
    const what = exists ? 'it exists already: choose another name, or --force' : errorText(error);
    throw new DownpourError('DP_USAGE', `${path} cannot be written: ${what}`, { cause: error });
  }
}

/** @throws DownpourError DP_USAGE, DP_DATA_MISSING or DP_DATA_CORRUPT. */
async function draftFor(
  path: string,
  data: string,
  options: InitOptions,
  ask: Ask,
): Promise<Draft> {
  if (data === MNIST) return mnistDraft(await modelFor(options, ask));
  const entry = await stat(data).catch((error) => {
    throw unreadable(data, error);
  });
  // From the experiment's folder, wherever it is called from.
  const from = relative(dirname(path), resolve(data)).replaceAll('\\', '/');
  const place = from.startsWith('.') ? from : `./${from}`;
  if (entry.isDirectory()) return imagesDraft(data, place, await modelFor(options, ask));
  if (options.model === 'cnn') {
    throw new DownpourError('DP_USAGE', `--model cnn is for images; ${data} is a table: mlp`);
  }
  return csvDraft(data, place, options, ask);
}

const modelFor = async ({ model }: InitOptions, ask: Ask) =>
  model ?? ((await ask('Model:', 'mlp', ['mlp', 'cnn'])) as ModelKind);

// Tables.

async function csvDraft(
  data: string,
  place: string,
  options: InitOptions,
  ask: Ask,
): Promise<Draft> {
  const { columns, delimiter } = await describeCsv(data);
  const names = columns.map(({ name }) => name);
  const name =
    options.target ?? (await ask(`Column to predict (${names.join(', ')})?`, names.at(-1)!));
  const target = columns.find((column) => column.name === name);
  if (!target) {
    throw new DownpourError(
      'DP_USAGE',
      `${data} has no column '${name}'; it has ${names.join(', ')}: --target one of them`,
    );
  }
  if (target.missing > 0) {
    throw new DownpourError(
      'DP_USAGE',
      `column '${name}' lacks ${target.missing} of ${target.count} values: predict another one, or take those lines out`,
    );
  }
  const task = options.task ?? taskOf(target);
  if (task === 'regression' && !target.numbers) {
    throw new DownpourError('DP_USAGE', `column '${name}' holds text: --task classification`);
  }
  const inputs = columns.filter((column) => column !== target);
  const ignored = inputs.filter(
    ({ missing, numbers, categories }) => missing > 0 || !(numbers || categories),
  );
  const categorical = inputs.filter((column) => !ignored.includes(column) && !column.numbers);
  const notes = [`${data}: ${groups(target.count)} examples; predicts ${name} (${task})`];
  for (const { name: column, missing } of ignored) {
    notes.push(
      missing > 0
        ? `leaves out column '${column}': ${groups(missing)} values are missing`
        : `leaves out column '${column}': text of too many kinds, such as names`,
    );
  }
  if (ignored.length === inputs.length) {
    throw new DownpourError('DP_USAGE', `${data}: no column is left to predict '${name}' from`);
  }
  const list = (of: readonly ColumnSummary[]) =>
    `[${of.map((column) => quoted(column.name)).join(', ')}]`;
  const load = [
    `      targets: ${list([target])},`,
    ...(task === 'classification' ? [`      task: 'classification',`] : []),
    ...(categorical.length > 0 ? [`      categorical: ${list(categorical)},`] : []),
    ...(ignored.length > 0 ? [`      ignore: ${list(ignored)},`] : []),
    ...(delimiter === '\t' ? [`      delimiter: '\\t',`] : []),
  ];
  const mean = Number(target.numbers?.mean.toPrecision(3) ?? 0);
  const regression = [
    `        // Begins with the mean of ${name}, so that it need not be learnt.`,
    `        args.tf.layers.dense({ units: 1, biasInitializer: args.tf.initializers.constant({ value: ${mean} }) }),`,
  ];
  const source = `import { fileURLToPath } from 'node:url';
import { defineExperiment, loadCsv } from 'downpour';
import { layers } from 'downpour/layers';

/** ${name} from ${basename(data)}, by a network with one hidden layer. */
export default defineExperiment({
  data: () =>
    loadCsv(fileURLToPath(new URL(${quoted(place)}, import.meta.url)), {
${load.join('\n')}
    }),
  // Mean 0 and deviation 1 of each column, by numbers of the training part alone.
  standardise: 'feature',

  model: (args) =>
    args.tf.sequential({
      layers: [
        ...layers.hidden(args, { units: 64 }),
${task === 'classification' ? LOGITS : regression.join('\n')}
      ],
    }),
${task === 'classification' ? `  loss: 'softmaxCrossEntropy',` : `  loss: 'meanSquaredError',\n  // In the unit of ${name}.\n  error: (targets, predictions) => targets.sub(predictions).abs().mean(),`}

  config: {
    minibatchSize: ${target.count < 2_000 ? 16 : 64},
    learningRate: 0.005,
    optimizer: { kind: 'adam' },
    weightDecay: { rate: 0.0001 },
    earlyStopping: { patience: 20${task === 'regression' ? `, metric: 'loss'` : ''} },
    epochsMax: 200,
  },
});
`;
  return { source, notes };
}

function taskOf({ numbers, categories }: ColumnSummary): Task {
  if (!numbers) return 'classification';
  const kinds = categories === null ? [] : Object.keys(categories);
  const few = kinds.length > 1 && kinds.length <= CLASSES_MAX;
  return few && kinds.every((kind) => /^\d+$/.test(kind)) ? 'classification' : 'regression';
}

const LOGITS = `        // Logits: the softmax is in the loss.
        args.tf.layers.dense({ units: args.classCount }),`;

/** As source code. */
function quoted(text: string): string {
  const inside = JSON.stringify(text).slice(1, -1);
  return `'${inside.replaceAll('\\"', '"').replaceAll("'", "\\'")}'`;
}

// Images.

async function imagesDraft(data: string, place: string, model: ModelKind): Promise<Draft> {
  const { train, classes } = await loadImageFolder(data);
  const [, height, width] = train.inputs.shape;
  const load = `loadImageFolder(fileURLToPath(new URL(${quoted(place)}, import.meta.url)))`;
  return {
    notes: [
      `${data}: ${groups(train.count)} images of ${width} × ${height}; classes ${classes.join(', ')}`,
    ],
    source: imageSource({
      title: `The class of an image: ${classes.length <= CLASSES_MAX ? classes.join(', ') : `${classes.length} of them`}.`,
      imports: `import { fileURLToPath } from 'node:url';\nimport { defineExperiment, loadImageFolder } from 'downpour';`,
      load: `() => ${load}`,
      model,
    }),
  };
}

function mnistDraft(model: ModelKind): Draft {
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
