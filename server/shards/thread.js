// The entry of a shard's thread. Plain JavaScript: a thread must register TypeScript by itself.
import { parentPort, workerData } from 'node:worker_threads';
import { register } from 'tsx/esm/api';

register();
const { serveShard } = await import('./server.ts');
const ending = new AbortController();
parentPort.once('message', () => ending.abort());
const { port, closed } = await serveShard({
  ...workerData,
  port: 0,
  log: (log) => parentPort.postMessage({ log }),
  signal: ending.signal,
});
parentPort.postMessage({ port });
await closed;
parentPort.close();
