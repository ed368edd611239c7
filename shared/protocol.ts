import Type, { type Static } from 'typebox';
import { machineFields, ShownExamplesSchema } from './asides.ts';
import { BUNDLE_HASH } from './bundle.ts';
import { NAME_PATTERN, RunConfigSchema } from './config.ts';
import { ERRORS, type ErrorCode } from './errors.ts';
import { LIMITS } from './limits.ts';
import { check, compile } from './message-check.ts';
import {
  about,
  durationMs,
  encoding,
  fragment,
  hash,
  measured,
  name,
  natural,
  oneOf,
  orNull,
  pushKind,
  run,
  ShardAddressSchema,
  sequence,
  session,
  TensorSpecSchema,
  text,
} from './message-fields.ts';
import { type Observed, ObservedSchema } from './observed.ts';
import {
  type InitialRows,
  InitialRowsSchema,
  type PullRows,
  PullRowsSchema,
  pushRows,
  type RowsMessage,
  RowsSchema,
  workRows,
} from './row-messages.ts';

/**
 * What workers and the server say to each other. `docs/protocol.md` tells the order; `npm run docs` makes the tables of
 * `docs/protocol-messages.md` from these schemas and their descriptions. What they say with shards is in `shard-messages.ts`.
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
 *     machine          ───────────────────▶    (every 10 s, where the server takes it)
 *     pullRows +keys   ───────────────────▶    (of a run with tables: rows that no answer has brought)
 *                      ◀───────────────────    rows +rows
 *                      ◀───────────────────    end, when the run is over; then assign | idle
 */

/** The examples that a worker found. All workers of a run must have the same. */
export const DataSummarySchema = Type.Object(
  {
    trainCount: Type.Integer({
      minimum: 1,
      maximum: 2 ** 31 - 1,
      description: 'Examples of the training part, after the split.',
    }),
    validationCount: Type.Integer({
      minimum: 1,
      maximum: 2 ** 31 - 1,
      description: 'Examples of the validation part, after the split.',
    }),
    testCount: Type.Integer({
      minimum: 0,
      maximum: 2 ** 31 - 1,
      description: 'Examples of the test part; 0: the data have none.',
    }),
    fingerprint: hash(
      'Digest of the data, their split and their standardisation ([fingerprints](protocol.md#fingerprints)).',
    ),
    rawFingerprint: Type.Optional(
      hash('Digest of the data before the split. Absent: the worker is of an older release.'),
    ),
    depends: Type.Optional(
      Type.Array(
        Type.String({ maxLength: 200, description: '`seed` or `hyperparameters.<name>`.' }),
        {
          maxItems: 1000,
          description:
            'Fields of the configuration that the data depend on. With other values of these fields the data may be different.',
        },
      ),
    ),
    source: text('One line for people: where the examples are from, and how many there are.'),
  },
  about('The data that a worker has. All workers of a run must have the same.'),
);
export type DataSummary = Static<typeof DataSummarySchema>;

/**
 * What evaluations report as the error: the share of examples answered wrongly, the loss again, or a function of the
 * experiment's own, in a unit of its own.
 */
export const ErrorMeasureSchema = oneOf(
  ['misclassification', 'loss', 'own'],
  'What the error of evaluations is: the share of examples that are answered wrongly, the loss again, or a measure of the experiment in a unit of its own.',
);
export type ErrorMeasure = Static<typeof ErrorMeasureSchema>;

/** Which examples: refitting uses `trainAndValidation`, where validation follows training. */
export const PartSchema = oneOf(
  ['train', 'validation', 'test', 'trainAndValidation'],
  'Which examples. `trainAndValidation` has the training examples first, then the validation examples.',
);
export type LeasePart = Static<typeof PartSchema>;

/** One minibatch: positions [start, start + count) of the epoch's permutation of the part. */
export const LeaseSchema = Type.Object(
  {
    id: natural('Id of the lease, repeated in a push.'),
    epoch: natural('Which order of the examples; counts from 0.'),
    start: natural('The first position in that order; counts from 0.'),
    count: Type.Integer({
      minimum: 1,
      description: 'Examples of the minibatch. The last minibatch of an epoch may be smaller.',
    }),
    part: PartSchema,
  },
  about('One minibatch: positions start to start + count − 1 of the order of the epoch.'),
);
export type Lease = Static<typeof LeaseSchema>;

