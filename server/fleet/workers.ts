import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { Hello } from '../../shared/protocol.ts';
import type { Timeline, WorkerSummary } from '../../shared/rest.ts';
import type { Run } from '../core/run.ts';
import type { ShardPool } from '../shards/pool.ts';
import { WorkerHistory } from '../watch/worker-history.ts';
import type { WorkerSession } from './session.ts';
import { lackOf } from './suitability.ts';

/** Workers that are gone and still told of. */
const GONE_MAX = 100;

/** The log is not told more often that one token is throttled. */
const THROTTLE_TOLD_MS = 60_000;

/** The runs that workers work for. */
interface Runs {
  find(id: string): Run | null;
  /** Those that are not over. */
  readonly unfinished: Iterable<Run>;
}

/** All workers of a server: who is connected, who works on what, and what REST is told of them. */
export class Workers {
  readonly #now: () => number;
  readonly #log: Log;
  readonly #runs: Runs;
  readonly #shards: ShardPool | null;
  /** Those that wait for runs that are being read. */
  readonly toBePlaced = new WeakSet<WorkerSession>();
  readonly #sessions = new Set<WorkerSession>();
  readonly #byId = new Map<string, WorkerSession>();
  /** Sessions that the shards know. */
  readonly #admitted = new WeakSet<WorkerSession>();
  /** Joined at least once and gone since, the latest only. */
  readonly #gone = new Map<string, { readonly summary: WorkerSummary; readonly at: number }>();
  readonly #history = new WorkerHistory();
  /** Messages that the server had not asked for. */
  unasked = 0;
  #throttles = 0;
  /** When the log was told of each holder. */
  readonly #throttlesTold = new Map<string, number>();

  /** @param options.now monotonic, ms. */
  constructor(options: {
    readonly now: () => number;
    readonly log: Log;
    readonly runs: Runs;
    readonly shards: ShardPool | null;
  }) {
    this.#now = options.now;
    this.#log = options.log;
    this.#runs = options.runs;
    this.#shards = options.shards;
  }

