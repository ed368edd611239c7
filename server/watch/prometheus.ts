import { ERRORS, type ErrorCode } from '../../shared/errors.ts';
import { secondsOf } from '../../shared/history.ts';
import { PhaseSchema } from '../../shared/protocol.ts';
import type {
  MachineFacts,
  RowTableFacts,
  RunSummary,
  ServerFacts,
  WorkerSummary,
} from '../../shared/rest.ts';
import type { Counted, PushCounts, WriteCounts } from './counts.ts';

/**
 * `GET /metrics`: what REST tells, in the text format of Prometheus. Everything is read when it is asked for; names
 * carry their units, and docs/operations.md has them all (compared by a test).
 */

export const EXPOSITION_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

export interface PrometheusFacts {
  readonly server: ServerFacts;
  /** How many runs are in each phase. */
  readonly phases: ReadonlyMap<string, number>;
  /** Those to be told of one by one: a search has thousands, and finished ones change no more. */
  readonly runs: readonly RunFacts[];
  readonly workers: readonly WorkerSummary[];
  /** How often each error has been answered. */
  readonly errors: ReadonlyMap<ErrorCode, number>;
  /** Messages that nobody asked for; how often a connection was not read for a while for them, and how many are now. */
  readonly unasked: {
    readonly messages: number;
    readonly throttles: number;
    readonly throttled: number;
  };
  readonly process: ProcessFacts;
}

export interface RunFacts {
  readonly summary: RunSummary;
  readonly pushes: PushCounts;
  readonly writes: WriteCounts | null;
  /** Size of the newest checkpoint; null: there is none, or it is not known. */
  readonly checkpointBytes: number | null;
  /** Why something of the run is not written; null: all is. */
  readonly unwritten: string | null;
}

export interface ProcessFacts {
  readonly startedSeconds: number;
  readonly cpuSeconds: number;
  readonly lag: Counted;
  /** Time that the event loop was busy since the process began. */
  readonly busySeconds: number;
}

const ERROR_CODES = Object.keys(ERRORS) as ErrorCode[];

type MetricLabels = Readonly<Record<string, string>>;
type MetricSample = readonly [MetricLabels, number | null];

/** @returns the whole page. */
export function exposition(facts: PrometheusFacts): string {
  const page = new MetricsPage();
  aboutServer(page, facts);
  aboutOthers(page, facts.server);
  aboutMemory(page, facts.server);
  aboutProcess(page, facts.process, facts.server.memoryBytes.rss);
  aboutRuns(page, facts);
  aboutWriting(page, facts.runs);
  aboutPushes(page, facts.runs);
  aboutWorkers(
    page,
    facts.workers.filter(({ state }) => state !== 'gone'),
  );
  return page.text();
}

const one = (value: number): MetricSample[] => [[{}, value]];

function aboutServer(page: MetricsPage, { server, errors, unasked }: PrometheusFacts): void {
  const { version, stateStore, alerts } = server;
  page.gauge('downpour_info', 'Version of the server and the kind of its state store. Always 1.', [
    [{ version, state_store: stateStore }, 1],
  ]);
  page.gauge(
    'downpour_alerts',
    'Alerts that need attention. GET /status has their text.',
    (['critical', 'warning', 'info'] as const).map((severity): MetricSample => {
      return [{ severity }, alerts.filter((alert) => alert.severity === severity).length];
    }),
  );
  page.counter(
    'downpour_errors_total',
    'Errors sent to workers and clients, by code of docs/errors.md.',
    ERROR_CODES.map((code): MetricSample => [{ code }, errors.get(code) ?? 0]),
  );
  page.counter(
    'downpour_unasked_messages_total',
    'Messages that workers sent without being asked, such as hello, join and leave.',
    one(unasked.messages),
  );
  page.counter(
    'downpour_throttles_total',
    'Times that the server paused reading a connection because its unasked messages took too much time.',
    one(unasked.throttles),
  );
  page.gauge(
    'downpour_throttled_connections',
    'Workers that the server is not reading now, for the same reason.',
    one(unasked.throttled),
  );
}

