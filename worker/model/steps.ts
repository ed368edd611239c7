import { groupOf, type ParameterGroups } from '../../shared/groups.ts';
import type { Layout } from '../../shared/layout.ts';
import type { TableRows } from '../../shared/rows.ts';
import { sizeOf } from '../data/columns.ts';
import type { Minibatch } from '../data/examples.ts';
import { discard } from '../discard.ts';
import type { Fed, Graphs, Opened } from '../graph.ts';
import { drawNoise, type NoiseSource, withSeed } from '../noise.ts';
import { withFirstGradientsOnly } from '../recurrent/recurrence.ts';
import type { RowsOnDevice } from '../rows/model-rows.ts';
import { type Scalar, type Tensor, tf, type Variable } from '../tf.ts';
import { type DataShape, hasInputs, hasTargets, invalid } from './data-shape.ts';
import type { Goal, TrainingValues } from './goal.ts';
import type { Instance, PlacedWeight } from './instance.ts';
import type { LoadedParameters } from './loaded.ts';
import { countOf, fieldTensors, flatten, read } from './tensors.ts';

export interface Step {
  /** Mean over the minibatch, without regularisation; may be NaN or infinite. */
  readonly loss: number;
  /** Gradient of the loss with regularisation, then statistics: shape [layout.exchangedSize]. */
  readonly gradient: Float32Array;
  /** Gradients of the rows of the minibatch, of each table; absent: the model has no tables. */
  readonly rows?: readonly TableRows[];
  /** Gives its memory back before the garbage collector would; it must not be used afterwards. */
  discard(): void;
}

export interface StepsOptions {
  readonly layout: Layout;
  readonly data: DataShape;
  readonly parameters: LoadedParameters;
  readonly goal: Goal;
  /** Null: operation by operation. */
  readonly graphs: Graphs | null;
  /** Null: the run has none. */
  readonly groups: ParameterGroups | null;
  /** Null: it has no tables. */
  readonly rows: RowsOnDevice | null;
}

/** Gradients of minibatches at the parameters loaded. Nothing else calls `variableGrads`. */
export class ModelSteps {
  readonly #layout: Layout;
  readonly #data: DataShape;
  readonly #parameters: LoadedParameters;
  readonly #goal: Goal;
  readonly #graphs: Graphs | null;
  readonly #groups: ParameterGroups | null;
  readonly #rows: RowsOnDevice | null;
  readonly #zeros = new Zeros();
  /** What the last step computed by operations did in JavaScript that no graph has; '': nothing. */
  #hostReads = '';
  /** The engines whose tensors do not share their memory with what is read of them. */
  readonly #readsCopies = ['tensorflow', 'wasm'].includes(tf.getBackend());

  constructor({ layout, data, parameters, goal, graphs, groups, rows }: StepsOptions) {
    this.#groups = groups;
    this.#rows = rows;
    this.#layout = layout;
    this.#data = data;
    this.#parameters = parameters;
    this.#goal = goal;
    this.#graphs = graphs;
  }

