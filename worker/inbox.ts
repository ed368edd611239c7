import { floatsOf } from '../shared/codec.ts';
import { DownpourError } from '../shared/errors.ts';
import type { ServerMessage, Work } from '../shared/protocol.ts';
import type { RowsMessage } from '../shared/row-messages.ts';
import type { FrameHeader, Landing } from '../wire/connection.ts';
import { Memories } from '../wire/memories.ts';
import { createDecoder } from './compressor.ts';
import { type RowRequests, RowsLost } from './rows/requests.ts';
import type { Pull, RowPull, ShardLinks } from './shard-links.ts';

/**
 * What has come to a worker from its server, and from the shards, until it asks for it: where payloads are read to, which parts
 * belong together, and whose memory they are.
 */

/** What the server said. `payload` is the receiver's own until it calls `release`; possibly empty. */
export interface Received {
  readonly message: Exclude<ServerMessage, { type: 'error' | 'standby' | 'rows' }>;
  readonly payload: Float32Array;
  /**
   * Rows of tables that came with it, as `encodeRows` has them, from each shard. They are the receiver's until it asks for the
   * next message.
   */
  readonly rows?: readonly Uint8Array[];
  /** Gives the payload's memory back, to be received into again; absent: it is never used again. */
  readonly release?: () => void;
}

/** What the server said, of which parts may still be on their way from shards. */
interface InTransit extends Received {
  readonly pull?: Pull;
  readonly rowPull?: RowPull;
  readonly releaseRows?: () => void;
}

/** Payloads in use at once: one arrives, one is read from, one is on the device. */
export const MEMORIES_KEPT = 3;

export interface InboxOptions {
  /** To the shards of the run; null: the server has all of it. */
  readonly links: () => ShardLinks | null;
  readonly requests: RowRequests;
  /** A message is there. */
  readonly wake: () => void;
}

export class Inbox {
  readonly #options: InboxOptions;
  readonly #pulled = new Memories(MEMORIES_KEPT);
  readonly #decoder = createDecoder();
  #received: InTransit[] = [];
  /** Gives the memory of the last message's rows back. */
  #releaseRows: (() => void) | undefined;

  constructor(options: InboxOptions) {
    this.#options = options;
  }

  /** Something is whole, and nobody has asked for it yet. */
  get hasReceived(): boolean {
    const [first] = this.#received;
    return first !== undefined && !first.pull?.missing && !first.rowPull?.missing;
  }

  /** The oldest message, if all of it is there; rows of the one before are of no more use. */
  next(): Received | null {
    this.#releaseRows?.();
    this.#releaseRows = undefined;
    if (!this.hasReceived) return null;
    const { pull, rowPull: _, releaseRows, ...received } = this.#received.shift()!;
    this.#releaseRows = releaseRows;
    if (!pull) return received;
    return { ...received, payload: pull.values.subarray(0, pull.elements) };
  }

