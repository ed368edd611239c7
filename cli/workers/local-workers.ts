import { availableParallelism, hostname } from 'node:os';
import { resolve } from 'node:path';
import { webSocketAddress } from '../../shared/rest-client.ts';
import { type ServerOptions, withToken } from '../options.ts';
import type { UsedServer } from '../used-server.ts';
import { type Pool, startPool } from './pool.ts';

/** The workers that a command starts on this machine, for one run or for all of a study. */

export interface LocalWorkersOptions {
  /** Null: whatever the server has. */
  readonly run: string | null;
  readonly options: ServerOptions & {
    readonly workers: number;
    readonly data?: string;
    readonly engine?: string;
  };
  readonly usedServer: UsedServer;
  /** Where experiments lie, absolute. */
  readonly folders: readonly string[];
  readonly note: (line: string) => void;
  readonly log: (line: string) => void;
  /** Whether a worker that ended in good order had a reason to. */
  readonly isOver: () => Promise<boolean>;
}

export function startLocalWorkers(given: LocalWorkersOptions): Pool {
  const { run, options, usedServer, folders, note, log, isOver } = given;
  const threads = Math.max(1, Math.floor(availableParallelism() / options.workers));
  // Names are unique among all workers of a server; an own server has none but ours.
  const host = hostname()
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '');
  const prefix =
    usedServer.state === null ? `${host.slice(0, 40) || 'host'}-${process.pid}` : 'worker';
  const env = withToken(process.env, usedServer.state === null ? options : {});
  delete env.DOWNPOUR_SERVER;
  // What they say is ours to pass on.
  delete env.DOWNPOUR_LOG;
  // That of a worker that this is a guest of.
  delete env.DOWNPOUR_ALIVE_FILE;
  for (const name of ['CA', 'CERT', 'KEY']) delete env[`DOWNPOUR_TLS_${name}`];
  const { tlsCa, tlsCert, tlsKey } = options;
  if (tlsCa !== undefined) env.DOWNPOUR_TLS_CA = resolve(tlsCa);
  if (tlsCert !== undefined) env.DOWNPOUR_TLS_CERT = resolve(tlsCert);
  if (tlsKey !== undefined) env.DOWNPOUR_TLS_KEY = resolve(tlsKey);
  return startPool({
    names: Array.from({ length: options.workers }, (_, i) => `${prefix}-${i + 1}`),
    args: [
      ...['--server', webSocketAddress(usedServer.client.url)],
      ...(run === null ? [] : ['--run', run, '--once']),
      ...['--threads', String(threads)],
      ...['--experiments', ...folders],
      ...(options.data === undefined ? [] : ['--data', resolve(options.data)]),
      ...(options.engine === undefined ? [] : ['--engine', options.engine]),
    ],
    env,
    note,
    log,
    // The terminal's Ctrl-C reaches the workers as well. A server that is away is no reason to end.
    isOver,
  });
}
