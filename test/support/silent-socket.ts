import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import type { Connection, ConnectionOptions } from '../../wire/connection.ts';
import { accept } from '../../wire/handshake.ts';

/** A socket that leads nowhere: what is written to it is kept, and its other end hangs up when it does. */
export class SilentSocket extends Duplex {
  #written = Buffer.alloc(0);

  override _read(): void {}

  override _write(chunk: Buffer, _: string, done: () => void): void {
    this.#written = Buffer.concat([this.#written, chunk]);
    done();
  }

  override _final(done: () => void): void {
    this.push(null);
    done();
  }

  /** Behind the answer to the handshake. */
  get frames(): Buffer {
    return this.#written.subarray(this.#written.indexOf('\r\n\r\n') + 4);
  }
}

/** The server's end of a connection that nobody else has: its `sink` is to be fed by hand. */
export function acceptSilent(options: Omit<ConnectionOptions, 'role'> = {}): {
  readonly connection: Connection;
  readonly socket: SilentSocket;
} {
  const headers = {
    ...{ host: 'x', connection: 'upgrade', upgrade: 'websocket', 'sec-websocket-version': '13' },
    'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
  };
  const rawHeaders = Object.entries(headers).flat();
  const request = { method: 'GET', httpVersion: '1.1', url: '/ws', headers, rawHeaders };
  const socket = new SilentSocket();
  const connection = accept(
    request as unknown as IncomingMessage,
    socket as unknown as Socket,
    Buffer.alloc(0),
    options,
  )!;
  return { connection, socket };
}
