import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { csvLine } from '../../shared/csv.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import type { Prediction } from '../../shared/prediction.ts';
import type { Reading } from '../../shared/reading.ts';
import type { Column } from '../../worker/data/columns.ts';
import { unreadable } from '../../worker/data/files.ts';
import { readNewImages } from '../../worker/data/pictures/new-images.ts';
import { mustBeFinite } from '../../worker/data/precision.ts';
import { readNewTable } from '../../worker/data/tables/read-inputs.ts';
import { print, tell } from '../options.ts';
import { groups } from '../output/progress.ts';
import { openPredictor, type PredictorOptions } from './predictor.ts';

export interface PredictOptions extends PredictorOptions {
  readonly out?: string;
  readonly json?: boolean;
}

/** `downpour predict <run or checkpoint> <file or folder>` */
export async function predictCommand(
  what: string,
  data: string,
  options: PredictOptions,
): Promise<void> {
  const predictor = await openPredictor(what, options);
  try {
    const { facts, reading } = predictor;
    if (!reading) throw notRead(facts.run);
    const examples = await readExamples(data, reading);
    const told = await predictor.predictColumn(examples.inputs);
    await write(told, predictor.data, examples, options);
    const rows = groups(examples.names.length);
    if (options.out !== undefined)
      tell(`${rows} predictions of run ${facts.run} in ${options.out}`);
  } finally {
    predictor.close();
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

async function readExamples(data: string, how: Reading): Promise<NewExamples> {
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

async function write(
  told: readonly Prediction[],
  { targetNames }: DataFacts,
  { heading, names }: NewExamples,
  { out, json = false }: PredictOptions,
): Promise<void> {
  const target = targetNames?.length === 1 ? targetNames[0]! : 'prediction';
  const lines = function* () {
    if (!json) yield csvLine([heading, ...cellsOf(told[0]!, target).map(([name]) => name)]);
    for (const [i, name] of names.entries()) {
      yield json
        ? JSON.stringify({ [heading]: name, ...told[i]! })
        : csvLine([name, ...cellsOf(told[i]!, target).map(([, cell]) => cell)]);
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

type Headed = readonly [string, string | number];

/** The cells of a row, each with its heading. */
function cellsOf(told: Prediction, target: string): Headed[] {
  const { prediction, confidence, probabilities } = told;
  if (Array.isArray(prediction)) {
    return prediction.flatMap((each, k) => {
      const [own, shares] = [confidence, probabilities].map((list) => (list as unknown[])[k]);
      const one = { prediction: each, confidence: own, probabilities: shares } as Prediction;
      return cellsOf(one, target).map(([name, cell]): Headed => [`${name} ${k}`, cell]);
    });
  }
  if (typeof prediction === 'object') return Object.entries(prediction as Record<string, number>);
  const cells: Headed[] = [[target, prediction as string | number]];
  if (confidence !== undefined) cells.push(['confidence', confidence as number]);
  for (const [name, share] of Object.entries(probabilities ?? {})) {
    cells.push([`probability of ${name}`, share as number]);
  }
  return cells;
}
