import { dirname, join, resolve } from 'node:path';
import type { RunConfig } from '../../shared/config.ts';
import { resolveConfig } from '../../shared/config.ts';
import { digestText } from '../../shared/digest.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { DataSummary } from '../../shared/protocol.ts';
import type { StudyReport } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { canonical } from '../../study/record.ts';
import { type Report, writeReport } from '../../study/report.ts';
import {
  bestEvaluation,
  conductStudy,
  type StudyEvent,
  type StudyPlan,
  type Trial,
} from '../../study/study.ts';
import { toldReport, trialsReport } from '../../study/telling.ts';
import {
  type Experiment,
  experimentName,
  hashExperiment,
  loadExperiment,
} from '../../worker/experiment.ts';
import {
  type ConfigOptions,
  configOf,
  EXIT,
  print,
  type ServerOptions,
  tell,
  untilInterrupted,
} from '../options.ts';
import { createProgress, errorOf, fourDigits, groups, type Progress } from '../output/progress.ts';
import { showReport } from '../output/report.ts';
import { openTrainServer, type UsedServer } from '../used-server.ts';
import { startLocalWorkers } from '../workers/local-workers.ts';
import type { Pool } from '../workers/pool.ts';
import { Teller } from './tell.ts';

/** What all studies have in common on the command line: server, workers, progress, results. */

