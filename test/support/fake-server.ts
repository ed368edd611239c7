import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Phase } from '../../shared/protocol.ts';
import type {
  CreateRun,
  Evaluation,
  RunDetail,
  RunSummary,
  Status,
  StudySummary,
} from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';

interface FakeRun {
  readonly id: string;
  readonly body: CreateRun;
  readonly config: RunConfig;
  phase: Phase;
  readonly evaluations: Evaluation[];
  readonly raw: string;
}

/**
 * What a server tells a study, without workers: at each look every running run (as many as there are
 * workers, oldest first) makes one evaluation. `lose` plays a crash back to an older checkpoint.
 */
export class FakeServer {
  readonly runs = new Map<string, FakeRun>();
  /** Evaluations that were made, however often: what the trials cost. */
  evaluationsMade = 0;
  /** How often each run was created. */
  readonly created: string[] = [];
  readonly studies: StudySummary[] = [];
  /** Throws before the n-th call from now. */
  failIn = Infinity;
  /** Examples of the training part before `trainFraction`; the validation part has a quarter of it. */
  examples = 800;
  testCount = 100;
  /** Hash of the data of a run that is made from now on, and of what they depend on. */
  raw: (config: RunConfig) => string = () => 'raw';
  depends: string[] = [];
  /** What every worker says of a run instead of working for it; null: it works. */
  refuse: (config: RunConfig) => { code: string; message: string } | null = () => null;
  readonly #curve: (config: RunConfig, evaluation: number) => number;
  readonly #workers: number;

  constructor(curve: (config: RunConfig, evaluation: number) => number, workers = 2) {
    this.#curve = curve;
    this.#workers = workers;
  }

  /** Runs go back by some evaluations, those that have ended since too. */
  lose(evaluations: number): void {
    for (const run of this.runs.values()) {
      run.evaluations.splice(Math.max(0, run.evaluations.length - evaluations));
      if (run.phase === 'finished') run.phase = 'training';
    }
  }

  get client(): RestClient {
    const call = <T>(work: () => T): Promise<T> => {
      if (--this.failIn < 0) return Promise.reject(new Error('killed'));
      return Promise.resolve().then(work);
    };
    const find = (id: string): FakeRun => {
      const run = this.runs.get(id);
      if (!run) throw new DownpourError('DP_RUN_UNKNOWN', `no run ${id}`);
      return run;
    };
    const partial = {
      url: 'http://fake',
      status: () =>
        call(() => {
          this.#work();
          const runs = [...this.runs.values()].map((run) => this.#detail(run));
          const said = [...this.runs.values()].flatMap(({ phase, config }) =>
            phase === 'training' ? (this.refuse(config) ?? []) : [],
          );
          const workers = said.map((error) => ({
            ...{ worker: 'w', run: null, state: 'idle', lastError: { ...error, at: '2026-01-02' } },
          }));
          return { runs, workers } as unknown as Status;
        }),
      createRun: (body: CreateRun) =>
        call(() => {
          if (this.runs.has(body.id!)) throw new DownpourError('DP_RUN_EXISTS', 'exists');
          const config = resolveConfig(body.config);
          const run: FakeRun = {
            ...{ id: body.id!, body, config, phase: 'training', evaluations: [] },
            raw: this.raw(config),
          };
          this.runs.set(run.id, run);
          this.created.push(run.id);
          return this.#detail(run);
        }),
      studies: () => call(() => [...this.studies]),
      runs: () => call(() => [...this.runs.values()].map((run) => this.#detail(run))),
      run: (id: string) => call(() => this.#detail(find(id))),
      metrics: (id: string) =>
        call(() => ({ evaluations: [...find(id).evaluations], training: trainingOf(find(id)) })),
      stop: (id: string) =>
        call(() => {
          const run = find(id);
          if (run.phase === 'training') run.phase = 'stopped';
          return this.#detail(run);
        }),
      resume: (id: string) =>
        call(() => {
          const run = find(id);
          if (run.phase !== 'stopped') throw new DownpourError('DP_RUN_ENDED', run.phase);
          run.phase = 'training';
          return this.#detail(run);
        }),
    };
    return partial as unknown as RestClient;
  }

  #work(): void {
    const active = [...this.runs.values()].filter(
      ({ phase, config }) => phase === 'training' && this.refuse(config) === null,
    );
    for (const run of active.slice(0, this.#workers)) {
      const step = run.evaluations.length + 1;
      this.evaluationsMade++;
      const value = this.#curve(run.config, step);
      if (!Number.isFinite(value)) {
        run.phase = 'failed';
        continue;
      }
      run.evaluations.push({
        ...{ step, epoch: step, seconds: step, part: 'validation', loss: value, error: value },
        ...{
          examples: 10,
          metrics: run.config.evaluateTraining > 0 ? { trainingError: value / 4 } : {},
          learningRate: run.config.learningRate,
          trainingLoss: value,
        },
      });
      if (step >= (run.config.epochsMax ?? 1)) run.phase = 'finished';
      else if (run.config.pauseAfter.includes(step)) run.phase = 'stopped';
    }
  }

  #detail({ id, body, config, phase, evaluations, raw }: FakeRun): RunDetail {
    const summary: Partial<RunSummary> = {
      ...{
        id,
        experiment: body.experiment,
        study: body.study ?? null,
        phase,
        reason: phase,
        workers: phase === 'training' && this.refuse(config) === null ? 1 : 0,
        createdAt: `2026-01-01 ${id}`,
      },
      step: evaluations.length,
      examples: evaluations.length * 100,
      parameters: 1000,
      seconds: evaluations.length,
      validation: evaluations.at(-1) ?? null,
      best: evaluations.toSorted((a, b) => a.loss! - b.loss!)[0] ?? null,
      test: phase === 'finished' && config.testAtEnd ? (evaluations.at(-1) ?? null) : null,
      data: this.refuse(config)
        ? null
        : {
            trainCount: Math.round(this.examples * config.trainFraction),
            validationCount: this.examples / 4,
            testCount: this.testCount,
            ...{ fingerprint: 'f00d', rawFingerprint: raw, depends: this.depends },
            source: 'none',
          },
      earlyStopping: { stoppedAt: null } as RunSummary['earlyStopping'],
    };
    return { ...summary, experimentHash: body.experimentHash, config } as RunDetail;
  }
}

/** Forty updates: the loss falls, and rises again where the rate is large. */
function trainingOf({ config }: FakeRun) {
  const steps = Array.from({ length: 40 }, (_, i) => i / 39);
  const { schedule, learningRate: low } = config;
  const factor = schedule.kind === 'rising' ? schedule.factor : 1;
  const learningRate = steps.map((at) => low * factor ** at);
  return {
    ...{ learningRate, step: steps.map((_, i) => i + 1), seconds: steps },
    minibatchLoss: learningRate.map((rate, i) => 2 - steps[i]! + 10 * rate ** 2),
    staleness: steps.map(() => 0),
  };
}
