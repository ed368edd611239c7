import type { KeyedRows } from '../../../shared/row-groups.ts';
import type { NamedTensor } from '../vectors.ts';

/** A copy of all tables of a run at one moment, for a checkpoint. It is made in pieces, and pushes are applied between them. */
export class TablesCopy {
  /** How its tensors continue those of the checkpoint before; none: they are all of it. */
  readonly groups: readonly KeyedRows[];
  readonly #parts: readonly { more(): boolean }[];
  readonly #tensors: () => readonly NamedTensor[];
  readonly #copied: () => void;
  #part = 0;

  /** @param tensors are asked for when all is copied. @param copied is called once then. */
  constructor(
    parts: readonly { more(): boolean }[],
    tensors: () => readonly NamedTensor[],
    groups: readonly KeyedRows[] = [],
    copied: () => void = () => {},
  ) {
    this.#parts = parts;
    this.#tensors = tensors;
    this.groups = groups;
    this.#copied = copied;
  }

  /** Copies a piece. @returns false: all is copied. */
  more(): boolean {
    const part = this.#parts[this.#part];
    if (!part) return false;
    if (part.more()) return true;
    if (++this.#part < this.#parts.length) return true;
    this.#copied();
    return false;
  }

  /** Copies what is left at once. */
  tensors(): readonly NamedTensor[] {
    while (this.more());
    return this.#tensors();
  }
}
