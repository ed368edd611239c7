import { resolve } from 'node:path';
import { DEFAULT_HOST, DEFAULT_PORT, DEFAULT_STATE } from '../cli/options.ts';
import { type ServeOptions, serve } from '../server/main.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { mustBeOptions, OF_SERVE, SHARED_OPTIONS, type SharedOptions } from './options.ts';

/** What programs import as `downpour/server`: a parameter server in their own process. */

/** What the plugin does not have, since there the app listens. */
const LISTENING = ['tls', 'insecure', 'localSocket', 'shards', 'log'] as const;
const OPTIONS = [...SHARED_OPTIONS, ...LISTENING, 'host', 'port', 'state', 'signal'];

export interface StartServerOptions
  extends SharedOptions,
    Pick<ServeOptions, (typeof LISTENING)[number]> {
  /** Default: this machine alone. */
  readonly host?: string;
  /** Default: 7420; 0: any free one. */
  readonly port?: number;
  /** Folder of records and checkpoints. Default: `.downpour` in the working folder. */
  readonly state?: string;
  /** Aborted: the server stops, with a checkpoint of each run. */
  readonly signal?: AbortSignal;
}

export interface StartedServer {
  /** `http://host:port` */
  readonly url: string;
  /** Makes runs, stops them and tells of them. Has the operators' `token` that was given. */
  readonly client: RestClient;
  /** Resolves when all is written and closed. @throws DownpourError DP_STATE_FENCED: another server has taken the state over. */
  readonly closed: Promise<void>;
  /** Stops it, with a checkpoint of each run. @throws as `closed`. */
  close(): Promise<void>;
}

export { type DownpourPluginOptions, downpour, downpour as default, type Role } from './plugin.ts';

/**
 * Starts a parameter server, as `downpour serve` does.
 * @throws DownpourError DP_USAGE: an option is none of it; and as `serve`. The reason of a `signal` that is aborted already.
 */
export async function startServer(options: StartServerOptions = {}): Promise<StartedServer> {
  mustBeOptions('startServer', options, OPTIONS, OF_SERVE);
  options.signal?.throwIfAborted();
  const { host = DEFAULT_HOST, port = DEFAULT_PORT, state = DEFAULT_STATE, signal } = options;
  const stopping = new AbortController();
  const { url, closed } = await serve({
    ...options,
    ...{ host, port, state: resolve(state) },
    signal: signal ? AbortSignal.any([signal, stopping.signal]) : stopping.signal,
  });
  // Whoever does not await it yet learns of a failure when they do.
  closed.catch(() => {});
  return {
    ...{ url, closed, client: createRestClient({ server: url, token: options.token }) },
    async close() {
      stopping.abort();
      await closed;
    },
  };
}
