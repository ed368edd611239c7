import type { ConnectionOptions } from 'node:tls';
import { bytesOf } from '../shared/codec.ts';
import {
  type DataFacts,
  decodeFacts,
  encodeFacts,
  factsFor,
  hasVocabulary,
} from '../shared/data-facts.ts';
import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import type { Log } from '../shared/log.ts';
import type {
  Acknowledgement,
  Assign,
  DataSummary,
  End,
  Idle,
  Initialise,
  Join,
  MissingExperiment,
} from '../shared/protocol.ts';
import { encodeRows, type TableRows } from '../shared/rows.ts';
import { onceEach, Said } from '../shared/said.ts';
import { isForEvaluations } from './batch.ts';
import { classWeightsText } from './class-weights.ts';
import { Client } from './client.ts';
import type { PreparedData } from './data/examples.ts';
import { dataSummary, factsOf } from './data/facts.ts';
import { closeSources, collect } from './data/stored.ts';
import { coverageText, PretrainedTables } from './embeddings/table-vectors.ts';
import { type Engine, type EngineName, openEngine } from './engine.ts';
import type { Experiment } from './experiment.ts';
import { FasterEngine } from './faster-engine.ts';
import { reportMachine } from './machine.ts';
import { buildModel, type Model } from './model.ts';
import { defaultName } from './name.ts';
import { dataSettings, prepareExperiment } from './prepare.ts';
import { matchText } from './pretrained/pretrained.ts';
import { RowsLost } from './rows/requests.ts';
import { rangesFor } from './shard-links.ts';
import { type BundleSource, type GivenExperiment, Shelf } from './shelf.ts';
import { shownExamples } from './shown-examples.ts';
import { ShownText } from './shown-text.ts';
import { createTrainer, type Trainer, type TrainerProgress } from './trainer.ts';

/** How often a worker without a run looks for an experiment that one waits for. */
const LOOK_MS = 1_000;

/** The worker process: takes assignments one after another until it is told to end. */

export interface WorkerOptions {
  /** `ws://host:port` */
  readonly server: string;
  /** Only this run, or null: any that the server has. */
  readonly run: string | null;
  /** Unique among the workers of a server. Default: made of the host and the process. */
  readonly name?: string;
  /** A function: asked anew for each connection, since it may change. */
  readonly token?: string | (() => string | null);
  /** For `wss://`: whom to trust, and our own certificate. */
  readonly tls?: ConnectionOptions;
  /** The name of an engine, or one that is open already. */
  readonly engine?: EngineName | 'auto' | Engine;
  readonly threads?: number;
  /**
   * This process is the worker's alone, so each model may get the engine that is faster for it, where `engine` is `auto`.
   * The function is told which, in one line.
   */
  readonly onEngine?: (line: string) => void;
  /** Where experiments lie. */
  readonly folders: readonly string[];
  /** Experiments that this process has already, by name; they come before those of the folders. */
  readonly experiments?: Readonly<Record<string, GivenExperiment>>;
  /** The source of experiments that operators have sent; null: they are not run. Absent: it knows nothing of them. */
  readonly bundles?: BundleSource | null;
  /** Where data lies, absolute. */
  readonly dataFolder: string;
  /** Ends when the first run that it worked for has ended. */
  readonly once?: boolean;
  /** Aborted: hands its leases back and ends in good order. */
  readonly signal: AbortSignal;
  readonly log: Log;
  readonly onProgress?: (progress: TrainerProgress) => void;
  /** What became of a push. */
  readonly onAcknowledged?: (acknowledgement: Acknowledgement) => void;
  /** How long to look for a server that was never reached, ms; null: for ever. */
  readonly patienceMs?: number | null;
  /** False: TCP also to a server on this machine. */
  readonly localSocket?: boolean;
  /** False: runs whose parameters are on several shards are not for this worker. */
  readonly reachesShards?: boolean;
}

export interface WorkerResult {
  /** The ends of the runs that this worker had then, oldest first. */
  readonly ended: readonly Omit<End, 'type'>[];
}

/** What the worker holds of the run it is assigned to. */
interface AssignedRun {
  readonly assign: Assign;
  readonly summary: DataSummary;
  /** What the run keeps about its data. */
  readonly facts: DataFacts;
  readonly prepared: PreparedData;
  readonly model: Model;
  /** Null: the one of `hello`. */
  readonly engine: EngineName | null;
  readonly trainer: Trainer;
  /** Null: no table begins with vectors of a file. */
  readonly pretrained: PretrainedTables | null;
}

