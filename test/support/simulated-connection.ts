import { Budget } from '../../server/access/budget.ts';
import { WorkerSession } from '../../server/fleet/session.ts';
import type { DownpourError } from '../../shared/errors.ts';
import { GROUPS_HEADER } from '../../shared/groups.ts';
import { FRAGMENTS_HEADER, LOCAL_STEPS_HEADER } from '../../shared/local-steps.ts';
import type { Push, ServerMessage } from '../../shared/protocol.ts';
import type { PullRows } from '../../shared/row-messages.ts';
import { ROW_SHARDS_HEADER, TABLES_HEADER } from '../../shared/tables.ts';
import type {
  Connection,
  ConnectionEvents,
  FrameHeader,
  Landing,
  PayloadPlace,
} from '../../wire/connection.ts';
import type { SimulatedWorker } from './simulated-worker.ts';
import type { Simulation } from './simulator.ts';
import { copyOfFields, joinedBytes } from './virtual-network.ts';

const NO_BYTES = new Uint8Array();

export interface Sent {
  readonly header: FrameHeader;
  payload: Uint8Array;
}

/** A connection of a worker to the server. Each direction keeps its order. */
export class SimulatedConnection {
  readonly #simulation: Simulation;
  readonly #worker: SimulatedWorker;
  readonly session: WorkerSession;
  #serverOpen = true;
  #workerOpen = true;
  #lost = false;
  #toServerAt = 0;
  #leavesAt = 0;
  #toWorkerAt = 0;
  /** Messages for the server in their order: one that waits for room holds up all behind it. */
  readonly #arriving: Sent[] = [];
  #landing: { sent: Sent; landing: Landing | null; done: boolean } | null = null;
  /** What the server has sent while it dealt with a message. */
  answers: ServerMessage[] = [];

  constructor(simulation: Simulation, worker: SimulatedWorker) {
    this.#simulation = simulation;
    this.#worker = worker;
    const { coordinator } = simulation.server;
    // Its clock jumps from event to event: nothing takes time.
    const budget = new Budget({ share: 1, burstMs: Number.POSITIVE_INFINITY }, () => 0);
    const end = this.serverEnd as unknown as Connection;
    this.session = new WorkerSession(end, coordinator!, '', null, budget, {
      [GROUPS_HEADER]: 'yes',
      [LOCAL_STEPS_HEADER]: 'yes',
      [FRAGMENTS_HEADER]: 'yes',
      [TABLES_HEADER]: 'yes',
      [ROW_SHARDS_HEADER]: 'yes',
    });
    try {
      coordinator!.workers.opened(this.session);
    } catch (error) {
      this.session.fail(error);
    }
    simulation.connections.add(this);
    simulation.sockets.add(this);
  }