/** Redis, the standby, the shards and the bucket. */
function aboutOthers(page: MetricsPage, server: PrometheusFacts['server']): void {
  const { stateStoreAway, shards, standby, copies } = server;
  page.gauge(
    'downpour_state_store_away_seconds',
    'Seconds since Redis last answered. 0: Redis answers.',
    one(stateStoreAway?.seconds ?? 0),
  );
  page.gauge(
    'downpour_state_store_waiting_records',
    'Records that wait on disk until Redis is back.',
    one(stateStoreAway?.records ?? 0),
  );
  page.gauge('downpour_standby_following', '1: a hot standby has all runs and follows.', [
    [{}, standby?.state === 'following' ? 1 : 0],
  ]);
  page.gauge('downpour_standby_behind_pushes', 'Pushes that the standby has not applied yet.', [
    [{}, standby?.behind.pushes ?? 0],
  ]);
  page.gauge('downpour_shards', 'Shards that hold the parameters. This server is one of them.', [
    [{}, shards?.count ?? 1],
  ]);
  page.gauge('downpour_shards_whole', '1: all shards are connected.', [
    [{}, shards === null || shards.whole ? 1 : 0],
  ]);
  const copied = (count: number | undefined): MetricSample[] => [[{}, count ?? null]];
  page.counter(
    'downpour_copies_total',
    'Checkpoints copied to the bucket of --checkpoint-copy.',
    copied(copies?.copied),
  );
  page.counter(
    'downpour_copied_bytes_total',
    'Bytes of the checkpoints copied to the bucket.',
    copied(copies?.bytes),
  );
  page.counter(
    'downpour_copy_failures_total',
    'Copies that failed. The server tries each again, or copies a newer checkpoint.',
    copied(copies?.failed),
  );
  page.gauge('downpour_copies_waiting', 'Checkpoints that are not copied yet.', [
    [{}, copies?.waiting ?? null],
  ]);
  page.gauge(
    'downpour_copy_away_seconds',
    'Seconds since a copy last succeeded, while copies fail. 0: the last one succeeded.',
    [[{}, copies ? (copies.away?.seconds ?? 0) : null]],
  );
  page.gauge(
    'downpour_run_copied_step',
    'Step of the newest copy of a run.',
    (copies?.runs ?? []).map(({ run, step }): MetricSample => [{ run }, step]),
  );
}

function aboutMemory(
  page: MetricsPage,
  { memoryBytes, connections }: PrometheusFacts['server'],
): void {
  page.gauge(
    'downpour_heap_used_bytes',
    'Used bytes of the JavaScript heap.',
    one(memoryBytes.heap),
  );
  page.gauge(
    'downpour_array_buffers_bytes',
    'Bytes of array buffers, which are outside the heap.',
    one(memoryBytes.arrayBuffers),
  );
  page.gauge(
    'downpour_connection_memory_bytes',
    'Memory that connections use in addition to the memory of runs.',
    one(connections.bytes),
  );
  page.gauge(
    'downpour_connection_memory_max_bytes',
    'Limit of the memory that connections use.',
    one(connections.bytesMax),
  );
  page.counter(
    'downpour_connections_closed_total',
    'Connections closed because they used too much memory, or sent or read too slowly.',
    one(connections.closed),
  );
  page.counter(
    'downpour_pushes_moved_total',
    'Slow pushes that gave their place in memory to others and continued in memory of their own.',
    one(connections.moved),
  );
}

/** @param residentBytes resident memory. */
function aboutProcess(page: MetricsPage, process: ProcessFacts, residentBytes: number): void {
  page.histogram(
    'downpour_event_loop_lag_seconds',
    'How late a timer fires that runs four times a second. All other work is as late.',
    [[{}, process.lag]],
  );
  page.counter(
    'downpour_event_loop_busy_seconds_total',
    'Seconds that the event loop was busy. At a rate of 1 per second the thread is full.',
    one(process.busySeconds),
  );
  page.gauge(
    'process_start_time_seconds',
    'Start time of the process, in seconds since 1970.',
    one(process.startedSeconds),
  );
  page.counter(
    'process_cpu_seconds_total',
    'User and system CPU time of all threads.',
    one(process.cpuSeconds),
  );
  page.gauge(
    'process_resident_memory_bytes',
    'Resident memory of the process.',
    one(residentBytes),
  );
}

/** A gauge of each run. */
function eachRun(
  page: MetricsPage,
  runs: readonly RunFacts[],
): (name: string, help: string, of: (run: RunSummary) => number | null) => void {
  return (name, help, of) =>
    page.gauge(
      `downpour_run_${name}`,
      help,
      runs.map(({ summary }): MetricSample => [{ run: summary.id }, of(summary)]),
    );
}

