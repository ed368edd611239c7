import Type, { type Static, type TSchema } from 'typebox';
import { machineFields, ShownExamplesSchema } from './asides.ts';
import { BUNDLE_HASH } from './bundle.ts';
import { NAME_PATTERN, RunConfigSchema } from './config.ts';
import { DataFactsSchema } from './data-facts.ts';
import { FIGURE_LIMITS, FigureSchema } from './figure.ts';
import { Note, ShownName, Tags } from './labels.ts';
import { LIMITS } from './limits.ts';
import { LayerObservationSchema, TensorObservationSchema } from './observed.ts';
import { DataSummarySchema, ErrorMeasureSchema, PhaseSchema } from './protocol.ts';

/** Bodies of REST requests and answers: the schemas of `server/http/routes.ts` and the types of every client. */

const closed = { additionalProperties: false } as const;
const Name = Type.String({ pattern: NAME_PATTERN });
const N = Type.Number();
const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);

export const CreateRunSchema = Type.Object(
  {
    id: Type.Optional(Name),
    experiment: Name,
    /** SHA-256 of the experiment's files. Workers must have the same hash. */
    experimentHash: Type.String({ minLength: 1, maxLength: 128 }),
    /** Any configuration fields; the others take their defaults. */
    config: Type.Optional(Type.Unsafe<unknown>({ type: 'object' })),
    /** Start from the parameters of another run. Optimizer state, schedule and step count start from 0. */
    fork: Type.Optional(
      Type.Object(
        {
          run: Name,
          /** A kind (its newest checkpoint), or a file from `GET /runs/:id/checkpoints`. `last`: the current parameters. */
          checkpoint: Type.String({ minLength: 1, maxLength: 200, default: 'last' }),
          /** `other`: accept data that differ from the data of the other run; its standardisation is kept. */
          data: Type.Optional(Type.Union([Type.Literal('same'), Type.Literal('other')])),
        },
        closed,
      ),
    ),
    /** The study that this run is a trial of. Commands that choose a run by default skip trials. */
    study: Type.Optional(Name),
    /** SHA-256 of a bundle of the experiment (`PUT /bundles/:sha256`), for workers that accept experiments. */
    bundle: Type.Optional(Type.String({ pattern: BUNDLE_HASH })),
  },
  closed,
);
export type CreateRun = Static<typeof CreateRunSchema>;

/** Changes what users say of a run. Absent fields stay as they are; training does not depend on any of them. */
export const EditRunSchema = Type.Object(
  {
    /** Name for people, in one line of at most 100 characters; the id of the run stays. Null: none. */
    name: Type.Optional(ShownName),
    /** All tags: at most 20, each of at most 40 characters without spaces and commas. */
    tags: Type.Optional(Tags),
    addTags: Type.Optional(Tags),
    removeTags: Type.Optional(Tags),
    /** At most 4,000 characters. Null: none. */
    note: Type.Optional(Note),
    /** True: lists leave the run out unless they are asked for it, and it cannot be continued; its files stay. Only for a run that has ended or is stopped. */
    archived: Type.Optional(Type.Boolean()),
  },
  closed,
);
export type EditRun = Static<typeof EditRunSchema>;

/** One evaluation of a snapshot on one part of the data. */
export const EvaluationSchema = Type.Object({
  step: N,
  epoch: N,
  /** Seconds of training before this evaluation, over all restarts of the run. */
  seconds: N,
  part: Type.String(),
  loss: orNull(N),
  error: orNull(N),
  examples: N,
  /** Metrics of the experiment; null: not finite for at least one minibatch of the evaluation. */
  metrics: Type.Record(Type.String(), orNull(N)),
  learningRate: N,
  /** Smoothed training loss at the time of the evaluation. */
  trainingLoss: orNull(N),
});
export type Evaluation = Static<typeof EvaluationSchema>;

/** A diverged run returned to good parameters, with a lower learning rate. */
export const RollbackSchema = Type.Object({
  step: N,
  /** Step of the best evaluation, whose parameters were restored; null: new initial parameters. */
  to: orNull(N),
  /** Learning rate of the next update. */
  learningRate: N,
  reason: Type.String(),
});
export type Rollback = Static<typeof RollbackSchema>;

