import { floatsOf } from '../shared/codec.ts';
import { LIMITS } from '../shared/config.ts';
import { DownpourError, ERRORS, errorCode, errorText } from '../shared/errors.ts';
import {
  type Acknowledgement,
  checkWorkerMessage,
  type Evaluated,
  type Hello,
  type Initialised,
  type Join,
  type Leave,
  type Push,
  type ServerMessage,
  type Work,
  type WorkerMessage,
} from '../shared/protocol.ts';
import type { Connection, ConnectionEvents, Header, Landing } from '../wire/connection.ts';
import type { Coordinator } from './coordinator.ts';
import { hashDifference } from './core/agreement.ts';
import type { Run } from './core/run.ts';
import type { Snapshot } from './core/snapshot.ts';

/**
 * One worker's connection: reads its messages, lets the run decide, and sends the answer. Holds no
 * mathematics; every answer is made in the same turn as the message that asked for it.
 */
export class Session {
  readonly #connection: Connection;
  readonly #coordinator: Coordinator;
  readonly connectedAt: string;
  #hello: Hello | null = null;
  /** The run that it was assigned to, and whether it has joined. */
  #run: Run | null = null;
  #joined = false;
  /** Joined and without work: a `wake` of its run looks again. */
  #waiting = false;
  /** The (generation, step) of the parameters it was sent last. */
  #sent: { generation: number; step: number } | null = null;
  /** Runs that it could not take part in. */
  readonly #refused = new Set<string>();
  #lastSeen: number;
  #lastError: { code: string; message: string } | null = null;
  #closed = false;
  #impatient = false;
  /** Where pushes land, when the run has no room for them. */
  #memory: Uint8Array | null = null;

  constructor(connection: Connection, coordinator: Coordinator, connectedAt: string) {
    this.#connection = connection;
    this.#coordinator = coordinator;
    this.connectedAt = connectedAt;
    this.#lastSeen = coordinator.now();
  }

  /** What its connection reports to. */
  readonly events: ConnectionEvents = {
    land: (header, payloadBytes) => this.#land(header, payloadBytes),
    message: (header, payload, landing) => this.#receive(header, payload, landing),
    malformed: (error) => this.fail(error),
    broken: (error) => {
      this.#lastError = { code: error.code, message: error.message };
      this.#coordinator.countError(error.code);
    },
    alive: () => {
      this.#lastSeen = this.#coordinator.now();
    },
    closed: () => this.#gone(),
  };

  get hello(): Hello | null {
    return this.#hello;
  }

  get run(): Run | null {
    return this.#run;
  }

  get joined(): boolean {
    return this.#joined;
  }

  get transport(): 'tcp' | 'unix' {
    return this.#connection.transport;
  }

  get waiting(): boolean {
    return this.#waiting;
  }

  get lastSeen(): number {
    return this.#lastSeen;
  }

  /** It cannot be blamed for its silence: the server itself was held up. */
  excuse(): void {
    this.#lastSeen = this.#coordinator.now();
  }

  get lastError(): { code: string; message: string } | null {
    return this.#lastError;
  }

  /** Names this worker's pushes together with their sequence. */
  get key(): string {
    return this.#hello ? `${this.#hello.worker}/${this.#hello.incarnation}` : '';
  }

