import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import { unpackPayload } from '../../shared/codec.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import type { Health } from '../../shared/rest.ts';
import { VERSION } from '../../shared/version.ts';
import type { Connection } from '../../wire/connection.ts';
import { dial } from '../../wire/handshake.ts';
import { Memories } from '../../wire/memories.ts';
import { portLimits, refuse } from '../access/access.ts';
import { SocketPlaces } from '../access/sockets.ts';
import type { TlsMaterial } from '../access/tls.ts';
import { hasPayload } from '../core/run/calls.ts';
import type { RunReplica } from '../core/run/state.ts';
import { Run } from '../core/run.ts';
import type { Bundles } from '../fleet/bundles.ts';
import { codeProblem, codeVersion } from '../fleet/code-version.ts';
import type { OwnerLease, StateStore } from '../store/state-store.ts';
import { checkToStandby, type Follow, type FromStandby, type ToStandby } from './protocol.ts';
import { BEAT_MS } from './replication.ts';

/**
 * A hot standby: it follows a primary with replicas of all its runs, takes no work, and owns nothing. It asks for
 * the owner's lease when it does not hear of the primary any more; when it gets it, the replicas are the newest
 * there is, and it is a server like any other. See docs/decisions/0011-standby.md.
 */

export interface StandByOptions {
  /** `ws://host:port` or `wss://…` */
  readonly primary: string;
  readonly follow: Pick<Follow, 'mode' | 'lagMax'>;
  /** At which workers reach it; null: where they reach the primary, or where it comes from. */
  readonly advertise: string | null;
  readonly host: string;
  readonly port: number;
  readonly tls: TlsMaterial | null;
  /** An operator's, as it is now. */
  readonly token: () => string | null;
  readonly store: StateStore;
  readonly owner: string;
  readonly ttlMs: number;
  /** Where what experiments were sent as is kept; null: in a folder of both, where it is already. */
  readonly bundles?: Bundles | null;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

/** What a standby has when it takes over. */
export interface Inheritance {
  readonly lease: OwnerLease;
  /** By id; nobody calls them any more. */
  readonly replicas: ReadonlyMap<string, Run>;
}

/** Between two looks at whether the primary is there. */
const LOOK_MS = 50;
/** A primary that says nothing for so long is not heard of any more: its lease decides. */
const SILENCE_MS = 4 * BEAT_MS;
const HANDSHAKE_MS = 2_000;
const CLOSE_MS = 500;
/** A lease above this makes for a long takeover. */
const LEASE_MS_SOON = 3_000;
/** For so long the primary's token may be another one than the store's, as after a restart. */
const STRANGE_MS = 5_000;

/**
 * Listens, and follows the primary.
 * @returns `url` where it listens; `taken` resolves when it owns the state and has let its port go; null: it was
 *   stopped before.
 * @throws DownpourError DP_USAGE: it cannot listen there. `taken` rejects with what no patience can mend: a
 *   refused token, another release, another state store.
 */
export async function standBy(
  options: StandByOptions,
): Promise<{ readonly url: string; readonly taken: Promise<Inheritance | null> }> {
  const listener = await listen(options);
  const take = async () => {
    try {
      return await new Follower(options, listener.port).take();
    } finally {
      await listener.close();
    }
  };
  return { url: listener.url, taken: take() };
}

/** Replicas of all runs of a primary, by what it says. */
export class Replicas {
  /** Vectors of runs that are being told. */
  readonly #vectors = new Map<string, Map<string, Float32Array>>();
  readonly runs = new Map<string, Run>();
  /** What the experiment of a run was sent as. */
  bundle: (sha256: string, content: Uint8Array) => void = () => {};
  /** All runs were here at some time: what is here is better than nothing. */
  whole = false;

