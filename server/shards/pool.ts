import { setTimeout as delay } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import { bytesOf } from '../../shared/codec.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { ShardAddress } from '../../shared/message-fields.ts';
import type { ServerFacts } from '../../shared/rest.ts';
import type { Connection, FrameHeader } from '../../wire/connection.ts';
import { dial } from '../../wire/handshake.ts';
import { findLocalSocket } from '../../wire/local-socket.ts';
import type { RunShards } from '../core/shard.ts';
import type { ShardCommand } from '../core/shard-command.ts';
import { codeProblem } from '../fleet/code-version.ts';
import {
  checkFromShardControl,
  type FromShardControl,
  type ReadPiece,
  type SavedVectors,
  type ShardReport,
  type ToShardControl,
} from './protocol.ts';
import type { FoundShard, ShardSource } from './sources.ts';

/**
 * The coordinator's connections to all shards but its own: commands go out, reports come in. Each end says at least
 * every `shardBeatMs` that it lives; one that says nothing for too long is lost, as if its connection had broken.
 */

export interface ShardPoolOptions {
  /** All of them, the coordinator's own among them: at least 2. */
  readonly count: number;
  readonly source: ShardSource;
  /** Token of the owner's lease. */
  readonly token: number;
  /** An operator's, as it is now. */
  readonly access: () => string | null;
  /** Null: in the clear. */
  readonly tls: () => ConnectionOptions | null;
  /** Not heard of for so long, a shard is lost. Default: `LIMITS.shardSilenceMs`. */
  readonly silenceMs?: number;
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly log: (line: string) => void;
  /** Opens a connection; default: over the network. */
  readonly dial?: typeof dial;
  readonly timers?: PoolTimers;
}

/** What calls back after, or every, so many ms. Each answers what ends it. Default: the timers of Node. */
export interface PoolTimers {
  after(ms: number, act: () => void): () => void;
  every(ms: number, act: () => void): () => void;
}

const NODE_TIMERS: PoolTimers = {
  after(ms, act) {
    const timer = setTimeout(act, ms);
    return () => clearTimeout(timer);
  },
  every(ms, act) {
    const timer = setInterval(act, ms).unref();
    return () => clearInterval(timer);
  },
};

/** Between two looks at whether there is room for more commands. */
const ROOM_MS = 5;
const HANDSHAKE_MS = 10_000;
const CLOSE_MS = 2_000;

/** A shard that has gone, or is silent. */
interface Lost {
  /** From 1. */
  readonly index: number;
  readonly url: string;
  readonly why: string;
}

class ShardLink {
  readonly index: number;
  readonly found: FoundShard;
  readonly connection: Connection;
  heardMs: number;
  /** What went wrong, as far as it is known. */
  why = '';
  /** It has said that it is taken. */
  taken = false;

  constructor(index: number, found: FoundShard, connection: Connection, now: number) {
    this.index = index;
    this.found = found;
    this.connection = connection;
    this.heardMs = now;
  }
}

export class ShardPool implements RunShards {
  readonly count: number;
  readonly #options: ShardPoolOptions;
  readonly #silenceMs: number;
  /** By index − 1, all of them taken; and those that are being opened. */
  #links: ShardLink[] = [];
  readonly #opening = new Set<{ end(): void }>();
  readonly #endBeat: () => void;
  #beatAt: number;
  /** Addresses of those that have gone or were silent. */
  readonly #suspects = new Set<string>();
  #requests = 0;
  /** What was asked of shards, by the number of the request. */
  readonly #reads = new Map<
    number,
    { resolve(answer: Uint8Array | SavedVectors): void; reject(why: Error): void }
  >();
  /** Who waits until less waits to be sent. */
  #waiting: (() => void)[] = [];
  #closing = false;
  /** Set: all is well. */
  #whole = false;
  #lost: (Lost & { readonly sinceMs: number }) | null = null;
  /** What a shard reports. */
  report: (index: number, report: ShardReport) => void = () => {};
  /** A shard is gone, and with it a part of every run. Told once, until `open` is called again. */
  lost: (why: string) => void = () => {};

  constructor(options: ShardPoolOptions) {
    this.#options = options;
    this.count = options.count;
    this.#silenceMs = options.silenceMs ?? LIMITS.shardSilenceMs;
    this.#beatAt = options.now();
    const beatMs = Math.min(LIMITS.shardBeatMs, this.#silenceMs / 4);
    this.#endBeat = this.#timers.every(beatMs, () => this.#tick(beatMs));
  }

  get #timers(): PoolTimers {
    return this.#options.timers ?? NODE_TIMERS;
  }

  /** Where workers find the other shards. */
  get addresses(): ShardAddress[] {
    return this.#links.map(({ found }) => found.address);
  }

  /** All shards are connected. */
  get whole(): boolean {
    return this.#whole;
  }