  canServe(run: Run): boolean {
    const hello = this.#hello;
    if (!hello || this.#refused.has(run.id)) return false;
    if (hello.run !== null && hello.run !== run.id) return false;
    return hello.experiments[run.options.experiment] === run.options.experimentHash;
  }

  // Receiving.

  /** Where a payload is to be. What is no push is rare, and the receiver's own memory does. */
  #land(header: Header, payloadBytes: number | null): Landing | 'wait' | null {
    const run = this.#joined ? this.#run : null;
    if (header.type !== 'push' || !run?.layout) return null;
    const { exchangedSize, trainableSize } = run.layout;
    // Of a browser's fragments the length is not known before the end.
    const bytes = payloadBytes ?? 4 * exchangedSize;
    // The largest of the encodings.
    if (bytes > 4 * (exchangedSize + trainableSize + 1)) return null;
    const room = run.land(bytes);
    if (room) return { bytes: room.bytes, release: () => this.#giveBack(run, room) };
    if (bytes <= 4 * exchangedSize && !this.#impatient) {
      this.#coordinator.awaitRoom(this);
      return 'wait';
    }
    this.#impatient = false;
    if (!this.#memory || this.#memory.length < bytes) this.#memory = new Uint8Array(bytes);
    return { bytes: this.#memory.subarray(0, bytes), release: () => {} };
  }

  #giveBack(run: Run, room: Landing): void {
    room.release();
    this.#coordinator.roomFreed(run);
  }

  /**
   * Asks again for the room that its push waits for.
   * @param impatient it has waited long enough, behind a worker that stalls: any memory will do.
   */
  retryLanding(impatient: boolean): void {
    this.#impatient = impatient;
    this.#connection.retry();
  }

  #receive(header: Header, payload: Uint8Array, landing: Landing | null): void {
    try {
      if (!this.#closed) this.#handle(checkWorkerMessage(header), payload);
    } catch (error) {
      this.fail(error);
    } finally {
      landing?.release();
    }
  }

  #handle(message: WorkerMessage, payload: Uint8Array): void {
    if (message.type === 'hello') this.#onHello(message);
    else if (!this.#hello) {
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'${message.type}' came before 'hello': say hello first`,
      );
    } else if (message.type === 'leave') this.#onLeave(message);
    else if (message.type === 'join') this.#onJoin(message);
    else this.#work(message, payload);
  }

  #work(message: Push | Initialised | Evaluated, payload: Uint8Array): void {
    if (message.type === 'evaluated') {
      // It took long, and the connection may be a new one that has not joined yet.
      const run = this.#coordinator.mustFind(message.run);
      run.evaluated(message, this.#coordinator.now());
      if (run === this.#run) this.proceed();
      this.#coordinator.settle(run);
      return;
    }
    const run = this.#run;
    if (!run || !this.#joined || message.run !== run.id) {
      // It crossed the end of its run on the wire: the worker knows by now.
      if (this.#coordinator.mustFind(message.run).over) return;
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'${message.type}' for run '${message.run}', which this worker has not joined: join it first`,
      );
    }
    if (message.type === 'push') this.#onPush(run, message, payload);
    else this.#onInitialised(run, message, floatsOf(payload));
    this.#coordinator.settle(run);
  }

