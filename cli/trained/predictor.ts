import { join } from 'node:path';
import { readTensors } from '../../files/checkpoint.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Prediction } from '../../shared/prediction.ts';
import type { Reading } from '../../shared/reading.ts';
import { type Column, rowSize, sizeOf } from '../../worker/data/columns.ts';
import { examplesLike, transformFor } from '../../worker/data/facts.ts';
import { mustBePlain } from '../../worker/data/fields.ts';
import { copyScaled, scalerOf } from '../../worker/data/transform.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { vectorOf } from '../../worker/layers-format.ts';
import { buildModel } from '../../worker/model.ts';
import { type About, predictionsFrom, takingUnknown } from '../../worker/serving/exported-model.ts';
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

/** A trained model that answers to new data: it needs the experiment's model, not its data. */

export interface PredictorOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly kind?: 'best' | 'last' | 'final';
  readonly experiments?: string[];
  readonly engine?: string;
  /** `none`: a category that the model has never seen sets none of the inputs of its column. Default: it is an error. */
  readonly unknown?: 'error' | 'none';
}

export interface Predictor {
  readonly facts: CheckpointFacts;
  readonly data: DataFacts & { readonly reading?: string };
  /** As `downpour.json` beside an export has it. */
  readonly about: About & Record<string, unknown>;
  readonly reading: Reading | null;
  /** Raw inputs, as readers give them. @throws DownpourError DP_DATA_MISMATCH: of another shape. */
  predictColumn(inputs: Column): Promise<Prediction[]>;
  /** @param inputs standardised, shape [examples, …inputShape]. */
  predict(inputs: Float32Array, examples: number): Promise<Prediction[]>;
  close(): void;
}

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
    mustBePlain('predicting', like.train);
    const model = await buildModel(experiment, facts.config, like, { later: data });
    model.load(vectorOf(model.layout, (await readTensors(copy)).tensors));
    const loss = typeof experiment.loss === 'string' ? experiment.loss : null;
    const own = { ...aboutModel(copied), loss } as unknown as Predictor['about'];
    const about = options.unknown === 'none' ? takingUnknown(own) : own;
    const inputShape = data.inputs.shape;
    const targetShape = data.targets.shape;
    const predict: Predictor['predict'] = async (inputs, examples) => {
      const size = sizeOf(inputShape);
      const together = Math.max(1, Math.floor(BATCH_NUMBERS / size));
      const told: Prediction[] = [];
      for (let from = 0; from < examples; from += together) {
        const n = Math.min(together, examples - from);
        const { values, shape } = await model.predict({
          ...{ inputs: inputs.subarray(from * size, (from + n) * size), inputShape },
          ...{ targets: new Float32Array(n * sizeOf(targetShape)), targetShape },
        });
        told.push(...predictionsFrom(about, values, shape));
      }
      return told;
    };
    return {
      ...{ facts, data, about, predict, reading: about.reading ?? null },
      predictColumn: (column) => predict(standardised(data, column), column.shape[0]!),
      close: () => model.dispose(),
    };
  } finally {
    await remove();
  }
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
