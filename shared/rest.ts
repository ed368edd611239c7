import Type, { type Static, type TSchema } from 'typebox';
import { BUNDLE_HASH } from './bundle.ts';
import { NAME_PATTERN, RunConfigSchema } from './config.ts';
import { DataFactsSchema } from './data-facts.ts';
import { FIGURE_LIMITS, FigureSchema } from './figure.ts';
import { LIMITS } from './limits.ts';
import {
  DataSummarySchema,
  ErrorMeasureSchema,
  LayerObservationSchema,
  PhaseSchema,
  TensorObservationSchema,
} from './protocol.ts';

/** What REST takes and gives: the bodies of `server/http/routes.ts`, the types of every client. */

const closed = { additionalProperties: false } as const;
const Name = Type.String({ pattern: NAME_PATTERN });
const N = Type.Number();
const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);

export const CreateRunSchema = Type.Object(
  {
    id: Type.Optional(Name),
    experiment: Name,
    /** SHA-256 of the experiment's files; every worker's must be the same. */
    experimentHash: Type.String({ minLength: 1, maxLength: 128 }),
    /** A part of a configuration; what is missing takes its default. */
    config: Type.Optional(Type.Unsafe<unknown>({ type: 'object' })),
    /** Begins with the parameters of another run; optimizer, schedule and steps begin anew. */
    fork: Type.Optional(
      Type.Object(
        {
          run: Name,
          /** Newest of a kind, or a file of `GET /runs/:id/checkpoints`. `last`: of this moment. */
          checkpoint: Type.String({ minLength: 1, maxLength: 200, default: 'last' }),
          /** `other`: data that differ from those of the other run are taken, with its standardisation. */
          data: Type.Optional(Type.Union([Type.Literal('same'), Type.Literal('other')])),
        },
        closed,
      ),
    ),
    /** The study whose trial it is: commands that choose a run by themselves leave it out. */
    study: Type.Optional(Name),
    /** SHA-256 of a bundle of its experiment (`PUT /bundles/:sha256`), for workers that accept experiments. */
    bundle: Type.Optional(Type.String({ pattern: BUNDLE_HASH })),
  },
  closed,
);
export type CreateRun = Static<typeof CreateRunSchema>;

/** One evaluation of a snapshot on one part of the data. */
export const EvaluationSchema = Type.Object({
  step: N,
  epoch: N,
  /** Seconds of training before it, over all sessions of the run. */
  seconds: N,
  part: Type.String(),
  loss: orNull(N),
  error: orNull(N),
  examples: N,
  /** The experiment's own; null: not finite for some minibatch of the evaluation. */
  metrics: Type.Record(Type.String(), orNull(N)),
  learningRate: N,
  /** Smoothed, at the time of the evaluation. */
  trainingLoss: orNull(N),
});
export type Evaluation = Static<typeof EvaluationSchema>;

/** A run that diverged went back to good parameters, with a lower learning rate. */
export const RollbackSchema = Type.Object({
  step: N,
  /** The step of the best evaluation whose parameters it took; null: fresh initial ones. */
  to: orNull(N),
  /** The learning rate of the next update. */
  learningRate: N,
  reason: Type.String(),
});
export type Rollback = Static<typeof RollbackSchema>;

/** What a run does about its workers' number: `consistency.correction`. */
export const CorrectionSchema = Type.Object({
  /** What it may do: as configured, or none where that leaves nothing. */
  kind: Type.Union([Type.Literal('none'), Type.Literal('auto'), Type.Literal('lookahead')]),
  /** Those that it counts: connected, or away for a few seconds. */
  workers: N,
  lookahead: Type.Boolean(),
  /** Fewer than workers: for lack of room several workers share one. */
  velocities: N,
  /** The largest norm of a gradient now, larger ones are scaled down to it; null: any. */
  normMax: orNull(N),
  /** In words, as soon as nobody has come or gone for a push of each worker; null: all is as with one worker. */
  text: orNull(Type.String()),
});
export type Correction = Static<typeof CorrectionSchema>;

