import Type, { type Static, type TSchema } from 'typebox';
import Value from 'typebox/value';
import { choice, closed, count, orNone, positive, share, steps } from './config-fields.ts';
import { ConsistencySchema, consistencyProblem } from './consistency.ts';
import { DownpourError } from './errors.ts';
import { GroupsSchema, groupsOf, groupsProblem, withGroupDefaults } from './groups.ts';
import type { JsonSchema } from './json-schema.ts';
import { LIMITS } from './limits.ts';
import {
  LocalSchema,
  localForWorker,
  localOptimizer,
  localProblem,
  OuterSchema,
} from './local-steps.ts';
import { OptimizerSchema } from './optimizer-config.ts';
import { ScheduleSchema } from './schedule-config.ts';
import { nearest } from './spelling.ts';
import { TablesSchema, tablesOf, tablesProblem, withTableDefaults } from './tables.ts';

/**
 * The configuration of a run: one schema that is the type, the validation, the defaults, the help
 * of the command line, the REST body and the reference page (`docs/configuration.md`).
 */

/** β of the error feedback of a compressed push: e ← β e + g; what of it is sent is taken off. */
const residualDecay = Type.Optional(
  Type.Number({
    exclusiveMinimum: 0,
    maximum: 1,
    default: 1,
    description:
      'factor of the compression error of earlier pushes, each time that it is added to a push; 1: nothing is forgotten (error feedback); below 1 the error fades, so that old changes are not sent late: SparseLoCo uses 0.95 for the pushes of local steps',
  }),
);

const PushCompressionSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('f32') }, closed),
    Type.Object({ kind: Type.Literal('bf16') }, closed),
    Type.Object({ kind: Type.Literal('int8'), residualDecay }, closed),
    Type.Object(
      {
        kind: Type.Literal('topk'),
        density: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.01,
          description:
            'share of the gradient elements that a push sends: those with the largest absolute values',
        }),
        warmupEpochs: count('epochs over which the density falls from 0.25 to `density`', 4),
        momentum: share(
          'momentum that the worker applies before it selects elements (momentum correction); requires the optimizer sgd',
          0,
        ),
        residualDecay,
      },
      closed,
    ),
  ],
  {
    default: { kind: 'f32' },
    description:
      'number format of gradients in pushes; int8 and topk keep the compression error and add it to later pushes',
  },
);
export type PushCompression = Static<typeof PushCompressionSchema>;

/** A header of the handshake, `yes` from a worker whose compression error may fade. */
export const RESIDUAL_DECAY_HEADER = 'downpour-residual-decay';

/** Factor of the compression error each time that it is added; 1: it does not fade. */
export const residualDecayOf = (push: PushCompression): number =>
  'residualDecay' in push ? (push.residualDecay ?? 1) : 1;

