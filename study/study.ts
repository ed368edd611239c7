import { setTimeout as wait } from 'node:timers/promises';
import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorCode, isAway, isLasting } from '../shared/errors.ts';
import { isFinal, isOver } from '../shared/phases.ts';
import type { DataSummary, ErrorMeasure, Phase } from '../shared/protocol.ts';
import type { Evaluation, RunSummary, Status } from '../shared/rest.ts';
import type { RestClient } from '../shared/rest-client.ts';
import type { Point } from '../shared/space.ts';
import { canonical, openRecord } from './record.ts';
import { mustShareData } from './same-data.ts';
import { trainingRate } from './training-rate.ts';

/**
 * A study: runs on a server that share its workers, conducted by REST alone. What each trial is
 * follows from the study's settings and its index, and everything decided is written down before it
 * is done; so whoever dies (this process, the server, a worker), calling the study again goes on
 * where it was, and no trial is run twice.
 */

export type Metric = 'error' | 'loss';

/** Where a trial takes its first parameters from. */
export interface Fork {
  readonly run: string;
  /** Newest of a kind, or a file. */
  readonly checkpoint: string;
  /** For people. */
  readonly step?: number;
  /** Absent: the data must be those of that run. */
  readonly data?: 'other';
}

/** Training as it went, update by update, of a study that asks for it by `keepCurves`. */
export interface TrainingCurve {
  readonly learningRate: readonly number[];
  /** The loss of each minibatch. */
  readonly loss: readonly (number | null)[];
  readonly staleness: readonly number[];
  /** As `trainingRate` has it; absent: too few updates, or of an older release. */
  readonly updatesPerSecond?: number;
}

export interface TrialEnd {
  readonly kind: 'finished' | 'killed' | 'failed';
  readonly reason: string;
  /** The code of the error for which no worker could do it, in words of `shared/errors.ts`. */
  readonly code?: string;
}

/** One run of a study, as far as it is known. Plain JSON: it is what the record holds. */
export interface Trial {
  /** From 0, in the order of the study. */
  readonly index: number;
  /** The id of the run on the server. */
  readonly id: string;
  /** For people: what is special about it. */
  readonly label: string;
  readonly point: Point;
  /** The whole of it. */
  readonly config: RunConfig;
  readonly fork?: Fork;
  /** Once it has ended. */
  curve?: TrainingCurve;
  /** What the study wants: an ended trial is left alone. */
  desire: 'run' | 'pause' | 'end';
  /** How far it may go, in the plan's own count. */
  level: number;
  end: TrialEnd | null;
  phase: Phase | 'missing';
  /** The evaluations of the validation part while training, oldest first. */
  evaluations: readonly Evaluation[];
  best: Evaluation | null;
  test: Evaluation | null;
  step: number;
  examples: number;
  seconds: number;
  data: DataSummary | null;
  errorMeasure?: ErrorMeasure | null;
  /** Trained ones of the model, once known; absent in records of older releases. */
  parameters?: number | null;
  /** What the server noticed of its optimisation. */
  hint?: string | null;
  /** What became of the gradients; absent in records of older releases. */
  pushes?: RunSummary['pushes'];
}

export interface NewTrial {
  /** Last part of the run's name. */
  readonly key: string;
  readonly label: string;
  readonly point?: Point;
  readonly config: RunConfig;
  readonly fork?: Fork;
}

export interface TrialChange {
  readonly index: number;
  readonly to: 'run' | 'pause' | 'kill';
  readonly level?: number;
  /** For the user. */
  readonly reason: string;
}

export interface Decision {
  readonly start: readonly NewTrial[];
  readonly change: readonly TrialChange[];
  /** Nothing is left to do once the trials that run have ended. */
  readonly done: boolean;
}

/** What a study does next. Pure: the same trials give the same decision after a crash. */
export interface StudyPlan {
  /** @param room how many more trials may run at the same time; can be negative. */
  decide(trials: readonly Trial[], room: number): Decision;
}