export const PhaseSchema = Type.Union(
  [
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
    /** Stopped by a user; `resume` goes on. */
    Type.Literal('stopped'),
    Type.Literal('failed'),
  ],
  {
    description:
      'What the run does now. A worker can ignore it: leases and evaluations say what to do.',
  },
);
export type Phase = Static<typeof PhaseSchema>;

// From worker to server.

export const HelloSchema = Type.Object(
  {
    type: Type.Literal('hello'),
    worker: name(
      'Name of the worker, unique among the workers of a server: while it is connected, no other process takes it.',
    ),
    incarnation: Type.String({
      pattern: '^[0-9a-f]{16}$',
      description:
        '64 random bits that the worker draws when its process starts. Worker, incarnation and sequence name a push.',
    }),
    run: orNull(name('A run.'), 'The only run that the worker takes part in. Null: any run.'),
    experiments: Type.Record(Type.String({ pattern: NAME_PATTERN }), hash('Hash.'), {
      additionalProperties: false,
      description:
        'The experiments that the worker has, each with the [hash](protocol.md#the-experiments-hash) of its version, or the SHA-256 of its [bundle](protocol.md#bundles).',
    }),
    engine: Type.String({
      maxLength: 100,
      description: 'What the worker computes with, for people: `numpy`.',
    }),
    device: Type.String({ maxLength: 200, description: 'Where it computes, for people: `cpu`.' }),
  },
  about('The first message of a connection: who the worker is.'),
);
export type Hello = Static<typeof HelloSchema>;

/** Says that the payload is a `DataFacts` of `shared/data-facts.ts`, as JSON. */
const facts = (description: string) => Type.Optional(Type.Literal('json', { description }));

export const JoinSchema = Type.Object(
  {
    type: Type.Literal('join'),
    run: run(),
    experimentHash: hash('As in `assign`.'),
    tensors: Type.Array(TensorSpecSchema, {
      maxItems: LIMITS.tensorCountMax,
      description:
        'All tensors of the model, in its order; none if it has rows of tables alone. Those of the first worker of a run bind all others.',
    }),
    data: DataSummarySchema,
    facts: facts(
      'The payload has the [facts](#facts-of-the-data) of the data. Absent: there is no payload.',
    ),
    errorMeasure: Type.Optional(ErrorMeasureSchema),
    engine: Type.Optional(
      Type.String({
        maxLength: 100,
        description:
          'What the worker computes this run with, for people. Absent: what it said in `hello`.',
      }),
    ),
    seen: Type.Optional(
      orNull(
        Type.Object(
          { step: natural('Value in that `work`.'), generation: natural('Value in that `work`.') },
          about('Step and generation.'),
        ),
        'Step and generation of the newest `work` of this run that the worker has ever got. Null or absent: none. A server that was killed learns from it how many steps are lost.',
      ),
    ),
  },
  about(
    'What the worker has for the run that it was assigned to. Payload: the facts of its data as JSON, or none.',
  ),
);
export type Join = Static<typeof JoinSchema>;

/** Payload: the whole vector, shape [layout.size]. */
export const InitialisedSchema = Type.Object(
  { type: Type.Literal('initialised'), run: run(), grant: natural('As in `initialise`.') },
  about('Answers `initialise`. Payload: the whole flat vector in f32, frozen tensors too.'),
);
export type Initialised = Static<typeof InitialisedSchema>;

/**
 * Payload: the gradient, shape [layout.trainableSize], in its encoding, then the minibatch's
 * statistics in f32, shape [layout.statisticsSize].
 */
export const PushSchema = Type.Object(
  {
    type: Type.Literal('push'),
    run: run(),
    sequence: sequence(
      'Number of the push: 1 for the first one of the process, then one more each, over all runs and connections.',
    ),
    lease: natural('The id of the lease.'),
    step: natural('The step of the parameters at which the gradient was computed.'),
    generation: natural('The generation of these parameters.'),
    loss: orNull(
      measured('Loss.'),
      'Mean loss over the minibatch, without weight decay. Null: it is not finite.',
    ),
    computeMs: durationMs('Time to compute the gradient, or to take all local steps, in ms.'),
    encoding: encoding('How the gradient in the payload is [encoded](protocol.md#encodings).'),
    kind: pushKind(),
    fragment: fragment(
      'The [fragment](protocol.md#fragments) that the payload holds: that of the `local` of the `work`. Absent: all of it.',
    ),
    rows: pushRows(),
  },
  about(
    'The gradient of one minibatch. Payload: the gradient of the trainable tensors, then the statistics of the minibatch in f32, then gradients of rows and keys of wanted rows, if `rows` says so.',
  ),
);
export type Push = Static<typeof PushSchema>;

