import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { DownpourError, errorCode } from '../shared/errors.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { clientOf, DEFAULT_HOST, DEFAULT_PORT, type ServerOptions } from './options.ts';

/** A server that a command talks to: one that runs already, or its own on a state folder. */
export interface UsedServer {
  readonly client: RestClient;
  /** The state folder when the server is this command's own, null: somebody else's. */
  readonly state: string | null;
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
  const server = await serve({
    host: DEFAULT_HOST,
    port: options.port ?? ((await isFree(DEFAULT_PORT)) ? DEFAULT_PORT : 0),
    state,
    signal: controller.signal,
    ...(options.log ? { log: options.log } : {}),
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

export interface UsedServerOptions extends ServerOptions {
  readonly state: string;
  /** True when the user named the folder on the command line. */
  readonly stateGiven: boolean;
  /** What the user asks about. */
  readonly run?: string | undefined;
}

/**
 * The server that the user means: the one at `--server`; else the runs in `--state`; else the server
 * at the default address, if one runs and knows the run; else the default state folder.
 * @throws DownpourError DP_SERVER_UNREACHABLE when there is none of them.
 */
export async function openUsedServer(options: UsedServerOptions): Promise<UsedServer> {
  const running = async (): Promise<UsedServer> => {
    const client = clientOf(options);
    await client.health();
    return { client, state: null, close: async () => {} };
  };
  if (options.server !== undefined) return running();
  if (options.stateGiven) {
    if (existsSync(options.state)) return startOwnServer({ state: options.state, port: 0 });
    throw new DownpourError(
      'DP_USAGE',
      `there is no state folder ${resolve(options.state)}; \`downpour train\` and \`downpour serve\` make one`,
    );
  }
  try {
    const usedServer = await running();
    if (options.run !== undefined) await usedServer.client.run(options.run);
    return usedServer;
  } catch (error) {
    const code = errorCode(error);
    // Who listens at the default address may have nothing to do with the runs of this folder.
    const isHere =
      (code === 'DP_SERVER_UNREACHABLE' && existsSync(options.state)) ||
      (['DP_RUN_UNKNOWN', 'DP_UNAUTHORIZED'].includes(code) &&
        options.run !== undefined &&
        existsSync(join(options.state, options.run)));
    if (!isHere) throw error;
    return startOwnServer({ state: options.state, port: 0 });
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
