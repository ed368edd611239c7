// The entry of a thread that decodes pictures. Plain JavaScript: a thread must register TypeScript by itself.
import { parentPort } from 'node:worker_threads';
import { register } from 'tsx/esm/api';

register();
const { decodePictures } = await import('./decode-pictures.ts');
decodePictures(parentPort);
