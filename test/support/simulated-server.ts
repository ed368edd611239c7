import type { Keeper } from '../../server/checkpoints/keeper.ts';
import type { RunCall } from '../../server/core/run/calls.ts';
import type { RunInternals, RunState } from '../../server/core/run/state.ts';
import { RESTORED_BEST } from '../../server/core/run/vector.ts';
import { Run } from '../../server/core/run.ts';
import { isOfRows, ROW_FIELDS } from '../../server/core/tables/run-tables.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { giveShards, saveShards } from '../../server/shards/checkpoint.ts';
import { ShardPool } from '../../server/shards/pool.ts';
import { Replication } from '../../server/standby/replication.ts';
import { bytesOf, concatFloats, floatsOf } from '../../shared/codec.ts';
import { type RunConfig, resolveConfig } from '../../shared/config.ts';
import { collects, isInRounds } from '../../shared/consistency.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import type {
  Acknowledgement,
  Join,
  Lease,
  Push,
  ServerMessage,
  Work,
} from '../../shared/protocol.ts';
import { wholeKeys } from '../../shared/row-groups.ts';
import { problem } from './simulated-cluster.ts';
import type { SimulatedConnection } from './simulated-connection.ts';
import { LOOKS, type SavedRows, WatchedRows } from './simulated-rows.ts';
import {
  fileOf,
  liveValues,
  type SentParts,
  virtualSource,
  virtualTimers,
  WholeShard,
} from './simulated-shards.ts';
import { SimulatedStandby } from './simulated-standby.ts';
import { isJoined, type Saved, type SimulatedState } from './simulated-state.ts';
import { fragmentOfVector } from './simulated-worker.ts';
import type { Simulation } from './simulator.ts';
import {
  areSameBytes,
  copyOfFields,
  joinedBytes,
  type VirtualEnd,
  virtualDial,
} from './virtual-network.ts';

const NO_BYTES = new Uint8Array();
/** Longer than a message of a shard takes, where nobody stands still. */
const GO_BACK_MS = 10_000;
const CREATED_AT = '2026-01-01T00:00:00.000Z';

/** The numbers of a run themselves. What it tells is a copy of all of them, which takes most of the time of a cluster. */
const insideOf = (run: Run) => (run as unknown as { readonly inside: RunInternals }).inside;

/** Trainable tensors and statistics as they are, in the order of the model. */
function partsOf(run: Run, tensors: Join['tensors']): Float32Array[] {
  const all = run.withoutRows('final', (live) => live);
  return tensors
    .filter(({ role }) => role !== 'frozen')
    .map((spec) => all.find(({ name }) => name === spec.name)!.values);
}

const areEqual = (some: Float32Array, others: Float32Array) =>
  some.length === others.length && some.every((x, i) => x === others[i]);

/** With local steps a lease is of several. */
function minibatchesOf({ part, epoch, start, count }: Lease): string[] {
  return Array.from(
    { length: Math.ceil(count / 4) },
    (_, i) => `${part} ${epoch} ${start + 4 * i}`,
  );
}

interface Applied {
  readonly key: string;
  readonly sequence: number;
  /** That it is part of; where several pushes make a step, it may be the next one. */
  readonly step: number;
  readonly lease: number;
  readonly minibatches: readonly string[];
  /** A worker was told. */
  acknowledged?: boolean;
}

/** Tensors by name. Rows are in the order of their keys: those of a checkpoint that continues others have another one. */
function inOrderOfKeys(tensors: readonly NamedTensor[]): Map<string, Float32Array> {
  const all = new Map(tensors.map(({ name, values }) => [name, values]));
  for (const [name, split] of [...all]) {
    const isOfKeys = isOfRows(name) && /\.(keys|initial)$/.test(name);
    if (!isOfKeys || split.length === 0) continue;
    const keys = wholeKeys(split);
    const order = keys.map((_, i) => i).sort((a, b) => keys[a]! - keys[b]!);
    const base = name.slice(0, name.lastIndexOf('.') + 1);
    const fields = name.endsWith('.keys') ? ROW_FIELDS.map((field) => base + field) : [name];
    for (const field of fields) {
      const values = all.get(field);
      if (!values || values.length === 0) continue;
      const width = values.length / keys.length;
      const rows = order.map((i) => values.slice(i * width, (i + 1) * width));
      all.set(field, concatFloats(rows));
    }
  }
  return all;
}

const nameOf = ({ key, sequence }: Pick<Applied, 'key' | 'sequence'>) => `${key} ${sequence}`;

function copyOfSaved({ state, tensors, step, rows }: Saved): Saved {
  const copied = tensors.map((tensor) => ({ ...tensor, values: tensor.values.slice() }));
  return { state: copyOfFields(state), tensors: copied, step, rows };
}

export class SimulatedServer {
  readonly #simulation: Simulation;
  coordinator: Coordinator | null = null;
  #run: Run | null = null;
  #haltedUntil = 0;
  #life = 0;
  crashes = 0;
  failovers = 0;
  standby: SimulatedStandby | null = null;
  /** Null: the run has no tables, or there is no server. */
  rows: WatchedRows | null = null;
  #replication: Replication | null = null;
  /** Checkpoints that are safe, oldest first. */
  readonly #saved: Saved[] = [];
  #savedAt = 0;
  /** Applied pushes of this line of history: a crash takes away what came after the checkpoint. And what they have used. */
  #log: Applied[] = [];
  #newestStep = 0;
  readonly #used = new Set<string>();
  readonly #leases = new Map<number, Lease>();
  #stepSeen = 0;
  #bestSeen = Infinity;
  /** The shared payload of each step, as it was when the step was made. */
  readonly #vectors = new Map<string, Float32Array>();

