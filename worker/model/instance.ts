import type { Layout, PlacedTensor, TensorSpec } from '../../shared/layout.ts';
import type { NoiseSource } from '../noise.ts';
import type { PretrainedMatch } from '../pretrained/pretrained.ts';
import type { LayersModel, Scalar, Tensor, Variable } from '../tf.ts';
import { invalid } from './data-shape.ts';
import type { Tensors } from './tensors.ts';

/** One tensor of the model and how it takes part. */
export interface ModelWeight extends TensorSpec {
  readonly variable: Variable;
  /** For statistics of a model that an objective applies: how often it did so in the last step. */
  readonly calls?: () => number;
  /** Sets, for statistics of a layer, whether it normalises by them in training too, and leaves them alone. */
  readonly freeze?: (frozen: boolean) => void;
  /** It is carried from minibatch to minibatch: the last of the statistics. */
  readonly isCarried?: boolean;
}

/** One model of an experiment with an objective. */
export interface ModelPart {
  /** @param noise where layers of dropout and noise get theirs, in training. */
  apply(
    inputs: Tensor | Tensor[] | Readonly<Record<string, Tensor>>,
    training: boolean,
    noise: NoiseSource,
  ): Tensor | Tensor[] | Readonly<Record<string, Tensor>>;
  /** Tensors by the names that the user gave or a layer has. */
  variables(): Readonly<Record<string, Tensor>>;
  readonly layersModel: LayersModel | null;
  /** Before a step. */
  resetCalls(): void;
}

/** A built model, whatever form the user gave it. */
export interface Instance {
  readonly weights: readonly ModelWeight[];
  /** @param noise where layers of dropout and noise get theirs, in training. */
  predict(inputs: Tensors, training: boolean, noise?: NoiseSource): Tensors;
  /** Losses of regularised layers. */
  penalties(): Scalar[];
  readonly layersModel: LayersModel | null;
  /** The shape of one example's predictions; of several outputs, by name. */
  readonly outputShape: readonly number[] | Readonly<Record<string, readonly number[]>>;
  /** What an objective computes with, by name; one model has the name ''. Absent: there is no objective. */
  readonly models?: Readonly<Record<string, ModelPart>>;
  /** Code of others takes part in a step: what it does may change from one to the next. */
  readonly foreign: boolean;
  /** What has its values from a pretrained file; null: nothing was asked for. */
  readonly match: PretrainedMatch | null;
  /** The layers of a pretrained file, for the facts of a run; null: there are none, or they are too long. */
  readonly architecture: string | null;
}

/** Before its predictions have been looked at. */
export type OwnInstance = Omit<Instance, 'outputShape' | 'match' | 'architecture'>;

/** A tensor of the model, and its place in the flat vector. */
export type PlacedWeight = PlacedTensor & ModelWeight;

/** The weights in the order of the layout, each with its place. */
export function placeWeights(layout: Layout, weights: readonly ModelWeight[]): PlacedWeight[] {
  const byName = new Map(weights.map((weight) => [weight.name, weight]));
  return layout.tensors.map((tensor) => {
    const weight = byName.get(tensor.name);
    if (!weight || String(weight.shape) !== String(tensor.shape)) {
      throw invalid(
        `when the model is built again, its tensor '${tensor.name}' is different: model() must build the same tensors for every seed`,
      );
    }
    const { variable, calls, freeze, isCarried } = weight;
    freeze?.(tensor.role === 'frozen');
    return { ...tensor, variable, ...(calls && { calls }), ...(isCarried && { isCarried }) };
  });
}

export function disposeInstance({ weights }: Pick<Instance, 'weights'>): void {
  for (const { variable } of weights) if (!variable.isDisposed) variable.dispose();
}