export interface StudyOptions {
  readonly client: RestClient;
  /** First part of the runs' names; with a trial's key at most 64 characters. */
  readonly name: string;
  /** For record and results. */
  readonly folder: string;
  readonly experiment: string;
  readonly experimentHash: string;
  /** Anything that makes this study another one, besides the experiment. */
  readonly settings: unknown;
  readonly plan: StudyPlan;
  /** Trials at the same time. */
  readonly parallel: number;
  /**
   * More trials that wait on the server, so that a worker that becomes free has something at once;
   * default: 1.
   */
  readonly lookahead?: number;
  /** Looks at a trial's data as soon as it is known, and throws when the study can't go on. */
  readonly checkData?: (data: DataSummary) => void;
  /** Keeps each trial's `curve` in the record: up to 2,000 updates. */
  readonly keepCurves?: boolean;
  readonly signal: AbortSignal;
  readonly onEvent: (event: StudyEvent) => void;
  /** Resolves when there will be no workers any more. */
  readonly failed?: Promise<DownpourError>;
  readonly pollMs?: number;
  /** How long the server may be away. */
  readonly patienceMs?: number;
  /** After how long idle workers have refused a trial that nobody works for. */
  readonly refusedMs?: number;
}

export type StudyEvent =
  | { readonly kind: 'note'; readonly text: string }
  | {
      readonly kind: 'started' | 'paused' | 'resumed' | 'ended';
      readonly trial: Trial;
      readonly reason: string;
    }
  | { readonly kind: 'progress'; readonly trials: readonly Trial[]; readonly workers: number };

/** `done`: every trial has ended; else the signal came first, and calling again goes on. */
export interface StudyOutcome {
  readonly done: boolean;
  readonly trials: readonly Trial[];
}

const POLL_MS = 250;
const PATIENCE_MS = 600_000;
/** A run nobody works for while workers are idle: they have refused it. A tenth, where they said why, for good. */
const REFUSED_MS = 10_000;
/** So many trials that are refused for the same reason: all others would be. */
const REFUSALS_MAX = 2;
/** A run that has just ended may still be writing the checkpoint that another begins with. */
const CHECKPOINT_MS = 60_000;

/** Conducts a study to its end, or until the signal. @throws DownpourError. */
export async function conductStudy(options: StudyOptions): Promise<StudyOutcome> {
  const { name, experimentHash, settings, folder } = options;
  const signature = canonical({ experimentHash, settings });
  const record = await openRecord<Trial>(folder, name, signature);
  const conductor = new Conductor(options, record.trials.map(revived));
  try {
    for (;;) {
      if (options.signal.aborted) {
        await conductor.interrupt();
        await record.save(conductor.trials);
        return { done: false, trials: conductor.trials };
      }
      const observed = await conductor.observe();
      const { changed, done } = conductor.decide();
      // First on paper, then on the server.
      if (observed || changed) await record.save(conductor.trials);
      await conductor.reconcile();
      if (done) return { done: true, trials: conductor.trials };
      await conductor.pause();
    }
  } catch (error) {
    // Its trials would hold up who works for the study that is begun anew.
    if (errorCode(error) === 'DP_DATA_MISMATCH') await conductor.interrupt();
    await record.save(conductor.trials).catch(() => {});
    throw error;
  }
}

/** What no worker could do is tried again by another call: the data may have been put right. */
const revived = (trial: Trial): Trial =>
  trial.end?.code === undefined ? trial : { ...trial, end: null, desire: 'run' };

class Conductor {
  readonly trials: Trial[];
  readonly #options: StudyOptions;
  readonly #stop = new AbortController();
  #failure: DownpourError | null = null;
  #status: Status | null = null;
  #dataChecked = false;
  /** When a run was first seen without workers while some were idle. */
  readonly #lonely = new Map<string, number>();
  /** When the checkpoint that a trial begins with was first found missing. */
  readonly #unborn = new Map<string, number>();

