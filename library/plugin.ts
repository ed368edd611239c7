import { resolve } from 'node:path';
import type { FastifyInstance, FastifyPluginAsync, FastifyRequest } from 'fastify';
import fastifyPlugin from 'fastify-plugin';
import { DEFAULT_STATE } from '../cli/options.ts';
import { Access, type AccessRole } from '../server/access/access.ts';
import { mountApp } from '../server/http/mount.ts';
import { serve } from '../server/main.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { mustBeOptions, OF_SERVE, SHARED_OPTIONS, type SharedOptions } from './options.ts';

/** A parameter server as a plugin of Fastify: `await app.register(downpour, { prefix: '/training', … })`. */

export type { AccessRole as Role };

export interface DownpourPluginOptions extends SharedOptions {
  /** Folder of records and checkpoints. Default: `.downpour` in the working folder. */
  readonly state?: string;
  /**
   * Instead of tokens: who a request is, by what the app's own `onRequest` hooks have found; null: nobody. WebSockets of
   * workers are asked about as requests are. An operator may do all, an observer read, a worker compute.
   */
  readonly authorize?: (request: FastifyRequest) => AccessRole | null | Promise<AccessRole | null>;
}

/** The last three are Fastify's own. */
const OPTIONS = [
  ...[...SHARED_OPTIONS, 'state', 'authorize'],
  ...['prefix', 'logLevel', 'logSerializers'],
];

const LISTENS = 'the app listens, so give it to `Fastify` or `app.listen`';
const STARTS = '`startServer` has it, or `downpour serve`';

const ELSEWHERE: Readonly<Record<string, string>> = {
  ...OF_SERVE,
  ...{ host: LISTENS, port: LISTENS, tls: LISTENS },
  ...{ localSocket: STARTS, shards: STARTS },
  insecure: "give `authorize: () => 'operator'` for an app that nobody else reaches",
  signal: '`app.close()` stops the server',
  log: "the app's log is used",
};

/**
 * Its routes, hooks, parsers and answers are of its own scope: they change nothing for the app's other routes. The app's
 * hooks run for its routes and WebSockets, and its log is the app's. It begins to serve when the app is ready, and closes
 * with the app, after a checkpoint of each run.
 * @throws DownpourError DP_USAGE: nothing says who may use it, or an option is none of it; and as `serve`.
 */
const plugin: FastifyPluginAsync<DownpourPluginOptions> = async (scope, options) => {
  mustBeOptions('the plugin', options, OPTIONS, ELSEWHERE);
  const { authorize = null, state = DEFAULT_STATE, ...rest } = options;
  const log = logOf(scope);
  mustBeGuarded(options);
  const stopping = new AbortController();
  const { closed } = await serve({
    ...rest,
    ...{ host: '127.0.0.1', port: 0, state: resolve(state), signal: stopping.signal },
    // `authorize` or a token guards it, wherever the app listens.
    ...{ insecure: true, localSocket: false, log },
    mount: (own) => mountApp(scope, own, { prefix: scope.prefix, authorize }),
  });
  closed.catch((error: unknown) => {
    if (!stopping.signal.aborted) log(errorText(error), { level: 'error' });
  });
  // Before the app's server closes, which waits for the sockets of workers.
  scope.addHook('preClose', async () => {
    stopping.abort();
    await closed.catch((error: unknown) => log(errorText(error), { level: 'error' }));
  });
};

export const downpour: FastifyPluginAsync<DownpourPluginOptions> = fastifyPlugin(plugin, {
  ...{ name: 'downpour', fastify: '5.x', encapsulate: true },
});

function mustBeGuarded({ authorize, ...sources }: DownpourPluginOptions): void {
  const access = new Access(sources);
  const { open } = access;
  access.close();
  if (authorize && !open) {
    throw new DownpourError(
      'DP_USAGE',
      'the plugin was given tokens and `authorize`: choose who says who may use it',
    );
  }
  if (authorize || !open) return;
  throw new DownpourError(
    'DP_USAGE',
    "the plugin has no access control: give it a token, or `authorize: (request) => 'operator'` if the app's own hooks keep everybody else out",
  );
}

function logOf({ log }: FastifyInstance): Log {
  return (line, { level = 'info', ...facts } = {}) => log[level](facts, line);
}