export const RunConfigSchema = Type.Object(
  {
    seed: Type.Integer({
      minimum: 0,
      maximum: Number.MAX_SAFE_INTEGER,
      default: 1,
      description: 'random seed for initial parameters, data split, example order and dropout',
    }),
    splitSeed: orNone(
      Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
      'random seed for the data and their split; set it to let runs with different seeds validate on the same examples (ensembles); null: same as `seed`',
    ),
    minibatchSize: Type.Integer({
      minimum: 1,
      maximum: 1_000_000,
      default: 64,
      description: 'examples in each minibatch; 32 to 256 is usual',
    }),
    learningRate: positive('initial learning rate, before the schedule', 0.01),
    optimizer: OptimizerSchema,
    schedule: ScheduleSchema,
    warmupSteps: count(
      'steps over which the learning rate rises linearly from 0; 0: no warm-up',
      0,
    ),
    momentumSchedule: orNone(
      Type.Object(
        {
          values: Type.Array(Type.Number({ minimum: 0, exclusiveMaximum: 1 }), { minItems: 1 }),
          steps: Type.Array(steps),
        },
        closed,
      ),
      'momentum values in order, such as 0.5, 0.9, 0.99, and the steps at which the next value starts; `steps` has one element fewer than `values`',
    ),
    weightDecay: Type.Object(
      {
        rate: Type.Number({
          minimum: 0,
          default: 0,
          description: 'L2 weight decay of every tensor of rank 2 or more (weights, not biases)',
        }),
        l1: Type.Number({
          minimum: 0,
          default: 0,
          description: 'L1 weight decay of the same tensors',
        }),
        rules: Type.Array(
          Type.Object(
            {
              pattern: Type.String({ minLength: 1, maxLength: 200 }),
              rate: Type.Number({ minimum: 0 }),
              l1: Type.Optional(Type.Number({ minimum: 0 })),
            },
            closed,
          ),
          {
            default: [],
            description:
              'rates for tensors by name pattern (`*` matches any text); the first match replaces both rates above',
          },
        ),
      },
      { ...closed, default: {} },
    ),
    maxNorm: Type.Object(
      {
        value: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'maximum L2 norm of the incoming weights of each unit, enforced after each update on every tensor of rank 2 or more; 2 to 4 is usual; null: no limit',
        ),
        rules: Type.Array(
          Type.Object(
            {
              pattern: Type.String({ minLength: 1, maxLength: 200 }),
              value: Type.Union([Type.Number({ exclusiveMinimum: 0 }), Type.Null()]),
            },
            closed,
          ),
          {
            default: [],
            description:
              'limits for tensors by name pattern (`*` matches any text); the first match wins; a `value` of null means no limit',
          },
        ),
      },
      { ...closed, default: {} },
    ),
    clip: Type.Object(
      {
        norm: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'maximum L2 norm of a gradient; a larger gradient is scaled down; null: no clipping',
        ),
        value: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'maximum absolute value of a gradient element; larger elements are clipped; null: no clipping',
        ),
      },
      { ...closed, default: {} },
    ),
    consistency: ConsistencySchema,
    // These are optional, as the newer fields of `consistency`.
    groups: Type.Optional(GroupsSchema),
    local: Type.Optional(LocalSchema),
    outer: Type.Optional(OuterSchema),
    tables: Type.Optional(TablesSchema),
    compression: Type.Object(
      {
        push: PushCompressionSchema,
        pull: choice(
          ['f32', 'bf16'],
          'number format of the parameters that the server sends',
          'f32',
        ),
      },
      { ...closed, default: {} },
    ),
    averaging: Type.Object(
      {
        kind: choice(
          ['none', 'ema', 'polyak'],
          'average of the parameters over steps, which evaluations use',
          'none',
        ),
        decay: share('decay rate of the exponential moving average (ema)', 0.999),
        startStep: count('first step of the Polyak average', 0),
      },
      { ...closed, default: {} },
    ),
    validationFraction: Type.Number({
      exclusiveMinimum: 0,
      maximum: 0.9,
      default: 0.2,
      description:
        'share of the training examples to hold out for validation, chosen by the seed; used if the data have no validation part',
    }),
    validation: Type.Object(
      {
        folds: orNone(
          Type.Integer({ minimum: 2, maximum: 1000 }),
          'number of folds (k-fold cross-validation); one fold validates and the others train; null: use validationFraction',
        ),
        fold: count('index of the fold that validates, counted from 0', 0),
        stratified: Type.Boolean({
          default: false,
          description:
            'keep the number of examples per class equal in all folds, to within one example',
        }),
        apart: orNone(
          Type.Integer({ minimum: 0 }),
          'index of a fold that neither trains nor validates; use it to compare several runs; null: none',
        ),
      },
      { ...closed, default: {} },
    ),
    trainFraction: Type.Number({
      exclusiveMinimum: 0,
      maximum: 1,
      default: 1,
      description:
        'share of the training part to train on, chosen by the seed; a larger share contains every smaller one',
    }),
    bootstrap: Type.Boolean({
      default: false,
      description: 'resample the training part with replacement, by the seed (bagging)',
    }),
    evaluateEverySteps: orNone(steps, 'steps between evaluations; null: one evaluation per epoch'),
    evaluateTraining: count(
      'number of training examples to measure in each evaluation, as the metrics trainingLoss and trainingError; 0: none',
      0,
    ),
    earlyStopping: Type.Object(
      {
        enabled: Type.Boolean({
          default: true,
          description:
            'stop early; false: train until epochsMax or stepsMax, and still keep the best parameters',
        }),
        metric: choice(['loss', 'error'], 'validation value that must improve', 'loss'),
        patience: Type.Integer({
          minimum: 1,
          default: 5,
          description: 'evaluations without improvement before training stops',
        }),
        minImprovement: Type.Number({
          minimum: 0,
          default: 0,
          description: 'smallest absolute change that counts as an improvement',
        }),
        afterStop: choice(
          ['restore', 'retrain', 'continue'],
          'action after early stopping. restore: keep the best parameters; retrain: train again on all data, for the best number of steps; continue: train on from the best parameters, on all data',
          'restore',
        ),
        continueStepsMax: orNone(
          steps,
          'maximum steps of `continue`, because it may never reach its target loss; null: the best number of steps',
        ),
      },
      { ...closed, default: {} },
    ),
    pauseAfter: Type.Array(steps, {
      default: [],
      description:
        'evaluation counts at which the run stops until it is resumed; searches compare trials at these points',
    }),
    epochsMax: orNone(
      steps,
      'maximum number of epochs; null: train until early stopping or stepsMax',
    ),
    stepsMax: orNone(
      steps,
      'maximum number of steps; null: train until early stopping or epochsMax',
    ),
    testAtEnd: Type.Boolean({
      default: true,
      description: 'evaluate the final parameters on the test part once, when training has ended',
    }),
    observe: Type.Object(
      {
        everySteps: orNone(
          steps,
          'steps between samples of weights, activations, gradients and updates, for histograms over time; 100 is usual; null: no samples',
        ),
        costMax: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.02,
          description:
            'maximum share of its compute time that a worker spends on samples; further samples wait',
        }),
        // Optional, since workers of older releases refuse what they do not know: the default is not sent.
        examples: Type.Optional(
          Type.Integer({
            minimum: 0,
            maximum: LIMITS.shownExamplesMax,
            default: LIMITS.shownExamplesDefault,
            description:
              'examples of the validation part that a worker sends to the server with each evaluation, with their predictions, for the dashboard; 0: no example leaves the worker',
          }),
        ),
      },
      { ...closed, default: {} },
    ),
    checkpoint: Type.Object(
      {
        everySeconds: positive('seconds between checkpoints', 30),
        everySteps: orNone(
          steps,
          'maximum steps between checkpoints, in addition to everySeconds; null: only the time counts',
        ),
        keepLast: Type.Integer({
          minimum: 1,
          default: 3,
          description:
            'number of recent checkpoints to keep; the best and the final one are always kept',
        }),
      },
      { ...closed, default: {} },
    ),
    workersMin: Type.Integer({
      minimum: 1,
      maximum: 1000,
      default: 1,
      description: 'workers that must join before training starts',
    }),
    workersMax: orNone(
      steps,
      'maximum number of workers that train this run at the same time; null: no limit',
    ),
    leaseSeconds: positive(
      'seconds that a worker has to push a minibatch before another worker gets it',
      60,
    ),
    nonFiniteMax: Type.Integer({
      minimum: 1,
      default: 10,
      description: 'consecutive non-finite losses or gradients that count as divergence',
    }),
    divergence: Type.Object(
      {
        rollbacksMax: Type.Integer({
          minimum: 0,
          maximum: 100,
          default: 5,
          description:
            'number of times that a diverged run returns to its best parameters (or initial ones, if there is no best) with a lower learning rate; after that it fails; 0: fail at the first divergence',
        }),
        factor: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.25,
          description:
            'factor applied to the learning rate at each rollback, for the rest of the run',
        }),
      },
      { ...closed, default: {} },
    ),
    robust: Type.Object(
      {
        normMax: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'maximum L2 norm of a pushed gradient, before clipping; a push above it is rejected; null: no limit',
        ),
        normMedianMax: orNone(
          Type.Number({ exclusiveMinimum: 1 }),
          'maximum norm of a pushed gradient as a multiple of the median of the last 100; a push above it is rejected; 10 is usual; null: no limit',
        ),
        shareMax: orNone(
          Type.Number({ minimum: 0.01, maximum: 1 }),
          'maximum share of one worker in the last 100 updates, or an equal share of all workers if that is larger; its pushes above it are rejected while other workers push; null: no limit',
        ),
        quarantineAfter: Type.Union([steps, Type.Null()], {
          default: 5,
          description:
            'consecutive non-finite or too large pushes after which a worker is excluded, if the pushes of other workers are accepted; null: never',
        }),
      },
      { ...closed, default: {} },
    ),
    hyperparameters: Type.Record(
      Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_]{0,63}$' }),
      Type.Union([Type.Number(), Type.String({ maxLength: 1000 }), Type.Boolean()]),
      {
        default: {},
        description: 'hyperparameters of the experiment, passed to its model and data functions',
      },
    ),
  },
  { ...closed, description: 'Configuration of a run: every field with its value.' },
);
export type RunConfig = Static<typeof RunConfigSchema>;
/** What a user writes: any part of a `RunConfig`, at any depth. */
export type PartialConfig = DeepPartial<RunConfig>;
type DeepPartial<T> = T extends readonly unknown[]
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> }
    : T;

