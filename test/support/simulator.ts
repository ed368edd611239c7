import type { CheckpointWriter } from '../../server/checkpoints/writer.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { ServerMessage } from '../../shared/protocol.ts';
import { type Random, random } from '../../shared/random.ts';
import { Cluster } from './simulated-cluster.ts';
import type { SimulatedConnection } from './simulated-connection.ts';
import { simulateDisks } from './simulated-disk.ts';
import { disturb } from './simulated-faults.ts';
import { operate } from './simulated-operator.ts';
import { SimulatedServer } from './simulated-server.ts';
import { SimulatedShard } from './simulated-shards.ts';
import { type Saved, SimulatedState } from './simulated-state.ts';
import { SimulatedWorker } from './simulated-worker.ts';

/**
 * A deterministic simulation of a cluster: the server's own coordinator, sessions and runs, virtual
 * workers, a virtual network and a virtual clock, all from one seed. Messages are delayed, connections cut
 * in the middle of a payload or noticed late by one end, workers and the server are halted, killed and
 * started again, some workers lie, some never end a minibatch. In every third cluster a standby follows the server, is lost and comes back, and
 * takes over when the server is killed. After each event the invariants are checked; the first that is broken ends
 * the simulation with a `Violation`.
 */

/** What is broken, and how to see it again. */
export class Violation extends Error {
  /** Number in the contract of docs/reliability.md. */
  readonly invariant: number;
  constructor(invariant: number, seed: number, what: string) {
    super(
      `invariant ${invariant} is broken: ${what}\nsee it again: npm run soak -- --seed ${seed} --seeds 1`,
    );
    this.invariant = invariant;
  }
}

export interface SimulationOptions {
  /** Virtual seconds with faults; then it must come to an end by itself. */
  readonly faultSeconds?: number;
  /** Changes what the server does, to see that it is noticed. */
  readonly sabotage?: Sabotage;
}

/** Places at which a test may make the server a broken one. */
export interface Sabotage {
  /** Whether a message of the server is sent. */
  readonly outgoing?: (message: ServerMessage) => boolean;
  /** What is read from a checkpoint. */
  readonly restored?: (checkpoint: Saved, all: readonly Saved[]) => Saved;
  /** Removes checkpoints that are needed no more. */
  readonly prune?: CheckpointWriter['prune'];
  readonly config?: PartialConfig;
}

export interface Summary {
  readonly seed: number;
  readonly events: number;
  readonly phase: string;
  readonly steps: number;
  readonly applied: number;
  readonly crashes: number;
  readonly failovers: number;
  readonly cuts: number;
  /** Pushes whose rows were applied, in the last life. */
  readonly rowSteps: number;
  /** That the parameters lie on. */
  readonly shards: number;
  /** How often one was killed. */
  readonly shardsKilled: number;
  /** How often the parameters of one of them overflowed. */
  readonly overflows: number;
  /** What befell the disk; null: checkpoints were kept in memory. */
  readonly disk: (SimulatedState['counts'] & { readonly refusals: number }) | null;
}

/** Nothing takes longer when nobody disturbs. */
const PATIENCE_SECONDS = 7_200;

export async function simulate(seed: number, options: SimulationOptions = {}): Promise<Summary> {
  const simulation = new Simulation(seed, options);
  const end = simulation.state ? simulateDisks() : () => {};
  try {
    return await simulation.run();
  } finally {
    // What is under way fails, before nothing leads to its disk any more.
    simulation.server.end();
    await new Promise((resolve) => setImmediate(resolve));
    end();
  }
}

export class Simulation extends Cluster {
  readonly options: SimulationOptions;
  /** The processes of shards, one of them to spare now and then; empty: the server has all of it. */
  readonly shards: SimulatedShard[] = [];
  shardsKilled = 0;
  /** Whether another push may follow one at once. */
  readonly together: Random;
  /** Whether a worker hangs, and in which minibatch. */
  readonly hanging: Random;
  /** Null: checkpoints are kept in memory, without faults. */
  readonly state: SimulatedState | null;
  readonly server: SimulatedServer;
  readonly workers: SimulatedWorker[] = [];
  /** That work. */
  readonly connections = new Set<SimulatedConnection>();
  /** The server holds its end of each, also of one that is cut. */
  readonly sockets = new Set<SimulatedConnection>();
  now = 0;
  /** No more faults come, and nobody need stand by. */
  calm = false;
  events = 0;
  cuts = 0;
  #queue: { at: number; order: number; act: () => void }[] = [];
  #order = 0;