/** What a trained model can be used for. */
export function usesOf(
  { predicts, hasTopology }: Pick<Model, 'predicts' | 'hasTopology'>,
  { batch }: Pick<Experiment, 'batch'>,
): NonNullable<DataFacts['uses']> {
  // No file for tf.loadLayersModel has a `batch`.
  const isFile = hasTopology && !isForEvaluations(batch);
  return [...(predicts ? (['predict'] as const) : []), ...(isFile ? (['tfjs'] as const) : [])];
}

/**
 * Works until the signal is aborted, the run it was started for has ended, or something fails that
 * trying again cannot mend.
 * @throws DownpourError with a code of `retry: 'never'`, after having told the server.
 */
export async function runWorker(options: WorkerOptions): Promise<WorkerResult> {
  const { run, signal, log, bundles, folders, experiments } = options;
  const shelf = new Shelf({ folders, log, bundles: bundles ?? null, given: experiments ?? {} });
  await shelf.look();
  const { engine = 'auto', threads } = options;
  const opened =
    typeof engine === 'object'
      ? engine
      : await openEngine({ engine, ...(threads === undefined ? {} : { threads }) });
  log(`engine ${opened.name} on ${opened.device}`);
  for (const note of opened.notes) log(`  ${note}`);
  if (signal.aborted) return { ended: [] };
  const client = new Client({
    server: options.server,
    token: options.token ?? null,
    ...(options.tls ? { tls: options.tls } : {}),
    hello: {
      worker: options.name ?? defaultName(),
      run,
      experiments: shelf.hashes,
      engine: opened.name.slice(0, 100),
      device: opened.device.slice(0, 200),
    },
    signal,
    log,
    patienceMs: options.patienceMs ?? null,
    localSocket: options.localSocket !== false,
    ...(bundles === undefined ? {} : { acceptsBundles: bundles !== null }),
  });
  reportMachine(client, opened.name, signal);
  const chooses = engine === 'auto' && options.onEngine !== undefined;
  const worker = new Worker(options, client, shelf, chooses ? new FasterEngine(opened) : null);
  try {
    return await worker.work();
  } catch (error) {
    if (!signal.aborted) throw error;
    client.send({ type: 'leave', failure: null });
    return { ended: worker.ended };
  } finally {
    worker.release();
    await client.close();
  }
}

class Worker {
  readonly ended: Omit<End, 'type'>[] = [];
  readonly #options: WorkerOptions;
  readonly #client: Client;
  readonly #shelf: Shelf;
  /** Null: every model is computed by the engine that is open. */
  readonly #faster: FasterEngine | null;
  /** Aborted: it need not look for experiments any more. */
  #looking: AbortController | null = null;
  #assignment: AssignedRun | null = null;
  /** What is the same for all runs of an experiment: notes about its data, and how its steps are computed. */
  readonly #logOnce: Log;
  /** Why the experiments cannot be read; cleared when they can. */
  readonly #unread = new Said();

  constructor(options: WorkerOptions, client: Client, shelf: Shelf, faster: FasterEngine | null) {
    this.#options = options;
    this.#client = client;
    this.#shelf = shelf;
    this.#faster = faster;
    this.#logOnce = onceEach(options.log);
  }

  async work(): Promise<WorkerResult> {
    for (;;) {
      const { message, payload, rows, release } = await this.#client.next();
      const facts =
        message.type === 'assign' && message.facts ? decodeFacts(bytesOf(payload)) : null;
      if (message.type !== 'work') release?.();
      if (message.type === 'assign' || message.type === 'idle') this.#lookNoMore();
      if (message.type === 'assign') await this.#assign(message, facts);
      else if (message.type === 'idle') this.#idle(message);
      else if (message.type === 'end') {
        this.#end(message);
        if (this.#options.once || this.#options.run !== null) return { ended: this.ended };
      } else {
        const assignment = this.#assignment;
        // The message is for a run that has been left meanwhile.
        if (assignment?.assign.run !== message.run) {
          if (message.type === 'work') release?.();
          continue;
        }
        const { trainer } = assignment;
        await this.#work(assignment, () =>
          message.type === 'initialise'
            ? this.#initialise(assignment, message)
            : trainer.work(message, payload, release, rows),
        );
      }
    }
  }