export const RunSummarySchema = Type.Object({
  id: Type.String(),
  experiment: Type.String(),
  /** Whose trial it is; null: a run of its own, or of release 0.1.0, which kept none. */
  study: orNull(Type.String()),
  phase: PhaseSchema,
  /** Why the run is in this phase, in words. */
  reason: Type.String(),
  createdAt: Type.String(),
  step: N,
  epoch: N,
  /** Examples of the applied pushes. */
  examples: N,
  /** Upper limits from the configuration; early stopping usually ends sooner. */
  stepsMax: orNull(N),
  workers: N,
  parameters: orNull(N),
  learningRate: N,
  momentum: orNull(N),
  /** Over the last ten seconds; null: it is over, or this server has seen too few pushes to know. */
  examplesPerSecond: orNull(N),
  /** Until stepsMax at the present speed, null: unknown. */
  secondsLeft: orNull(N),
  seconds: N,
  /** Exponentially smoothed over pushes, bias corrected. */
  trainingLoss: orNull(N),
  /** The same at up to 40 steps from the first to now, at equal distances. */
  sparkline: Type.Array(N),
  validation: orNull(EvaluationSchema),
  best: orNull(EvaluationSchema),
  /** The final parameters on the test part, which is looked at once; and when, ISO 8601. */
  test: orNull(EvaluationSchema),
  testedAt: orNull(Type.String()),
  earlyStopping: Type.Object({
    /** False: training ends at its last step alone; what follows is the same. */
    enabled: Type.Boolean(),
    metric: Type.String(),
    patience: N,
    patienceLeft: N,
    afterStop: Type.String(),
    stoppedAt: orNull(N),
    /** `continue`: the training loss at the stop. */
    target: orNull(N),
    refitSteps: orNull(N),
  }),
  /** The staleness of all applied pushes, as `stalenessHistogram` of the metrics counts them; null: none yet. */
  staleness: orNull(Type.Object({ p50: N, p95: N, max: N })),
  gradientNorm: orNull(N),
  /** Absent: an older server. */
  correction: Type.Optional(CorrectionSchema),
  /** Set: the optimisation seems to be in trouble, and what to try. */
  hint: orNull(Type.String()),
  pushes: Type.Object({ applied: N, damped: N, duplicate: N, rejected: N }),
  rollbacks: Type.Array(RollbackSchema),
  /** Updates that were applied and are gone, with crashes of the server, as far as is known. */
  stepsLost: N,
  checkpoint: orNull(Type.Object({ step: N, file: Type.String(), at: Type.String() })),
  /** Why something of it cannot be written down; it is tried again. Null: all is. Absent: an older server. */
  unwritten: Type.Optional(orNull(Type.String())),
  data: orNull(DataSummarySchema),
  /** Set in a fork: its validation examples may be among those that its first parameters were trained on. */
  dataNote: orNull(Type.String()),
  /** What `error` is in all evaluations of the run; null: no worker has said. */
  errorMeasure: orNull(ErrorMeasureSchema),
});
export type RunSummary = Static<typeof RunSummarySchema>;

export const RunDetailSchema = Type.Object({
  ...RunSummarySchema.properties,
  experimentHash: Type.String(),
  /** SHA-256 of the bundle that workers which accept experiments fetch; null: none was sent. Absent: an older server. */
  bundle: Type.Optional(orNull(Type.String())),
  config: RunConfigSchema,
  layoutHash: orNull(Type.String()),
  /** The shape of one example; null: not known. */
  inputShape: orNull(Type.Array(N)),
  /** Names of the classes, the first 100; null: the data have none. All: `GET /runs/:id/data`. */
  classes: orNull(Type.Array(Type.String())),
});
export type RunDetail = Static<typeof RunDetailSchema>;

/** What a run keeps of its data; null: no worker has said. */
export const RunDataSchema = Type.Object({
  summary: orNull(DataSummarySchema),
  facts: orNull(DataFactsSchema),
});
export type RunData = Static<typeof RunDataSchema>;

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
  /** `unix`: the socket for workers on the server's machine. */
  transport: Type.Union([Type.Literal('tcp'), Type.Literal('unix')]),
  lastSeenSecondsAgo: N,
  leases: N,
  pushes: Type.Object({ applied: N, damped: N, duplicate: N, rejected: N }),
  /** The mean staleness of its applied pushes to its run; null: none. */
  stalenessMean: orNull(N),
  computeMsMean: orNull(N),
  /** Smoothed over about its last 20; null: none. */
  computeMsRecent: orNull(N),
  examples: N,
  /** Over the last ten seconds; null: not known yet. */
  examplesPerSecond: orNull(N),
  /** The bytes of its connection, headers and all. */
  bytes: Type.Object({ received: N, sent: N }),
  /** What it was told last that went wrong, and when (ISO 8601); null: nothing, or a push was applied since. */
  lastError: orNull(
    Type.Object({ code: Type.String(), message: Type.String(), at: Type.String() }),
  ),
  /** Set: its run takes nothing from it any more, and why. */
  quarantine: orNull(Type.String()),
});
export type WorkerSummary = Static<typeof WorkerSummarySchema>;

