import { type Layer, type LayerInputs, registerOwnClass, type Tensor, tf } from './tf.ts';

/**
 * The gated recurrent unit that Keras makes since its version 2.1: `reset_after: true`, as in cuDNN and PyTorch. The
 * recurrent product is computed before the reset gate multiplies it (Cho et al. 2014, arXiv 1406.1078 v1), and each of
 * the two products has a bias. TensorFlow.js has the older unit alone.
 */

type CellArguments = Parameters<typeof tf.layers.gruCell>[0];
export type ResetAfterGruArguments = Parameters<typeof tf.layers.gru>[0];

type GruWeight = Layer['weights'][number];
type AddWeight = Parameters<Layer['addWeight']>;

/** What tfjs-layers' own cell has and does not export. */
interface OlderCell extends Layer {
  readonly activation: { apply(x: Tensor): Tensor };
  readonly recurrentActivation: { apply(x: Tensor): Tensor };
  readonly dropout: number;
  readonly recurrentDropout: number;
  dropoutMask: Tensor | Tensor[] | null;
  recurrentDropoutMask: Tensor | Tensor[] | null;
  readonly kernel: GruWeight;
  readonly recurrentKernel: GruWeight;
  readonly bias: GruWeight | null;
}

const OlderCell = tf.layers.gruCell({ units: 1 }).constructor as unknown as new (
  args: CellArguments,
) => OlderCell;

const OlderGru = tf.layers.gru({ units: 1 }).constructor as unknown as new (
  args: ResetAfterGruArguments,
) => Layer & { cell: Layer };

/** Gates in the order of Keras: update z, reset r, candidate. */
const GATES = 3;

class ResetAfterGRUCell extends OlderCell {
  static readonly className = 'ResetAfterGRUCell';

  constructor(args: CellArguments) {
    super(withoutResetAfter(args));
  }

  /** Each of the two products has a bias: that of the inputs, then that of the state. */
  override addWeight(...[name, shape, ...others]: AddWeight): ReturnType<Layer['addWeight']> {
    return super.addWeight(name, name === 'bias' ? [2, ...shape] : shape, ...others);
  }

  /** @param inputs x of shape [n, features] and h of shape [n, units]. @returns h′ twice: as output and as state. */
  override call(inputs: LayerInputs, kwargs: { readonly training?: boolean }): Tensor[] {
    return tf.tidy(() => {
      const training = kwargs?.training === true;
      let [x, h] = inputs as [Tensor, Tensor];
      if (training && this.dropout > 0) {
        this.dropoutMask ??= maskLike(x, this.dropout);
        x = tf.mul(x, this.dropoutMask as Tensor);
      }
      if (training && this.recurrentDropout > 0) {
        this.recurrentDropoutMask ??= maskLike(h, this.recurrentDropout);
        h = tf.mul(h, this.recurrentDropoutMask as Tensor);
      }
      let ofInputs = tf.matMul(x, this.kernel.read());
      let ofState = tf.matMul(h, this.recurrentKernel.read());
      if (this.bias) {
        const [input, recurrent] = tf.unstack(this.bias.read()) as [Tensor, Tensor];
        ofInputs = tf.add(ofInputs, input);
        ofState = tf.add(ofState, recurrent);
      }
      const [xz, xr, xc] = tf.split(ofInputs, GATES, 1) as [Tensor, Tensor, Tensor];
      const [hz, hr, hc] = tf.split(ofState, GATES, 1) as [Tensor, Tensor, Tensor];
      const z = this.recurrentActivation.apply(tf.add(xz, hz));
      const r = this.recurrentActivation.apply(tf.add(xr, hr));
      const candidate = this.activation.apply(tf.add(xc, tf.mul(r, hc)));
      const next = tf.add(tf.mul(z, h), tf.mul(tf.sub(1, z), candidate));
      return [next, next];
    });
  }

  override getConfig() {
    return { ...super.getConfig(), resetAfter: true };
  }
}
registerOwnClass(ResetAfterGRUCell);

/** One mask for all steps of a sequence; the layer drops it before the next one. */
const maskLike = (x: Tensor, rate: number): Tensor =>
  tf.keep(tf.dropout(tf.onesLike(x), Math.min(rate, 0.999)));

class ResetAfterGRU extends OlderGru {
  static readonly className = 'ResetAfterGRU';

  constructor(args: ResetAfterGruArguments) {
    super(withoutResetAfter(args));
    this.cell = new ResetAfterGRUCell(args);
  }
}
registerOwnClass(ResetAfterGRU);

/** A copy, since tfjs-layers writes into what it is given, and refuses `resetAfter: true`. */
function withoutResetAfter<T extends object>(args: T): T {
  return { ...args, resetAfter: false };
}

/** Options and names of weights are those of `tf.layers.gru`; the bias has the shape [2, 3 · units]. */
export const resetAfterGru = (args: ResetAfterGruArguments): Layer => new ResetAfterGRU(args);
