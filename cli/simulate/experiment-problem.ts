import { resolve } from 'node:path';
import type { RunConfig } from '../../shared/config.ts';
import { dataSummary } from '../../worker/data/facts.ts';
import { closeSources } from '../../worker/data/stored.ts';
import { openEngine } from '../../worker/engine.ts';
import { evaluate } from '../../worker/evaluate.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { Minibatches, minibatchSeed } from '../../worker/minibatches.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareExperiment } from '../../worker/prepare.ts';
import { engineOf } from '../workers/options.ts';
import type { VirtualProblem } from './virtual-cluster.ts';

/** A user's experiment for virtual workers: its data, its model, and the gradients that real workers would compute. */

export interface ExperimentProblem extends VirtualProblem {
  /** Training minibatches of an epoch, and of an evaluation as many as its examples fill. */
  readonly minibatches: { readonly epoch: number; readonly validation: number };
  dispose(): void;
}

export interface ExperimentProblemOptions {
  readonly name: string;
  readonly experiment: Experiment;
  readonly config: RunConfig;
  readonly data?: string | undefined;
  readonly engine?: string | undefined;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
  /** No gradients are computed: for times and staleness alone. */
  readonly timesOnly?: boolean;
}

/** @throws DownpourError of the experiment, its data or the engine. */
export async function openExperimentProblem(
  options: ExperimentProblemOptions,
): Promise<ExperimentProblem> {
  const { name, experiment, config, log, signal, timesOnly = false } = options;
  await openEngine(options.engine === undefined ? {} : { engine: engineOf(options.engine) });
  const folder = resolve(options.data ?? 'data');
  const { prepared, depends } = await prepareExperiment(name, experiment, config, {
    ...{ folder, log, signal },
  });
  const model = await buildModel(experiment, config, prepared);
  signal.throwIfAborted();
  const minibatches = new Minibatches(config.seed, prepared, signal);
  const { train, validation } = prepared;
  const rooms = (count: number) => Math.ceil(count / config.minibatchSize);
  return {
    tensors: model.specs.map(({ shape, ...spec }) => ({ ...spec, shape: [...shape] })),
    freeze: (groups) => void model.freeze(groups),
    data: dataSummary(prepared, depends),
    errorMeasure: model.errorMeasure,
    minibatches: { epoch: rooms(train.count), validation: rooms(validation.count) },
    initialise: (seed) => model.initialise(seed),
    async gradient(lease, parameters, payload, _seed, rowsOfStep) {
      if (timesOnly) return 1;
      model.load(parameters);
      model.rows?.from(rowsOfStep?.source ?? null);
      const step = await model.step(
        await minibatches.take(lease),
        minibatchSeed(config.seed, lease),
      );
      const { loss, gradient, discard, rows } = step;
      payload.set(gradient);
      if (rows) rowsOfStep?.put(rows);
      discard();
      return loss;
    },
    async evaluate(part, parameters, rows) {
      if (timesOnly) return { loss: 1, error: 1 };
      model.rows?.from(rows ?? null);
      const alsoTraining = part === 'validation' ? config.evaluateTraining : 0;
      return evaluate(model, parameters, prepared, part, { signal, alsoTraining });
    },
    dispose() {
      model.dispose();
      minibatches.close();
      void closeSources(prepared, log);
    },
  };
}