/** Correction for staleness that a run applies: `consistency.correction`. */
export const CorrectionSchema = Type.Object({
  /** The configured correction; `none` if the configuration leaves nothing to correct. */
  kind: Type.Union([Type.Literal('none'), Type.Literal('auto'), Type.Literal('lookahead')]),
  /** Workers that count: connected, or disconnected for only a few seconds. */
  workers: N,
  lookahead: Type.Boolean(),
  /** Number of velocities. If it is below `workers`, some workers share one to save memory. */
  velocities: N,
  /** Current maximum gradient norm; larger gradients are scaled down to it; null: no limit. */
  normMax: orNull(N),
  /** Description in words, once every worker has pushed since the last one joined or left; null: no correction. */
  text: orNull(Type.String()),
});
export type CorrectionFacts = Static<typeof CorrectionSchema>;

/** A worker that could not do the work of a run. */
const WorkerFailureSchema = Type.Object({
  worker: Type.String(),
  code: Type.String(),
  /** What is wrong, and what to do. */
  message: Type.String(),
  /** ISO 8601. */
  at: Type.String(),
  /** Step of the run at that time. */
  step: N,
  /** Number of failures at this step, of all workers. */
  count: N,
});
export type WorkerFailureFacts = Static<typeof WorkerFailureSchema>;

/** A table of rows. Counts of rows that were updated, admitted and forgotten begin when the server opens the run. */
export const RowTableFactsSchema = Type.Object({
  name: Type.String(),
  width: N,
  /** Rows with values of their own: those that were ever updated or given. */
  rows: N,
  /** Rows at most. */
  rowsMax: N,
  /** Those of the rows that began with the values of a file. */
  pretrained: N,
  /** Bytes that the rows take, with the state of their optimizer. */
  memoryBytes: N,
  /** Rows in all pushes that were updated. */
  updates: N,
  /** Staleness of the rows at their updates, in updates of the table; null: none yet. */
  staleness: orNull(Type.Object({ mean: N, max: N })),
  /** Table that grows: ids that got a row, and rows that were forgotten. */
  admitted: N,
  forgotten: N,
  /** Gradients of rows that were dropped: their id is not admitted yet, or there is no room for it. */
  dropped: N,
});
export type RowTableFacts = Static<typeof RowTableFactsSchema>;