export const CheckpointSummarySchema = Type.Object({
  kind: Type.Union([Type.Literal('last'), Type.Literal('best'), Type.Literal('final')]),
  step: N,
  createdAt: Type.String(),
  file: Type.String(),
  bytes: N,
  sha256: Type.String(),
});
export type CheckpointSummary = Static<typeof CheckpointSummarySchema>;

/**
 * Columns of equal length, thinned to at most 2,000 points a column, whatever the length of the run; to fewer
 * by `?points=`, which keeps those that show the shape.
 */
export const MetricsSchema = Type.Object({
  training: Type.Object({
    step: Type.Array(N),
    seconds: Type.Array(N),
    /** The examples of all applied pushes so far; null in points of older releases, as `minibatchLoss` and `momentum`. */
    examples: Type.Array(orNull(N)),
    /** Smoothed, as `trainingLoss` of a run. */
    loss: Type.Array(orNull(N)),
    /** The loss of the minibatch alone. */
    minibatchLoss: Type.Array(orNull(N)),
    learningRate: Type.Array(N),
    /** Null also where the update rule has none. */
    momentum: Type.Array(orNull(N)),
    gradientNorm: Type.Array(orNull(N)),
    staleness: Type.Array(N),
    /** Compute time of the minibatch as its worker measured it, ms; null in points of older releases. Absent: an older server. */
    computeMs: Type.Optional(Type.Array(orNull(N))),
  }),
  evaluations: Type.Array(EvaluationSchema),
  /** count[i]: pushes applied with staleness i; the last one counts all beyond. */
  stalenessHistogram: Type.Array(N),
});
export type Metrics = Static<typeof MetricsSchema>;

/** What workers sampled of weights, gradients, updates and activations, thinned as it grows. */
export const ObservationsSchema = Type.Object({
  /** As configured; null: nothing is sampled. */
  everySteps: orNull(N),
  samples: Type.Array(
    Type.Object({
      step: N,
      seconds: N,
      /** Updates that `updates` and `updateRatio` are means over. */
      updateSteps: N,
      /** Samples that `never` and `rare` of the tensors count over. */
      samples: N,
      tensors: Type.Array(TensorObservationSchema),
      layers: Type.Array(LayerObservationSchema),
    }),
  ),
  /** All that were taken, the time they took, and its share of all compute time. */
  cost: Type.Object({ samples: N, ms: N, share: orNull(N) }),
});
export type Observations = Static<typeof ObservationsSchema>;
export type ObservedSample = Observations['samples'][number];

/** An experiment that was sent, as one file of JavaScript. */
export const BundleSchema = Type.Object({ sha256: Type.String(), bytes: N });
export type Bundle = Static<typeof BundleSchema>;

export const HealthSchema = Type.Object({
  /** `standby`: it takes no work before it has taken over; `degraded`: it answers, and its runs wait. */
  status: Type.Union([Type.Literal('ok'), Type.Literal('degraded'), Type.Literal('standby')]),
  /** What its runs wait for; null: nothing. */
  problem: orNull(Type.String()),
  version: Type.String(),
  stateStore: Type.String(),
  uptimeSeconds: N,
  /** Path of the unix socket, told to callers on the server's machine only. */
  localSocket: orNull(Type.String()),
});
export type Health = Static<typeof HealthSchema>;

/** What a person should look at. */
export const AlertSchema = Type.Object({
  severity: Type.Union([Type.Literal('critical'), Type.Literal('warning'), Type.Literal('info')]),
  /** The run and the worker that it is about, if any. */
  run: orNull(Type.String()),
  worker: orNull(Type.String()),
  text: Type.String(),
});
export type Alert = Static<typeof AlertSchema>;