  #onHello(hello: Hello): void {
    if (this.#hello) {
      throw new DownpourError('DP_PROTOCOL_ORDER', "a second 'hello' on one connection");
    }
    this.#hello = hello;
    this.#coordinator.welcome(this);
    if (hello.run !== null) {
      const run = this.#coordinator.mustFind(hello.run);
      if (!run.over) this.#mustHaveExperiment(hello, run);
    }
    this.#coordinator.employ(this);
  }

  #mustHaveExperiment(hello: Hello, run: Run): void {
    const { experiment, experimentHash } = run.options;
    const hash = hello.experiments[experiment];
    if (hash === undefined) {
      throw new DownpourError(
        'DP_EXPERIMENT_UNKNOWN',
        `run '${run.id}' needs experiment '${experiment}', which this worker does not have: add its folder with --experiments`,
      );
    }
    if (hash !== experimentHash) {
      throw new DownpourError('DP_EXPERIMENT_MISMATCH', hashDifference(run.options, hash));
    }
  }

  #onJoin(join: Join): void {
    const run = this.#run;
    if (run?.id !== join.run) {
      this.#coordinator.mustFind(join.run);
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'join' for run '${join.run}', which this worker was not assigned to`,
      );
    }
    run.join(this.key, join, this.#coordinator.now());
    this.#joined = true;
    this.#sent = null;
    this.proceed();
    this.#coordinator.settle(run);
  }

  #onInitialised(run: Run, message: Initialised, payload: Float32Array): void {
    run.initialised(this.key, message.grant, payload, this.#coordinator.now());
    this.proceed();
  }

  #onPush(run: Run, push: Push, payload: Uint8Array): void {
    const acknowledgement = run.push(this.key, push, payload, this.#coordinator.now());
    const { code, message } = acknowledgement;
    if (code !== null && message !== null) {
      this.#lastError = { code, message };
      this.#coordinator.recordRejection(run, this.key, push, acknowledgement);
    }
    this.proceed(acknowledgement);
  }

  #onLeave(leave: Leave): void {
    if (leave.failure && this.#run) {
      this.#lastError = leave.failure;
      this.#refused.add(this.#run.id);
      this.#coordinator.log(
        `worker ${this.#hello?.worker} cannot take part in run ${this.#run.id}: ${leave.failure.code} ${leave.failure.message}`,
      );
    }
    this.#dismiss();
    if (leave.failure) this.#coordinator.employ(this);
  }

  // Sending.

  /** Assigns the worker to a run; its `join` follows. */
  assignTo(run: Run): void {
    this.#run = run;
    this.#joined = false;
    this.#waiting = false;
    const { experiment, experimentHash } = run.options;
    this.#send({ type: 'assign', run: run.id, experiment, experimentHash, config: run.config });
  }

  /** Tells the worker that the run is over. */
  end(run: Run): void {
    this.#send({ type: 'end', run: run.id, phase: run.phase, reason: run.reason });
  }

  idle(): void {
    this.#send({ type: 'idle' });
  }

  /** Sends what the worker is to do next, with what became of its push. */
  proceed(acknowledgement: Acknowledgement | null = null): void {
    const run = this.#run;
    if (!run || !this.#joined || this.#closed) return;
    // Minibatches a worker holds: those under way and the one whose data it prepares.
    const ahead = run.config.consistency.depth + 1;
    const assignment = run.assign(this.key, ahead, this.#coordinator.now());
    this.#waiting = assignment.kind === 'wait';
    if (assignment.kind === 'work') {
      const { generation } = run;
      const { step, leases, evaluation, payload, shared } = assignment;
      const known = shared && this.#sent?.generation === generation && this.#sent.step === step;
      this.#sent = evaluation === null ? { generation, step } : null;
      this.#sendWork(run, step, acknowledgement, leases, evaluation, known ? null : payload);
      return;
    }
    if (acknowledgement) this.#sendWork(run, run.step, acknowledgement, [], null, null);
    if (assignment.kind === 'initialise') {
      const { grant, seed } = assignment;
      this.#send({ type: 'initialise', run: run.id, grant, seed });
    } else if (assignment.kind === 'end') {
      this.end(run);
      this.#dismiss();
      this.#coordinator.employ(this);
    }
  }

  #sendWork(
    run: Run,
    step: number,
    acknowledgement: Acknowledgement | null,
    leases: Work['leases'],
    evaluation: Work['evaluation'],
    payload: Snapshot | null,
  ): void {
    const header: Work = {
      type: 'work',
      run: run.id,
      phase: run.phase,
      step,
      generation: run.generation,
      acknowledgement,
      leases,
      evaluation,
      encoding: payload?.encoding ?? 'f32',
    };
    if (!payload) {
      this.#send(header);
      return;
    }
    // Header and shared payload are never joined in memory.
    payload.hold();
    this.#send(header, [payload.bytes], () => payload.release());
  }

  /** @param gone called once: the parts have left, or never will. */
  #send(message: ServerMessage, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    if (!this.#connection.open) {
      gone?.();
      return;
    }
    this.#connection.send(message, parts, gone);
    const { bufferedBytes } = this.#connection;
    if (bufferedBytes > LIMITS.bufferedBytesMax) {
      this.fail(
        new DownpourError(
          'DP_SLOW_READER',
          `${bufferedBytes} bytes wait for this worker; at most ${LIMITS.bufferedBytesMax} may`,
        ),
      );
    }
  }

  /** Tells the worker what went wrong, and closes the connection where the error table says so. */
  fail(error: unknown): void {
    const code = errorCode(error);
    const message =
      code === 'DP_INTERNAL' ? 'internal error; see the server log' : errorText(error);
    if (code === 'DP_INTERNAL') {
      this.#coordinator.log(`defect: ${error instanceof Error ? error.stack : String(error)}`);
    }
    this.#lastError = { code, message };
    this.#coordinator.countError(code);
    if (this.#connection.open) this.#connection.send({ type: 'error', code, message });
    const { close } = ERRORS[code];
    if (close !== null) this.close(close, code);
  }

  ping(): void {
    this.#connection.ping();
  }

  close(code: number, reason: string): void {
    this.#connection.close(code, reason);
  }

  /** The server stops: says so, and hears nothing more. */
  dismissed(code: number, reason: string): void {
    this.close(code, reason);
    this.#gone();
  }

  /** Ends the connection without the closing handshake: the other side does not answer. */
  terminate(): void {
    this.#connection.terminate();
  }

  /** The same worker has connected anew: this connection is dead, whatever its socket says. */
  replaced(): void {
    this.fail(
      new DownpourError(
        'DP_SESSION_REPLACED',
        `another connection of worker '${this.#hello?.worker}' has taken over; give each worker its own --name`,
      ),
    );
    this.#gone();
  }

  /** Takes the worker off its run; its work is given away. */
  #dismiss(): void {
    const run = this.#run;
    this.#run = null;
    this.#joined = false;
    this.#waiting = false;
    if (!run) return;
    run.leave(this.key);
    this.#coordinator.settle(run);
  }

  #gone(): void {
    if (this.#closed) return;
    this.#closed = true;
    const run = this.#run;
    if (run && this.#joined) {
      run.detach(this.key, this.#coordinator.now());
      this.#coordinator.settle(run);
    }
    this.#coordinator.farewell(this);
  }
}