export const RunSummarySchema = Type.Object({
  id: Type.String(),
  /** Name for people; null: none. Absent in answers of older servers, like the next three. */
  name: Type.Optional(orNull(Type.String())),
  tags: Type.Optional(Type.Array(Type.String())),
  note: Type.Optional(orNull(Type.String())),
  /** Lists leave an archived run out unless they are asked for it. It cannot be continued; its files stay. */
  archived: Type.Optional(Type.Boolean()),
  experiment: Type.String(),
  /** Study that this run is a trial of; null: none, or a run of release 0.1.0, which did not record it. */
  study: orNull(Type.String()),
  phase: PhaseSchema,
  /** Why the run is in this phase, in words. */
  reason: Type.String(),
  createdAt: Type.String(),
  step: N,
  epoch: N,
  /** Number of examples in all applied pushes. */
  examples: N,
  /** Upper limit from the configuration; early stopping usually ends the run sooner. */
  stepsMax: orNull(N),
  workers: N,
  parameters: orNull(N),
  learningRate: N,
  momentum: orNull(N),
  /**
   * Speed over the last ten seconds, without the first two of a training; null: the run has ended, or there were too few
   * pushes to measure it.
   */
  examplesPerSecond: orNull(N),
  /** Speed over the whole training, without its first two seconds; null: the run has not ended, or was shorter. */
  examplesPerSecondMean: Type.Optional(orNull(N)),
  /** Seconds until stepsMax at the current speed; null: unknown. */
  secondsLeft: orNull(N),
  seconds: N,
  /** Exponential moving average over pushes, with bias correction. */
  trainingLoss: orNull(N),
  /** The training loss at up to 40 evenly spaced steps, from the first to the current one. */
  sparkline: Type.Array(N),
  validation: orNull(EvaluationSchema),
  best: orNull(EvaluationSchema),
  /** Evaluation of the final parameters on the test part, made once, and its time (ISO 8601). */
  test: orNull(EvaluationSchema),
  testedAt: orNull(Type.String()),
  earlyStopping: Type.Object({
    /** False: training ends only at its last step; `afterStop` still applies. */
    enabled: Type.Boolean(),
    metric: Type.String(),
    patience: N,
    patienceLeft: N,
    afterStop: Type.String(),
    stoppedAt: orNull(N),
    /** `continue`: the training loss at the stop, which validation must reach. */
    target: orNull(N),
    refitSteps: orNull(N),
  }),
  /** Staleness of all applied pushes, from `stalenessHistogram` of the metrics; null: none yet. */
  staleness: orNull(Type.Object({ p50: N, p95: N, max: N })),
  gradientNorm: orNull(N),
  /** Tables of the configuration. Absent: there are none, or the server is older. */
  tables: Type.Optional(Type.Array(RowTableFactsSchema)),
  /** Absent in answers of older servers. */
  correction: Type.Optional(CorrectionSchema),
  /** Mode in which several pushes make an update: the next one. Null: each push is an update, or the run is over. Absent in answers of older servers. */
  collecting: Type.Optional(
    orNull(
      Type.Object({
        /** Pushes that wait for the update. */
        pushes: N,
        /** Pushes that the update needs, with the workers of this moment; null: unknown. */
        of: orNull(N),
        /** Seconds that the update still waits for more pushes than it needs; null: it does not wait. */
        secondsLeft: orNull(N),
      }),
    ),
  ),
  /** A likely problem of the optimisation and what to try; null: none. */
  hint: orNull(Type.String()),
  pushes: Type.Object({ applied: N, damped: N, duplicate: N, rejected: N }),
  rollbacks: Type.Array(RollbackSchema),
  /** Known number of applied updates that were lost in crashes of the server. */
  stepsLost: N,
  checkpoint: orNull(Type.Object({ step: N, file: Type.String(), at: Type.String() })),
  /** Why a record of the run cannot be written; the server retries. Null: all are written. Absent in answers of older servers. */
  unwritten: Type.Optional(orNull(Type.String())),
  /** Last worker that could not do the work of this run; null: none since the server started, or the run is over. Absent in answers of older servers. */
  workerFailure: Type.Optional(orNull(WorkerFailureSchema)),
  data: orNull(DataSummarySchema),
  /** Set in a fork whose initial parameters may have been trained on its validation examples. */
  dataNote: orNull(Type.String()),
  /** Meaning of `error` in all evaluations of the run; null: no worker has reported it. */
  errorMeasure: orNull(ErrorMeasureSchema),
});
export type RunSummary = Static<typeof RunSummarySchema>;

/** A group of parameters, as it is now. */
const GroupFactsSchema = Type.Object({
  name: Type.String(),
  pattern: Type.Array(Type.String()),
  /** Elements of its tensors, without moving averages; null: no worker has told the model. */
  parameters: orNull(N),
  frozen: Type.Boolean(),
  /** Step of the phase from which on it is trained; null: never. */
  trainedFrom: orNull(N),
  /** Learning rate of its next update; 0 while it is frozen. */
  learningRate: N,
  everySteps: N,
});
export type GroupFacts = Static<typeof GroupFactsSchema>;

export const RunDetailSchema = Type.Object({
  ...RunSummarySchema.properties,
  experimentHash: Type.String(),
  /** SHA-256 of the bundle for workers that accept experiments; null: none was sent. Absent in answers of older servers. */
  bundle: Type.Optional(orNull(Type.String())),
  config: RunConfigSchema,
  layoutHash: orNull(Type.String()),
  /** Groups of the configuration; null: there are none. Absent in answers of older servers. */
  groups: Type.Optional(orNull(Type.Array(GroupFactsSchema))),
  /** Shape of one example; null: unknown. */
  inputShape: orNull(Type.Array(N)),
  /** Names of the first 100 classes; null: the data have no classes. `GET /runs/:id/data` has all. */
  classes: orNull(Type.Array(Type.String())),
});
export type RunDetail = Static<typeof RunDetailSchema>;

/** Facts about the data that a run keeps; null: no worker has reported them. */
export const RunDataSchema = Type.Object({
  summary: orNull(DataSummarySchema),
  facts: orNull(DataFactsSchema),
});
export type RunData = Static<typeof RunDataSchema>;

/** Load of a worker's machine and process. */
export const MachineFactsSchema = Type.Object(machineFields);
export type MachineFacts = Static<typeof MachineFactsSchema>;

