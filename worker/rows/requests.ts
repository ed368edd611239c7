import type { RowsMessage } from '../../shared/row-messages.ts';

/** Rows that the server was asked for by `pullRows`, until they come. */

export interface RowsAnswer extends Pick<RowsMessage, 'step' | 'generation' | 'encoding'> {
  /** As `encodeRows` has them, from each shard; the receiver's own. */
  readonly parts: readonly Uint8Array[];
}

/** The rows will not come: the connection was lost, or the server has something else to do for the worker. */
export class RowsLost extends Error {
  constructor(why: string) {
    super(`rows were asked for and will not come: ${why}`);
  }
}

interface Pending {
  resolve(answer: RowsAnswer): void;
  reject(error: unknown): void;
}

export class RowRequests {
  #last = 0;
  readonly #pending = new Map<number, Pending>();

  /** @param send with the number of the request. @throws RowsLost; what `fail` is given. */
  ask(send: (request: number) => void): Promise<RowsAnswer> {
    const request = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#pending.set(request, { resolve, reject });
      send(request);
    });
  }

  /** An answer that nobody waits for is left alone. @param parts the receiver's own from now on. */
  answer({ request, step, generation, encoding }: RowsMessage, parts: readonly Uint8Array[]): void {
    const pending = this.#pending.get(request);
    this.#pending.delete(request);
    pending?.resolve({ step, generation, encoding, parts });
  }

  fail(error: unknown): void {
    const all = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of all) reject(error);
  }
}
