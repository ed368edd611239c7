import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { errorFormat } from '../../shared/text.ts';
import { numberText, type Report, writeReport } from '../../study/report.ts';
import { type ScaledRun, type ScaleSettings, scaleReport } from '../../study/scale.ts';
import { experimentName, hashExperiment, loadExperiment } from '../../worker/experiment.ts';
import {
  type ConfigOptions,
  configOf,
  EXIT,
  print,
  type ServerOptions,
  tell,
  untilInterrupted,
} from '../options.ts';
import { showReport } from '../output/report.ts';
import { defaultStudyName } from '../study/study.ts';
import { openUsedServer } from '../used-server.ts';
import { conductSimulations, showArms } from './conduct.ts';
import { type ExperimentProblem, openExperimentProblem } from './experiment-problem.ts';
import { type ComputeLaw, parseLaw, slowed } from './laws.ts';
import { parseModes } from './modes.ts';
import {
  errorsText,
  type FittedWorld,
  fitWorld,
  predictionErrors,
  type Recorded,
  readRecorded,
} from './prediction.ts';
import { parseChanges, parseFailures, parseNetwork } from './world.ts';

/** What virtual workers live in, on the command line. */
export interface WorldOptions {
  readonly compute?: string;
  readonly network?: string;
  readonly service?: number;
  readonly cores?: number;
  readonly slow?: string;
  readonly failures?: string;
  readonly change?: string;
  readonly evaluation?: number;
}

export interface SimulateOptions extends WorldOptions, ConfigOptions, ServerOptions {
  readonly workers: readonly number[];
  readonly modes?: string;
  readonly seeds: number;
  readonly target?: number;
  readonly metric: 'error' | 'loss';
  /** The test part is evaluated, too, at the end of each run; absent: as configured. */
  readonly test?: boolean;
  readonly times?: number;
  readonly from?: string;
  readonly against?: readonly string[];
  readonly state: string;
  readonly stateGiven: boolean;
  readonly data?: string;
  readonly engine?: string;
  readonly name?: string;
  readonly out?: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

const COMPUTE_DEFAULT = 'gamma:100';

/** `downpour simulate <experiment>`. @returns the exit code. */
export async function simulateCommand(file: string, options: SimulateOptions): Promise<number> {
  const experiment = await loadExperiment(file);
  const experimentHash = await hashExperiment(file);
  const recorded = await readAll(options);
  const base = [
    recorded[0]?.config ?? experiment.config ?? {},
    // As many as there are, not as many as that run had.
    recorded.length > 0 ? { workersMin: 1, workersMax: null } : {},
    configOf(options),
    options.test === undefined ? {} : { testAtEnd: options.test },
    timesConfig(options.times),
  ];
  const config = resolveConfig(...base);
  const modes = parseModes(options.modes ?? config.consistency.correction ?? 'none', base);
  const world = worldOf(options, recorded[0] ? fitWorld(recorded[0], options.cores) : null);
  const { seeds, times, metric, from } = options;
  const workers = [...new Set([...options.workers, ...recorded.map((each) => each.workers)])].sort(
    (a, b) => a - b,
  );
  const settings = { workers, seeds, times, from, config, modes, world: worldText(options) };
  const name = options.name ?? defaultStudyName('simulate', file, { experimentHash, settings });
  const folder = resolve(options.out ?? join('studies', name));
  const quiet = options.quiet === true || options.json === true;
  const interruption = untilInterrupted();
  const { signal } = interruption;
  const problems = new Problems(file, options, signal);
  try {
    const runs = await conductSimulations({
      arms: Array.from({ length: seeds }, (_, i) => config.seed + i).flatMap((seed) =>
        Object.keys(modes).flatMap((mode) =>
          workers.map((count) => ({ mode, workers: count, seed })),
        ),
      ),
      signal,
      show: showArms(quiet),
      async prepare({ mode, seed }) {
        const own = resolveConfig(...base, modes[mode], { seed });
        const problem = await problems.open(own);
        const { evaluationMs = ownEvaluationMs(problem, world.compute) } = world;
        return { problem, config: own, ...world, evaluationMs };
      },
    });
    const told: ScaleSettings = {
      ...{
        metric,
        target: options.target ?? null,
        clock: 'virtual',
        about: aboutOf(options, world),
      },
      ...(times === undefined ? {} : { timesOnly: true }),
      format: metric === 'loss' ? numberText : errorFormat(problems.measure, numberText),
    };
    const plain = scaleReport(name, runs, told);
    const report = from === undefined ? plain : withErrors(plain, recorded, runs, told);
    const paths = await writeReport(folder, report);
    if (report.failure) throw new DownpourError(report.failure.code, report.failure.message);
    if (!quiet) print();
    showReport(report, paths, options.json);
    return EXIT.ok;
  } catch (error) {
    if (!signal.aborted) throw error;
    tell('stopped; nothing was written');
    return EXIT.interrupted;
  } finally {
    problems.close();
    interruption.dispose();
  }
}

/** The experiment's data and model, anew for each seed: the split is the seed's. */
class Problems {
  readonly #file: string;
  readonly #options: Pick<SimulateOptions, 'data' | 'engine' | 'times'>;
  readonly #signal: AbortSignal;
  #open: { readonly key: string; readonly problem: ExperimentProblem } | null = null;

  constructor(
    file: string,
    options: Pick<SimulateOptions, 'data' | 'engine' | 'times'>,
    signal: AbortSignal,
  ) {
    this.#file = file;
    this.#options = options;
    this.#signal = signal;
  }

