import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { readTensors, writeTensors } from '../../files/tensor-file.ts';
import type { Answers } from '../../shared/answers.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Layout } from '../../shared/layout.ts';
import { permutation, STREAMS } from '../../shared/random.ts';
import { onceEach } from '../../shared/said.ts';
import type { Examined, Features, Member } from '../../study/examined.ts';
import { answersOf } from '../../worker/answers.ts';
import { rowSize } from '../../worker/data/columns.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { type KnownData, mustBeDataOf } from '../../worker/data/facts.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import { closeSources, collect } from '../../worker/data/stored.ts';
import { openEngine } from '../../worker/engine.ts';
import {
  type Experiment,
  experimentFolders,
  experimentName,
  findExperiments,
  hashExperiment,
  loadExperiment,
} from '../../worker/experiment.ts';
import { vectorOf } from '../../worker/layers-format.ts';
import { minibatchSeed } from '../../worker/minibatches.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { type LoadedData, loadData, prepareOptions } from '../../worker/prepare.ts';
import { tell } from '../options.ts';
import {
  aboutModel,
  type CheckpointFacts,
  type Copied,
  copyFromRun,
} from '../trained/checkpoint-copy.ts';
import { standardisedAnew } from '../trained/trained.ts';
import { giveRows } from '../trained/trained-rows.ts';
import type { UsedServer } from '../used-server.ts';
import { engineOf } from '../workers/options.ts';

/** TrainedModel runs as members of an ensemble: their parameters, and their answers to the same examples. */

export interface MemberSource {
  readonly run: string;
  readonly label: string;
  /** An average stands for itself. */
  readonly role: 'member' | 'average';
  /** For an average in training, the index of the member that is the same training without it. */
  readonly raw?: number;
}

export interface ExamineOptions {
  /** The experiment; those of other members lie beside it. */
  readonly file: string;
  /** Where the members' parameters are kept. */
  readonly folder: string;
  readonly data?: string;
  readonly engine?: string;
  /** The cost of each source, instead of what was measured. */
  readonly costs?: readonly number[];
  /** The mean of the members' parameters as one more average. */
  readonly weights: boolean;
  /** Looks at the test part, too. */
  readonly test: boolean;
  readonly features: boolean;
  /** Name of the output that is asked about; undefined: there is one. */
  readonly output: string | undefined;
  readonly signal?: AbortSignal;
}

/** What `ensemble.json` says of each model. */
export interface MemberRecord extends CheckpointFacts {
  readonly label: string;
  /** Below the study's folder. */
  readonly file: string;
  readonly cost: number;
}

export interface Examination {
  readonly validation: Examined;
  readonly test: Examined | null;
  readonly members: readonly MemberRecord[];
  readonly averages: readonly MemberRecord[];
}

/** A member while it is looked at. */
interface AskedMember {
  readonly record: Omit<MemberRecord, 'cost'>;
  readonly copied: Copied;
  readonly role: MemberSource['role'];
  readonly raw?: number;
  readonly parameters: number;
  readonly layoutText: string;
  readonly layout: Layout;
  readonly vector: Float32Array;
  readonly validation: Answers;
  readonly test: Answers | null;
  readonly secondsPerExample: number;
}

/**
 * Opens an engine and asks each member about the examples of the validation part that none has learnt from.
 * @throws DownpourError DP_USAGE: the runs validate on different examples, or one has learnt from them;
 *   what reading a checkpoint, an experiment or its data throws.
 */
export async function examineMembers(
  usedServer: UsedServer,
  sources: readonly MemberSource[],
  options: ExamineOptions,
): Promise<Examination> {
  await openEngine(options.engine === undefined ? {} : { engine: engineOf(options.engine) });
  const experiments = new Experiments(options);
  try {
    return await examine(usedServer, sources, options, experiments);
  } finally {
    await experiments.close();
  }
}

