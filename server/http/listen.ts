import type { Server as TlsServer } from 'node:tls';
import type { FastifyInstance } from 'fastify';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { type LocalListener, listenBeside, localSocketWanted } from '../../wire/local-socket.ts';
import { socketLimits } from '../access/sockets.ts';
import { type AppOptions, createApp } from './app.ts';

/** The port of a server that has one of its own, and the unix socket beside it. */
export interface OpenPort {
  readonly url: string;
  /** The unix socket for workers on this machine; null: there is none. */
  readonly localPath: string | null;
  close(): Promise<void>;
}

/**
 * Makes the app and listens.
 * @param localSocket false: no unix socket.
 * @throws DownpourError DP_USAGE when the address is taken, not allowed or not this machine's.
 */
export async function openPort(
  options: AppOptions,
  {
    host,
    port,
    localSocket,
  }: { readonly host: string; readonly port: number; readonly localSocket: boolean | undefined },
): Promise<OpenPort> {
  const { tls = null, log } = options;
  const app = await createApp(options);
  tls?.keep(app.server as unknown as TlsServer);
  // Who asks for encryption gets no way around it.
  const beside = !tls && localSocketWanted(localSocket);
  let local: LocalListener | null = null;
  if (beside) {
    const listener = await listenBeside(app.server);
    if ('path' in listener) local = listener;
    else log(`no unix socket for workers on this machine, they use TCP: ${listener.problem}`);
  }
  const { socketCountMax } = socketLimits();
  if (socketCountMax < LIMITS.socketCountMax) {
    log(
      `this process may open few files at a time: at most ${socketCountMax} sockets a port, ${LIMITS.socketCountMax} wanted; raise \`ulimit -n\``,
      { level: 'warn' },
    );
  }
  try {
    return {
      url: await listen(app, host, port),
      localPath: local?.path ?? null,
      async close() {
        await local?.close();
        await app.close();
      },
    };
  } catch (error) {
    await local?.close();
    throw error;
  }
}

async function listen(app: FastifyInstance, host: string, port: number): Promise<string> {
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