  /** @param facts of the run that a fork began with. */
  async #assign(assign: Assign, facts: DataFacts | null): Promise<void> {
    const { connections } = this.#client;
    try {
      if (!this.#holds(assign)) {
        this.release();
        // Also of this run: they were computed under another configuration, or in other parts.
        this.#client.forget(null);
        this.#assignment = await this.#prepare(assign, facts);
      }
    } catch (error) {
      await this.#refuse(assign, error);
      return;
    }
    const { model, engine, summary, facts: own, trainer } = this.#assignment!;
    // Over a new connection it is assigned again, also where it was lost while data were loaded.
    if (this.#client.connections !== connections) return;
    if (await this.#client.suit(4 * model.layout.exchangedSize)) return;
    if (!(await this.#client.attach(assign, model.layout))) return;
    if (this.#client.connections !== connections) return;
    const takes: Client['takes'] = (aside) => this.#client.takes(aside);
    if (model.layout.trainableSize === 0 && !takes('rowsAlone')) {
      const error = new DownpourError(
        'DP_PROTOCOL_VERSION',
        `the model of run ${assign.run} has rows of tables alone, and the server is of an older release, which needs a trainable tensor: update the server, or give the model a layer with weights`,
      );
      await this.#refuse(assign, error);
      return;
    }
    const join: Join = {
      type: 'join',
      run: assign.run,
      experimentHash: assign.experimentHash,
      tensors: model.specs.map(({ shape, ...spec }) => ({
        ...spec,
        shape: [...shape],
      })),
      data: summary,
      facts: 'json',
      errorMeasure: model.errorMeasure,
      ...(engine === null ? {} : { engine }),
      seen: this.#client.seen(assign.run) ?? null,
    };
    if (hasVocabulary(own) && !takes('vocabulary')) {
      this.#logOnce(
        `the server is of an older release, which keeps no texts of ids: \`look\` and \`export\` will show ids instead; update the server`,
      );
    }
    this.#client.send(join, encodeFacts(factsFor(own, takes)));
    trainer.noteRejoin();
  }

  /** The connection was lost and the same run is assigned again: nothing need be loaded. */
  #holds({ run, experimentHash, config, shards }: Assign): boolean {
    const held = this.#assignment?.assign;
    return (
      held?.run === run &&
      held.experimentHash === experimentHash &&
      held.shards.length === shards.length &&
      JSON.stringify(held.config) === JSON.stringify(config)
    );
  }

  async #prepare(assign: Assign, facts: DataFacts | null): Promise<AssignedRun> {
    const { run, config } = assign;
    const { dataFolder, log, signal, onProgress, onAcknowledged } = this.#options;
    const experiment = await this.#shelf.load(assign, this.#client.server, signal);
    const { prepared, depends } = await prepareExperiment(assign.experiment, experiment, config, {
      ...{ folder: dataFolder, log: this.#logOnce, facts, signal },
    });
    const summary = dataSummary(prepared, depends);
    const build = () => buildModel(experiment, config, prepared);
    const rowCount = Math.min(config.minibatchSize, prepared.train.count);
    const rows = Int32Array.from({ length: rowCount }, (_, i) => i);
    const key = JSON.stringify([assign.experimentHash, config.hyperparameters, rowCount]);
    const {
      model,
      engine = null,
      why = null,
    } = this.#faster
      ? await this.#faster.choose(key, build, () => collect(prepared, 'train', rows))
      : { model: await build() };
    if (why !== null) {
      log(`run ${run}: ${why}`, { run });
      this.#options.onEngine?.(why);
    }
    log(
      `run ${run}: ${assign.experiment}, ${prepared.source}, ${model.layout.trainableSize} parameters`,
      { run },
    );
    for (const [name, weights] of Object.entries(model.classWeights)) {
      const target = name === 'targets' ? '' : ` of '${name}'`;
      const classes = prepared.train.fields?.[name]?.classes ?? prepared.classes;
      log(`run ${run}: class weights${target}: ${classWeightsText(weights, classes)}`, { run });
    }
    if (model.pretrained && experiment.pretrained) {
      log(`run ${run}: ${matchText(model.pretrained, experiment.pretrained.from)}`, { run });
    }
    const { bindings = [] } = model.rows ?? {};
    const { tables = {} } = experiment;
    const args = { folder: dataFolder, ...dataSettings(config), log: this.#logOnce };
    const vectors = { tables, config, args, prepared, bindings, signal };
    const pretrained = await PretrainedTables.open(vectors);
    for (const each of pretrained?.coverage() ?? []) {
      log(`run ${run}: ${coverageText(each)}`, { run });
    }
    const { architecture } = model;
    const own: DataFacts = {
      ...factsOf(prepared),
      uses: usesOf(model, experiment),
      ...(architecture && { architecture }),
    };
    // If they are too long, it is told now.
    encodeFacts(own);
    const exchange = this.#client;
    const ranges = rangesFor(model.layout, assign);
    if (ranges.length > 1 && this.#options.reachesShards === false) {
      model.dispose();
      throw new DownpourError(
        'DP_SHARD_LOST',
        `the parameters of run ${run} are on ${ranges.length} shards, and this worker reaches its server alone: use downpour work`,
      );
    }
    const examplesMax = config.observe.examples ?? LIMITS.shownExamplesDefault;
    const text = new ShownText(model, prepared);
    const show = () => shownExamples(model, experiment, prepared, examplesMax, text);
    const trainer = createTrainer({
      ...{ run, config, model, prepared, ranges, exchange, signal, log },
      warn: this.#logOnce,
      ...{ onProgress, onAcknowledged, show },
      ...(pretrained && { frozenRows: (table) => pretrained.frozen(table) }),
    });
    return { assign, summary, facts: own, prepared, model, engine, trainer, pretrained };
  }

  /** A worker that fails at its work gives its leases back, and says why: only its own log would tell otherwise. */
  async #work({ assign }: AssignedRun, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (this.#options.signal.aborted) throw error;
      this.#client.forget(null);
      this.release();
      await this.#refuse(assign, error);
    }
  }

  #idle({ missing = [] }: Idle): void {
    if (missing.length === 0) {
      this.#options.log('no run for this worker now; waiting');
    } else {
      this.#shelf.tellMissing(missing);
      this.#looking = new AbortController();
      void this.#look(missing, this.#looking.signal);
    }
  }

