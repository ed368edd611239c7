import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { fragmentsOf } from '../../shared/local-steps.ts';
import type { Acknowledgement, ServerMessage, Work } from '../../shared/protocol.ts';
import type { RowsMessage } from '../../shared/row-messages.ts';
import type { Connection } from '../../wire/connection.ts';
import type { Borrowed } from '../access/memory.ts';
import type { Assignment, SentTo } from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import { fragmentBytes } from '../core/snapshot.ts';
import type { RunTables } from '../core/tables/run-tables.ts';
import type { LandingDesk, WaitingLine } from '../payloads/landings.ts';
import type { Replication } from '../standby/replication.ts';

type Assigned = Extract<Assignment, { kind: 'work' }>;
type Writable<T> = { -readonly [K in keyof T]: T[K] };

/** Keys of the rows that a push of a worker wants with its answer: those that are here. */
interface Wanted {
  readonly worker: string;
  readonly sequence: number;
  readonly keys: readonly Uint32Array[];
}

/** Rows of a message. @param capture null: as they are. */
type RowsToRead = [
  tables: RunTables,
  keys: readonly Uint32Array[],
  encoding: 'f32' | 'bf16',
  capture: number | null,
];

/** What the answers to a worker go through. */
export interface Outlet {
  readonly line: WaitingLine;
  /** Null: no standby may follow. */
  readonly replication: Pick<Replication, 'whenSafe'> | null;
}

/** What one worker is sent: answers to its pushes with work and parameters, and all other messages. */
export class WorkerAnswers {
  readonly #connection: Connection;
  readonly #outlet: Outlet;
  readonly #fail: (error: DownpourError) => void;
  /** Pushes that were decided on and not answered: with the next one, which is here already. */
  #decided: { readonly run: Run; readonly acknowledgements: Acknowledgement[] } | null = null;
  /** What the run must know to send no parameters twice. */
  readonly sent: Writable<SentTo>;
  /** Length of the largest payload so far. */
  #answerBytes = 0;
  /** That has memory for the rows of answers: what a socket has been handed is not written to. */
  readonly #desk: Pick<LandingDesk, 'answer'>;
  /** Keys of the rows that the last push of a worker wanted; null: none. */
  #wanted: Wanted | null = null;
  /** How often several shards have sent it rows together. */
  #rowPulls = 0;

  /** @param session by which shards know the worker. @param fail closes it: it does not read. */
  constructor(
    connection: Connection,
    outlet: Outlet,
    session: string,
    desk: Pick<LandingDesk, 'answer'>,
    fail: (error: DownpourError) => void,
  ) {
    this.#connection = connection;
    this.#outlet = outlet;
    this.#desk = desk;
    this.sent = { session, generation: -1, step: -1, base: -1, pulls: 0 };
    this.#fail = fail;
  }

  /** The run has decided on a push; `take` or `acknowledge` follows. @returns how many wait to be answered. */
  add(run: Run, acknowledgement: Acknowledgement): number {
    this.#decided ??= { run, acknowledgements: [] };
    return this.#decided.acknowledgements.push(acknowledgement);
  }

  /** The next work comes with these rows. */
  want(wanted: Wanted): void {
    this.#wanted = wanted;
  }

  /** Number of the next rows that several shards send together. */
  nextRowPull(): number {
    return ++this.#rowPulls;
  }

  /** Some pushes are decided on and not answered. */
  get waits(): boolean {
    return this.#decided !== null;
  }

  /** Takes the acknowledgements of pushes that are decided on and not answered; the caller answers them. */
  take(): Acknowledgement[] {
    const acknowledgements = this.#decided?.acknowledgements ?? [];
    this.#decided = null;
    return acknowledgements;
  }

