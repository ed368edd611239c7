import type { ConnectionOptions } from 'node:tls';
import { bytesOf, floatsOf } from '../shared/codec.ts';
import type { Encoding } from '../shared/compression.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { fragmentPieces, pieceSize } from '../shared/fragments.ts';
import type { Layout } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import type { ShardAddress } from '../shared/message-fields.ts';
import { type Range, rangesOfRun } from '../shared/partition.ts';
import { knownCode } from '../shared/protocol.ts';
import { checkFromShard, type ToShard } from '../shared/shard-messages.ts';
import { type TableFields, tablesOf } from '../shared/tables.ts';
import type { Connection, FrameHeader, Landing } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { findLocalSocket } from '../wire/local-socket.ts';
import { Memories } from '../wire/memories.ts';
import { createDecoder } from './compressor.ts';

/**
 * A worker's connections to the shards of a run, beside the one to the server. Parts of parameters land at
 * their places in one vector, whichever comes first. When any of them is lost, all are given up: the worker
 * connects anew, and what was not acknowledged is sent again, all parts.
 */

export interface ShardLinksOptions {
  /** The addresses of shards 1, 2, …; more than the layout has ranges are left alone. */
  readonly shards: readonly ShardAddress[];
  /** The address of the server, for shards on its host. */
  readonly server: string;
  readonly session: string;
  readonly layout: Layout;
  /** See `rangesFor`. */
  readonly ranges: readonly Range[];
  /** That the parameters may come in; 1: all together. */
  readonly fragments: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly tls?: ConnectionOptions;
  readonly localSocket: boolean;
  readonly handshakeMs: number;
  readonly closeMs: number;
  readonly now: () => number;
  /** Opens a connection; default: over the network. */
  readonly dial?: typeof dial;
  /** All parts of a pull are there. */
  readonly complete: () => void;
  /** A connection is lost, or a shard says what this worker does not understand. */
  readonly lost: (error: DownpourError) => void;
}

/** A vector under way: `values` is whole when nothing is missing. */
export interface Pull {
  readonly values: Float32Array;
  /** That have come: trainable and statistics, or all. */
  elements: number;
  missing: number;
  release(): void;
}

/** Rows of tables under way: `parts` is whole when nothing is missing. */
export interface RowPull {
  /** As `encodeRows` has them, one for each shard. */
  readonly parts: Uint8Array[];
  missing: number;
  /** Called once, when all parts are there. */
  whole: () => void;
}

/** Vectors in use at once: one arrives, one is read from, one is on the device. */
const MEMORIES_KEPT = 3;

/** The parts into which pushes of this layout go. */
export function rangesFor(
  layout: Layout,
  { shards, config }: { readonly shards: readonly ShardAddress[]; readonly config: TableFields },
): Range[] {
  return rangesOfRun(layout, 1 + shards.length, tablesOf(config) !== null);
}

/** One after the other. @param sizes elements. */
function placesOf(sizes: readonly number[]): Range[] {
  let start = 0;
  return sizes.map((size) => {
    const end = start + size;
    const place = { start, end };
    start = end;
    return place;
  });
}

export class ShardLinks {
  readonly ranges: readonly Range[];
  readonly #options: ShardLinksOptions;
  /** Where the parts of each fragment lie in its vector, one after the other. */
  readonly #fragments: readonly (readonly Range[])[];
  readonly #connections: Connection[] = [];
  readonly #dialing = new Set<{ abort(): void }>();
  readonly #lastSeen: number[] = [];
  readonly #memories = new Memories(MEMORIES_KEPT);
  readonly #decoder = createDecoder();
  readonly #pulls = new Map<number, Pull>();
  readonly #rowPulls = new Map<number, RowPull>();
  #closed = false;

