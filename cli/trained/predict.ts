import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { readTensors } from '../../files/checkpoint.ts';
import { type Answers, decide, probabilitiesOf } from '../../shared/answers.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { parseReading } from '../../shared/reading.ts';
import { answersOf } from '../../worker/answers.ts';
import type { Column } from '../../worker/data/columns.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { examplesLike, transformFor } from '../../worker/data/facts.ts';
import { unreadable } from '../../worker/data/files.ts';
import { readNewImages } from '../../worker/data/pictures/new-images.ts';
import { mustBeFinite } from '../../worker/data/precision.ts';
import { readNewTable } from '../../worker/data/tables/read-inputs.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { vectorOf } from '../../worker/layers-format.ts';
import { buildModel } from '../../worker/model.ts';
import { openSession } from '../embedded.ts';
import { print, type ServerOptions, tell } from '../options.ts';
import { groups } from '../output/progress.ts';
import { openScratch } from '../scratch.ts';
import { engineOf } from '../workers/options.ts';
import { copyFromFile, copyFromRun, experimentOf } from './checkpoint-copy.ts';

export interface PredictOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly engine?: string;
  readonly out?: string;
  readonly json?: boolean;
}

/** `downpour predict <run or checkpoint> <file or folder>` */
export async function predictCommand(
  what: string,
  data: string,
  options: PredictOptions,
): Promise<void> {
  const { folder, remove } = await openScratch('trained');
  try {
    const copy = `${folder}/parameters`;
    const { facts, data: known } = await (/\.(safetensors|json)$/.test(what)
      ? copyFromFile(what, copy)
      : fromRun(what, copy, options));
    const { facts: dataFacts } = known;
    if (!dataFacts?.reading) throw notRead(facts.run);
    const examples = await readExamples(data, dataFacts);
    const path = await experimentOf(facts, options.experiments);
    await openEngine(options.engine === undefined ? {} : { engine: engineOf(options.engine) });
    const experiment = await loadExperiment(path);
    const model = await buildModel(experiment, facts.config, examplesLike(dataFacts));
    try {
      const { tensors } = await readTensors(copy);
      model.load(vectorOf(model.layout, tensors));
      const prepared = preparedFrom(dataFacts, examples.inputs);
      // Nothing is compared with targets here, by no loss of the user's either.
      const kind = typeof experiment.loss === 'string' ? experiment.loss : 'meanSquaredError';
      const { answers } = await answersOf(model, { ...experiment, loss: kind }, prepared, {
        part: 'train',
      });
      const table = predictionsOf(answers, experiment, dataFacts, examples.names.length);
      await write(table, examples, options);
      const rows = groups(examples.names.length);
      if (options.out !== undefined)
        tell(`${rows} predictions of run ${facts.run} in ${options.out}`);
    } finally {
      model.dispose();
    }
  } finally {
    await remove();
  }
}

async function fromRun(id: string, copy: string, options: PredictOptions) {
  const session = await openSession({ ...options, run: id });
  try {
    return await copyFromRun(session, id, options.kind ?? null, copy);
  } finally {
    await session.close();
  }
}

const notRead = (run: string) =>
  new DownpourError(
    'DP_USAGE',
    `run ${run} does not know how its data were read: they do not come from loadCsv or loadImageFolder as these give them, or the run was trained by an older release. Use \`downpour export --format tfjs\`, and give the model its inputs in a program`,
  );

interface NewExamples {
  readonly inputs: Column;
  /** What each example is called, and by which heading. */
  readonly heading: 'line' | 'file';
  readonly names: readonly (string | number)[];
}

async function readExamples(data: string, { reading }: DataFacts): Promise<NewExamples> {
  const how = parseReading(reading!);
  const entry = await stat(data).catch((error) => {
    throw unreadable(data, error);
  });
  if (how.kind === 'images') {
    const { inputs, files } = await readNewImages(data, how, tell);
    return { inputs, heading: 'file', names: files };
  }
  if (entry.isDirectory()) {
    throw new DownpourError(
      'DP_USAGE',
      `${data} is a folder, but the model was trained on a table: name a file of rows with the columns ${how.columns.map(({ name }) => `'${name}'`).join(', ')}`,
    );
  }
  const { inputs, lines } = await readNewTable(data, how);
  mustBeFinite(`inputs of ${data}`, inputs);
  return { inputs, heading: 'line', names: lines };
}

