import { bytesOf, packPayload } from '../../shared/codec.ts';
import { DownpourError, ERRORS, errorCode, errorText } from '../../shared/errors.ts';
import type { ServerAddress } from '../../shared/message-fields.ts';
import { isFinal } from '../../shared/phases.ts';
import type { StandbyFacts } from '../../shared/rest.ts';
import type { Connection, ConnectionEvents } from '../../wire/connection.ts';
import { isLoopback } from '../../wire/local-socket.ts';
import { Memories } from '../../wire/memories.ts';
import { CALLS, type RunCall, type RunFollower } from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import { codeProblem, codeVersion } from '../fleet/code-version.ts';
import {
  CALLS_MAX,
  checkFromStandby,
  type Follow,
  type FromStandby,
  type ToStandby,
} from './protocol.ts';

/**
 * The primary's end of a hot standby: tells it all runs, then each call of them, in their order. Answers to
 * workers wait here for as long as the standby is further behind than was agreed on. What a server does alone,
 * without a standby, costs nothing here. See docs/decisions/0011-standby.md.
 */

/** A vector goes in pieces of so many elements. */
const PIECE_ELEMENTS = 2 ** 22;
/** Bytes that a standby may lack, whatever was agreed on: they wait in memory. */
export const UNCARRIED_BYTES_MAX = 2 ** 28;
/** Answers that wait for a standby, of all workers. Each has a few under way; one who asks for more is not read. */
export const HELD_MAX = 2 ** 16;
/** Not heard of for so long, a standby is lost and the primary goes on without it. */
export const STANDBY_TIMEOUT_MS = 2_000;
/** So many times longer it may take over one frame; and be silent, or get nowhere, while it is told the runs. */
const SLOW = 8;
/** A standby says what it is within this time of its connection. */
const FOLLOW_MS = 10_000;
/** One that got nowhere is not let in again for as long as it had; each time for twice as long, up to: */
const DISTRUST_MS_MAX = 600_000;
/** Both ends say at least so often that they live. */
export const BEAT_MS = 250;
const CONFIRM_RETRY_MS = 250;
const INTRODUCE_MS = 20;
/** Runs are told in one turn until so many bytes wait in the socket; then others have their turn. */
export const INTRODUCE_BYTES = 2 ** 18;
const SETTLE_MS = 10;

type StandbyConnection = Pick<
  Connection,
  'send' | 'open' | 'close' | 'terminate' | 'ping' | 'bufferedBytes'
>;

export interface ReplicationOptions {
  readonly runs: () => readonly Run[];
  readonly token: number;
  readonly leaseMs: number;
  /** Resolves when the store says that this server is still the owner; else throws. */
  readonly confirm: () => Promise<void>;
  /**
   * Writes down who follows, or that nobody does: for whoever starts this server again.
   * @throws DownpourError DP_DISK
   */
  readonly note?: (by: string | null) => Promise<void>;
  /** What a run's experiment was sent as. @throws DownpourError: it is not there. */
  readonly bundle?: (sha256: string) => Promise<Uint8Array>;
  /** The standby has come or gone: workers are told its address. */
  readonly changed: () => void;
  readonly now: () => number;
  readonly log: (line: string) => void;
  readonly timeoutMs?: number;
  /** After so many ms; like `setTimeout`. */
  readonly later?: (ms: number, act: () => void) => void;
}

/** A frame that has not been carried out yet. */
interface Uncarried {
  readonly pushes: number;
  /** Bytes of pushes: training can make them faster than they are carried out. */
  readonly bytes: number;
  readonly atMs: number;
}

interface Standby {
  readonly link: StandbyConnection;
  readonly follow: Follow;
  readonly address: ServerAddress;
  readonly from: string;
  readonly sinceMs: number;
  /** Told whole, and followed from then on. */
  readonly introduced: Set<Run>;
  /** Bundles that it has been told, or is going to be. */
  readonly bundles: Set<string>;
  /** The frame after which it is a standby; null: not all has been said yet. */
  introducedAt: number | null;
  /** It has all, and that is being written down. */
  noted: boolean;
  frames: number;
  carried: number;
  readonly uncarried: Uncarried[];
  heardMs: number;
  /** When it last carried out a frame, or took bytes. */
  progressMs: number;
  /** That waited to be sent at the last look. */
  buffered: number;
}