/** The hot standby of a server, or what became of it. */
export const StandbyFactsSchema = Type.Object({
  /** `joining`: it is told all runs; `parting`: it was lost, and the store is asked who owns the state. */
  state: Type.Union([
    Type.Literal('joining'),
    Type.Literal('following'),
    Type.Literal('parting'),
    Type.Literal('lost'),
  ]),
  address: Type.String(),
  /** Null: it is lost. */
  mode: orNull(Type.Union([Type.Literal('sync'), Type.Literal('async')])),
  /** Pushes that it may lack. */
  lagMax: orNull(N),
  /** Since it came, or was lost. */
  seconds: N,
  /** Why it was lost. */
  reason: orNull(Type.String()),
  /** What it has not carried out yet. */
  behind: Type.Object({ pushes: N, bytes: N }),
});
export type StandbyFacts = Static<typeof StandbyFactsSchema>;

/** What became of checkpoints that `--checkpoint-copy` was to copy into a bucket. */
export const CopyFactsSchema = Type.Object({
  /** `s3://bucket/prefix` */
  to: Type.String(),
  /** The newest of each run and kind that are not there yet. */
  waiting: N,
  /** Since the server began: checkpoints and bytes that arrived, attempts that failed, old copies removed. */
  copied: N,
  bytes: N,
  failed: N,
  removed: N,
  /** Set: the last attempt failed, and since when none has gone well. */
  away: orNull(Type.Object({ seconds: N, why: Type.String() })),
  /** Runs whose newest checkpoint cannot be copied, and is not tried again. */
  refused: Type.Array(Type.Object({ run: Type.String(), why: Type.String() })),
  /** Step of the newest copy of each run. */
  runs: Type.Array(Type.Object({ run: Type.String(), step: N })),
});
export type CopyFacts = Static<typeof CopyFactsSchema>;

/** The memory that connections take beside that of runs. */
export const ConnectionFactsSchema = Type.Object({
  /** Now, and at most. */
  bytes: N,
  bytesMax: N,
  /** Connections closed for what they took, or for payloads and answers that got on too slowly. */
  closed: N,
  /** Since the last of them; null: there was none. */
  closedSecondsAgo: orNull(N),
  /** Pushes that came slowly and lost their room to others. */
  moved: N,
});
export type ConnectionFacts = Static<typeof ConnectionFactsSchema>;

/** How many of the runs of a state folder the server has read. A request for another one waits for it. */
export const RunsReadSchema = Type.Object({ done: N, of: N });
export type RunsRead = Static<typeof RunsReadSchema>;

/** What is known of the server itself. */
export const ServerFactsSchema = Type.Object({
  version: Type.String(),
  startedAt: Type.String(),
  stateStore: Type.String(),
  /** Set: Redis cannot be reached, and so many records wait for it on disk. */
  stateStoreAway: orNull(Type.Object({ seconds: N, records: N })),
  memoryBytes: Type.Object({ rss: N, heap: N, arrayBuffers: N }),
  connections: ConnectionFactsSchema,
  /** Set: the vectors of runs are shared among so many; `whole`: all of them are there. */
  shards: orNull(
    Type.Object({
      count: N,
      whole: Type.Boolean(),
      /** Set: this one, counted from 1 after the server itself, has gone or is silent, for so many seconds. */
      lost: orNull(Type.Object({ index: N, url: Type.String(), why: Type.String(), seconds: N })),
    }),
  ),
  /** Null: there has been none since this server began. */
  standby: orNull(StandbyFactsSchema),
  /** Null: checkpoints are copied nowhere. */
  copies: orNull(CopyFactsSchema),
  /** Set: the server has begun not long ago and still reads the runs of its state folder, so many of so many are here. */
  runsRead: Type.Optional(orNull(RunsReadSchema)),
  /** The worst first. */
  alerts: Type.Array(AlertSchema),
  /** Another number whenever a study was told of or removed. */
  studiesVersion: N,
});
export type ServerFacts = Static<typeof ServerFactsSchema>;

export const StatusSchema = Type.Object({
  ...ServerFactsSchema.properties,
  /** The runs in the order of creation. */
  runs: Type.Array(RunSummarySchema),
  /** How many there are; absent in answers of older releases, which told all. */
  runCount: Type.Optional(N),
  workers: Type.Array(WorkerSummarySchema),
});
export type Status = Static<typeof StatusSchema>;

