import type { Landing } from './receiver.ts';

/**
 * Memory for payloads that is used again and again: fresh pages cost 80 to 140 ms per 100 MB, more
 * than six copies. A handful of equal sizes in turn, as pushes and pulls of one run are, cost nothing.
 */
export class Memories {
  readonly #free: Uint8Array[] = [];
  readonly #kept: number;

  /** @param kept so many that nobody uses now stay. */
  constructor(kept: number) {
    this.#kept = kept;
  }

  /** Memory of exactly so many bytes, with anything in it. From a page up it begins at a page. */
  take(bytes: number): Landing {
    const memory = this.#fitting(bytes) ?? allocate(bytes);
    let taken = true;
    return {
      bytes: memory.subarray(0, bytes),
      release: () => {
        if (!taken) return;
        taken = false;
        this.#free.push(memory);
        // The oldest may be of a size that is asked for no more.
        if (this.#free.length > this.#kept) this.#free.shift();
      },
    };
  }

  /** One that is free. */
  #fitting(bytes: number): Uint8Array | null {
    const free = this.#free;
    for (let i = 0; i < free.length; i++) {
      const { length } = free[i]!;
      if (length >= bytes && length <= 2 * bytes + PAGE) return free.splice(i, 1)[0]!;
    }
    return null;
  }
}

const PAGE = 65_536;

/** Memory of WebAssembly begins at a page of the machine, an ArrayBuffer at any multiple of 8. */
function allocate(bytes: number): Uint8Array {
  if (bytes < PAGE) return new Uint8Array(bytes);
  try {
    return new Uint8Array(new WebAssembly.Memory({ initial: Math.ceil(bytes / PAGE) }).buffer);
  } catch {
    // The address space is limited, or 4 GiB are not enough.
    return new Uint8Array(bytes);
  }
}
