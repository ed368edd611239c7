import Type, { type Static, type TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { ENCODINGS, type Encoding as EncodingName } from './compression.ts';
import { LIMITS, NAME_PATTERN, RunConfigSchema } from './config.ts';
import { DownpourError, ERRORS, type ErrorCode } from './errors.ts';

/**
 * What workers and the server say to each other. `docs/protocol.md` tells the order:
 *
 *     worker                                   server
 *     hello            ───────────────────▶
 *                      ◀───────────────────    standby (where there is one), assign | idle
 *     join             ───────────────────▶
 *                      ◀───────────────────    initialise (to one) | work
 *     initialised +θ   ───────────────────▶
 *                      ◀───────────────────    work +θ
 *     push +g          ───────────────────▶
 *                      ◀───────────────────    work +θ, with what became of the push
 *     evaluated        ───────────────────▶    (when the work was an evaluation)
 *     observed         ───────────────────▶    (now and then, where the configuration asks for it)
 *                      ◀───────────────────    end, when the run is over; then assign | idle
 */

export const closed = { additionalProperties: false } as const;
export const Name = Type.String({ pattern: NAME_PATTERN });
const Hash = Type.String({ minLength: 1, maxLength: 128 });
export const Natural = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
/** Of a worker's push: counts up from 1 over the life of an incarnation. */
export const Sequence = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
export const Text = Type.String({ maxLength: 2000 });
const { measuredMax, durationMsMax } = LIMITS;
/** What a worker has measured. Bounded, so that no sum of such numbers is infinite: JSON could not keep it. */
const Measured = Type.Number({ minimum: -measuredMax, maximum: measuredMax });
const Size = Type.Number({ minimum: 0, maximum: measuredMax });
const MetricName = Type.String({ pattern: '^[^\\u0000-\\u001f\\u007f-\\u009f]{1,64}$' });
const Duration = Type.Number({ minimum: 0, maximum: durationMsMax });
export const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);

export const TensorSpecSchema = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: LIMITS.nameLengthMax }),
    shape: Type.Array(Natural, { maxItems: LIMITS.rankMax }),
    role: Type.Union([
      Type.Literal('trainable'),
      Type.Literal('statistics'),
      Type.Literal('frozen'),
    ]),
    momentum: Type.Optional(Type.Number({ minimum: 0, exclusiveMaximum: 1 })),
  },
  closed,
);

/** The examples that a worker found. All workers of a run must have the same. */
export const DataSummarySchema = Type.Object(
  {
    trainCount: Type.Integer({ minimum: 1, maximum: 2 ** 31 - 1 }),
    validationCount: Type.Integer({ minimum: 1, maximum: 2 ** 31 - 1 }),
    testCount: Type.Integer({ minimum: 0, maximum: 2 ** 31 - 1 }),
    fingerprint: Hash,
    /** Of the data before the split; absent: a worker of an older release. */
    rawFingerprint: Type.Optional(Hash),
    /** What `data()` looked at of the configuration: with other values the data may be others. */
    depends: Type.Optional(Type.Array(Type.String({ maxLength: 200 }), { maxItems: 1000 })),
    source: Text,
  },
  closed,
);
export type DataSummary = Static<typeof DataSummarySchema>;

/**
 * What evaluations report as the error: the share of examples answered wrongly, the loss again, or a function of the
 * experiment's own, in a unit of its own.
 */
export const ErrorMeasureSchema = Type.Union([
  Type.Literal('misclassification'),
  Type.Literal('loss'),
  Type.Literal('own'),
]);
export type ErrorMeasure = Static<typeof ErrorMeasureSchema>;

/** Which examples: refitting uses `trainAndValidation`, where validation follows training. */
export const PartSchema = Type.Union([
  Type.Literal('train'),
  Type.Literal('validation'),
  Type.Literal('test'),
  Type.Literal('trainAndValidation'),
]);
export type Part = Static<typeof PartSchema>;

/** One minibatch: positions [start, start + count) of the epoch's permutation of the part. */
export const LeaseSchema = Type.Object(
  {
    id: Natural,
    epoch: Natural,
    start: Natural,
    count: Type.Integer({ minimum: 1 }),
    part: PartSchema,
  },
  closed,
);
export type Lease = Static<typeof LeaseSchema>;

