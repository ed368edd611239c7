import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ownerOf } from '../server/store/owner-address.ts';
import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { clientOf, DEFAULT_HOST, DEFAULT_PORT, type ServerOptions, tell } from './options.ts';
import { studyNamed } from './trained/trials.ts';

/** A server that a command talks to: one that runs already, or its own on a state folder. */
export interface UsedServer {
  readonly client: RestClient;
  /** The state folder when the server is this command's own, null: somebody else's. */
  readonly state: string | null;
  /** What to tell the user about a server that was found in the state folder; absent: nothing. */
  readonly shared?: string;
  /** Ends an own server, after a checkpoint of each run that goes on; leaves another's alone. */
  close(): Promise<void>;
}

export interface OwnServerOptions {
  readonly state: string;
  /** Undefined: the default port when it is free, else any. */
  readonly port?: number | undefined;
  readonly log?: (line: string) => void;
}

/** Starts a server in this process, for this machine only, on a state folder. */
export async function startOwnServer(options: OwnServerOptions): Promise<UsedServer> {
  const { serve } = await import('../server/main.ts');
  const controller = new AbortController();
  const state = resolve(options.state);
  const listen = (port: number) =>
    serve({
      ...{ host: DEFAULT_HOST, port, state, endsWithCommand: true, signal: controller.signal },
      ...(options.log ? { log: options.log } : {}),
    });
  const port = options.port ?? ((await isFree(DEFAULT_PORT)) ? DEFAULT_PORT : 0);
  const server = await listen(port).catch((error: unknown) => {
    // Another command has begun in the same moment and was quicker.
    const isTaken = options.port === undefined && port !== 0 && errorCode(error) === 'DP_USAGE';
    if (!isTaken) throw error;
    return listen(0);
  });
  return {
    client: createRestClient({ server: server.url }),
    state,
    async close() {
      controller.abort();
      await server.closed;
    },
  };
}

export interface TrainServerOptions extends ServerOptions {
  readonly state: string;
  readonly port?: number | undefined;
}

/** How long a server that has taken the folder may need before it listens. */
const BEGIN_MS = 20_000;
const LOOK_MS = 250;
/** After which a wait is told. */
const TELL_MS = 1_000;

/**
 * The server of a command that trains: the one at `--server`; else the one that runs on the state folder; else its own.
 * @throws DownpourError DP_SERVER_UNREACHABLE, DP_UNAUTHORIZED or DP_FORBIDDEN of the one that is shared; DP_STATE_LOCKED
 *   where the folder is held by one that cannot be found.
 */
export async function openTrainServer(
  options: TrainServerOptions,
  log: (line: string) => void,
): Promise<UsedServer> {
  if (options.server !== undefined) return running(options, options.server);
  const { state, port } = options;
  return withFolder(state, async () => {
    const url = await urlOfFolder(state);
    return url === null ? startOwnServer({ state, port, log }) : shareAt(options, url, log);
  });
}

/**
 * Tries again while the folder is held by a server that has no address yet: it belongs to a command of the same moment, or
 * reads large checkpoints, and listens soon. The app of a program says that it has none.
 */
async function withFolder<T>(state: string, attempt: () => Promise<T>): Promise<T> {
  let isTold = false;
  for (const began = performance.now(); ; await delay(LOOK_MS)) {
    try {
      return await attempt();
    } catch (error) {
      const waitedMs = performance.now() - began;
      if (errorCode(error) !== 'DP_STATE_LOCKED' || waitedMs > BEGIN_MS) throw error;
      const owner = await ownerOf(state);
      if (owner.kind !== 'held') continue;
      if (owner.address?.url === null) throw error;
      if (isTold || waitedMs < TELL_MS) continue;
      isTold = true;
      tell(`waiting for the server of ${state}, ${owner.by}, to listen`);
    }
  }
}

/** Somebody else's. @throws DownpourError DP_SERVER_UNREACHABLE. */
async function running(options: ServerOptions, server?: string): Promise<UsedServer> {
  const client = clientOf(server === undefined ? options : { ...options, server });
  await client.health();
  return { client, state: null, close: async () => {} };
}

/** The address of the server that runs on a state folder, as its lock has it; null: none does, or it tells no address. */
export async function urlOfFolder(state: string): Promise<string | null> {
  if (!existsSync(state)) return null;
  const owner = await ownerOf(state);
  return owner.kind === 'held' ? (owner.address?.url ?? null) : null;
}

/**
 * Uses the server that runs on the state folder. One that belongs to another command ends with it: then this command goes
 * on with a server of its own at the same address, from the checkpoints that the other one left.
 */