  constructor(simulation: Simulation) {
    this.#simulation = simulation;
  }

  get log(): readonly Applied[] {
    return this.#log;
  }

  set log(entries: Applied[]) {
    this.#log = [];
    this.#newestStep = 0;
    this.#used.clear();
    for (const entry of entries) this.#enter(entry);
  }

  #enter(entry: Applied): void {
    this.#log.push(entry);
    this.#newestStep = Math.max(this.#newestStep, entry.step);
    this.#used.add(nameOf(entry));
    for (const minibatch of entry.minibatches) this.#used.add(minibatch);
  }

  get step(): number {
    return this.#run?.step ?? 0;
  }

  get phase(): string {
    return this.#run?.phase ?? 'down';
  }

  get rowSteps(): number {
    return this.#run?.tables?.rowStep ?? 0;
  }

  get over(): boolean {
    return this.#run?.over === true && this.coordinator !== null;
  }

  async begin(): Promise<void> {
    const { shards, state } = this.#simulation;
    if (shards.length > 0) {
      this.#beginOnShards();
      return;
    }
    if (state) {
      this.#beginOnDisk(state);
      return;
    }
    this.#open(null);
    const config = { ...this.#simulation.config, ...this.#simulation.options.sabotage?.config };
    const life = this.#life;
    const run = await this.coordinator!.create({
      ...{ id: 'r', experiment: 'regression', experimentHash: 'hash', config },
    });
    // It may have been killed meanwhile.
    if (life !== this.#life) return;
    this.#run = run;
    this.#watchRows(run, null);
    this.#tick(this.#life);
    this.#awaitStandby(500);
  }

  /** What the server would do now, when it stands still after that; never, when it is dead. */
  enter(act: () => unknown): void {
    const { now } = this.#simulation;
    if (this.#haltedUntil > now)
      this.#simulation.at(this.#haltedUntil - now, () => this.enter(act));
    else if (this.coordinator) act();
  }

  halt(ms: number): void {
    this.#haltedUntil = Math.max(this.#haltedUntil, this.#simulation.now + ms);
  }

  #tick(life: number): void {
    this.#simulation.at(1_000, () => {
      if (life !== this.#life) return;
      this.enter(() => life === this.#life && this.coordinator!.tick());
      this.#tick(life);
    });
  }

  #open(saved: Saved | null): void {
    this.#life++;
    const life = this.#life;
    const simulation = this.#simulation;
    this.coordinator = this.#createCoordinator(life, null);
    this.#replicate(life);
    if (!saved) return;
    const copy = copyOfSaved(saved);
    const chosen = simulation.options.sabotage?.restored?.(copy, this.#saved) ?? copy;
    const run = Run.restore(chosen.state, chosen.tensors, null, life);
    this.#restored(run, saved);
    this.#watchRows(run, saved.rows);
    this.#begin(run);
  }

  /** The part of the keeper that decides what is safe, without files. */
  #keeperInMemory(life: number, shards: ShardPool | null): Keeper {
    const simulation = this.#simulation;
    const write = (run: Run) => {
      if (!run.hasParameters) return;
      this.#savedAt = simulation.now;
      if (shards) {
        this.#saveShards(shards, run);
        return;
      }
      const state = JSON.parse(JSON.stringify(run.state(simulation.now))) as RunState;
      const rows = this.rows?.save(insideOf(run).fields.best?.capture ?? null) ?? null;
      const copy = { state, tensors: run.tensors(), step: run.step, rows };
      simulation.at(simulation.delayMs(50), () => {
        if (life === this.#life) this.#saved.push(copy);
      });
    };
    const keeper: Partial<Record<keyof Keeper, unknown>> = {
      life,
      register: async () => {},
      onPhase: write,
      onBest: write,
      onLost: write,
      onRollback: write,
      onEvaluation: () => {},
      onStep: (run: Run) => {
        if (simulation.now - this.#savedAt > 1_500) write(run);
      },
      tick: () => {},
      saveNow: async () => {},
      mustKeep: async () => {},
      close: async () => {},
      latest: () => null,
      isBeingRemoved: () => false,
      checkpoints: async () => [],
      publishedStep: () => 0,
      problem: () => null,
      spoilt: () => null,
      leftOut: () => [],
    };
    return keeper as unknown as Keeper;
  }

  #createCoordinator(
    life: number,
    shards: ShardPool | null,
    keeper = this.#keeperInMemory(life, shards),
  ): Coordinator {
    const simulation = this.#simulation;
    return new Coordinator({
      shards,
      keeper,
      now: () => simulation.now,
      log: this.#noted,
      later: (ms, act) => simulation.at(ms, () => this.enter(() => life === this.#life && act())),
    });
  }

  readonly #noted = (line: string): void => {
    if (line.startsWith('defect')) this.#simulation.violate(6, line);
  };

  // A disk.

  /** It reads its state, and does not listen yet; or its shards are lost, and it reads it again. */
  isReading = false;
  /** Null: no process has the disk. */
  #mounted: { end(): void } | null = null;

  #openState(state: SimulatedState, life: number, shards: ShardPool | null): Keeper {
    const { keeper, end } = state.open({
      ...{ life, shards, enter: this.#enterOf(life), log: this.#noted },
      now: () => this.#simulation.now,
    });
    this.#mounted = { end };
    return keeper;
  }

  #beginOnDisk(state: SimulatedState): void {
    const simulation = this.#simulation;
    const life = ++this.#life;
    const isMine = () => life === this.#life;
    const keeper = this.#openState(state, life, null);
    const coordinator = this.#createCoordinator(life, null, keeper);
    this.#readState(state, { keeper, coordinator, isMine }).then(
      (run) => {
        if (!isMine()) return;
        this.coordinator = coordinator;
        this.#run = run;
        this.#tick(life);
      },
      (error: unknown) => {
        if (!isMine()) return;
        this.#mustBeLoss(error);
        // The process ends, and is started again.
        this.#die();
        simulation.at(1_000, () => this.#beginOnDisk(state));
      },
    );
  }

  /** The run comes back as it was in the newest checkpoint that nothing has damaged. @returns null: the server is dead. */
  async #readState(
    state: SimulatedState,
    {
      keeper,
      coordinator,
      isMine,
      whole = null,
    }: {
      readonly keeper: Keeper;
      readonly coordinator: Coordinator;
      readonly isMine: () => boolean;
      readonly whole?: WholeShard | null;
    },
  ): Promise<Run | null> {
    const simulation = this.#simulation;
    this.isReading = true;
    try {
      const saved = state.newest();
      const all = await keeper.known();
      if (!isMine()) return null;
      const known = all.find(({ id }) => id === 'r');
      for (const other of all) {
        const run = other === known ? null : await keeper.read(other);
        if (run) coordinator.adoptLate(run);
      }
      if (!known && state.isRemoved) return null;
      if (!known) {
        const config = { ...simulation.config, ...simulation.options.sabotage?.config };
        const what = { id: 'r', experiment: 'regression', experimentHash: 'hash', config };
        const run = await coordinator.create(what);
        this.#forgetAll();
        if (isMine()) this.#watch(run, null, whole);
        return isMine() ? run : null;
      }
      if (saved && whole) whole.restoring(saved, simulation.layout, RESTORED_BEST);
      const run = await keeper.read(known);
      if (!isMine()) return null;
      if (!run) throw new DownpourError('DP_DISK', 'the run cannot be read');
      if (saved) this.#restored(run, saved);
      else {
        this.#forgetAll();
        if (run.hasParameters) simulation.violate(2, `no checkpoint is whole, and one was read`);
      }
      this.#watch(run, saved, whole);
      coordinator.adoptLate(run);
      return run;
    } finally {
      if (isMine()) this.isReading = false;
    }
  }

  #watch(run: Run, saved: Saved | null, whole: WholeShard | null): void {
    const { state } = this.#simulation;
    this.#watchRows(run, saved?.rows ?? null);
    if (whole) {
      whole.begin();
      whole.rows = this.rows;
      // What the rows are from the first command on.
      this.rows?.told(0);
      this.#watchPushes(run, whole);
    }
    const { rows } = this;
    state?.watch(run, () => ({
      state: JSON.parse(JSON.stringify(run.state(this.#simulation.now))),
      tensors: whole ? [] : run.tensors(),
      ought: whole?.values?.slice() ?? null,
      step: run.step,
      rows: rows?.save(insideOf(run).fields.best?.capture ?? null) ?? null,
    }));
  }

  /** @param from what its tables hold; null: nothing yet. */
  #watchRows(run: Run, from: SavedRows | null): void {
    const violate = (invariant: number, what: string) => this.#simulation.violate(invariant, what);
    const { fields } = insideOf(run);
    const follows = this.#simulation.follow !== null;
    const { shardCount } = this.#simulation;
    this.rows = run.tables
      ? new WatchedRows(run, violate, from, fields, follows, shardCount)
      : null;
  }

  // Shards.

  /** Acts in this process: at all times when it does not stand still, also before it listens. */
  #enterOf(life: number): (act: () => unknown) => void {
    const enter = (act: () => unknown): void => {
      const { now } = this.#simulation;
      if (life !== this.#life) return;
      if (this.#haltedUntil > now) this.#simulation.at(this.#haltedUntil - now, () => enter(act));
      else act();
    };
    return enter;
  }

  /** As server/main.ts does it. The server listens when it has its shards and has read the run. */
  #beginOnShards(): void {
    const simulation = this.#simulation;
    const life = ++this.#life;
    const isAlive = () => life === this.#life;
    const enter = this.#enterOf(life);
    const { shards } = simulation;
    for (const shard of shards) shard.obeyed = () => this.whole?.obeyed(shard);
    const ends: VirtualEnd[] = [];
    this.#ends = ends;
    const pool = new ShardPool({
      ...{ count: simulation.shardCount, token: life, access: () => null, tls: () => null },
      source: virtualSource(simulation, shards, isAlive),
      now: () => simulation.now,
      log: () => {},
      dial: virtualDial(simulation, shards, enter, ({ near }) => void ends.push(near)),
      timers: virtualTimers(simulation, enter),
    });
    const { state } = simulation;
    const keeper = state ? this.#openState(state, life, pool) : this.#keeperInMemory(life, pool);
    const coordinator = this.#createCoordinator(life, pool, keeper);
    const read = () => this.#readOnShards({ coordinator, keeper, pool, isAlive });
    const opening = pool.open().then(read);
    let beginning: Promise<void> | null = null;
    const restart = () => {
      this.#die();
      simulation.at(1_000, () => this.#beginOnShards());
    };
    const beginAnew = async () => {
      await opening.catch(() => {});
      while (isAlive()) {
        try {
          if (state) await keeper.abandon();
          await pool.open();
          if (pool.whole) break;
        } catch (error) {
          if (isAlive()) this.#mustBeLoss(error);
          await new Promise<void>((resolve) => simulation.at(1_000, resolve));
        }
      }
      beginning = null;
      if (!isAlive()) return;
      coordinator.goOn();
      await read().catch((error: unknown) => {
        if (!isAlive()) return;
        this.#mustBeLoss(error);
        // Somebody starts the server again when a full disk keeps it from reading the run.
        if (pool.whole) restart();
      });
    };
    pool.lost = (why) => {
      this.#run = null;
      this.rows = null;
      this.whole = null;
      coordinator.interrupt(why);
      beginning ??= beginAnew();
    };
    const listen = () => {
      this.coordinator = coordinator;
      this.#tick(life);
    };
    opening.then(
      () => isAlive() && listen(),
      (error: unknown) => {
        if (!isAlive()) return;
        this.#mustBeLoss(error);
        // The process ends, and is started again.
        if (beginning) listen();
        else restart();
      },
    );
  }

  #mustBeLoss(error: unknown): void {
    const { state } = this.#simulation;
    if (errorCode(error) === 'DP_SHARD_LOST') return;
    if (errorCode(error) === 'DP_DISK' && state && state.disk.refusals > 0) return;
    const text = error instanceof Error ? error.stack : String(error);
    this.#tell(() => this.#simulation.violate(6, `a server that begins: ${text}`));
  }

  /** A violation that is found where nobody waits. */
  #tell(act: () => void): void {
    try {
      act();
    } catch {
      // It is told at the end of the event.
    }
  }

  /** Lives of the run: each loss of a shard is the end of one. */
  #lives = 0;

  async #readOnShards({
    coordinator,
    keeper,
    pool,
    isAlive,
  }: {
    readonly coordinator: Coordinator;
    readonly keeper: Keeper;
    readonly pool: ShardPool;
    readonly isAlive: () => boolean;
  }): Promise<void> {
    const simulation = this.#simulation;
    const lives = ++this.#lives;
    const isMine = () => isAlive() && lives === this.#lives;
    if (!isMine()) return;
    const violate = (invariant: number, what: string) => simulation.violate(invariant, what);
    const isByRanges = simulation.fragments > 1 || simulation.overflowsOnShards;
    const whole = new WholeShard(violate, pool, this.#config, this.#pulls, isByRanges);
    this.whole = whole;
    this.#saving = null;
    if (simulation.state) {
      const read = await this.#readState(simulation.state, {
        ...{ keeper, coordinator, whole },
        isMine: () => isMine() && pool.whole,
      });
      if (read && coordinator.find('r') === read) this.#run = read;
      return;
    }
    const saved = this.#saved.at(-1);
    let run: Run;
    if (!saved) {
      const more = { experiment: 'regression', experimentHash: 'hash', createdAt: CREATED_AT };
      run = new Run({ id: 'r', config: this.#config, ...more }, pool, { life: lives, since: 1 });
      this.#forgetAll();
    } else {
      const copy = copyOfSaved(saved);
      const { state, tensors } = simulation.options.sabotage?.restored?.(copy, this.#saved) ?? copy;
      const own = await giveShards(pool, fileOf(tensors), state);
      if (!isMine() || !pool.whole) return;
      whole.restored({ state, tensors }, simulation.layout, RESTORED_BEST);
      run = Run.restore(state, own, pool, lives);
      this.#restored(run, saved);
    }
    this.#watch(run, saved ?? null, whole);
    coordinator.adoptLate(run);
    // The server takes none while it waits for its shards.
    if (coordinator.find('r') === run) this.#run = run;
  }

  get #config(): RunConfig {
    const { config, options } = this.#simulation;
    return resolveConfig({ ...config, ...options.sabotage?.config });
  }

  /** Pushes are decided on when their last part has come: then it is looked at what becomes of them. */
  #watchPushes(run: Run, whole: WholeShard): void {
    const call = run.call.bind(run) as (of: RunCall, payload?: Uint8Array) => unknown;
    const watched = (of: RunCall, payload?: Uint8Array): unknown => {
      if (of.call === 'initialRows') whole.beginsRows(payload!);
      if (of.call !== 'push' || !of.others) return call(of, payload);
      const { push, worker } = of;
      const { session } = of.others;
      const sent = whole.comes({ session, sequence: push.sequence }, payload!);
      const connection = [...this.#simulation.sockets].find((each) => each.session.id === session)!;
      if (!sent)
        this.#simulation.violate(1, `push ${push.sequence} is decided on, and was not sent`);
      connection.answers = [];
      this.lookUp(push);
      const coming = this.#wholePush(push, session, sent!);
      this.rows?.begin(worker, coming);
      const before = run.step;
      const counted = this.sequenceOf(worker);
      const answer = call(of, payload);
      const counts = counted < push.sequence && this.sequenceOf(worker) >= push.sequence;
      this.rows?.end(worker, coming, counts);
      this.#judgements.push({ connection, push, before, after: run.step, counts });
      return answer;
    };
    run.call = watched as never;
  }

  readonly #judgements: {
    readonly connection: SimulatedConnection;
    readonly push: Push;
    readonly before: number;
    readonly after: number;
    readonly counts: boolean;
  }[] = [];

  /** As a server without shards gets it. One that cannot be put together must be rejected. */
  #wholePush(
    push: Push,
    session: string,
    sent: SentParts,
  ): { readonly push: Push; readonly payload: Uint8Array } {
    if (!this.rows || !push.rows) return { push, payload: NO_BYTES };
    try {
      const { keys, ...whole } = this.rows.wholeOf(push, sent);
      this.rows.wants(session, push.sequence, keys);
      return whole;
    } catch {
      return { push, payload: NO_BYTES };
    }
  }

  /** The part of the keeper that puts a checkpoint together; one at a time. */
  #saveShards(pool: ShardPool, run: Run): void {
    if (this.#saving) {
      this.#saving.again = true;
      return;
    }
    const simulation = this.#simulation;
    const saving = { again: false };
    this.#saving = saving;
    const { whole, rows: watched } = this;
    if (run !== this.#run || !whole) return;
    const state = JSON.parse(JSON.stringify(run.state(simulation.now))) as RunState;
    const rows = watched?.save(insideOf(run).fields.best?.capture ?? null) ?? null;
    const { step } = run;
    const ought = whole.values!.slice();
    const copy = (values: Float32Array) => values.slice();
    const parts = saveShards(pool, run, 'last', { changes: false, copy });
    const room = (size: number) => new Float32Array(size);
    const own = run.copyRows('last', { changes: false, room })?.tensors() ?? [];
    const collect = async () => {
      const tensors: NamedTensor[] = [];
      for (const { name, shape, pieces } of [...parts.tensors, ...(await parts.rows(own))]) {
        const all: Uint8Array[] = [];
        for await (const piece of pieces()) all.push(piece.slice());
        tensors.push({ name, shape, values: floatsOf(joinedBytes(all)) });
      }
      if (saving !== this.#saving) return;
      parts.done(true);
      run.tables?.endCopy(true);
      this.#saving = null;
      const dense = tensors.filter(({ name }) => !name.startsWith('@')).map(({ values }) => values);
      if (!isJoined(ought, dense)) {
        simulation.violate(
          3,
          `a checkpoint of step ${step} has other parameters than the shards had`,
        );
      }
      this.#saved.push({ state, tensors, step, rows });
      if (saving.again) this.#saveShards(pool, run);
    };
    collect().catch((error: unknown) => this.#mustBeLoss(error));
  }

  /** A checkpoint that is being written. */
  #saving: { again: boolean } | null = null;
  /** Null: the server has no shards, or is without them. */
  whole: WholeShard | null = null;
  /** See `WholeShard`. */
  readonly #pulls = new Map<string, Uint8Array>();
  /** Its ends of the connections to shards. */
  #ends: VirtualEnd[] = [];

  /** A worker has all parts of what it was sent. */
  pulled(session: string, pull: number, values: Float32Array): void {
    const name = `${session} ${pull}`;
    const ought = this.#pulls.get(name);
    this.#pulls.delete(name);
    if (ought && areSameBytes(ought, bytesOf(values))) return;
    const what = ought
      ? 'others than those of one shard with all of them'
      : 'not those it was sent';
    this.#simulation.violate(3, `the parameters of pull ${pull} are ${what}`);
  }

  #begin(run: Run): void {
    this.coordinator!.adopt(run);
    this.#run = run;
    this.#tick(this.#life);
    this.#awaitStandby(3_000);
  }

  // The standby.

  #replicate(life: number): void {
    const simulation = this.#simulation;
    if (!simulation.follow) return;
    const mine = (act: () => void) => () => this.enter(() => life === this.#life && act());
    const replication = new Replication({
      runs: () => this.coordinator?.runs ?? [],
      ...{ token: life, leaseMs: 2_000, confirm: async () => {}, changed: () => {} },
      now: () => simulation.now,
      log: () => {},
      later: (ms, act) => simulation.at(ms, mine(act)),
    });
    this.coordinator!.replication = replication;
    this.#replication = replication;
    const beat = () => {
      if (life !== this.#life || simulation.calm) return;
      this.enter(() => life === this.#life && replication.tick());
      simulation.at(1_000, beat);
    };
    simulation.at(1_000, beat);
  }

  /** Another one is started, unless it is there. */
  #awaitStandby(usualMs: number): void {
    const simulation = this.#simulation;
    const { follow } = simulation;
    const life = this.#life;
    if (!follow) return;
    simulation.at(simulation.delayMs(usualMs), () =>
      this.enter(() => {
        if (life !== this.#life || simulation.calm) return;
        this.standby = new SimulatedStandby(simulation, this.#replication!, follow);
      }),
    );
  }

  /** It is gone for this server, and another one comes. */
  standbyGone(): void {
    this.standby = null;
    this.#awaitStandby(2_000);
  }

  /** The standby has the lease: the newer of its replica and the checkpoint goes on. @returns false: it has nothing. */
  #takeOver(standby: SimulatedStandby, lastRows: WatchedRows | null): boolean {
    const replica = standby.replicas.runs.get('r');
    if (!replica || !standby.replicas.whole) return false;
    const last = this.#saved.at(-1);
    const { generation, step } = replica;
    if (last && last.state.generation >= generation) {
      const { state } = last;
      if (state.generation > generation || state.step > step) return false;
    }
    this.failovers++;
    const state = JSON.parse(JSON.stringify(replica.state(replica.nowMs))) as RunState;
    const best = insideOf(replica).fields.best?.capture ?? null;
    const moment = replica.tables ? lastRows!.momentOf(replica.tables, best) : null;
    // Rows of a file that came before the parameters are asked for again, with the parameters.
    const rows = state.initialisations > 0 ? moment : null;
    const saved = { state, tensors: replica.tensors(), step, rows };
    this.#open(null);
    const run = Run.restore(copyOfFields(state), replica.tensors(), null, this.#life);
    this.#restored(run, saved);
    this.#watchRows(run, rows);
    this.#begin(run);
    return true;
  }

  /** The standby was told all runs, and lives: no acknowledged push is lost but those that may be. */
  #mustHaveKept(before: readonly Applied[]): void {
    const lost = before.filter((entry) => entry.acknowledged && !this.log.includes(entry));
    const { lagMax, mode } = this.#simulation.follow!;
    if (lost.length <= lagMax) return;
    this.#simulation.violate(
      9,
      `${lost.length} acknowledged pushes are lost, push ${lost[0]!.sequence} of ${lost[0]!.key} the first; replication was ${mode}, ${lagMax} may be`,
    );
  }

  /** The capture that a worker evaluates; null: it does not evaluate this. */
  captureFor(key: string, id: number | null): number | null {
    if (id === null || !this.rows) return null;
    const { evaluation } = insideOf(this.#run!).fields;
    if (evaluation?.id !== id) return null;
    const { worker, late, capture } = evaluation;
    return worker === key || late.includes(key) ? capture : null;
  }

  /** Rows leave for a worker, at the end of the message. */
  rowsLeave(message: ServerMessage, parts: readonly Uint8Array[]): void {
    const rows = message.type === 'work' ? message.rows : message.type === 'rows' ? message : null;
    if (rows) this.rows?.leaves(rows, parts.at(-1)!);
  }

  /** A message leaves for a worker. */
  told(key: string, message: ServerMessage): void {
    if (message.type !== 'work') return;
    for (const { sequence, outcome } of message.acknowledgements) {
      if (outcome !== 'applied' && outcome !== 'damped') continue;
      const entry = this.log.find((each) => each.key === key && each.sequence === sequence);
      if (entry) entry.acknowledged = true;
      // While a push is dealt with, `judge` has not entered it yet.
      else this.#acknowledged = `${key} ${sequence}`;
    }
  }
  #acknowledged = '';

  #restored(run: Run, saved: Saved): void {
    const simulation = this.#simulation;
    if (run.step !== saved.step) {
      simulation.violate(2, `restored at step ${run.step} from the checkpoint of ${saved.step}`);
    }
    if (simulation.shards.length === 0) {
      const known = inOrderOfKeys(saved.tensors);
      for (const [name, values] of inOrderOfKeys(run.tensors())) {
        const before = known.get(name);
        if (before && areSameBytes(bytesOf(before), bytesOf(values))) continue;
        simulation.violate(3, `tensor '${name}' was restored with other values`);
      }
    }
    this.#stepSeen = run.step;
    this.#bestSeen = saved.state.best?.evaluation.loss ?? Infinity;
    const collected = run.state(simulation.now).collected ?? [];
    this.log = this.log.filter(
      (entry) =>
        entry.step <= run.step ||
        collected.some(({ worker, lease }) => worker === entry.key && lease.id === entry.lease),
    );
    this.#vectors.clear();
    this.#leases.clear();
  }

  /** kill -9; it is started again, or its standby takes over. */
  crash(downMs: number): void {
    const { state, shards } = this.#simulation;
    if (!this.coordinator && !this.#mounted) return;
    this.crashes++;
    if (shards.length > 0 || state) {
      this.#die();
      state?.strike();
      this.#simulation.at(downMs, () => void this.begin());
      return;
    }
    const { standby, rows } = this;
    this.standby = null;
    this.rows = null;
    this.#replication = null;
    standby?.primaryDied();
    this.coordinator = null;
    this.#run = null;
    this.#life++;
    for (const connection of [...this.#simulation.sockets]) connection.serverDied();
    this.#simulation.at(downMs, () => {
      const before = this.log;
      if (standby?.alive && this.#takeOver(standby, rows)) {
        this.#mustHaveKept(before);
        return;
      }
      const last = this.#saved.at(-1) ?? null;
      if (last) {
        this.#open(last);
        return;
      }
      // Nothing was safe: the run begins anew, as its record says.
      this.#forgetAll();
      void this.begin();
    });
  }

  #forgetAll(): void {
    this.log = [];
    this.#stepSeen = 0;
    this.#bestSeen = Infinity;
    this.#leases.clear();
    this.#vectors.clear();
  }

  /** The simulation is over. */
  end(): void {
    this.#mounted?.end();
  }

  /** The run; null: it is removed, or the server is dead. */
  get run(): Run | null {
    return this.#run;
  }

  /** kill -9, and of its machine perhaps too; it is started again. */
  restart(): void {
    this.#die();
    this.#simulation.state!.die();
    this.#simulation.at(1_000, () => void this.begin());
  }

  /** With all connections. */
  #die(): void {
    this.#life++;
    this.#mounted?.end();
    this.#mounted = null;
    this.isReading = false;
    this.coordinator = null;
    this.#run = null;
    this.rows = null;
    this.whole = null;
    this.#saving = null;
    for (const end of this.#ends) end.died();
    for (const connection of [...this.#simulation.sockets]) connection.serverDied();
  }

  /** Right after a push was dealt with. */
  judge(
    connection: SimulatedConnection,
    push: Push,
    { before, after, counts }: { before: number; after: number; counts: boolean },
  ): void {
    const simulation = this.#simulation;
    const { answers } = connection;
    const told = answers
      .flatMap((answer) => (answer.type === 'work' ? answer.acknowledgements : []))
      .find(({ sequence }) => sequence === push.sequence);
    const outcome: Acknowledgement['outcome'] | null = told?.outcome ?? null;
    const steps = after - before;
    const { consistency } = simulation;
    const several = collects(consistency);
    // The standby has to have it first: what the worker will be told is seen when it is. A connection that is being closed
    // carries no more answers: its worker sends the push again.
    const { open } = connection.serverEnd;
    const later = !told && (this.#replication !== null || !open) && counts;
    const applied = later || outcome === 'applied' || outcome === 'damped';
    // It may be the last of several that make a step, and so may one be for whom there is no more work.
    if (several ? steps > 1 : steps !== (applied ? 1 : 0)) {
      simulation.violate(1, `push ${push.sequence} was ${outcome}, and the step rose by ${steps}`);
    }
    if (!applied) {
      const isTold = told || answers.some(({ type }) => type === 'error' || type === 'end');
      if (!isTold && open && !this.#run?.over && !this.#replication?.holding) {
        simulation.violate(6, `push ${push.sequence} was not applied, and nobody was told`);
      }
      if (outcome === 'rejected' && !told!.code) {
        simulation.violate(6, `push ${push.sequence} was rejected without a reason`);
      }
      return;
    }
    const { stalenessMax } = consistency;
    const staleness = before - push.step;
    if (isInRounds(consistency) && staleness > 0) {
      simulation.violate(4, `a push of staleness ${staleness} is in a step of another round`);
    }
    if (stalenessMax !== null && staleness > stalenessMax) {
      simulation.violate(4, `a push of staleness ${staleness} was applied; ${stalenessMax} may be`);
    }
    const { key } = connection.session;
    if (this.#used.has(nameOf({ key, sequence: push.sequence }))) {
      simulation.violate(1, `push ${push.sequence} of ${key} was applied twice`);
    }
    const lease = this.#leases.get(push.lease);
    if (!lease) {
      throw simulation.violation(8, `a push for lease ${push.lease}, never given, was applied`);
    }
    const minibatches = minibatchesOf(lease);
    for (const minibatch of minibatches) {
      if (this.#used.has(minibatch)) {
        simulation.violate(8, `minibatch ${minibatch} was used twice`);
      }
    }
    const acknowledged = this.#acknowledged === `${key} ${push.sequence}`;
    const step = after + (several && this.#run!.collected > 0 ? 1 : 0);
    if (
      isInRounds(consistency) &&
      this.log.some((each) => each.step === step && each.key === key)
    ) {
      simulation.violate(4, `step ${step} is of two pushes of ${key}`);
    }
    const { sequence } = push;
    this.#enter({ key, sequence, step, lease: push.lease, minibatches, acknowledged });
  }

  /** The last sequence of a worker's that counts. */
  sequenceOf(key: string): number {
    return this.#run ? (insideOf(this.#run).components.roster.find(key)?.lastSequence ?? 0) : 0;
  }

  /** A lease that was granted on a connection that was lost at that moment: the worker was never told. */
  lookUp({ lease: id }: Push): void {
    if (this.#leases.has(id) || !this.#run) return;
    const out = this.#run.state(this.#simulation.now).leases?.returned ?? [];
    this.given(out.map(({ lease }) => lease).filter((lease) => lease.id === id));
  }

  /** A worker is sent these. */
  given(leases: readonly Lease[]): void {
    for (const lease of leases) this.#leases.set(lease.id, lease);
  }

  /** Parameters as a worker has them, in the order of the model: those of that step, and not torn. */
  checkPayload(message: Work, payload: Float32Array): void {
    const { layout, fragments: count, ranges } = this.#simulation;
    const { fragment } = message;
    if (message.evaluation || this.#simulation.shards.length > 0) return;
    const all = this.#vectors.get(`${message.generation} ${message.step}`);
    const known =
      fragment === undefined
        ? all
        : all && fragmentOfVector(all, layout, ranges, { index: fragment, count });
    if (known !== undefined && !areEqual(known, payload)) {
      this.#simulation.violate(
        3,
        `the parameters sent for step ${message.step} are not those of it`,
      );
    }
  }

  /** An update by fragments moves one of them alone. */
  #checkFragments(run: Run, now: Float32Array): void {
    const { layout, fragments: count, ranges } = this.#simulation;
    const before = this.#vectors.get(`${run.generation} ${run.step - 1}`);
    if (count === 1 || before === undefined) return;
    const moved = Array.from({ length: count }, (_, index) => index).filter((index) => {
      const trainable = (all: Float32Array) =>
        fragmentOfVector(all, { ...layout, exchangedSize: layout.trainableSize }, ranges, {
          ...{ index, count },
        });
      return !areEqual(trainable(now), trainable(before));
    });
    if (moved.length <= 1) return;
    this.#simulation.violate(3, `step ${run.step} moved the fragments ${moved.join(' and ')}`);
  }

  /** After each event. */
  check(): void {
    for (const { connection, push, ...how } of this.#judgements.splice(0)) {
      if (this.#run) this.judge(connection, push, how);
    }
    const run = this.#run;
    if (!run || !this.coordinator) return;
    const simulation = this.#simulation;
    if (run.step < this.#stepSeen) {
      simulation.violate(2, `the step went back from ${this.#stepSeen} to ${run.step}`);
    }
    this.#stepSeen = run.step;
    const best = run.best?.loss ?? Infinity;
    if (best > this.#bestSeen) {
      simulation.violate(5, `the best went from ${this.#bestSeen} to ${best}`);
    }
    this.#bestSeen = best;
    // Those of a step that was never made are computed again, or needed no more.
    if (run.collected === 0 && this.#newestStep > run.step) {
      this.log = this.log.filter(({ step }) => step <= run.step);
    }
    this.#checkClocks(run);
    this.#checkOverflow(run);
    this.rows?.check(insideOf(run).fields);
    if (run.hasParameters && this.#mayHaveChanged()) this.#checkVector(run);
  }

  /** Those of shards are large: without a command they are looked at now and then. */
  #mayHaveChanged(): boolean {
    if (!this.whole) return true;
    const { commands } = this.whole;
    if (commands === this.#commandsSeen && ++this.#looks % LOOKS > 0) return false;
    this.#commandsSeen = commands;
    return true;
  }
  #commandsSeen = 0;
  #looks = 0;

  /** Finite, and the same as before in this step. */
  #checkVector(run: Run): void {
    const simulation = this.#simulation;
    const parts = this.whole
      ? this.#partsOfShards(run, this.whole)
      : partsOf(run, simulation.tensors);
    const at = `${run.generation} ${run.step}`;
    const known = this.#vectors.get(at);
    if (known && isJoined(known, parts)) return;
    const vector = concatFloats(parts);
    const bad = vector.findIndex((x) => !Number.isFinite(x));
    if (bad >= 0) {
      simulation.violate(
        7,
        `parameters at step ${run.step} are not finite: ${vector[bad]}, of ${vector.length} number ${bad}`,
      );
    }
    if (known) simulation.violate(3, `the parameters changed within step ${run.step}`);
    this.#vectors.set(at, vector);
    this.#checkFragments(run, vector);
  }

  #partsOfShards(run: Run, whole: WholeShard): Float32Array[] {
    whole.mustBe(liveValues(insideOf(run).components.vector.mustParameters));
    return [whole.values!];
  }

  /** No worker has begun a minibatch further ahead of the slowest than it may: clocks count those that ended. */
  #checkClocks(run: Run): void {
    const simulation = this.#simulation;
    const { mode, aheadMax = 3 } = simulation.consistency;
    if (mode !== 'bounded') return;
    const members = insideOf(run).components.mode?.state().members ?? [];
    const clocks = members
      .filter(([, , standing]) => standing === 'ready')
      .map(([, clock]) => clock);
    const apart = Math.max(...clocks) - Math.min(...clocks);
    if (apart <= aheadMax + 1) return;
    simulation.violate(4, `the clocks of workers are ${apart} apart; aheadMax is ${aheadMax}`);
  }

  /** How often the parameters of one of the shards overflowed. */
  overflows = 0;
  /** When they did last; null: none have, or the run went back. */
  #overflowedAt: number | null = null;

  /** Others have made the update that one of the shards could not make: the run must go back. */
  #checkOverflow(run: Run): void {
    const { now, shards } = this.#simulation;
    if (!this.whole?.isTorn || run.over) this.#overflowedAt = null;
    else if (this.#overflowedAt === null) {
      this.overflows++;
      this.#overflowedAt = now;
    }
    const stood = Math.max(this.#haltedUntil, ...shards.map(({ haltedUntil }) => haltedUntil));
    if (now - Math.max(this.#overflowedAt ?? now, stood) < GO_BACK_MS) return;
    this.#simulation.violate(
      7,
      `the parameters of a shard overflowed, and the run did not go back for ${GO_BACK_MS} ms`,
    );
  }

  checkEnd(): void {
    const run = this.#run!;
    if (run.phase !== 'finished' || !run.reason.startsWith('reached epochsMax')) return;
    const { trainCount } = problem.summary;
    const { epochsMax } = this.#simulation.config;
    for (let epoch = 0; epoch < epochsMax!; epoch++) {
      for (let start = 0; start < trainCount; start += 4) {
        const minibatch = `train ${epoch} ${start}`;
        if (this.#used.has(minibatch)) continue;
        this.#simulation.violate(8, `minibatch ${start} of epoch ${epoch} was never used`);
      }
    }
  }
}