  facts(): NonNullable<ServerFacts['shards']> {
    const { count, whole } = this;
    if (!this.#lost) return { count, whole, lost: null };
    const { sinceMs, ...lost } = this.#lost;
    return { count, whole, lost: { ...lost, seconds: (this.#options.now() - sinceMs) / 1000 } };
  }

  /** Connects to all shards. @throws DownpourError DP_SHARD_LOST or what the source throws. */
  async open(): Promise<void> {
    const { source, log } = this.#options;
    for (const { connection } of this.#links) connection.terminate();
    this.#links = [];
    for (let tries = 1; ; tries++) {
      const before = new Set(this.#suspects);
      const found = await source.find(this.count, before);
      this.#mustNotClose();
      const opened = await Promise.allSettled(found.map((shard, i) => this.#connect(i + 1, shard)));
      const links = opened.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
      const failure = opened.find(({ status }) => status === 'rejected') as PromiseRejectedResult;
      if (!failure && !this.#closing) {
        this.#links = links;
        break;
      }
      for (const { connection } of links) connection.terminate();
      this.#mustNotClose();
      // There may be others to take in the place of those that failed.
      if (found.some(({ url }) => before.has(url)) || tries === this.count) throw failure.reason;
      log(errorText(failure.reason));
    }
    for (const { found } of this.#links) this.#suspects.delete(found.url);
    this.#whole = true;
    this.#lost = null;
    log(
      `${this.count} shards: this server, ${this.#links.map(({ found }) => this.#reached(found)).join(', ')}`,
    );
    const dead = this.#links.find(({ connection }) => !connection.open);
    if (dead) this.#lose(dead, 'it has gone at once');
  }

  #mustNotClose(): void {
    if (!this.#closing) return;
    throw new DownpourError('DP_SERVER_STOPPING', 'this server is stopping: it opens no shards');
  }

  /** Shards have TLS where this server has it. */
  #reached({ url }: FoundShard): string {
    return this.#options.tls() ? url.replace(/^ws:/, 'wss:') : url;
  }

  async #connect(index: number, found: FoundShard): Promise<ShardLink> {
    const { access, tls: secure, now, token, dial: open = dial } = this.#options;
    const given = access();
    const tls = secure();
    const url = this.#reached(found);
    const path = await findLocalSocket(url);
    return new Promise((resolve, reject) => {
      let endTimer = () => {};
      let settled = false;
      const opening = { end: () => dialing.abort() };
      const settle = () => {
        settled = true;
        endTimer();
        this.#opening.delete(opening);
      };
      const fail = (why: string) => {
        settle();
        this.#suspects.add(found.url);
        reject(new DownpourError('DP_SHARD_LOST', `shard ${index} at ${url}: ${why}`));
      };
      const dialing = open({
        url: `${url}/control`,
        ...(tls ? { tls } : {}),
        path,
        handshakeMs: HANDSHAKE_MS,
        closeMs: CLOSE_MS,
        headers: given === null ? {} : { authorization: `Bearer ${given}` },
        opened: (connection) => {
          const link = new ShardLink(index, found, connection, now());
          opening.end = () => connection.terminate();
          // It may take connections and do nothing more: one that is stopped does.
          endTimer = this.#timers.after(HANDSHAKE_MS, () => {
            link.why = `it does not say that it is taken within ${HANDSHAKE_MS / 1000} s`;
            connection.terminate();
          });
          const { count } = this;
          connection.send({ type: 'take', index, count, token } satisfies ToShardControl);
          return {
            land: (_, bytes) =>
              bytes === null ? null : { bytes: new Uint8Array(bytes), release: () => {} },
            message: (header, payload) => {
              try {
                this.#receive(link, header, payload);
              } catch (error) {
                link.why = errorText(error);
                connection.close(1007, 'DP_FRAME_MALFORMED');
              }
              if (settled || !link.taken) return;
              settle();
              resolve(link);
            },
            malformed: (error) => {
              link.why = error.message;
              connection.terminate();
            },
            broken: (error) => {
              link.why = error.message;
            },
            alive: () => {
              link.heardMs = now();
            },
            closed: (_, reason) => {
              if (!settled) fail(link.why || reason);
              else if (this.#links[index - 1] === link) this.#lose(link, link.why || reason);
            },
          };
        },
        failed: (error) => fail(errorText(error)),
      });
      this.#opening.add(opening);
    });
  }

  /** Says that this end lives, and asks who is silent. */
  #tick(beatMs: number): void {
    const now = this.#options.now();
    const pauseMs = now - this.#beatAt - beatMs;
    this.#beatAt = now;
    for (const link of this.#links) {
      // What has come during a pause of our own has not been read yet.
      if (pauseMs > this.#silenceMs / 2) link.heardMs = now;
      link.connection.ping();
      if (now - link.heardMs <= this.#silenceMs) continue;
      link.why = `no message from it for ${this.#silenceMs / 1000} s`;
      link.connection.terminate();
    }
  }

  #lose({ index, found }: ShardLink, why: string): void {
    this.#suspects.add(found.url);
    if (this.#closing || !this.#whole) return;
    this.#whole = false;
    const url = this.#reached(found);
    this.#lost = { index, url, why, sinceMs: this.#options.now() };
    const what = `shard ${index} at ${url} has gone (${why})`;
    for (const { reject } of this.#reads.values()) {
      reject(new DownpourError('DP_SHARD_LOST', what));
    }
    this.#reads.clear();
    this.lost(what);
  }

  /** @throws DownpourError DP_FRAME_MALFORMED, or what the shard says went wrong. */
  #receive(link: ShardLink, header: FrameHeader, payload: Uint8Array): void {
    const message: FromShardControl = checkFromShardControl(header);
    if (message.type === 'failed') link.why = `${message.code} ${message.message}`;
    else if (message.type === 'taken') {
      const problem = codeProblem(message.version, 'it');
      if (problem === null) link.taken = true;
      else {
        link.why = problem;
        link.connection.close(1002, 'DP_PROTOCOL_VERSION');
      }
    } else if (!link.taken) {
      throw new DownpourError('DP_PROTOCOL_ORDER', `'${message.type}' came before 'taken'`);
    } else if (message.type !== 'read' && message.type !== 'listed') {
      this.report(link.index, message);
    } else {
      const read = this.#reads.get(message.request);
      this.#reads.delete(message.request);
      const found = message.type === 'listed' ? message.vectors : message.found && payload;
      if (found) read?.resolve(found);
      else {
        read?.reject(new DownpourError('DP_SHARD_LOST', 'the shard has not kept this checkpoint'));
      }
    }
  }

  tell(parts: number, command: ShardCommand): void {
    for (let index = 1; index < parts; index++) this.tellOne(index, command);
  }

  /** @param values of a `write`: not changed until `drained`. */
  tellOne(index: number, command: ShardCommand, values?: Float32Array): void {
    this.#send(index, { type: 'command', command }, values);
  }

  #send(index: number, message: ToShardControl, values?: Float32Array): void {
    this.#links[index - 1]?.connection.send(message, values ? [bytesOf(values)] : []);
  }

  /** Too much waits to be sent to some shard: rows that workers give, or the keys of rows that they ask for. */
  get isFull(): boolean {
    const most = LIMITS.shardUnsentBytesMax;
    return this.#links.some(({ connection }) => connection.open && connection.bufferedBytes > most);
  }

  /** Calls back once, when there is room again. */
  whenRoom(act: () => void): void {
    this.#waiting.push(act);
    if (this.#waiting.length === 1) this.#timers.after(ROOM_MS, () => this.#lookForRoom());
  }

  #lookForRoom(): void {
    if (this.isFull) {
      this.#timers.after(ROOM_MS, () => this.#lookForRoom());
      return;
    }
    for (const act of this.#waiting.splice(0)) act();
  }

  /** Resolves when little waits to be sent to a shard. */
  async drained(index: number): Promise<void> {
    const connection = this.#links[index - 1]?.connection;
    while (connection?.open && connection.bufferedBytes > 0) await delay(1);
    if (!connection?.open) throw new DownpourError('DP_SHARD_LOST', `shard ${index} has gone`);
  }

  /** A worker is told this session in a moment. */
  admit(session: string): void {
    for (let index = 1; index < this.count; index++) this.#send(index, { type: 'admit', session });
  }

  /** A worker's connection is lost. */
  leave(session: string): void {
    for (let index = 1; index < this.count; index++) this.#send(index, { type: 'leave', session });
  }

  /** A piece of what a `save` has kept. @throws DownpourError DP_SHARD_LOST. */
  async read(index: number, of: Omit<ReadPiece, 'type' | 'request'>): Promise<Uint8Array> {
    return (await this.#ask(index, { type: 'read', ...of })) as Uint8Array;
  }

  /** Names and elements of what a `save` has kept. @throws DownpourError DP_SHARD_LOST. */
  async list(index: number, run: string, id: number): Promise<SavedVectors> {
    return (await this.#ask(index, { type: 'list', run, id })) as SavedVectors;
  }

  #ask(
    index: number,
    of: Omit<ReadPiece, 'request'> | { type: 'list'; run: string; id: number },
  ): Promise<Uint8Array | SavedVectors> {
    if (!this.#whole) {
      return Promise.reject(new DownpourError('DP_SHARD_LOST', `shard ${index} has gone`));
    }
    const request = ++this.#requests;
    return new Promise((resolve, reject) => {
      this.#reads.set(request, { resolve, reject });
      this.#send(index, { request, ...of });
    });
  }

  async close(): Promise<void> {
    this.#closing = true;
    this.#endBeat();
    for (const opening of this.#opening) opening.end();
    for (const { connection } of this.#links) connection.close(1000);
    await this.#options.source.close();
  }
}