export const WorkerSummarySchema = Type.Object({
  worker: Type.String(),
  incarnation: Type.String(),
  run: orNull(Type.String()),
  state: Type.Union([
    Type.Literal('idle'),
    Type.Literal('joining'),
    Type.Literal('training'),
    Type.Literal('evaluating'),
    Type.Literal('waiting'),
    Type.Literal('gone'),
  ]),
  engine: Type.String(),
  device: Type.String(),
  connectedAt: Type.String(),
  /** `unix`: the Unix socket for workers on the server's machine. */
  transport: Type.Union([Type.Literal('tcp'), Type.Literal('unix')]),
  lastSeenSecondsAgo: N,
  leases: N,
  pushes: Type.Object({ applied: N, damped: N, duplicate: N, rejected: N }),
  /** Mean staleness of the worker's applied pushes to this run; null: none. */
  stalenessMean: orNull(N),
  computeMsMean: orNull(N),
  /** Compute time smoothed over about the last 20 minibatches; null: none. */
  computeMsRecent: orNull(N),
  examples: N,
  /** Speed over the last ten seconds; null: not known yet. */
  examplesPerSecond: orNull(N),
  /** Bytes of the worker's connection, including headers. */
  bytes: Type.Object({ received: N, sent: N }),
  /** Last error that was sent to the worker, and its time (ISO 8601); null: none, or a push was applied since. */
  lastError: orNull(
    Type.Object({ code: Type.String(), message: Type.String(), at: Type.String() }),
  ),
  /** Why the run rejects everything from this worker; null: it does not. */
  quarantine: orNull(Type.String()),
  /** Load of the worker's machine, reported every 10 s; null: not reported. Absent in answers of older servers. */
  machine: Type.Optional(orNull(MachineFactsSchema)),
});
export type WorkerSummary = Static<typeof WorkerSummarySchema>;

export const CheckpointSummarySchema = Type.Object({
  kind: Type.Union([Type.Literal('last'), Type.Literal('best'), Type.Literal('final')]),
  step: N,
  createdAt: Type.String(),
  file: Type.String(),
  bytes: N,
  sha256: Type.String(),
  /** Files that it needs besides its own, which has changed rows alone. A download is one file with all rows. Absent: none. */
  continues: Type.Optional(N),
});
export type CheckpointSummary = Static<typeof CheckpointSummarySchema>;

/**
 * Columns of equal length. A long run is thinned to at most 2,000 points per column. `?points=` asks for fewer and
 * keeps the points that preserve the shape of the curve.
 */
export const MetricsSchema = Type.Object({
  training: Type.Object({
    step: Type.Array(N),
    seconds: Type.Array(N),
    /** Examples in all applied pushes so far; null in points of older releases, like `minibatchLoss` and `momentum`. */
    examples: Type.Array(orNull(N)),
    /** Smoothed training loss, like `trainingLoss` of a run. */
    loss: Type.Array(orNull(N)),
    /** Loss of this minibatch only. */
    minibatchLoss: Type.Array(orNull(N)),
    learningRate: Type.Array(N),
    /** Null also if the update rule has no momentum. */
    momentum: Type.Array(orNull(N)),
    gradientNorm: Type.Array(orNull(N)),
    staleness: Type.Array(N),
    /** Compute time of the minibatch as its worker measured it, ms; null in points of older releases. Absent: an older server. */
    computeMs: Type.Optional(Type.Array(orNull(N))),
  }),
  evaluations: Type.Array(EvaluationSchema),
  /** Entry i is the number of pushes applied with staleness i; the last entry also counts all larger values. */
  stalenessHistogram: Type.Array(N),
});
export type Metrics = Static<typeof MetricsSchema>;

/** The latest examples of the validation part with their predictions. */
export const RunExamplesSchema = Type.Object({
  /** Step of the evaluated parameters; null: no worker has reported examples since the server started. */
  step: orNull(N),
  at: orNull(Type.String()),
  examples: ShownExamplesSchema,
});
export type RunExamples = Static<typeof RunExamplesSchema>;

export const LogLineSchema = Type.Object({
  at: Type.String(),
  level: Type.Union([Type.Literal('info'), Type.Literal('warn'), Type.Literal('error')]),
  text: Type.String(),
  worker: orNull(Type.String()),
  code: orNull(Type.String()),
  step: orNull(N),
  /** Number of similar lines just before this one, which are not listed. */
  repeated: N,
});
export type LogLine = Static<typeof LogLineSchema>;