  constructor(options: StudyOptions, trials: readonly Trial[]) {
    this.#options = options;
    this.trials = [...trials];
    void options.failed?.then((error) => {
      this.#failure = error;
      this.#stop.abort();
    });
  }

  async pause(): Promise<void> {
    const { signal, pollMs = POLL_MS } = this.#options;
    const wake = AbortSignal.any([signal, this.#stop.signal]);
    await wait(pollMs, undefined, { signal: wake }).catch(() => {});
  }

  /** Asks again while the server is away. */
  async #patiently<T>(ask: () => Promise<T>): Promise<T> {
    const { signal, onEvent, patienceMs = PATIENCE_MS } = this.#options;
    for (let since: number | null = null; ; ) {
      try {
        return await ask();
      } catch (error) {
        if (!isAway(error) || signal.aborted || this.#failure) throw error;
        const answers = error.code === 'DP_SHARD_LOST';
        if (since === null) {
          const silent = error.code === 'DP_SERVER_UNREACHABLE';
          const text = silent ? 'the server does not answer; trying again' : error.message;
          onEvent({ kind: 'note', text });
        }
        since ??= performance.now();
        if (!answers && performance.now() - since > patienceMs) throw error;
        await this.pause();
      }
    }
  }

  /** Takes in what the server says. @returns whether a trial has something new. */
  async observe(): Promise<boolean> {
    const { client, onEvent, checkData } = this.#options;
    if (this.#failure) throw this.#failure;
    const status = await this.#patiently(() => client.status());
    this.#status = status;
    const runs = new Map(status.runs.map((run) => [run.id, run]));
    let isNew = false;
    for (const trial of this.trials) {
      const run = runs.get(trial.id);
      if (trial.end) {
        trial.phase = run?.phase ?? 'missing';
        continue;
      }
      if (!run) {
        trial.phase = 'missing';
        continue;
      }
      if (run.data && checkData && !this.#dataChecked) {
        checkData(run.data);
        this.#dataChecked = true;
      }
      const knew = trial.data !== null;
      if (await this.#takeIn(trial, run)) isNew = true;
      if (!knew && trial.data) mustShareData(this.trials);
    }
    const workers = status.workers.filter(({ state }) => state !== 'gone').length;
    onEvent({ kind: 'progress', trials: this.trials, workers });
    return isNew;
  }

  async #takeIn(trial: Trial, run: RunSummary): Promise<boolean> {
    const { client, onEvent } = this.#options;
    const isNew = trial.phase !== run.phase;
    trial.phase = run.phase;
    trial.step = run.step;
    trial.examples = run.examples;
    trial.seconds = run.seconds;
    trial.best = run.best;
    trial.test = run.test;
    trial.data = run.data;
    trial.errorMeasure = run.errorMeasure;
    trial.parameters = run.parameters;
    trial.hint = run.hint;
    trial.pushes = run.pushes;
    const isEnded = isFinal(run.phase);
    const last = trial.evaluations.at(-1)?.step ?? -1;
    const hasEvaluated = run.validation !== null && run.validation.step !== last;
    if (hasEvaluated || isEnded) {
      const { evaluations, training } = await this.#patiently(() => client.metrics(trial.id));
      if (isEnded && this.#options.keepCurves) {
        const { learningRate, staleness, minibatchLoss: loss } = training;
        const rate = trainingRate(training)?.updatesPerSecond;
        trial.curve = { learningRate, loss, staleness };
        if (rate !== undefined) trial.curve = { ...trial.curve, updatesPerSecond: rate };
      }
      // What follows early stopping (a refit) is no part of the contest.
      const stoppedAt = run.earlyStopping.stoppedAt ?? Infinity;
      const now = evaluations.filter((e) => e.part === 'validation' && e.step <= stoppedAt);
      // A server that was killed goes on from its checkpoint: what is known already stays.
      if (now.length >= trial.evaluations.length) trial.evaluations = now;
    }
    if (isEnded && !trial.end) {
      const kind = run.phase === 'finished' ? 'finished' : 'failed';
      this.#end(trial, kind, run.reason);
    } else if (this.#isRefused(trial, run)) {
      const error = this.#refusal(run);
      if (!error) {
        onEvent({
          kind: 'note',
          text: `${trial.id} has no worker, though some are idle: do they have the experiment '${run.experiment}' as it is here?`,
        });
      } else {
        const { code, message } = error;
        // What the trials before it gave is of other data, or no trial has any.
        if (code === 'DP_DATA_MISMATCH') throw new DownpourError(code, `${trial.id}: ${message}`);
        this.#end(trial, 'failed', `no worker can do it: ${code} ${message}`, code);
      }
    }
    return isNew || hasEvaluated || isEnded;
  }

  /** What an idle worker has said since the run is there: before, it was of another one. */
  #refusal({ createdAt }: RunSummary): { readonly code: string; readonly message: string } | null {
    const said = this.#status!.workers.find(
      ({ state, lastError }) =>
        state === 'idle' && lastError && !(lastError.at && lastError.at < createdAt),
    );
    return said?.lastError ?? null;
  }

  /** For some seconds no run of this study has had a worker, while some are idle. */
  #isRefused(trial: Trial, run: RunSummary): boolean {
    const { workers, runs } = this.#status!;
    const idle = workers.some(({ state }) => state === 'idle');
    const ours = new Set(this.trials.map(({ id }) => id));
    const works =
      runs.some(({ id, workers: count }) => ours.has(id) && count > 0) ||
      workers.some(({ run: own, state }) => own !== null && ours.has(own) && state !== 'gone');
    const busy = works || !idle || isOver(run.phase) || trial.end !== null;
    if (busy) {
      this.#lonely.delete(run.id);
      return false;
    }
    const since = this.#lonely.get(run.id) ?? performance.now();
    const { refusedMs = REFUSED_MS } = this.#options;
    const isForGood = isLasting(this.#refusal(run)?.code ?? '');
    const isTime = performance.now() - since > (isForGood ? refusedMs / 10 : refusedMs);
    this.#lonely.set(run.id, isTime ? performance.now() : since);
    return isTime;
  }

  #end(trial: Trial, kind: TrialEnd['kind'], reason: string, code?: string): void {
    trial.end = { kind, reason, ...(code === undefined ? {} : { code }) };
    trial.desire = 'end';
    this.#options.onEvent({ kind: 'ended', trial, reason });
  }