export const RunPageSchema = Type.Object({
  /** The runs in the order of creation. */
  runs: Type.Array(RunSummarySchema),
  /** Set: there are more, which `after` with this value tells. Absent in answers of older releases, which told all. */
  next: Type.Optional(orNull(Type.String())),
});
export type RunPage = Static<typeof RunPageSchema>;

const Line = Type.String({ maxLength: 1_000 });
const studyFacts = {
  /** `search`, `lr`, `folds`, `look` and so on: any that a command knows. */
  kind: Name,
  state: Type.Union([
    Type.Literal('running'),
    Type.Literal('ended'),
    Type.Literal('interrupted'),
    Type.Literal('failed'),
  ]),
  experiment: Name,
  /** Whose parameters were looked at; null: it is no look at one model. */
  run: orNull(Name),
  title: Type.String({ maxLength: 500 }),
  /** How many of its trials have ended; null: it has none. */
  trials: orNull(Type.Object({ ended: Type.Integer(), of: Type.Integer() }, closed)),
};

/**
 * What a study, or a look at a model, has found so far: a table, advice and figures. Commands tell it to the server
 * that has the runs (`PUT /studies/:name`), as often as it has changed.
 */
export const StudyReportSchema = Type.Object(
  {
    ...studyFacts,
    headings: Type.Array(Line, { maxItems: 64 }),
    rows: Type.Array(Type.Array(Line, { maxItems: 64 }), { maxItems: 2_000 }),
    /** One paragraph; empty while it runs. */
    advice: Type.String({ maxLength: 20_000 }),
    figures: Type.Array(FigureSchema, { maxItems: FIGURE_LIMITS.figures }),
    /** Rows and figures that were left out since they are too many or too large. */
    omitted: Type.Integer({ minimum: 0 }),
    /** Its runs on this server. */
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

/** What the workers did of late, looked at once a second. */
export const TimelineSchema = Type.Object({
  /** How far back it goes. */
  seconds: N,
  workers: Type.Array(
    Type.Object({
      worker: Type.String(),
      incarnation: Type.String(),
      /** Each began so long ago and lasted until the next one. */
      states: Type.Array(
        Type.Object({ state: WorkerSummarySchema.properties.state, secondsAgo: N }),
      ),
    }),
  ),
});
export type Timeline = Static<typeof TimelineSchema>;

/**
 * An event of `GET /feed`: what has changed since the one before. The first ones after a connection tell all: runs at work
 * and the newest at once, the others little by little.
 */
export interface FeedUpdate {
  readonly server: ServerFacts;
  readonly runs: readonly RunSummary[];
  readonly workers: readonly WorkerSummary[];
  /** Runs that are still to be told of. Absent in those of older releases, whose first event had all. */
  readonly rest?: number;
  /** Names of runs, and `worker/incarnation`, that the server knows no more. */
  readonly gone: { readonly runs: readonly string[]; readonly workers: readonly string[] };
}

/** Who looks, as `GET /session` says. */
export const SessionSchema = Type.Object({
  /** Null: nobody yet; a token must be given. */
  role: orNull(Type.Union([Type.Literal('observer'), Type.Literal('operator')])),
  /** The server has no tokens: whoever reaches it is an operator. */
  open: Type.Boolean(),
  /** A worker's login, or an operator's: pages of this browser may train. */
  works: Type.Boolean(),
});
export type SessionFacts = Static<typeof SessionSchema>;

export const LoginSchema = Type.Object(
  {
    token: Type.String({ minLength: 1, maxLength: 4096 }),
    /** To work, as `/join` does, and not to look. */
    work: Type.Optional(Type.Boolean()),
  },
  closed,
);
export type Login = Static<typeof LoginSchema>;

/** For a page's WebSocket: `POST /join/ticket`. */
export const TicketSchema = Type.Object({
  /** For one handshake. */
  ticket: Type.String(),
  /** The seconds within which it must begin. */
  seconds: Type.Number(),
});
export type Ticket = Static<typeof TicketSchema>;

export const ErrorBodySchema = Type.Object({ code: Type.String(), message: Type.String() });
export type ErrorBody = Static<typeof ErrorBodySchema>;
