import Type, { type Static, type TSchema } from 'typebox';
import Value from 'typebox/value';
import { DownpourError } from './errors.ts';
import type { JsonSchema } from './json-schema.ts';
import { nearest } from './spelling.ts';

/**
 * The configuration of a run: one schema that is the type, the validation, the defaults, the help
 * of the command line, the REST body and the reference page (`docs/configuration.md`).
 */

const closed = { additionalProperties: false } as const;
const count = (description: string, fallback: number) =>
  Type.Integer({ minimum: 0, default: fallback, description });
const positive = (description: string, fallback: number) =>
  Type.Number({ exclusiveMinimum: 0, default: fallback, description });
const share = (description: string, fallback: number) =>
  Type.Number({ minimum: 0, exclusiveMaximum: 1, default: fallback, description });
const orNone = <S extends TSchema>(schema: S, description: string) =>
  Type.Union([schema, Type.Null()], { default: null, description });
const steps = Type.Integer({ minimum: 1 });
const choice = <const L extends readonly string[]>(
  values: L,
  description: string,
  fallback: L[number],
) =>
  Type.Unsafe<L[number]>(
    Type.Union(
      values.map((value) => Type.Literal(value)),
      { default: fallback, description },
    ),
  );
const epsilon = (fallback: number) => positive('added to the denominator', fallback);

export const OptimizerSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('sgd') }, closed),
    Type.Object(
      { kind: Type.Literal('momentum'), momentum: share('share of the velocity kept', 0.9) },
      closed,
    ),
    Type.Object(
      { kind: Type.Literal('nesterov'), momentum: share('share of the velocity kept', 0.9) },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adagrad'),
        initialAccumulator: Type.Number({
          minimum: 0,
          default: 0.1,
          description: 'first value of the sum of squared gradients',
        }),
        epsilon: epsilon(1e-7),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('rmsprop'),
        decay: share('decay of the mean of squared gradients', 0.9),
        momentum: share('share of the velocity kept; 0: plain RMSProp', 0),
        epsilon: epsilon(1e-7),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adadelta'),
        decay: share('decay of both means of squares', 0.95),
        epsilon: epsilon(1e-6),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adam'),
        beta1: share('decay of the first moment', 0.9),
        beta2: share('decay of the second moment', 0.999),
        epsilon: epsilon(1e-8),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adamw'),
        beta1: share('decay of the first moment', 0.9),
        beta2: share('decay of the second moment', 0.999),
        epsilon: epsilon(1e-8),
      },
      closed,
    ),
  ],
  { default: { kind: 'sgd' }, description: 'the update rule on the server' },
);
export type OptimizerConfig = Static<typeof OptimizerSchema>;

const ScheduleSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('constant') }, closed),
    Type.Object(
      {
        kind: Type.Literal('linear'),
        steps: Type.Integer({ minimum: 1, default: 10_000, description: 'length of the decay' }),
        floor: share('the fixed small rate at the end, as a share of learningRate', 0.01),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('exponential'),
        factor: share('what the rate is multiplied by every `steps` steps, smoothly', 0.5),
        steps: Type.Integer({ minimum: 1, default: 10_000, description: 'steps per factor' }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('step'),
        factor: share('what the rate is multiplied by at each drop', 0.1),
        steps: Type.Integer({ minimum: 1, default: 10_000, description: 'steps between drops' }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('cosine'),
        steps: Type.Integer({ minimum: 1, default: 10_000, description: 'length of the decay' }),
        floor: share('the rate at the end, as a share of learningRate', 0),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('rising'),
        factor: Type.Number({
          exclusiveMinimum: 1,
          default: 1000,
          description: 'the rate at the end over that at the start; between them it grows evenly',
        }),
        steps: Type.Integer({ minimum: 1, default: 200, description: 'length of the range test' }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('plateau'),
        divideBy: Type.Number({
          minimum: 1.1,
          maximum: 100,
          default: 5,
          description: 'divisor when the validation value stops improving (2 to 10 is usual)',
        }),
        patience: Type.Integer({
          minimum: 1,
          default: 2,
          description: 'evaluations without improvement before the rate is divided',
        }),
        minImprovement: Type.Number({
          minimum: 0,
          default: 0,
          description: 'a smaller improvement counts as none; absolute',
        }),
        floor: share('smallest rate, as a share of learningRate', 0.001),
      },
      closed,
    ),
  ],
  { default: { kind: 'constant' }, description: 'how the learning rate changes over steps' },
);
export type ScheduleConfig = Static<typeof ScheduleSchema>;

const PushCompressionSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('f32') }, closed),
    Type.Object({ kind: Type.Literal('bf16') }, closed),
    Type.Object({ kind: Type.Literal('int8') }, closed),
    Type.Object(
      {
        kind: Type.Literal('topk'),
        density: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.01,
          description: 'share of the elements that a push sends, the largest ones',
        }),
        warmupEpochs: count('epochs over which the density falls from 0.25', 4),
        momentum: share('kept by the worker (momentum correction); optimizer must be sgd', 0),
      },
      closed,
    ),
  ],
  {
    default: { kind: 'f32' },
    description: 'how workers write gradients; int8 and topk send later what they leave out',
  },
);
export type PushCompression = Static<typeof PushCompressionSchema>;

