import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEFAULT_STATE } from '../cli/options.ts';
import { followRun } from '../cli/runs/follow.ts';
import { openScratch } from '../cli/scratch.ts';
import { type Copied, copyFromRun } from '../cli/trained/checkpoint-copy.ts';
import { openTrainServer, patiently, type UsedServer } from '../cli/used-server.ts';
import { startLocalWorkers } from '../cli/workers/local-workers.ts';
import type { Pool } from '../cli/workers/pool.ts';
import { readTensors } from '../files/tensor-file.ts';
import { type PartialConfig, resolveConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import { isOver } from '../shared/phases.ts';
import type { RunDetail, RunSummary, WorkerSummary } from '../shared/rest.ts';
import { createRestClient } from '../shared/rest-client.ts';
import type { EngineName } from '../worker/engine.ts';
import {
  type Experiment,
  experimentName,
  hashExperiment,
  loadExperiment,
  mustBeExperiment,
} from '../worker/experiment.ts';
import { fieldText } from '../worker/fields.ts';
import { defaultName } from '../worker/name.ts';
import type { LayersModel } from '../worker/tf.ts';
import { mustBeOptions } from './options.ts';
import { startWorker, withHash } from './worker.ts';

/** A training from its start to its end, in one call of a program. */

export interface TrainOptions {
  /**
   * Worker processes on this machine. Default: 2. With 0 others do the work: name their `server`. An experiment that is an
   * object has one worker, in this process, since no other process could be sent its functions.
   */
  readonly workers?: number;
  /** Stronger than the configuration that the experiment has by itself. */
  readonly config?: PartialConfig;
  /** Aborted: the run stops with a checkpoint, and the promise is rejected with the reason. `downpour resume` goes on. */
  readonly signal?: AbortSignal;
  /** Called a few times a second, and when the run has ended. */
  readonly onProgress?: (progress: TrainingProgress) => void;
  /** A line for the user: hints, workers that were started again. Default: nobody is told. */
  readonly log?: (line: string) => void;
  /** Name of the run. Default: the server makes one. */
  readonly run?: string;
  /** Name of an experiment that is an object; of a file it is the file's. Default: `experiment`. */
  readonly name?: string;
  /** Where the run and its checkpoints are kept. Default: `.downpour` in the working folder, as of the command. */
  readonly state?: string;
  /**
   * `http://host:port` of a server that runs already. Default: the one that runs on the state folder; if none does, one in this
   * process, for this training.
   */
  readonly server?: string;
  readonly token?: string;
  /** What `data()` is given as `folder`. Default: `DOWNPOUR_DATA`, or `data` in the working folder. */
  readonly data?: string;
  /** Default: the best one there is. */
  readonly engine?: EngineName;
}

export const TRAIN_OPTIONS: readonly string[] = [
  ...['workers', 'config', 'signal', 'onProgress', 'log', 'run', 'name'],
  ...['state', 'server', 'token', 'data', 'engine'],
];

export interface TrainingProgress {
  readonly run: RunSummary;
  readonly workers: readonly WorkerSummary[];
}

/** Numbers of a tensor, row-major. */
export interface TrainedTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

export interface TrainingResult {
  /** The finished run: losses, the best evaluation, the test, why it ended. */
  readonly run: RunDetail;
  /** The parameters that stand for the run, those of the best evaluation as a rule, by their names. */
  readonly parameters: ReadonlyMap<string, TrainedTensor>;
  /**
   * The model with these parameters, made when it is asked for, on the backend of TensorFlow.js that is set (else wasm). It
   * ends as the experiment's does, so in logits where its loss is of logits.
   * TypeScript: the declarations of this package have a copy of TensorFlow.js's own; `model<tf.LayersModel>()` is of yours.
   * @throws DownpourError DP_USAGE: the model is a function of variables.
   */
  model<Model = LayersModel>(): Promise<Model>;
}

/**
 * Trains an experiment: starts a server and workers on this machine, and ends them when the run has ended. Where a server
 * runs on the state folder already, the training uses that one.
 * @param given its file (a path, or a `file:` URL), or the experiment itself.
 * @throws DownpourError DP_RUN_FAILED: the run has failed; what loading the experiment and starting a server throws; the
 *   reason of `signal`; what `onProgress` or `log` has thrown, which stop the run as `signal` does.
 */
export async function train(
  given: string | URL | Experiment,
  options: TrainOptions = {},
): Promise<TrainingResult> {
  const { workers = 0 } = options;
  mustBeOptions('train', options, TRAIN_OPTIONS);
  if (!Number.isInteger(workers) || workers < 0 || workers > LIMITS.workerCountMax) {
    throw new DownpourError(
      'DP_USAGE',
      `workers is ${fieldText(workers)}; allowed: a whole number from 0 to ${LIMITS.workerCountMax}`,
    );
  }
  options.signal?.throwIfAborted();
  const caller = callsOf(options);
  const { signal, log } = caller;
  const subject = await subjectOf(given, options);
  const { name, experiment, hash: experimentHash } = subject;
  const config = resolveConfig(experiment.config, options.config);
  const usedServer = await openUsedServer(options, log);
  let pool: Pool | null = null;
  try {
    const { client, shared } = usedServer;
    if (shared !== undefined) log(shared);
    const { run: id } = options;
    const run = await client.createRun({
      ...{ ...(id === undefined ? {} : { id }), experiment: name, experimentHash, config },
    });
    pool = await startWorkers(subject, run.id, usedServer, options, signal, log);
    const progress = { note: log, update: caller.update };
    const ended = await followRun(client, run.id, progress, pool, signal);
    await pool?.stop();
    pool = null;
    signal.throwIfAborted();
    return await resultOf(ended.run, subject, usedServer, options);
  } finally {
    await pool?.stop();
    await usedServer.close();
  }
}

/** The caller's functions, whose errors end the training as `signal` does: then nothing goes on that nobody follows. */
function callsOf(options: TrainOptions) {
  const failed = new AbortController();
  const guard = (call: () => unknown) => {
    const fail = (error: unknown) => failed.abort(error);
    try {
      // TypeScript takes a function that returns a promise too.
      void Promise.resolve(call()).catch(fail);
    } catch (error) {
      fail(error);
    }
  };
  return {
    signal: options.signal ? AbortSignal.any([options.signal, failed.signal]) : failed.signal,
    log: (line: string) => guard(() => options.log?.(line)),
    update: (run: RunSummary, workers: readonly WorkerSummary[]) =>
      guard(() => options.onProgress?.({ run, workers })),
  };
}

/** What is trained. */
interface Subject {
  readonly experiment: Experiment;
  readonly name: string;
  readonly hash: string;
  /** Null: it is an object of this process. */
  readonly file: string | null;
}

async function subjectOf(
  given: string | URL | Experiment,
  options: TrainOptions,
): Promise<Subject> {
  if (typeof given === 'string' || given instanceof URL) {
    const isUrl = given instanceof URL || given.startsWith('file:');
    const file = isUrl ? fileURLToPath(given) : resolve(given);
    const experiment = await loadExperiment(file);
    return { experiment, name: experimentName(file), hash: await hashExperiment(file), file };
  }
  const name = experimentName(options.name ?? 'experiment');
  const experiment = mustBeExperiment(given, 'that was given');
  if ((options.workers ?? 1) > 1) {
    throw new DownpourError(
      'DP_USAGE',
      `workers is ${options.workers}, and the experiment is an object, whose functions no other process can be sent: give the name of its file, or workers: 1`,
    );
  }
  const { hash } = withHash(experiment);
  return { experiment, name, hash, file: null };
}

async function openUsedServer(
  { server, token, state = DEFAULT_STATE, workers }: TrainOptions,
  log: (line: string) => void,
): Promise<UsedServer> {
  if (server === undefined) {
    if (workers === 0) {
      throw new DownpourError(
        'DP_USAGE',
        'workers is 0, and no server is named: a server of this process alone has no other workers. Name a server, or let workers be 1 or more',
      );
    }
    return openTrainServer({ state, port: 0, ...(token === undefined ? {} : { token }) }, log);
  }
  const client = createRestClient({ server, token });
  await client.health();
  return { client, state: null, close: async () => {} };
}

async function startWorkers(
  { file, name, experiment, hash }: Subject,
  run: string,
  usedServer: UsedServer,
  options: TrainOptions,
  signal: AbortSignal,
  log: (line: string) => void,
): Promise<Pool | null> {
  const { server, token, data, engine } = options;
  const workers = options.workers ?? (file === null ? 1 : 2);
  if (workers === 0) return null;
  if (file === null) {
    return poolOf(
      startWorker({
        ...{ server: usedServer.client.url, run, once: true, name: nameHere() },
        ...{ experiments: { [name]: { experiment, hash } } },
        ...(token === undefined ? {} : { token }),
        ...(data === undefined ? {} : { data }),
        ...(engine === undefined ? {} : { engine }),
      }),
    );
  }
  const own = { server, token, data, engine };
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined));
  return startLocalWorkers({
    ...{ run, usedServer, options: { workers, ...given }, folders: [dirname(file)] },
    ...{ note: log, log: () => {} },
    isOver: async () =>
      signal.aborted ||
      (await usedServer.client.run(run).then(
        ({ phase }) => isOver(phase),
        () => false,
      )),
  });
}

