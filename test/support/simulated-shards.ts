import type { Parameters } from '../../server/core/parameters.ts';
import { rangesOf, Shard } from '../../server/core/shard.ts';
import type { ShardCommand } from '../../server/core/shard-command.ts';
import { isOfRows, type PushedRows, type RunTables } from '../../server/core/tables/run-tables.ts';
import { type NamedTensor, VECTOR } from '../../server/core/vectors.ts';
import type { PoolTimers, ShardPool } from '../../server/shards/pool.ts';
import { ShardServer } from '../../server/shards/server.ts';
import type { FoundShard, ShardSource } from '../../server/shards/sources.ts';
import { bytesOf, concatFloats } from '../../shared/codec.ts';
import type { RunConfig } from '../../shared/config.ts';
import { createLayout, type Layout, layoutSpecs, type TensorSpec } from '../../shared/layout.ts';
import type { PushKind } from '../../shared/local-steps.ts';
import type { Range } from '../../shared/partition.ts';
import type { Saved } from './simulated-state.ts';
import {
  areSameBytes,
  joinedBytes,
  type VirtualEnd,
  type VirtualHost,
  type VirtualWorld,
} from './virtual-network.ts';

/**
 * Shards in the simulator of clusters: their processes, and one shard that has all parameters, is told the same commands, and
 * with which all others must agree to the bit.
 */

type Violate = (invariant: number, what: string) => never;

/** A shard that is gone is still announced for so long, as in the state store. */
const ANNOUNCED_MS = 6_000;
const LOOK_FOR_MS = 500;
const MEMORY_BYTES_MAX = 2 ** 28;

/** The process of a shard: its server, on virtual connections. */
export class SimulatedShard implements VirtualHost {
  readonly host: string;
  readonly #world: VirtualWorld;
  readonly #violate: Violate;
  server: ShardServer | null = null;
  #ends = new Set<VirtualEnd>();
  #goneAt = 0;
  /** It stands still up to then. */
  haltedUntil = 0;
  #life = 0;
  /** Told after each command that it has obeyed. */
  obeyed: () => void = () => {};

  constructor(world: VirtualWorld, violate: Violate, index: number) {
    this.#world = world;
    this.#violate = violate;
    this.host = `shard-${index}`;
    this.#start();
  }

  get found(): FoundShard {
    const { host } = this;
    return { address: { host, port: 7_001 }, url: `ws://${host}:7001` };
  }

  get listens(): boolean {
    return this.server !== null;
  }

  get isAnnounced(): boolean {
    return this.listens || this.#world.now - this.#goneAt < ANNOUNCED_MS;
  }

  #start(): void {
    const world = this.#world;
    const life = ++this.#life;
    const mine = (act: () => void) => () => life === this.#life && act();
    this.server = new ShardServer({
      log: (line) => {
        // What it cannot do was never to be told, but by a server that another one has followed.
        if (/^defect|^control: (?!DP_STATE_FENCED)/.test(line)) this.#violate(6, line);
      },
      memoryBytesMax: MEMORY_BYTES_MAX,
      now: () => world.now,
      soon: (act) => world.at(0, () => this.enter(mine(act))),
    });
    const tick = () => {
      if (life !== this.#life) return;
      this.enter(
        mine(() => {
          this.server!.tick();
          this.server!.line.look();
        }),
      );
      world.at(1_000, tick);
    };
    world.at(1_000, tick);
  }

  readonly enter = (act: () => unknown): void => {
    const { now } = this.#world;
    const life = this.#life;
    const again = () => life === this.#life && this.enter(act);
    if (this.haltedUntil > now) this.#world.at(this.haltedUntil - now, again);
    else if (this.server) act();
  };

  accepted(path: string, end: VirtualEnd): void {
    this.#ends.add(end);
    if (path === '/control') {
      end.dealtWith = ({ type }) => {
        if (type === 'command') this.obeyed();
      };
    }
    this.server!.accept(path as '/ws' | '/control', end as never, null);
  }

