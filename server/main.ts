import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { checkpointFolder } from '../files/checkpoint.ts';
import { SERVER_DEFAULTS } from '../shared/config.ts';
import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { webSocketAddress } from '../shared/rest-client.ts';
import { Said } from '../shared/said.ts';
import { VERSION } from '../shared/version.ts';
import { isLoopback, localSocketWanted } from '../wire/local-socket.ts';
import { tryStraight } from '../wire/node-sockets.ts';
import { Access, mustBeGuarded, type TokenSources, tokenSources } from './access/access.ts';
import { defaultBytesMax } from './access/memory.ts';
import { PORTS } from './access/sockets.ts';
import { type TlsFiles, TlsMaterial } from './access/tls.ts';
import { Copier } from './checkpoints/elsewhere/copier.ts';
import { restoreInto } from './checkpoints/elsewhere/restore.ts';
import { Bucket, type S3Place } from './checkpoints/elsewhere/s3.ts';
import { Keeper } from './checkpoints/keeper.ts';
import type { InheritedRuns, KnownRun } from './checkpoints/recovery.ts';
import { ThreadedWriter } from './checkpoints/writer.ts';
import { Bundles } from './fleet/bundles.ts';
import { Coordinator, warning } from './fleet/coordinator.ts';
import { readBehind } from './fleet/read-behind.ts';
import type { RunLoader } from './fleet/run-loader.ts';
import type { AppOptions } from './http/app.ts';
import type { AccessLimits } from './http/door.ts';
import type { JoinPageFiles } from './http/join.ts';
import { type OpenPort, openPort } from './http/listen.ts';
import { Studies } from './http/studies.ts';
import { LOOK_MS } from './payloads/landings.ts';
import { ShardPool } from './shards/pool.ts';
import { storeSource, threadSource } from './shards/sources.ts';
import { beginOfTwo } from './standby/pair.ts';
import { BEAT_MS, Replication } from './standby/replication.ts';
import { type Inheritance, standBy } from './standby/standby.ts';
import { openAway } from './store/away.ts';
import { clearDebris, clearDebrisOfDead, isFull, whatToFree } from './store/debris.ts';
import { openFileStore } from './store/file-store.ts';
import { FollowedNote, letHeirBegin } from './store/followed.ts';
import { noteAddress } from './store/owner-address.ts';
import type { RedisFiles } from './store/redis-address.ts';
import type { OwnerLease, StateStore } from './store/state-store.ts';
import { takeOver } from './store/take-over.ts';
import { openPushLog, type PushLog } from './watch/push-log.ts';
import { RunLog } from './watch/run-log.ts';
import { TensorBoard } from './watch/tensorboard.ts';

export interface ServeOptions extends TokenSources {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** Folder of checkpoints, and of all records when there is no Redis. */
  readonly state: string;
  /** Its address, see `parseRedisAddress`; absent: files. */
  readonly redis?: string;
  readonly redisFiles?: RedisFiles;
  /** Listen beyond this machine without a token. */
  readonly insecure?: boolean;
  /** Absent: in the clear. */
  readonly tls?: TlsFiles;
  readonly limits?: Partial<AccessLimits> & {
    readonly runCountMax?: number;
    /** Memory of connections beside that of runs; default: see `LIMITS.connectionMemoryShare`. */
    readonly memoryBytesMax?: number;
  };
  /** False: no unix socket for workers on this machine. */
  readonly localSocket?: boolean;
  /** So many share the vectors of runs, this server among them. Default: 1. */
  readonly shards?: number;
  /** `threads` of this process, or those that have announced themselves in the state store. */
  readonly shardsFrom?: 'threads' | 'store';
  /** Not heard of for so long, a shard is lost. Default: `LIMITS.shardSilenceMs`. */
  readonly shardTimeoutMs?: number;
  /** How long a server that is not heard of keeps its state. Default: 10,000. */
  readonly ownerTtlMs?: number;
  /**
   * Address of the primary, `http://host:port`: this server follows it with replicas of its runs, takes no work, and takes
   * over when it is gone. Not with shards.
   */
  readonly standbyOf?: string;
  /**
   * Address of the other of two servers, `http://host:port`: the one that owned the state last begins, and the other is its
   * standby. Each has a folder of its own, and both have one Redis.
   */
  readonly peer?: string;
  /** `sync`: the primary answers no push before this standby has it. Default: sync. */
  readonly replication?: 'sync' | 'async';
  /** Pushes that an `async` standby may lack. Default: 100. */
  readonly lagMax?: number;
  /** At which workers reach a standby; default: `host`, or where the primary sees it come from. */
  readonly advertise?: string;
  /** Not heard of for so long, a standby is lost. Default: 2,000. */
  readonly standbyTimeoutMs?: number;
  /** A file that each applied push is written to: see push-log.ts. */
  readonly pushLog?: string;
  /** A folder for event files, see tensorboard.ts. */
  readonly tensorboard?: string;
  /** Where checkpoints are copied, and an empty state folder is filled from. */
  readonly copyTo?: S3Place;
  /** Checkpoints of kind `last` that stay there for each run. Default: 2. */
  readonly copiesKept?: number;
  /** How long a stopping server waits for the last copies. Default: 20,000. */
  readonly copyGraceMs?: number;
  /** It belongs to a command, and ends with it: another command that uses it may go on in its place. */
  readonly endsWithCommand?: boolean;
  /** What browsers that open `/join` may train; absent: nothing. */
  readonly join?: JoinPageFiles;
  /**
   * Puts the server into an app of somebody else, which listens. Then there are no port, no TLS and no unix socket of ours.
   * @internal
   */
  readonly mount?: (options: AppOptions) => Promise<void>;
  readonly log?: Log;
  /** Stops the server, with a checkpoint of every run. */
  readonly signal: AbortSignal;
}