export const PhaseSchema = Type.Union([
  /** No worker has initialised the parameters yet. */
  Type.Literal('waiting'),
  Type.Literal('training'),
  /** Measures the training loss at the best parameters, the target of `continue`. */
  Type.Literal('measuring'),
  /** After early stopping: `retrain` or `continue`, on training and validation data. */
  Type.Literal('refitting'),
  /** Evaluates the final parameters on the test part. */
  Type.Literal('testing'),
  Type.Literal('finished'),
  /** By a user; `resume` goes on. */
  Type.Literal('stopped'),
  Type.Literal('failed'),
]);
export type Phase = Static<typeof PhaseSchema>;

/** Drawn by the server for each connection of a worker. */
export const SessionId = Type.String({ pattern: '^[0-9a-f]{16}$' });

export const ShardAddressSchema = Type.Object(
  {
    /** Null: the host at which the worker has reached the server. */
    host: orNull(Type.String({ minLength: 1, maxLength: 255 })),
    port: Type.Integer({ minimum: 1, maximum: 65_535 }),
  },
  closed,
);
export type ShardAddress = Static<typeof ShardAddressSchema>;
/** Of a standby: the same, with the primary in the server's place. */
export type ServerAddress = ShardAddress;

// From worker to server.

export const HelloSchema = Type.Object(
  {
    type: Type.Literal('hello'),
    /** Unique among the workers of a server: while one is connected, no other takes its name. */
    worker: Name,
    /** Drawn when the worker process starts: (worker, incarnation, sequence) names a push. */
    incarnation: Type.String({ pattern: '^[0-9a-f]{16}$' }),
    /** Only this run, or null: any. */
    run: orNull(Name),
    /** Experiments that the worker has on its disk, with their content hashes. */
    experiments: Type.Record(Name, Hash, closed),
    engine: Type.String({ maxLength: 100 }),
    device: Type.String({ maxLength: 200 }),
  },
  closed,
);
export type Hello = Static<typeof HelloSchema>;

/** Says that the payload is a `DataFacts` of `shared/data-facts.ts`, as JSON. */
const Facts = Type.Optional(Type.Literal('json'));

/** Payload: what the worker's data are, where `facts` says so. */
export const JoinSchema = Type.Object(
  {
    type: Type.Literal('join'),
    run: Name,
    experimentHash: Hash,
    tensors: Type.Array(TensorSpecSchema, { minItems: 1, maxItems: LIMITS.tensorCountMax }),
    data: DataSummarySchema,
    facts: Facts,
    errorMeasure: Type.Optional(ErrorMeasureSchema),
    /** The newest step of the run that a `work` has told it, by whichever life of the server. */
    seen: Type.Optional(orNull(Type.Object({ step: Natural, generation: Natural }, closed))),
  },
  closed,
);
export type Join = Static<typeof JoinSchema>;

/** Payload: the whole vector, shape [layout.size]. Answers an `initialise`. */
export const InitialisedSchema = Type.Object(
  { type: Type.Literal('initialised'), run: Name, grant: Natural },
  closed,
);
export type Initialised = Static<typeof InitialisedSchema>;

/** How numbers of a payload are written; `shared/compression.ts` has the bytes of each. */
const Encoding = Type.Unsafe<EncodingName>(Type.Union(ENCODINGS.map((name) => Type.Literal(name))));

/**
 * Payload: the gradient, shape [layout.trainableSize], in its encoding, then the minibatch's
 * statistics in f32, shape [layout.statisticsSize].
 */
export const PushSchema = Type.Object(
  {
    type: Type.Literal('push'),
    run: Name,
    sequence: Sequence,
    lease: Natural,
    /** The step and generation of the parameters that the gradient was computed at. */
    step: Natural,
    generation: Natural,
    /** Mean loss over the minibatch, without weight decay; null: not finite. */
    loss: orNull(Measured),
    computeMs: Duration,
    encoding: Encoding,
  },
  closed,
);
export type Push = Static<typeof PushSchema>;