/** What a server does unless its options say otherwise. */
export const SERVER_DEFAULTS = {
  /** Seconds of silence before another server may take over. */
  leaseSeconds: 10,
  /** Pushes by which an `async` standby may lag. */
  lagMax: 100,
  /** Checkpoints of kind `last` that a bucket keeps of each run. */
  copiesKept: 2,
  /** How long a server that stops waits for the copies of its last checkpoints. */
  copyGraceSeconds: 20,
} as const;

/** Run and experiment names: they become file names and Redis keys, so nothing else is let in. */
export const NAME_PATTERN = '^[a-z0-9][a-z0-9_-]{0,63}$';

/**
 * What workers receive: older ones refuse unknown fields, and no worker needs those of `consistency` and `outer`. Runs with
 * local steps are only for workers that announce them, and these know `local`; `groups` and `tables` likewise.
 */
export function workerConfig(whole: RunConfig): RunConfig {
  const { local: _local, outer: _outer, groups, tables, ...config } = whole;
  const local = localForWorker(whole);
  const { stalenessMax, damping, depth } = config.consistency;
  const known = damping === 'root' ? 'none' : damping;
  const { examples, ...observe } = config.observe;
  const isUsual = examples === undefined || examples === LIMITS.shownExamplesDefault;
  const compression = { ...config.compression, push: workerPush(config.compression.push) };
  const sent = { ...config, compression, observe: isUsual ? observe : { ...observe, examples } };
  const consistency = { mode: 'async', stalenessMax, damping: known, depth } as const;
  return {
    ...sent,
    consistency,
    ...(local && { local: workerLocal(local) }),
    ...(groupsOf({ groups }) && { groups }),
    ...(tablesOf({ tables }) && { tables }),
  };
}