export interface Serving {
  /** `http://host:port`; empty: an app of somebody else listens. */
  readonly url: string;
  /** Resolves when it takes work: at once, but for a standby; never when it was stopped before. */
  readonly active: Promise<void>;
  /** Resolves when all is written and closed; rejects when the server lost its state to another. */
  readonly closed: Promise<void>;
}

const OWNER_TTL_MS = 1_000 * SERVER_DEFAULTS.leaseSeconds;
const TICK_MS = 1_000;
const SHARDS_RETRY_MS = 1_000;

/**
 * Starts a parameter server: takes the state over, continues its runs from their newest valid
 * checkpoints, and listens. A standby listens at once, and does the rest when its primary is gone.
 * @throws DownpourError DP_USAGE (open to the network without a token), DP_STATE_LOCKED,
 *   DP_REDIS_UNAVAILABLE or DP_DISK.
 */
export async function serve(options: ServeOptions): Promise<Serving> {
  const { host, state, insecure, signal, peer } = options;
  const runLog = new RunLog();
  const log = runLog.beside(options.log ?? (() => {}));
  const other = options.standbyOf ?? peer;
  if (other !== undefined) mustBeAbleToFollow(options);
  const access = new Access(options, log);
  const tls = options.tls ? new TlsMaterial(options.tls, log) : null;
  const unguard = () => {
    access.close();
    tls?.close();
  };
  try {
    mustBeGuarded({ host, insecure, access });
    if (!tls && !access.open && !isLoopback(host)) {
      log(`tokens travel in the clear to ${host}: --tls-cert and --tls-key encrypt them`, {
        level: 'warn',
      });
    }
    await mkdir(state, { recursive: true });
  } catch (cause) {
    unguard();
    if (cause instanceof DownpourError) throw cause;
    throw new DownpourError(
      'DP_DISK',
      `cannot create the state folder ${state}: ${errorText(cause)}`,
      { cause },
    );
  }
  const ground: Ground = { ...(await openState(options, log)), access, tls, unguard, log, runLog };
  const { store } = ground;
  const ttlMs = options.ownerTtlMs ?? OWNER_TTL_MS;
  const end = async (error: unknown): Promise<never> => {
    await store.close();
    unguard();
    throw await whatToFree(state, error);
  };
  const begin = async (lease: OwnerLease): Promise<Serving> => {
    const active = await activate(options, ground, { lease, replicas: null });
    return { ...active, active: Promise.resolve() };
  };
  if (other === undefined) {
    const taken = await letHeirBegin(state, store, { log, signal }).catch(end);
    const take = () => takeOver(store, OWNER, ttlMs, { log, signal, waits: !taken });
    const lease = await take()
      .catch(async (error: unknown) => {
        if (isFull(error) && (await clearDebrisOfDead(state, log))) return take();
        throw error;
      })
      .catch(end);
    return begin(lease);
  }
  if (peer !== undefined) {
    const lease = await beginOfTwo(state, store, { owner: OWNER, ttlMs, log, signal }).catch(end);
    if (lease) return begin(lease);
  }
  const { replication: mode = 'sync', lagMax = SERVER_DEFAULTS.lagMax } = options;
  // Two with one folder have it on one machine; there the owner alone writes.
  const keepsBundles = store.kind === 'redis';
  const bundles = keepsBundles ? await Bundles.open(state, { log, named: null }).catch(end) : null;
  const advertise = options.advertise ?? (isLoopback(host) || isAnywhere(host) ? null : host);
  const standby = await standBy({
    primary: webSocketAddress(other),
    follow: { mode, lagMax: mode === 'sync' ? 0 : lagMax },
    ...{ advertise, host, port: options.port, tls, store, ttlMs, log, signal },
    token: () => access.own,
    owner: OWNER,
    bundles,
  }).catch(end);
  const port = Number(new URL(standby.url).port);
  const taken = standby.taken.catch(end).then(async (inheritance) => {
    if (inheritance) return activate({ ...options, port }, ground, inheritance);
    await store.close();
    unguard();
    return null;
  });
  const active = taken.then((server) => (server ? undefined : new Promise<void>(() => {})));
  // How it ends is told by `closed`.
  active.catch(() => {});
  return { url: standby.url, active, closed: taken.then((server) => server?.closed) };
}

