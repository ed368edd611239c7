import type { RunConfig } from '../shared/config.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import { nearest } from '../shared/spelling.ts';
import type { FieldTensors } from './batch.ts';
import { carriedName } from './carried.ts';
import { type Draws, drawsOf } from './draws.ts';
import { isRecord } from './fields.ts';
import { described, minibatchMean, tensorOf } from './minibatch-value.ts';
import { type DataShape, invalid } from './model/data-shape.ts';
import type { Instance, ModelPart, ModelWeight } from './model/instance.ts';
import { zerosOf } from './model/tensors.ts';
import { drawNoise, type NoiseSource, withSeed } from './noise.ts';
import { type LayersModel, type Scalar, type Tensor, type Tf, tf } from './tf.ts';

/** A computation of the user's that gives a loss or gradients, in the place of `loss`, `error` and `metrics`. */

/** A model as an objective uses it. */
export interface ObjectiveModel {
  /** What the model gives, in the mode of the objective: training or not. Several outputs are an array. */
  apply(inputs: Tensor | Tensor[] | Readonly<Record<string, Tensor>>): Tensor;
  /** Its tensors by name. */
  readonly variables: Readonly<Record<string, Tensor>>;
  /** Null: the model is a function. */
  readonly layersModel: LayersModel | null;
}

export interface ObjectiveArguments {
  /** The model; of several models, each by its name. */
  readonly model: ObjectiveModel & Readonly<Record<string, ObjectiveModel>>;
  /** The fields of the minibatch. */
  readonly batch: FieldTensors;
  /** The same numbers for the same lease, on every worker and engine. */
  readonly random: Draws;
  /** What `carried` of the experiment gave, or what the objective returned for the minibatch before. */
  readonly carried: Readonly<Record<string, Tensor>>;
  readonly training: boolean;
  /** Updates applied to the parameters. An objective that reads it is not recorded as a graph. */
  readonly step: number;
  readonly tf: Tf;
  readonly hyperparameters: Readonly<RunConfig['hyperparameters']>;
}

/** One number, the mean over the examples, or one number for each example. */
type Value = Tensor;

interface Reported {
  /** Better when lower; default: the loss. */
  readonly error?: Value | number;
  readonly metrics?: Readonly<Record<string, Value | number>>;
  /** In training: what the next minibatch gets, all tensors of `carried` by name. */
  readonly carried?: Readonly<Record<string, Tensor>>;
}

export type Objective = (args: ObjectiveArguments) =>
  | Value
  | (Reported & {
      /** Several are added up, and each is a metric. */
      readonly loss: Value | Readonly<Record<string, Value>>;
    })
  | (Reported & {
      /** Reported, and not differentiated; default: the error. */
      readonly loss?: Value | Readonly<Record<string, Value>>;
      /** In training: what the loss's gradient would be, one for each trained tensor by its name, of its shape. */
      readonly gradients?: Readonly<Record<string, Tensor>>;
    });

/** Values of one minibatch, each of shape []. */
export interface ObjectiveValues {
  readonly loss: Tensor;
  /** The losses that it is the sum of, where they have names. */
  readonly named: Readonly<Record<string, Tensor>>;
  /** Null: none was given. */
  readonly error: Tensor | null;
  readonly metrics: readonly (readonly [name: string, value: Tensor])[];
  /** One for each trained tensor, by name; null: they are those of the loss. */
  readonly gradients: Readonly<Record<string, Tensor>> | null;
  /** What the next minibatch gets, in the order of the layout; evaluations have none. */
  readonly carried: readonly Tensor[];
}

