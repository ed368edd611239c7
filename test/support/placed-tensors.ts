import { groupsOf, layoutWhile, type ParameterGroups } from '../../shared/groups.ts';
import { createLayout, type PlacedTensor, type TensorSpec } from '../../shared/layout.ts';

/**
 * All tensors of a model in the order in which it has them, wherever they lie in what is exchanged: frozen groups stand
 * behind all others, and are sent once.
 */
export class PlacedTensors {
  readonly #specs: readonly TensorSpec[];
  readonly #groups: ParameterGroups | null;
  readonly #known: Float32Array;
  /** Elements of trainable tensors and statistics, of all groups. */
  readonly #exchanged: number;
  #placed: readonly (PlacedTensor & { readonly own: number })[] = [];
  #placedFor: string | null = null;
  /** Elements that are exchanged now. */
  exchangedSize = 0;

  constructor(specs: readonly TensorSpec[], config: Parameters<typeof groupsOf>[0]) {
    this.#specs = specs;
    this.#groups = groupsOf(config);
    const { size, exchangedSize } = createLayout(specs);
    this.#known = new Float32Array(size);
    this.#exchanged = exchangedSize;
  }

  /** @param frozen names of the groups that are frozen now. */
  place(frozen: readonly string[]): void {
    if (this.#placedFor === frozen.join()) return;
    this.#placedFor = frozen.join();
    const own = createLayout(this.#specs).tensors;
    const layout = layoutWhile(this.#specs, this.#groups, frozen, false);
    this.exchangedSize = layout.exchangedSize;
    this.#placed = layout.tensors.map((tensor) => ({
      ...tensor,
      own: own.find(({ name }) => name === tensor.name)!.offset,
    }));
  }

  /** Keeps what has come. @returns trainable tensors and statistics, as a model without groups has them. */
  took(payload: Float32Array): Float32Array {
    for (const { offset, size, own } of this.#placed) {
      if (offset >= payload.length) continue;
      this.#known.set(payload.subarray(offset, offset + size), own);
    }
    return this.#known.slice(0, this.#exchanged);
  }

  /** @param values as the model has them. @param size elements of the beginning of the vector. */
  packed(values: Float32Array, size: number): Float32Array {
    const packed = new Float32Array(size);
    for (const { offset, size: count, own } of this.#placed) {
      if (offset < size) packed.set(values.subarray(own, own + count), offset);
    }
    return packed;
  }
}