/** The last lines of the server's log about a run, since the server started. */
export const RunLogSchema = Type.Object({
  /** Oldest first. */
  lines: Type.Array(LogLineSchema),
  /** Number of older lines that are not listed. */
  dropped: N,
});
export type RunLogLines = Static<typeof RunLogSchema>;

/** Samples of weights, gradients, updates and activations that workers took; thinned as they accumulate. */
export const ObservationsSchema = Type.Object({
  /** Configured interval; null: nothing is sampled. */
  everySteps: orNull(N),
  samples: Type.Array(
    Type.Object({
      step: N,
      seconds: N,
      /** Number of updates that `updates` and `updateRatio` average over. */
      updateSteps: N,
      /** Number of samples behind `never` and `rare` of the tensors. */
      samples: N,
      tensors: Type.Array(TensorObservationSchema),
      layers: Type.Array(LayerObservationSchema),
    }),
  ),
  /** Number of samples taken, the time they took, and its share of all compute time. */
  cost: Type.Object({ samples: N, ms: N, share: orNull(N) }),
});
export type Observations = Static<typeof ObservationsSchema>;
export type ObservedSample = Observations['samples'][number];

/** An experiment that was sent as one JavaScript file. */
export const BundleSchema = Type.Object({ sha256: Type.String(), bytes: N });
export type Bundle = Static<typeof BundleSchema>;

export const HealthSchema = Type.Object({
  /** `standby`: a standby that has not taken over, and accepts no work; `degraded`: the server answers, but its runs wait. */
  status: Type.Union([Type.Literal('ok'), Type.Literal('degraded'), Type.Literal('standby')]),
  /** What the runs wait for; null: nothing. */
  problem: orNull(Type.String()),
  version: Type.String(),
  stateStore: Type.String(),
  uptimeSeconds: N,
  /** Path of the Unix socket; only callers on the server's machine see it. */
  localSocket: orNull(Type.String()),
});
export type Health = Static<typeof HealthSchema>;

/** A condition that needs attention. */
export const AlertSchema = Type.Object({
  severity: Type.Union([Type.Literal('critical'), Type.Literal('warning'), Type.Literal('info')]),
  /** The run and the worker concerned, if any. */
  run: orNull(Type.String()),
  worker: orNull(Type.String()),
  text: Type.String(),
});
export type Alert = Static<typeof AlertSchema>;

/** State of the hot standby of a server. */
export const StandbyFactsSchema = Type.Object({
  /** `joining`: it receives all runs; `parting`: it was lost, and the server checks in the store that it still owns the state. */
  state: Type.Union([
    Type.Literal('joining'),
    Type.Literal('following'),
    Type.Literal('parting'),
    Type.Literal('lost'),
  ]),
  address: Type.String(),
  /** Null: the standby is lost. */
  mode: orNull(Type.Union([Type.Literal('sync'), Type.Literal('async')])),
  /** Maximum number of pushes by which it may lag. */
  lagMax: orNull(N),
  /** Seconds since it connected or was lost. */
  seconds: N,
  /** Reason for its loss. */
  reason: orNull(Type.String()),
  /** Pushes and bytes that it has not processed yet. */
  behind: Type.Object({ pushes: N, bytes: N }),
});
export type StandbyFacts = Static<typeof StandbyFactsSchema>;

/** State of the checkpoint copies of `--checkpoint-copy`. */
export const CopyFactsSchema = Type.Object({
  /** `s3://bucket/prefix` */
  to: Type.String(),
  /** Number of checkpoints (the newest per run and kind) that are not copied yet. */
  waiting: N,
  /** Counts since the server started: checkpoints and bytes copied, failed attempts, old copies removed. */
  copied: N,
  bytes: N,
  failed: N,
  removed: N,
  /** Seconds since the last success, and the error, if the last attempt failed; null: it succeeded. */
  away: orNull(Type.Object({ seconds: N, why: Type.String() })),
  /** Runs whose newest checkpoint cannot be copied; the server does not retry it. */
  refused: Type.Array(Type.Object({ run: Type.String(), why: Type.String() })),
  /** Step of the newest copy of each run. */
  runs: Type.Array(Type.Object({ run: Type.String(), step: N })),
});
export type CopyFacts = Static<typeof CopyFactsSchema>;