  /**
   * @param minibatch borrowed until the promise resolves; with tables, their rows have been taken.
   * @param seed of dropout and other noise.
   */
  async step(instance: Instance, minibatch: Minibatch, seed: number): Promise<Step> {
    // Not given back by the tidy, which would look for tensors in every element.
    let computed: Float32Array | null = null;
    const flat = withSeed(seed, () =>
      tf.tidy(() => {
        const graphs = this.#graphs;
        const fed = graphs ? this.#feedsOf(minibatch) : null;
        if (!graphs || !fed) return this.#open(instance, minibatch).compute(drawNoise);
        const open = () => this.#open(instance, minibatch);
        const tables = this.#rows?.fed ?? [];
        const key = String([fed[0]!, ...tables].map(({ shape }) => shape));
        computed = graphs.run(key, fed, open);
        return null as never;
      }),
    );
    const values = computed ?? (await read(flat));
    const { exchangedSize } = this.#layout;
    const gradient = values.subarray(0, exchangedSize);
    for (const weight of this.#parameters.weights) {
      const { role, offset, size, momentum, calls } = weight;
      if (role !== 'statistics' || weight.isCarried) continue;
      const times = calls?.() ?? 1;
      if (times === 0) {
        // An objective that did not apply the model has not measured it.
        gradient.set(this.#parameters.valuesOf(weight)!, offset);
        continue;
      }
      // What a function of variables assigns is the minibatch's value already.
      const isLayers = calls !== undefined || (instance.layersModel !== null && !instance.models);
      const share = isLayers ? 1 - momentum! ** times : 1;
      for (let i = offset; i < offset + size; i++) gradient[i]! /= share;
    }
    return {
      loss: values[exchangedSize]!,
      gradient,
      ...(this.#rows && { rows: this.#rows.gradients(values.subarray(exchangedSize + 1)) }),
      discard: () => {
        if (this.#readsCopies) discard(values);
      },
    };
  }

  dispose(): void {
    this.#graphs?.dispose();
    this.#zeros.dispose();
  }

  /** What is fed to a step besides the minibatch: weights, what is carried, and zeros of these shapes for statistics. */
  #given(): readonly PlacedWeight[] {
    return this.#parameters.weights.filter((weight) => !isMeasured(weight));
  }

  #zeroShapes(): (readonly number[])[] {
    const statistics = this.#parameters.weights.filter(isMeasured);
    return [...new Map(statistics.map(({ shape }) => [String(shape), shape])).values()];
  }

  /** All that a step depends on; null when not all of it is known. */
  #feedsOf(minibatch: Minibatch): Fed[] | null {
    const { inputs, targets, fields = {} } = minibatch;
    const { inputShape, targetShape } = this.#data;
    const count = countOf(minibatch, this.#data);
    const fed = [
      ...(hasInputs(this.#data) ? [{ values: inputs, shape: [count, ...inputShape] }] : []),
      ...(hasTargets(this.#data) ? [{ values: targets, shape: [count, ...targetShape] }] : []),
      ...this.#data.fields.map(({ name }) => {
        const { values, shape } = fields[name]!;
        return { values, shape: [count, ...shape] };
      }),
      ...(this.#rows?.fed ?? []),
      ...this.#given().map((weight) => ({
        values: this.#parameters.valuesOf(weight),
        shape: weight.shape,
      })),
      ...this.#zeroShapes().map((shape) => this.#zeros.of(shape).fed),
    ];
    return fed.every(({ values }) => values !== null) ? (fed as Fed[]) : null;
  }

  /** A step, with tensors of what `#feedsOf` gives, in the same order. */
  #open(instance: Instance, minibatch: Minibatch): Opened {
    this.#parameters.upload();
    const fields = fieldTensors(minibatch, this.#data);
    const variables = this.#given().map(({ variable }) => variable);
    const zeros = this.#zeroShapes().map((shape) => this.#zeros.of(shape).tensor);
    return {
      feeds: [...Object.values(fields), ...(this.#rows?.variables ?? []), ...variables, ...zeros],
      compute: (noise) => this.#gradientOf(instance, fields, noise),
      hostReads: () => this.#hostReads,
    };
  }

  /** Gradient, statistics and loss behind each other, shape [layout.exchangedSize + 1]; gradients of rows follow. */
  #gradientOf(
    instance: Instance,
    fields: Readonly<Record<string, Tensor>>,
    noise: NoiseSource,
  ): Tensor {
    this.#hostReads = '';
    const onHost = (why: string) => {
      this.#hostReads = why;
    };
    for (const part of Object.values(instance.models ?? {})) part.resetCalls();
    return tf.tidy(() => {
      const { weights, step } = this.#parameters;
      const trained = weights.filter(({ role }) => role === 'trainable');
      const statistics = weights.filter(isMeasured);
      // From 0, one update leaves (1 − momentum) times the minibatch's own value.
      for (const { variable, shape } of statistics) variable.assign(this.#zeros.of(shape).tensor);
      const tables = this.#rows?.variables ?? [];
      const all = [...trained.map(({ variable }) => variable), ...tables];
      const train = () => this.#goal.train({ instance, fields, noise, onHost, step });
      const {
        loss,
        grads,
        carried,
        kept = [],
      } = this.#goal.givesGradients
        ? givenGradients(train, instance, trained)
        : this.#groups
          ? groupGradients(train, instance, { trained, tables }, this.#groups)
          : lossGradients(train, instance, all);
      const parts = trained.map(({ variable, shape }) =>
        // An objective may leave a model out. Its zeros are made anew: a graph has them as a constant.
        flatten(
          grads[variable.name] ??
            (instance.models ? tf.zeros([...shape]) : this.#zeros.of(shape).tensor),
        ),
      );
      for (const { variable } of statistics) parts.push(flatten(variable));
      for (const tensor of carried) parts.push(flatten(tensor));
      // A minibatch may have no id of a table.
      const rows = tables.map((table) => flatten(grads[table.name] ?? tf.zerosLike(table)));
      const result = tf.concat1d([...parts, flatten(loss), ...rows]);
      tf.dispose([loss, ...carried, ...kept]);
      this.#parameters.restoreStatistics();
      return result;
    });
  }
}

/** What a step measures, unlike what it is given and passes on. */
const isMeasured = ({ role, isCarried }: PlacedWeight): boolean =>
  role === 'statistics' && !isCarried;

interface Gradients {
  /** Without regularisation, of shape []. */
  readonly loss: Tensor;
  /** By the names that TensorFlow.js has for the variables; one may be missing. */
  readonly grads: Readonly<Record<string, Tensor>>;
  /** Those that must be disposed of. */
  readonly kept?: readonly Tensor[];
  /** What the next minibatch gets, in the order of the layout. */
  readonly carried: readonly Tensor[];
}

/** The gradient of the loss and of the losses of regularised layers. */
function lossGradients(
  train: () => TrainingValues,
  instance: Instance,
  trained: readonly Variable[],
): Gradients {
  let mean: Tensor | null = null;
  let next: readonly Tensor[] = [];
  const { value, grads } = tf.variableGrads(() => {
    const { loss, carried } = train();
    next = carried.map((tensor) => tf.keep(tensor.clone()));
    const penalties = instance.penalties();
    if (penalties.length === 0) return loss as Scalar;
    mean = tf.keep(loss.clone());
    return tf.addN([loss, ...penalties.map((p) => tf.reshape(p, []))]) as Scalar;
  }, [...trained]);
  return { loss: mean ?? value, grads, carried: next };
}

/**
 * The same, where a loss that has the name of a group reaches the parameters of this group alone: so a generator and a
 * discriminator are trained in one step, by one pass forward. Rows of tables are reached by all losses.
 * @throws DownpourError DP_EXPERIMENT_INVALID: such a loss does not depend on its group.
 */
function groupGradients(
  train: () => TrainingValues,
  instance: Instance,
  { trained, tables }: { trained: readonly PlacedWeight[]; tables: readonly Variable[] },
  groups: ParameterGroups,
): Gradients {
  const kept: Tensor[] = [];
  const grads: Record<string, Tensor> = {};
  let mean!: Tensor;
  let next: readonly Tensor[] = [];
  // While its function runs, the tape of the pass forward is open: each call within goes back over it once.
  tf.engine().gradients(
    () => {
      const { loss, named = {}, carried } = train();
      mean = tf.keep(loss.clone());
      next = carried.map((tensor) => tf.keep(tensor.clone()));
      const penalties = instance.penalties().map((p) => tf.reshape(p, []));
      const own = Object.keys(named).filter((name) => Object.hasOwn(groups, name));
      const others = Object.entries(named).flatMap(([name, each]) =>
        own.includes(name) ? [] : each,
      );
      const common = [...(own.length === 0 ? [loss] : others), ...penalties];
      const ownerOf = ({ name }: PlacedWeight) => {
        const group = groupOf(name, groups);
        return group !== null && own.includes(group) ? group : null;
      };
      /** @returns false: none of them is reached. */
      const take = (parts: readonly Tensor[], variables: readonly Variable[]): boolean => {
        const given = withFirstGradientsOnly(
          () =>
            tf.engine().gradients(() => tf.addN([...parts]), [...variables], undefined, true).grads,
        );
        for (const [i, gradient] of given.entries()) {
          if (gradient == null) continue;
          grads[variables[i]!.name] = tf.keep(gradient);
          kept.push(gradient);
        }
        return given.some((gradient) => gradient != null);
      };
      for (const group of [...own, null]) {
        const members = trained.filter((weight) => ownerOf(weight) === group);
        const parts = group === null ? common : [named[group]!, ...common];
        if (members.length === 0 || parts.length === 0) continue;
        const variables = members.map(({ variable }) => variable);
        if (!take(parts, variables)) throw unreached(group, own);
      }
      if (tables.length > 0) take([loss], tables);
      return tf.scalar(0);
    },
    [trained[0]?.variable ?? tables[0]!],
    undefined,
    true,
  );
  return { loss: mean, grads, carried: next, kept };
}

const unreached = (group: string | null, own: readonly string[]) =>
  invalid(
    group === null
      ? `no loss depends on the parameters that belong to none of the groups with a loss (${own.join(', ')}): freeze them, or add a loss that depends on them`
      : `the loss '${group}' has the name of a group and does not depend on its parameters: give it the name of another group, or a name that no group has`,
  );

/** The gradients that an objective gives, and those of the losses of regularised layers. */
function givenGradients(
  train: () => TrainingValues,
  instance: Instance,
  trained: readonly PlacedWeight[],
): Gradients {
  const { loss, gradients, carried } = train();
  const grads = Object.fromEntries(
    trained.map(({ name, variable }) => [variable.name, gradients![name]!]),
  );
  if (instance.penalties().length === 0) return { loss, grads, carried };
  const variables = trained.map(({ variable }) => variable);
  const { grads: more } = tf.variableGrads(() => {
    const penalties = instance.penalties().map((p) => tf.reshape(p, []));
    // A regulariser of strength 0 gives a constant, which has no gradient.
    return tf.addN([...penalties, tf.mul(tf.sum(variables[0]!), 0)]) as Scalar;
  }, variables);
  for (const [name, grad] of Object.entries(more)) grads[name] = tf.add(grads[name]!, grad);
  return { loss, grads, carried };
}

/** Zeros, one tensor of each shape, kept: assigning one to a variable costs no operation. */
class Zeros {
  readonly #known = new Map<string, { readonly tensor: Tensor; readonly fed: Fed }>();

  of(shape: readonly number[]): { readonly tensor: Tensor; readonly fed: Fed } {
    let known = this.#known.get(String(shape));
    if (!known) {
      const fed = { values: new Float32Array(sizeOf(shape)), shape };
      known = { tensor: tf.keep(tf.zeros([...shape])), fed };
      this.#known.set(String(shape), known);
    }
    return known;
  }

  dispose(): void {
    for (const { tensor } of this.#known.values()) tensor.dispose();
  }
}
