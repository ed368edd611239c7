import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { join, resolve } from 'node:path';
import { csvLine } from '../../shared/csv.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { type Prediction, predictionOf } from '../../shared/prediction.ts';
import type { ImageReading, Reading, TableReading, TextReading } from '../../shared/reading.ts';
import type { Column } from '../../worker/data/columns.ts';
import { readNewImages } from '../../worker/data/pictures/new-images.ts';
import { mustBeFinite } from '../../worker/data/precision.ts';
import { readNewRows } from '../../worker/data/tables/read-examples.ts';
import { readNewTable } from '../../worker/data/tables/read-inputs.ts';
import { tableFiles } from '../../worker/data/tables/table-files.ts';
import { newTextFiles, readNewTexts } from '../../worker/data/texts/new-texts.ts';
import { BadExample } from '../../worker/serving/encode.ts';
import { print, tell } from '../options.ts';
import { groups } from '../output/progress.ts';
import {
  openPredictor,
  type Predictor,
  type PredictorInputs,
  type PredictorOptions,
} from './predictor.ts';

export interface PredictOptions extends PredictorOptions {
  readonly out?: string;
  readonly json?: boolean;
}

/** `downpour predict <run or checkpoint> <file or folder>…` */
export async function predictCommand(
  what: string,
  data: readonly string[],
  options: PredictOptions,
): Promise<void> {
  const predictor = await openPredictor(what, options);
  try {
    const { facts, reading } = predictor;
    const files = await filesOf(data, reading);
    // All are read before the first line is written: an error in the last one leaves no half of an answer.
    const read: NewExamples[] = [];
    for (const file of files) {
      if (reading?.kind === 'text') read.push(await readTextsOf(file, reading, predictor));
      else if (reading) read.push(await readExamples(file, reading));
      else read.push(await readRowsOf(file, predictor));
    }
    const told: Prediction[] = [];
    for (const { inputs } of read) {
      told.push(
        ...('values' in inputs
          ? await predictor.predictColumn(inputs as Column)
          : await predictor.predict(inputs.encoded, inputs.count)),
      );
    }
    const names = read.flatMap((each, i) =>
      each.names.map((name) => nameOf(name, files[i]!, { among: files.length, reading })),
    );
    mustHaveOneHeader(names);
    await write(told, predictor.data, names, options);
    if (options.out !== undefined)
      tell(`${groups(names.length)} predictions of run ${facts.run} in ${options.out}`);
  } finally {
    predictor.close();
  }
}

interface NewExamples {
  readonly inputs: Column | { readonly encoded: PredictorInputs; readonly count: number };
  /** The line of each row in its file, or the path of each picture or text. */
  readonly names: readonly (string | number)[];
}

/** A file is a text, or has many of them: a table, or lines of JSON. */
async function readTextsOf(
  file: string,
  reading: TextReading,
  { encode }: Predictor,
): Promise<NewExamples> {
  const { examples, lines } = await readNewTexts(file, reading);
  try {
    return {
      inputs: { encoded: encode(examples), count: examples.length },
      names: lines ?? [file],
    };
  } catch (error) {
    if (!(error instanceof BadExample)) throw error;
    const place = error.message.replace(/^example (\d+)/, (_, i) =>
      lines ? `line ${lines[Number(i)]}` : 'the text',
    );
    throw new DownpourError('DP_DATA_CORRUPT', `${file}: ${place}`, { cause: error });
  }
}

/** By the names of fields: no reader of files has said how the training data were read. */
async function readRowsOf(file: string, { encode, facts }: Predictor): Promise<NewExamples> {
  const { examples, lines } = await readNewRows(file);
  try {
    const encoded = encode(examples);
    return { inputs: { encoded, count: examples.length }, names: lines };
  } catch (error) {
    if (!(error instanceof BadExample)) throw error;
    const place = error.message.replace(/^example (\d+)/, (_, i) => `line ${lines[Number(i)]}`);
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      `${file}: ${place}. Run ${facts.run} does not know how its data were read from files, so a table needs a column for each number of each field, and .jsonl an object by fields on each line`,
      { cause: error },
    );
  }
}

/** What an example is called, by heading: the line in its file, the file, or both. */
type ExampleName = Readonly<Record<string, string | number>>;

function nameOf(
  name: string | number,
  file: string,
  { among, reading }: { readonly among: number; readonly reading: Reading | null },
): ExampleName {
  if (typeof name === 'number') return among > 1 ? { file, line: name } : { line: name };
  const isInFolder = reading?.kind === 'images' && among > 1 && name !== file;
  return { file: isInFolder ? join(file, name) : name };
}