export interface StudyCommandOptions extends ServerOptions, ConfigOptions {
  readonly workers: number;
  readonly workersPerTrial: number;
  readonly parallel?: number;
  readonly state: string;
  readonly port?: number;
  readonly data?: string;
  readonly engine?: string;
  readonly name?: string;
  readonly out?: string;
  readonly verbose?: boolean;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** What a study is made of, once the experiment is loaded. */
export interface StudyDefinition {
  /** What makes it another study: two command lines with the same go on with the same trials. */
  readonly settings: unknown;
  readonly plan: StudyPlan;
  readonly trialCount: number;
  /** Also of a study that has not ended: for those who look on. */
  readonly report: (name: string, trials: readonly Trial[]) => Report;
  /** What it ends in, where that takes more than what the trials have told; absent: `report`. */
  readonly conclude?: (
    name: string,
    trials: readonly Trial[],
    context: ReportContext,
  ) => Promise<Report>;
  readonly checkData?: (data: DataSummary) => void;
  readonly keepCurves?: boolean;
  /** Last preparations on the server, before any worker is started. @param name of the study. */
  readonly prepare?: (client: RestClient, name: string) => Promise<void>;
}

/** For reports that need more than what the trials have told. */
export interface ReportContext {
  readonly usedServer: UsedServer;
  /** Where the results are written. */
  readonly folder: string;
  readonly signal: AbortSignal;
}

export interface StudyContext {
  readonly file: string;
  readonly experiment: Experiment;
  /** Parts of the configuration of every trial, weakest first: the experiment's, the command's. */
  readonly base: readonly unknown[];
  /** The base, completed. */
  readonly config: RunConfig;
}

/** Weaker than what anybody writes: a trial is of the learning rate that it has, not of a lower one. */
const STUDY_DEFAULTS = { divergence: { rollbacksMax: 0 } } as const;

/** Stronger than what the user writes: studies compare on the validation part, and refit nothing. */
function studyBase(options: StudyCommandOptions): Record<string, unknown> {
  return {
    testAtEnd: false,
    workersMax: options.workersPerTrial,
    earlyStopping: { afterStop: 'restore' },
  };
}

/** A server that had to be open before the study could be defined; the study closes it in the end. */
export interface EarlySession {
  readonly usedServer: UsedServer;
  /** Stands in for the configuration of the experiment. */
  readonly config: unknown;
}

/** Conducts a study from its command line. @returns the exit code. */
export async function studyCommand(
  kind: string,
  file: string,
  options: StudyCommandOptions,
  define: (context: StudyContext) => StudyDefinition,
  early: EarlySession | null = null,
): Promise<number> {
  const experiment = await loadExperiment(file);
  const experimentHash = await hashExperiment(file);
  const own = early?.config ?? experiment.config ?? {};
  const base = [STUDY_DEFAULTS, own, configOf(options), studyBase(options)];
  const config = resolveConfig(...base);
  const definition = define({ file, experiment, base, config });
  const settings = { kind, config, ...(definition.settings as Record<string, unknown>) };
  const name = options.name ?? defaultStudyName(kind, file, { experimentHash, settings });
  const folder = resolve(options.out ?? join('studies', name));
  const progress = createProgress({
    screen: process.stdout,
    mode: options.json ? 'json' : options.quiet ? 'quiet' : 'lines',
    now: () => performance.now(),
  });
  const interruption = untilInterrupted(() =>
    progress.note('stopping the trials with a checkpoint each; Ctrl-C once more to stop at once'),
  );
  const log = options.verbose ? tell : () => {};
  let usedServer: UsedServer | null = null;
  let pool: Pool | null = null;
  let over = false;
  try {
    const opened = early?.usedServer ?? (await openTrainServer(options, log));
    usedServer = opened;
    const { client } = opened;
    if (opened.shared !== undefined) progress.note(opened.shared);
    await definition.prepare?.(client, name);
    if (options.workers > 0) {
      pool = startLocalWorkers({
        ...{ run: null, options, usedServer, log, folders: [dirname(resolve(file))] },
        note: (line) => progress.note(line),
        isOver: async () => over || interruption.signal.aborted,
      });
    }
    const parallel = options.parallel ?? (await parallelOf(options, usedServer));
    progress.event('started', { study: name, folder, url: client.url, parallel });
    progress.note(
      `study ${name}: ${definition.trialCount} trials, ${parallel} at a time; status at ${client.url}/status`,
    );
    progress.note('Ctrl-C leaves a checkpoint of each trial; the same command continues the study');
    const teller = new Teller(client, name, (line) => progress.note(line));
    const told = (
      state: StudyReport['state'],
      trials: readonly Trial[],
      report: Report | null = null,
    ) => {
      const ended = trials.filter(({ end }) => end !== null).length;
      const own = { kind, state, experiment: experimentName(file), run: null };
      return toldReport(
        {
          ...{ ...own, runs: trials.map(({ id }) => id) },
          trials: { ended, of: definition.trialCount },
        },
        report ?? soFar(definition, name, trials),
      );
    };
    const tellUser = tellProgress(progress, definition.trialCount);
    let known: readonly Trial[] = [];
    const outcome = conductStudy({
      ...{ client, name, folder, experimentHash, settings, parallel },
      experiment: experimentName(file),
      plan: definition.plan,
      ...(definition.checkData ? { checkData: definition.checkData } : {}),
      ...(definition.keepCurves ? { keepCurves: true } : {}),
      ...(pool ? { failed: pool.failed } : {}),
      // Shared by several, a trial that waits would take single workers from those that run.
      lookahead: options.workersPerTrial === 1 ? 1 : 0,
      signal: interruption.signal,
      onEvent(event) {
        tellUser(event);
        if (event.kind !== 'progress') return;
        known = event.trials;
        teller.inPassing(() => told('running', known));
      },
    });
    const { done, trials } = await outcome.catch(async (error: unknown) => {
      await teller.last(told('failed', known));
      throw error;
    });
    over = true;
    progress.end();
    const { signal } = interruption;
    const report = done
      ? await unlessAborted(signal, async () =>
          definition.conclude
            ? definition.conclude(name, trials, { usedServer: opened, folder, signal })
            : definition.report(name, trials),
        )
      : null;
    const failure = report?.failure ?? null;
    const state = failure ? 'failed' : report ? 'ended' : 'interrupted';
    await teller.last(told(state, trials, report));
    return await showFound(progress, report, { name, folder, json: options.json === true });
  } finally {
    over = true;
    progress.end();
    await pool?.stop();
    await usedServer?.close();
    interruption.dispose();
  }
}

/**
 * Writes and shows what a study has found. @param report null: it was interrupted. @returns the exit code.
 * @throws DownpourError: it has failed.
 */
async function showFound(
  progress: Progress,
  report: Report | null,
  {
    name,
    folder,
    json,
  }: { readonly name: string; readonly folder: string; readonly json: boolean },
): Promise<number> {
  if (!report) {
    progress.event('interrupted', { study: name });
    progress.note('stopped; the same command continues the study');
    return EXIT.interrupted;
  }
  const paths = await writeReport(folder, report);
  const { title, advice, facts, failure } = report;
  progress.event(failure ? 'failed' : 'ended', { study: name, folder, title, advice, ...facts });
  if (failure) throw new DownpourError(failure.code, failure.message);
  if (!json) {
    print();
    showReport(report, paths);
  }
  return EXIT.ok;
}

/** The trials as they stand, with the figures of those that have a value. */
function soFar({ report }: StudyDefinition, name: string, trials: readonly Trial[]): Report {
  try {
    const { title, plots } = report(name, trials);
    return { ...trialsReport(title, trials), plots };
  } catch {
    // Not every report can be made of half a study; the table can.
    return trialsReport(name, trials);
  }
}

/** @returns null: the signal came meanwhile. */
async function unlessAborted<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (signal.aborted) return null;
    throw error;
  }
}