export const EvaluatedSchema = Type.Object(
  {
    type: Type.Literal('evaluated'),
    run: run(),
    evaluation: natural('The id of the evaluation.'),
    loss: orNull(measured('Loss.'), 'Mean loss over the examples. Null: it is not finite.'),
    error: orNull(
      measured('Error.'),
      'Mean error over the examples: `errorMeasure` of `join` says of what kind. Lower is better. Null: it is not finite.',
    ),
    examples: natural('Examples that were evaluated: all of the part.'),
    metrics: Type.Record(
      Type.String({ pattern: '^[^\\u0000-\\u001f\\u007f-\\u009f]{1,64}$' }),
      orNull(measured('Metric.'), 'Null: it is not finite.'),
      {
        additionalProperties: false,
        maxProperties: LIMITS.metricCountMax,
        description:
          'Further means by name, for people. `evaluateTraining` asks for `trainingLoss` and `trainingError`.',
      },
    ),
    shown: Type.Optional(ShownExamplesSchema),
  },
  about('The result of the evaluation that a `work` asked for.'),
);
export type Evaluated = Static<typeof EvaluatedSchema>;

export const MachineSchema = Type.Object(
  { type: Type.Literal('machine'), ...machineFields },
  about(
    "How busy the worker's machine is, for people: at most every 5 s. The server does not answer it. A worker sends it only to a server whose handshake takes it ([asides](protocol.md#asides)).",
  ),
);
export type Machine = Static<typeof MachineSchema>;

/** The worker goes, or cannot take part in the run: its leases go back at once. */
export const LeaveSchema = Type.Object(
  {
    type: Type.Literal('leave'),
    failure: orNull(
      Type.Object(
        {
          code: text('A code of [errors.md](errors.md).'),
          message: text('What is wrong, and what to do.'),
        },
        about('Why.'),
      ),
      'Why the worker cannot take part in its run: it is not assigned to this run again. Null: the worker ends.',
    ),
  },
  about('The worker leaves its run. Its leases go to others at once.'),
);
export type Leave = Static<typeof LeaveSchema>;

export type WorkerMessage =
  | Hello
  | Join
  | Initialised
  | Push
  | Evaluated
  | Observed
  | Machine
  | PullRows
  | InitialRows
  | Leave;

// From server to worker.

/**
 * Load this experiment, then `join`. Payload, of a fork: what the data of the run are that it began with; inputs are
 * standardised as there.
 */
export const AssignSchema = Type.Object(
  {
    type: Type.Literal('assign'),
    run: run(),
    experiment: name('Name of the experiment.'),
    experimentHash: hash(
      'Hash of the version of the experiment. The worker has said that it has it.',
    ),
    config: RunConfigSchema,
    session: session('Id of this connection for shards.'),
    shards: Type.Array(ShardAddressSchema, {
      maxItems: LIMITS.shardCountMax,
      description:
        'Where the [shards](protocol.md#shards) are, without the first one, which is the server itself. Empty: the server has all parameters.',
    }),
    facts: facts(
      'The payload has the facts of the data of another run: standardise inputs by them, and measure nothing. Absent: there is no payload.',
    ),
  },
  about(
    'The run to work for: prepare its model and its data, then `join`. Payload: facts of data as JSON, if the run is a fork.',
  ),
);
export type Assign = Static<typeof AssignSchema>;

/**
 * Where the worker goes on when this server is not reached any more. Said after `hello`, and whenever it
 * changes; a server without a standby says nothing.
 */
export const StandbySchema = Type.Object(
  {
    type: Type.Literal('standby'),
    servers: Type.Array(ShardAddressSchema, {
      maxItems: LIMITS.standbyCountMax,
      description: 'Where the standby listens. Empty: there is no standby.',
    }),
  },
  about('Where to go when this server cannot be reached. It may come at any time.'),
);
export type StandbyMessage = Static<typeof StandbySchema>;

