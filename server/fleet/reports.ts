import type { ErrorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { Acknowledgement, Push } from '../../shared/protocol.ts';
import type {
  CheckpointSummary,
  RunDetail,
  RunSummary,
  WorkerFailureFacts,
} from '../../shared/rest.ts';
import type { Keeper } from '../checkpoints/keeper.ts';
import type { Run } from '../core/run.ts';
import { isAlarming, type RunAlertFacts, waitsForWorker } from '../watch/alerts.ts';
import { PushCounts } from '../watch/counts.ts';
import type { RunFacts } from '../watch/prometheus.ts';
import type { PushLog } from '../watch/push-log.ts';
import { Listing } from './listing.ts';

/** What is told of runs: in REST, to Prometheus, in alerts and in the log of pushes. */
export class Reports {
  readonly #now: () => number;
  readonly #log: Log;
  readonly #keeper: Keeper;
  readonly #find: (id: string) => Run | null;
  readonly #pushLog: PushLog | null;
  /** As runs are told. While a shard is lost: as they were, until they go on from their checkpoints. */
  readonly listing: Listing<Run>;
  readonly #errors = new Map<ErrorCode, number>();
  /** Pushes of each run since this process has it. */
  readonly #pushCounts = new WeakMap<Run, PushCounts>();
  /** The last worker of each run that could not do its work, since this process has the run. */
  readonly #failures = new WeakMap<Run, WorkerFailureFacts>();

  /** @param options.now monotonic, ms. */
  constructor(options: {
    readonly now: () => number;
    readonly log: Log;
    readonly keeper: Keeper;
    readonly find: (id: string) => Run | null;
    readonly pushLog: PushLog | null;
  }) {
    this.#now = options.now;
    this.#log = options.log;
    this.#keeper = options.keeper;
    this.#find = options.find;
    this.#pushLog = options.pushLog;
    this.listing = new Listing({
      createdAt: ({ id, options: { createdAt } }) => `${createdAt} ${id}`,
      summaryOf: (run) => this.summary(run),
      alarms: (summary) => isAlarming(summary, this.alertFacts),
      waits: waitsForWorker,
    });
  }

  /** A run is there from now on. */
  began(run: Run): void {
    this.#pushLog?.began(run);
  }

  // Counts.

  /** The run has decided on a push. @param worker its key. @param seconds from the whole push to its answer. */
  pushed(
    run: Run,
    worker: string,
    push: Push,
    acknowledgement: Acknowledgement,
    seconds: number,
  ): void {
    this.#countsOf(run).answered(push, acknowledgement, seconds);
    const { outcome, code, message } = acknowledgement;
    if (outcome === 'applied' || outcome === 'damped') {
      this.#pushLog?.applied(run, worker, push.sequence);
    }
    if (code === null) return;
    this.countError(code as ErrorCode);
    if (code === 'DP_PUSH_STALE' || code === 'DP_PUSH_PHASE') return;
    this.#log(`run ${run.id}: push ${push.sequence} of ${worker} rejected: ${code} ${message}`, {
      ...{ level: 'warn', run: run.id, worker: worker.split('/')[0]! },
      ...{ kind: `rejected ${code}`, code },
    });
  }

  #countsOf(run: Run): PushCounts {
    let counts = this.#pushCounts.get(run);
    if (!counts) {
      counts = new PushCounts();
      this.#pushCounts.set(run, counts);
    }
    return counts;
  }

  countError(code: ErrorCode): void {
    this.#errors.set(code, (this.#errors.get(code) ?? 0) + 1);
  }

  /** A worker of the run has given up: what it said. */
  workerFailed(
    run: Run,
    worker: string,
    { code, message }: { readonly code: string; readonly message: string },
  ): void {
    const { step } = run;
    const before = this.#failures.get(run);
    const count = before?.step === step ? before.count + 1 : 1;
    const at = new Date().toISOString();
    this.#failures.set(run, { worker, code, message, at, step, count });
    this.listing.touch(run);
  }

  /** How often each error has been answered. */
  get errorCounts(): ReadonlyMap<ErrorCode, number> {
    return this.#errors;
  }

  // Runs.

  summary(run: Run): RunSummary {
    return { ...run.summary(this.#now()), ...this.#around(run) };
  }

  detail(run: Run): RunDetail {
    return { ...run.detail(this.#now()), ...this.#around(run) };
  }

  /** What the run itself does not know. */
  #around(run: Run): Pick<RunSummary, 'checkpoint' | 'unwritten' | 'workerFailure'> {
    return {
      checkpoint: this.#keeper.latest(run.id),
      unwritten: this.#keeper.problem(run.id),
      workerFailure: (run.over ? null : this.#failures.get(run)) ?? null,
    };
  }

  checkpoints(run: Run): Promise<readonly CheckpointSummary[]> {
    return this.#keeper.checkpoints(run.id);
  }

  /** Facts of the runs that Prometheus is told of, and how many runs there are in each phase. */
  prometheusFacts(): { readonly runs: RunFacts[]; readonly phases: ReadonlyMap<string, number> } {
    const runs = this.listing.newest(LIMITS.scrapedRunsMax).map(({ run, summary }) => ({
      summary,
      pushes: this.#countsOf(run),
      writes: this.#keeper.counts(run.id),
      checkpointBytes: this.#keeper.latestBytes(run.id),
      unwritten: this.#keeper.problem(run.id),
    }));
    return { runs, phases: this.listing.phases };
  }

  readonly alertFacts: RunAlertFacts = {
    evaluationSeconds: (id) => this.#find(id)?.evaluationSeconds(this.#now()) ?? null,
    unwritten: (id) => this.#keeper.problem(id),
    spoilt: (id) => this.#keeper.spoilt(id),
    leftOut: (id) => this.#keeper.leftOut(id),
    behind: (id) => this.#find(id)?.stepsBehind ?? 0,
    missing: (id) => this.#find(id)?.workersMissing ?? 0,
  };
}