  /** @throws Error when a replica is not what its original is: it must be told anew. */
  take(message: ToStandby, payload: Uint8Array): void {
    switch (message.type) {
      case 'leading':
        this.#vectors.clear();
        break;
      case 'vector':
        this.#piece(message, payload);
        break;
      case 'run': {
        const replica = unpackPayload(payload, message.bytes) as RunReplica;
        const vectors = this.#vectors.get(message.run) ?? new Map<string, Float32Array>();
        this.#vectors.delete(message.run);
        this.runs.set(message.run, Run.replicate(replica, vectors));
        break;
      }
      case 'introduced':
        for (const id of this.runs.keys()) if (!message.runs.includes(id)) this.runs.delete(id);
        this.whole = true;
        break;
      case 'forget':
        this.runs.delete(message.run);
        break;
      case 'bundle':
        // A copy: the payload is the receiver's.
        this.bundle(message.sha256, new Uint8Array(payload.subarray(0, message.bytes)));
        break;
      case 'calls':
        this.#carryOut(message, payload);
        break;
    }
  }

  #piece(
    { run, name, start, length }: Extract<ToStandby, { type: 'vector' }>,
    payload: Uint8Array,
  ): void {
    const ofRun = this.#vectors.get(run) ?? new Map<string, Float32Array>();
    this.#vectors.set(run, ofRun);
    const vector = ofRun.get(name) ?? new Float32Array(length);
    ofRun.set(name, vector);
    new Uint8Array(vector.buffer).set(payload, 4 * start);
  }

  #carryOut(message: Extract<ToStandby, { type: 'calls' }>, payload: Uint8Array): void {
    const run = this.runs.get(message.run);
    if (!run) throw new Error(`calls of run ${message.run}, which was never told`);
    for (const call of message.calls) {
      try {
        run.call(call, hasPayload(call) ? payload : undefined);
      } catch (error) {
        // What the original refused, and told somebody, its replica refuses alike; any other error is a defect.
        if (!(error instanceof DownpourError)) throw error;
      }
      // Nobody writes down for a replica what happens to it.
      run.takeEvents();
    }
    const { step, generation } = run;
    if (step === message.step && generation === message.generation) return;
    throw new Error(
      `the replica of run ${message.run} is at step ${step} of generation ${generation}, its original at ${message.step} of ${message.generation}`,
    );
  }
}

class Follower {
  readonly #options: StandByOptions;
  readonly #port: number;
  readonly #replicas = new Replicas();
  readonly #memories = new Memories(2);
  #connection: Connection | null = null;
  #dialing: { abort(): void } | null = null;
  /** Monotonic ms; 0: there is no connection. */
  #heardMs = 0;
  #failures = 0;
  #strangeSince: number | null = null;
  /** The primary's, of the connection that came last. */
  #leading = 0;
  /** The store has once had the primary's token: what it says of the owner is about this primary. */
  #isTheirs = false;
  /** What no patience can mend. */
  #fatal: unknown = null;