/** Memory of connections, in addition to that of runs. */
export const ConnectionFactsSchema = Type.Object({
  /** Current size and maximum. */
  bytes: N,
  bytesMax: N,
  /** Connections closed because they used too much memory, or sent or received too slowly. */
  closed: N,
  /** Seconds since the last one was closed; null: none was. */
  closedSecondsAgo: orNull(N),
  /** Slow pushes whose buffer was given to others. */
  moved: N,
});
export type ConnectionFacts = Static<typeof ConnectionFactsSchema>;

/** How many of the runs of a state folder the server has read. A request for another one waits for it. */
export const RunsReadSchema = Type.Object({ done: N, of: N });
export type RunsRead = Static<typeof RunsReadSchema>;

/** Facts about the server itself. */
export const ServerFactsSchema = Type.Object({
  version: Type.String(),
  startedAt: Type.String(),
  stateStore: Type.String(),
  /** Set while Redis is unreachable: since how long, and how many records wait on disk. */
  stateStoreAway: orNull(Type.Object({ seconds: N, records: N })),
  memoryBytes: Type.Object({ rss: N, heap: N, arrayBuffers: N }),
  connections: ConnectionFactsSchema,
  /** Set if parameters are sharded: the number of shards, and whether all of them are up (`whole`). */
  shards: orNull(
    Type.Object({
      count: N,
      whole: Type.Boolean(),
      /** Set if a shard is gone or silent: its number (the first after the server is 1), and for how many seconds. */
      lost: orNull(Type.Object({ index: N, url: Type.String(), why: Type.String(), seconds: N })),
    }),
  ),
  /** Null: there has been no standby since this server started. */
  standby: orNull(StandbyFactsSchema),
  /** Null: checkpoints are not copied. */
  copies: orNull(CopyFactsSchema),
  /** Set: the server has begun not long ago and still reads the runs of its state folder, so many of so many are here. */
  runsRead: Type.Optional(orNull(RunsReadSchema)),
  /** Alerts, the most severe first. */
  alerts: Type.Array(AlertSchema),
  /** Changes whenever a study is reported or removed. */
  studiesVersion: N,
});
export type ServerFacts = Static<typeof ServerFactsSchema>;

/** The trials of one study among the runs of the server. */
export const StudyFoldSchema = Type.Object({
  study: Type.String(),
  /** From the report of the study (`GET /studies/:name`); null: the server has none. */
  kind: orNull(Type.String()),
  state: orNull(Type.String()),
  title: orNull(Type.String()),
  /** Number of ended trials and of all trials that the study plans; null: unknown. */
  trials: orNull(Type.Object({ ended: N, of: N })),
  experiment: Type.String(),
  /** When its first and its last trial were created. */
  createdAt: Type.String(),
  newestAt: Type.String(),
  /** Number of its runs on this server, in total and by phase. */
  runs: N,
  phases: Type.Record(Type.String(), N),
  workers: N,
  examplesPerSecond: orNull(N),
  /** The trial with the lowest validation error, or loss where some trials have no error; null: none is evaluated. */
  best: orNull(
    Type.Object({
      run: Type.String(),
      metric: Type.String(),
      value: N,
      errorMeasure: orNull(ErrorMeasureSchema),
    }),
  ),
});
export type StudyFold = Static<typeof StudyFoldSchema>;

export const StatusSchema = Type.Object({
  ...ServerFactsSchema.properties,
  /** Runs in order of creation. */
  runs: Type.Array(RunSummarySchema),
  /** Number of all runs. Absent in answers of older releases, which listed all runs. */
  runCount: Type.Optional(N),
  /** Number of archived runs. Absent in answers of older releases, like `studies`. */
  archivedCount: Type.Optional(N),
  /** With `fold=studies`: the trials of each study in one entry, and `runs` has the other runs only. */
  studies: Type.Optional(Type.Array(StudyFoldSchema)),
  workers: Type.Array(WorkerSummarySchema),
});
export type Status = Static<typeof StatusSchema>;

export const RunPageSchema = Type.Object({
  /** Runs in order of creation. */
  runs: Type.Array(RunSummarySchema),
  /** If there are more runs, the value of `after` for the next page; null: none. Absent in answers of older releases, which listed all runs. */
  next: Type.Optional(orNull(Type.String())),
  /** Number of archived runs, which are left out unless `archived` asks for them. Absent in answers of older releases. */
  archivedCount: Type.Optional(N),
});
export type RunPage = Static<typeof RunPageSchema>;