export const RunConfigSchema = Type.Object(
  {
    seed: Type.Integer({
      minimum: 0,
      maximum: Number.MAX_SAFE_INTEGER,
      default: 1,
      description: 'of the initial parameters, the split, the order of examples and dropout',
    }),
    splitSeed: orNone(
      Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
      'of the data and their split, where runs of different seeds must validate on the same examples (ensembles); null: seed',
    ),
    minibatchSize: Type.Integer({
      minimum: 1,
      maximum: 1_000_000,
      default: 64,
      description: 'examples of one gradient; 32 to 256 is usual',
    }),
    learningRate: positive('before the schedule', 0.01),
    optimizer: OptimizerSchema,
    schedule: ScheduleSchema,
    warmupSteps: count('steps over which the rate rises linearly from 0; 0: none', 0),
    momentumSchedule: orNone(
      Type.Object(
        {
          values: Type.Array(Type.Number({ minimum: 0, exclusiveMaximum: 1 }), { minItems: 1 }),
          steps: Type.Array(steps),
        },
        closed,
      ),
      'momentum rises through `values`, changing at `steps` (one fewer): 0.5, 0.9, 0.99',
    ),
    weightDecay: Type.Object(
      {
        rate: Type.Number({
          minimum: 0,
          default: 0,
          description: 'on every tensor of rank 2 or more (weights, not biases)',
        }),
        l1: Type.Number({
          minimum: 0,
          default: 0,
          description: 'the same by the sign of each weight (L1) instead of its size',
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
              'tensor name pattern (`*` matches any text); the first hit wins, over both rates above',
          },
        ),
      },
      { ...closed, default: {} },
    ),
    maxNorm: Type.Object(
      {
        value: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'largest L2 norm of the incoming weights of each unit, on every tensor of rank 2 or more, kept to after each update; 2 to 4 is usual',
        ),
        rules: Type.Array(
          Type.Object(
            {
              pattern: Type.String({ minLength: 1, maxLength: 200 }),
              value: Type.Union([Type.Number({ exclusiveMinimum: 0 }), Type.Null()]),
            },
            closed,
          ),
          { default: [], description: 'by tensor name pattern; first hit wins; null: none' },
        ),
      },
      { ...closed, default: {} },
    ),
    clip: Type.Object(
      {
        norm: orNone(Type.Number({ exclusiveMinimum: 0 }), 'largest L2 norm of a gradient'),
        value: orNone(Type.Number({ exclusiveMinimum: 0 }), 'largest size of one element'),
      },
      { ...closed, default: {} },
    ),
    consistency: Type.Object(
      {
        mode: choice(['async'], 'every push is applied the moment it is admitted', 'async'),
        stalenessMax: orNone(
          Type.Integer({ minimum: 0 }),
          'a push staler than this is rejected; null: no bound',
        ),
        damping: choice(
          ['none', 'inverse'],
          'inverse: the learning rate of a push is divided by its staleness (if above 1)',
          'none',
        ),
        // Optional: workers are not told of it, since older ones know no such field, and runs of older releases have none.
        correction: Type.Optional(
          choice(
            ['auto', 'none', 'inverse', 'lookahead'],
            'what is done about many workers. auto: look-ahead from the third worker on, and large gradients are scaled down from the eighth on (unless clip is set), nothing where damping or stalenessMax is set; inverse: as damping; lookahead: a momentum for each worker, and parameters are sent where the updates under way will have taken them (DANA)',
            'auto',
          ),
        ),
        depth: Type.Integer({
          minimum: 1,
          maximum: 8,
          default: 1,
          description:
            'pushes a worker may have under way; 2: computes while the last one travels, each push is a step staler',
        }),
      },
      { ...closed, default: {} },
    ),
    compression: Type.Object(
      {
        push: PushCompressionSchema,
        pull: choice(['f32', 'bf16'], 'how the server writes parameters', 'f32'),
      },
      { ...closed, default: {} },
    ),
    averaging: Type.Object(
      {
        kind: choice(
          ['none', 'ema', 'polyak'],
          'evaluate an average of the parameters over steps',
          'none',
        ),
        decay: share('of the exponential average', 0.999),
        startStep: count('first step that the Polyak average counts', 0),
      },
      { ...closed, default: {} },
    ),
    validationFraction: Type.Number({
      exclusiveMinimum: 0,
      maximum: 0.9,
      default: 0.2,
      description:
        'of the training examples, set apart by the seed, where the data has no own part',
    }),
    validation: Type.Object(
      {
        folds: orNone(
          Type.Integer({ minimum: 2, maximum: 1000 }),
          'cut the training examples into so many parts, of which one validates (k-fold); null: validationFraction is set apart',
        ),
        fold: count('which of the folds validates, from 0', 0),
        stratified: Type.Boolean({
          default: false,
          description: 'each fold has the same shares of the classes, to one example',
        }),
        apart: orNone(
          Type.Integer({ minimum: 0 }),
          'a fold that neither trains nor validates, kept to measure several runs on; null: none',
        ),
      },
      { ...closed, default: {} },
    ),
    trainFraction: Type.Number({
      exclusiveMinimum: 0,
      maximum: 1,
      default: 1,
      description:
        'share of the training part that is used, chosen by the seed; a smaller share lies within a larger one',
    }),
    bootstrap: Type.Boolean({
      default: false,
      description:
        'draw the training part anew from itself by the seed, with replacement (bagging)',
    }),
    evaluateEverySteps: orNone(steps, 'null: once an epoch'),
    evaluateTraining: count(
      'training examples that each validation measures as well, as metrics trainingLoss and trainingError; 0: none',
      0,
    ),
    earlyStopping: Type.Object(
      {
        enabled: Type.Boolean({
          default: true,
          description: 'false: train up to epochsMax or stepsMax; the best is kept all the same',
        }),
        metric: choice(['loss', 'error'], 'the validation value that must improve', 'loss'),
        patience: Type.Integer({
          minimum: 1,
          default: 5,
          description: 'evaluations without improvement before training stops',
        }),
        minImprovement: Type.Number({
          minimum: 0,
          default: 0,
          description: 'a smaller improvement counts as none; absolute',
        }),
        afterStop: choice(
          ['restore', 'retrain', 'continue'],
          'after the stop: keep the best; retrain on all data for the best step count; or continue from the best on all data',
          'restore',
        ),
        continueStepsMax: orNone(
          steps,
          'limit of `continue`, which may never reach its target; null: the best step count',
        ),
      },
      { ...closed, default: {} },
    ),
    pauseAfter: Type.Array(steps, {
      default: [],
      description:
        'numbers of evaluations after which the run stops by itself until it is resumed; searches compare there',
    }),
    epochsMax: orNone(steps, 'null: until early stopping or stepsMax'),
    stepsMax: orNone(steps, 'null: until early stopping or epochsMax'),
    testAtEnd: Type.Boolean({
      default: true,
      description: 'evaluate the best parameters on the test part, once, when training has ended',
    }),
    observe: Type.Object(
      {
        everySteps: orNone(
          steps,
          'updates between samples of weights, activations, gradients and updates, for histograms over time; 100 is usual; null: none',
        ),
        costMax: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.02,
          description:
            'share of its compute time that a worker may spend on samples; beyond, they wait',
        }),
      },
      { ...closed, default: {} },
    ),
    checkpoint: Type.Object(
      {
        everySeconds: positive('between checkpoints', 30),
        everySteps: orNone(steps, 'between checkpoints as well; null: by time alone'),
        keepLast: Type.Integer({
          minimum: 1,
          default: 3,
          description: 'older ones are removed; the best and the final one stay',
        }),
      },
      { ...closed, default: {} },
    ),
    workersMin: Type.Integer({
      minimum: 1,
      maximum: 1000,
      default: 1,
      description: 'workers that must have joined before the first minibatch is given out',
    }),
    workersMax: orNone(steps, 'workers that the server gives this run at the same time; null: any'),
    leaseSeconds: positive('after which an unpushed minibatch goes to another worker', 60),
    nonFiniteMax: Type.Integer({
      minimum: 1,
      default: 10,
      description: 'non-finite losses or gradients in a row that count as divergence',
    }),
    divergence: Type.Object(
      {
        rollbacksMax: Type.Integer({
          minimum: 0,
          maximum: 100,
          default: 5,
          description:
            'times that a run that diverges goes back to its best parameters, or its initial ones, with a lower learning rate; then it fails; 0: at once',
        }),
        factor: Type.Number({
          exclusiveMinimum: 0,
          maximum: 1,
          default: 0.25,
          description: 'what the learning rate is multiplied by at each, for the rest of the run',
        }),
      },
      { ...closed, default: {} },
    ),
    robust: Type.Object(
      {
        normMax: orNone(
          Type.Number({ exclusiveMinimum: 0 }),
          'a push whose gradient has a larger L2 norm is rejected, before any clipping',
        ),
        normMedianMax: orNone(
          Type.Number({ exclusiveMinimum: 1 }),
          'so is one of more than so many times the median norm of the last 100; 10 is usual',
        ),
        shareMax: orNone(
          Type.Number({ minimum: 0.01, maximum: 1 }),
          'largest share of one worker in the last 100 updates while others push, or an equal share if that is more; beyond, it is rejected',
        ),
        quarantineAfter: Type.Union([steps, Type.Null()], {
          default: 5,
          description:
            'non-finite or too large pushes in a row after which a worker is shut out, if those of others are well; null: never',
        }),
      },
      { ...closed, default: {} },
    ),
    hyperparameters: Type.Record(
      Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_]{0,63}$' }),
      Type.Union([Type.Number(), Type.String({ maxLength: 1000 }), Type.Boolean()]),
      { default: {}, description: "the experiment's own, handed to its model and data" },
    ),
  },
  { ...closed, description: 'How the run trains: every field, with its value.' },
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
  /** Not heard of for so long, it may be replaced. */
  leaseSeconds: 10,
  /** Pushes that an `async` standby may lack. */
  lagMax: 100,
  /** Checkpoints of kind `last` that a bucket keeps of each run. */
  copiesKept: 2,
  /** How long a server that stops waits for the copies of its last checkpoints. */
  copyGraceSeconds: 20,
} as const;

