import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { DownpourError } from '../../../shared/errors.ts';
import { ownModule } from '../../../shared/own-files.ts';
import type { PictureAnswer, PictureTask } from './decode-pictures.ts';

/** Threads that decode pictures beside the thread that trains. They are started with the first picture. */

const THREADS_MAX = 4;

/** A decoder for all sources of a process, since it is the cores that are few. */
let shared: PicturePool | undefined;

export const sharedPool = (): PicturePool => (shared ??= new PicturePool());

interface WaitingPicture {
  readonly resolve: (pixels: Uint8Array) => void;
  readonly reject: (error: Error) => void;
}

interface PictureThread {
  readonly worker: Worker;
  readonly waiting: Map<number, WaitingPicture>;
}

export class PicturePool {
  readonly #threads: PictureThread[] = [];
  readonly #count: number;
  #id = 0;

  /** @param count of threads; default: one less than there are cores, 1 to 4 */
  constructor(count = Math.min(THREADS_MAX, Math.max(1, availableParallelism() - 1))) {
    this.#count = count;
  }

  /** Pixels, shape [height, width, channels]. @throws DownpourError as `readPicture`; DP_INTERNAL: the thread ended. */
  decode(task: Omit<PictureTask, 'id'>): Promise<Uint8Array> {
    const { worker, waiting } = this.#leastBusy();
    const id = this.#id++;
    return new Promise((resolve, reject) => {
      // A process ends though threads wait for pictures, but not while one is asked for.
      if (waiting.size === 0) worker.ref();
      waiting.set(id, { resolve, reject });
      const bytes = task.bytes && Uint8Array.from(task.bytes);
      worker.postMessage(
        { id, ...task, ...(bytes && { bytes }) } satisfies PictureTask,
        bytes ? [bytes.buffer] : [],
      );
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()));
  }

  #leastBusy(): PictureThread {
    const idle = this.#threads.find(({ waiting }) => waiting.size === 0);
    if (idle) return idle;
    if (this.#threads.length < this.#count) return this.#start();
    return this.#threads.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a));
  }

  #start(): PictureThread {
    const worker = new Worker(ownModule('picture-thread', new URL('./thread.js', import.meta.url)));
    const thread: PictureThread = { worker, waiting: new Map() };
    worker.unref();
    worker.on('message', (answer: PictureAnswer) => {
      const asked = thread.waiting.get(answer.id);
      thread.waiting.delete(answer.id);
      if (thread.waiting.size === 0) worker.unref();
      if ('pixels' in answer) asked?.resolve(answer.pixels);
      else asked?.reject(new DownpourError(answer.code, answer.message));
    });
    const end = (cause?: unknown) => {
      const at = this.#threads.indexOf(thread);
      if (at >= 0) this.#threads.splice(at, 1);
      for (const { reject } of thread.waiting.values()) {
        reject(
          new DownpourError('DP_INTERNAL', 'the thread that decodes pictures ended; try again', {
            cause,
          }),
        );
      }
      thread.waiting.clear();
    };
    worker.on('error', end);
    worker.on('exit', () => end());
    this.#threads.push(thread);
    return thread;
  }
}