  /** What runs wait for may come at any time: from an operator, from a person, or by a mounted folder. */
  async #look(missing: readonly MissingExperiment[], stopped: AbortSignal): Promise<void> {
    const signal = AbortSignal.any([stopped, this.#options.signal]);
    while (!signal.aborted) {
      try {
        const found = await this.#shelf.look();
        this.#unread.clear();
        const fetched = await this.#shelf.obtain(missing, this.#client.server, signal);
        // Something else may have come to do meanwhile.
        if ((found || fetched) && !signal.aborted) this.#client.announce(this.#shelf.hashes);
      } catch (error) {
        if (signal.aborted) return;
        const text = `the experiments cannot be read: ${errorText(error)}`;
        if (this.#unread.isNew(text)) this.#options.log(text, { level: 'warn' });
      }
      await pause(LOOK_MS, signal);
    }
  }

  #lookNoMore(): void {
    this.#looking?.abort();
    this.#looking = null;
  }

  /** Tells the server, so that it assigns this run no more; a worker for that run alone ends. */
  async #refuse({ run }: Assign, error: unknown): Promise<void> {
    const code = errorCode(error);
    const message = refusalText(error).slice(0, 2000);
    this.#client.send({ type: 'leave', failure: { code, message } });
    const { once, run: only, log } = this.#options;
    if (once || only !== null || !(error instanceof DownpourError)) throw error;
    log(`run ${run} is not for this worker: ${code} ${message}`, { level: 'warn', run, code });
    this.#shelf.refuse(run);
    // A file has changed since `hello`.
    if (code === 'DP_EXPERIMENT_MISMATCH' && (await this.#shelf.look())) {
      this.#client.announce(this.#shelf.hashes);
    }
  }

  async #initialise(assigned: AssignedRun, message: Initialise): Promise<void> {
    const { model, trainer, assign, pretrained } = assigned;
    const { grant, seed, frozen } = message;
    trainer.freeze(frozen);
    const parameters = await model.initialise(seed);
    const { shapes = [] } = model.rows ?? {};
    const give = (rows: readonly TableRows[]) =>
      this.#client.giveRows(
        { type: 'initialRows', run: assign.run, grant },
        encodeRows(shapes, rows, 'f32'),
      );
    try {
      await pretrained?.send(shapes, give);
    } catch (error) {
      // It is assigned again over the next connection, and the server asks anew.
      if (error instanceof RowsLost) return;
      throw error;
    }
    this.#client.initialise({ type: 'initialised', run: assign.run, grant }, parameters);
  }

  #end({ run, phase, reason }: End): void {
    this.#options.log(`run ${run} ${phase}: ${reason}`, { run });
    this.ended.push({ run, phase, reason });
    this.#client.forget(null);
    this.release();
  }

  release(): void {
    this.#lookNoMore();
    this.#assignment?.model.dispose();
    this.#assignment?.trainer.close();
    // In the background: a source that takes long to close is not waited for.
    if (this.#assignment) void closeSources(this.#assignment.prepared, this.#options.log);
    this.#assignment = null;
  }
}

/** What failed, and what to do, for those who do not see the log of this worker. */
const refusalText = (error: unknown) =>
  error instanceof DownpourError
    ? errorText(error)
    : `${errorText(error)}: the code of the experiment or the engine failed; the log of this worker says where`;

/** Ends early when the signal is aborted. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener('abort', end);
    if (signal.aborted) end();
  });
}
