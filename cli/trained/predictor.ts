import { join } from 'node:path';
import { readTensors } from '../../files/tensor-file.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Prediction } from '../../shared/prediction.ts';
import type { Reading } from '../../shared/reading.ts';
import { type Column, rowSize, sizeOf } from '../../worker/data/columns.ts';
import type { Minibatch } from '../../worker/data/examples.ts';
import { examplesLike, transformFor } from '../../worker/data/facts.ts';
import { tokenizerLike } from '../../worker/data/texts/tokenizer-file.ts';
import type { Tokenizer } from '../../worker/data/texts/vocabulary.ts';
import { copyScaled, scalerOf } from '../../worker/data/transform.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { vectorOf } from '../../worker/layers-format.ts';
import { buildModel, type Model, type NamedOutput } from '../../worker/model.ts';
import { lossNames } from '../../worker/outputs.ts';
import {
  type About,
  inputsOf,
  ONE_INPUT,
  predictionsFrom,
  takingUnknown,
} from '../../worker/serving/exported-model.ts';
import type { ServerOptions } from '../options.ts';
import { openScratch } from '../scratch.ts';
import { engineOf } from '../workers/options.ts';
import {
  aboutModel,
  type CheckpointFacts,
  copyFromFile,
  copyOfRun,
  experimentOf,
} from './checkpoint-copy.ts';
import { giveRows } from './trained-rows.ts';

/** A trained model that answers to new data: it needs the experiment's model, not its data. */

export interface PredictorOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly engine?: string;
  /** `none`: a category that the model has never seen sets none of the inputs of its column. Default: it is an error. */
  readonly unknown?: 'error' | 'none';
  /** File of the tokenizer that the run was trained with. Default: where it was then. */
  readonly tokenizer?: string;
}

export interface Predictor {
  readonly facts: CheckpointFacts;
  readonly data: DataFacts & { readonly reading?: string };
  /** As `downpour.json` beside an export has it. */
  readonly about: About & Record<string, unknown>;
  readonly reading: Reading | null;
  /** Raw inputs, as readers give them. @throws DownpourError DP_DATA_MISMATCH: of another shape. */
  predictColumn(inputs: Column): Promise<Prediction[]>;
  /** Inputs of examples, standardised. @throws BadExample. */
  encode(examples: readonly unknown[]): PredictorInputs;
  /** @param inputs as `encode` gives them. */
  predict(inputs: PredictorInputs, examples: number): Promise<Prediction[]>;
  /** What the model says to one example, as it is. @param inputs standardised */
  outputs(inputs: Float32Array): Promise<readonly NamedOutput[]>;
  /** The tokenizer of a run that names its file. */
  readonly tokenizer: Tokenizer | undefined;
  close(): void;
}

/** Standardised, by field. */
export type PredictorInputs = ReturnType<typeof inputsOf>;

/** Numbers of the inputs that go to the engine together. */
const BATCH_NUMBERS = 2 ** 20;