async function shareAt(
  options: TrainServerOptions,
  url: string,
  log: (line: string) => void,
): Promise<UsedServer> {
  const { state } = options;
  const server = await running(options, url);
  try {
    // Health is told to everybody.
    await server.client.status(1);
  } catch (error) {
    const code = errorCode(error);
    if (code !== 'DP_UNAUTHORIZED' && code !== 'DP_FORBIDDEN') throw error;
    throw new DownpourError(
      code,
      `the server of ${state} runs at ${url} and takes this command with an operator's token only: set DOWNPOUR_TOKEN or --token-file, or train in another folder with --state (${errorText(error)})`,
      { cause: error },
    );
  }
  const owner = await ownerOf(state);
  const isBrief = owner.kind === 'held' && owner.address?.endsWithCommand === true;
  const heir = isBrief ? new Heir(state, url, log) : null;
  return {
    ...server,
    shared: `a server runs in ${state} already: this command uses it at ${url}; Ctrl-C ends only what this command began`,
    close: async () => heir?.close(),
  };
}

/** Asks a server that is shared until it answers: it may end with its command in this moment, and is taken over then. */
export async function patiently<T>({ shared }: UsedServer, ask: () => Promise<T>): Promise<T> {
  for (const since = performance.now(); ; await delay(LOOK_MS)) {
    try {
      return await ask();
    } catch (error) {
      const isAway = shared !== undefined && errorCode(error) === 'DP_SERVER_UNREACHABLE';
      if (!isAway || performance.now() - since > BEGIN_MS) throw error;
    }
  }
}

/** Waits for the end of a server that belongs to another command, and takes its place. */
class Heir {
  readonly #ending = new AbortController();
  readonly #watching: Promise<void>;
  #own: UsedServer | null = null;

  constructor(state: string, url: string, log: (line: string) => void) {
    this.#watching = this.#watch(state, url, log);
  }

  async #watch(state: string, url: string, log: (line: string) => void): Promise<void> {
    const { signal } = this.#ending;
    const port = Number(new URL(url).port);
    while (!signal.aborted && !this.#own) {
      await delay(LOOK_MS, undefined, { signal }).catch(() => {});
      if (signal.aborted || (await ownerOf(state)).kind === 'held') continue;
      try {
        this.#own = await startOwnServer({ state, port, log });
        log(`the command whose server this was has ended: this one serves ${state} now`);
      } catch (error) {
        // Another command was first, or the port is not free yet.
        log(`${state} is not taken over: ${errorText(error)}; trying again`);
      }
    }
  }

  async close(): Promise<void> {
    this.#ending.abort();
    await this.#watching;
    await this.#own?.close();
  }
}

export interface UsedServerOptions extends ServerOptions {
  readonly state: string;
  /** True when the user named the folder on the command line. */
  readonly stateGiven: boolean;
  /** What the user asks about. */
  readonly run?: string | undefined;
}

/**
 * The server that the user means: the one at `--server`; else the one that runs on the state folder; else one at the
 * default address, if it knows the run; else an own one on the folder, whose runs are read from their checkpoints.
 * @param ownToo false: only one that runs already.
 * @throws DownpourError DP_SERVER_UNREACHABLE when there is none of them.
 */
export async function openUsedServer(
  options: UsedServerOptions,
  ownToo = true,
): Promise<UsedServer> {
  if (options.server !== undefined) return running(options);
  return withFolder(options.state, () => serverOfFolder(options, ownToo));
}

async function serverOfFolder(options: UsedServerOptions, ownToo: boolean): Promise<UsedServer> {
  const { state, run } = options;
  if (options.stateGiven && !existsSync(state)) {
    throw new DownpourError(
      'DP_USAGE',
      `there is no state folder ${resolve(state)}; \`downpour train\` and \`downpour serve\` make one`,
    );
  }
  const url = await urlOfFolder(state);
  const knowing = async (server?: string): Promise<UsedServer> => {
    const used = await running(options, server);
    // A study has a name too.
    if (run !== undefined && !(await studyNamed(used.client, run))) await used.client.run(run);
    return used;
  };
  if (url !== null) {
    try {
      return await knowing(url);
    } catch (error) {
      const isAnother = ['DP_RUN_UNKNOWN', 'DP_SERVER_UNREACHABLE'].includes(errorCode(error));
      if (options.stateGiven || !isAnother) throw error;
    }
  } else if (options.stateGiven && ownToo) return startOwnServer({ state, port: 0 });
  try {
    return await knowing();
  } catch (error) {
    const code = errorCode(error);
    // Who listens at the default address may have nothing to do with the runs of this folder.
    const isHere =
      (code === 'DP_SERVER_UNREACHABLE' && existsSync(state)) ||
      (['DP_RUN_UNKNOWN', 'DP_UNAUTHORIZED'].includes(code) &&
        run !== undefined &&
        existsSync(join(state, run)));
    if (!isHere || url !== null || !ownToo) throw error;
    return startOwnServer({ state, port: 0 });
  }
}

/** Whether nobody listens on a port of this machine. */
function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.on('error', () => resolve(false));
    probe.listen(port, DEFAULT_HOST, () => probe.close(() => resolve(true)));
  });
}
