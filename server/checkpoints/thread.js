// The entry of the thread that writes checkpoints. Plain JavaScript: a thread must register TypeScript by itself.
import { parentPort } from 'node:worker_threads';
import { register } from 'tsx/esm/api';

register();
const { writeWhenAsked } = await import('./writer.ts');
writeWhenAsked(parentPort);