const Line = Type.String({ maxLength: 1_000 });
const studyFacts = {
  /** Kind of the study, such as `search`, `lr`, `folds` or `look`. */
  kind: Name,
  state: Type.Union([
    Type.Literal('running'),
    Type.Literal('ended'),
    Type.Literal('interrupted'),
    Type.Literal('failed'),
  ]),
  experiment: Name,
  /** Run whose model was inspected; null: the study does not inspect a single model. */
  run: orNull(Name),
  title: Type.String({ maxLength: 500 }),
  /** Number of ended trials and of all trials; null: the study has no trials. */
  trials: orNull(Type.Object({ ended: Type.Integer(), of: Type.Integer() }, closed)),
};

/**
 * Results of a study, or of a look at a model, so far: a table, advice and figures. Commands send it to the server of
 * the runs (`PUT /studies/:name`) whenever it changes.
 */
export const StudyReportSchema = Type.Object(
  {
    ...studyFacts,
    headings: Type.Array(Line, { maxItems: 64 }),
    rows: Type.Array(Type.Array(Line, { maxItems: 64 }), { maxItems: 2_000 }),
    /** One paragraph of advice; empty while the study runs. */
    advice: Type.String({ maxLength: 20_000 }),
    figures: Type.Array(FigureSchema, { maxItems: FIGURE_LIMITS.figures }),
    /** Number of rows and figures that were left out because there are too many or they are too large. */
    omitted: Type.Integer({ minimum: 0 }),
    /** Runs of the study on this server. */
    runs: Type.Array(Name, { maxItems: LIMITS.runCountMax }),
  },
  closed,
);
export type StudyReport = Static<typeof StudyReportSchema>;

export const StudySummarySchema = Type.Object({
  name: Name,
  ...studyFacts,
  createdAt: Type.String(),
  updatedAt: Type.String(),
});
export type StudySummary = Static<typeof StudySummarySchema>;

export const StudyDetailSchema = Type.Object({
  ...StudySummarySchema.properties,
  ...StudyReportSchema.properties,
});
export type StudyDetail = Static<typeof StudyDetailSchema>;

/** Recent states of the workers, sampled once a second. */
export const TimelineSchema = Type.Object({
  /** Length of the period in seconds. */
  seconds: N,
  workers: Type.Array(
    Type.Object({
      worker: Type.String(),
      incarnation: Type.String(),
      /** Each state began `secondsAgo` and lasted until the next one. */
      states: Type.Array(
        Type.Object({ state: WorkerSummarySchema.properties.state, secondsAgo: N }),
      ),
    }),
  ),
});
export type Timeline = Static<typeof TimelineSchema>;

/**
 * An event of `GET /feed`: the changes since the last event. After a connection, the first event has the active and the
 * newest runs, and further events add the others step by step.
 */
export interface FeedUpdate {
  readonly server: ServerFacts;
  readonly runs: readonly RunSummary[];
  readonly workers: readonly WorkerSummary[];
  /** Number of runs still to come. Absent in events of older releases, whose first event had all runs. */
  readonly rest?: number;
  /** Names of runs, and `worker/incarnation`, that the server no longer has. */
  readonly gone: { readonly runs: readonly string[]; readonly workers: readonly string[] };
}

/** Identity of the caller: answer of `GET /session`. */
export const SessionSchema = Type.Object({
  /** Null: not logged in; a token is needed. */
  role: orNull(Type.Union([Type.Literal('observer'), Type.Literal('operator')])),
  /** True: the server has no tokens, and everyone who can reach it is an operator. */
  open: Type.Boolean(),
  /** True: pages of this browser may train (login with a worker's or an operator's token). */
  works: Type.Boolean(),
});
export type LoginFacts = Static<typeof SessionSchema>;

export const LoginSchema = Type.Object(
  {
    token: Type.String({ minLength: 1, maxLength: 4096 }),
    /** Log in to train at `/join`, not to read runs. */
    work: Type.Optional(Type.Boolean()),
  },
  closed,
);
export type Login = Static<typeof LoginSchema>;

/** Ticket for the WebSocket of a page: `POST /join/ticket`. */
export const TicketSchema = Type.Object({
  /** Valid for one handshake. */
  ticket: Type.String(),
  /** Seconds until the ticket expires. */
  seconds: Type.Number(),
});
export type Ticket = Static<typeof TicketSchema>;

export const ErrorBodySchema = Type.Object({ code: Type.String(), message: Type.String() });
export type ErrorBody = Static<typeof ErrorBodySchema>;
