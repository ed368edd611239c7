import { JOIN_ASIDES } from '../../shared/asides.ts';
import { decodeFrame, encodeHeader } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import { GROUPS_HEADER } from '../../shared/groups.ts';
import { JOIN_PATHS, TICKET_PROTOCOL, ticketProtocols } from '../../shared/join.ts';
import type { Ticket } from '../../shared/rest.ts';
import { TABLES_HEADER } from '../../shared/tables.ts';
import type { Connection, ConnectionEvents } from '../connection.ts';
import type { DialOptions } from '../handshake.ts';

/**
 * In the place of `../handshake.ts` and `../connection.ts` in a page: the same connection over the browser's own
 * WebSocket. That sends no headers, so who asks is told by a ticket that the page gets for its login.
 */

/** What a worker in a page can do, of what its headers announce. */
const ABILITIES = [GROUPS_HEADER, TABLES_HEADER];
const abilitiesIn = (headers: DialOptions['headers'] = {}) =>
  ABILITIES.filter((name) => headers[name] === 'yes');

/** @see `../handshake.ts`; `path` and `tls` mean nothing here, and of `headers` abilities alone. */
export function dial(options: DialOptions): { abort(): void } {
  let socket: WebSocket | null = null;
  let settled = false;
  const settle = () => {
    if (settled) return false;
    settled = true;
    clearTimeout(timer);
    return true;
  };
  const fail = (error: Error, status: number | null = null, retryAfterSeconds = 0) => {
    if (!settle()) return;
    socket?.close();
    options.failed(error, status, retryAfterSeconds);
  };
  const timer = setTimeout(
    () => fail(new Error(`no answer to the handshake within ${options.handshakeMs / 1000} s`)),
    options.handshakeMs,
  );
  askForTicket(options.url)
    .then((ticket) => {
      if (settled) return;
      if (typeof ticket !== 'string') {
        fail(new Error(ticket.message), ticket.status, ticket.retryAfterSeconds);
        return;
      }
      const opening = new WebSocket(
        options.url,
        ticketProtocols(ticket, abilitiesIn(options.headers)),
      );
      socket = opening;
      opening.binaryType = 'arraybuffer';
      opening.onopen = () => {
        if (opening.protocol !== TICKET_PROTOCOL) {
          fail(new Error('the server does not take tickets'));
        } else if (settle()) new PageConnection(opening).start(options);
      };
      opening.onclose = () => fail(new Error('connection closed'));
    })
    .catch((error) => fail(error instanceof Error ? error : new Error(String(error))));
  return { abort: () => fail(new Error('aborted')) };
}

/** @returns why there is none, where the server says so. @throws TypeError: it does not answer. */
async function askForTicket(
  url: string,
): Promise<
  string | { readonly status: number; readonly message: string; readonly retryAfterSeconds: number }
> {
  const answer = await fetch(httpUrl(url, JOIN_PATHS.ticket), { method: 'POST' });
  if (answer.ok) return ((await answer.json()) as Ticket).ticket;
  const { message } = (await answer.json()) as { message: string };
  // A server of ours says whole seconds, and a page is of such a server.
  const retryAfterSeconds = Number(answer.headers.get('retry-after') ?? 0);
  return { status: answer.status, message, retryAfterSeconds };
}

function httpUrl(url: string, path: string): URL {
  return new URL(path, url.replace(/^ws/, 'http'));
}

type Page = Pick<Connection, 'open' | 'transport' | 'send' | 'close' | 'terminate' | 'ping'>;

class PageConnection implements Page {
  readonly transport = 'tcp';
  readonly #socket: WebSocket;
  #events: ConnectionEvents | null = null;
  #closing = false;

  constructor(socket: WebSocket) {
    this.#socket = socket;
  }

  start(options: DialOptions): void {
    this.#socket.onmessage = ({ data }: MessageEvent<unknown>) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    // Client and ShardLinks use nothing of a connection but what a page has.
    // A page cannot read the header that names what the server takes beside work. Its script is of the server's release.
    this.#events = options.opened(this as unknown as Connection, new Set(JOIN_ASIDES));
  }

  get open(): boolean {
    return !this.#closing && this.#socket.readyState === WebSocket.OPEN;
  }

  send(header: object, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    if (this.open) {
      const head = encodeHeader(header);
      let length = head.length;
      for (const part of parts) length += part.length;
      const frame = new Uint8Array(length);
      frame.set(head);
      let at = head.length;
      for (const part of parts) {
        frame.set(part, at);
        at += part.length;
      }
      this.#socket.send(frame);
    }
    // It was copied; but never before `send` has returned.
    if (gone) queueMicrotask(gone);
  }

  #receive(data: unknown): void {
    // What comes after a close is not delivered.
    if (this.#closing || !this.#events) return;
    this.#events.alive();
    let frame: ReturnType<typeof decodeFrame>;
    try {
      if (!(data instanceof ArrayBuffer)) {
        throw new DownpourError('DP_FRAME_MALFORMED', 'a text message; all are binary');
      }
      frame = decodeFrame(new Uint8Array(data));
    } catch (error) {
      if (!(error instanceof DownpourError)) throw error;
      this.#events.malformed(error);
      return;
    }
    const { header, payload } = frame;
    const landing = payload.length > 0 ? this.#events.land(header, payload.length) : null;
    if (landing === null || typeof landing === 'string') {
      this.#events.message(header, payload, null);
      return;
    }
    landing.bytes.set(payload);
    this.#events.message(header, landing.bytes, landing);
  }

  /** A page can send no ping; whether the server lives is asked of it beside the socket. */
  ping(): void {
    fetch(httpUrl(this.#socket.url, '/health'))
      .then((answer) => answer.ok && this.#events?.alive())
      // No answer is an answer too: it is the silence that counts.
      .catch(() => {});
  }

  close(code: number, reason = ''): void {
    if (this.#closing) return;
    this.#closing = true;
    // A page may say no other code of the protocol than 1000.
    this.#socket.close(code >= 3000 ? code : 1000, reason);
  }

  terminate(): void {
    this.close(1000);
    this.#socket.onclose = null;
    this.#closed(1006, 'connection lost');
  }

  #closed(code: number, reason: string): void {
    const events = this.#events;
    this.#events = null;
    this.#closing = true;
    events?.closed(code, reason || 'connection lost');
  }
}