let namedHere = 0;
/** Unique among the workers of this process: two trainings may share a server. */
const nameHere = () => `${defaultName()}-${++namedHere}`;

/** One worker of this process, watched as those of other processes are. */
function poolOf(worker: { readonly ended: Promise<unknown>; stop(): Promise<void> }): Pool {
  const failed = new Promise<DownpourError>((resolve) => {
    worker.ended.catch((cause: unknown) => {
      const isOurs = cause instanceof DownpourError;
      resolve(isOurs ? cause : new DownpourError('DP_INTERNAL', errorText(cause), { cause }));
    });
  });
  const ended = worker.ended.then(
    () => {},
    () => {},
  );
  return { failed, ended, pids: () => [], stop: () => worker.stop().catch(() => {}) };
}

async function resultOf(
  run: RunDetail,
  { experiment }: Subject,
  usedServer: UsedServer,
  { data = process.env.DOWNPOUR_DATA ?? 'data', log = () => {} }: TrainOptions,
): Promise<TrainingResult> {
  if (run.phase !== 'finished') {
    const what = run.phase === 'failed' ? 'failed' : 'was stopped by another user';
    throw new DownpourError('DP_RUN_FAILED', `run ${run.id} ${what}: ${run.reason}`);
  }
  const { folder, remove } = await openScratch('trained');
  let copied: Copied;
  let tensors: Awaited<ReturnType<typeof readTensors>>['tensors'];
  try {
    const file = join(folder, 'parameters');
    copied = await patiently(usedServer, () => copyFromRun(usedServer, run.id, null, file));
    ({ tensors } = await readTensors(file));
  } finally {
    await remove();
  }
  const { facts } = copied.data;
  return {
    run,
    parameters: new Map(
      tensors
        .filter(({ name }) => !name.startsWith('@'))
        .map(({ name, shape, values }) => [name, { shape, values }]),
    ),
    async model<Model>() {
      const { layersArtifacts } = await import('../worker/layers-format.ts');
      const { tf } = await import('../worker/tf.ts');
      if (!tf.getBackend())
        await (await import('../worker/engine.ts')).openEngine({ engine: 'wasm' });
      const artifacts = await layersArtifacts({
        ...{ experiment, config: run.config, tensors, facts: facts! },
        ...{ dataFolder: resolve(data), log },
      });
      if (artifacts) return (await tf.loadLayersModel(tf.io.fromMemory(artifacts))) as Model;
      throw new DownpourError(
        'DP_USAGE',
        'the model is a function of variables, and no LayersModel: use `parameters`',
      );
    },
  };
}