const OWNER = `${hostname()}:${process.pid}`;
const isAnywhere = (host: string) => ['0.0.0.0', '::'].includes(host);

/** @throws DownpourError DP_USAGE. */
function mustBeAbleToFollow({ shards = 1, standbyOf, peer, redis }: ServeOptions): void {
  const wrong = (text: string) => new DownpourError('DP_USAGE', text);
  if (standbyOf !== undefined && peer !== undefined) {
    throw wrong(
      `--standby-of ${standbyOf} always follows, --peer ${peer} only where that one owned the state last: choose one of them`,
    );
  }
  if (peer !== undefined && redis === undefined) {
    throw wrong(
      `--peer ${peer} is for two servers with folders of their own, and Redis says which was the last: add --redis-url`,
    );
  }
  if (shards === 1) return;
  const option = peer === undefined ? '--standby-of' : '--peer';
  throw wrong(
    `a standby of ${standbyOf ?? peer} holds whole runs: ${option} and --shards ${shards} do not go together`,
  );
}

/** What a server stands on, active or not. */
interface Ground {
  readonly store: StateStore;
  /** Who writes all again when the store has forgotten. */
  readonly told: { keeper: Keeper | null };
  readonly access: Access;
  readonly tls: TlsMaterial | null;
  readonly unguard: () => void;
  readonly log: Log;
  readonly runLog: RunLog;
}

async function openState(options: ServeOptions, log: Log): Promise<Pick<Ground, 'store' | 'told'>> {
  const { state, redis } = options;
  const onDamaged = (error: DownpourError) =>
    log(`${error.message}; passed over`, { level: 'warn', code: error.code });
  const told: Ground['told'] = { keeper: null };
  const store: StateStore = redis
    ? await openAway({
        ...options,
        redis,
        log,
        onDamaged,
        onForgotten: () => told.keeper?.rebuild(),
      })
    : openFileStore({ folder: state, onDamaged });
  return { store, told };
}

/** The owner of the state begins to serve. @param replicas that a standby inherits. */
async function activate(
  options: ServeOptions,
  ground: Ground,
  { lease, replicas }: Pick<Inheritance, 'lease'> & { replicas: Inheritance['replicas'] | null },
): Promise<Omit<Serving, 'active'>> {
  const server = new ActiveServer(options, ground, lease);
  try {
    return await server.begin(replicas);
  } catch (error) {
    await server.giveUp();
    throw await whatToFree(options.state, error);
  }
}

/** A server that owns its state: what it is made of, and the order in which that begins and ends. */
class ActiveServer {
  readonly #options: ServeOptions;
  readonly #ground: Ground;
  readonly #lease: OwnerLease;
  readonly #now = () => performance.now();
  readonly #writer = new ThreadedWriter();
  readonly #followed: FollowedNote;
  /** Aborted when another server owns the state; `#failure` says so. */
  readonly #lost = new AbortController();
  #failure: DownpourError | null = null;
  #port: OpenPort | null = null;
  #pool: ShardPool | null = null;
  #pushLog: PushLog | null = null;

