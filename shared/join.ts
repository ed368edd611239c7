/** What the page `/join`, the worker that runs in it, and the server say to each other beside the protocol. */

export const JOIN_PATHS = {
  /** The page. */
  page: '/join',
  /** Its script, without anything of the experiments. */
  script: '/join.js',
  /** Where a page gets a ticket for the WebSocket. */
  ticket: '/join/ticket',
  /** What a worker in a page is made of, by name: for workers alone. */
  files: '/join/files/',
} as const;

/** The worker's script among the files. */
export const JOIN_WORKER = 'worker.js';

// A page's WebSocket sends no header of ours but the subprotocols it offers.

/** The subprotocol that both agree on where a ticket is shown. */
export const TICKET_PROTOCOL = 'downpour.ticket';
const PREFIX = `${TICKET_PROTOCOL}.`;

/** @param abilities names of headers by which other workers announce what they can do. */
export const ticketProtocols = (ticket: string, abilities: readonly string[] = []): string[] => [
  TICKET_PROTOCOL,
  PREFIX + ticket,
  ...abilities,
];

/** The subprotocols that a handshake offers. @param offered `Sec-WebSocket-Protocol`. */
export const offeredProtocols = (offered: string | undefined): readonly string[] =>
  (offered ?? '').split(',').map((each) => each.trim());

/** The ticket in what a handshake offers; null: there is none. @param offered `Sec-WebSocket-Protocol`. */
export function ticketOf(offered: string | undefined): string | null {
  const protocols = offeredProtocols(offered);
  if (!protocols.includes(TICKET_PROTOCOL)) return null;
  return protocols.find((each) => each.startsWith(PREFIX))?.slice(PREFIX.length) ?? null;
}

// Between the page and its worker.

/** Begin. */
export interface JoinPageOptions {
  /** `http://host:port` */
  readonly server: string;
  readonly engine: JoinPageEngine;
  /** Also on an adapter of WebGPU that is a program, for tests. */
  readonly softwareGpu: boolean;
}

/** What a page can train with, best first. */
export const JOIN_ENGINES = ['webgpu', 'wasm', 'cpu'] as const;
export type JoinPageEngine = (typeof JOIN_ENGINES)[number] | 'auto';

export type ToJoinWorker =
  | ({ readonly type: 'start' } & JoinPageOptions)
  /** Hands its leases back and ends. */
  | { readonly type: 'stop' };

export type FromJoinWorker =
  | {
      readonly type: 'engine';
      readonly name: string;
      readonly device: string;
      readonly notes: readonly string[];
    }
  | { readonly type: 'experiments'; readonly names: readonly string[]; readonly worker: string }
  | { readonly type: 'log'; readonly line: string }
  | ({ readonly type: 'progress' } & JoinPageProgress)
  /** It will do nothing more. */
  | { readonly type: 'stopped' }
  | { readonly type: 'failed'; readonly code: string; readonly message: string };

export interface JoinPageProgress {
  readonly run: string;
  readonly phase: string;
  readonly step: number;
  /** The loss of the newest minibatch; null: not finite. */
  readonly loss: number | null;
  /** Since the start: gradients sent, and what the server did with them. */
  readonly pushes: number;
  readonly applied: number;
  readonly rejected: number;
  /** The staleness of the newest push that was answered. */
  readonly staleness: number | null;
  readonly minibatchesPerSecond: number;
  readonly examples: number;
}