  get #events(): ConnectionEvents {
    return this.session.events;
  }

  // The server's end, as wire/connection.ts has it.

  readonly serverEnd = {
    transport: 'tcp' as const,
    bytes: { received: 0, sent: 0 },
    ...{ bufferedBytes: 0, leftBytes: 0, coming: null, waiting: false },
    isOpen: () => this.#serverOpen,
    get open(): boolean {
      return (this as { isOpen(): boolean }).isOpen();
    },
    send: (message: ServerMessage, parts: readonly Uint8Array[] = [], gone?: () => void) => {
      const simulation = this.#simulation;
      if (simulation.options.sabotage?.outgoing?.(message) === false) {
        gone?.();
        return;
      }
      this.answers.push(message);
      simulation.server.told(this.session.key, message);
      if (message.type === 'work') simulation.server.given(message.leases);
      simulation.server.rowsLeave(message, parts);
      const header = copyOfFields(message) as unknown as FrameHeader;
      // The bytes are read when they leave, not when they are given: nobody may write to them until then.
      this.#leavesAt = Math.max(this.#leavesAt, simulation.now + simulation.delayMs(3));
      simulation.at(this.#leavesAt - simulation.now, () => {
        const payload = joinedBytes(parts);
        gone?.();
        this.#toWorkerAt = Math.max(this.#toWorkerAt, simulation.now + simulation.delayMs(20));
        simulation.at(this.#toWorkerAt - simulation.now, () => {
          if (this.#workerOpen && !this.#lost) this.#worker.receive(this, { header, payload });
        });
      });
    },
    ping: () => {
      const simulation = this.#simulation;
      simulation.at(simulation.delayMs(20), () => {
        if (!this.#workerOpen || this.#lost || !this.#worker.responds) return;
        simulation.at(simulation.delayMs(20), () =>
          simulation.server.enter(() => this.#serverOpen && this.#events.alive()),
        );
      });
    },
    retry: () => this.#arrive(),
    hold: () => {},
    move: () => false,
    close: () => this.#endServer(5),
    terminate: () => this.#endServer(0),
  };

  #endServer(delayMs: number): void {
    if (!this.#serverOpen) return;
    this.#serverOpen = false;
    const simulation = this.#simulation;
    simulation.at(simulation.delayMs(delayMs), () => simulation.server.enter(() => this.#closed()));
    simulation.at(simulation.delayMs(50), () => this.#closeWorker());
  }

  #closedOnce = false;
  /** The server's end is gone: what was landing is given back, as the receiver does. */
  #closed(): void {
    if (this.#closedOnce) return;
    this.#closedOnce = true;
    this.#serverOpen = false;
    this.#simulation.connections.delete(this);
    this.#simulation.sockets.delete(this);
    const landing = this.#landing;
    this.#landing = null;
    this.#arriving.length = 0;
    if (landing && !landing.done) landing.landing?.release();
    this.#events.closed(1006, 'connection lost');
  }

  #closeWorker(): void {
    if (!this.#workerOpen) return;
    this.#workerOpen = false;
    this.#worker.disconnected(this);
  }

  /** Nothing passes any more; each end notices by itself, one of them perhaps much later. */
  cut(): void {
    this.#lost = true;
    const simulation = this.#simulation;
    simulation.connections.delete(this);
    simulation.at(simulation.delayMs(500), () => simulation.server.enter(() => this.#closed()));
    simulation.at(simulation.delayMs(500), () => this.#closeWorker());
  }

  /** The server's process is gone. */
  serverDied(): void {
    this.#serverOpen = false;
    this.#closedOnce = true;
    this.#lost = true;
    this.#simulation.connections.delete(this);
    this.#simulation.sockets.delete(this);
    this.#simulation.at(this.#simulation.delayMs(100), () => this.#closeWorker());
  }

  // The worker's end.

  send(header: object, payload: Uint8Array = NO_BYTES): void {
    if (!this.#workerOpen) return;
    const simulation = this.#simulation;
    const sent = { header: copyOfFields(header) as FrameHeader, payload: payload.slice() };
    this.#toServerAt = Math.max(this.#toServerAt, simulation.now + simulation.delayMs(20));
    simulation.at(this.#toServerAt - simulation.now, () =>
      simulation.server.enter(() => {
        if (!this.#serverOpen || this.#lost) return;
        this.#events.alive();
        this.#arriving.push(sent);
        this.#arrive();
      }),
    );
  }

  /** By the worker. */
  hangUp(): void {
    this.#workerOpen = false;
    const simulation = this.#simulation;
    simulation.at(simulation.delayMs(100), () => simulation.server.enter(() => this.#closed()));
  }

  /** Begins to read the next message, when there is a place for its payload. */
  #arrive(): void {
    if (this.#landing || !this.#serverOpen) return;
    const sent = this.#arriving[0];
    if (!sent) return;
    let place: PayloadPlace = null;
    try {
      if (sent.payload.length > 0) place = this.#events.land(sent.header, sent.payload.length);
    } catch (error) {
      this.#arriving.shift();
      this.#events.malformed(error as DownpourError);
      this.#arrive();
      return;
    }
    if (place === 'wait') return;
    this.#arriving.shift();
    const landing = place === 'nowhere' ? null : place;
    if (place === 'nowhere') sent.payload = NO_BYTES;
    const reading = { sent, landing, done: false };
    this.#landing = reading;
    const simulation = this.#simulation;
    // A payload takes its time, and the connection may be lost in the middle of it.
    simulation.at(sent.payload.length > 0 ? simulation.delayMs(2) : 0, () =>
      simulation.server.enter(() => {
        if (this.#landing !== reading || !this.#serverOpen) return;
        reading.done = true;
        this.#landing = null;
        this.#deliver(sent, landing as Landing | null);
        this.#arrive();
      }),
    );
  }

  #deliver({ header, payload }: Sent, landing: Landing | null): void {
    const { server } = this.#simulation;
    // What it has none for goes to memory of the receiver's.
    const isThere = landing !== null && landing.bytes.length >= payload.length;
    if (isThere) landing.bytes.set(payload);
    const place = isThere ? landing.bytes.subarray(0, payload.length) : payload.slice();
    this.answers = [];
    const before = server.step;
    const { key } = this.session;
    const counted = server.sequenceOf(key);
    const coming = { push: header as unknown as Push, payload: payload.slice() };
    const isWhole = header.type === 'push' && this.#simulation.shards.length === 0;
    if (isWhole) server.lookUp(coming.push);
    if (isWhole) server.rows?.begin(key, coming);
    const { rows } = server;
    rows?.beginAnswers();
    const pulled = header.type === 'pullRows' ? (header as unknown as PullRows) : null;
    const capture = server.captureFor(key, pulled?.evaluation ?? null);
    // Another may follow at once; then this one is answered with it, or when there is none after all.
    const more = this.#simulation.together.uniform() < 0.3;
    this.#events.message(header, place, landing, more);
    if (pulled) rows?.mustHaveRead(capture);
    if (more) this.#events.drained?.();
    if (header.type !== 'push') return;
    const push = header as unknown as Push;
    if (this.#simulation.shards.length > 0) return;
    const counts = counted < push.sequence && server.sequenceOf(key) >= push.sequence;
    server.rows?.end(key, coming, counts);
    server.judge(this, push, { before, after: server.step, counts });
  }
}
