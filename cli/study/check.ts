import { resolve } from 'node:path';
import { clean } from '../../shared/clean.ts';
import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { checkExperiment } from '../../worker/check/check.ts';
import { countsOf } from '../../worker/check/data.ts';
import { type Finding, finding } from '../../worker/check/finding.ts';
import { checkThroughput } from '../../worker/check/throughput.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { inMemorySample } from '../../worker/data/pieces.ts';
import { closeSources } from '../../worker/data/stored.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { type Experiment, experimentName, loadExperiment } from '../../worker/experiment.ts';
import { FasterEngine } from '../../worker/faster-engine.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareExperiment } from '../../worker/prepare.ts';
import {
  type ConfigOptions,
  configOf,
  EXIT,
  print,
  printJson,
  tell,
  untilInterrupted,
} from '../options.ts';
import { colorsOf } from '../output/progress.ts';
import { engineOf } from '../workers/options.ts';
import { checkTiny } from './check-tiny.ts';
import { createUpdater } from './updater.ts';

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
  const findings: Finding[] = [];
  const add = (found: Finding) => {
    const accepted = found.verdict === 'problem' && accept.includes(found.check);
    const told: Finding = accepted ? { ...found, verdict: 'advice' } : found;
    findings.push(told);
    if (!json) show(told);
  };
  // Nothing is under way that must be ended in good order: Ctrl-C ends the process at once, also within a long computation,
  // which would let no handler of ours run.
  const wanted = options.engine === undefined ? 'auto' : engineOf(options.engine);
  const engine = await openEngine({ engine: wanted });
  const folder = resolve(options.data ?? 'data');
  const { data, prepared: whole } = await prepareExperiment(name, experiment, config, {
    ...{ folder, log },
  });
  try {
    const prepared = await inMemorySample(whole, SAMPLE_ROWS);
    const chosen =
      wanted === 'auto' ? await chosenEngine(engine, experiment, config, prepared) : null;
    if (!json) print(`${name}: ${prepared.source}; ${chosen ?? `engine ${engine.name}`}`);
    if (whole.train.stored) add(sampleFinding(whole, prepared));
    await checkExperiment({
      ...{ experiment, config, prepared, steps, counts: countsOf(whole), onFinding: add },
      updater: (layout, initial) => createUpdater(layout, config, initial),
    });
    if (options.throughput) add(await checkThroughput(experiment, config, prepared));
    if (options.tiny) {
      const initial = findings.find(({ check }) => check === 'initial-loss');
      const loss = Number(initial?.numbers.loss);
      const initialLoss = Number.isFinite(loss) ? loss : 0;
      const interruption = untilInterrupted();
      const { signal } = interruption;
      try {
        const what = { file, experiment, base, config, data, prepared, initialLoss };
        add(await checkTiny({ ...what, options, signal, log }));
      } catch (error) {
        if (signal.aborted) return EXIT.interrupted;
        throw error;
      } finally {
        interruption.dispose();
      }
    }
  } finally {
    await closeSources(whole, tell);
  }
  const known = findings.map(({ check }) => check);
  const unknown = accept.filter((check) => !known.includes(check));
  if (unknown.length > 0) {
    throw new DownpourError(
      'DP_USAGE',
      `--accept ${unknown.join(' ')} is not a check; allowed: ${known.join(', ')}`,
    );
  }
  const problems = findings.filter(({ verdict }) => verdict === 'problem');
  if (json) printJson({ experiment: name, verdict: verdictOf(findings), findings });
  else {
    print();
    print(summary(findings));
  }
  return problems.length > 0 ? EXIT.problems : EXIT.ok;
}

/** Sets the engine that workers would choose. @returns which, and why; null: there is no choice, or no model to choose for. */
async function chosenEngine(
  engine: Engine,
  experiment: Experiment,
  config: RunConfig,
  prepared: PreparedData,
): Promise<string | null> {
  const rowCount = Math.min(config.minibatchSize, prepared.train.count);
  const rows = Int32Array.from({ length: rowCount }, (_, i) => i);
  try {
    const { model, why } = await new FasterEngine(engine).choose(
      '',
      () => buildModel(experiment, config, prepared),
      () => gather(prepared, 'train', rows),
    );
    model.dispose();
    return why;
  } catch {
    // What is wrong with the model is a finding of the checks.
    return null;
  }
}

/** Examples of each part of a source that are looked at. */
const SAMPLE_ROWS = 10_000;

/** All examples were read once, to find labels and numbers that are wrong; the checks look at fewer. */
function sampleFinding(whole: PreparedData, { train, validation }: PreparedData): Finding {
  return finding(
    'source',
    'ok',
    `The data are read from a source. Labels and numbers were checked in all ${whole.train.count + whole.validation.count} examples; the checks below look at ${train.count} training and ${validation.count} validation examples, evenly spaced.`,
    null,
    { train: train.count, validation: validation.count },
  );
}

const verdictOf = (findings: readonly Finding[]) =>
  (['problem', 'advice', 'ok'] as const).find((v) => findings.some((f) => f.verdict === v)) ?? 'ok';

const WIDTH = 19;

function show({ verdict, check, text, next }: Finding): void {
  const { green, yellow, red } = colorsOf(process.stdout);
  const paint = { ok: green, advice: yellow, problem: red }[verdict];
  process.stdout.write(`${paint(verdict.padEnd(7))}  ${check.padEnd(WIDTH)}  ${clean(text)}\n`);
  if (next !== null) print(`${' '.repeat(WIDTH + 11)}→ ${next}`);
}

function summary(findings: readonly Finding[]): string {
  const of = (verdict: Finding['verdict']) => findings.filter((f) => f.verdict === verdict);
  const [problems, advice] = [of('problem'), of('advice')];
  const names = (list: readonly Finding[]) => list.map(({ check }) => check).join(', ');
  const counts = `${findings.length} checks: ${of('ok').length} ok, ${advice.length} with advice${advice.length > 0 ? ` (${names(advice)})` : ''}, ${problems.length} with a problem${problems.length > 0 ? ` (${names(problems)})` : ''}.`;
  const few = findings.filter(({ numbers }) => numbers.needed !== undefined);
  const told =
    few.length === 0
      ? counts
      : `${counts} Not done, because there are too few examples: ${names(few)}.`;
  if (problems.length === 0) return `${told} Next: \`downpour lr-find\`, then train.`;
  return `${told} Begin with the first problem: later ones often follow from it.`;
}