  constructor(options: StandByOptions, port: number) {
    this.#options = options;
    this.#port = port;
    const { bundles, log } = options;
    if (!bundles) return;
    const { runs } = this.#replicas;
    bundles.needed = () => new Set([...runs.values()].flatMap((run) => run.options.bundle ?? []));
    this.#replicas.bundle = (sha256, content) => {
      bundles.keep(sha256, content).catch((error: unknown) => {
        log(`bundle ${sha256} of the primary is not kept: ${errorText(error)}`);
      });
    };
  }

  async take(): Promise<Inheritance | null> {
    const { signal, store, owner, ttlMs, log } = this.#options;
    let lease: OwnerLease | null = null;
    let asking = false;
    let beatMs = 0;
    const ask = async () => {
      asking = true;
      try {
        if (await this.#knowsPrimary()) lease = await store.acquire(owner, { ttlMs, signal });
      } catch (error) {
        const early = ['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(errorCode(error));
        if (!early && !signal.aborted) this.#fatal = error;
      }
      asking = false;
    };
    try {
      while (lease === null || asking) {
        if (signal.aborted && !asking) return null;
        if (this.#fatal !== null) throw this.#fatal;
        const now = performance.now();
        if (!this.#connection && !this.#dialing && !signal.aborted) this.#dial();
        if (this.#connection && now - beatMs >= BEAT_MS) {
          beatMs = now;
          this.#connection.ping();
        }
        const heard = now - this.#heardMs < SILENCE_MS;
        if (!heard && this.#replicas.whole && !asking && !signal.aborted) void ask();
        await delay(LOOK_MS);
      }
    } finally {
      this.#dialing?.abort();
      this.#connection?.terminate();
    }
    // The server that this becomes finds them on disk.
    await this.#options.bundles?.whenIdle();
    const steps = [...this.#replicas.runs.values()].map(({ id, step }) => `${id} at step ${step}`);
    log(
      `the primary's lease has lapsed: this standby takes over ${steps.length} runs (${steps.slice(0, 5).join(', ')})`,
    );
    return { lease, replicas: this.#replicas.runs };
  }

  /** A store of its own would give anybody the lease, beside a primary that lives. */
  async #knowsPrimary(): Promise<boolean> {
    if (this.#isTheirs) return true;
    // It could not be asked before; a released lease has taken up one token more.
    const newest = await this.#options.store.newestToken();
    this.#isTheirs = [this.#leading, this.#leading + 1].includes(newest);
    return this.#isTheirs;
  }

  #dial(): void {
    const { primary, token, tls, follow, advertise } = this.#options;
    const given = token();
    const secure: ConnectionOptions = tls ? { ...tls.options(), rejectUnauthorized: true } : {};
    this.#dialing = dial({
      url: `${primary}/standby`,
      ...(primary.startsWith('wss:') ? { tls: secure } : {}),
      handshakeMs: HANDSHAKE_MS,
      closeMs: CLOSE_MS,
      headers: given === null ? {} : { authorization: `Bearer ${given}` },
      opened: (connection) => {
        this.#dialing = null;
        this.#connection = connection;
        this.#heardMs = performance.now();
        const address = { host: advertise, port: this.#port };
        connection.send({
          type: 'follow',
          version: codeVersion(),
          ...follow,
          address,
        } satisfies Follow);
        return this.#events(connection);
      },
      failed: (error, status) => {
        this.#dialing = null;
        // Tokens that are renewed come to the two at different moments.
        if ((status === 401 || status === 403) && !this.#replicas.whole) {
          this.#fatal = new DownpourError(
            'DP_UNAUTHORIZED',
            `${primary} refuses this standby's token: it takes an operator's, as on the primary`,
          );
        } else if (status === 400) {
          this.#fatal = new DownpourError(
            'DP_USAGE',
            `${primary} takes no standby: one with shards has none`,
          );
        }
        this.#failed(errorText(error) || (error as NodeJS.ErrnoException).code || 'no connection');
      },
    });
  }

  /** The first failures and then ever fewer, not a line every 50 ms. */
  #failed(why: string): void {
    this.#failures++;
    if ((this.#failures & (this.#failures - 1)) !== 0) return;
    this.#options.log(`no connection to the primary ${this.#options.primary} (${why}); trying on`);
  }

  #events(connection: Connection): ReturnType<Parameters<typeof dial>[0]['opened']> {
    let frames = 0;
    let told = 0;
    let lost = '';
    const tell = () => {
      if (frames === told) return;
      told = frames;
      connection.send({ type: 'carried', frames } satisfies FromStandby);
    };
    return {
      land: (_, bytes) => (bytes === null ? null : this.#memories.take(bytes)),
      message: (header, payload, landing) => {
        try {
          const message = checkToStandby(header);
          const counted = message.type !== 'leading';
          if (!counted) this.#led(connection, message);
          this.#replicas.take(message, payload);
          if (counted && frames++ === told) queueMicrotask(tell);
          if (message.type === 'introduced') {
            this.#failures = 0;
            this.#options.log(`following ${this.#options.primary}: ${message.runs.length} runs`);
          }
        } catch (error) {
          lost = `defect: ${error instanceof Error ? error.stack : String(error)}`;
          this.#options.log(`${lost}; it asks for all runs again`);
          connection.terminate();
        } finally {
          landing?.release();
        }
      },
      malformed: (error) => connection.close(1007, error.code),
      broken: () => {},
      alive: () => {
        this.#heardMs = performance.now();
      },
      closed: (code, reason) => {
        if (this.#connection !== connection) return;
        this.#connection = null;
        this.#heardMs = 0;
        // As long as it has no runs of the primary, nothing is lost with it.
        if (code === 1002 && !this.#replicas.whole) {
          this.#fatal = new DownpourError(
            'DP_PROTOCOL_VERSION',
            `${this.#options.primary} refuses this standby: ${reason}`,
          );
        }
        this.#failed(reason);
      },
    };
  }

  /** The store must be the one whose lease the primary holds: else nothing would tell of its end. */
  #led(
    connection: Connection,
    { version, token, leaseMs }: Extract<ToStandby, { type: 'leading' }>,
  ): void {
    const { store, log, primary } = this.#options;
    const problem = codeProblem(version, primary);
    if (problem !== null) this.#fatal = new DownpourError('DP_PROTOCOL_VERSION', problem);
    if (leaseMs > LEASE_MS_SOON && !this.#replicas.whole) {
      log(
        `the primary's lease lasts ${leaseMs / 1000} s, and so would a takeover: start it with --lease-seconds 2`,
      );
    }
    this.#leading = token;
    store.newestToken().then(
      (newest) => {
        if (newest === token) {
          this.#strangeSince = null;
          this.#isTheirs = true;
          return;
        }
        connection.terminate();
        this.#strangeSince ??= performance.now();
        // All runs may be here before the store has answered.
        if (this.#isTheirs || performance.now() - this.#strangeSince < STRANGE_MS) return;
        this.#fatal = new DownpourError(
          'DP_USAGE',
          `the state store of this standby is not that of ${primary} (its newest token is ${newest}, the primary's is ${token}): give both the same --redis-url, or the same --state on one machine`,
        );
      },
      // A store that is away says so when it is asked for the lease.
      () => {},
    );
  }
}

const STANDING_BY = `# HELP downpour_standing_by 1: this server is a standby. It follows another server and assigns no work.
# TYPE downpour_standing_by gauge
downpour_standing_by 1
`;

/** The port, on which nothing is to be had yet. */
async function listen({ host, port, tls, primary, store }: StandByOptions): Promise<{
  readonly url: string;
  readonly port: number;
  close(): Promise<void>;
}> {
  const started = performance.now();
  const what = `this server is the standby of ${primary} and takes no work yet: ask that one`;
  const answer: RequestListener = (request, response) => {
    const isHealth = request.method === 'GET' && request.url === '/health';
    const health: Health = {
      ...{ status: 'standby', problem: null },
      version: VERSION,
      stateStore: store.kind,
      uptimeSeconds: (performance.now() - started) / 1000,
      localSocket: null,
    };
    // So that Prometheus does not take it for one that is away. It tells nothing of runs, and so needs no token.
    if (request.method === 'GET' && request.url === '/metrics') {
      response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
      response.end(STANDING_BY);
      return;
    }
    response.writeHead(isHealth ? 200 : 503, { 'content-type': 'application/json' });
    response.end(JSON.stringify(isHealth ? health : { code: 'DP_STANDBY', message: what }));
  };
  const server = tls
    ? createTlsServer({ ...portLimits, ...tls.options() }, answer)
    : createServer(portLimits, answer);
  new SocketPlaces(server);
  tls?.keep(server as TlsServer);
  server.on('upgrade', (_, socket: Socket) => {
    socket.on('error', () => socket.destroy());
    refuse(socket, 'DP_STANDBY', what);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new DownpourError(
          'DP_USAGE',
          `a standby cannot listen on ${host} port ${port}: ${errorText(cause)}; choose another address with --host and --port`,
          { cause },
        ),
      ),
    );
    server.listen(port, host, resolve);
  });
  const { port: own } = server.address() as AddressInfo;
  return {
    url: `${tls ? 'https' : 'http'}://${host.includes(':') ? `[${host}]` : host}:${own}`,
    port: own,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}