function aboutRuns(page: MetricsPage, { phases, runs }: PrometheusFacts): void {
  const each = eachRun(page, runs);
  page.gauge(
    'downpour_runs',
    'Number of runs in each phase.',
    PhaseSchema.anyOf.map(({ const: phase }): MetricSample => [{ phase }, phases.get(phase) ?? 0]),
  );
  page.gauge(
    'downpour_run_info',
    'Experiment and phase of a run. Always 1.',
    runs.map(
      ({ summary: { id: run, experiment, phase } }): MetricSample => [
        { run, experiment, phase },
        1,
      ],
    ),
  );
  each(
    'step',
    'Updates applied so far. Goes back when the server restarts after a crash.',
    (r) => r.step,
  );
  each('epoch', 'Passes over the training part so far.', (r) => r.epoch);
  each('examples', 'Examples in all applied pushes.', (r) => r.examples);
  each(
    'examples_per_second',
    'Examples per second, over the last ten seconds.',
    (r) => r.examplesPerSecond,
  );
  each('training_seconds', 'Training time so far.', (r) => r.seconds);
  each(
    'remaining_seconds',
    'Time left until the last step, at the present speed.',
    (r) => r.secondsLeft,
  );
  each('workers', 'Workers that take part in the run.', (r) => r.workers);
  each('parameters', 'Number of trainable parameters of the model.', (r) => r.parameters);
  each('learning_rate', 'Learning rate of the next update.', (r) => r.learningRate);
  each('momentum', 'Momentum of the next update.', (r) => r.momentum);
  each(
    'gradient_norm',
    'Norm of the gradient of the last update, after clipping.',
    (r) => r.gradientNorm,
  );
  each('training_loss', 'Training loss, smoothed over about 50 pushes.', (r) => r.trainingLoss);
  each(
    'validation_loss',
    'Validation loss of the last evaluation.',
    (r) => r.validation?.loss ?? null,
  );
  each(
    'validation_error',
    'Validation error of the last evaluation.',
    (r) => r.validation?.error ?? null,
  );
  page.gauge(
    'downpour_run_validation_metric',
    'Metric of the last evaluation by its name, such as the loss of one output.',
    runs.flatMap(({ summary: { id: run, validation } }) =>
      Object.entries(validation?.metrics ?? {}).map(([metric, value]): MetricSample => {
        return [{ run, metric }, value];
      }),
    ),
  );
  each(
    'best_validation_loss',
    'Validation loss of the best evaluation.',
    (r) => r.best?.loss ?? null,
  );
  each(
    'best_validation_error',
    'Validation error of the best evaluation.',
    (r) => r.best?.error ?? null,
  );
  each('test_loss', 'Test loss at the end of the run.', (r) => r.test?.loss ?? null);
  each('test_error', 'Test error at the end of the run.', (r) => r.test?.error ?? null);
  each(
    'patience_left_evaluations',
    'Evaluations without an improvement that are left before early stopping ends training.',
    (r) => (r.earlyStopping.enabled ? r.earlyStopping.patienceLeft : null),
  );
  each(
    'rollbacks',
    'Times that the run diverged and went back to good parameters.',
    (r) => r.rollbacks.length,
  );
  aboutTables(page, runs);
  each('lost_steps', 'Applied updates that crashes of the server took back.', (r) => r.stepsLost);
}

function aboutTables(page: MetricsPage, runs: readonly RunFacts[]): void {
  const each = (name: string, help: string, of: (table: RowTableFacts) => number | null) =>
    page.gauge(
      `downpour_run_table_${name}`,
      help,
      runs.flatMap(({ summary: { id: run, tables = [] } }) =>
        tables.map((table): MetricSample => [{ run, table: table.name }, of(table)]),
      ),
    );
  each('rows', 'Rows of a table with values of their own.', (t) => t.rows);
  each('rows_max', 'Rows of a table at most.', (t) => t.rowsMax);
  each(
    'bytes',
    'Memory of the rows of a table, with the state of the optimizer.',
    (t) => t.memoryBytes,
  );
  each(
    'updated_rows',
    'Rows in all pushes that were updated, since the server has the run.',
    (t) => t.updates,
  );
  each(
    'staleness',
    'Mean staleness of the rows of a table at their updates.',
    (t) => t.staleness?.mean ?? null,
  );
  each('admitted_rows', 'Ids that got a row of a table that grows.', (t) => t.admitted);
  each('forgotten_rows', 'Rows that a table forgot after expireAfter updates.', (t) => t.forgotten);
  each(
    'dropped_gradients',
    'Gradients of rows that were dropped: their id is not admitted yet, or there is no room for it.',
    (t) => t.dropped,
  );
}