  /** Lets the plan decide until it has nothing more to say. */
  decide(): { changed: boolean; done: boolean } {
    const { plan, parallel, lookahead = 1, onEvent } = this.#options;
    let changed = false;
    for (;;) {
      if (isHopeless(this.trials)) {
        return { changed, done: this.trials.every(({ end }) => end !== null) };
      }
      const active = this.trials.filter(({ desire }) => desire === 'run').length;
      const decision = plan.decide(this.trials, parallel + lookahead - active);
      for (const { index, to, level, reason } of decision.change) {
        const trial = this.trials[index]!;
        if (to === 'kill') this.#end(trial, 'killed', reason);
        else {
          if (trial.desire !== to) {
            onEvent({ kind: to === 'run' ? 'resumed' : 'paused', trial, reason });
          }
          trial.desire = to;
          trial.level = level ?? trial.level;
        }
      }
      for (const trial of decision.start) this.#start(trial);
      if (decision.change.length + decision.start.length === 0) {
        const over = this.trials.every(({ end }) => end !== null);
        return { changed, done: decision.done && over };
      }
      changed = true;
    }
  }

  #start({ key, label, point = {}, config, fork }: NewTrial): void {
    const trial: Trial = {
      ...{ index: this.trials.length, id: `${this.#options.name}-${key}`, label, point, config },
      ...(fork ? { fork } : {}),
      ...{ desire: 'run', level: 0, end: null, phase: 'missing', evaluations: [] },
      ...{ best: null, test: null, step: 0, examples: 0, seconds: 0, data: null },
    };
    this.trials.push(trial);
    this.#options.onEvent({ kind: 'started', trial, reason: label });
  }

  /** Brings the server's runs to what the study wants of them. */
  async reconcile(): Promise<void> {
    const { client } = this.#options;
    const known = new Map(this.#status!.runs.map((run) => [run.id, run.phase]));
    for (const trial of this.trials) {
      const phase = known.get(trial.id);
      if (trial.desire === 'run') {
        if (phase === undefined) await this.#create(trial);
        else if (phase === 'stopped') await this.#patiently(() => client.resume(trial.id));
      } else if (phase !== undefined && !isOver(phase) && trial.end?.kind !== 'finished') {
        await this.#patiently(() => client.stop(trial.id));
      }
    }
  }

  async #create({ id, config, fork }: Trial): Promise<void> {
    const { client, name: study, experiment, experimentHash } = this.#options;
    const body = { id, experiment, experimentHash, config, study };
    const { run: of, checkpoint, data } = fork ?? {};
    const from = of && checkpoint ? { fork: { run: of, checkpoint, ...(data && { data }) } } : {};
    try {
      await this.#patiently(() => client.createRun({ ...body, ...from }));
    } catch (error) {
      if (fork && errorCode(error) === 'DP_CHECKPOINT_MISSING') {
        const since = this.#unborn.get(id) ?? performance.now();
        this.#unborn.set(id, since);
        if (performance.now() - since < CHECKPOINT_MS) return;
      }
      if (errorCode(error) !== 'DP_RUN_EXISTS') throw error;
      // Made before a crash, or by somebody else under the same name.
      const run = await this.#patiently(() => client.run(id));
      const same =
        run.experimentHash === experimentHash && canonical(run.config) === canonical(config);
      if (same) return;
      throw new DownpourError(
        'DP_RUN_EXISTS',
        `the server has a run ${id} with another experiment or configuration: give the study another --name`,
        { cause: error },
      );
    }
  }

  /** Leaves a checkpoint of each run that goes on, and its workers to others. */
  async interrupt(): Promise<void> {
    for (const trial of this.trials) {
      if (trial.desire !== 'run' || isOver(trial.phase)) continue;
      await this.#options.client.stop(trial.id).catch(() => {});
    }
  }
}