async function examine(
  usedServer: UsedServer,
  sources: readonly MemberSource[],
  options: ExamineOptions,
  experiments: Experiments,
): Promise<Examination> {
  const asked: AskedMember[] = [];
  let features: { validation: Features | null; test: Features | null } = {
    validation: null,
    test: null,
  };
  for (const source of sources) {
    options.signal?.throwIfAborted();
    const { record, copied } = await keepMember(usedServer, source, options.folder);
    const opened = await experiments.open(copied);
    try {
      const { tensors } = await readTensors(join(options.folder, record.file));
      const vector = vectorOf(opened.model.layout, tensors);
      giveRows(opened.model, copied.facts.config, tensors);
      const { role, raw } = source;
      const own = { record, copied, role, vector, ...(raw === undefined ? {} : { raw }) };
      const one = await ask(opened, own, options);
      checkSame(asked[0], one);
      asked.push(one);
      if (asked.length === 1 && options.features && one.validation.perExample === 1) {
        const of = (part: 'validation' | 'test') => featuresOf(opened.prepared, part);
        const test = options.test ? await of('test') : null;
        features = { validation: await of('validation'), test };
      }
    } finally {
      opened.model.dispose();
    }
  }
  if (options.weights) asked.push(await askMean(asked, experiments, options));
  return examinationOf(asked, features, options);
}

function examinationOf(
  asked: readonly AskedMember[],
  features: { readonly validation: Features | null; readonly test: Features | null },
  { costs, test }: ExamineOptions,
): Examination {
  const alike = asked.every(({ layoutText }) => layoutText === asked[0]!.layoutText);
  const raw = asked.map(({ secondsPerExample }, i) =>
    // Behind them may stand their mean, of the same tensors.
    costs ? (costs[i] ?? costs[0]!) : alike ? 1 : secondsPerExample,
  );
  const cheapest = Math.min(...raw.filter((_, i) => asked[i]!.role === 'member'));
  const all = asked.map((one, i) => ({ one, cost: raw[i]! / cheapest }));
  const member = ({ one, cost }: (typeof all)[number], answers: Answers): Member => ({
    ...{ name: one.record.run, label: one.record.label, cost, answers },
    parameters: one.parameters,
    ...(one.raw === undefined ? {} : { raw: one.raw }),
  });
  const of = (role: MemberSource['role']) => all.filter(({ one }) => one.role === role);
  const records = (role: MemberSource['role']) =>
    of(role).map(({ one, cost }): MemberRecord => ({ ...one.record, cost }));
  const examined = (part: 'validation' | 'test'): Examined => ({
    members: of('member').map((entry) => member(entry, entry.one[part]!)),
    averages: of('average').map((entry) => member(entry, entry.one[part]!)),
    features: features[part],
  });
  return {
    validation: examined('validation'),
    test: test ? examined('test') : null,
    members: records('member'),
    averages: records('average'),
  };
}

/** Copies a run's parameters to where the ensemble keeps them, as `downpour export` writes them. */
async function keepMember(
  usedServer: UsedServer,
  { run, label }: MemberSource,
  folder: string,
): Promise<{ readonly record: Omit<MemberRecord, 'cost'>; readonly copied: Copied }> {
  const own = join('members', run);
  await mkdir(join(folder, own), { recursive: true });
  const file = join(own, `${run}.safetensors`);
  const copied = await copyFromRun(usedServer, run, null, join(folder, file));
  const { facts } = copied;
  if (facts.learntValidation) {
    const { afterStop } = facts.config.earlyStopping;
    throw new DownpourError(
      'DP_USAGE',
      `run ${run} was also trained on its validation part (earlyStopping.afterStop is '${afterStop}'), but members are measured on that part; train them with afterStop: 'restore'`,
    );
  }
  const about = JSON.stringify(aboutModel(copied), null, 2);
  await writeFile(join(folder, own, 'downpour.json'), `${about}\n`);
  return { record: { ...facts, label, file }, copied };
}

interface OpenedMember {
  readonly experiment: Experiment;
  readonly prepared: PreparedData;
  readonly model: Model;
}

/** Experiments and data that several members share are loaded once. */
class Experiments {
  readonly #options: ExamineOptions;
  readonly #loaded = new Map<string, Promise<Experiment>>();
  readonly #data = new Map<string, Promise<LoadedData>>();
  /** Members have the same data. */
  readonly #tellOnce = onceEach(tell);

  constructor(options: ExamineOptions) {
    this.#options = options;
  }