/** The usual value is not told: older workers know no such field, and are kept from runs with another one. */
function workerPush(push: PushCompression): PushCompression {
  if (!('residualDecay' in push) || push.residualDecay !== 1) return push;
  const { residualDecay: _, ...known } = push;
  return known;
}

/** Workers that take local steps, but know no fragments, refuse the field. */
function workerLocal({ fragments = 1, ...local }: NonNullable<RunConfig['local']>) {
  return fragments > 1 ? { ...local, fragments } : local;
}

/**
 * Fills in the defaults and checks every field.
 * @param layers parts of a configuration, weakest first; a later one wins, field by field. A nested
 *   object whose `kind` changes replaces the weaker one as a whole.
 * @throws DownpourError DP_CONFIG_INVALID that names each wrong field, what it held and what is allowed.
 */
export function resolveConfig(...layers: readonly unknown[]): RunConfig {
  let merged: unknown = {};
  for (const layer of layers) if (layer !== undefined) merged = merge(merged, layer);
  // A copy: defaults are written into what they are given, and layers are of others.
  const filled = withTableDefaults(
    withGroupDefaults(Value.Default(RunConfigSchema, copied(merged))),
  );
  const problems = configProblems(filled);
  if (problems.length > 0) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `the configuration is not valid:\n${problems.map((p) => `  ${p}`).join('\n')}`,
    );
  }
  const config = filled as RunConfig;
  const { momentumSchedule, schedule } = config;
  if (momentumSchedule && momentumSchedule.steps.length !== momentumSchedule.values.length - 1) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `momentumSchedule has ${momentumSchedule.values.length} values and ${momentumSchedule.steps.length} steps; it needs one step fewer than values`,
    );
  }
  if (momentumSchedule?.steps.some((at, i, all) => i > 0 && at <= all[i - 1]!)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `momentumSchedule.steps is ${show(momentumSchedule.steps)}; each must be above the one before`,
    );
  }
  const stepping = localOptimizer(config);
  if (momentumSchedule && !('momentum' in stepping)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `momentumSchedule needs an optimizer with momentum; optimizer.kind is '${stepping.kind}': use momentum, nesterov or rmsprop`,
    );
  }
  const { push } = config.compression;
  if (push.kind === 'topk' && push.momentum > 0 && config.optimizer.kind !== 'sgd') {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `compression.push.momentum ${push.momentum} replaces the optimizer's own; optimizer.kind is '${config.optimizer.kind}': use sgd, or momentum 0`,
    );
  }
  if (push.kind === 'topk' && push.momentum > 0 && residualDecayOf(push) < 1) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `compression.push.residualDecay is ${push.residualDecay} and momentum is ${push.momentum}; with momentum correction nothing may be forgotten: set residualDecay 1, or momentum 0`,
    );
  }
  const inconsistent =
    consistencyProblem(config) ??
    localProblem(config) ??
    groupsProblem(config) ??
    tablesProblem(config);
  if (inconsistent !== null) throw new DownpourError('DP_CONFIG_INVALID', inconsistent);
  const { folds, fold, stratified, apart } = config.validation;
  if (folds === null ? fold > 0 || stratified || apart !== null : fold >= folds) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      folds === null
        ? 'validation.fold, validation.stratified and validation.apart need validation.folds: set how many folds there are'
        : `validation.fold is ${fold}; with ${folds} folds it is 0 to ${folds - 1}`,
    );
  }
  if (folds !== null && apart !== null && (apart === fold || apart >= folds || folds < 3)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `validation.apart is ${apart}, validation.fold ${fold}, with ${folds} folds: use three folds or more, and a fold other than validation.fold, 0 to ${folds - 1}`,
    );
  }
  if (config.workersMax !== null && config.workersMin > config.workersMax) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `workersMin is ${config.workersMin}, above workersMax ${config.workersMax}: the run would never begin`,
    );
  }
  if (!config.earlyStopping.enabled && config.epochsMax === null && config.stepsMax === null) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      'early stopping is off and neither epochsMax nor stepsMax is set: the run would never end; set one',
    );
  }
  if (
    schedule.kind === 'plateau' &&
    schedule.patience >= config.earlyStopping.patience &&
    config.earlyStopping.enabled
  ) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `schedule.patience ${schedule.patience} is not below earlyStopping.patience ${config.earlyStopping.patience}: training would stop before the rate is ever divided`,
    );
  }
  return config;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function copied(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(copied);
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, copied(each)]));
}