/** @param what the name of a run, or a checkpoint file. */
export async function openPredictor(what: string, options: PredictorOptions): Promise<Predictor> {
  const { folder, remove } = await openScratch('trained');
  try {
    const copy = join(folder, 'parameters');
    const copied = await (/\.(safetensors|json)$/.test(what)
      ? copyFromFile(what, copy)
      : copyOfRun(what, copy, options));
    const { facts } = copied;
    const data = copied.data.facts;
    if (!data) {
      throw new DownpourError(
        'DP_USAGE',
        `run ${facts.run} was trained by an older release and keeps nothing about its data: resume it for a moment with the present one, or train it again`,
      );
    }
    const path = await experimentOf(facts, options.experiments);
    await openEngine(options.engine === undefined ? {} : { engine: engineOf(options.engine) });
    const experiment = await loadExperiment(path);
    const like = examplesLike(data);
    const model = await buildModel(experiment, facts.config, like, { later: data });
    const { tensors } = await readTensors(copy);
    model.load(vectorOf(model.layout, tensors));
    giveRows(model, facts.config, tensors);
    const own = {
      ...aboutModel(copied),
      ...lossNames(experiment, like),
    } as unknown as Predictor['about'];
    const about = options.unknown === 'none' ? takingUnknown(own) : own;
    mustPredict(model, facts);
    const tokenizer = await tokenizerOfRun(about.reading, options.tokenizer);
    const predict: Predictor['predict'] = async (inputs, examples) => {
      const fields = Object.values(inputs);
      const size = fields.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
      const together = Math.max(1, Math.floor(BATCH_NUMBERS / size));
      const told: Prediction[] = [];
      for (let from = 0; from < examples; from += together) {
        const n = Math.min(together, examples - from);
        told.push(
          ...predictionsFrom(about, await model.outputs(minibatchOf(data, inputs, from, n))),
        );
      }
      return told;
    };
    return {
      ...{ facts, data, about, predict, reading: about.reading ?? null },
      tokenizer,
      outputs: (values) =>
        model.outputs(
          minibatchOf(data, { [ONE_INPUT]: { values, shape: data.inputs.shape } }, 0, 1),
        ),
      encode: (examples) => inputsOf(about, examples, tokenizer),
      predictColumn: (column) => {
        const shape = column.shape.slice(1);
        const values = standardised(data, column);
        return predict({ [ONE_INPUT]: { values, shape } }, column.shape[0]!);
      },
      close: () => model.dispose(),
    };
  } finally {
    await remove();
  }
}

/** The tokenizer of a run that was trained with the file of one; undefined: with none. @throws DownpourError DP_USAGE. */
async function tokenizerOfRun(
  reading: Reading | undefined,
  path: string | undefined,
): Promise<Tokenizer | undefined> {
  if (reading?.kind === 'text' && reading.tokenizer) return tokenizerLike(reading, path);
  if (path === undefined) return undefined;
  throw new DownpourError(
    'DP_USAGE',
    `--tokenizer is given (${path}), but the run was not trained with the file of a tokenizer: leave it out`,
  );
}

function mustPredict(model: Model, { run }: CheckpointFacts): void {
  if (model.predicts) return;
  model.dispose();
  throw new DownpourError(
    'DP_USAGE',
    `run ${run} has an objective over several models, so there is no one prediction: \`downpour export ${run} --to exported --format tfjs\` writes each model for a program`,
  );
}

/** Some of the examples as the model takes them; targets are 0. */
function minibatchOf(data: DataFacts, given: PredictorInputs, from: number, n: number): Minibatch {
  const part = ({ values, shape }: PredictorInputs[string]) => {
    const size = sizeOf(shape);
    return values.subarray(from * size, (from + n) * size);
  };
  const zeros = ({ kind, shape }: DataFacts['targets']) =>
    new (kind.startsWith('float') ? Float32Array : Int32Array)(n * sizeOf(shape));
  const own = given[ONE_INPUT];
  const isNamed = data.fields?.some(({ name }) => name === ONE_INPUT) ?? false;
  return {
    inputs: own && !isNamed ? (part(own) as Float32Array) : new Float32Array(0),
    inputShape: data.inputs.shape,
    ...{ targets: zeros(data.targets), targetShape: data.targets.shape, count: n },
    ...(data.fields && {
      fields: Object.fromEntries(
        data.fields.map(({ name, role, column }) => {
          const values = role === 'target' ? zeros(column) : part(given[name]!);
          return [name, { values, shape: column.shape }];
        }),
      ),
    }),
  };
}

function standardised(facts: DataFacts, column: Column): Float32Array {
  const scaler = scalerOf(transformFor(facts, column));
  const size = rowSize(column);
  const inputs = new Float32Array(column.values.length);
  for (let at = 0; at < inputs.length; at += size) {
    copyScaled(scaler, column.values, at, inputs, at, size);
  }
  return inputs;
}