/** A run that would take this worker, if it had the run's experiment in this version. */
const MissingExperimentSchema = Type.Object(
  {
    run: name('Name of the run.'),
    experiment: name('Name of its experiment.'),
    experimentHash: hash('Hash of the version that it needs.'),
    bundle: Type.Optional(
      Type.Object(
        {
          sha256: Type.String({ pattern: BUNDLE_HASH, description: 'SHA-256 of the bundle.' }),
          bytes: Type.Integer({
            minimum: 1,
            maximum: LIMITS.bundleBytesMax,
            description: 'Length of the bundle, in bytes.',
          }),
        },
        about(
          'The [bundle](protocol.md#bundles) of the experiment, if it was sent. Only workers that announce support for bundles in their handshake get it.',
        ),
      ),
    ),
  },
  about('A run that would take this worker if the worker had its experiment.'),
);
export type MissingExperiment = Static<typeof MissingExperimentSchema>;

/** Nothing to do now; an `assign` follows when there is. */
export const IdleSchema = Type.Object(
  {
    type: Type.Literal('idle'),
    missing: Type.Optional(
      Type.Array(MissingExperimentSchema, {
        minItems: 1,
        maxItems: LIMITS.missingToldMax,
        description:
          'Runs that would take this worker if it had their experiments. A worker that gets one of them says `hello` on a new connection. Absent: there is no such run.',
      }),
    ),
  },
  about('There is nothing to do now. An `assign` follows when there is.'),
);
export type Idle = Static<typeof IdleSchema>;

const frozenGroups = () =>
  Type.Optional(
    Type.Array(Type.String({ maxLength: 64, description: 'Name of a group.' }), {
      maxItems: LIMITS.groupCountMax,
      description:
        'The [groups](experiments.md#groups) that are frozen now. Their tensors, statistics too, count as `frozen`: they lie behind all others, and are not in pushes. When the list changes, the generation does, and the next payload is whole. Absent: no group of this run is ever frozen.',
    }),
  );

/** Make fresh parameters from this seed and send them as `initialised`. */
export const InitialiseSchema = Type.Object(
  {
    type: Type.Literal('initialise'),
    run: run(),
    grant: natural('Id of this request.'),
    seed: natural('Random seed of the initial values: another seed gives other values.'),
    frozen: frozenGroups(),
  },
  about('Make initial parameters, and send them as `initialised`.'),
);
export type Initialise = Static<typeof InitialiseSchema>;

/** What became of a push. */
export const AcknowledgementSchema = Type.Object(
  {
    sequence: natural('Sequence of the push.'),
    outcome: oneOf(
      ['applied', 'damped', 'duplicate', 'rejected'],
      '`applied`. `damped`: applied with a smaller learning rate. `duplicate`: it had been applied before, and was not applied again. `rejected`: not applied.',
    ),
    staleness: natural(
      'Updates between the parameters of the gradient and those it was applied to.',
    ),
    code: orNull(
      text('Code.'),
      'Why it was rejected: a code of [errors.md](errors.md). Else null.',
    ),
    message: orNull(text('Message.'), 'The same in words. Else null.'),
  },
  about('The outcome of a push.'),
);
export type Acknowledgement = Static<typeof AcknowledgementSchema>;

/** How a worker takes local steps with the leases of a `work`. */
export const LocalWorkSchema = Type.Object(
  {
    push: oneOf(['delta', 'elastic'], 'Kind of the push after the steps.'),
    learningRate: Type.Number({
      minimum: 0,
      description: 'Learning rate of the steps, after the schedule.',
    }),
    momentum: Type.Optional(
      Type.Number({
        minimum: 0,
        exclusiveMaximum: 1,
        description:
          'Momentum of the steps, from `momentumSchedule`. Absent: that of the optimizer.',
      }),
    ),
    movingRate: Type.Optional(
      Type.Number({
        exclusiveMinimum: 0,
        exclusiveMaximum: 1,
        description:
          '`elastic`: α; the parameters of the worker move by α times their difference to those of the server.',
      }),
    ),
    center: Type.Optional(
      oneOf(
        ['before', 'after'],
        '`elastic`: which parameters of the server the worker moves towards. `before`: those that the steps began with. `after`: those in the answer to its push, which have moved by α towards the worker already.',
      ),
    ),
    fragment: fragment(
      '`delta`: the [fragment](protocol.md#fragments) that the push is to hold. Absent: all parameters.',
    ),
  },
  about('Local steps: one for each minibatch of a lease.'),
);
export type LocalWork = Static<typeof LocalWorkSchema>;