function aboutWriting(page: MetricsPage, runs: readonly RunFacts[]): void {
  const each = eachRun(page, runs);
  each('checkpoint_step', 'Step of the newest checkpoint.', (r) => r.checkpoint?.step ?? null);
  each(
    'checkpoint_timestamp_seconds',
    'Time when the newest checkpoint was taken, in seconds since 1970.',
    (r) => (r.checkpoint ? secondsOf(r.checkpoint.at) : null),
  );
  page.gauge(
    'downpour_run_checkpoint_bytes',
    'Size of the newest checkpoint.',
    runs.map(
      ({ summary, checkpointBytes }): MetricSample => [{ run: summary.id }, checkpointBytes],
    ),
  );
  page.gauge(
    'downpour_run_unwritten',
    '1: the server could not write something of the run and tries again. The log has the reason.',
    runs.map(
      ({ summary, unwritten }): MetricSample => [{ run: summary.id }, unwritten === null ? 0 : 1],
    ),
  );
}

function aboutPushes(page: MetricsPage, runs: readonly RunFacts[]): void {
  const counted = runs.flatMap(({ summary: { id }, pushes, writes }) => ({ id, pushes, writes }));
  page.counter(
    'downpour_pushes_total',
    'Pushes answered since the server started, by outcome.',
    counted.flatMap(({ id: run, pushes }) =>
      Object.entries(pushes.outcomes).map(([outcome, n]): MetricSample => [{ run, outcome }, n]),
    ),
  );
  const histogram = (
    name: string,
    help: string,
    of: (run: (typeof counted)[number]) => Counted | undefined,
  ) =>
    page.histogram(
      name,
      help,
      counted.flatMap((run) => {
        const values = of(run);
        return values ? [[{ run: run.id }, values] as const] : [];
      }),
    );
  histogram(
    'downpour_push_staleness_steps',
    'Staleness of pushes: updates between the parameters that a gradient was computed at and those it was applied to.',
    ({ pushes }) => pushes.staleness,
  );
  histogram(
    'downpour_gradient_seconds',
    'Time that a worker took to compute a gradient.',
    ({ pushes }) => pushes.gradientSeconds,
  );
  histogram(
    'downpour_push_apply_seconds',
    'Time from a complete push to its answer. All other work waits during this time.',
    ({ pushes }) => pushes.applySeconds,
  );
  histogram(
    'downpour_checkpoint_write_seconds',
    'Time from the copy in memory until the whole checkpoint is on disk.',
    ({ writes }) => writes?.seconds,
  );
  page.counter(
    'downpour_write_failures_total',
    'Checkpoints and records that could not be written. The server tries each again.',
    counted.flatMap(({ id: run, writes }): MetricSample[] =>
      writes ? [[{ run }, writes.failed]] : [],
    ),
  );
}