function merge(weak: unknown, strong: unknown): unknown {
  if (!isObject(weak) || !isObject(strong)) return strong;
  if ('kind' in strong && 'kind' in weak && strong.kind !== weak.kind) return strong;
  const result: Record<string, unknown> = { ...weak };
  for (const [key, value] of Object.entries(strong)) {
    if (key === '__proto__') continue;
    result[key] = key in weak ? merge(weak[key], value) : value;
  }
  return result;
}

/** One line for each wrong field; empty when all is well. */
function configProblems(value: unknown): string[] {
  return problemsOf(RunConfigSchema as unknown as JsonSchema, value, '');
}

function problemsOf(schema: JsonSchema, value: unknown, path: string): string[] {
  const name = path === '' ? 'the configuration' : path;
  if (schema.anyOf) {
    const valid: boolean = Value.Check(schema as unknown as TSchema, value);
    if (valid) return [];
    const byKind = schema.anyOf.filter((branch) => branch.properties?.kind);
    if (byKind.length > 0 && isObject(value)) {
      const branch = byKind.find((b) => b.properties?.kind?.const === value.kind);
      if (branch) return problemsOf(branch, value, path);
      const kinds = byKind.map((b) => `'${String(b.properties?.kind?.const)}'`);
      return [`${name}.kind is ${show(value.kind)}; allowed: ${kinds.join(', ')}`];
    }
    const literals = schema.anyOf.filter((b) => 'const' in b).map((b) => show(b.const));
    if (literals.length > 0) return [`${name} is ${show(value)}; allowed: ${literals.join(', ')}`];
    const other = schema.anyOf.find((b) => b.type !== 'null');
    return other ? problemsOf(other, value, path) : [];
  }
  if (schema.properties && isObject(value)) {
    const known = Object.keys(schema.properties);
    const lines: string[] = [];
    for (const key of Object.keys(value)) {
      if (!known.includes(key)) {
        const near = nearest(key, known);
        lines.push(
          `${path === '' ? key : `${path}.${key}`} is not a field${near ? `; did you mean '${near}'?` : `; known: ${known.join(', ')}`}`,
        );
      }
    }
    for (const [key, inner] of Object.entries(schema.properties)) {
      lines.push(...problemsOf(inner, value[key], path === '' ? key : `${path}.${key}`));
    }
    return lines;
  }
  const [[pattern, of] = []] = Object.entries(schema.patternProperties ?? {});
  if (of?.properties && isObject(value)) {
    const lines = Object.entries(value).flatMap(([key, each]) =>
      new RegExp(pattern!).test(key)
        ? problemsOf(of, each, `${path}.${key}`)
        : `${path}.${key} is no name; allowed: a letter, then up to 63 letters, digits and _`,
    );
    const { maxProperties = Infinity } = schema;
    const count = Object.keys(value).length;
    if (count > maxProperties)
      lines.push(`${name} has ${count} entries; allowed: ${maxProperties}`);
    return lines;
  }
  return [...Value.Errors(schema as unknown as TSchema, value)].map(
    (error) =>
      `${name}${error.instancePath.replaceAll('/', '.')} is ${show(value)}; it ${error.message}`,
  );
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'missing';
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
