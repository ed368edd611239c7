import { createHash, randomBytes } from 'node:crypto';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { encodingOf } from '../../shared/compression.ts';
import { workerConfig } from '../../shared/config.ts';
import { encodeFacts } from '../../shared/data-facts.ts';
import {
  DownpourError,
  ERRORS,
  type ErrorCode,
  errorCode,
  errorText,
} from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { kindOfDefect } from '../../shared/log.ts';
import {
  type Acknowledgement,
  type Assign,
  checkWorkerMessage,
  type Evaluated,
  type Hello,
  type Initialised,
  type Join,
  type Leave,
  type Observed,
  type Push,
  type ServerMessage,
  type Work,
  type WorkerMessage,
} from '../../shared/protocol.ts';
import type { WorkerSummary } from '../../shared/rest.ts';
import type {
  Connection,
  ConnectionEvents,
  Header,
  Landing,
  Place,
} from '../../wire/connection.ts';
import { type Budget, Meter } from '../access/budget.ts';
import { hashDifference } from '../core/agreement.ts';
import { payloadLimits } from '../core/parameters.ts';
import {
  AssignCall,
  type Assignment,
  type InitialLanded,
  type PartsLanded,
  PushCall,
} from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import { partsMax } from '../core/shard.ts';
import { keep, LandingDesk } from '../payloads/landings.ts';
import { mustFit, payloadMax } from '../payloads/payloads.ts';
import type { Coordinator } from './coordinator.ts';
import { Gathering, type PartReport } from './gathering.ts';

/** What tells a worker's pushes from all others': its name, its process, and whose token it has, if there are tokens. */
function keyOf({ worker, incarnation }: Hello, holder: string | null): string {
  if (holder === null) return `${worker}/${incarnation}`;
  return `${worker}/${incarnation}/${createHash('sha256').update(holder).digest('hex').slice(0, 16)}`;
}

/** Why a push of a minibatch that the worker holds may be rejected: it is to be pushed again. */
const TO_RETRY: ReadonlySet<string> = new Set<ErrorCode>([
  'DP_PUSH_STALE',
  'DP_GRADIENT_NOT_FINITE',
  'DP_GRADIENT_TOO_LARGE',
  'DP_PUSH_SHARE',
  'DP_DIVERGED',
]);

/** Its files, or the bundle that they were sent as. */
function hasExperiment({ experiments }: Hello, { options }: Run): boolean {
  const hash = experiments[options.experiment];
  return hash !== undefined && (hash === options.experimentHash || hash === options.bundle);
}

/**
 * Bytes that nobody asked for cost as much as to read so many of them: to copy them out of the kernel and into memory
 * that grows is not seen by who measures what is done with them.
 */
const UNASKED_BYTES_PER_MS = 2 ** 19;
/** Each of what a worker says when it comes may take so long, ms, at nobody's charge. */
const ENTRY_MS = 1;
/** Close codes of a connection whose messages are none, or not what the protocol has there. */
const FAULTS: ReadonlySet<number> = new Set([1002, 1007, 1009]);

/** Between a worker and one run; another run may have the same. */
const DIFFERENT: readonly ErrorCode[] = ['DP_LAYOUT_MISMATCH', 'DP_DATA_MISMATCH'];

/** What an experiment of a `hello` takes beside its letters. */
const ENTRY_BYTES = 100;

/**
 * One worker's connection: reads its messages, lets the run decide, and sends the answer. Holds no
 * mathematics; every answer is made in the same turn as the message that asked for it.
 */
