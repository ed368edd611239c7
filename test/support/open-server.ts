import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ServeOptions, serve } from '../../server/main.ts';

/** A server in this process, with a state folder of its own. `lines`: what it logs. */
export async function openTestServer(options: Partial<ServeOptions> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  const controller = new AbortController();
  const lines: string[] = [];
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state: join(folder, 'state'), localSocket: false },
    ...{ signal: controller.signal, log: (text: string) => lines.push(text) },
    ...options,
  });
  return {
    ...serving,
    folder,
    lines,
    async close() {
      controller.abort();
      await serving.closed;
      await rm(folder, { recursive: true, force: true });
    },
  };
}
