import { DownpourError } from '../../shared/errors.ts';
import type { Layout, PlacedTensor } from '../../shared/layout.ts';
import { type Tensor, tf } from '../tf.ts';
import type { PlacedWeight } from './instance.ts';
import { flatten, read } from './tensors.ts';

/** The parameters that a model was given last, and which of them are on the device. */
export class LoadedParameters {
  readonly #layout: Layout;
  #weights: readonly PlacedWeight[];
  #values: Float32Array | null = null;
  #step = 0;
  /** Carried tensors that are used in the place of those loaded, from `#carriedStart`; null: there are none. */
  #carried: Float32Array | null = null;
  readonly #carriedStart: number;
  /** What is loaded is on the device. */
  #isUploaded = true;
  /** The statistics loaded, by name: a step moves the model's own, and then puts these back. */
  readonly #statistics = new Map<string, Tensor>();
  /** Frozen parameters by name. They outlive the next `load`, which brings none. */
  readonly #frozen = new Map<string, Float32Array>();
  /** Those of them that are not on the device yet. */
  readonly #waiting = new Set<string>();

  constructor(layout: Layout, weights: readonly PlacedWeight[]) {
    this.#layout = layout;
    this.#weights = weights;
    const first = weights.find(({ isCarried }) => isCarried);
    this.#carriedStart = first?.offset ?? layout.exchangedSize;
    this.#holdStatistics();
  }

  /** The weights in the order of the layout. */
  get weights(): readonly PlacedWeight[] {
    return this.#weights;
  }

  /** What was loaded last. */
  get values(): Float32Array | null {
    return this.#values;
  }

  /** Updates that were applied to them; 0 where nobody said. */
  get step(): number {
    return this.#step;
  }

  /** Takes a model that was built anew, with its parameters. @returns these, shape [layout.size]. */
  async replace(weights: readonly PlacedWeight[]): Promise<Float32Array> {
    this.#weights = weights;
    this.#holdStatistics();
    const values = new Float32Array(this.#layout.size);
    // A model may have rows of tables alone.
    if (weights.length > 0) {
      const flat = tf.tidy(() => tf.concat1d(weights.map(({ variable }) => flatten(variable))));
      values.set(await read(flat));
    }
    this.#values = values;
    this.#carried = null;
    this.#isUploaded = true;
    this.#keepFrozen(values);
    this.#waiting.clear();
    return values;
  }

  /** Elements of all carried tensors. */
  get carriedSize(): number {
    return this.#layout.exchangedSize - this.#carriedStart;
  }

  /**
   * @param parameters shape [layout.exchangedSize] or [layout.size]. @param carried shape [carriedSize].
   * @throws DownpourError DP_TENSOR_SIZE.
   */
  load(parameters: Float32Array, step = 0, carried: Float32Array | null = null): void {
    const { exchangedSize, size } = this.#layout;
    const isWhole = parameters.length === size;
    if (!isWhole && parameters.length !== exchangedSize) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `parameters have ${parameters.length} elements; the model needs ${exchangedSize} or ${size}`,
      );
    }
    this.#values = parameters;
    this.#step = step;
    this.#carried = carried;
    this.#isUploaded = false;
    if (isWhole) this.#keepFrozen(parameters);
  }

  /** The values loaded of one tensor; null: not known, nothing was loaded that has it. */
  valuesOf({ name, role, offset, size }: PlacedTensor): Float32Array | null {
    const at = offset - this.#carriedStart;
    if (this.#carried && at >= 0 && role === 'statistics') {
      return this.#carried.subarray(at, at + size);
    }
    return role === 'frozen'
      ? (this.#frozen.get(name) ?? null)
      : (this.#values?.subarray(offset, offset + size) ?? null);
  }

  /** Puts what is loaded on the device. */
  upload(): void {
    if (this.#isUploaded) return;
    this.#isUploaded = true;
    for (const weight of this.#weights) {
      const { name, role, variable, shape } = weight;
      if (role === 'frozen' && !this.#waiting.delete(name)) continue;
      const fresh = tf.tensor(this.valuesOf(weight)!, [...shape], 'float32');
      variable.assign(fresh);
      if (role === 'statistics') this.#hold(name, fresh);
      else fresh.dispose();
    }
  }

  /** After a step has moved them. */
  restoreStatistics(): void {
    for (const { role, name, variable } of this.#weights) {
      if (role === 'statistics') variable.assign(this.#statistics.get(name)!);
    }
  }

  dispose(): void {
    for (const tensor of this.#statistics.values()) tensor.dispose();
  }

  #holdStatistics(): void {
    for (const { role, name, variable } of this.#weights) {
      if (role === 'statistics') this.#hold(name, tf.clone(variable));
    }
  }

  #hold(name: string, tensor: Tensor): void {
    this.#statistics.get(name)?.dispose();
    this.#statistics.set(name, tf.keep(tensor));
  }

  #keepFrozen(whole: Float32Array): void {
    for (const { role, name, offset, size } of this.#weights) {
      if (role !== 'frozen') continue;
      this.#frozen.set(name, whole.slice(offset, offset + size));
      this.#waiting.add(name);
    }
  }
}