  /** The connection is lost: what it has brought is of no use. */
  clear(): void {
    for (const { release } of this.#received) release?.();
    this.#received = [];
  }

  /** Where the payload of a message is to be. */
  land(header: FrameHeader, payloadBytes: number | null): Landing | null {
    if (payloadBytes === null) return null;
    const { type, pull, encoding, fragment, rows } = header;
    // Parameters and rows part when all is there.
    if (rows !== undefined) return this.#pulled.take(payloadBytes);
    if (type === 'work' && typeof pull === 'number' && encoding === 'f32') {
      return this.#options.links()?.place(0, pull, payloadBytes, fragment) ?? null;
    }
    if (type === 'work' && encoding === 'bf16') {
      const landing = this.#decoder.land(payloadBytes);
      if (landing) return landing;
    }
    return this.#pulled.take(payloadBytes);
  }

  /**
   * @param landing that the payload came to; null: it is the connection's.
   * @throws DownpourError DP_FRAME_MALFORMED or DP_PROTOCOL_ORDER; the landing stays the caller's.
   */
  put(
    message: Exclude<ServerMessage, { type: 'error' | 'standby' }>,
    payload: Uint8Array,
    landing: Landing | null,
  ): void {
    const { requests, wake } = this.#options;
    if (message.type === 'rows') {
      this.#receiveRows(message, payload);
      landing?.release();
      return;
    }
    // Who waits for rows would not hear of it.
    if (message.type !== 'work') requests.fail(new RowsLost(`the server sent ${message.type}`));
    const bytes = message.type === 'work' ? (message.rows?.bytes ?? 0) : 0;
    if (bytes > payload.length) throw malformedRows(bytes, payload.length);
    const dense = bytes > 0 ? payload.subarray(0, payload.length - bytes) : payload;
    const rows =
      bytes > 0 ? this.#rowsOf((message as Work).rows!, payload.subarray(dense.length)) : {};
    if (message.type === 'work' && message.pull !== null) {
      this.#receivePart(message, message.pull, dense, landing, rows);
    } else {
      this.#received.push({ message, ...rows, ...this.#numbersOf(message, dense, landing) });
      wake();
    }
  }

  /** Rows that came with a `work`; others may come from the shards. @param bytes are copied. */
  #rowsOf({ pull }: NonNullable<Work['rows']>, bytes: Uint8Array) {
    if (pull === undefined) {
      const own = this.#pulled.take(bytes.length);
      own.bytes.set(bytes);
      return { rows: [own.bytes], releaseRows: own.release };
    }
    const links = this.#mustHaveLinks();
    const rowPull = links.rows(pull);
    links.takeRows(0, pull, bytes);
    return { rows: rowPull.parts, rowPull };
  }

  /** The answer to `pullRows`; it is whole when the shards have sent theirs. */
  #receiveRows(message: RowsMessage, payload: Uint8Array): void {
    const { pull } = message;
    if (pull === undefined) {
      this.#options.requests.answer(message, [payload.slice()]);
      return;
    }
    const links = this.#mustHaveLinks();
    const rowPull = links.rows(pull);
    rowPull.whole = () => this.#options.requests.answer(message, rowPull.parts);
    links.takeRows(0, pull, payload);
  }

  #mustHaveLinks(): ShardLinks {
    const links = this.#options.links();
    if (links) return links;
    throw new DownpourError('DP_PROTOCOL_ORDER', 'parts of parameters came without shards');
  }

  /** The first part of a vector whose other parts come from the shards. */
  #receivePart(
    message: Work,
    id: number,
    payload: Uint8Array,
    landing: Landing | null,
    rows: Pick<InTransit, 'rows' | 'rowPull'>,
  ): void {
    const links = this.#mustHaveLinks();
    const { fragment = null } = message;
    const pull = links.pull(id, fragment);
    const { release } = pull;
    this.#received.push({ message, payload: pull.values, release, pull, ...rows });
    links.take(0, id, payload, message.encoding, fragment);
    landing?.release();
  }

  /** A payload as f32, with what gives its memory back. */
  #numbersOf(
    message: ServerMessage,
    payload: Uint8Array,
    landing: Landing | null,
  ): Pick<Received, 'payload' | 'release'> {
    if (message.type === 'work' && message.encoding !== 'f32') {
      const decoded = this.#decoder.take(payload);
      if (decoded) {
        landing?.release();
        return { payload: decoded.values, release: decoded.release };
      }
      const memory = this.#pulled.take(2 * payload.length);
      this.#decoder.decode(payload, floatsOf(memory.bytes));
      landing?.release();
      return { payload: floatsOf(memory.bytes), release: memory.release };
    }
    if (landing) return { payload: floatsOf(payload), release: landing.release };
    // The receiver reads the next one into the same memory.
    return { payload: floatsOf(payload.slice()) };
  }
}

const malformedRows = (rows: number, bytes: number) =>
  new DownpourError(
    'DP_FRAME_MALFORMED',
    `work.rows.bytes is ${rows}, and the payload has ${bytes} bytes`,
  );