/** Only connected workers have series: those that are gone leave none behind. */
function aboutWorkers(page: MetricsPage, workers: readonly WorkerSummary[]): void {
  const each = (
    kind: 'gauge' | 'counter',
    name: string,
    help: string,
    of: (worker: WorkerSummary) => number | null,
  ) =>
    page[kind](
      `downpour_worker_${name}`,
      help,
      workers.map((worker): MetricSample => [{ worker: worker.worker }, of(worker)]),
    );
  const states = ['idle', 'joining', 'training', 'evaluating', 'waiting'];
  page.gauge(
    'downpour_workers',
    'Connected workers, by what they are doing.',
    states.map(
      (state): MetricSample => [{ state }, workers.filter((w) => w.state === state).length],
    ),
  );
  page.gauge(
    'downpour_worker_info',
    'Run, engine, device and transport of a worker. Always 1.',
    workers.map(
      ({ worker, run, engine, device, transport }): MetricSample => [
        { worker, run: run ?? '', engine, device, transport },
        1,
      ],
    ),
  );
  page.counter(
    'downpour_worker_pushes_total',
    'Pushes of a worker for its present run, by outcome.',
    workers.flatMap(({ worker, pushes }) =>
      Object.entries(pushes).map(([outcome, n]): MetricSample => [{ worker, outcome }, n]),
    ),
  );
  each('counter', 'examples_total', "Examples in the worker's applied pushes.", (w) => w.examples);
  each(
    'gauge',
    'examples_per_second',
    'Examples per second of the worker, over the last ten seconds.',
    (w) => w.examplesPerSecond,
  );
  each('gauge', 'gradient_mean_seconds', 'Mean time that the worker takes for a gradient.', (w) =>
    w.computeMsMean === null ? null : w.computeMsMean / 1e3,
  );
  each(
    'gauge',
    'staleness_mean_steps',
    "Mean staleness of the worker's applied pushes.",
    (w) => w.stalenessMean,
  );
  each('gauge', 'leases', 'Minibatches that the worker holds now.', (w) => w.leases);
  each(
    'gauge',
    'silent_seconds',
    'Seconds since the server last heard from the worker.',
    (w) => w.lastSeenSecondsAgo,
  );
  each(
    'counter',
    'received_bytes_total',
    'Bytes received from the worker on this connection.',
    (w) => w.bytes.received,
  );
  each(
    'counter',
    'sent_bytes_total',
    'Bytes sent to the worker on this connection.',
    (w) => w.bytes.sent,
  );
  const machine = (name: string, help: string, of: (facts: MachineFacts) => number | null) =>
    each('gauge', name, help, (w) => (w.machine ? of(w.machine) : null));
  machine('cpu_cores', 'Processor cores that the worker keeps busy.', (m) => m.cpuCores);
  machine('cpu_cores_max', 'Processor cores that the worker may use.', (m) => m.cores);
  machine('memory_bytes', "Memory of the worker's process.", (m) => m.memoryBytes);
  machine('tensor_bytes', "Memory of the worker's tensors.", (m) => m.tensorBytes);
  machine('gpu_busy_ratio', "Share of the time that the worker's GPU is busy.", (m) => m.gpuShare);
  machine('gpu_memory_bytes', "Memory in use on the worker's GPU.", (m) => m.gpuMemoryBytes);
  each('gauge', 'quarantined', "1: the worker's run rejects all its pushes.", (w) =>
    w.quarantine ? 1 : 0,
  );
}

class MetricsPage {
  readonly #lines: string[] = [];

  gauge(name: string, help: string, samples: readonly MetricSample[]): void {
    this.#family(name, 'gauge', help, samples);
  }

  counter(name: string, help: string, samples: readonly MetricSample[]): void {
    this.#family(name, 'counter', help, samples);
  }

  histogram(
    name: string,
    help: string,
    series: readonly (readonly [MetricLabels, Counted])[],
  ): void {
    this.#head(name, 'histogram', help);
    for (const [labels, { bounds, counts, sum }] of series) {
      let below = 0;
      counts.forEach((count, i) => {
        below += count;
        this.#sample(`${name}_bucket`, { ...labels, le: numeral(bounds[i] ?? Infinity) }, below);
      });
      this.#sample(`${name}_sum`, labels, sum);
      this.#sample(`${name}_count`, labels, below);
    }
  }

  text(): string {
    return `${this.#lines.join('\n')}\n`;
  }

  #family(name: string, type: string, help: string, samples: readonly MetricSample[]): void {
    this.#head(name, type, help);
    for (const [labels, value] of samples) {
      if (value !== null) this.#sample(name, labels, value);
    }
  }

  #head(name: string, type: string, help: string): void {
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
  }

  #sample(name: string, labels: MetricLabels, value: number): void {
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`);
    this.#lines.push(`${name}${pairs.length > 0 ? `{${pairs.join()}}` : ''} ${numeral(value)}`);
  }
}

/** Escapes the value of a label. */
const escapeLabel = (text: string) =>
  text.replace(/[\\"\n]/g, (each) => (each === '\n' ? '\\n' : `\\${each}`));

function numeral(value: number): string {
  if (Number.isFinite(value)) return String(value);
  return Number.isNaN(value) ? 'NaN' : value > 0 ? '+Inf' : '-Inf';
}
