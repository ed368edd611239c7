import { availableParallelism } from 'node:os';
import { ownEntry } from '../../../shared/own-files.ts';
import { ThreadPool } from '../thread-pool.ts';
import type { PictureTask } from './decode-pictures.ts';

/** Threads that decode pictures beside the thread that trains. */

const THREADS_MAX = 4;

/** A decoder for all sources of a process, since it is the cores that are few. */
let shared: PicturePool | undefined;

export const sharedPool = (): PicturePool => (shared ??= new PicturePool());

export class PicturePool {
  readonly #threads: ThreadPool<PictureTask, Uint8Array>;

  /** @param count of threads; default: one less than there are cores, 1 to 4 */
  constructor(count = Math.min(THREADS_MAX, Math.max(1, availableParallelism() - 1))) {
    const module = ownEntry('picture-thread', new URL('./thread.js', import.meta.url));
    this.#threads = new ThreadPool({ module, count, work: 'decodes pictures' });
  }

  /** Pixels, shape [height, width, channels]. @throws DownpourError as `readPicture`; DP_INTERNAL: the thread ended. */
  decode(task: PictureTask): Promise<Uint8Array> {
    const bytes = task.bytes && Uint8Array.from(task.bytes);
    return this.#threads.run({ ...task, ...(bytes && { bytes }) }, bytes ? [bytes.buffer] : []);
  }

  close(): Promise<void> {
    return this.#threads.close();
  }
}