type ReplicationState = 'alone' | 'receiving' | 'following' | 'parting';

export class Replication {
  readonly #options: ReplicationOptions;
  readonly #timeoutMs: number;
  readonly #later: (ms: number, act: () => void) => void;
  #state: ReplicationState = 'alone';
  #standby: Standby | null = null;
  /** There was one, and it is gone: since when, and why. */
  #missing: { readonly sinceMs: number; readonly why: string; readonly from: string } | null = null;
  /** Told to the standby, and carried out by it. */
  #pushes = 0;
  #carriedPushes = 0;
  #uncarriedBytes = 0;
  /** Calls of one run, in the order they were made, to be sent at the end of this turn. */
  #batch: { run: Run; calls: RunCall[]; payload: ReturnType<Memories['take']> | null } | null =
    null;
  #flushing = false;
  readonly #payloads = new Memories(4);
  /** Bundles, one after the other. */
  #bundling: Promise<void> = Promise.resolve();
  /** Who waits until the standby has carried out more. */
  readonly #waiting: (() => void)[] = [];
  /** What is for workers and must not leave yet, in its order. */
  #held: { readonly pushes: number; readonly act: () => void }[] = [];
  /** The first of them at the last look, and since when it is the first. */
  #first: { readonly held: object; readonly sinceMs: number } | null = null;
  /** Standbys that got nowhere one after the other, and until when none is let in. */
  #distrust = { times: 0, untilMs: Number.NEGATIVE_INFINITY };
  /** Connections that have not said what they are, and since when. */
  readonly #strangers = new Map<StandbyConnection, number>();
  #tickedAt: number;

  constructor(options: ReplicationOptions) {
    this.#options = options;
    this.#timeoutMs = options.timeoutMs ?? STANDBY_TIMEOUT_MS;
    this.#later = options.later ?? ((ms, act) => void setTimeout(act, ms).unref());
    this.#tickedAt = options.now();
  }

  // What a session asks.

  /**
   * Does it now, or when the standby has carried out enough. All that is told to workers goes through here, in
   * its order.
   */
  whenSafe(act: () => void): void {
    if (this.#held.length === 0 && !this.#mustWait(this.#pushes)) act();
    else this.#held.push({ pushes: this.#pushes, act });
  }

  /** So much waits for the standby that no message of a worker is to be read. */
  get isFull(): boolean {
    return this.#isFarBehind || this.#held.length > HELD_MAX;
  }

  get #isFarBehind(): boolean {
    return this.#uncarriedBytes > UNCARRIED_BYTES_MAX;
  }

  /** Calls back once, when the standby has carried out enough, or this server goes on alone. */
  whenRoom(act: () => void): void {
    this.#waiting.push(act);
  }

  /** Something for workers waits. */
  get holding(): boolean {
    return this.#held.length > 0;
  }