export interface ObjectiveCall {
  readonly objective: Objective;
  readonly hyperparameters: ObjectiveArguments['hyperparameters'];
  readonly instance: Instance;
  readonly fields: Readonly<Record<string, Tensor>>;
  readonly noise: NoiseSource;
  readonly training: boolean;
  readonly step: number;
  /** Is told why this call cannot be a graph. */
  readonly onHost?: (why: string) => void;
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: it fails, or gives anything but numbers of a minibatch. */
export function valuesOf(call: ObjectiveCall): ObjectiveValues {
  const { objective, hyperparameters, instance, fields, noise, training, onHost } = call;
  const models = instance.models!;
  const handle = (part: ModelPart): ObjectiveModel => ({
    apply: (inputs) => part.apply(inputs, training, noise) as Tensor,
    get variables() {
      return part.variables();
    },
    layersModel: part.layersModel,
  });
  const handles = Object.fromEntries(
    Object.entries(models).map(([name, part]) => [name, handle(part)]),
  );
  const own = instance.weights.filter(({ isCarried }) => isCarried);
  const carried = Object.fromEntries(
    own.map(({ name, variable }) => [carriedName(name), variable]),
  );
  const count = Object.values(fields)[0]!.shape[0]!;
  let given: unknown;
  try {
    given = objective({
      ...{ tf, batch: fields as FieldTensors & typeof fields, training, hyperparameters, carried },
      model: (handles[''] ?? handles) as ObjectiveArguments['model'],
      random: drawsOf(noise, () => onHost?.('it draws random.number() for JavaScript')),
      get step() {
        onHost?.('it reads `step`');
        return call.step;
      },
    });
  } catch (cause) {
    if (cause instanceof DownpourError) throw cause;
    throw invalid(`objective() of the experiment failed: ${errorText(cause)}`, cause);
  }
  const values = checked(given, count);
  // Evaluations have no use for them.
  if (!training) return { ...values, gradients: null, carried: [] };
  const gradients = values.gradients && checkedGradients(values.gradients, instance);
  return { ...values, gradients, carried: checkedCarried(given, own) };
}

const RETURNED = ['loss', 'error', 'metrics', 'gradients', 'carried'];

type Checked = Omit<ObjectiveValues, 'carried'>;

function checked(given: unknown, count: number): Checked {
  if (given instanceof tf.Tensor) {
    const loss = minibatchMean('objective', given, count, true);
    return { loss, named: {}, error: null, metrics: [], gradients: null };
  }
  const isPlain = isRecord(given) && typeof given.then !== 'function';
  if (!isPlain || !RETURNED.some((name) => given[name] !== undefined)) {
    throw invalid(
      `objective() returned ${described(given)}; it must return a tensor, the loss, or { loss, error, metrics }`,
    );
  }
  for (const key of Object.keys(given)) {
    if (RETURNED.includes(key)) continue;
    const near = nearest(key, RETURNED);
    throw invalid(
      `objective() returned a field '${key}'; ${near ? `did you mean '${near}'?` : `allowed: ${RETURNED.join(', ')}.`} Put what is to be reported into metrics, and several losses into loss: { ${key}: … }`,
    );
  }
  const { error, metrics = {}, gradients = null } = given;
  const loss = given.loss ?? (typeof error === 'number' ? tf.scalar(error) : error);
  if (loss === undefined) {
    throw invalid(
      'objective() returned neither loss nor error; return one of them, because evaluations compare the parameters by it. With gradients, it is reported and not differentiated',
    );
  }
  if (!isRecord(metrics) || metrics instanceof tf.Tensor) {
    throw invalid(
      `objective() returned ${described(metrics)} as metrics; it must be an object of numbers by name`,
    );
  }
  const isOne = loss instanceof tf.Tensor || !isRecord(loss);
  const losses = isOne
    ? []
    : Object.entries(loss).map(
        ([name, each]) =>
          [name, minibatchMean(`objective: loss '${name}'`, each, count, true)] as const,
      );
  if (!isOne && losses.length === 0) {
    throw invalid('objective() returned no loss: loss has no names; give at least one');
  }
  const own = Object.entries(metrics).map(
    ([name, each]) =>
      [name, minibatchMean(`objective: metric '${name}'`, tensorOf(each), count, false)] as const,
  );
  const names = [...losses, ...own].map(([name]) => name);
  const wrong = names.find((name, i) => !isName(name) || names.indexOf(name) !== i);
  if (wrong !== undefined || names.length > METRICS_MAX) {
    throw invalid(
      `objective() returned ${names.length} losses and metrics${wrong === undefined ? '' : `, one with the name '${wrong.slice(0, 80)}'`}; allowed: ${METRICS_MAX} at most, each with its own name of 1 to 64 characters, and none of ${RESERVED.join(', ')}`,
    );
  }
  return {
    loss: isOne
      ? minibatchMean('objective: loss', loss, count, true)
      : losses.map(([, each]) => each).reduce((a, b) => tf.add(a, b)),
    named: Object.fromEntries(losses),
    error:
      error === undefined ? null : minibatchMean('objective: error', tensorOf(error), count, false),
    metrics: [...losses, ...own],
    gradients: gradients as Checked['gradients'],
  };
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: not one gradient for each trained tensor, of its shape. */
function checkedGradients(given: unknown, { weights }: Instance): Record<string, Tensor> {
  const trained = weights.filter(({ role }) => role === 'trainable');
  const names = trained.map(({ name }) => name);
  const list = names
    .slice(0, 8)
    .map((name) => `'${name}'`)
    .join(', ');
  if (!isRecord(given) || given instanceof tf.Tensor) {
    throw invalid(
      `objective() returned ${described(given)} as gradients; it must be an object with a tensor for each trained tensor: ${list}`,
    );
  }
  for (const name of Object.keys(given)) {
    if (names.includes(name)) continue;
    const near = nearest(name, names);
    throw invalid(
      `objective() returned a gradient of '${name.slice(0, 80)}', and the model has no such trained tensor; ${near ? `did you mean '${near}'?` : `it has ${list}`}`,
    );
  }
  const gradients = trained.map(({ name, shape }) => {
    const gradient = given[name];
    if (gradient === undefined) {
      throw invalid(
        `objective() returned no gradient of '${name}'; return one for each trained tensor: zeros (tf.zerosLike) for one that is to stay in this step, or make the tensor with trainable: false`,
      );
    }
    const be = { tensor: 'it must be a tensor', shape: `it must be float32 of shape [${shape}]` };
    return [name, checkedTensor(gradient, shape, `the gradient of '${name}'`, be)] as const;
  });
  return Object.fromEntries(gradients);
}

const RESERVED = ['loss', 'error', 'trainingLoss', 'trainingError'];
/** Evaluations of the training part add two of their own. */
const METRICS_MAX = LIMITS.metricCountMax - 2;
const isName = (name: string) =>
  name.trim() !== '' && name.length <= 64 && !/\p{Cc}/u.test(name) && !RESERVED.includes(name);

/** @throws DownpourError DP_EXPERIMENT_INVALID: not all carried tensors, each of its shape. */
function checkedCarried(given: unknown, own: readonly ModelWeight[]): Tensor[] {
  const returned = given instanceof tf.Tensor || !isRecord(given) ? undefined : given.carried;
  const names = own.map(({ name }) => carriedName(name));
  const list = names.map((name) => `'${name}'`).join(', ');
  if (returned === undefined && own.length === 0) return [];
  if (own.length === 0) {
    throw invalid(
      'objective() returned carried, and the experiment has no field carried: add carried: ({ tf }) => ({ name: tensor }), what the first minibatch gets',
    );
  }
  if (!isRecord(returned) || returned instanceof tf.Tensor) {
    throw invalid(
      `objective() returned ${described(returned)} as carried; it must return all tensors that the next minibatch gets, changed or not: ${list}`,
    );
  }
  const unknown = Object.keys(returned).find((name) => !names.includes(name));
  if (unknown !== undefined) {
    const near = nearest(unknown, names);
    throw invalid(
      `objective() returned '${unknown.slice(0, 80)}' in carried, and carried() of the experiment gives no such tensor; ${near ? `did you mean '${near}'?` : `it gives ${list}`}`,
    );
  }
  return own.map(({ shape }, i) => {
    const name = names[i]!;
    return checkedTensor(returned[name], shape, `carried '${name}'`, {
      tensor: `it must return all carried tensors, changed or not: ${list}`,
      shape: `it must be float32 of shape [${shape}], as carried() of the experiment gives it`,
    });
  });
}

/** @param as what it was returned as. @param must what to say where it is no tensor, or another one. */
function checkedTensor(
  given: unknown,
  shape: readonly number[],
  as: string,
  must: { readonly tensor: string; readonly shape: string },
): Tensor {
  if (!(given instanceof tf.Tensor) || given.isDisposed) {
    const seen = given instanceof tf.Tensor ? 'a disposed tensor' : described(given);
    throw invalid(`objective() returned ${seen} as ${as}; ${must.tensor}`);
  }
  if (given.dtype !== 'float32' || String(given.shape) !== String(shape)) {
    throw invalid(
      `objective() returned ${given.dtype} of shape [${given.shape}] as ${as}; ${must.shape}`,
    );
  }
  return given;
}

export interface ObjectiveTrial {
  /** It gives an error of its own. */
  readonly hasError: boolean;
  /** It gives gradients in training. */
  readonly givesGradients: boolean;
}

/**
 * Tries the objective in training and in evaluation: what training would stop at is told before it begins.
 * @param sample fields of some examples; null: zeros are tried.
 * @throws DownpourError DP_EXPERIMENT_INVALID: it fails, has no gradient, or is not finite at the initial parameters.
 */
export function tryObjective(
  call: Pick<ObjectiveCall, 'objective' | 'hyperparameters' | 'instance'>,
  data: DataShape,
  sample: () => Readonly<Record<string, Tensor>> | null,
): ObjectiveTrial {
  let hasError = false;
  let givesGradients = false;
  withSeed(0, () =>
    tf.tidy(() => {
      const real = sample();
      const fields = real ?? zerosOf(data, 2);
      const common = { ...call, fields, noise: drawNoise, step: 0 };
      const { loss, error } = valuesOf({ ...common, training: false });
      hasError = error !== null;
      const value = loss.dataSync()[0]!;
      if (real && !Number.isFinite(value)) {
        throw invalid(
          `objective() gives the loss ${value} for training examples at the initial parameters: check its divisions, roots and logarithms`,
        );
      }
      const trained = call.instance.weights.flatMap(({ role, variable }) =>
        role === 'trainable' ? [variable] : [],
      );
      const names = call.instance.weights
        .filter(({ isCarried }) => isCarried)
        .map(({ name }) => carriedName(name));
      const run = () => {
        const { loss, gradients, carried } = valuesOf({ ...common, training: true });
        for (const [i, tensor] of (real ? carried : []).entries()) {
          mustBeFinite(`carried '${names[i]}'`, tensor);
        }
        givesGradients = gradients !== null;
        if (!gradients) return loss as Scalar;
        for (const [name, gradient] of Object.entries(real ? gradients : {})) {
          mustBeFinite(`a gradient of '${name}'`, gradient);
        }
        // Any number with a gradient will do.
        return tf.addN(trained.map((variable) => tf.sum(variable))) as Scalar;
      };
      try {
        tf.variableGrads(run, trained);
      } catch (cause) {
        if (cause instanceof DownpourError) throw cause;
        throw invalid(
          `the loss of objective() has no gradient with respect to the parameters, so the model cannot learn from it (an estimator that is not the gradient of a loss returns gradients): ${errorText(cause)}`,
          cause,
        );
      }
      return null as never;
    }),
  );
  return { hasError, givesGradients };
}

function mustBeFinite(what: string, tensor: Tensor): void {
  if (Number.isFinite(tf.sum(tf.mul(tensor, 0)).dataSync()[0]!)) return;
  throw invalid(
    `objective() gives ${what} that is not finite for training examples at the initial parameters: check its divisions, roots and logarithms`,
  );
}