  constructor(options: ShardLinksOptions) {
    this.#options = options;
    this.ranges = options.ranges;
    const { layout, fragments: count } = options;
    this.#fragments = Array.from({ length: count > 1 ? count : 0 }, (_, index) =>
      placesOf(fragmentPieces(layout, this.ranges, { index, count }).map(pieceSize)),
    );
  }

  /** Connects to all shards and resolves when each knows this worker. @throws DownpourError DP_SHARD_LOST. */
  async open(): Promise<void> {
    const { shards } = this.#options;
    const needed = shards.slice(0, this.ranges.length - 1);
    await Promise.all(needed.map((address, i) => this.#connect(i + 1, address)));
  }

  async #connect(index: number, address: ShardAddress): Promise<void> {
    const { server, session, headers, tls, handshakeMs, closeMs, localSocket } = this.#options;
    const { dial: open = dial } = this.#options;
    const url = new URL(server);
    if (address.host !== null) {
      url.hostname = address.host.includes(':') ? `[${address.host}]` : address.host;
    }
    url.port = String(address.port);
    const path = localSocket ? await findLocalSocket(url.href) : null;
    return new Promise((resolve, reject) => {
      const fail = (why: string) => {
        const error = new DownpourError('DP_SHARD_LOST', `shard ${index} at ${url.host}: ${why}`);
        reject(error);
        if (!this.#closed) this.#options.lost(error);
      };
      const dialing = open({
        url: url.href,
        path,
        handshakeMs,
        closeMs,
        headers,
        ...(tls ? { tls } : {}),
        opened: (connection) => {
          this.#dialing.delete(dialing);
          this.#connections[index] = connection;
          this.#lastSeen[index] = this.#options.now();
          let said = '';
          connection.send({ type: 'attach', session } satisfies ToShard);
          return {
            land: (header, bytes) => this.#land(index, header, bytes),
            message: (header, payload, landing) => {
              try {
                const message = checkFromShard(header);
                if (message.type === 'attached') resolve();
                else if (message.type === 'parameters') {
                  const { pull, encoding, fragment = null } = message;
                  this.take(index, pull, payload, encoding, fragment);
                } else if (message.type === 'rows') {
                  this.takeRows(index, message.pull, payload);
                } else said = `${knownCode(message.code)} ${message.message}`;
              } catch (error) {
                said = errorText(error);
                connection.close(1002);
              } finally {
                landing?.release();
              }
            },
            malformed: (error) => {
              said = error.message;
              connection.close(1002);
            },
            broken: (error) => {
              said = error.message;
            },
            alive: () => {
              this.#lastSeen[index] = this.#options.now();
            },
            closed: (_, reason) => fail(said || reason || 'closed'),
          };
        },
        failed: (error) => {
          this.#dialing.delete(dialing);
          fail(errorText(error));
        },
      });
      this.#dialing.add(dialing);
    });
  }

  // Parameters.

  /** Where a part in f32 is to be: its place in the vector of its pull. */
  #land(index: number, header: FrameHeader, bytes: number | null): Landing | null {
    const { type, pull, encoding, fragment } = header;
    if (type !== 'parameters' || typeof pull !== 'number' || encoding !== 'f32') return null;
    return bytes === null ? null : this.place(index, pull, bytes, fragment);
  }

  /** Where each part of a pull lies in its vector; null: there is no such fragment. */
  #places(fragment: number | null): readonly Range[] | null {
    if (fragment === null) return this.ranges;
    return this.#fragments[fragment] ?? null;
  }

  /**
   * Where so many bytes of part `index` of a pull lie; null: they do not fit there.
   * @param fragment as a header has it; absent: all parameters come.
   */
  place(index: number, pull: number, bytes: number, fragment: unknown): Landing | null {
    const of = fragment === undefined ? null : Number(fragment);
    const range = this.#places(of)?.[index];
    if (!range || bytes > 4 * (range.end - range.start)) return null;
    const { values } = this.pull(pull, of);
    const { buffer, byteOffset } = values;
    return {
      bytes: new Uint8Array(buffer, byteOffset + 4 * range.start, bytes),
      release: () => {},
    };
  }

  /** The vector of a pull, with room for all that comes. @param fragment null: all parameters. */
  pull(id: number, fragment: number | null): Pull {
    let pull = this.#pulls.get(id);
    if (!pull) {
      const size = this.#places(fragment)?.at(-1)?.end ?? 0;
      const memory = this.#memories.take(4 * size);
      pull = {
        values: floatsOf(memory.bytes),
        elements: 0,
        missing: this.ranges.length,
        release: memory.release,
      };
      this.#pulls.set(id, pull);
    }
    return pull;
  }

  /**
   * Part `index` of a pull has come.
   * @param payload at its place already, or to be decoded there. @param fragment null: all parameters come.
   * @throws DownpourError DP_TENSOR_SIZE: it is too large, or of a fragment that the run does not have.
   */
  take(
    index: number,
    id: number,
    payload: Uint8Array,
    encoding: Encoding,
    fragment: number | null,
  ): void {
    const places = this.#places(fragment);
    if (!places) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `part ${index} of the parameters is of fragment ${fragment}; the run has ${this.#fragments.length}`,
      );
    }
    const pull = this.pull(id, fragment);
    const { start, end } = places[index]!;
    // Frozen tensors come in f32.
    const last = fragment === null ? this.#options.layout.exchangedSize : end;
    const place = pull.values.subarray(start, end);
    if (encoding === 'bf16') {
      const exchanged = place.subarray(0, Math.max(0, last - start));
      this.#decoder.decode(payload, exchanged);
      pull.elements += exchanged.length;
    } else if (payload.byteLength > 4 * place.length) {
      throw new DownpourError(
        'DP_TENSOR_SIZE',
        `part ${index} of the parameters has ${payload.byteLength} bytes; at most ${4 * place.length} were expected`,
      );
    } else {
      const bytes = bytesOf(place);
      const there = payload.buffer === bytes.buffer && payload.byteOffset === bytes.byteOffset;
      if (!there) bytes.set(payload);
      pull.elements += payload.byteLength / 4;
    }
    pull.missing--;
    if (pull.missing === 0) {
      this.#pulls.delete(id);
      this.#options.complete();
    }
  }

  // Rows of tables.

  /** Rows that come under one number. */
  rows(id: number): RowPull {
    let pull = this.#rowPulls.get(id);
    if (!pull) {
      pull = { parts: [], missing: this.ranges.length, whole: () => {} };
      this.#rowPulls.set(id, pull);
    }
    return pull;
  }

  /** The rows of one shard have come. @param bytes are copied. */
  takeRows(index: number, id: number, bytes: Uint8Array): void {
    const pull = this.rows(id);
    pull.parts[index] = bytes.slice();
    pull.missing--;
    if (pull.missing > 0) return;
    this.#rowPulls.delete(id);
    pull.whole();
    this.#options.complete();
  }

  // Pushes.

  /** @param payload in pieces. @param gone called once: the payload has left, or never will. */
  send(index: number, message: ToShard, payload: readonly Uint8Array[], gone?: () => void): void {
    const connection = this.#connections[index];
    if (connection) connection.send(message, payload, gone);
    else gone?.();
  }

  /** @param held the process was held up: what has arrived meanwhile has not been read yet. */
  beat(held: boolean): void {
    const now = this.#options.now();
    for (const [index, connection] of this.#connections.entries()) {
      if (!connection) continue;
      if (held) this.#lastSeen[index] = now;
      if (now - this.#lastSeen[index]! > LIMITS.silenceMs) connection.terminate();
      else connection.ping();
    }
  }

  close(): void {
    this.#closed = true;
    for (const dialing of this.#dialing) dialing.abort();
    for (const connection of this.#connections) connection?.close(1000);
    for (const pull of this.#pulls.values()) pull.release();
    this.#pulls.clear();
    this.#rowPulls.clear();
  }
}