  /**
   * Set: the pushes that the standby may lack. From the moment on at which all runs are on their way: it may take
   * over as soon as they have come, before this server hears that they have.
   */
  get #lagMax(): number | null {
    const standby = this.#standby;
    return standby && standby.introducedAt !== null ? standby.follow.lagMax : null;
  }

  #mustWait(pushes: number): boolean {
    if (this.#state === 'alone') return false;
    if (this.#state === 'parting' || this.#isFarBehind) return true;
    const lagMax = this.#lagMax;
    return lagMax !== null && pushes - this.#carriedPushes > lagMax;
  }

  #release(): void {
    while (this.#held.length > 0 && !this.#mustWait(this.#held[0]!.pushes)) {
      this.#held.shift()!.act();
    }
    if (!this.isFull) for (const act of this.#waiting.splice(0)) act();
  }

  // What the coordinator tells.

  /** A run that is new here. */
  began(run: Run): void {
    if (this.#standby && this.#standby.introducedAt !== null) this.#introduce(this.#standby, run);
  }

  forget(run: Run): void {
    run.follow(null);
    if (this.#standby?.introduced.delete(run)) this.#frame({ type: 'forget', run: run.id });
  }

  /** Call about four times a second. */
  tick(): void {
    const now = this.#options.now();
    const pauseMs = now - this.#tickedAt;
    this.#tickedAt = now;
    for (const [link, sinceMs] of this.#strangers) {
      if (now - sinceMs <= FOLLOW_MS + pauseMs) continue;
      this.#strangers.delete(link);
      link.close(ERRORS.DP_PROTOCOL_ORDER.close, 'DP_PROTOCOL_ORDER');
    }
    const standby = this.#standby;
    if (!standby) return;
    standby.link.ping();
    // What has come during a pause of our own has not been read yet.
    if (pauseMs > this.#timeoutMs / 2) standby.heardMs = now;
    const isReceiving = this.#state === 'receiving';
    const silenceMs = isReceiving ? SLOW * this.#timeoutMs : this.#timeoutMs;
    if (now - standby.heardMs > silenceMs) {
      this.#lose(standby, `no message from it for ${silenceMs / 1000} s`);
      return;
    }
    const [oldest] = standby.uncarried;
    const slowMs = SLOW * this.#timeoutMs;
    const lateMs = slowMs + pauseMs;
    if (!isReceiving && oldest && now - oldest.atMs > lateMs) {
      this.#lose(standby, `it is more than ${slowMs / 1000} s behind`);
    } else if (now - this.#waitingSince(now) > lateMs) {
      this.#giveUp(standby, `answers to workers wait for it for more than ${slowMs / 1000} s`);
    } else if (isReceiving && now - this.#progressOf(standby, now) > lateMs) {
      this.#giveUp(standby, `it has carried nothing out for ${slowMs / 1000} s`);
    }
  }

  /** Since when what is for workers waits; now: nothing does. To the nearest look. */
  #waitingSince(now: number): number {
    const [held = null] = this.#held;
    if (held !== (this.#first?.held ?? null)) this.#first = held && { held, sinceMs: now };
    return this.#first?.sinceMs ?? now;
  }

  /** When it last got on with what it is told; now: it has all of it. */
  #progressOf(standby: Standby, now: number): number {
    const { bufferedBytes } = standby.link;
    const isIdle = standby.uncarried.length === 0 && bufferedBytes === 0;
    if (isIdle || bufferedBytes !== standby.buffered) standby.progressMs = now;
    standby.buffered = bufferedBytes;
    return standby.progressMs;
  }

  /** It holds up the workers, and would again if it came back at once. */
  #giveUp(standby: Standby, why: string): void {
    const times = this.#distrust.times + 1;
    const forMs = Math.min(DISTRUST_MS_MAX, SLOW * this.#timeoutMs * 2 ** (times - 1));
    this.#distrust = { times, untilMs: this.#options.now() + forMs };
    this.#lose(standby, `${why}; none is let in for ${forMs / 1000} s`);
  }

  /** Resolves when the standby has all that was told so far, or is lost. */
  async whenIdle(): Promise<void> {
    this.#flush();
    const { frames = 0 } = this.#standby ?? {};
    const standby = this.#standby;
    while (standby && this.#standby === standby && standby.carried < frames) {
      await new Promise<void>((resolve) => this.#later(SETTLE_MS, resolve));
    }
  }

  close(): void {
    const standby = this.#standby;
    this.#standby = null;
    this.#held = [];
    this.#state = 'alone';
    for (const run of standby?.introduced ?? []) run.follow(null);
    standby?.link.close(1012, 'the primary stops');
  }

  /** Where workers go when this server is not reached. */
  get addresses(): ServerAddress[] {
    return this.#standby ? [this.#standby.address] : [];
  }

  facts(): StandbyFacts | null {
    const standby = this.#standby;
    const since = (ms: number) => Math.max(0, (this.#options.now() - ms) / 1000);
    if (standby) {
      const { mode, lagMax } = standby.follow;
      return {
        // REST calls it so.
        state: this.#state === 'receiving' ? 'joining' : 'following',
        ...{ address: standby.from, mode, lagMax, seconds: since(standby.sinceMs), reason: null },
        behind: { pushes: this.#pushes - this.#carriedPushes, bytes: this.#uncarriedBytes },
      };
    }
    if (!this.#missing) return null;
    const { sinceMs, why, from } = this.#missing;
    return {
      state: this.#state === 'parting' ? 'parting' : 'lost',
      ...{ address: from, mode: null, lagMax: null, seconds: since(sinceMs), reason: why },
      behind: { pushes: 0, bytes: 0 },
    };
  }

  // The standby's connection.

  /** @throws DownpourError DP_LIMIT: there is a standby already. */
  mustHaveRoom(): void {
    if (!this.#standby) return;
    throw new DownpourError(
      'DP_LIMIT',
      `${this.#standby.from} is the standby of this server; one is allowed`,
    );
  }

  /** @param from its address, as the socket has it. */
  accept(link: StandbyConnection, from: string): ConnectionEvents {
    let standby: Standby | null = null;
    let asked = false;
    const take = (message: FromStandby) => {
      if (message.type === 'carried') {
        if (standby) this.#carried(standby, message.frames);
        else if (!asked) {
          throw new DownpourError('DP_PROTOCOL_ORDER', "'carried' came before 'follow'");
        }
      } else if (asked) {
        throw new DownpourError('DP_PROTOCOL_ORDER', "a second 'follow' on one connection");
      } else {
        asked = true;
        this.#strangers.delete(link);
        standby = this.#attach(link, message, from);
      }
    };
    const refuse = (error: unknown) => {
      const code = errorCode(error);
      const what =
        code === 'DP_INTERNAL' && error instanceof Error ? error.stack : errorText(error);
      this.#options.log(`what the standby at ${from} says is not understood: ${code} ${what}`);
      link.close(ERRORS[code].close ?? 1011, code);
      if (standby) this.#lose(standby, `${code} ${errorText(error)}`);
    };
    this.#strangers.set(link, this.#options.now());
    return {
      land: () => null,
      message: (header) => {
        try {
          take(checkFromStandby(header));
        } catch (error) {
          refuse(error);
        }
      },
      malformed: refuse,
      broken: () => {},
      alive: () => {
        if (standby) standby.heardMs = this.#options.now();
      },
      closed: (_, reason) => {
        this.#strangers.delete(link);
        if (standby) this.#lose(standby, reason);
      },
    };
  }

  #attach(link: StandbyConnection, follow: Follow, from: string): Standby | null {
    const { now, log, token, leaseMs, changed } = this.#options;
    const refuse = (code: number, why: string) => {
      link.close(code, why);
      return null;
    };
    const problem = codeProblem(follow.version, 'the standby');
    if (problem !== null) return refuse(1002, problem);
    // Another one was quicker, or the last one is not settled yet.
    if (this.#standby || this.#state !== 'alone') return refuse(1013, 'not now');
    if (now() < this.#distrust.untilMs) return refuse(1013, 'the last one got nowhere');
    link.send({ type: 'leading', version: codeVersion(), token, leaseMs } satisfies ToStandby);
    const host = follow.address.host ?? (isLoopback(from) ? null : from);
    const address = { host, port: follow.address.port };
    const standby: Standby = {
      ...{ link, follow, address, sinceMs: now(), introduced: new Set(), bundles: new Set() },
      introducedAt: null,
      noted: false,
      ...{ from: `${from}:${address.port}`, frames: 0, carried: 0, uncarried: [] },
      ...{ heardMs: now(), progressMs: now(), buffered: 0 },
    };
    this.#standby = standby;
    this.#state = 'receiving';
    this.#missing = null;
    log(`a standby has connected from ${standby.from}; it is receiving all runs`);
    this.#introduceAll(standby);
    changed();
    return standby;
  }

  /**
   * Many small runs in one turn; of large ones one after the other, so that the vectors of all of them are not copied at
   * once. The standby counts from when all has left: workers do not wait for what is still on its way.
   */
  #introduceAll(standby: Standby): void {
    if (this.#standby !== standby) return;
    const { link } = standby;
    const runs = this.#options.runs();
    const others = runs.filter((run) => !standby.introduced.has(run));
    for (const run of others) {
      if (link.bufferedBytes >= INTRODUCE_BYTES) break;
      this.#introduce(standby, run);
    }
    const isAll = others.every((run) => standby.introduced.has(run));
    if (!isAll || link.bufferedBytes > 0) {
      this.#later(INTRODUCE_MS, () => this.#introduceAll(standby));
      return;
    }
    this.#frame({ type: 'introduced', runs: runs.map(({ id }) => id) });
    standby.introducedAt = standby.frames;
  }

  /** A run as it is at this moment; each call of it follows. */
  #introduce(standby: Standby, run: Run): void {
    // Calls of others come before it.
    this.#flush();
    for (const [name, live] of run.replicaVectors()) {
      const values = live.slice();
      for (let start = 0; start < values.length; start += PIECE_ELEMENTS) {
        const piece = bytesOf(values.subarray(start, start + PIECE_ELEMENTS));
        const { length } = values;
        this.#frame({ type: 'vector', run: run.id, name, start, length }, piece);
      }
    }
    const { payload, bytes } = packPayload(run.replica());
    this.#frame({ type: 'run', run: run.id, bytes }, payload);
    standby.introduced.add(run);
    const follower: RunFollower = (call, payload) => this.#called(run, call, payload);
    run.follow(follower);
    this.#tellBundle(standby, run);
  }

  /** Beside the runs: it is read from disk, one after the other. */
  #tellBundle(standby: Standby, { phase, options: { bundle: sha256 } }: Run): void {
    const { bundle, log } = this.#options;
    if (!bundle || sha256 === undefined || isFinal(phase) || standby.bundles.has(sha256)) return;
    standby.bundles.add(sha256);
    this.#bundling = this.#bundling.then(async () => {
      if (this.#standby !== standby) return;
      try {
        const content = await bundle(sha256);
        const payload = new Uint8Array(4 * Math.ceil(content.length / 4));
        payload.set(content);
        if (this.#standby !== standby) return;
        this.#frame({ type: 'bundle', sha256, bytes: content.length }, payload);
      } catch (error) {
        log(`the standby is not told of bundle ${sha256}: ${errorText(error)}`);
      }
    });
  }

  #called(run: Run, call: RunCall, payload: Uint8Array): void {
    const batch = this.#batch;
    // A frame has at most one call that is large or has a payload.
    const { large = false, payload: isCarrier = false } = CALLS[call.call];
    const isFull = batch !== null && (batch.run !== run || batch.calls.length >= CALLS_MAX);
    if (isFull || large || isCarrier) this.#flush();
    this.#batch ??= { run, calls: [], payload: null };
    this.#batch.calls.push(call);
    if (payload.length > 0) {
      // Where it lies now others land in a moment.
      this.#batch.payload = this.#payloads.take(payload.length);
      this.#batch.payload.bytes.set(payload);
    }
    if (call.call === 'push') this.#pushes++;
    if (this.#flushing) return;
    this.#flushing = true;
    // At the end of the stretch in which the run was called.
    queueMicrotask(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    const batch = this.#batch;
    if (!batch) return;
    this.#batch = null;
    const { run, calls, payload } = batch;
    const { step, generation } = run;
    const pushes = calls.filter(({ call }) => call === 'push').length;
    const bytes = payload?.bytes ?? new Uint8Array();
    const gone = () => payload?.release();
    const message = { type: 'calls', run: run.id, calls, step, generation } as const;
    this.#frame(message, bytes, { pushes, counted: bytes.length, gone });
  }

  #frame(
    message: ToStandby,
    bytes: Uint8Array = new Uint8Array(),
    { pushes = 0, counted = 0, gone = () => {} } = {},
  ): void {
    const standby = this.#standby;
    if (!standby) {
      gone();
      return;
    }
    standby.frames++;
    standby.uncarried.push({ pushes, bytes: counted, atMs: this.#options.now() });
    this.#uncarriedBytes += counted;
    standby.link.send(message, bytes.length > 0 ? [bytes] : [], gone);
  }

  /** @throws DownpourError DP_PROTOCOL_ORDER: it has not been told so many. */
  #carried(standby: Standby, frames: number): void {
    if (this.#standby !== standby) return;
    if (frames > standby.frames) {
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `${frames} frames were reported as processed; ${standby.frames} were sent`,
      );
    }
    if (frames > standby.carried) standby.progressMs = this.#options.now();
    while (standby.carried < frames) {
      const { pushes, bytes } = standby.uncarried.shift()!;
      standby.carried++;
      this.#carriedPushes += pushes;
      this.#uncarriedBytes -= bytes;
    }
    const { introducedAt, noted } = standby;
    if (!noted && introducedAt !== null && standby.carried >= introducedAt) {
      standby.noted = true;
      const { note } = this.#options;
      if (note) void this.#note(standby, note);
      else this.#followed(standby);
    }
    this.#release();
  }

  /** It counts from when the state folder says so. */
  async #note(standby: Standby, note: (by: string) => Promise<void>): Promise<void> {
    try {
      await note(standby.from);
      if (this.#standby === standby) this.#followed(standby);
    } catch (error) {
      this.#options.log(`it cannot be noted that ${standby.from} follows: ${errorText(error)}`);
      this.#later(CONFIRM_RETRY_MS, () => {
        if (this.#standby === standby) void this.#note(standby, note);
      });
    }
  }

  #followed({ follow, from }: Standby): void {
    this.#state = 'following';
    this.#distrust = { times: 0, untilMs: Number.NEGATIVE_INFINITY };
    const what =
      follow.mode === 'sync'
        ? 'no push is answered before it has it'
        : `it may lag by up to ${follow.lagMax} pushes`;
    this.#options.log(`the standby ${from} has all runs; ${what}`);
  }

  #lose(standby: Standby, why: string): void {
    if (this.#standby !== standby) return;
    const { log, now, changed } = this.#options;
    this.#standby = null;
    this.#batch?.payload?.release();
    this.#batch = null;
    this.#uncarriedBytes = 0;
    this.#pushes = 0;
    this.#carriedPushes = 0;
    for (const run of standby.introduced) run.follow(null);
    this.#missing = { sinceMs: now(), why, from: standby.from };
    log(`the standby ${standby.from} is lost (${why})`);
    standby.link.terminate();
    this.#state = 'parting';
    changed();
    this.#part();
  }

  /**
   * It may have taken over: nothing is answered before the store has said that this server still owns the
   * state. From then on the standby cannot own it before the lease has lapsed.
   */
  #part(): void {
    if (this.#state !== 'parting') return;
    this.#options.confirm().then(
      () => {
        if (this.#state !== 'parting') return;
        this.#state = 'alone';
        // Where it stays, who starts again waits in vain, and no more.
        this.#options.note?.(null).catch((error: unknown) => this.#options.log(errorText(error)));
        this.#options.log('continuing alone: no other server has the updates from now on');
        this.#release();
      },
      (error: unknown) => {
        // Who is told that it is the owner no more ends.
        if (errorCode(error) === 'DP_STATE_FENCED') return;
        this.#options.log(`the owner of the state is unknown; answers wait: ${errorText(error)}`);
        this.#later(CONFIRM_RETRY_MS, () => this.#part());
      },
    );
  }
}
