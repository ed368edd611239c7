import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import type { Server as TlsServer } from 'node:tls';
import { type CheckpointManifest, checkpointFolder } from '../files/checkpoint.ts';
import { SERVER_DEFAULTS } from '../shared/config.ts';
import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import type { Log } from '../shared/log.ts';
import { webSocketAddress } from '../shared/rest-client.ts';
import { VERSION } from '../shared/version.ts';
import {
  isLoopback,
  type LocalListener,
  listenBeside,
  localSocketWanted,
} from '../wire/local-socket.ts';
import { tryStraight } from '../wire/node-sockets.ts';
import { Access, mustBeGuarded, type TokenSources, tokenSources } from './access/access.ts';
import { defaultBytesMax } from './access/memory.ts';
import { PORTS, socketLimits } from './access/sockets.ts';
import { type TlsFiles, TlsMaterial } from './access/tls.ts';
import { Copier } from './checkpoints/elsewhere/copier.ts';
import { restoreInto } from './checkpoints/elsewhere/restore.ts';
import { Bucket, type S3Place } from './checkpoints/elsewhere/s3.ts';
import { Keeper } from './checkpoints/keeper.ts';
import { ThreadedWriter } from './checkpoints/writer.ts';
import { Bundles } from './fleet/bundles.ts';
import { Coordinator, warning } from './fleet/coordinator.ts';
import { type AppOptions, createApp } from './http/app.ts';
import type { AccessLimits } from './http/door.ts';
import type { JoinFiles } from './http/join.ts';
import { Studies } from './http/studies.ts';
import { LOOK_MS } from './payloads/landings.ts';
import { ShardPool } from './shards/pool.ts';
import { storeSource, threadSource } from './shards/sources.ts';
import { beginOfTwo } from './standby/pair.ts';
import type { ReplicationMode } from './standby/protocol.ts';
import { BEAT_MS, Replication } from './standby/replication.ts';
import { type Inheritance, standBy } from './standby/standby.ts';
import { clearDebris, clearDebrisOfDead, isFull, whatToFree } from './store/debris.ts';
import { openFileStore } from './store/file-store.ts';
import { FollowedNote, letHeirBegin } from './store/followed.ts';
import { journaled } from './store/journal.ts';
import { openRedisStore } from './store/redis.ts';
import { parseRedisAddress, type RedisFiles } from './store/redis-address.ts';
import type { OwnerLease, StateStore } from './store/state-store.ts';
import { openPushLog, type PushLog } from './watch/push-log.ts';
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
    /** Of connections beside the memory of runs; default: see `LIMITS.connectionMemoryShare`. */
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
   * Of the primary, `http://host:port`: this server follows it with replicas of its runs, takes no work, and takes
   * over when it is gone. Not with shards.
   */
  readonly standbyOf?: string;
  /**
   * Of the other of two servers, `http://host:port`: the one that owned the state last begins, and the other is its
   * standby. Each has a folder of its own, and both have one Redis.
   */
  readonly peer?: string;
  /** `sync`: the primary answers no push before this standby has it. Default: sync. */
  readonly replication?: ReplicationMode;
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
  /** Of kind `last`, that stay there of each run. Default: 2. */
  readonly copiesKept?: number;
  /** How long a stopping server waits for the last copies. Default: 20,000. */
  readonly copyGraceMs?: number;
  /** What browsers that open `/join` may train; absent: nothing. */
  readonly join?: JoinFiles;
  /** Puts the server into an app of somebody else, which listens. Then there are no port, no TLS and no unix socket of ours. */
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
/** A little longer than a dead owner's lease lasts. */
const OWNER_WAIT_MS = 15_000;
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
  const log = options.log ?? (() => {});
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
  const ground: Ground = { ...openState(options, log), access, tls, unguard, log };
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
    const take = () => own(store, ttlMs, { log, signal, waits: !taken });
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
}

function openState(options: ServeOptions, log: Log): Pick<Ground, 'store' | 'told'> {
  const { state, redis } = options;
  const onDamaged = (error: DownpourError) =>
    log(`${error.message}; passed over`, { level: 'warn', code: error.code });
  const told: Ground['told'] = { keeper: null };
  const store: StateStore = redis
    ? openAway({ ...options, redis, log, onDamaged, onForgotten: () => told.keeper?.rebuild() })
    : openFileStore({ folder: state, onDamaged });
  return { store, told };
}

