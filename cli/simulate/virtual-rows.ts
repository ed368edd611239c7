import type { Push } from '../../shared/protocol.ts';
import { encodeRows, type TableRows } from '../../shared/rows.ts';
import { rowPushEncoding } from '../../shared/tables.ts';
import type { RowSource } from '../../worker/rows/model-rows.ts';
import type { VirtualRows, VirtualServer } from './virtual-server.ts';

/** Rows of tables in a simulation: virtual workers pull and push them as real ones do. */

/** The rows of one gradient. */
export interface RowsOfStep {
  readonly source: RowSource;
  /** Takes their gradients, which are read before it returns. */
  readonly put: (gradients: readonly TableRows[]) => void;
}

/** Rows that a worker was sent for a gradient, and what its push ends with. */
export interface SimulatedRows {
  readonly header: NonNullable<Push['rows']>;
  readonly tail: Uint8Array;
  readonly pulledBytes: number;
}

/** The rows of one gradient, as a real worker pulls and pushes them. */
export class VirtualStepRows implements RowsOfStep {
  readonly #server: VirtualServer;
  readonly #worker: string;
  #read: Omit<VirtualRows, 'rows'> = { step: 0, bytes: 0 };
  pushed: SimulatedRows | null = null;

  constructor(server: VirtualServer, worker: string) {
    this.#server = server;
    this.#worker = worker;
  }

  readonly source: RowSource = async (keys) => {
    const { rows, ...read } = this.#server.rows(this.#worker, keys, null);
    this.#read = read;
    return rows;
  };

  readonly put = (gradients: readonly TableRows[]): void => {
    const { rowShapes, config } = this.#server;
    const { step, bytes: pulledBytes } = this.#read;
    const encoding = rowPushEncoding(config.compression.push);
    const tail = encodeRows(rowShapes, gradients, encoding);
    const header = { step, encoding, bytes: tail.length, wanted: 0 };
    this.pushed = { header, tail, pulledBytes };
  };
}

export function behind(first: Uint8Array, second: Uint8Array): Uint8Array {
  const joined = new Uint8Array(first.length + second.length);
  joined.set(first);
  joined.set(second, first.length);
  return joined;
}