  halt(ms: number): void {
    this.haltedUntil = Math.max(this.haltedUntil, this.#world.now + ms);
  }

  /** kill -9; it is started again. */
  kill(downMs: number): void {
    if (!this.server) return;
    this.server = null;
    this.#life++;
    this.#goneAt = this.#world.now;
    this.haltedUntil = 0;
    for (const end of this.#ends) end.died();
    this.#ends = new Set();
    this.#world.at(downMs, () => this.#start());
  }

  /** One of its connections; null: it has none. */
  someEnd(draw: (count: number) => number): VirtualEnd | null {
    const open = [...this.#ends].filter((end) => end.open && !end.link.lost);
    return open[draw(open.length || 1)] ?? null;
  }
}

/** The state store, as far as a server looks for shards in it. @param isAlive the server that looks. */
export function virtualSource(
  world: VirtualWorld,
  shards: readonly SimulatedShard[],
  isAlive: () => boolean,
): ShardSource {
  return {
    find: (count, suspects) =>
      new Promise((resolve) => {
        const look = () => {
          if (!isAlive()) return;
          const found = shards.filter(({ isAnnounced }) => isAnnounced).map((shard) => shard.found);
          if (found.length < count - 1) {
            world.at(LOOK_FOR_MS, look);
            return;
          }
          const isSuspect = ({ url }: FoundShard) => suspects.has(url);
          const trusted = found.filter((shard) => !isSuspect(shard));
          resolve([...trusted, ...found.filter(isSuspect)].slice(0, count - 1));
        };
        look();
      }),
    close: async () => {},
  };
}

/** @param enter of the server. */
export function virtualTimers(
  world: VirtualWorld,
  enter: (act: () => unknown) => void,
): PoolTimers {
  const after = (ms: number, act: () => void) => {
    let ended = false;
    world.at(ms, () => enter(() => ended || act()));
    return () => {
      ended = true;
    };
  };
  const every = (ms: number, act: () => void) => {
    let ended = false;
    const again = () => {
      if (ended) return;
      act();
      world.at(ms, () => enter(again));
    };
    world.at(ms, () => enter(again));
    return () => {
      ended = true;
    };
  };
  return { after, every };
}

/** A push, or initial parameters, in parts: one for each shard, as its worker has sent them. */
export interface SentParts {
  /** Absent: a gradient, or initial parameters. */
  readonly kind?: PushKind | undefined;
  /** Absent: all of the parameters. */
  readonly fragment?: number | undefined;
  readonly rows: readonly (PushedRows | undefined)[];
  readonly payloads: readonly Uint8Array[];
}

/** The parts without rows and keys. */
const partsWithoutRows = ({ rows, payloads }: SentParts): Uint8Array[] =>
  payloads.map((payload, k) => {
    const { bytes = 0, wanted = 0 } = rows[k] ?? {};
    return payload.subarray(0, payload.length - bytes - wanted);
  });

/** The same, one after the other. */
export const denseParts = (sent: SentParts): Uint8Array => joinedBytes(partsWithoutRows(sent));

/** Rows beside it. */
export interface RowsWatch {
  /** They are to begin with these. */
  begins(payload: Uint8Array): void;
  /** A command of this number is told: they are as it makes them. */
  told(command: number): void;
  /** A shard has obeyed it. */
  obeyed(shard: number, tables: RunTables, command: number): void;
}

/** What all parameters are from a command on. */
interface Moment {
  readonly command: number;
  readonly values: Float32Array;
}

/** The whole shard has no rows, and keeps no checkpoints. */
const LEFT_OUT: readonly string[] = [
  ...['resetRows', 'beginRows', 'sendRows', 'readRows', 'save', 'saved'],
];
/** What changes the parameters. */
const CHANGING: readonly string[] = ['create', 'initialise', 'apply', 'combine', 'replace'];
const NOTHING = new Float32Array();

/** All that a shard, or a server, has, as it is. */
export const liveValues = ({ kept }: Parameters): Float32Array => kept.vectors()[0]![1];

/**
 * One shard with all parameters of a run, which is told what the others are told. A fragment has its share of each range, and
 * what overflows on one shard does not on another one: then it is several, one for each range.
 */
export class WholeShard {
  readonly #violate: Violate;
  readonly #pool: ShardPool;
  readonly #config: RunConfig;
  /** One for each range, or one for all. */
  readonly #whole: readonly Shard[];
  rows: RowsWatch | null = null;
  #ranges: readonly Range[] = [];
  /** Number of the newest command; 0: the shards are given a checkpoint. */
  #command = 0;
  /** Commands that each of the shards has been told and has not obeyed. */
  readonly #under: number[][];
  #moments: Moment[] = [];
  #grant = 0;
  /** Pushes by session and sequence, and initial parameters by session. */
  readonly #sent = new Map<string, SentParts[]>();
  /** The push that is being decided on. */
  #coming: SentParts | null = null;
  /** An update overflowed on one of the shards, and the others have made it. */
  isTorn = false;
  #initialRows: Uint8Array | null = null;

  /**
   * @param pulls what workers are sent, by session and number: they may have it when there is another one of this.
   * @param isByRanges there is one for each range.
   */
  constructor(
    violate: Violate,
    pool: ShardPool,
    config: RunConfig,
    pulls: Map<string, Uint8Array>,
    isByRanges = false,
  ) {
    this.#violate = violate;
    this.#pool = pool;
    this.#config = config;
    this.#under = Array.from({ length: pool.count }, () => []);
    const count = isByRanges ? pool.count : 1;
    this.#whole = Array.from({ length: count }, (_, index) => {
      return new Shard(index, count, {
        landed: (_of, _squares, problem) => {
          if (problem !== null) violate(3, `a push was admitted, and is as a whole: ${problem}`);
        },
        initialLanded: () => {},
        overflowed: () => {
          if (!isByRanges) violate(7, 'parameters overflowed on one shard with all of them');
          this.isTorn = true;
        },
        send: (session, { pull }, _snapshot, parts) => {
          const name = `${session} ${pull}`;
          const before = index > 0 ? [pulls.get(name)!] : [];
          pulls.set(name, joinedBytes([...before, ...parts]));
        },
        ...{ sendRows: () => {}, rowFacts: () => {} },
      });
    });
    pool.tell = (parts, command) => {
      this.#obey(command);
      Reflect.apply(Object.getPrototypeOf(pool).tell, pool, [parts, command]);
    };
    pool.tellOne = (index, command, values) => {
      if (command.kind === 'beginRows' && index === 1) {
        this.rows!.begins(this.#initialRows!);
        this.#count();
      }
      this.#under[index]!.push(this.#command);
      Reflect.apply(Object.getPrototypeOf(pool).tellOne, pool, [index, command, values]);
    };
  }

  get commands(): number {
    return this.#command;
  }

  #count(): void {
    this.#command++;
    this.rows?.told(this.#command);
  }

  get values(): Float32Array | null {
    const parts = this.#whole.map((shard) => {
      const held = shard.heldOf('r');
      return held && liveValues(held.parameters);
    });
    if (!parts.every((part) => part !== null)) return null;
    return parts.length === 1 ? parts[0]! : concatFloats(parts);
  }