/** The same settings give the same name, so that calling again goes on. */
export function defaultStudyName(kind: string, file: string, what: unknown): string {
  const hash = digestText(canonical(what)).slice(0, 6);
  return `${kind}-${experimentName(file).slice(0, 30)}-${hash}`;
}

/** As many trials at a time as there are workers for. */
async function parallelOf(
  { workers, workersPerTrial }: StudyCommandOptions,
  { client, state }: UsedServer,
): Promise<number> {
  const others =
    state === null
      ? (await client.status(1)).workers.filter((worker) => worker.state !== 'gone').length
      : 0;
  const all = workers + others;
  if (all === 0) {
    throw new DownpourError(
      'DP_USAGE',
      'the server has no workers and --workers is 0: start some by `downpour work`, or say by --parallel how many trials to run at a time',
    );
  }
  return Math.max(1, Math.floor(all / workersPerTrial));
}

/** Between two lines that say no more than how far the study is, ms. */
const SUMMARY_MS = 15_000;

function tellProgress(progress: Progress, trialCount: number): (event: StudyEvent) => void {
  let toldAt = performance.now();
  let toldEnded = -1;
  return (event) => {
    if (event.kind === 'note') return progress.note(event.text);
    if (event.kind === 'progress') {
      const { trials, workers } = event;
      const ended = trials.filter(({ end }) => end !== null).length;
      const isNew = ended !== toldEnded;
      if (!isNew && performance.now() - toldAt < SUMMARY_MS) return;
      toldAt = performance.now();
      toldEnded = ended;
      const active = trials.filter(({ phase, end }) => end === null && phase === 'training');
      const examples = trials.reduce((sum, trial) => sum + trial.examples, 0);
      progress.event('progress', {
        ended,
        of: trialCount,
        active: active.length,
        workers,
        examples,
      });
      if (trials.length > 0) {
        progress.note(
          `${ended} of ${trialCount} ended, ${active.length} training, ${workers} workers, ${groups(examples)} examples so far`,
        );
      }
      return;
    }
    const { trial, reason, kind } = event;
    const { id, index, point, end } = trial;
    const best = bestEvaluation(trial);
    progress.event(`trial-${kind}`, { run: id, index, point, reason, best, end });
    const result = best
      ? `: loss ${fourDigits(best.loss)}, error ${errorOf(trial)(best.error)}`
      : '';
    const what = kind === 'ended' ? (trial.end?.kind ?? kind) : kind;
    progress.note(
      kind === 'started' ? `${id} started: ${reason}` : `${id} ${what}${result} (${reason})`,
    );
  };
}