  get measure() {
    return this.#open?.problem.errorMeasure;
  }

  async open(config: RunConfig): Promise<ExperimentProblem> {
    // What many workers change is the server's alone.
    const { consistency: _, ...own } = config;
    const key = JSON.stringify(own);
    if (this.#open?.key === key) return this.#open.problem;
    this.close();
    const problem = await openExperimentProblem({
      ...{ name: experimentName(this.#file), experiment: await loadExperiment(this.#file), config },
      ...{ data: this.#options.data, engine: this.#options.engine, signal: this.#signal },
      ...{ log: () => {}, timesOnly: this.#options.times !== undefined },
    });
    this.#open = { key, problem };
    return problem;
  }

  close(): void {
    this.#open?.problem.dispose();
    this.#open = null;
  }
}

/** Without gradients nothing is learnt: so many updates, and no end before. */
const timesConfig = (updates: number | undefined) =>
  updates === undefined
    ? {}
    : {
        ...{ stepsMax: updates, epochsMax: null, evaluateEverySteps: updates, testAtEnd: false },
        earlyStopping: { enabled: false, afterStop: 'restore' },
      };

/** The run that the law is of, then those that predictions are held against; none: nothing is fitted. */
async function readAll(options: SimulateOptions): Promise<Recorded[]> {
  const { from, against = [] } = options;
  if (from === undefined) {
    if (against.length === 0) return [];
    throw new DownpourError(
      'DP_USAGE',
      '--against needs --from: the run that the law is fitted to',
    );
  }
  const server = await openUsedServer({ ...options, run: from });
  try {
    const recorded: Recorded[] = [];
    for (const run of new Set([from, ...against]))
      recorded.push(await readRecorded(server.client, run));
    return recorded;
  } finally {
    await server.close();
  }
}

/** With how far the predictions are from what real runs have shown. */
function withErrors(
  report: Report,
  recorded: readonly Recorded[],
  runs: readonly ScaledRun[],
  { metric, timesOnly }: ScaleSettings,
): Report {
  const target = timesOnly ? null : (report.facts.target as number | null);
  const errors = predictionErrors(recorded, runs, { metric, target });
  const text = errorsText(errors, recorded[0]!.run);
  return {
    ...report,
    advice: `${report.advice} ${text}`,
    facts: { ...report.facts, prediction: { from: recorded[0]!.run, errors } },
  };
}

/** @throws DownpourError DP_USAGE. */
function worldOf(options: WorldOptions, fitted: FittedWorld | null = null) {
  const readTrace = (path: string) => {
    try {
      return readFileSync(path, 'utf8');
    } catch (cause) {
      throw new DownpourError(
        'DP_USAGE',
        `--compute names the trace ${path}, which cannot be read: ${errorText(cause)}`,
        { cause },
      );
    }
  };
  const { service, cores, slow, evaluation } = options;
  let compute =
    options.compute === undefined && fitted
      ? fitted.compute
      : parseLaw(options.compute ?? COMPUTE_DEFAULT, readTrace);
  if (slow !== undefined) {
    const match = /^(\d+):(\d+(?:\.\d+)?)$/.exec(slow);
    if (!match || Number(match[2]) === 0) {
      throw new DownpourError(
        'DP_USAGE',
        `--slow is '${slow}'; write workers:factor, like 1:5 for one that takes five times as long`,
      );
    }
    compute = slowed(compute, Number(match[1]), Number(match[2]));
  }
  return {
    compute,
    ...(options.network === undefined
      ? fitted && { network: fitted.network }
      : { network: parseNetwork(options.network) }),
    ...(service === undefined ? {} : { serviceMs: service }),
    ...(cores === undefined ? {} : { cores }),
    ...(options.failures === undefined ? {} : { failures: parseFailures(options.failures) }),
    ...(options.change === undefined ? {} : { changes: parseChanges(options.change) }),
    ...(fitted && { warmUpMs: fitted.warmUpMs }),
    ...(fitted?.evaluationMs !== undefined && { evaluationMs: fitted.evaluationMs }),
    ...(evaluation === undefined ? {} : { evaluationMs: evaluation }),
  };
}

/** Time of a minibatch, forward alone: about a third of what a gradient takes. */
const FORWARD = 1 / 3;

const ownEvaluationMs = ({ minibatches }: ExperimentProblem, { meanMs }: ComputeLaw) =>
  FORWARD * minibatches.validation * meanMs;

const worldText = ({
  compute,
  network,
  service,
  cores,
  slow,
  failures,
  change,
  evaluation,
}: WorldOptions) => ({
  ...{ compute, network, service, cores, slow, failures, change, evaluation },
});

function aboutOf(
  { network, service, cores, failures, change }: WorldOptions,
  { compute }: { readonly compute: ComputeLaw },
): string {
  const parts = [`Virtual workers with compute times ${compute.text} ms`];
  if (network !== undefined) parts.push(`network ${network}`);
  if (service !== undefined) parts.push(`${service} ms of the server a push`);
  if (cores !== undefined) parts.push(`${cores} core${cores === 1 ? '' : 's'} for all of them`);
  if (failures !== undefined) parts.push(`failures ${failures}`);
  if (change !== undefined) parts.push(`changes ${change}`);
  const knee =
    service === undefined
      ? ''
      : ` The server is busy all the time from about ${Math.ceil(1 + compute.meanMs / service)} workers on (1 + Z/s).`;
  return `${parts.join(', ')}.${knee}`;
}
