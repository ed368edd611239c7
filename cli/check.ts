import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { type RunConfig, resolveConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import { conductStudy } from '../study/study.ts';
import { type TinyResult, type TinySettings, tinyPlan, tinyResults } from '../study/tiny.ts';
import { checkExperiment } from '../worker/check/check.ts';
import { sampleOf } from '../worker/check/data.ts';
import { type Finding, finding, percent, short } from '../worker/check/finding.ts';
import { constantLoss } from '../worker/check/model.ts';
import { checkThroughput } from '../worker/check/throughput.ts';
import type { ExperimentData, PreparedData } from '../worker/data/examples.ts';
import { openEngine } from '../worker/engine.ts';
import {
  type Experiment,
  experimentName,
  hashExperiment,
  loadExperiment,
} from '../worker/experiment.ts';
import { prepareExperiment } from '../worker/prepare.ts';
import { startOwnServer } from './embedded.ts';
import { startLocalWorkers } from './local-workers.ts';
import {
  type ConfigOptions,
  configOf,
  EXIT,
  print,
  printJson,
  tell,
  untilInterrupted,
} from './options.ts';
import type { Pool } from './pool.ts';
import { colorsOf } from './progress.ts';
import { createUpdater } from './updater.ts';
import { engineOf } from './work.ts';

export interface CheckCommandOptions extends ConfigOptions {
  readonly workers: number;
  readonly steps: number;
  readonly accept?: readonly string[];
  readonly tiny: boolean;
  readonly throughput: boolean;
  readonly data?: string;
  readonly engine?: string;
  readonly verbose?: boolean;
  readonly json?: boolean;
}

/** `downpour check <experiment>`. @returns the exit code. */
export async function checkCommand(file: string, options: CheckCommandOptions): Promise<number> {
  const { steps, accept = [], json = false } = options;
  const experiment = await loadExperiment(file);
  const base = [experiment.config ?? {}, configOf(options)];
  const config = resolveConfig(...base);
  const name = experimentName(file);
  const log = options.verbose ? tell : () => {};
  const interruption = untilInterrupted();
  const { signal } = interruption;
  const findings: Finding[] = [];
  const add = (found: Finding) => {
    const accepted = found.verdict === 'problem' && accept.includes(found.check);
    const told: Finding = accepted ? { ...found, verdict: 'advice' } : found;
    findings.push(told);
    if (!json) show(told);
  };
  try {
    const engine = await openEngine(
      options.engine === undefined ? {} : { engine: engineOf(options.engine) },
    );
    const folder = resolve(options.data ?? 'data');
    const { data, prepared } = await prepareExperiment(name, experiment, config, { folder, log });
    if (!json) print(`${name}: ${prepared.source}; engine ${engine.name}`);
    await checkExperiment({
      ...{ experiment, config, prepared, steps, signal, onFinding: add },
      updater: (layout, initial) => createUpdater(layout, config, initial),
    });
    if (options.throughput) add(await checkThroughput(experiment, config, prepared, signal));
    if (options.tiny) {
      add(
        await checkTiny({ file, experiment, base, config, data, prepared, options, signal, log }),
      );
    }
  } catch (error) {
    if (signal.aborted) return EXIT.interrupted;
    throw error;
  } finally {
    interruption.dispose();
  }
  const known = findings.map(({ check }) => check);
  const unknown = accept.filter((check) => !known.includes(check));
  if (unknown.length > 0) {
    throw new DownpourError(
      'DP_USAGE',
      `--accept ${unknown.join(' ')} names no check; there are: ${known.join(', ')}`,
    );
  }
  const problems = findings.filter(({ verdict }) => verdict === 'problem');
  if (json) printJson({ experiment: name, verdict: verdictOf(findings), findings });
  else print(`\n${summary(findings)}`);
  return problems.length > 0 ? EXIT.problems : EXIT.ok;
}

const verdictOf = (findings: readonly Finding[]) =>
  (['problem', 'advice', 'ok'] as const).find((v) => findings.some((f) => f.verdict === v)) ?? 'ok';

const WIDTH = 19;

function show({ verdict, check, text, next }: Finding): void {
  const { green, yellow, red } = colorsOf(process.stdout);
  const paint = { ok: green, advice: yellow, problem: red }[verdict];
  print(`${paint(verdict.padEnd(7))}  ${check.padEnd(WIDTH)}  ${text}`);
  if (next !== null) print(`${' '.repeat(WIDTH + 11)}→ ${next}`);
}

function summary(findings: readonly Finding[]): string {
  const of = (verdict: Finding['verdict']) => findings.filter((f) => f.verdict === verdict);
  const [problems, advice] = [of('problem'), of('advice')];
  const names = (list: readonly Finding[]) => list.map(({ check }) => check).join(', ');
  const counts = `${findings.length} checks: ${of('ok').length} ok, ${advice.length} with advice${advice.length > 0 ? ` (${names(advice)})` : ''}, ${problems.length} with a problem${problems.length > 0 ? ` (${names(problems)})` : ''}.`;
  return problems.length === 0
    ? `${counts} Next: \`downpour lr-find\`, then train.`
    : `${counts} Begin with the first problem: later ones often follow from it.`;
}

const TINY_EXAMPLES = 32;
const TINY_STEPS = 300;
/** Of what the best constant answer costs. */
const TINY_LOSS = 0.1;

interface TinyOptions {
  readonly file: string;
  readonly experiment: Experiment;
  readonly base: readonly unknown[];
  readonly config: RunConfig;
  readonly data: ExperimentData;
  readonly prepared: PreparedData;
  readonly options: CheckCommandOptions;
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
}

/** Runs on a server of its own, by REST, with worker processes: all that training has. */
async function checkTiny(given: TinyOptions): Promise<Finding> {
  const { file, experiment, base, config, data, prepared, options, signal, log } = given;
  const available = data.train.count;
  const examples = Math.min(TINY_EXAMPLES, Math.max(1, Math.floor(available / 2)));
  const { loss } = experiment;
  const byError =
    (loss === 'softmaxCrossEntropy' ||
      loss === 'sigmoidCrossEntropy' ||
      experiment.error === 'misclassification') &&
    typeof experiment.error !== 'function' &&
    experiment.error !== 'loss';
  const constant = constantLoss(loss, sampleOf(prepared, 'train', 512));
  const settings: TinySettings = {
    ...{ examples, available, ownValidation: data.validation !== undefined, base },
    minibatchSize: Math.max(1, Math.min(config.minibatchSize, Math.floor(examples / 4))),
    steps: TINY_STEPS,
    workers: options.workers > 1 ? [1, options.workers] : [1],
    metric: byError ? 'trainingError' : 'trainingLoss',
    target: byError ? 0 : TINY_LOSS * (constant ?? 1),
  };
  const folder = await mkdtemp(join(tmpdir(), 'downpour-check-'));
  let pool: Pool | null = null;
  const session = await startOwnServer({ state: join(folder, 'state'), port: 0, log });
  let over = false;
  try {
    const note = options.json ? log : tell;
    pool = startLocalWorkers({
      ...{ run: null, options, session, log, note, folders: [dirname(resolve(file))] },
      isOver: async () => over || signal.aborted,
    });
    const { trials, done } = await conductStudy({
      ...{ client: session.client, name: 'check', folder, settings: 'tiny', signal },
      experiment: experimentName(file),
      experimentHash: await hashExperiment(file),
      plan: tinyPlan(settings),
      ...{ parallel: 1, lookahead: 0, keepCurves: true, onEvent: () => {} },
      failed: pool.failed,
    });
    if (!done) signal.throwIfAborted();
    return judgeTiny(tinyResults(trials, settings), settings);
  } finally {
    over = true;
    await pool?.stop();
    await session.close();
    await rm(folder, { recursive: true, force: true });
  }
}

export function judgeTiny(results: readonly TinyResult[], settings: TinySettings): Finding {
  const { examples, metric, target, steps } = settings;
  const isError = metric === 'trainingError';
  const show = (value: number | null) =>
    value === null ? 'none' : isError ? percent(value) : short(value);
  const told = results.map(({ workers, value, step }) => {
    const who = workers === 1 ? '1 worker' : `${workers} workers`;
    return `${who}: ${isError ? 'error' : 'loss'} ${show(value)} after ${step} updates`;
  });
  const numbers = { examples, target, metric, results };
  const text = `${examples} examples learnt by heart? ${told.join('; ')}${isError ? '' : ` (wanted: ${short(target)})`}.`;
  const [alone, together] = results;
  if (!alone?.learnt) {
    return finding(
      'tiny',
      'problem',
      `${text} Not even so few in ${steps} updates: a defect, or a learning rate far off, rather than underfitting (Deep Learning §11.5).`,
      'mend what the other checks found; then `downpour lr-find`; then fewer regularisers (dropout, noise) or a larger model',
      numbers,
    );
  }
  if (together && !together.learnt) {
    return finding(
      'tiny',
      'advice',
      `${text} One worker can and several cannot: staleness, not the model.`,
      'lower learningRate or momentum, bound consistency.stalenessMax, or use fewer workers; `downpour lr-find --workers-per-trial` shows the limit',
      numbers,
    );
  }
  return finding('tiny', 'ok', text, null, numbers);
}