/** Nothing was measured, and workers refuse one trial like the other: no more are started. */
export function isHopeless(trials: readonly Trial[]): boolean {
  if (trials.some(({ evaluations }) => evaluations.length > 0)) return false;
  const refused = trials.flatMap(({ end }) => (end?.code === undefined ? [] : [end.reason]));
  return refused.some((reason) => refused.filter((r) => r === reason).length >= REFUSALS_MAX);
}

/** A plan whose trials are all known before: each runs to its end. */
export function listPlan(trials: readonly NewTrial[]): StudyPlan {
  return {
    decide: (known, room) => ({
      start: trials.slice(known.length, known.length + Math.max(0, room)),
      change: [],
      done: known.length >= trials.length,
    }),
  };
}

/**
 * The evaluation whose parameters the trial would keep, among its first `count`: the lowest by what
 * its early stopping looks at.
 */
export function bestEvaluation(trial: Trial, count = Infinity): Evaluation | null {
  const { metric } = trial.config.earlyStopping;
  let best: Evaluation | null = null;
  for (const evaluation of trial.evaluations.slice(0, count)) {
    const value = evaluation[metric];
    if (value === null || !Number.isFinite(value)) continue;
    if (best === null || value < best[metric]!) best = evaluation;
  }
  return best;
}

/** The trial's value after its first `count` evaluations; Infinity for none or a diverged one. */
export function trialValue(trial: Trial, metric: Metric, count = Infinity): number {
  const value = bestEvaluation(trial, count)?.[metric] ?? Infinity;
  return Number.isFinite(value) ? value : Infinity;
}