  constructor(options: ServeOptions, ground: Ground, lease: OwnerLease) {
    this.#options = options;
    this.#ground = ground;
    this.#lease = lease;
    this.#followed = new FollowedNote(options.state, {
      token: lease.token,
      leaseMs: this.#leaseMs,
    });
  }

  get #leaseMs(): number {
    return this.#options.ownerTtlMs ?? OWNER_TTL_MS;
  }

  async begin(replicas: Inheritance['replicas'] | null): Promise<Omit<Serving, 'active'>> {
    const { signal } = this.#options;
    const { store, access, tls } = this.#ground;
    this.#watchLease();
    const { token } = this.#lease;
    const pool = createPool(this.#options, { store, access, tls, token, now: this.#now });
    this.#pool = pool;
    const copier = await this.#openCopier(replicas !== null);
    const keeper = this.#createKeeper(copier);
    const coordinator = this.#createCoordinator(keeper);
    coordinator.copier = copier;
    coordinator.tls = tls;
    await this.#followed.set(null);
    const stop = AbortSignal.any([signal, this.#lost.signal]);
    const read = (known: readonly KnownRun[]) =>
      readBehind(known, {
        ...{ keeper, replicas, coordinator, now: this.#now, log: this.#ground.log },
        onDefect: (error) => this.#lose(error),
      });
    const open = async () => {
      await pool?.open();
      await this.#openRuns({ keeper, coordinator, replicas, read });
    };
    const opening = open();
    const more = { keeper, coordinator, read, opening, lease: this.#lease, signal: stop };
    const anew = pool ? beginAnewWhenLost(pool, more) : null;
    await opening;
    const obstacle = await tryStraight();
    if (obstacle) {
      this.#ground.log(`payloads are copied once more, not read into place: ${obstacle}`);
    }
    const url = await this.#open(coordinator).catch(async (error: unknown) => {
      await coordinator.stopReading();
      throw error;
    });
    const stand = this.#keepTime(coordinator);
    const close = async () => {
      if (!stop.aborted) await once(stop, 'abort');
      await stand(() => anew?.ended());
      // Another server's copies are its own.
      await copier?.close(this.#failure ? 0 : this.#copyGraceMs);
      await this.#end();
    };
    return { url, closed: close() };
  }

  get #copyGraceMs(): number {
    return this.#options.copyGraceMs ?? 1_000 * SERVER_DEFAULTS.copyGraceSeconds;
  }

  #lose(error: DownpourError): void {
    this.#failure ??= error;
    this.#lost.abort();
  }

  #watchLease(): void {
    const { lost } = this.#lease;
    const onLost = () =>
      this.#lose(
        new DownpourError(
          'DP_STATE_FENCED',
          `this server no longer owns its state and must not write to it: ${errorText(lost.reason)}`,
        ),
      );
    if (lost.aborted) onLost();
    lost.addEventListener('abort', onLost);
  }

  /** @param inherits from a primary: that is newer than any copy. */
  async #openCopier(inherits: boolean): Promise<Copier | null> {
    const { store, log } = this.#ground;
    const mayWrite = () => store.mayWrite(this.#lease.token);
    const copier = createCopier(this.#options, { mayWrite, now: this.#now, log });
    const { state, signal } = this.#options;
    if (copier && !inherits) await restoreInto(state, copier.bucket, log, signal);
    return copier;
  }

  #createKeeper(copier: Copier | null): Keeper {
    const { store, log } = this.#ground;
    return new Keeper({
      ...{ root: this.#options.state, store, token: this.#lease.token },
      ...{ shards: this.#pool, writer: this.#writer, now: this.#now, log },
      onFenced: (error) => this.#lose(error),
      onWritten: (manifest) => copier?.written(manifest),
      onLabelled: ({ id }) => copier?.labelled(id),
      ...(copier && { removeCopies: copier.removeRun.bind(copier) }),
    });
  }

  #createCoordinator(keeper: Keeper): Coordinator {
    const { pushLog, limits } = this.#options;
    this.#pushLog = pushLog === undefined ? null : openPushLog(pushLog, this.#ground.log);
    return new Coordinator({
      ...{ keeper, shards: this.#pool, pushLog: this.#pushLog },
      ...{ now: this.#now, log: this.#ground.log, runLog: this.#ground.runLog },
      ...(limits?.runCountMax === undefined ? {} : { runCountMax: limits.runCountMax }),
      memoryBytesMax: memoryOf(this.#options),
    });
  }

  /** Continues the runs of the state, and lets a standby follow them. */
  async #openRuns({
    keeper,
    coordinator,
    replicas,
    read,
  }: {
    readonly keeper: Keeper;
    readonly coordinator: Coordinator;
    readonly replicas: InheritedRuns;
    readonly read: (known: readonly KnownRun[]) => RunLoader<KnownRun>;
  }): Promise<void> {
    const { state, standbyTimeoutMs: timeoutMs } = this.#options;
    const { told, log } = this.#ground;
    if (!this.#pool) {
      coordinator.replication = new Replication({
        ...{ token: this.#lease.token, leaseMs: this.#leaseMs, now: this.#now, log },
        note: (by) => this.#followed.set(by),
        runs: () => coordinator.runs,
        bundle: (sha256) => bundles.content(sha256),
        confirm: () => this.#lease.renew(),
        changed: () => coordinator.workers.tellStandby(),
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
      });
    }
    told.keeper = keeper;
    await clearDebris(state, log);
    const known = await keeper.known(replicas);
    const named = new Set([...keeper.bundles, ...known.flatMap(({ bundle }) => bundle ?? [])]);
    // What a run names that the registry lacks shows when it is read.
    const isKnown = known.every(({ record }) => record);
    const bundles = await Bundles.open(state, { log, named: isKnown ? named : null });
    coordinator.experiments.keepIn(bundles);
    const { done } = read(known);
    if (known.length <= READ_BEFORE) await done;
  }

  /** @returns the address; empty: an app of somebody else listens. */
  async #open(coordinator: Coordinator): Promise<string> {
    const { state, host, port, insecure, localSocket, mount } = this.#options;
    const { store, access, tls, log } = this.#ground;
    const app: AppOptions = {
      coordinator,
      version: VERSION,
      stateStore: store,
      studies: await Studies.open(state, log),
      startedAt: new Date(),
      checkpointFolder: (run) => checkpointFolder(state, run),
      access,
      tls,
      loopbackOnly: access.open && !insecure,
      limits: this.#options.limits ?? {},
      localSocket: () => this.#port?.localPath ?? null,
      join: this.#options.join ?? null,
      log,
    };
    if (mount) await mount(app);
    else this.#port = await openPort(app, { host, port, localSocket });
    const url = this.#port?.url ?? null;
    const { endsWithCommand = false } = this.#options;
    await noteAddress(state, { token: this.#lease.token, url, endsWithCommand }, log);
    return url ?? '';
  }

  /**
   * What happens again and again.
   * @returns ends it: leaves a checkpoint of every run and closes the connections. `interrupted` resolves when
   *   nothing is begun anew any more.
   */
  #keepTime(
    coordinator: Coordinator,
  ): (interrupted: () => Promise<void> | undefined) => Promise<void> {
    const { tensorboard: folder } = this.#options;
    const { log } = this.#ground;
    const board = folder === undefined ? null : new TensorBoard({ folder, now: this.#now, log });
    const timer = setInterval(() => {
      coordinator.tick();
      board?.tick(coordinator.runs);
    }, TICK_MS);
    const look = setInterval(() => coordinator.line.look(), LOOK_MS);
    const beat = setInterval(() => coordinator.replication?.tick(), BEAT_MS);
    return async (interrupted) => {
      clearInterval(timer);
      clearInterval(look);
      if (this.#failure) coordinator.tellLost();
      await interrupted();
      await coordinator.close();
      await board?.close(coordinator.runs);
      clearInterval(beat);
    };
  }

  /** Closes all that is open and gives the state back. @throws DownpourError DP_STATE_FENCED: it was lost before. */
  async #end(): Promise<void> {
    const { store, unguard, log } = this.#ground;
    await this.#port?.close();
    await this.#pool?.close();
    await this.#writer.close();
    this.#pushLog?.close();
    const warn = (text: string) => log(text, { level: 'warn' });
    await this.#followed.passOn().catch((error: unknown) => warn(errorText(error)));
    await this.#lease
      .release()
      .catch((error: unknown) => warn(`the state was not released: ${errorText(error)}`));
    await store.close();
    unguard();
    if (this.#failure) throw this.#failure;
  }

  /** It could not begin. */
  async giveUp(): Promise<void> {
    this.#lost.abort();
    this.#pushLog?.close();
    await this.#port?.close();
    await this.#pool?.close();
    await this.#writer.close();
    await this.#ground.store.close();
    this.#ground.unguard();
  }
}

/**
 * The loss of a shard is like the loss of the server: all goes on from the last checkpoints.
 * @returns `ended`, which resolves when nothing is begun anew any more, after `signal` is aborted.
 */
function beginAnewWhenLost(
  pool: ShardPool,
  {
    keeper,
    coordinator,
    read,
    opening,
    lease,
    signal,
  }: {
    readonly keeper: Keeper;
    readonly coordinator: Coordinator;
    /** Reads runs that are known, while the server listens. */
    readonly read: (known: readonly KnownRun[]) => unknown;
    /** Resolves when the runs of the state are known for the first time. */
    readonly opening: Promise<void>;
    readonly lease: OwnerLease;
    readonly signal: AbortSignal;
  },
): { ended(): Promise<void> } {
  let beginning: Promise<void> | null = null;
  const begin = async () => {
    // Who cannot begin is given up by whoever waits for it too.
    await opening.catch(() => {});
    const waits = new Said();
    while (!signal.aborted) {
      try {
        await coordinator.stopReading();
        await keeper.abandon();
        // Another server may have taken over, and these shards with the state: they are not taken from it.
        await lease.renew().catch((error: unknown) => {
          if (errorCode(error) === 'DP_STATE_FENCED') throw error;
        });
        await pool.open();
        const known = await keeper.known();
        if (!pool.whole) continue;
        if (signal.aborted) break;
        coordinator.goOn();
        read(known);
        break;
      } catch (error) {
        if (signal.aborted) break;
        const why = warning('the shards are not there yet, trying again', error);
        if (waits.isNew(why)) {
          coordinator.log(why, { level: 'warn', code: errorCode(error) });
        }
        await delay(SHARDS_RETRY_MS, undefined, { signal }).catch(() => {});
      }
    }
    beginning = null;
  };
  pool.lost = (why) => {
    // What can be written still is; nothing goes on.
    if (signal.aborted) return;
    coordinator.interrupt(why);
    beginning ??= begin();
  };
  return {
    async ended() {
      if (!beginning) return;
      // It may be waiting for them.
      await pool.close();
      await beginning;
    },
  };
}

/** So few are read before the server listens. */
const READ_BEFORE = 32;

/** Null: checkpoints are copied nowhere. */
function createCopier(
  { copyTo, state, copiesKept: keepLast = SERVER_DEFAULTS.copiesKept }: ServeOptions,
  more: Pick<ConstructorParameters<typeof Copier>[0], 'mayWrite' | 'now' | 'log'>,
): Copier | null {
  if (!copyTo) return null;
  return new Copier({ bucket: new Bucket(copyTo), root: state, keepLast, ...more });
}

function createPool(
  options: ServeOptions,
  {
    store,
    access,
    tls,
    ...own
  }: Pick<Ground, 'store' | 'access' | 'tls'> & {
    readonly token: number;
    readonly now: () => number;
  },
): ShardPool | null {
  const { host, shards: count = 1, shardsFrom = 'threads', shardTimeoutMs, signal } = options;
  if (count === 1) return null;
  const log = options.log ?? (() => {});
  const localSocket = localSocketWanted(options.localSocket);
  const tokens = tokenSources(options);
  const source =
    shardsFrom === 'threads'
      ? threadSource({
          host,
          tokens,
          tls: options.tls ?? null,
          localSocket,
          ports: PORTS * count,
          memoryBytesMax: memoryOf(options),
          log,
        })
      : storeSource(store, { signal, log });
  // A port of a thread of ours is nobody else's, whatever name its certificate has.
  const trust = () => tls && { ...tls.options(), rejectUnauthorized: shardsFrom === 'store' };
  const silence = shardTimeoutMs === undefined ? {} : { silenceMs: shardTimeoutMs };
  const guard = { access: () => access.own, tls: trust };
  return new ShardPool({ count, source, ...own, ...guard, ...silence, log });
}

/** What connections may take, of each thread that has some. */
function memoryOf({ limits, shards = 1, shardsFrom = 'threads' }: ServeOptions): number {
  const bytes = limits?.memoryBytesMax ?? defaultBytesMax();
  return shardsFrom === 'threads' ? Math.floor(bytes / shards) : bytes;
}