export class Session {
  readonly #connection: Connection;
  readonly #coordinator: Coordinator;
  readonly connectedAt: string;
  readonly holder: string | null;
  /** Whether it fetches experiments that were sent; null: it knows nothing of them. */
  readonly #acceptsBundles: boolean | null;
  #hello: Hello | null = null;
  #key = '';
  #pushCall = new PushCall('');
  #assignCall = new AssignCall('');
  /** The run that it was assigned to, and whether it has joined. */
  #run: Run | null = null;
  #served: Run | null = null;
  #joined = false;
  /** Joined and without work: a `wake` of its run looks again. */
  #waiting = false;
  /** The (generation, step) of the parameters it was sent last. */
  #sent: { generation: number; step: number } | null = null;
  /** Runs that it could not take part in. */
  readonly #refused = new Set<string>();
  #lastSeen: number;
  #lastError: WorkerSummary['lastError'] = null;
  #isAtFault = false;
  readonly #entered = new Set<string>();
  /** It was told to go, and may still send. */
  #isClosing = false;
  /** All that had come when it was last read past. */
  #receivedBytes = 0;
  #quarantine: string | null = null;
  #closed = false;
  /** Shards know the worker by it. */
  readonly id = randomBytes(8).toString('hex');
  readonly #gathering = new Gathering(this.id);
  readonly #desk: LandingDesk;
  readonly #meter: Meter;
  /** What is dealt with now is work that the server asked for. */
  #asked = false;
  /** The run at the last push that was rejected and may be tried again, and how many more may be under way. */
  #rejectedAt = { generation: -1, step: -1, left: 0 };
  /** What its `hello` takes, as long as it is connected. */
  #helloBytes = 0;
  /** Of a push that is larger than any of its run: it was read past. */
  #tooLarge: number | null = null;
  /** Of the largest answer so far. */
  #answerBytes = 0;
  #pulls = 0;
  /** Pushes that were decided on and not answered: with the next one, which is here already. */
  #decided: { readonly run: Run; readonly acknowledgements: Acknowledgement[] } | null = null;
  #more = false;