  #execute(command: ShardCommand): void {
    for (const shard of this.#whole) shard.execute(command, NOTHING);
  }

  /** A whole vector. */
  #write(name: string, values: Float32Array): void {
    const of = { kind: 'write', run: 'r', name, start: 0 } as const;
    if (this.#whole.length === 1) this.#whole[0]!.execute(of, values);
    else {
      for (const [k, { start, end }] of this.#ranges.entries()) {
        this.#whole[k]!.execute(of, values.slice(start, end));
      }
    }
  }

  #obey(command: ShardCommand): void {
    if (command.kind === 'restoreRows') return;
    this.begin();
    this.#count();
    const { kind } = command;
    if (kind === 'create') {
      const { tensors } = command;
      this.#ranges = rangesOf(createLayout(tensors), this.#pool.count, this.#config);
      this.#create(tensors);
    } else if (!LEFT_OUT.includes(kind)) {
      if (kind === 'grant') this.#grant = command.grant;
      if (kind === 'initialise') this.#land(command.session, null);
      if (kind === 'apply' || kind === 'collect') this.#land(command.session, command.sequence);
      this.#execute(command);
    }
    if (kind === 'initialise' || kind === 'replace') this.isTorn = false;
    if (CHANGING.includes(kind)) this.#note();
  }

  #create(tensors: readonly TensorSpec[]): void {
    const { tables: _, ...dense } = this.#config;
    this.#execute({ kind: 'create', run: 'r', tensors, config: dense as RunConfig });
  }

  /** What the command is of. */
  #land(session: string, sequence: number | null): void {
    const run = 'r';
    const of = { encoding: 'f32' as const, room: null, release: () => {} };
    const sent = sequence === null ? this.#sent.get(session)![0]! : this.#coming!;
    const payloads = this.#whole.length === 1 ? [denseParts(sent)] : partsWithoutRows(sent);
    const { kind, fragment } = sent;
    const how = { ...(kind && { kind }), ...(fragment !== undefined && { fragment }) };
    for (const [k, shard] of this.#whole.entries()) {
      const part = { ...of, payload: payloads[k]! };
      if (sequence === null) shard.initialPart(run, session, this.#grant, part);
      else shard.part({ run, session, sequence }, { ...part, ...how });
    }
  }

  #note(): void {
    const values = this.values!.slice();
    this.#moments.push({ command: this.#command, values });
    // Those before are of no more use, when all shards are past them.
    const oldest = Math.min(...this.#under.slice(1).map(([first = this.#command]) => first));
    const keep = this.#moments.findLastIndex(({ command }) => command <= oldest);
    this.#moments = this.#moments.slice(Math.max(0, keep));
  }

  // What workers send.

  /** @param sequence null: initial parameters. */
  sends(session: string, sequence: number | null, sent: SentParts): void {
    const name = sequence === null ? session : `${session} ${sequence}`;
    this.#sent.set(name, [...(this.#sent.get(name) ?? []), sent]);
  }

  /** A push is decided on. @param payload of its first part. @returns its parts. */
  comes({ session, sequence }: { session: string; sequence: number }, payload: Uint8Array) {
    const versions = this.#sent.get(`${session} ${sequence}`) ?? [];
    const at = versions.findIndex(({ payloads: [first] }) => areSameBytes(first!, payload));
    // A liar sends several of one sequence, which are decided on in this order.
    this.#coming = versions.splice(0, at + 1).at(-1) ?? null;
    return this.#coming;
  }

  /** Rows that a worker has sent to begin with are taken. */
  beginsRows(payload: Uint8Array): void {
    this.#initialRows = payload.slice();
  }

  // What is looked at.

  /** The server's own part. */
  mustBe(own: Float32Array): void {
    const { values } = this;
    if (values && areSameBytes(bytesOf(own), bytesOf(values.subarray(0, own.length)))) return;
    this.#violate(3, 'the parameters of the server are not those of one shard with all of them');
  }

  obeyed(process: SimulatedShard): void {
    const index = 1 + this.#pool.addresses.findIndex(({ host }) => host === process.host);
    const command = index > 0 ? this.#under[index]!.shift() : undefined;
    const held = process.server?.shard?.heldOf('r');
    if (!command || !held) return;
    const moment = this.#moments.findLast((each) => each.command <= command);
    const { start, end } = this.#ranges[index]!;
    const now = liveValues(held.parameters);
    if (moment && !areSameBytes(bytesOf(now), bytesOf(moment.values.subarray(start, end)))) {
      this.#violate(
        3,
        `the parameters of shard ${index} are not those of one shard with all of them`,
      );
    }
    if (held.rows) this.rows?.obeyed(index, held.rows.tables, command);
  }

  // A checkpoint.

  /** What it goes on from, before the first command; null: it has. */
  #begins: (() => void) | null = null;

  /** The others are given a checkpoint, by who reads it. It goes on from it as well, before their first command. */
  restoring(saved: Saved, layout: Layout, best: number): void {
    this.#begins = () => this.restored(saved, layout, best);
  }

  /** The others have their checkpoint. */
  begin(): void {
    const begins = this.#begins;
    this.#begins = null;
    begins?.();
  }

  /** Goes on from a checkpoint, as the others. Those are told meanwhile; what they are told from now on is looked at. */
  restored(
    { state, tensors }: Pick<Saved, 'state' | 'tensors'>,
    layout: Layout,
    best: number,
  ): void {
    const run = 'r';
    this.#ranges = rangesOf(layout, this.#pool.count, state.options.config);
    this.#create(layoutSpecs(layout));
    const of = (name: string) => tensors.find((tensor) => tensor.name === name)!.values;
    const all = concatFloats(layout.tensors.map(({ name }) => of(name)));
    this.#write(VECTOR, all);
    for (const { name, values } of tensors) {
      if (!name.startsWith('@') || isOfRows(name)) continue;
      this.#write(name, values);
    }
    const workers = state.workers.map(([key, sequence]) => [key, sequence] as const);
    const parameters = state.parameters!;
    const kept = state.best ? best : null;
    this.#execute({ kind: 'restore', run, state: parameters, best: kept, workers });
    this.#count();
    this.#note();
  }
}

/** A checkpoint as a file that is open. */
export const fileOf = (tensors: readonly NamedTensor[]) => {
  const of = (name: string) => tensors.find((tensor) => tensor.name === name)?.values ?? NOTHING;
  return {
    size: (name: string) => of(name).length,
    read: async (name: string, start: number, count: number) =>
      of(name).slice(start, start + count),
  };
};