export const EvaluatedSchema = Type.Object(
  {
    type: Type.Literal('evaluated'),
    run: Name,
    evaluation: Natural,
    /** Means over the examples of the part; null: not finite. */
    loss: orNull(Measured),
    /** Share of examples answered wrongly, or another value that is better when lower. */
    error: orNull(Measured),
    examples: Natural,
    /** Null: not finite. */
    metrics: Type.Record(MetricName, orNull(Measured), {
      ...closed,
      maxProperties: LIMITS.metricCountMax,
    }),
  },
  closed,
);
export type Evaluated = Static<typeof EvaluatedSchema>;

/** Counts of values in equal parts of [low, high]. */
export const HistogramSchema = Type.Object(
  {
    low: Measured,
    high: Measured,
    counts: Type.Array(Natural, { minItems: 1, maxItems: LIMITS.histogramBinsMax }),
  },
  closed,
);
export type Histogram = Static<typeof HistogramSchema>;

/** A trainable tensor at one step, by elements that lie evenly in it. */
export const TensorObservationSchema = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: LIMITS.nameLengthMax }),
    weights: HistogramSchema,
    gradients: HistogramSchema,
    /** Of one update, the mean over `updateSteps`; null: not known, see `docs/protocol.md`. */
    updates: orNull(HistogramSchema),
    /** L2, of the whole tensor. */
    gradientNorm: Size,
    /** Size of one update over that of the weights; null: not known, or the weights are 0. */
    updateRatio: orNull(Size),
    /** Elements looked at; those that never had a gradient; those that seldom had one. */
    elements: Natural,
    never: Natural,
    rare: Natural,
  },
  closed,
);
export type TensorObservation = Static<typeof TensorObservationSchema>;

/** What a layer gives for some examples of the minibatch. */
export const LayerObservationSchema = Type.Object(
  {
    layer: Type.String({ maxLength: LIMITS.nameLengthMax }),
    activation: orNull(Type.String({ maxLength: 100 })),
    values: HistogramSchema,
    /** Share of the values at the flat ends; null: the activation has none. */
    saturated: orNull(Type.Number({ minimum: 0, maximum: 1 })),
    /** Share of the units that gave the same for all examples. */
    dead: Type.Number({ minimum: 0, maximum: 1 }),
  },
  closed,
);
export type LayerObservation = Static<typeof LayerObservationSchema>;

/** Weights, gradients, updates and activations at one step; nobody answers. */
export const ObservedSchema = Type.Object(
  {
    type: Type.Literal('observed'),
    run: Name,
    step: Natural,
    /** Updates, of all workers, between the two pulls that `updates` compares. */
    updateSteps: Natural,
    /** Samples of this worker so far: what `never` and `rare` count over. */
    samples: Natural,
    /** Spent on samples since the last one was sent. */
    costMs: Duration,
    tensors: Type.Array(TensorObservationSchema, { maxItems: LIMITS.observedMax }),
    layers: Type.Array(LayerObservationSchema, { maxItems: LIMITS.observedMax }),
  },
  closed,
);
export type Observed = Static<typeof ObservedSchema>;

/** The worker goes, or cannot take part in the run: its leases go back at once. */
export const LeaveSchema = Type.Object(
  {
    type: Type.Literal('leave'),
    /** Why, when it cannot take part: it is not assigned to this run again. */
    failure: orNull(Type.Object({ code: Text, message: Text }, closed)),
  },
  closed,
);
export type Leave = Static<typeof LeaveSchema>;

export type WorkerMessage = Hello | Join | Initialised | Push | Evaluated | Observed | Leave;

// From server to worker.

/**
 * Load this experiment, then `join`. Payload, of a fork: what the data of the run are that it began with; inputs are
 * standardised as there.
 */
export const AssignSchema = Type.Object(
  {
    type: Type.Literal('assign'),
    run: Name,
    experiment: Name,
    /** Of the run; the worker's must be the same. */
    experimentHash: Hash,
    config: RunConfigSchema,
    /** Of this connection: shards know the worker by it. */
    session: SessionId,
    /** All but the first, which is the server itself: each gets its own part of pushes. */
    shards: Type.Array(ShardAddressSchema, { maxItems: LIMITS.shardCountMax }),
    facts: Facts,
  },
  closed,
);
export type Assign = Static<typeof AssignSchema>;

