import { join, resolve } from 'node:path';
import { readTensors } from '../../files/tensor-file.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Observations, RunSummary } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import type { SampledRun } from '../../study/observations.ts';
import { answersOfEach } from '../../worker/answers.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { mustBeDataOf } from '../../worker/data/facts.ts';
import { closeSources } from '../../worker/data/stored.ts';
import { openEngine } from '../../worker/engine.ts';
import {
  type Experiment,
  experimentName,
  hashExperiment,
  loadExperiment,
} from '../../worker/experiment.ts';
import { vectorOf } from '../../worker/layers-format.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import type { ExperimentOutput } from '../../worker/outputs.ts';
import { prepareExperiment } from '../../worker/prepare.ts';
import type { RowSource } from '../../worker/rows/model-rows.ts';
import { type ServerOptions, tell } from '../options.ts';
import { openScratch } from '../scratch.ts';
import { openUsedServer } from '../used-server.ts';
import { engineOf } from '../workers/options.ts';
import { type CheckpointFacts, type Copied, copyFromFile, copyFromRun } from './checkpoint-copy.ts';
import { giveRows } from './trained-rows.ts';
import { runsAndTrials } from './trials.ts';

/** A trained model for commands that look at its answers: its parameters, its data, an engine. */

export interface TrainedOptions extends ServerOptions {
  readonly state: string;
  readonly stateGiven: boolean;
  readonly run?: string;
  readonly checkpoint?: string;
  readonly kind?: 'best' | 'last' | 'final';
  readonly data?: string;
  readonly engine?: string;
  /** Name of an output. Default: all that the command can use. */
  readonly output?: string;
}

export interface TrainedModel {
  readonly facts: CheckpointFacts;
  /** As `dataNote` of a run. */
  readonly note: string | null;
  readonly experiment: Experiment;
  readonly config: RunConfig;
  readonly prepared: PreparedData;
  readonly model: Model;
  /** Rows of its tables; null: it has none. */
  readonly rows: RowSource | null;
  /** What was sampled while it was trained; null: the checkpoint is a file, or nothing was. */
  readonly observed: Observations | null;
  /** What is known of the run, beside what was sampled; null: the checkpoint is a file. */
  readonly sampledRun: SampledRun | null;
  /** Gives back what the model takes on the device, and closes the sources of the data. */
  close(): Promise<void>;
}

/**
 * What a run is called where its experiment is known: given, or the newest of the experiment that is no trial of a
 * study, which may have seen a part of the data; the user is told which.
 * @throws DownpourError DP_RUN_UNKNOWN.
 */
export async function findRun(
  { client }: { readonly client: Pick<RestClient, 'runs' | 'studies' | 'url'> },
  file: string,
  run: string | undefined,
): Promise<string> {
  if (run !== undefined) return run;
  const name = experimentName(file);
  const isOurs = ({ experiment }: RunSummary) => experiment === name;
  const known = await runsAndTrials(client);
  const own = known.own.filter(isOurs);
  const newest = own.findLast(({ best }) => best !== null) ?? own.at(-1);
  if (newest) {
    const others = own.length === 1 ? '' : `, the newest of ${own.length}`;
    tell(`run ${newest.id}${others}; --run names another one`);
    return newest.id;
  }
  const trials = known.trials.filter(isOurs);
  if (trials.length > 0) {
    throw new DownpourError(
      'DP_RUN_UNKNOWN',
      `the ${trials.length} runs of experiment '${name}' at ${client.url} are all trials of studies, which are not used by default: train it, or name a trial, such as --run ${trials.at(-1)!.id}`,
    );
  }
  throw new DownpourError(
    'DP_RUN_UNKNOWN',
    `no run of experiment '${name}' is known at ${client.url}: train it first, or name a run with --run or a file with --checkpoint`,
  );
}

/**
 * Opens an engine, loads experiment and data as the run had them, and puts its parameters on the device.
 * Without `kind`: those that stand for the run.
 * @throws DownpourError DP_EXPERIMENT_MISMATCH: the checkpoint is of another experiment; or what reading throws.
 */
export async function openTrained(file: string, options: TrainedOptions): Promise<TrainedModel> {
  const experiment = await loadExperiment(file);
  const name = experimentName(file);
  const { folder, remove } = await openScratch('trained');
  try {
    const copy = join(folder, 'parameters');
    const { facts, data, note, observed, sampledRun } = await copyOf(file, copy, options);
    if (facts.experiment !== name) {
      throw new DownpourError(
        'DP_EXPERIMENT_MISMATCH',
        `run ${facts.run} is of experiment '${facts.experiment}', not of '${name}': name its file`,
      );
    }
    if (facts.experimentHash !== (await hashExperiment(file))) {
      tell(`${file} has changed since the run; the current file is used`);
    }
    const { tensors } = await readTensors(copy);
    await openEngine(options.engine === undefined ? {} : { engine: engineOf(options.engine) });
    const { config } = facts;
    if (!data.facts) tell(standardisedAnew(facts.run));
    const { prepared } = await prepareExperiment(name, experiment, config, {
      folder: resolve(options.data ?? 'data'),
      log: () => {},
      facts: data.facts,
    });
    try {
      mustBeDataOf(data, prepared);
      const model = await buildModel(experiment, config, prepared, { later: data.facts ?? {} });
      model.load(vectorOf(model.layout, tensors));
      const rows = giveRows(model, config, tensors);
      const close = () => {
        model.dispose();
        return closeSources(prepared, tell);
      };
      const own = { facts, note, experiment, config, prepared, model, rows };
      return { ...own, observed, sampledRun, close };
    } catch (error) {
      await closeSources(prepared, tell);
      throw error;
    }
  } finally {
    await remove();
  }
}

async function copyOf(
  file: string,
  to: string,
  options: TrainedOptions,
): Promise<Copied & Pick<TrainedModel, 'observed' | 'sampledRun'>> {
  if (options.checkpoint !== undefined) {
    return { ...(await copyFromFile(options.checkpoint, to)), observed: null, sampledRun: null };
  }
  const usedServer = await openUsedServer({ ...options, run: options.run });
  try {
    const id = await findRun(usedServer, file, options.run);
    const copied = await copyFromRun(usedServer, id, options.kind ?? null, to);
    const observed = await usedServer.client.observations(id);
    if (observed.samples.length === 0) return { ...copied, observed: null, sampledRun: null };
    const [{ training }, { best, config, errorMeasure }] = await Promise.all([
      usedServer.client.metrics(id),
      usedServer.client.run(id),
    ]);
    const learningRate = (i: number) => training.learningRate[i]!;
    const rates = training.step.map((step, i) => ({ step, learningRate: learningRate(i) }));
    // An error of the user's own may go below 0.
    const error = errorMeasure === 'own' ? null : (best?.error ?? null);
    return { ...copied, observed, sampledRun: { rates, optimizer: config.optimizer.kind, error } };
  } finally {
    await usedServer.close();
  }
}

/** What to say of a checkpoint that an older release wrote. */
export const standardisedAnew = (run: string) =>
  `run ${run} was made by a release that kept nothing about its data: the standardisation is computed again from the current data`;

/** The answers to training or validation examples of some outputs. The test part is looked at by `downpour test` alone. */
export function answersOfPart(
  { model, experiment, prepared }: TrainedModel,
  part: 'train' | 'validation',
  outputs?: readonly ExperimentOutput[],
  examplesMax = Infinity,
) {
  return answersOfEach(model, experiment, prepared, { part, examplesMax }, outputs);
}