  /**
   * @param holder of the token that it came with; null: the server has no tokens.
   * @param budget of the holder, for messages that nobody asked for.
   * @param accepts what its handshake says in `BUNDLE_HEADER`.
   */
  constructor(
    connection: Connection,
    coordinator: Coordinator,
    connectedAt: string,
    holder: string | null,
    budget: Budget,
    accepts?: string | string[],
  ) {
    this.holder = holder;
    this.#acceptsBundles = accepts === undefined ? null : accepts === 'yes';
    this.#connection = connection;
    this.#coordinator = coordinator;
    this.connectedAt = connectedAt;
    this.#lastSeen = coordinator.now();
    this.#desk = new LandingDesk(coordinator.line, connection, holder, (error) => {
      const who = this.#hello ? `worker ${this.#hello.worker}` : 'a connection';
      coordinator.log(`${who} is closed: ${error.code} ${error.message}`, {
        ...{ level: 'warn', code: error.code },
        ...(this.#hello ? { worker: this.#hello.worker } : {}),
      });
      this.fail(error);
    });
    this.#meter = new Meter({
      ...{ budget, connection, now: coordinator.now },
      halted: () => coordinator.throttled(this),
    });
  }

  /** What its connection reports to. */
  readonly events: ConnectionEvents = {
    land: (header, payloadBytes) => this.#land(header, payloadBytes),
    memory: (change) => this.#desk.grew(change),
    message: (header, payload, landing, more) => this.#receive(header, payload, landing, more),
    malformed: (error) => {
      this.fail(error);
      this.#meter.charge();
    },
    reading: () => this.#meter.begin(),
    read: (begun) => {
      if (begun) this.#meter.begun();
      else if (this.#isClosing) this.#readPast();
      else this.#meter.forgive();
    },
    control: () => this.#meter.charge(),
    broken: (error) => {
      this.#isAtFault = true;
      this.#letGo();
      this.#wentWrong(error);
      this.#coordinator.countError(error.code);
    },
    alive: () => {
      this.#lastSeen = this.#coordinator.now();
    },
    drained: () => this.#answer(),
    closed: () => {
      this.#meter.begin();
      this.#gone();
      this.#meter.settle();
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
    return this.#served;
  }

  get joined(): boolean {
    return this.#joined;
  }

  get transport(): 'tcp' | 'unix' {
    return this.#connection.transport;
  }

  get bytes(): { received: number; sent: number } {
    return this.#connection.bytes;
  }

  get waiting(): boolean {
    return this.#waiting;
  }

  get lastSeen(): number {
    return this.#lastSeen;
  }

  /** It is not read for a while, since its messages have taken more time than its token may. */
  get stands(): boolean {
    return this.#meter.stands;
  }

  /** The same, or it waits for a place, or has not read its answers. */
  get standsStill(): boolean {
    return this.#meter.stands || this.#connection.waiting || this.#connection.holding;
  }

  /** Closes it where it sends, or reads, too slowly. @param windowMs in which it must get on. */
  look(now: number, windowMs: number): void {
    const problem = this.connected ? this.#desk.problem(now, windowMs) : null;
    if (problem) this.#coordinator.line.memory.close(this.#desk.account, problem);
  }

  /**
   * Closes it where parts of a push, or of initial parameters, wait too long for the others. Call once a second.
   * @param windowMs in which they must have come.
   */
  lookAtParts(windowMs: number): void {
    const oldest = this.#gathering.look();
    if (!oldest || 1000 * (oldest.looks - 1) <= windowMs) return;
    const seconds = windowMs / 1000;
    this.fail(
      new DownpourError(
        'DP_SLOW_SENDER',
        `${oldest.what} for more than ${seconds} s: parts of a push go to all shards at once; connect again and send it once more`,
      ),
    );
  }

  /** It cannot be blamed for its silence: the server itself was held up. */
  excuse(): void {
    this.#lastSeen = this.#coordinator.now();
  }

  /** Why its run takes nothing from it any more. */
  get quarantine(): string | null {
    return this.#quarantine;
  }

  /** Null again once a push was applied: what held it up is past. */
  get lastError(): WorkerSummary['lastError'] {
    return this.#lastError;
  }

  /** It ends, or has ended, for what it has sent. */
  get isAtFault(): boolean {
    return this.#isAtFault;
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
  #land(header: Header, payloadBytes: number | null): Place {
    if (header.type === 'push') return this.#landPush(header, payloadBytes);
    const bytesMax = payloadMax(header, this.#run, this.#joined ? this.#key : null);
    if (bytesMax === 'nowhere') return 'nowhere';
    // Of a browser's fragments the length is not known before the end.
    const bytes = payloadBytes ?? Math.max(1, bytesMax);
    mustFit(header, bytes, bytesMax);
    const isFacts = header.type === 'join';
    const place = isFacts ? this.#desk.landFacts(bytes, bytesMax) : this.#desk.own(bytes, bytesMax);
    if (isFacts && place !== 'wait') this.#meter.owe(bytes / UNASKED_BYTES_PER_MS);
    return place;
  }

  /** What still comes to a connection that is being closed is for nothing. */
  #readPast(): void {
    const { received } = this.#connection.bytes;
    this.#meter.owe((received - this.#receivedBytes) / UNASKED_BYTES_PER_MS);
    this.#receivedBytes = received;
    this.#meter.charge();
  }

  /** What is of no use, since its run is another one or no push of it is so large, is read past. */
  #landPush(header: Header, payloadBytes: number | null): Place {
    const run = this.#joined ? this.#run : null;
    if (!run?.partLayout || header.run !== run.id) return 'nowhere';
    const { roomBytes, bytesMax } = payloadLimits(run.partLayout);
    const bytes = payloadBytes ?? roomBytes;
    this.#tooLarge = null;
    if (bytes > bytesMax) {
      this.#tooLarge = bytes;
      return 'nowhere';
    }
    return this.#desk.land({
      room: run,
      bytes,
      roomBytes,
      bytesMax,
      // One with a name of its own would be named anew by the loader, for each push.
      take: (size) => run.land(size, encodingOf(header)),
    });
  }

  #receive(header: Header, payload: Uint8Array, landing: Landing | null, more = false): void {
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
      if (this.#asked) this.#meter.forgive();
      else {
        this.#coordinator.unasked++;
        this.#meter.charge(this.#isEntering(header) ? ENTRY_MS : 0);
      }
    }
  }

  /** Its first `hello` and `join`: how often those come is limited by handshakes, and a whole cluster sends them at once. */
  #isEntering({ type }: Header): boolean {
    if (type !== 'hello' && type !== 'join') return false;
    if (this.#entered.has(type)) return false;
    this.#entered.add(type);
    return true;
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
    else return this.#work(message, payload, landing);
    return false;
  }

  /** Of a run that it has left, a sample is of no more use. */
  #onObserved(observed: Observed): void {
    if (this.#joined && this.#run?.id === observed.run) {
      const now = this.#coordinator.now();
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
      if (this.#coordinator.find(message.run)?.over) return false;
      throw new DownpourError(
        'DP_PROTOCOL_ORDER',
        `'${message.type}' for run '${message.run}', which this worker has not joined: join it first`,
      );
    }
    if (message.type === 'evaluated') {
      const [worker, now] = [this.key, this.#coordinator.now()];
      this.#asked = run.call({ call: 'evaluated', worker, result: message, now });
      this.proceed();
    } else if (message.type === 'push') {
      this.#desk.arrived(landing);
      if (run.parts > 1) {
        this.#asked = run.isLeased(message.lease, this.key);
        const kept = keep(payload, landing);
        this.#gathering.push(message, kept, landing, partsMax(run.config));
        this.#gathered(run, message.sequence);
        return true;
      }
      this.#onPush(run, message, payload);
    } else if (run.parts > 1) {
      this.#gathering.initialised(message.grant, floatsOf(payload));
      this.#initialGathered(run, message.grant);
    } else this.#onInitialised(run, message.grant, payload);
    this.#coordinator.settle(run);
    return false;
  }

  /** Another part of a push has landed on its shard. @returns false: nobody waits for it any more. */
  landed(run: Run, shard: number, report: PartReport): boolean {
    if (this.#run !== run || !this.#joined) return false;
    try {
      this.#gathering.landed(shard, report, partsMax(run.config));
      this.#gathered(run, report.sequence);
    } catch (error) {
      this.fail(error);
    }
    return true;
  }

  initialLanded(run: Run, shard: number, grant: number, finite: boolean): void {
    if (this.#run !== run || !this.#joined) return;
    this.#gathering.initialLanded(shard, grant, finite);
    this.#initialGathered(run, grant);
  }

  #gathered(run: Run, sequence: number): void {
    const whole = this.#gathering.take(sequence, run.parts);
    if (!whole) return;
    try {
      this.#onPush(run, whole.push, whole.payload, whole.others);
      this.#coordinator.settle(run);
    } finally {
      whole.landing?.release();
    }
  }

  #initialGathered(run: Run, grant: number): void {
    const whole = this.#gathering.takeInitial(grant, run.parts);
    if (!whole) return;
    try {
      this.#onInitialised(run, grant, bytesOf(whole.values), whole.others);
      this.#coordinator.settle(run);
    } catch (error) {
      this.fail(error);
    }
  }

  #onHello(hello: Hello): void {
    if (this.#hello) {
      throw new DownpourError('DP_PROTOCOL_ORDER', "a second 'hello' on one connection");
    }
    this.#coordinator.mustBeItsName(hello, this.holder);
    this.#hello = hello;
    this.#countHello(hello);
    this.#key = keyOf(hello, this.holder);
    this.#pushCall = new PushCall(this.#key);
    this.#assignCall = new AssignCall(this.#key);
    this.#coordinator.welcome(this);
    this.tellStandby();
    if (hello.run !== null) {
      const run = this.#coordinator.find(hello.run);
      // Which others there are is not for a worker to know.
      if (!run) throw new DownpourError('DP_RUN_UNKNOWN', `no run '${hello.run}' on this server`);
      if (!run.over) {
        run.mustBeTrusted(this.key);
        this.#mustHaveExperiment(hello, run);
      }
    }
    this.#coordinator.mustNotBeQuarantined(this);
    this.#coordinator.employ(this);
  }

  /** It is kept as long as the connection lasts. */
  #countHello({ experiments }: Hello): void {
    let bytes = 0;
    for (const [name, hash] of Object.entries(experiments)) {
      bytes += name.length + hash.length + ENTRY_BYTES;
    }
    this.#helloBytes = bytes;
    this.#coordinator.line.memory.change(this.#desk.account, bytes);
  }

  /** Or be one that fetches it: it is told by `idle` what it misses. */
  #mustHaveExperiment(hello: Hello, run: Run): void {
    if (hasExperiment(hello, run)) return;
    const wasSent = this.#coordinator.bundleOf(run) !== null;
    if (wasSent && this.#acceptsBundles) return;
    const { experiment } = run.options;
    const hash = hello.experiments[experiment];
    const other = wasSent ? '; or start it with --accept-experiments: the experiment was sent' : '';
    if (hash === undefined) {
      throw new DownpourError(
        'DP_EXPERIMENT_UNKNOWN',
        `run '${run.id}' needs experiment '${experiment}', which this worker does not have: add its folder with --experiments${other}`,
      );
    }
    const difference = hashDifference(run.options, hash);
    throw new DownpourError('DP_EXPERIMENT_MISMATCH', difference + other);
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
      const now = this.#coordinator.now();
      run.call({ call: 'join', worker: this.key, join, now }, payload);
    } catch (error) {
      if (!this.#mayServeOthers(error)) throw error;
      this.#unsuited(run, error);
      return;
    }
    this.#joined = true;
    this.#sent = null;
    // First what the worker has told: once it is answered, it remembers the new life alone.
    this.#coordinator.settle(run);
    this.proceed();
    this.#coordinator.settle(run);
  }

  /** It has another model or other data than this run: a worker for any run may still have those of another one. */
  #mayServeOthers(error: unknown): error is DownpourError {
    const isDifferent = error instanceof DownpourError && DIFFERENT.includes(error.code);
    return isDifferent && this.#hello?.run === null;
  }

  #unsuited(run: Run, { code, message }: DownpourError): void {
    this.#coordinator.countError(code);
    this.#cannotServe(run, { code, message });
    const reason = `not for this worker: ${code} ${message}`.slice(0, 2000);
    this.#send({ type: 'end', run: run.id, phase: run.phase, reason });
    this.#dismiss();
    this.#coordinator.employ(this);
  }

  #cannotServe(run: Run, failure: { readonly code: string; readonly message: string }): void {
    const { code, message } = failure;
    this.#wentWrong(failure);
    this.#refused.add(run.id);
    const worker = this.#hello?.worker;
    this.#coordinator.log(
      `worker ${worker} cannot take part in run ${run.id}: ${code} ${message}`,
      {
        ...{ level: 'warn', run: run.id, code, kind: `cannot take part ${code}` },
        ...(worker === undefined ? {} : { worker }),
      },
    );
  }

  #onInitialised(
    run: Run,
    grant: number,
    payload: Uint8Array,
    others: InitialLanded | null = null,
  ): void {
    const now = this.#coordinator.now();
    const call = { call: 'initialised', worker: this.key, grant, now, others } as const;
    this.#asked = run.call(call, payload);
    this.proceed();
  }

  #onPush(run: Run, push: Push, payload: Uint8Array, others: PartsLanded | null = null): void {
    const now = this.#coordinator.now();
    const answer = run.call(this.#pushCall.of(push, now, others), payload);
    const acknowledgement = this.#explained(run, answer);
    const seconds = (this.#coordinator.now() - now) / 1000;
    this.#coordinator.countPush(run, push, acknowledgement, seconds);
    const { outcome, code, message } = acknowledgement;
    const isApplied = outcome === 'applied' || outcome === 'damped';
    this.#asked = isApplied || (code !== null && this.#mayRetry(run, push, code));
    if (isApplied) {
      this.#coordinator.pushLog?.applied(run, this.key, push.sequence);
      this.#lastError = null;
    }
    if (code !== null && message !== null) {
      this.#wentWrong({ code, message });
      this.#coordinator.recordRejection(run, this.key, push, acknowledgement);
      run.mustBeTrusted(this.key);
    }
    this.#decided ??= { run, acknowledgements: [] };
    const count = this.#decided.acknowledgements.push(acknowledgement);
    // Pushes that came together are answered together, with one pull.
    const isLast = !this.#more || run.config.consistency.depth === 1;
    if (isLast || count === LIMITS.leasesPerWorkerMax) this.proceed(now);
  }

  /**
   * Whether a rejected push is one that a worker sends as a rule: it was under way already, or computed at the parameters
   * that came with the last rejection. So nobody is rejected for nothing more often than the run has steps.
   */
  #mayRetry(run: Run, { generation, step }: Push, code: string): boolean {
    if (!TO_RETRY.has(code)) return false;
    const last = this.#rejectedAt;
    const newer = generation - last.generation || step - last.step;
    const isNew = step <= run.step && (code === 'DP_PUSH_STALE' ? newer >= 0 : newer > 0);
    const left = isNew ? run.config.consistency.depth + 1 : last.left;
    if (left === 0) return false;
    this.#rejectedAt = isNew
      ? { generation: run.generation, step: run.step, left: left - 1 }
      : { ...last, left: left - 1 };
    return true;
  }

  /** Of a payload that was read past, the run has seen nothing. */
  #explained(run: Run, acknowledgement: Acknowledgement): Acknowledgement {
    const bytes = this.#tooLarge;
    if (bytes === null) return acknowledgement;
    this.#tooLarge = null;
    if (acknowledgement.code !== 'DP_TENSOR_SIZE') return acknowledgement;
    const { bytesMax } = payloadLimits(run.partLayout!);
    const message = `the push has a payload of ${bytes} bytes; the largest of this run's layout has ${bytesMax}: send gradients of the model that the run has`;
    return { ...acknowledgement, message };
  }

  #onLeave(leave: Leave): void {
    if (leave.failure && this.#run) this.#cannotServe(this.#run, leave.failure);
    this.#dismiss();
    if (leave.failure) this.#coordinator.employ(this);
  }

  // Sending.

  /** Assigns the worker to a run; its `join` follows. */
  assignTo(run: Run): void {
    this.#run = this.#served = run;
    this.#joined = false;
    this.#coordinator.admit(this);
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
      shards: this.#coordinator.shardAddresses(),
    };
    if (facts) this.#send({ ...assign, facts: 'json' }, [encodeFacts(facts)]);
    else this.#send(assign);
  }

  /** Tells the worker that the run is over. */
  end(run: Run): void {
    this.#send({ type: 'end', run: run.id, phase: run.phase, reason: run.reason });
  }

  /** Where to go when this server is not reached. */
  tellStandby(): void {
    const servers = this.#coordinator.replication?.addresses ?? [];
    if (servers.length === 0) return;
    this.#answer();
    this.#send({ type: 'standby', servers });
  }

  idle(): void {
    const missing = this.#coordinator.unfinished
      .filter((run) => this.#lacksExperiment(run))
      .slice(-LIMITS.missingToldMax)
      .map((run) => {
        const { id, options } = run;
        const { experiment, experimentHash } = options;
        const bundle = this.#acceptsBundles === null ? null : this.#coordinator.bundleOf(run);
        return { run: id, experiment, experimentHash, ...(bundle && { bundle }) };
      });
    this.#send({ type: 'idle', ...(missing.length > 0 ? { missing } : {}) });
  }

  #lacksExperiment(run: Run): boolean {
    const hello = this.#hello!;
    return (hello.run === null || hello.run === run.id) && !hasExperiment(hello, run);
  }

  /** Tells what became of pushes, if it is not known, and what to do next. */
  #answer(): void {
    if (this.#decided) this.proceed();
    this.#acknowledge();
  }

  /** The same to a worker that has left the run meanwhile: there is nothing to do next. */
  #acknowledge(): void {
    if (!this.#decided) return;
    const { run } = this.#decided;
    this.#sendWork(run, this.#taken(), null, false);
  }

  #taken(): Acknowledgement[] {
    const acknowledgements = this.#decided?.acknowledgements ?? [];
    this.#decided = null;
    return acknowledgements;
  }

  /** Sends what the worker is to do next, with what became of its pushes. */
  proceed(now: number = this.#coordinator.now()): void {
    const run = this.#run;
    if (!run || !this.#joined || this.#closed) return;
    const acknowledgements = this.#taken();
    // Minibatches a worker holds: those under way and the one whose data it prepares.
    const ahead = run.config.consistency.depth + 1;
    const assignment = run.call(this.#assignCall.of(ahead, now));
    this.#waiting = assignment.kind === 'wait';
    if (assignment.kind === 'work') {
      const { generation } = run;
      const { step, evaluation, shared } = assignment;
      const known = shared && this.#sent?.generation === generation && this.#sent.step === step;
      this.#sent = evaluation === null ? { generation, step } : null;
      this.#sendWork(run, acknowledgements, assignment, !known);
      return;
    }
    if (acknowledgements.length > 0) this.#sendWork(run, acknowledgements, null, false);
    if (assignment.kind === 'initialise') {
      const { grant, seed } = assignment;
      run.grantParts(this.id, grant);
      this.#send({ type: 'initialise', run: run.id, grant, seed });
    } else if (assignment.kind === 'end') {
      this.end(run);
      this.#dismiss();
      this.#coordinator.employ(this);
    }
  }

  #sendWork(
    run: Run,
    acknowledgements: Acknowledgement[],
    work: Extract<Assignment, { kind: 'work' }> | null,
    withPayload: boolean,
  ): void {
    const payload = withPayload && work ? work.payload : null;
    const pull = payload && run.parts > 1 ? ++this.#pulls : null;
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
      pull,
    };
    if (!payload) {
      this.#send(header);
      return;
    }
    if (pull !== null) run.sendParts(this.id, pull, work!.parts);
    // Header and shared payload are never joined in memory.
    const { memory } = this.#coordinator.line;
    payload.hold();
    memory.send(payload);
    this.#answerBytes = Math.max(this.#answerBytes, payload.bytes.length);
    this.#send(header, [payload.bytes], () => {
      payload.release();
      memory.sent(payload);
    });
  }

  /**
   * Now, or when the standby has what this tells.
   * @param gone called once: the parts have left, or never will.
   */
  #send(message: ServerMessage, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    this.#acknowledge();
    const { replication } = this.#coordinator;
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
      this.#coordinator.log(`defect: ${error instanceof Error ? error.stack : String(error)}`, {
        ...{ level: 'error', code, kind: kindOfDefect(error) },
        ...(this.#hello ? { worker: this.#hello.worker } : {}),
      });
    }
    this.#wentWrong({ code, message });
    if (code === 'DP_QUARANTINED') this.#quarantine = message;
    this.#coordinator.countError(code);
    this.#answer();
    if (this.#connection.open) this.#connection.send({ type: 'error', code, message });
    const { close } = ERRORS[code];
    if (close === null) return;
    this.#isAtFault ||= FAULTS.has(close);
    this.close(close, code);
  }

  #letGo(): void {
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.#receivedBytes = this.#connection.bytes.received;
  }

  ping(): void {
    this.#connection.ping();
  }

  close(code: number, reason: string): void {
    this.#acknowledge();
    this.#letGo();
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
    this.#forgetParts(run);
    run.call({ call: 'leave', worker: this.key });
    this.#coordinator.settle(run);
  }

  #gone(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#decided = null;
    const run = this.#run;
    this.#desk.leave();
    this.#meter.leave();
    this.#coordinator.line.memory.change(null, -this.#helloBytes);
    this.#gathering.clear();
    if (run && this.#joined) {
      run.call({ call: 'detach', worker: this.key, now: this.#coordinator.now() });
      this.#coordinator.settle(run);
    }
    this.#coordinator.farewell(this);
  }

  /** It leaves the run, not the shards: what it sent them for it is dropped there. */
  #forgetParts(run: Run): void {
    if (this.#gathering.awaitsInitial) run.revokeParts(this.id);
    for (const sequence of this.#gathering.clear()) run.dropParts(this.id, sequence);
  }
}