/**
 * Where the worker goes on when this server is not reached any more. Said after `hello`, and whenever it
 * changes; a server without a standby says nothing.
 */
export const StandbySchema = Type.Object(
  {
    type: Type.Literal('standby'),
    servers: Type.Array(ShardAddressSchema, { maxItems: LIMITS.standbyCountMax }),
  },
  closed,
);
export type StandbyMessage = Static<typeof StandbySchema>;

/** A run that would take this worker, if it had the run's experiment in this version. */
const MissingExperimentSchema = Type.Object(
  { run: Name, experiment: Name, experimentHash: Hash },
  closed,
);
export type MissingExperiment = Static<typeof MissingExperimentSchema>;

/** Nothing to do now; an `assign` follows when there is. */
export const IdleSchema = Type.Object(
  {
    type: Type.Literal('idle'),
    /** Absent: none. A worker that gets one of them says `hello` on a new connection. */
    missing: Type.Optional(
      Type.Array(MissingExperimentSchema, { minItems: 1, maxItems: LIMITS.missingToldMax }),
    ),
  },
  closed,
);
export type Idle = Static<typeof IdleSchema>;

/** Make fresh parameters from this seed and send them as `initialised`. */
export const InitialiseSchema = Type.Object(
  { type: Type.Literal('initialise'), run: Name, grant: Natural, seed: Natural },
  closed,
);
export type Initialise = Static<typeof InitialiseSchema>;

/** What became of a push. */
export const AcknowledgementSchema = Type.Object(
  {
    sequence: Natural,
    outcome: Type.Union([
      Type.Literal('applied'),
      /** Applied with a smaller learning rate. */
      Type.Literal('damped'),
      /** Applied before: not applied again. */
      Type.Literal('duplicate'),
      Type.Literal('rejected'),
    ]),
    staleness: Natural,
    /** Why a push was rejected. */
    code: orNull(Text),
    message: orNull(Text),
  },
  closed,
);
export type Acknowledgement = Static<typeof AcknowledgementSchema>;

/**
 * The newest parameters and what to do with them. Payload: trainable and statistics, shape
 * [layout.exchangedSize]; the first one after a `join` and after new initial parameters carries
 * frozen ones too, shape [layout.size]. No payload: nothing changed since `step` was last sent.
 */
export const WorkSchema = Type.Object(
  {
    type: Type.Literal('work'),
    run: Name,
    phase: PhaseSchema,
    step: Natural,
    /** Counts up when parameters go back or start afresh (restart, refit). */
    generation: Natural,
    /** Of pushes, in the order in which they came; what is decided together may be told together. */
    acknowledgements: Type.Array(AcknowledgementSchema, { maxItems: LIMITS.leasesPerWorkerMax }),
    /** All minibatches that the worker holds now; those it holds beyond are lost to it. */
    leases: Type.Array(LeaseSchema, { maxItems: LIMITS.leasesPerWorkerMax }),
    /** Set: evaluate this payload on the part first, and answer `evaluated`. */
    evaluation: orNull(Type.Object({ id: Natural, part: PartSchema }, closed)),
    /** Of the payload: f32 or bf16. With frozen tensors or an evaluation always f32. */
    encoding: Encoding,
    /** Set: the payload is the first part, the other shards send theirs under this number. */
    pull: orNull(Natural),
  },
  closed,
);
export type Work = Static<typeof WorkSchema>;

export const EndSchema = Type.Object(
  { type: Type.Literal('end'), run: Name, phase: PhaseSchema, reason: Text },
  closed,
);
export type End = Static<typeof EndSchema>;

/** A code of the error table. The connection is closed after it when the table gives a close code. */
export const ErrorSchema = Type.Object(
  { type: Type.Literal('error'), code: Text, message: Text },
  closed,
);
export type ErrorMessage = Static<typeof ErrorSchema>;