/** As data that were split and standardised, without targets. */
function preparedFrom(facts: DataFacts, inputs: Column): PreparedData {
  const { train, classCount } = examplesLike(facts);
  const count = inputs.shape[0]!;
  const { shape } = train.targets;
  const width = shape.slice(1).reduce((product, size) => product * size, 1);
  const targets = { values: new Float32Array(count * width), shape: [count, ...shape.slice(1)] };
  const none = { ...train, count: 0 };
  return {
    train: { count, inputs, targets },
    validation: none,
    test: null,
    fingerprint: '',
    rawFingerprint: '',
    source: '',
    classCount,
    classes: facts.classes,
    inputNames: facts.inputNames,
    targetNames: facts.targetNames,
    transform: transformFor(facts, inputs),
  };
}

interface Predictions {
  readonly headings: readonly string[];
  /** Of each example. */
  row(example: number): (string | number)[];
}

/** What is told of each example: a class with its probabilities, or the numbers. */
function predictionsOf(
  answers: Answers,
  { loss }: Experiment,
  facts: DataFacts,
  examples: number,
): Predictions {
  const { kind, outputs, width, perExample } = answers;
  const names = facts.targetNames ?? [];
  const isOwn = typeof loss === 'function';
  if (kind === 'numbers' || isOwn) {
    const each = outputs.length / examples;
    const headings = Array.from({ length: each }, (_, i) => names[i] ?? `output ${i}`);
    return {
      headings,
      row: (example) => Array.from(outputs.subarray(example * each, (example + 1) * each)),
    };
  }
  const shares = probabilitiesOf(answers);
  const count = kind === 'binary' ? 2 : width;
  const { classes, confidence } = decide(shares, count);
  const nameOf = (c: number) => facts.classes?.[c] ?? String(c);
  const headings = Array.from({ length: perExample }, (_, k) => {
    const place = perExample === 1 ? '' : ` ${kind === 'binary' && names[k] ? names[k] : k}`;
    const target = kind === 'binary' && perExample > 1 ? 'prediction' : (names[0] ?? 'prediction');
    const kinds = Array.from({ length: count }, (_, c) => `probability of ${nameOf(c)}${place}`);
    return [`${target}${place}`, `confidence${place}`, ...kinds];
  }).flat();
  return {
    headings,
    row: (example) =>
      Array.from({ length: perExample }, (_, k) => {
        const i = example * perExample + k;
        return [
          nameOf(classes[i]!),
          confidence[i]!,
          ...shares.subarray(i * count, (i + 1) * count),
        ];
      }).flat(),
  };
}

async function write(
  { headings, row }: Predictions,
  { heading, names }: NewExamples,
  { out, json = false }: PredictOptions,
): Promise<void> {
  const lines = function* () {
    if (!json) yield csvLine([heading, ...headings]);
    for (const [i, name] of names.entries()) {
      const cells = [name, ...row(i)];
      yield json
        ? JSON.stringify(
            Object.fromEntries([heading, ...headings].map((key, k) => [key, cells[k]])),
          )
        : csvLine(cells);
    }
  };
  if (out === undefined) {
    for (const line of lines()) print(line);
    return;
  }
  const path = resolve(out);
  const stream = createWriteStream(path);
  try {
    for (const line of lines()) if (!stream.write(`${line}\n`)) await once(stream, 'drain');
    stream.end();
    await once(stream, 'close');
  } catch (cause) {
    throw new DownpourError('DP_DISK', `cannot write ${path}: ${errorText(cause)}`, { cause });
  }
}

function csvLine(cells: readonly (string | number)[]): string {
  return cells
    .map((cell) => {
      // Of float32, the shortest text that is the same number.
      const text = typeof cell === 'number' ? String(Number(cell.toPrecision(7))) : cell;
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    })
    .join(',');
}
