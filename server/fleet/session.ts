import { randomBytes } from 'node:crypto';
import { floatsOf } from '../../shared/codec.ts';
import { workerConfig } from '../../shared/config.ts';
import { encodeFacts, forWorkers } from '../../shared/data-facts.ts';
import { DownpourError, ERRORS, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { kindOfDefect } from '../../shared/log.ts';
import type { Observed } from '../../shared/observed.ts';
import {
  type Assign,
  checkWorkerMessage,
  type Evaluated,
  type Hello,
  type Initialised,
  type Join,
  type Leave,
  type Push,
  type WorkerMessage,
} from '../../shared/protocol.ts';
import type { WorkerSummary } from '../../shared/rest.ts';
import type { InitialRows, PullRows } from '../../shared/row-messages.ts';
import type {
  Connection,
  ConnectionEvents,
  FrameHeader,
  Landing,
  PayloadPlace,
} from '../../wire/connection.ts';
import type { Budget } from '../access/budget.ts';
import type { LandingRoom } from '../core/landing-rooms.ts';
import {
  AssignCall,
  type InitialLanded,
  PushCall,
  type PushPartsLanded,
} from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import { keep, LandingDesk } from '../payloads/landings.ts';
import { Payloads } from '../payloads/payloads.ts';
import { WorkerAnswers } from './answers.ts';
import { MachineReport } from './asides.ts';
import { Brakes } from './brakes.ts';
import { Charges } from './charges.ts';
import type { Fleet } from './fleet.ts';
import { PushParts } from './push-parts.ts';
import { Retries } from './retries.ts';
import { noTables, RowPulls } from './row-pulls.ts';
import {
  type Abilities,
  abilitiesOf,
  aheadOf,
  hasExperiment,
  helloBytes,
  mayServeOthers,
  missingExperiments,
  workerKey,
} from './suitability.ts';

/**
 * One worker's connection: reads its messages, lets the run decide, and sends the answer. Holds no
 * mathematics; every answer is made in the same turn as the message that asked for it.
 */
export class WorkerSession {
  readonly #connection: Connection;
  readonly #fleet: Fleet<WorkerSession>;
  readonly connectedAt: string;
  readonly holder: string | null;
  /** What it can do that workers of older releases cannot. */
  readonly able: Abilities;
  #hello: Hello | null = null;
  #key = '';
  #pushCall = new PushCall('');
  #assignCall: AssignCall;
  /** The run that it was assigned to, and whether it has joined. */
  #run: Run | null = null;
  /** The run that it was assigned to last. One that was removed gives its memory back. */
  #served: WeakRef<Run> | null = null;
  #joined = false;
  /** Joined and without work: a `wake` of its run looks again. */
  #waiting = false;
  /** Runs that it could not take part in. */
  readonly #refused = new Set<string>();
  #lastSeen: number;
  #lastError: WorkerSummary['lastError'] = null;
  readonly machine = new MachineReport();
  #quarantine: string | null = null;
  #closed = false;
  /** Shards know the worker by it. */
  readonly id = randomBytes(8).toString('hex');
  /** Its pushes and initial parameters, where they come in parts. */
  readonly parts: PushParts;
  readonly #desk: LandingDesk;
  readonly #charges: Charges;
  readonly #brakes: Brakes;
  /** What is dealt with now is work that the server asked for. */
  #asked = false;
  readonly #retries = new Retries();
  readonly #rowPulls = new RowPulls();
  /** What its `hello` takes, as long as it is connected. */
  #helloBytes = 0;
  readonly #payloads: Payloads;
  readonly #answers: WorkerAnswers;
  #more = false;

  /**
   * @param holder of the token that it came with; null: the server has no tokens.
   * @param budget of the holder, for messages that nobody asked for.
   * @param headers of its handshake.
   */
  constructor(
    connection: Connection,
    fleet: Fleet<WorkerSession>,
    connectedAt: string,
    holder: string | null,
    budget: Budget,
    headers: Parameters<typeof abilitiesOf>[0] = {},
  ) {
    this.holder = holder;
    this.able = abilitiesOf(headers);
    this.#connection = connection;
    this.#fleet = fleet;
    this.connectedAt = connectedAt;
    this.#lastSeen = fleet.now();
    this.#desk = new LandingDesk(fleet.line, connection, holder, (error) => {
      const who = this.#hello ? `worker ${this.#hello.worker}` : 'a connection';
      fleet.log(`${who} is closed: ${error.code} ${error.message}`, {
        ...{ level: 'warn', code: error.code },
        ...(this.#hello ? { worker: this.#hello.worker } : {}),
      });
      this.fail(error);
    });
    const fail = (error: unknown) => this.fail(error);
    this.#answers = new WorkerAnswers(connection, fleet, this.id, this.#desk, fail);
    this.#assignCall = new AssignCall('', this.#answers.sent);
    this.#payloads = new Payloads(this.#desk);
    this.parts = new PushParts(this.id, {
      accepts: (run) => this.#run === run && this.#joined,
      push: (run, push, payload, room, others) => this.#onPush(run, push, payload, room, others),
      initialised: (run, grant, payload, others) =>
        this.#onInitialised(run, grant, payload, others),
      followUp: (run) => fleet.followUp(run),
      fail: (error) => this.fail(error),
    });
    this.#brakes = new Brakes(connection);
    this.#charges = new Charges({
      ...{ budget, connection, brakes: this.#brakes, now: fleet.now },
      halted: () => fleet.workers.throttled(this),
    });
  }

  /** What its connection reports to. */
  readonly events: ConnectionEvents = {
    land: (header, payloadBytes) => this.#land(header, payloadBytes),
    memory: (change) => this.#desk.grew(change),
    message: (header, payload, landing, more) => this.#receive(header, payload, landing, more),
    malformed: (error) => {
      this.fail(error);
      this.#charges.other();
    },
    reading: () => this.#charges.begin(),
    read: (begun) => this.#charges.read(begun),
    control: () => this.#charges.other(),
    broken: (error) => {
      this.#charges.broken();
      this.#wentWrong(error);
      this.#fleet.reports.countError(error.code);
    },
    alive: () => {
      this.#lastSeen = this.#fleet.now();
    },
    drained: () => this.#answer(),
    closed: () => {
      this.#charges.begin();
      this.#gone();
      this.#charges.end();
    },
  };

  /** False: it is being closed. */
  get connected(): boolean {
    return this.#connection.open;
  }

  get hello(): Hello | null {
    return this.#hello;
  }

  get run(): Run | null {
    return this.#run;
  }

  /** The run that it works for, or did last. */
  get served(): Run | null {
    return this.#served?.deref() ?? null;
  }

  get joined(): boolean {
    return this.#joined;
  }

  get wire(): Pick<Connection, 'transport' | 'bytes'> {
    return this.#connection;
  }

  get waiting(): boolean {
    return this.#waiting;
  }

  get lastSeen(): number {
    return this.#lastSeen;
  }

  /** Whether it stands still for what it has sent, or ends for that. */
  get charges(): Pick<Charges, 'stands' | 'isAtFault'> {
    return this.#charges;
  }

  /** It is not read until others get on: those of its token, or who its messages are passed on to. */
  get isBraked(): boolean {
    return this.#charges.stands || this.#brakes.waits;
  }

  /** The same, or it waits for a place, or has not read its answers. */
  get standsStill(): boolean {
    return this.isBraked || this.#connection.waiting || this.#connection.holding;
  }

  /** Closes it where it sends, or reads, too slowly. @param windowMs in which it must get on. */
  look(now: number, windowMs: number): void {
    const problem = this.connected ? this.#desk.problem(now, windowMs) : null;
    if (problem) this.#fleet.line.memory.close(this.#desk.account, problem);
  }

  /** It cannot be blamed for its silence: the server itself was held up. */
  excuse(): void {
    this.#lastSeen = this.#fleet.now();
  }

  /** Why its run takes nothing from it any more. */
  get quarantine(): string | null {
    return this.#quarantine;
  }

  /** Null again once a push was applied: what held it up is past. */
  get lastError(): WorkerSummary['lastError'] {
    return this.#lastError;
  }

  #wentWrong({ code, message }: { readonly code: string; readonly message: string }): void {
    this.#lastError = { code, message, at: new Date().toISOString() };
  }

  /** Names this worker's pushes together with their sequence. */
  get key(): string {
    return this.#key;
  }

  canServe(run: Run): boolean {
    return this.isFit(run) && run.quarantine(this.key) === null;
  }

  /** It could serve the run, whatever the run thinks of it. */
  isFit(run: Run): boolean {
    const hello = this.#hello;
    if (!hello || this.#refused.has(run.id)) return false;
    if (hello.run !== null && hello.run !== run.id) return false;
    return hasExperiment(hello, run);
  }

  // Receiving.

  /** Where a payload is to be. @throws DownpourError: it may not be there, or is too large. */
  #land(header: FrameHeader, payloadBytes: number | null): PayloadPlace {
    const key = this.#joined ? this.#key : null;
    const place = this.#payloads.place(header, payloadBytes, this.#run, key);
    if (header.type === 'join' && place !== null && typeof place === 'object') {
      this.#charges.facts(payloadBytes ?? place.bytesMax ?? 0);
    }
    return place;
  }

  #receive(header: FrameHeader, payload: Uint8Array, landing: Landing | null, more = false): void {
    let kept = false;
    this.#more = more;
    this.#asked = false;
    try {
      if (!this.#closed) kept = this.#handle(checkWorkerMessage(header), payload, landing);
    } catch (error) {
      this.fail(error);
    } finally {
      if (!kept) landing?.release();
      this.#more = false;
      if (this.#asked) this.#charges.forgive();
      else {
        this.#fleet.workers.unasked++;
        this.#charges.message(header);
      }
      this.#brakes.yieldTo(this.#fleet.shardBacklog);
      this.#brakes.yieldTo(this.#fleet.replication);
    }
  }

  /** @returns whether the landing is in use. */
  #handle(message: WorkerMessage, payload: Uint8Array, landing: Landing | null): boolean {
    if (message.type === 'hello') this.#onHello(message);
    else if (!this.#hello) {
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'${message.type}' came before 'hello': say hello first`,
      );
    } else if (message.type === 'leave') this.#onLeave(message);
    else if (message.type === 'join') this.#onJoin(message, payload);
    else if (message.type === 'observed') this.#onObserved(message);
    else if (message.type === 'machine') {
      this.#asked = this.machine.take(message, this.#fleet.now());
    } else if (message.type === 'pullRows') this.#onPullRows(message, payload);
    else if (message.type === 'initialRows') this.#onInitialRows(message, payload);
    else return this.#work(message, payload, landing);
    return false;
  }

  /** A sample for a run that the worker has left is of no more use. */
  #onObserved(observed: Observed): void {
    if (this.#joined && this.#run?.id === observed.run) {
      const now = this.#fleet.now();
      this.#asked = this.#run.call({ call: 'sampled', worker: this.key, observed, now });
    }
  }

  #work(
    message: Push | Initialised | Evaluated,
    payload: Uint8Array,
    landing: Landing | null,
  ): boolean {
    const run = this.#run;
    if (!run || !this.#joined || message.run !== run.id) {
      // It took long, and the connection may be a new one that has not joined yet: it is asked for once more.
      if (message.type === 'evaluated') return false;
      // It crossed the end of its run on the wire: the worker knows by now.
      if (this.#fleet.find(message.run)?.over || this.#fleet.wasRemoved(message.run)) return false;
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'${message.type}' for run '${message.run}', which this worker has not joined: join it first`,
      );
    }
    if (message.type === 'evaluated') {
      const [worker, now] = [this.key, this.#fleet.now()];
      const at = new Date().toISOString();
      const { shown, ...result } = message;
      this.#asked = run.call({ call: 'evaluated', worker, result, now, at });
      if (this.#asked) this.#fleet.asides.offer(run.id, shown);
      this.proceed();
    } else if (message.type === 'push') {
      const room = this.#desk.arrived(landing);
      if (run.rangeCount > 1) {
        this.#asked = run.isLeased(message.lease, this.key);
        this.parts.push(run, message, keep(payload, landing), { landing, room });
        return true;
      }
      this.#onPush(run, message, payload, room);
    } else if (run.rangeCount > 1) {
      this.parts.initialised(run, message.grant, floatsOf(payload));
    } else this.#onInitialised(run, message.grant, payload);
    this.#fleet.followUp(run);
    return false;
  }

  /** @throws DownpourError DP_ROWS_INVALID, DP_PROTOCOL_ORDER. */
  #onPullRows({ run: named, request, evaluation }: PullRows, payload: Uint8Array): void {
    const run = this.#run;
    if (!run || !this.#joined || named !== run.id) {
      // It crossed the end of its run on the wire, or the connection is a new one: the worker asks again.
      return;
    }
    const { id, generation, tables, rowParts } = run;
    if (!tables) throw noTables('pullRows', id);
    this.#asked = run.isAtWork(this.key) && this.#rowPulls.allow(evaluation);
    const keys = tables.readKeys(payload);
    const capture = run.evaluatedCapture(this.key, evaluation);
    const encoding = capture === null ? tables.pullEncoding : 'f32';
    const pull = rowParts ? this.#answers.nextRowPull() : undefined;
    const to = { session: this.id, pull: pull ?? 0, encoding, capture };
    const own = rowParts ? rowParts.send(keys, to) : keys;
    if (capture === null) run.sendsRows(this.key);
    const part = pull === undefined ? {} : { pull };
    const header = { run: id, request, step: tables.rowStep, generation, ...part };
    this.#answers.rows(header, tables, own, encoding, capture);
  }

  /** @throws DownpourError as of the call. */
  #onInitialRows({ run: named, grant }: InitialRows, payload: Uint8Array): void {
    const run = this.#run;
    if (!run || !this.#joined || named !== run.id) return;
    if (!run.tables) throw noTables('initialRows', run.id);
    const call = { call: 'initialRows', worker: this.key, grant } as const;
    if (!this.#beginsWith(() => run.call(call, payload)) && this.connected) this.proceed();
    this.#fleet.followUp(run);
  }

  /** @returns false: what the worker has given to begin with cannot be used. It is told, and waits for another one's. */
  #beginsWith(take: () => boolean): boolean {
    try {
      this.#asked = take();
      return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
  }

  #onHello(hello: Hello): void {
    if (this.#hello) {
      throw new DownpourError('DP_PROTOCOL_ORDER', "a second 'hello' on one connection");
    }
    this.#fleet.workers.mustBeItsName(hello, this.holder);
    this.#hello = hello;
    // It is kept as long as the connection lasts.
    this.#helloBytes = helloBytes(hello);
    this.#fleet.line.memory.change(this.#desk.account, this.#helloBytes);
    this.#key = workerKey(hello, this.holder);
    this.#pushCall = new PushCall(this.#key);
    this.#assignCall = new AssignCall(this.#key, this.#answers.sent);
    this.#fleet.workers.welcome(this);
    this.tellStandby();
    this.#fleet.place(this);
  }

  #onJoin(join: Join, payload: Uint8Array): void {
    const run = this.#run;
    if (run?.id !== join.run) {
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'join' for run '${join.run}', which this worker was not assigned to`,
      );
    }
    if (this.#joined) {
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `a second 'join' for run '${join.run}': join once for each 'assign'`,
      );
    }
    try {
      const now = this.#fleet.now();
      run.call({ call: 'join', worker: this.key, join, now }, payload);
    } catch (error) {
      if (!mayServeOthers(error, this.#hello!)) throw error;
      this.#unsuited(run, error);
      return;
    }
    this.#joined = true;
    if (join.engine !== undefined) this.#hello = { ...this.#hello!, engine: join.engine };
    this.#fleet.asides.joined(run.id, this.#hello!);
    this.#answers.begin();
    // First what the worker has told: once it is answered, it remembers the new life alone.
    this.#fleet.followUp(run);
    this.proceed();
    this.#fleet.followUp(run);
  }

  #unsuited(run: Run, { code, message }: DownpourError): void {
    this.#fleet.reports.countError(code);
    this.#failed(run, { code, message });
    const reason = `not for this worker: ${code} ${message}`.slice(0, 2000);
    this.#answers.send({ type: 'end', run: run.id, phase: run.phase, reason });
    this.#dismiss();
    this.#fleet.workers.employ(this);
  }

  /** It was assigned to the run and could not do the work. */
  #failed(run: Run, failure: { readonly code: string; readonly message: string }): void {
    this.#fleet.reports.workerFailed(run, this.#hello!.worker, failure);
    this.cannotServe(run, failure);
  }

  /** It is not assigned to this run any more; it is told to people. */
  cannotServe(run: Run, failure: { readonly code: string; readonly message: string }): void {
    const { code, message } = failure;
    this.#wentWrong(failure);
    this.#refused.add(run.id);
    const { worker } = this.#hello!;
    this.#fleet.log(`worker ${worker} cannot take part in run ${run.id}: ${code} ${message}`, {
      ...{ level: 'warn', run: run.id, code, kind: `cannot take part ${code}`, worker },
    });
  }

  #onInitialised(
    run: Run,
    grant: number,
    payload: Uint8Array,
    others: InitialLanded | null = null,
  ): void {
    const now = this.#fleet.now();
    const call = { call: 'initialised', worker: this.key, grant, now, others } as const;
    this.#beginsWith(() => run.call(call, payload));
    if (this.connected) this.proceed();
  }

  #onPush(
    run: Run,
    push: Push,
    payload: Uint8Array,
    room: LandingRoom | null,
    others: PushPartsLanded | null = null,
  ): void {
    const now = this.#fleet.now();
    const { tables } = run;
    const rowStepSent = tables === null ? 0 : run.rowStepSent(this.key);
    const answer = run.call(this.#pushCall.of(push, now, room, others, rowStepSent), payload);
    const wanted = tables?.takeWanted() ?? null;
    const acknowledgement = this.#payloads.explain(run, answer);
    const seconds = (this.#fleet.now() - now) / 1000;
    this.#fleet.reports.pushed(run, this.key, push, acknowledgement, seconds);
    const { outcome, code, message } = acknowledgement;
    const isApplied = outcome === 'applied' || outcome === 'damped';
    this.#asked = isApplied || (code !== null && this.#retries.allow(run, push, code));
    if (isApplied) this.#lastError = null;
    if (code !== null && message !== null) {
      this.#wentWrong({ code, message });
      run.mustBeTrusted(this.key);
    }
    if (wanted !== null) {
      this.#answers.want({ worker: this.key, sequence: push.sequence, keys: wanted });
    }
    const count = this.#answers.add(run, acknowledgement);
    // Pushes that came together are answered together, with one pull.
    const isLast = !this.#more || run.config.consistency.depth === 1;
    if (isLast || count === LIMITS.leasesPerWorkerMax) this.proceed(now);
  }

  #onLeave(leave: Leave): void {
    if (leave.failure && this.#run) this.#failed(this.#run, leave.failure);
    this.#dismiss();
    if (leave.failure) this.#fleet.workers.employ(this);
  }

  // Sending.

  /** Assigns the worker to a run; its `join` follows. */
  assignTo(run: Run): void {
    this.#run = run;
    this.#served = new WeakRef(run);
    this.#joined = false;
    this.#fleet.workers.admit(this);
    this.#waiting = false;
    const { experiment, experimentHash } = run.options;
    const facts = run.givenFacts;
    const assign: Assign = {
      type: 'assign',
      run: run.id,
      experiment,
      experimentHash,
      config: workerConfig(run.config),
      session: this.id,
      shards: this.#fleet.shardAddresses(),
    };
    if (facts) this.#answers.send({ ...assign, facts: 'json' }, [encodeFacts(forWorkers(facts))]);
    else this.#answers.send(assign);
  }

  /** Tells the worker that the run is over. */
  end(run: Run): void {
    this.#answers.send({ type: 'end', run: run.id, phase: run.phase, reason: run.reason });
  }

  /** Where to go when this server is not reached. */
  tellStandby(): void {
    const servers = this.#fleet.replication?.addresses ?? [];
    if (servers.length === 0) return;
    this.#answer();
    this.#answers.send({ type: 'standby', servers });
  }

  idle(): void {
    const missing = missingExperiments(this.#hello!, this.#fleet.unfinished, (run) =>
      this.able.bundles === null ? null : this.#fleet.experiments.of(run),
    );
    this.#answers.send({ type: 'idle', ...(missing.length > 0 ? { missing } : {}) });
  }

  /** Tells what became of pushes, if it is not known, and what to do next. */
  #answer(): void {
    if (this.#answers.waits) this.proceed();
    this.#answers.acknowledge();
  }

  /** Sends what the worker is to do next, with what became of its pushes. */
  proceed(now: number = this.#fleet.now()): void {
    const run = this.#run;
    if (!run || !this.#joined || this.#closed) return;
    const acknowledgements = this.#answers.take();
    const assignment = run.call(this.#assignCall.of(aheadOf(run.config), now));
    this.#waiting = assignment.kind === 'wait';
    if (assignment.kind === 'work') {
      if (run.tables) this.#rowPulls.given(assignment, run.evaluationExamples);
      this.#answers.work(run, acknowledgements, assignment);
      return;
    }
    if (acknowledgements.length > 0) this.#answers.work(run, acknowledgements, null);
    if (assignment.kind === 'initialise') {
      const { grant, seed } = assignment;
      run.vector.grantParts(this.id, grant);
      const frozen = run.frozenGroups ? { frozen: [...run.frozenGroups] } : {};
      this.#answers.send({ type: 'initialise', run: run.id, grant, seed, ...frozen });
    } else if (assignment.kind === 'end') {
      this.end(run);
      this.#dismiss();
      this.#fleet.workers.employ(this);
    }
  }

  /** Tells the worker what went wrong, and closes the connection where the error table says so. */
  fail(error: unknown): void {
    const code = errorCode(error);
    const message =
      code === 'DP_INTERNAL' ? 'internal error; see the server log' : errorText(error);
    if (code === 'DP_INTERNAL') {
      this.#fleet.log(`defect: ${error instanceof Error ? error.stack : String(error)}`, {
        ...{ level: 'error', code, kind: kindOfDefect(error) },
        ...(this.#hello ? { worker: this.#hello.worker } : {}),
      });
    }
    this.#wentWrong({ code, message });
    if (code === 'DP_QUARANTINED') this.#quarantine = message;
    this.#fleet.reports.countError(code);
    this.#answer();
    if (this.#connection.open) this.#connection.send({ type: 'error', code, message });
    const { close } = ERRORS[code];
    if (close === null) return;
    this.#charges.closing(close);
    this.close(close, code);
  }

  ping(): void {
    this.#connection.ping();
  }

  close(code: number, reason: string): void {
    this.#answers.acknowledge();
    this.#charges.closing();
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
        `another connection of the same process of worker '${this.#hello?.worker}' has taken over`,
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
    // It has the place where the last push landed.
    this.#pushCall = new PushCall(this.#key);
    this.parts.leave(run);
    run.call({ call: 'leave', worker: this.key });
    this.#fleet.followUp(run);
  }

  #gone(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#answers.drop();
    const run = this.#run;
    this.#desk.leave();
    this.#charges.leave();
    this.#brakes.leave();
    this.#fleet.line.memory.change(null, -this.#helloBytes);
    this.parts.clear();
    if (run && this.#joined) {
      run.call({ call: 'detach', worker: this.key, now: this.#fleet.now() });
      this.#fleet.followUp(run);
    }
    this.#fleet.workers.farewell(this);
  }
}