/** The owner of the state begins to serve. */
async function activate(
  options: ServeOptions,
  { store, told, access, tls, unguard, log }: Ground,
  { lease, replicas }: Pick<Inheritance, 'lease'> & { replicas: Inheritance['replicas'] | null },
): Promise<Omit<Serving, 'active'>> {
  const { host, port, state, insecure, signal } = options;
  const now = () => performance.now();
  const ending = new AbortController();
  const failure: { error: DownpourError | null } = { error: null };
  const lose = (error: DownpourError) => {
    failure.error ??= error;
    ending.abort();
  };
  let local: LocalListener | null = null;
  let pool: ShardPool | null = null;
  let pushLog: PushLog | null = null;
  let anew: ReturnType<typeof beginAnewWhenLost> | null = null;
  const writer = new ThreadedWriter();
  try {
    const onLost = () =>
      lose(
        new DownpourError(
          'DP_STATE_FENCED',
          `this server lost the ownership of its state and must not write any more: ${errorText(lease.lost.reason)}`,
        ),
      );
    if (lease.lost.aborted) onLost();
    lease.lost.addEventListener('abort', onLost);
    pool = createPool(options, { store, access, tls, token: lease.token, now });
    await pool?.open();
    const write = { root: state, store, token: lease.token };
    const copier = createCopier(options, { mayWrite: () => store.mayWrite(lease.token), now, log });
    // What a standby inherits is newer than any copy.
    if (copier && !replicas) await restoreInto(state, copier.bucket, log, signal);
    const onWritten = (manifest: CheckpointManifest) => copier?.written(manifest);
    const keeper = new Keeper({
      ...{ ...write, shards: pool, writer, now, log },
      ...{ onFenced: lose, onWritten },
    });
    pushLog = options.pushLog === undefined ? null : openPushLog(options.pushLog);
    const { runCountMax } = options.limits ?? {};
    const limits = {
      ...(runCountMax === undefined ? {} : { runCountMax }),
      memoryBytesMax: memoryOf(options),
    };
    const coordinator = new Coordinator({ keeper, shards: pool, pushLog, now, log, ...limits });
    coordinator.copier = copier;
    coordinator.tls = tls;
    const leaseMs = options.ownerTtlMs ?? OWNER_TTL_MS;
    const followed = new FollowedNote(state, { token: lease.token, leaseMs });
    await followed.set(null);
    if (pool) {
      const until = AbortSignal.any([signal, ending.signal]);
      anew = beginAnewWhenLost(pool, { keeper, coordinator, lease, signal: until });
    } else {
      const { standbyTimeoutMs: timeoutMs } = options;
      coordinator.replication = new Replication({
        ...{ token: lease.token, leaseMs, now, log },
        note: (by) => followed.set(by),
        runs: () => coordinator.runs,
        bundle: (sha256) => bundles.content(sha256),
        confirm: () => lease.renew(),
        changed: () => coordinator.workers.tellStandby(),
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
      });
    }
    told.keeper = keeper;
    await clearDebris(state, log);
    for (const run of await keeper.recover(replicas)) coordinator.adopt(run);
    const bundles = await Bundles.open(state, { log, named: keeper.bundles });
    coordinator.experiments.keepIn(bundles);
    await copier?.catchUp(coordinator.runs.map(({ id }) => id));
    const obstacle = await tryStraight();
    if (obstacle) log(`payloads are copied once more, not read into place: ${obstacle}`);
    const appOptions: AppOptions = {
      coordinator,
      version: VERSION,
      stateStore: store,
      studies: await Studies.open(state, log),
      startedAt: new Date(),
      checkpointFolder: (run) => checkpointFolder(state, run),
      access,
      tls,
      loopbackOnly: access.open && !insecure,
      limits: options.limits ?? {},
      localSocket: () => local?.path ?? null,
      join: options.join ?? null,
      log,
    };
    let app: Awaited<ReturnType<typeof createApp>> | null = null;
    let url = '';
    if (options.mount) await options.mount(appOptions);
    else {
      app = await createApp(appOptions);
      tls?.keep(app.server as unknown as TlsServer);
      // Who asks for encryption gets no way around it.
      const beside = !tls && localSocketWanted(options.localSocket);
      if (beside) {
        const listener = await listenBeside(app.server);
        if ('path' in listener) local = listener;
        else {
          log(`no unix socket for workers on this machine, they use TCP: ${listener.problem}`);
        }
      }
      const { socketCountMax } = socketLimits();
      if (socketCountMax < LIMITS.socketCountMax) {
        log(
          `this process may open few files at a time: at most ${socketCountMax} sockets a port, ${LIMITS.socketCountMax} wanted; raise \`ulimit -n\``,
          { level: 'warn' },
        );
      }
      url = await listen(app, host, port);
    }
    const { tensorboard } = options;
    const board =
      tensorboard === undefined ? null : new TensorBoard({ folder: tensorboard, now, log });
    const timer = setInterval(() => {
      coordinator.tick();
      board?.tick(coordinator.runs);
    }, TICK_MS);
    const look = setInterval(() => coordinator.line.look(), LOOK_MS);
    const beat = setInterval(() => coordinator.replication?.tick(), BEAT_MS);
    const close = async () => {
      const stop = AbortSignal.any([signal, ending.signal]);
      if (!stop.aborted) await once(stop, 'abort');
      clearInterval(timer);
      clearInterval(look);
      if (failure.error) coordinator.tellLost();
      await anew?.ended();
      await coordinator.close();
      await board?.close(coordinator.runs);
      clearInterval(beat);
      const graceMs = options.copyGraceMs ?? 1_000 * SERVER_DEFAULTS.copyGraceSeconds;
      // Another server's copies are its own.
      await copier?.close(failure.error ? 0 : graceMs);
      await local?.close();
      await app?.close();
      await pool?.close();
      await writer.close();
      pushLog?.close();
      await followed.passOn().catch((error: unknown) => log(errorText(error), { level: 'warn' }));
      await lease
        .release()
        .catch((error: unknown) =>
          log(`the state was not released: ${errorText(error)}`, { level: 'warn' }),
        );
      await store.close();
      unguard();
      if (failure.error) throw failure.error;
    };
    return { url, closed: close() };
  } catch (error) {
    await local?.close();
    await pool?.close();
    await writer.close();
    await store.close();
    unguard();
    throw await whatToFree(state, error);
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
    lease,
    signal,
  }: {
    readonly keeper: Keeper;
    readonly coordinator: Coordinator;
    readonly lease: OwnerLease;
    readonly signal: AbortSignal;
  },
): { ended(): Promise<void> } {
  let beginning: Promise<void> | null = null;
  const begin = async () => {
    while (!signal.aborted) {
      try {
        await keeper.abandon();
        // Another server may have taken over, and these shards with the state: they are not taken from it.
        await lease.renew().catch((error: unknown) => {
          if (errorCode(error) === 'DP_STATE_FENCED') throw error;
        });
        await pool.open();
        const runs = await keeper.recover();
        if (!pool.whole) continue;
        if (!signal.aborted) coordinator.goOn(runs);
        break;
      } catch (error) {
        if (signal.aborted) break;
        coordinator.log(warning('the shards are not there yet, trying again', error), {
          ...{ level: 'warn', code: errorCode(error) },
        });
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

/** Redis, whose records wait in the state folder while it is away. */
function openAway(
  options: Pick<ServeOptions, 'state' | 'redisFiles'> & {
    readonly redis: string;
    readonly log: Log;
    readonly onDamaged: (error: DownpourError) => void;
    readonly onForgotten: () => void;
  },
): StateStore {
  const { redis: url, state: folder, redisFiles: files = {}, log } = options;
  const { onDamaged, onForgotten } = options;
  const { place } = parseRedisAddress(url, files);
  const store = openRedisStore({ url, files, onDamaged, onForgotten });
  return journaled(store, { folder, id: place, log });
}

/**
 * Takes the state over. Files know at once whether their owner is dead; Redis, when its lease runs
 * out: a server that is started again after a crash waits for that, and for a Redis that comes up
 * beside it, instead of ending.
 */
async function own(
  store: StateStore,
  ttlMs: number,
  { log, signal, waits }: { log: Log; signal: AbortSignal; waits: boolean },
): Promise<OwnerLease> {
  const owner = OWNER;
  try {
    return await store.acquire(owner, { ttlMs, signal });
  } catch (error) {
    const early = ['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(errorCode(error));
    if (store.kind !== 'redis' || !early || !waits) throw error;
    log(`${errorText(error)}; trying again for ${OWNER_WAIT_MS / 1000} s`, {
      ...{ level: 'warn', code: errorCode(error) },
    });
    return store.acquire(owner, { ttlMs, waitMs: OWNER_WAIT_MS, signal });
  }
}

/** @throws DownpourError DP_USAGE when the address is taken, not allowed or not this machine's. */
async function listen(
  app: Awaited<ReturnType<typeof createApp>>,
  host: string,
  port: number,
): Promise<string> {
  try {
    return await app.listen({ host, port });
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const why =
      code === 'EADDRINUSE'
        ? 'another program listens there; choose another port with --port or DOWNPOUR_PORT'
        : `${errorText(cause)}; choose another address with --host and --port`;
    throw new DownpourError('DP_USAGE', `cannot listen on ${host} port ${port}: ${why}`, { cause });
  }
}
