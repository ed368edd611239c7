import { join, resolve } from 'node:path';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { COMBINATIONS, type Combination } from '../../study/combine.ts';
import { type EnsembleReport, ensembleReport } from '../../study/ensemble.ts';
import { failureOf, failuresText } from '../../study/failures.ts';
import { ensemblePlan, type MemberKind, parseMembers } from '../../study/members.ts';
import { writeWhole } from '../../study/record.ts';
import { writeReport } from '../../study/report.ts';
import type { Trial } from '../../study/study.ts';
import { toldReport, trialsReport } from '../../study/telling.ts';
import { closeSources } from '../../worker/data/stored.ts';
import { experimentName, loadExperiment } from '../../worker/experiment.ts';
import { outputNamed, outputsOf } from '../../worker/outputs.ts';
import { loadData } from '../../worker/prepare.ts';
import { configOf, EXIT, tell } from '../options.ts';
import { showReport } from '../output/report.ts';
import { openUsedServer, type UsedServer } from '../used-server.ts';
import { type Examination, examineMembers, type MemberSource, noTestPart } from './members.ts';
import { defaultStudyName, type StudyCommandOptions, studyCommand } from './study.ts';
import { Teller } from './tell.ts';

/** What `--combine` takes. */
export type CombinationWay = Combination | 'weights';

export interface EnsembleOptions extends StudyCommandOptions {
  readonly members: string;
  readonly runs?: readonly string[];
  readonly cycleEpochs: number;
  readonly averages?: boolean;
  readonly combine?: readonly CombinationWay[];
  readonly tolerance: number;
  readonly accuracy?: number;
  readonly recall: number;
  readonly costs?: readonly number[];
  readonly halfSeed: number;
  readonly test?: boolean;
  /** Name of the output that is combined; one of several must be named. */
  readonly output?: string;
  readonly stateGiven: boolean;
}

/** `downpour ensemble <experiment>`. @returns the exit code. */
export async function ensembleCommand(file: string, options: EnsembleOptions): Promise<number> {
  const spec = options.runs ? null : parseMembers(options.members);
  await checkMembers(file, options, spec?.kind ?? null);
  if (!spec) return ofRuns(file, options, options.runs!);
  const { cycleEpochs, averages = false } = options;
  return studyCommand('ensemble', file, options, ({ base }) => {
    const plan = ensemblePlan({ ...spec, cycleEpochs, averages, base });
    const cycle = spec.kind === 'snapshots' ? { cycleEpochs } : {};
    return {
      // How they are combined changes the report, not the runs.
      settings: { members: spec, averages, ...cycle },
      plan,
      trialCount: plan.trialCount,
      report: trialsReport,
      conclude: (name, trials, context) =>
        reportOf(name, { file, kind: spec.kind, ...sourcesOf(trials) }, options, context),
    };
  });
}

/** Without training: the members are there. */
async function ofRuns(
  file: string,
  options: EnsembleOptions,
  runs: readonly string[],
): Promise<number> {
  if (new Set(runs).size < 2 || new Set(runs).size < runs.length) {
    throw new DownpourError(
      'DP_USAGE',
      `--runs is ${runs.join(',')}: an ensemble is of two different runs or more`,
    );
  }
  const name = options.name ?? defaultStudyName('ensemble', file, runs);
  const folder = resolve(options.out ?? join('studies', name));
  const usedServer = await openUsedServer({ ...options, run: runs[0] });
  try {
    const sources = runs.map((run): MemberSource => ({ run, label: run, role: 'member' }));
    const what = { file, kind: null, sources, notes: [] };
    const report = await reportOf(name, what, options, { usedServer, folder });
    const paths = await writeReport(folder, report);
    const own = { kind: 'ensemble', state: 'ended', experiment: experimentName(file) } as const;
    const facts = { ...own, run: null, trials: null, runs };
    await new Teller(usedServer.client, name, tell).last(toldReport(facts, report));
    showReport(report, paths, options.json);
    return EXIT.ok;
  } finally {
    await usedServer.close();
  }
}

interface AskedEnsemble {
  readonly file: string;
  /** Null: runs of the user's. */
  readonly kind: MemberKind | null;
  readonly sources: readonly MemberSource[];
  readonly notes: readonly string[];
}

/** @throws DownpourError DP_RUN_FAILED, or why no worker could train one: fewer than two members were trained. */
function sourcesOf(trials: readonly Trial[]): Pick<AskedEnsemble, 'sources' | 'notes'> {
  const ended = trials.filter(({ end }) => end?.kind === 'finished');
  const sources = ended.map(({ id, label, point }): MemberSource => {
    if (!('average' in point)) return { run: id, label, role: 'member' };
    // Averages are of the first one's training.
    return { run: id, label, role: 'average', raw: 0 };
  });
  if (sources.filter(({ role }) => role === 'member').length < 2) {
    const none = failureOf(trials, ended.length);
    throw new DownpourError(
      none?.code ?? 'DP_RUN_FAILED',
      `an ensemble needs two members that were trained to their end: ${none?.message ?? failuresText(trials) ?? 'there is one'}`,
    );
  }
  const failed = failuresText(trials);
  return { sources, notes: failed === null ? [] : [failed] };
}