  constructor(seed: number, options: SimulationOptions) {
    super(seed);
    this.options = options;
    // They have streams of their own, so that a cluster's other faults are what they were without them.
    this.together = random(seed, 3);
    this.hanging = random(seed, 8);
    const violate = (invariant: number, what: string) => this.violate(invariant, what);
    for (let i = 1; this.shardCount > 1 && i < this.shardCount + this.spareShards; i++) {
      this.shards.push(new SimulatedShard(this, violate, i));
    }
    this.state = this.hasDisk
      ? new SimulatedState(this, violate, seed, options.sabotage?.prune)
      : null;
    this.server = new SimulatedServer(this);
  }

  /** The first one: what is thrown within the server is told once more, as a defect of it. */
  #violation: Violation | null = null;

  violate(invariant: number, what: string): never {
    this.#violation ??= this.violation(invariant, what);
    throw this.#violation;
  }

  violation(invariant: number, what: string): Violation {
    return new Violation(invariant, this.seed, `${what} (at ${(this.now / 1000).toFixed(3)} s)`);
  }

  chance(share: number): boolean {
    return this.draw.uniform() < share;
  }

  /** Mostly short, now and then very long. */
  delayMs(usual: number): number {
    const long = this.chance(0.03) ? 100 : 1;
    return usual * long * this.draw.uniform();
  }

  at(delayMs: number, act: () => void): void {
    const item = { at: this.now + delayMs, order: this.#order++, act };
    let i = this.#queue.push(item) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(item, this.#queue[parent]!)) break;
      this.#queue[i] = this.#queue[parent]!;
      i = parent;
    }
    this.#queue[i] = item;
  }

  #next() {
    const first = this.#queue[0];
    const last = this.#queue.pop();
    if (!first || !last || this.#queue.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= this.#queue.length) break;
      if (child + 1 < this.#queue.length && before(this.#queue[child + 1]!, this.#queue[child]!))
        child++;
      if (!before(this.#queue[child]!, last)) break;
      this.#queue[i] = this.#queue[child]!;
      i = child;
    }
    this.#queue[i] = last;
    return first;
  }

  /** The next event, and what follows from it. */
  async #turn(untilMs: number): Promise<void> {
    const item = this.#next();
    if (!item) this.violate(8, `nothing happens any more in phase ${this.server.phase}`);
    if (item.at > untilMs) this.violate(8, `the run does not end; phase ${this.server.phase}`);
    this.now = item.at;
    this.events++;
    item.act();
    // What the server does in microtasks belongs to the event.
    if (this.shards.length > 0 || this.state) await new Promise((resolve) => setImmediate(resolve));
    else await null;
    if (this.#violation) throw this.#violation;
    this.server.check();
  }

  /** Resolves after so many virtual ms. */
  after(ms: number): Promise<void> {
    return new Promise((resolve) => this.at(ms, resolve));
  }

  /** Goes on until something is done. */
  async until<T>(done: Promise<T>, what: string): Promise<T> {
    let isOver = false;
    const end = () => {
      isOver = true;
    };
    done.then(end, end);
    const untilMs = this.now + PATIENCE_SECONDS * 1000;
    while (!isOver) {
      if (this.now > untilMs) this.violate(6, `${what} does not end`);
      await this.#turn(Infinity);
    }
    return done;
  }

  async run(): Promise<Summary> {
    await this.server.begin();
    const count = 1 + this.draw.below(5);
    // The last one, where others can do its work.
    const hangs = count > 1 && this.hanging.below(3) === 0;
    for (let i = 0; i < count; i++) {
      const liar = this.chance(0.25);
      const isStuck = hangs && i === count - 1 && !liar;
      const worker = new SimulatedWorker(this, i, liar, isStuck);
      this.workers.push(worker);
      this.at(this.delayMs(2_000), () => worker.start());
    }
    const { faultSeconds = 60 } = this.options;
    disturb(this, faultSeconds * 1000);
    while (!this.server.over) await this.#turn((faultSeconds + PATIENCE_SECONDS) * 1000);
    this.server.checkEnd();
    const { phase, step, log, rowSteps } = this.server;
    if (this.state && this.shardCount === 1) await operate(this, this.state);
    const { crashes, failovers, overflows } = this.server;
    const { seed, events, cuts, shardCount: shards, shardsKilled } = this;
    return {
      ...{ seed, events, phase, steps: step, applied: log.length, crashes, failovers, cuts },
      ...{ rowSteps, shards, shardsKilled, overflows },
      disk: this.state && { ...this.state.counts, refusals: this.state.disk.refusals },
    };
  }
}

function before(a: { at: number; order: number }, b: { at: number; order: number }): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
