import { randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { encodeHeader } from '../../shared/codec.ts';
import type { ServerMessage } from '../../shared/protocol.ts';
import { FRAME_HEAD_MAX, OPCODES, writeFrameHead } from '../../wire/frames.ts';
import { type FrameHeader, Receiver } from '../../wire/receiver.ts';

/**
 * A client for floods and their tests: it writes frames by hand, so that a message may begin and never end, be longer
 * than any worker sends, or ask for answers that are not read.
 */
export class FloodClient {
  readonly #socket: Socket;
  readonly #messages: FrameHeader[] = [];
  /** The beginning of a control frame. */
  #control = Buffer.alloc(0);
  #wake: (() => void) | null = null;
  #ended: { code: number; reason: string } | null = null;
  readonly name: string;
  readonly incarnation = randomBytes(8).toString('hex');
  /** Resolves with the server's close code, 1006 when there was none. */
  readonly closed: Promise<{ readonly code: number; readonly reason: string }>;

  private constructor(socket: Socket, name: string) {
    this.#socket = socket;
    this.name = name;
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        this.#ended ??= { code: 1006, reason: '' };
        this.#wake?.();
        resolve(this.#ended);
      });
    });
  }

  /** @param url `http://host:port` of a server. */
  static async open(
    url: string,
    { name = `f-${randomBytes(4).toString('hex')}`, token }: { name?: string; token?: string } = {},
  ): Promise<FloodClient> {
    const { hostname, port } = new URL(url);
    const socket = connect(Number(port), hostname);
    socket.setNoDelay(true);
    const client = new FloodClient(socket, name);
    socket.on('error', () => {});
    const authorization = token === undefined ? '' : `authorization: Bearer ${token}\r\n`;
    socket.write(
      `GET /ws HTTP/1.1\r\nhost: ${hostname}:${port}\r\n${authorization}upgrade: websocket\r\nconnection: upgrade\r\n` +
        'sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
    );
    await client.#handshake();
    return client;
  }

  /** Reads the answer to the upgrade; what follows it goes to the receiver. */
  #handshake(): Promise<void> {
    const socket = this.#socket;
    const receiver = new Receiver({
      fromClient: false,
      events: {
        land: () => null,
        message: (header) => {
          this.#messages.push(header);
          this.#wake?.();
        },
        malformed: (error) => socket.destroy(error),
        pass: (bytes) => this.#heard(bytes),
      },
    });
    return new Promise((resolve, reject) => {
      let head = Buffer.alloc(0);
      const onHead = (chunk: Buffer) => {
        head = Buffer.concat([head, chunk]);
        const end = head.indexOf('\r\n\r\n');
        if (end < 0) return;
        socket.off('data', onHead);
        socket.on('data', (more: Buffer) => receiver.feed(more));
        const status = head.subarray(0, end).toString('latin1').split('\r\n', 1)[0]!;
        if (!status.includes(' 101 ')) {
          reject(new Error(`the server refused the upgrade: ${status}`));
          return;
        }
        if (head.length > end + 4) receiver.feed(head.subarray(end + 4));
        resolve();
      };
      socket.on('data', onHead);
      socket.once('close', () => reject(new Error('the server closed the connection')));
    });
  }

  /** Bytes of control frames. */
  #heard(bytes: Buffer): void {
    let rest = Buffer.concat([this.#control, bytes]);
    while (rest.length >= 2 && rest.length >= 2 + rest[1]!) {
      const opcode = rest[0]! & 0x0f;
      const payload = rest.subarray(2, 2 + rest[1]!);
      if (opcode === OPCODES.ping) this.#write(OPCODES.pong, new Uint8Array());
      if (opcode === OPCODES.close) {
        const code = payload.length < 2 ? 1005 : payload.readUInt16BE(0);
        this.#ended = { code, reason: payload.toString('utf8', 2) };
        this.#socket.end();
      }
      rest = rest.subarray(2 + rest[1]!);
    }
    this.#control = rest;
  }

  /** Null: it is open. */
  get ended(): { readonly code: number; readonly reason: string } | null {
    return this.#ended;
  }

  /** Bytes that the server has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.writableLength;
  }

  // Writing.

  /** A whole message. */
  send(header: object, payload: Uint8Array = new Uint8Array()): void {
    this.begin(header, payload.length);
    this.write(payload);
  }

  /** Head and header of a message; its payload is the caller's to write, or not. */
  begin(header: object, payloadBytes: number): void {
    this.write(headOf(encodeHeader(header), payloadBytes));
  }

  /** The beginning of a message whose header has so many bytes, with the first `sent` of them. */
  beginHeader(headerBytes: number, sent: number): void {
    const rest = new Uint8Array(8 + headerBytes);
    rest.set([0x44, 0x50, 1, 0]);
    new DataView(rest.buffer).setUint32(4, headerBytes, true);
    this.write(headOf(rest, 0).subarray(0, -(headerBytes - sent)));
  }

  write(bytes: Uint8Array): void {
    if (bytes.length > 0 && !this.#socket.destroyed) this.#socket.write(bytes);
  }

  /** Resolves when the socket takes more, or is gone. */
  async drained(): Promise<void> {
    if (this.#socket.destroyed || this.#socket.writableLength === 0) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        this.#socket.off('drain', done).off('close', done);
        resolve();
      };
      this.#socket.once('drain', done).once('close', done);
    });
  }

  #write(opcode: number, payload: Uint8Array): void {
    const frame = new Uint8Array(FRAME_HEAD_MAX + payload.length);
    const start = writeFrameHead(frame, FRAME_HEAD_MAX, {
      ...{ opcode, length: payload.length, masked: true },
    });
    frame.set(payload, FRAME_HEAD_MAX);
    this.write(frame.subarray(start));
  }

  // Reading.

  /** The next message; null: the connection is closed. */
  async next(): Promise<ServerMessage | null> {
    while (this.#messages.length === 0) {
      if (this.#ended && this.#socket.destroyed) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#messages.shift() as unknown as ServerMessage;
  }

  /** The next message of a type; others are passed over. @throws Error when the connection closes before. */
  async expect<T extends ServerMessage['type']>(
    type: T,
  ): Promise<Extract<ServerMessage, { type: T }>> {
    for (;;) {
      const message = await this.next();
      if (!message) throw new Error(`closed with ${this.#ended?.code} instead of '${type}'`);
      if (message.type === type) return message as Extract<ServerMessage, { type: T }>;
    }
  }

  /** Reads nothing any more. */
  deafen(): void {
    this.#socket.pause();
  }

  /** Reads again. */
  listen(): void {
    this.#socket.resume();
  }

  /** Says hello and joins, as a worker does. Resolves with its first work. */
  async enter(run: FloodRun): Promise<Extract<ServerMessage, { type: 'work' }>> {
    this.send(helloOf(this, run));
    await this.expect('assign');
    this.send(joinOf(run));
    return this.expect('work');
  }

  destroy(): void {
    this.#socket.destroy();
  }
}

/** A run that clients claim to train: one tensor. */
export interface FloodRun {
  readonly run: string;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly elements: number;
}

function headOf(header: Uint8Array, payloadBytes: number): Uint8Array {
  const frame = new Uint8Array(FRAME_HEAD_MAX + header.length);
  const length = header.length + payloadBytes;
  const start = writeFrameHead(frame, FRAME_HEAD_MAX, {
    ...{ opcode: OPCODES.binary, length, masked: true },
  });
  frame.set(header, FRAME_HEAD_MAX);
  return frame.subarray(start);
}

export function helloOf(
  { name: worker, incarnation }: Pick<FloodClient, 'name' | 'incarnation'>,
  { run, experiment, experimentHash }: FloodRun,
): object {
  return {
    ...{ type: 'hello', worker, incarnation, run, experiments: { [experiment]: experimentHash } },
    ...{ engine: 'none', device: 'none' },
  };
}

/** As the workers of `bench/load.ts` do. */
export function joinOf({ run, experimentHash, elements }: FloodRun): object {
  return {
    ...{ type: 'join', run, experimentHash },
    tensors: [{ name: 'weights', shape: [elements], role: 'trainable' }],
    data: {
      ...{ trainCount: 2 ** 31 - 1, validationCount: 1, testCount: 0 },
      ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
    },
  };
}

export function pushOf(
  { run }: FloodRun,
  { lease, step, generation }: { lease: number; step: number; generation: number },
  sequence = 1,
): object {
  return {
    ...{ type: 'push', run, sequence, lease, step, generation },
    ...{ loss: 1, computeMs: 0, encoding: 'f32' },
  };
}