  async open({ facts, data }: Copied): Promise<OpenedMember> {
    const { experiment: name, experimentHash, config } = facts;
    const path = await this.#pathOf(name);
    let loading = this.#loaded.get(path);
    if (!loading) {
      loading = loadExperiment(path);
      this.#loaded.set(path, loading);
      if (experimentHash !== (await hashExperiment(path))) {
        tell(`${path} has changed since the run; the current file is used`);
      }
    }
    const experiment = await loading;
    const prepared = await this.#prepare(name, experiment, config, data);
    const later = data.facts ?? {};
    return {
      experiment,
      prepared,
      model: await buildModel(experiment, config, prepared, { later }),
    };
  }

  /** Closes the sources of all data. */
  async close(): Promise<void> {
    for (const loading of this.#data.values()) {
      const loaded = await loading.catch(() => null);
      if (loaded) await closeSources(loaded.data, tell);
    }
  }

  async #pathOf(name: string): Promise<string> {
    const { file } = this.#options;
    if (experimentName(file) === name) return file;
    const folder = dirname(resolve(file));
    const found = (await findExperiments(experimentFolders([folder]))).get(name);
    if (found) return found.path;
    throw new DownpourError(
      'DP_EXPERIMENT_UNKNOWN',
      `a member belongs to the experiment '${name}', which is not in ${folder}: put its file next to ${file}`,
    );
  }

  /** The part that is kept apart from all members stands in for the one that each validated on. */
  async #prepare(
    name: string,
    experiment: Experiment,
    config: RunConfig,
    known: KnownData,
  ): Promise<PreparedData> {
    const { seed, splitSeed, hyperparameters, validation } = config;
    const key = JSON.stringify([name, splitSeed ?? seed, hyperparameters]);
    let loading = this.#data.get(key);
    if (!loading) {
      const folder = resolve(this.#options.data ?? 'data');
      loading = loadData(name, experiment, config, { folder, log: () => {} });
      this.#data.set(key, loading);
    }
    const { data } = await loading;
    if (!known.facts) tell(standardisedAnew(known.run));
    const how = { ...prepareOptions(experiment, config), facts: known.facts };
    const reading = { log: this.#tellOnce, signal: this.#options.signal };
    const prepared = await prepareAny(data, how, reading);
    mustBeDataOf(known, prepared);
    const { apart } = validation;
    if (apart == null) return prepared;
    const held = { ...how, validation: { ...validation, fold: apart, apart: null } };
    const { validation: kept } = await prepareAny(data, held, reading);
    return { ...prepared, validation: kept };
  }
}

async function ask(
  { experiment, prepared, model }: OpenedMember,
  own: Pick<AskedMember, 'record' | 'copied' | 'role' | 'raw' | 'vector'>,
  { test, output, signal }: ExamineOptions,
): Promise<AskedMember> {
  if (test && prepared.test === null) throw noTestPart();
  const { layout } = model;
  model.load(own.vector);
  const answers = async (part: 'validation' | 'test', examplesMax = Infinity) =>
    (await answersOf(model, experiment, prepared, { part, examplesMax, output, signal })).answers;
  const validation = await answers('validation');
  // Once more, as the engine is warm now.
  const count = Math.min(TIMED, prepared.validation.count);
  const start = performance.now();
  await answers('validation', count);
  const secondsPerExample = (performance.now() - start) / 1000 / count;
  const shapes = layout.tensors.map(({ name, shape }) => `${name} ${shape}`);
  return {
    ...own,
    ...{ parameters: layout.trainableSize, layoutText: String(shapes), layout, secondsPerExample },
    ...{ validation, test: test ? await answers('test') : null },
  };
}

export function noTestPart(): DownpourError {
  return new DownpourError(
    'DP_EXPERIMENT_INVALID',
    "the experiment's data has no test part to look at: return one from data(), or leave out --test",
  );
}

/** Examples whose answers are timed. */
const TIMED = 1000;

/** @throws DownpourError DP_USAGE: the answers are not to the same examples. */
function checkSame(first: AskedMember | undefined, other: AskedMember): void {
  if (!first) return;
  const [a, b] = [first.validation, other.validation];
  const alike = a.kind === b.kind && a.width === b.width && a.perExample === b.perExample;
  if (alike && a.count === b.count && a.truths.every((truth, i) => truth === b.truths[i])) return;
  const what = alike ? 'validates on other examples than' : 'has other outputs than';
  throw new DownpourError(
    'DP_USAGE',
    `run ${other.record.run} ${what} run ${first.record.run}: one of them would be measured on examples that the other was trained on; train all members with the same seed, or with the same splitSeed and different seeds`,
  );
}

/** Minibatches that the statistics of averaged parameters are taken from, at most. */
const STATISTICS_MINIBATCHES = 200;

/**
 * Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407): the mean of the members' parameters, with
 * statistics of batch normalisation computed anew, since those of the members are of other activations.
 */
async function askMean(
  asked: readonly AskedMember[],
  experiments: Experiments,
  options: ExamineOptions,
): Promise<AskedMember> {
  const members = asked.filter(({ role }) => role === 'member');
  const { layout, layoutText, record, copied } = members[0]!;
  if (members.some((member) => member.layoutText !== layoutText)) {
    throw new DownpourError(
      'DP_USAGE',
      'the members have different tensors: there is no mean of their parameters; leave weights out of --combine',
    );
  }
  const frozen = ({ vector }: AskedMember) => vector.subarray(layout.exchangedSize);
  if (members.some((member) => frozen(member).some((v, i) => v !== frozen(members[0]!)[i]))) {
    throw new DownpourError(
      'DP_USAGE',
      'the members differ in parameters that were never trained, so the mean of the others does not fit them; leave weights out of --combine',
    );
  }
  const vector = new Float32Array(layout.size);
  for (let i = 0; i < vector.length; i++) {
    vector[i] = members.reduce((sum, member) => sum + member.vector[i]! / members.length, 0);
  }
  const opened = await experiments.open(copied);
  try {
    await renewStatistics(opened, vector, record.config);
    const own = join('members', 'mean-of-parameters');
    const file = join(own, 'mean-of-parameters.safetensors');
    await mkdir(join(options.folder, own), { recursive: true });
    const tensors = layout.tensors.map(({ name, shape, offset, size }) => ({
      ...{ name, shape, values: vector.slice(offset, offset + size) },
    }));
    const { sha256 } = await writeTensors(join(options.folder, file), tensors);
    const mean = {
      ...{ ...record, run: 'mean', kind: 'mean' as const, label: 'mean of the parameters', file },
      ...{ best: null, test: null, testedAt: null, checkpointSha256: sha256 },
    };
    return await ask(opened, { record: mean, copied, role: 'average', vector }, options);
  } finally {
    opened.model.dispose();
  }
}

/** Writes the mean statistics of training minibatches at these parameters into the vector. */
async function renewStatistics(
  { model, prepared }: OpenedMember,
  vector: Float32Array,
  { seed, minibatchSize }: RunConfig,
): Promise<void> {
  const { trainableSize, exchangedSize } = model.layout;
  if (trainableSize === exchangedSize) return;
  const order = permutation(seed, STREAMS.epoch, prepared.train.count);
  const count = Math.min(STATISTICS_MINIBATCHES, Math.ceil(order.length / minibatchSize));
  const sums = new Float64Array(exchangedSize - trainableSize);
  model.load(vector.slice());
  for (let i = 0; i < count; i++) {
    const start = i * minibatchSize;
    const rows = order.subarray(start, start + minibatchSize);
    const batch = await collect(prepared, 'train', rows);
    const { gradient } = await model.step(batch, minibatchSeed(seed, { epoch: 0, start }));
    sums.forEach((_, j) => {
      sums[j]! += gradient[trainableSize + j]! / count;
    });
  }
  vector.set(sums, trainableSize);
}

/** Inputs that a controller sees, at most: of more, neighbours are averaged. */
const FEATURES_MAX = 256;

async function featuresOf(prepared: PreparedData, part: 'validation' | 'test'): Promise<Features> {
  const examples = prepared[part]!;
  const given = Object.entries(examples.fields ?? {}).filter(([, { role }]) => role !== 'target');
  const sizes = [rowSize(examples.inputs), ...given.map(([, field]) => rowSize(field))];
  const size = sizes.reduce((a, b) => a + b, 0);
  const group = Math.ceil(size / FEATURES_MAX);
  const width = Math.ceil(size / group);
  const values = new Float32Array(examples.count * width);
  for (let row = 0; row < examples.count; row++) {
    const { inputs, fields } = await collect(prepared, part, [row]);
    let i = 0;
    for (const own of [inputs, ...given.map(([name]) => fields![name]!.values)]) {
      for (const value of own) {
        const at = Math.floor(i++ / group);
        values[row * width + at]! += value / Math.min(group, size - at * group);
      }
    }
  }
  return { values, width };
}