/**
 * The newest parameters and what to do with them. Payload: trainable and statistics, shape
 * [layout.exchangedSize]; the first one after a `join` and after new initial parameters carries
 * frozen ones too, shape [layout.size]. No payload: nothing changed since `step` was last sent.
 */
export const WorkSchema = Type.Object(
  {
    type: Type.Literal('work'),
    run: run(),
    phase: PhaseSchema,
    step: natural('Number of updates applied to the parameters in the payload.'),
    generation: natural(
      'The generation grows when the parameters return to earlier ones or are initialised again. A push names step and generation.',
    ),
    acknowledgements: Type.Array(AcknowledgementSchema, {
      maxItems: LIMITS.leasesPerWorkerMax,
      description: 'Outcomes of pushes, in the order of the pushes. Often none or one.',
    }),
    leases: Type.Array(LeaseSchema, {
      maxItems: LIMITS.leasesPerWorkerMax,
      description:
        'All minibatches that the worker holds now, the oldest first. A lease that is no longer in the list is lost.',
    }),
    evaluation: orNull(
      Type.Object(
        { id: natural('Id of the evaluation, repeated in the answer.'), part: PartSchema },
        about('An evaluation.'),
      ),
      'Evaluate the parameters of this payload on this part, and answer `evaluated`, before any lease. Null: there is nothing to evaluate.',
    ),
    encoding: encoding(
      'How the payload is encoded: `f32` or `bf16`. With frozen tensors, and for an evaluation, it is `f32`.',
    ),
    local: Type.Optional(LocalWorkSchema),
    frozen: frozenGroups(),
    fragment: fragment(
      'The payload holds this [fragment](protocol.md#fragments) alone. Absent: all of it.',
    ),
    rows: workRows(),
    pull: orNull(
      natural('Number.'),
      'The payload is the first part of the parameters: the [shards](protocol.md#shards) send theirs under this number. Null: the payload is all.',
    ),
  },
  about(
    'What to do next. Payload: the newest trainable tensors and statistics; the first one after a `join`, or after the parameters were initialised again, has the frozen tensors too. No payload: nothing has changed since the last one.',
  ),
);
export type Work = Static<typeof WorkSchema>;

export const EndSchema = Type.Object(
  {
    type: Type.Literal('end'),
    run: run(),
    phase: PhaseSchema,
    reason: text('Why, for people.'),
  },
  about(
    'The run is over for this worker. An `assign` or `idle` follows, unless the worker asked for this run alone.',
  ),
);
export type End = Static<typeof EndSchema>;

/** A code of the error table. The connection is closed after it when the table gives a close code. */
export const ErrorSchema = Type.Object(
  {
    type: Type.Literal('error'),
    code: text('A code of [errors.md](errors.md).'),
    message: text('What is wrong, and what to do.'),
  },
  about(
    'Something went wrong. The connection is closed after it where [errors.md](errors.md) gives a close code.',
  ),
);
export type ErrorMessage = Static<typeof ErrorSchema>;

export type ServerMessage =
  | Assign
  | StandbyMessage
  | Static<typeof IdleSchema>
  | Initialise
  | Work
  | RowsMessage
  | End
  | ErrorMessage;

/** Every message by who sends it to whom, in the order of a conversation. */
export const MESSAGES = {
  fromWorker: {
    hello: HelloSchema,
    join: JoinSchema,
    initialised: InitialisedSchema,
    push: PushSchema,
    evaluated: EvaluatedSchema,
    observed: ObservedSchema,
    machine: MachineSchema,
    pullRows: PullRowsSchema,
    initialRows: InitialRowsSchema,
    leave: LeaveSchema,
  },
  fromServer: {
    assign: AssignSchema,
    idle: IdleSchema,
    initialise: InitialiseSchema,
    work: WorkSchema,
    rows: RowsSchema,
    end: EndSchema,
    standby: StandbySchema,
    error: ErrorSchema,
  },
} as const;

const workerMessages = compile(MESSAGES.fromWorker);
const serverMessages = compile(MESSAGES.fromServer);

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkWorkerMessage(header: { readonly type: string }): WorkerMessage {
  return check(workerMessages, header) as WorkerMessage;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkServerMessage(header: { readonly type: string }): ServerMessage {
  return check(serverMessages, header) as ServerMessage;
}

/** A code from the other side, or DP_INTERNAL when this release does not know it. */
export function knownCode(code: string): ErrorCode {
  return code in ERRORS ? (code as ErrorCode) : 'DP_INTERNAL';
}