/** Run and experiment names: they become file names and Redis keys, so nothing else is let in. */
export const NAME_PATTERN = '^[a-z0-9][a-z0-9_-]{0,63}$';

/** As workers are told it: older ones refuse `correction`, which they do not know, and it matters to none. */
export function workerConfig(config: RunConfig): RunConfig {
  const { correction, ...consistency } = config.consistency;
  return { ...config, consistency };
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
  const filled = Value.Default(RunConfigSchema, copied(merged));
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
  if (momentumSchedule && !('momentum' in config.optimizer)) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `momentumSchedule needs an optimizer with momentum; optimizer.kind is '${config.optimizer.kind}': use momentum, nesterov or rmsprop`,
    );
  }
  const { push } = config.compression;
  if (push.kind === 'topk' && push.momentum > 0 && config.optimizer.kind !== 'sgd') {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `compression.push.momentum ${push.momentum} replaces the optimizer's own; optimizer.kind is '${config.optimizer.kind}': use sgd, or momentum 0`,
    );
  }
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
      `validation.apart is ${apart}, validation.fold ${fold}, with ${folds} folds: it takes three folds or more, and another one than the one that validates, 0 to ${folds - 1}`,
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
  return [...Value.Errors(schema as unknown as TSchema, value)].map(
    (error) =>
      `${name}${error.instancePath.replaceAll('/', '.')} is ${show(value)}; it ${error.message}`,
  );
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'missing';
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
