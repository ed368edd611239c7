import { expect } from 'vitest';
import type { Run } from '../../server/core/run.ts';
import { codeVersion } from '../../server/fleet/code-version.ts';
import { checkToStandby, type ToStandby } from '../../server/standby/protocol.ts';
import {
  INTRODUCE_BYTES,
  Replication,
  type ReplicationOptions,
} from '../../server/standby/replication.ts';
import { Replicas } from '../../server/standby/standby.ts';
import { bytesOf, decodeFrame, encodeHeader } from '../../shared/codec.ts';
import type { ConnectionEvents } from '../../wire/connection.ts';

/** A standby without sockets: frames are encoded when they are sent and wait until they are told to arrive. */
export class StandbyLink {
  readonly replicas = new Replicas();
  readonly #events: ConnectionEvents;
  readonly #arriving: Uint8Array[] = [];
  #frames = 0;
  open = true;
  bufferedBytes = 0;
  #fullAt: ToStandby['type'] | null;
  readonly #heldBytes: number;
  /** Each message that arrives. */
  heard: (message: ToStandby) => void = () => {};
  /** What the primary closed it with. */
  closedWith: string | null = null;

  /**
   * @param options - `fullAt`: the socket takes nothing more after the first message of that type, until it is drained;
   *   `heldBytes`: so many bytes of each frame wait in it until then
   */
  constructor(
    replication: Replication,
    follow: { mode: 'sync' | 'async'; lagMax: number },
    {
      fullAt = null,
      heldBytes = 0,
    }: { fullAt?: ToStandby['type'] | null; heldBytes?: number } = {},
  ) {
    this.#fullAt = fullAt;
    this.#heldBytes = heldBytes;
    this.#events = replication.accept(this, '192.0.2.9');
    const address = { host: null, port: 7420 };
    this.#say({ type: 'follow', version: codeVersion(), ...follow, address });
  }

  #say(message: object): void {
    const { header } = decodeFrame(encodeHeader(message));
    this.#events.alive();
    this.#events.message(header, new Uint8Array(), null);
  }

  // The primary's end.

  send(header: object, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    const frame = Buffer.concat([encodeHeader(header), ...parts]);
    gone?.();
    this.bufferedBytes += this.#heldBytes;
    if ((header as ToStandby).type === this.#fullAt) {
      this.bufferedBytes = INTRODUCE_BYTES + frame.length;
    }
    if (this.open) this.#arriving.push(frame);
  }

  drain(): void {
    this.#fullAt = null;
    this.bufferedBytes = 0;
  }

  ping(): void {}

  close(_code: number, reason: string): void {
    this.closedWith = reason;
    this.open = false;
  }

  terminate(): void {
    this.open = false;
  }

  // The standby's.

  get waiting(): number {
    return this.#arriving.length;
  }

  /** So many frames arrive and are carried out. */
  arrive(count = Infinity): void {
    for (let i = 0; i < count && this.#arriving.length > 0; i++) {
      const { header, payload } = decodeFrame(this.#arriving.shift()!);
      const message = checkToStandby(header);
      this.heard(message);
      this.replicas.take(message, payload);
      if (message.type !== 'leading') this.#frames++;
    }
  }

  /** Says what it has carried out. */
  answer(): void {
    this.#say({ type: 'carried', frames: this.#frames });
  }

  /** It says that it lives. */
  live(): void {
    this.#events.alive();
  }

  lose(reason = 'connection lost'): void {
    this.open = false;
    this.#events.closed(1006, reason);
  }
}

/** All of a run and its replica are the same, to the bit. */
export function expectEqual(replica: Run | undefined, run: Run): void {
  expect(JSON.stringify(replica?.replica())).toBe(JSON.stringify(run.replica()));
  const bytes = (of: Run) =>
    of
      .replicaVectors()
      .map(([name, values]) => [name, Buffer.from(bytesOf(values)).toString('hex')]);
  expect(bytes(replica!)).toEqual(bytes(run));
}

/** A primary's end with a clock and an owner of the test's. */
export function createReplication(options: Partial<ReplicationOptions> = {}) {
  const clock = { now: 0 };
  const lines: string[] = [];
  const replication = new Replication({
    runs: () => [],
    ...{ token: 7, leaseMs: 2_000, confirm: async () => {}, changed: () => {} },
    now: () => clock.now,
    log: (line) => lines.push(line),
    ...options,
  });
  return { replication, clock, log: () => lines.join('\n') };
}