/** @throws DownpourError DP_USAGE for a way that these members or answers do not allow, or an experiment without answers. */
async function checkMembers(
  file: string,
  options: EnsembleOptions,
  kind: MemberKind | null,
): Promise<void> {
  const { combine = [], costs, runs } = options;
  if (costs && costs.length !== runs?.length) {
    throw new DownpourError(
      'DP_USAGE',
      `--costs has ${costs.length} numbers; it takes one for each of --runs (${runs?.length ?? 0})`,
    );
  }
  if (combine.includes('weights') && kind !== null && kind !== 'snapshots') {
    throw new DownpourError(
      'DP_USAGE',
      `members of kind '${kind}' start from different initial parameters, so the mean of their parameters is not a useful model; use snapshots of one run: --members snapshots:5`,
    );
  }
  const needsClasses = combine.filter((way) => way !== 'mean' && way !== 'weights');
  // Before members are trained or asked, not after.
  if (needsClasses.length === 0 && kind === null && !options.test) return;
  const experiment = await loadExperiment(file);
  const config = resolveConfig(experiment.config ?? {}, configOf(options));
  const { data } = await loadData(experimentName(file), experiment, config, {
    folder: resolve(options.data ?? 'data'),
    log: () => {},
  });
  // Nothing is read: what the data are like is known.
  await closeSources(data, tell);
  if (options.test && !data.test) throw noTestPart();
  const known = { ...data, classCount: data.classCount ?? null };
  const { classCount, loss } = outputNamed(outputsOf(experiment, known), options.output);
  const isNumbers = classCount === null && loss !== 'sigmoidCrossEntropy';
  if (isNumbers && needsClasses.length > 0) throw onlyNumbers(needsClasses);
}

function onlyNumbers(ways: readonly CombinationWay[]): DownpourError {
  return new DownpourError(
    'DP_USAGE',
    `the answers of this experiment are numbers, which say nothing of how sure they are: ${ways.join(', ')} need classes, or yes and no; of numbers there is the mean`,
  );
}

async function reportOf(
  name: string,
  { file, kind, sources, notes }: AskedEnsemble,
  options: EnsembleOptions,
  { usedServer, folder, signal }: { usedServer: UsedServer; folder: string; signal?: AbortSignal },
): Promise<EnsembleReport> {
  const { combine, tolerance, accuracy = null, recall, halfSeed: seed, test = false } = options;
  const { data, engine, costs } = options;
  if (!options.quiet)
    tell(`asking ${sources.length} models about the validation${test ? ' and the test' : ''} part`);
  const examination = await examineMembers(usedServer, sources, {
    ...{ file, folder, test, features: combine?.includes('controller') ?? true },
    output: options.output,
    weights: combine ? combine.includes('weights') : kind === 'snapshots',
    ...(data === undefined ? {} : { data }),
    ...(engine === undefined ? {} : { engine }),
    ...(costs ? { costs } : {}),
    ...(signal ? { signal } : {}),
  });
  const at = new Date().toISOString();
  const { validation } = examination;
  const { answers } = validation.members[0]!;
  const isNumbers = answers.kind === 'numbers';
  const wanted = COMBINATIONS.filter((way) => combine?.includes(way) ?? true);
  const combinations: readonly Combination[] = isNumbers
    ? wanted.filter((way) => way === 'mean')
    : wanted;
  if (combine && combinations.length < wanted.length) {
    throw onlyNumbers(wanted.filter((way) => !combinations.includes(way)));
  }
  const uncontrolled = !isNumbers && answers.perExample > 1 && wanted.includes('controller');
  const report = ensembleReport(
    {
      ...{ name, combinations, tolerance, accuracy, recall, seed },
      notes: uncontrolled
        ? [...notes, 'An example has several answers here: there is no controller.']
        : notes,
    },
    validation,
    examination.test && { examined: examination.test, at },
  );
  const output = options.output === undefined ? {} : { output: options.output };
  const record = { ...recordOf(name, report, examination, at), ...output };
  await writeWhole(join(folder, 'ensemble.json'), `${JSON.stringify(record, null, 2)}\n`);
  return report;
}

/** Enough to use the ensemble elsewhere; docs/methodology.md says how. */
function recordOf(
  name: string,
  { use, fitted, validation, test }: EnsembleReport,
  { members, averages }: Examination,
  at: string,
): Record<string, unknown> {
  return {
    ...{ version: 1, study: name, use: { way: use.way, name: use.name } },
    members: members.map((member, i) => ({
      ...{ ...member, temperature: fitted.temperatures[i] ?? null },
    })),
    ...{
      averages,
      pooled: fitted.pooled,
      bestMember: fitted.best,
      gater: fitted.gater,
      cascades: fitted.cascades,
    },
    ...{ validation, test: test && { at, measured: test } },
  };
}
