import { serveShard } from '../../server/shards/server.ts';

/** A shard in this process, on a free port of this machine, in the clear and without tokens. @returns its port, and what ends it. */
export async function shardHere(
  log: (line: string) => void,
): Promise<{ readonly port: number; stop(): Promise<void> }> {
  const stop = new AbortController();
  const { port, closed } = await serveShard({
    ...{ host: '127.0.0.1', port: 0, tokens: {}, tls: null, localSocket: false, log },
    signal: stop.signal,
  });
  return {
    port,
    async stop() {
      stop.abort();
      await closed;
    },
  };
}