  get sessions(): readonly WorkerSession[] {
    return [...this.#sessions];
  }

  find(session: string): WorkerSession | null {
    return this.#byId.get(session) ?? null;
  }

  /** @throws DownpourError DP_LIMIT. */
  opened(session: WorkerSession): void {
    if (this.#sessions.size >= LIMITS.workerCountMax) {
      throw new DownpourError(
        'DP_LIMIT',
        `${this.#sessions.size} workers are connected; at most ${LIMITS.workerCountMax}`,
      );
    }
    this.#sessions.add(session);
    this.#byId.set(session.id, session);
  }

  /**
   * While a worker is connected its name is its own: only the same process, with the same token, may connect anew.
   * @throws DownpourError DP_NAME_TAKEN.
   */
  mustBeItsName({ worker, incarnation }: Hello, holder: string | null): void {
    for (const { hello, holder: owner, connected } of this.#sessions) {
      if (hello?.worker !== worker || !connected) continue;
      if (hello.incarnation === incarnation && owner === holder) continue;
      throw new DownpourError(
        'DP_NAME_TAKEN',
        `a worker named '${worker}' is connected already: give each its own --name; if that one has died, the server knows it soon`,
      );
    }
  }

  /** A worker has said who it is; an older connection of the same process is dead. */
  welcome(session: WorkerSession): void {
    const name = session.hello!.worker;
    for (const other of this.#sessions) {
      if (other !== session && other.hello?.worker === name) other.replaced();
    }
    this.#gone.delete(session.key);
    this.#log(`worker ${name} connected: ${session.hello!.engine} on ${session.hello!.device}`, {
      ...{ worker: name, kind: 'connected' },
    });
  }

  /** A connection is not read for a while: its messages have taken more time than its token may. */
  throttled(session: WorkerSession): void {
    this.#throttles++;
    const holder = session.holder ?? 'everybody';
    const told = this.#throttlesTold.get(holder) ?? Number.NEGATIVE_INFINITY;
    if (this.#now() - told < THROTTLE_TOLD_MS) return;
    this.#throttlesTold.delete(holder);
    this.#throttlesTold.set(holder, this.#now());
    if (this.#throttlesTold.size > LIMITS.holderCountMax) {
      this.#throttlesTold.delete(this.#throttlesTold.keys().next().value!);
    }
    const { messageTimeShareMax } = LIMITS;
    const worker = session.hello?.worker;
    const who = worker === undefined ? 'a connection' : `worker ${worker}`;
    const whose = session.holder === null ? '' : ` of token ${session.holder}`;
    this.#log(
      `${who}${whose} sends messages without a request, or the same ones again; they may take ${100 * messageTimeShareMax} % of the time of this server, so its connection is read less often`,
      { level: 'warn', ...(worker === undefined ? {} : { worker }) },
    );
  }

  /** Messages that nobody asked for, how often a connection was throttled for them, and how many are throttled now. */
  get unaskedFacts(): {
    readonly messages: number;
    readonly throttles: number;
    readonly throttled: number;
  } {
    let throttled = 0;
    for (const session of this.#sessions) if (session.charges.stands) throttled++;
    return { messages: this.unasked, throttles: this.#throttles, throttled };
  }

  /** The standby has come or gone. */
  tellStandby(): void {
    for (const session of this.#sessions) if (session.hello) session.tellStandby();
  }

  /** The session is told its id in a moment, and may go to the shards with it. */
  admit(session: WorkerSession): void {
    if (this.#admitted.has(session)) return;
    this.#admitted.add(session);
    this.#shards?.admit(session.id);
  }

  farewell(session: WorkerSession): void {
    this.#byId.delete(session.id);
    this.#shards?.leave(session.id);
    if (!this.#sessions.delete(session) || !session.hello) return;
    const { worker } = session.hello;
    const run = session.served?.id;
    this.#log(`worker ${worker} has gone`, {
      ...{ worker, kind: 'gone' },
      ...(run === undefined ? {} : { run }),
    });
    const summary = { ...this.#workerSummary(session), examplesPerSecond: 0, leases: 0 };
    this.#gone.set(session.key, { summary, at: this.#now() });
    if (this.#gone.size > GONE_MAX) this.#gone.delete(this.#gone.keys().next().value!);
  }

  // Work.

  /** Gives a worker without a run one that it can serve and that has room: the one with the fewest. */
  employ(session: WorkerSession): void {
    const counts = new Map<Run, number>();
    for (const { run } of this.#sessions) if (run) counts.set(run, (counts.get(run) ?? 0) + 1);
    let chosen: Run | null = null;
    for (const run of this.#runs.unfinished) {
      if (!session.canServe(run)) continue;
      const lack = lackOf(session.able, run);
      if (lack) {
        session.cannotServe(run, lack);
        continue;
      }
      if ((counts.get(run) ?? 0) >= (run.config.workersMax ?? Infinity)) continue;
      if (!chosen || (counts.get(run) ?? 0) < (counts.get(chosen) ?? 0)) chosen = run;
    }
    if (chosen) {
      session.assignTo(chosen);
      return;
    }
    const only = session.hello?.run;
    const run = only == null ? null : this.#runs.find(only);
    if (run?.over) session.end(run);
    else session.idle();
  }

  /** One that could work, were it not shut out, is told so instead of being left idle. @throws DownpourError DP_QUARANTINED. */
  mustNotBeQuarantined(session: WorkerSession): void {
    const fit = [...this.#runs.unfinished].filter((run) => session.isFit(run));
    if (fit.some((run) => session.canServe(run))) return;
    for (const run of fit) run.mustBeTrusted(session.key);
  }

  employAll(): void {
    for (const session of this.#sessions) {
      if (session.hello && !session.run && !this.toBePlaced.has(session)) this.employ(session);
    }
  }

  /** Work may be there for those who wait; and a run that is over has an answer for all who joined. */
  wake(run: Run): void {
    for (const session of this.#sessions) {
      if (session.run !== run || !session.joined) continue;
      if (session.waiting || run.over) session.proceed();
    }
  }

  /** Nobody is blamed for the silence while the server itself stood still. */
  excuse(): void {
    for (const session of this.#sessions) session.excuse();
  }

  /** Once a second: who is silent, and who comes too slowly. */
  look(now: number): void {
    for (const session of this.#sessions) {
      // A worker in the middle of a slow gradient answers nothing for as long as its lease lasts.
      const leaseMs = (session.run?.config.leaseSeconds ?? 0) * 1000;
      const silenceMs = Math.max(LIMITS.silenceMs, leaseMs);
      const problem = session.parts.look(silenceMs);
      if (problem) session.fail(problem);
      // What it has sent is not read, so it cannot answer; whether it is there still, writing tells.
      if (session.standsStill) session.excuse();
      if (session.isBraked) session.ping();
      session.look(now, silenceMs);
      if (now - session.lastSeen > silenceMs) session.terminate();
      else if (now - session.lastSeen > LIMITS.heartbeatMs) session.ping();
    }
    this.#history.note(now, this.summaries(null));
  }

  // What others want to know.

  /** @param run only its workers, null: all. */
  summaries(run: Run | null): WorkerSummary[] {
    const summaries: WorkerSummary[] = [];
    for (const session of this.#sessions) {
      if (session.hello && (!run || session.run === run))
        summaries.push(this.#workerSummary(session));
    }
    for (const { summary, at } of this.#gone.values()) {
      if (run && summary.run !== run.id) continue;
      const since = (this.#now() - at) / 1000;
      summaries.push({ ...summary, lastSeenSecondsAgo: summary.lastSeenSecondsAgo + since });
    }
    return summaries;
  }

  #workerSummary(session: WorkerSession): WorkerSummary {
    const hello = session.hello!;
    const { run } = session;
    // What a worker did is told after it has left, too.
    const tally = session.served?.workerTally(session.key);
    const connected = this.#sessions.has(session);
    const busy = tally?.evaluating ? 'evaluating' : session.waiting ? 'waiting' : 'training';
    const state = !connected ? 'gone' : !run ? 'idle' : !session.joined ? 'joining' : busy;
    return {
      worker: hello.worker,
      incarnation: hello.incarnation,
      run: run?.id ?? null,
      state,
      engine: hello.engine,
      device: hello.device,
      connectedAt: session.connectedAt,
      transport: session.wire.transport,
      lastSeenSecondsAgo: Math.max(0, (this.#now() - session.lastSeen) / 1000),
      leases: tally?.leases ?? 0,
      pushes: tally?.pushes ?? { applied: 0, damped: 0, duplicate: 0, rejected: 0 },
      stalenessMean: tally?.stalenessMean ?? null,
      computeMsMean: tally?.computeMsMean ?? null,
      computeMsRecent: tally?.computeMsRecent ?? null,
      examples: tally?.examples ?? 0,
      examplesPerSecond: this.#history.speed(hello),
      bytes: session.wire.bytes,
      lastError: session.lastError,
      quarantine: session.quarantine,
      machine: session.machine.facts,
    };
  }

  timeline(): Timeline {
    return this.#history.timeline(this.#now());
  }
}