  /** Tells what became of pushes, and nothing else: the worker may have left the run meanwhile. */
  acknowledge(): void {
    if (!this.#decided) return;
    const { run } = this.#decided;
    this.work(run, this.take(), null);
  }

  /** The worker has no parameters of a run yet. */
  begin(): void {
    this.sent.generation = this.sent.step = this.sent.base = -1;
    this.#wanted = null;
  }

  /** What became of pushes, and what to do next. @param work null: nothing. */
  work(run: Run, acknowledgements: Acknowledgement[], work: Assigned | null): void {
    const payload = work?.payload ?? null;
    const fragment = work?.fragment ?? null;
    if (work) this.#sends(run, work);
    const rows = this.#wanted && work ? this.#rowsFor(run, work) : null;
    const header: Work = {
      type: 'work',
      run: run.id,
      phase: run.phase,
      step: work?.step ?? run.step,
      generation: run.generation,
      acknowledgements,
      leases: work?.leases ?? [],
      evaluation: work?.evaluation ?? null,
      encoding: payload?.encoding ?? 'f32',
      ...(work?.local && { local: work.local }),
      ...(run.frozenGroups && { frozen: [...run.frozenGroups] }),
      ...(fragment !== null && { fragment }),
      ...(rows && { rows: rows.header }),
      pull: work?.pull ?? null,
    };
    if (rows) this.#answerBytes = Math.max(this.#answerBytes, rows.room.bytes.length);
    if (!payload) {
      this.send(header, rows ? [rows.room.bytes] : [], rows?.room.release);
      return;
    }
    // Header and shared payload are never joined in memory.
    const { memory } = this.#outlet.line;
    payload.hold();
    memory.send(payload);
    this.#answerBytes = Math.max(this.#answerBytes, payload.bytes.length);
    const parts =
      fragment === null
        ? [payload.bytes]
        : fragmentBytes(payload, run.rangeLayout!, {
            index: fragment,
            count: fragmentsOf(run.config),
          });
    this.send(header, rows ? [...parts, rows.room.bytes] : parts, () => {
      payload.release();
      memory.sent(payload);
      rows?.room.release();
    });
  }

  /** The rows that the last push wanted. An evaluation asks for its own. */
  #rowsFor(run: Run, { evaluation }: Assigned) {
    const { tables } = run;
    const { worker, keys, sequence } = this.#wanted!;
    if (!tables || evaluation) return null;
    this.#wanted = null;
    run.sendsRows(worker);
    const encoding = tables.pullEncoding;
    const room = this.#readRows(tables, keys, encoding, null);
    const header = { step: tables.rowStep, encoding, bytes: room.bytes.length };
    if (!run.rowParts) return { room, header };
    const pull = this.nextRowPull();
    run.rowParts.sendWanted(this.sent.session, sequence, pull);
    return { room, header: { ...header, pull } };
  }

  #readRows(...[tables, keys, encoding, capture]: RowsToRead): Borrowed {
    let room!: Borrowed;
    tables.read(keys, encoding, capture, (bytes) => {
      room = this.#desk.answer(bytes);
      return room.bytes;
    });
    return room;
  }

  /** Rows that no push has wanted. @param header of the message, without its encoding. */
  rows(header: Omit<RowsMessage, 'type' | 'encoding'>, ...read: RowsToRead): void {
    const [, , encoding] = read;
    const room = this.#readRows(...read);
    this.send({ type: 'rows', ...header, encoding }, [room.bytes], room.release);
  }

  /** Notes what the worker has from now on. */
  #sends({ generation }: Run, { step, evaluation, pull, local, payload }: Assigned): void {
    const { sent } = this;
    if (local?.fragment !== undefined && payload) sent.base = generation;
    sent.generation = evaluation === null ? generation : -1;
    sent.step = evaluation === null ? step : -1;
    if (pull !== null) sent.pulls = pull;
  }

  /**
   * Now, or when the standby has what this tells.
   * @param gone called once: the parts have left, or never will.
   */
  send(message: ServerMessage, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    this.acknowledge();
    const { replication } = this.#outlet;
    if (replication) replication.whenSafe(() => this.#sendNow(message, parts, gone));
    else this.#sendNow(message, parts, gone);
  }

  #sendNow(message: ServerMessage, parts: readonly Uint8Array[], gone?: () => void): void {
    if (!this.#connection.open) {
      gone?.();
      return;
    }
    this.#connection.send(message, parts, gone);
    const { bufferedBytes } = this.#connection;
    // Who does not read answers does not get more of them: nothing that asks for one is read.
    if (bufferedBytes > 2 * this.#answerBytes + LIMITS.unreadBytesMax) this.#connection.hold();
    if (bufferedBytes > LIMITS.bufferedBytesMax) {
      this.#fail(
        new DownpourError(
          'DP_SLOW_READER',
          `${bufferedBytes} bytes wait for this worker; at most ${LIMITS.bufferedBytesMax} may`,
        ),
      );
    }
  }

  /** Nothing more is answered. */
  drop(): void {
    this.#decided = null;
  }
}