/** Texts may be files of their own, or lines of one. @throws DownpourError DP_USAGE: they are both. */
function mustHaveOneHeader(names: readonly ExampleName[]): void {
  const [first] = names;
  const other = names.find((name) => 'line' in name !== 'line' in first!);
  if (!other) return;
  throw new DownpourError(
    'DP_USAGE',
    `${other.file} and ${first!.file} do not go together: one is a text, the other has many of them; predict for them one after the other`,
  );
}

/** A folder of tables, or a pattern, is several files; a folder of pictures is read as one. */
async function filesOf(data: readonly string[], how: Reading | null): Promise<string[]> {
  const files: string[] = [];
  for (const each of data) {
    if (how?.kind === 'images') files.push(each);
    else files.push(...(await (how?.kind === 'text' ? newTextFiles(each, how) : tableFiles(each))));
  }
  return files;
}

async function readExamples(data: string, how: TableReading | ImageReading): Promise<NewExamples> {
  if (how.kind === 'images') {
    const { inputs, files } = await readNewImages(data, how, tell);
    return { inputs, names: files };
  }
  const { inputs, lines, notes } = await readNewTable(data, how).catch((error: unknown) => {
    throw withAdvice(error);
  });
  for (const note of notes) tell(note);
  mustBeFinite(`inputs of ${data}`, inputs);
  return { inputs, names: lines };
}

/** What is an option of this command is not known where tables are read. */
function withAdvice(error: unknown): unknown {
  const isUnknown =
    error instanceof DownpourError && / is not one of the \d+ listed names/.test(error.message);
  if (!isUnknown) return error;
  return new DownpourError(
    error.code,
    `${error.message}. Correct the cell, or take it as none of them: --unknown none`,
    { cause: error },
  );
}

async function write(
  told: readonly Prediction[],
  { targetNames, fields = [] }: DataFacts,
  names: readonly ExampleName[],
  { out, json = false }: PredictOptions,
): Promise<void> {
  const outputs = fields.filter(({ role }) => role === 'target').map(({ name }) => name);
  const [only] = outputs.length === 1 ? outputs : targetNames?.length === 1 ? targetNames : [];
  const target = only ?? 'prediction';
  const isNamed = outputs.length > 1 && isOfOutputs(told[0]!, outputs);
  const rowOf = (each: Prediction) =>
    isNamed
      ? outputs.flatMap((name) => cellsOf(predictionOf(each, name), name, `${name} `))
      : cellsOf(each, target);
  const lines = function* () {
    if (!json) yield csvLine([...Object.keys(names[0]!), ...rowOf(told[0]!).map(([name]) => name)]);
    for (const [i, name] of names.entries()) {
      yield json
        ? JSON.stringify({ ...name, ...told[i]! })
        : csvLine([...Object.values(name), ...rowOf(told[i]!).map(([, cell]) => cell)]);
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

/** Whether a prediction is of the outputs by their names: an objective may give others. */
const isOfOutputs = ({ prediction }: Prediction, outputs: readonly string[]) =>
  typeof prediction === 'object' && outputs.every((name) => name in prediction);

/** The cells of a row, each with its heading. @param of goes before headings that do not name the target: `size ` */
function cellsOf(told: Prediction, target: string, of = ''): Headed[] {
  const { prediction, confidence, probabilities } = told;
  if (Array.isArray(prediction)) {
    return prediction.flatMap((each, k) => {
      const [own, shares] = [confidence, probabilities].map((list) => (list as unknown[])?.[k]);
      const one = { prediction: each, confidence: own, probabilities: shares } as Prediction;
      return cellsOf(one, target, of).map(([name, cell]): Headed => [`${name} ${k}`, cell]);
    });
  }
  if (typeof prediction === 'object') {
    if (confidence !== undefined) {
      return Object.keys(prediction as object).flatMap((name) =>
        cellsOf(predictionOf(told, name), `${of}${name}`, `${of}${name} `),
      );
    }
    return Object.entries(prediction as Record<string, number>).map(([name, cell]): Headed => {
      return [`${of}${name}`, cell];
    });
  }
  const cells: Headed[] = [[target, prediction as string | number]];
  if (confidence !== undefined) {
    cells.push([of === '' ? 'confidence' : `confidence of ${target}`, confidence as number]);
  }
  for (const [name, share] of Object.entries(probabilities ?? {})) {
    cells.push([`probability of ${of}${name}`, share as number]);
  }
  return cells;
}