export type ServerMessage =
  | Assign
  | StandbyMessage
  | Static<typeof IdleSchema>
  | Initialise
  | Work
  | End
  | ErrorMessage;

// Between a worker and a shard.

/** The worker's first message to a shard, with the session that the server gave it. */
export const AttachSchema = Type.Object(
  { type: Type.Literal('attach'), session: SessionId },
  closed,
);
export type Attach = Static<typeof AttachSchema>;

/** A shard's part of a push: as in `push`, of this shard's range alone. */
export const PartMessageSchema = Type.Object(
  {
    type: Type.Literal('part'),
    run: Name,
    sequence: Sequence,
    encoding: Encoding,
  },
  closed,
);
export type PartMessage = Static<typeof PartMessageSchema>;

/** A shard's part of `initialised`. */
export const InitialPartSchema = Type.Object(
  { type: Type.Literal('initialPart'), run: Name, grant: Natural },
  closed,
);
export type InitialPart = Static<typeof InitialPartSchema>;

export type ToShard = Attach | PartMessage | InitialPart;

/** The shard knows the worker: it may join. */
export const AttachedSchema = Type.Object({ type: Type.Literal('attached') }, closed);

/** A shard's part of what a `work` with this `pull` brings. */
export const ParametersSchema = Type.Object(
  { type: Type.Literal('parameters'), run: Name, pull: Natural, encoding: Encoding },
  closed,
);
export type ParametersMessage = Static<typeof ParametersSchema>;

export type FromShard = Static<typeof AttachedSchema> | ParametersMessage | ErrorMessage;

/** Validators of messages, by their types. */
export const compile = (schemas: Record<string, TSchema>) =>
  new Map(Object.entries(schemas).map(([type, schema]) => [type, Compile(schema)]));

const workerMessages = compile({
  hello: HelloSchema,
  join: JoinSchema,
  initialised: InitialisedSchema,
  push: PushSchema,
  evaluated: EvaluatedSchema,
  observed: ObservedSchema,
  leave: LeaveSchema,
});
const serverMessages = compile({
  assign: AssignSchema,
  standby: StandbySchema,
  idle: IdleSchema,
  initialise: InitialiseSchema,
  work: WorkSchema,
  end: EndSchema,
  error: ErrorSchema,
});

const toShard = compile({
  attach: AttachSchema,
  part: PartMessageSchema,
  initialPart: InitialPartSchema,
});
const fromShard = compile({
  attached: AttachedSchema,
  parameters: ParametersSchema,
  error: ErrorSchema,
});

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkToShard(header: { readonly type: string }): ToShard {
  return check(toShard, header) as ToShard;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkFromShard(header: { readonly type: string }): FromShard {
  return check(fromShard, header) as FromShard;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkWorkerMessage(header: { readonly type: string }): WorkerMessage {
  return check(workerMessages, header) as WorkerMessage;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkServerMessage(header: { readonly type: string }): ServerMessage {
  return check(serverMessages, header) as ServerMessage;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function check(
  known: ReturnType<typeof compile>,
  header: { readonly type: string },
): unknown {
  const validator = known.get(header.type);
  if (!validator) {
    throw new DownpourError(
      'DP_FRAME_MALFORMED',
      `malformed frame: unknown message type '${header.type.slice(0, 40)}'; known: ${[...known.keys()].join(', ')}`,
    );
  }
  const valid: boolean = validator.Check(header);
  if (valid) return header;
  const [problem] = validator.Errors(header);
  throw new DownpourError(
    'DP_FRAME_MALFORMED',
    `malformed frame: ${header.type}${problem?.instancePath.replaceAll('/', '.') ?? ''} ${problem?.message ?? 'is not valid'}`,
  );
}

/** A measurement as messages have it: null where it is not finite, or larger than any float32. */
export function measuredOf(value: number): number | null {
  return Math.abs(value) <= measuredMax ? value : null;
}

/** A code from the other side, or DP_INTERNAL when this release does not know it. */
export function knownCode(code: string): ErrorCode {
  return code in ERRORS ? (code as ErrorCode) : 'DP_INTERNAL';
}
