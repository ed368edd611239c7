import { Worker } from 'node:worker_threads';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';

/** Threads that do one kind of work beside the thread that trains. They are started with the first task. */

/** What a thread answers to the task of that id. */
export type ThreadAnswer<Result> =
  | { readonly id: number; readonly result: Result }
  | { readonly id: number; readonly code: ErrorCode; readonly message: string };

export interface ThreadPoolOptions {
  /** The module of a thread. */
  readonly module: URL;
  /** Threads, at most. */
  readonly count: number;
  /** What a thread does, in the words of an error: "decodes pictures". */
  readonly work: string;
  /** Arguments for Node; default: those of this process. */
  readonly execArgv?: string[];
}

interface WaitingTask<Result> {
  readonly resolve: (result: Result) => void;
  readonly reject: (error: Error) => void;
}

interface PoolThread<Result> {
  readonly worker: Worker;
  readonly waiting: Map<number, WaitingTask<Result>>;
}

export class ThreadPool<Task extends object, Result> {
  readonly #threads: PoolThread<Result>[] = [];
  readonly #options: ThreadPoolOptions;
  #id = 0;

  constructor(options: ThreadPoolOptions) {
    this.#options = options;
  }

  /**
   * @param transfer memory that the thread takes over
   * @throws DownpourError what the thread answers; DP_INTERNAL: the thread ended.
   */
  run(task: Task, transfer: readonly ArrayBuffer[] = []): Promise<Result> {
    const { worker, waiting } = this.#leastBusy();
    const id = this.#id++;
    return new Promise((resolve, reject) => {
      // A process ends though threads wait for tasks, but not while one is at work.
      if (waiting.size === 0) worker.ref();
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, ...task }, transfer);
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()));
  }

  #leastBusy(): PoolThread<Result> {
    const idle = this.#threads.find(({ waiting }) => waiting.size === 0);
    if (idle) return idle;
    if (this.#threads.length < this.#options.count) return this.#start();
    return this.#threads.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a));
  }

  #start(): PoolThread<Result> {
    const { module, work, execArgv } = this.#options;
    const worker = new Worker(module, execArgv && { execArgv });
    const thread: PoolThread<Result> = { worker, waiting: new Map() };
    worker.unref();
    worker.on('message', (answer: ThreadAnswer<Result>) => {
      const asked = thread.waiting.get(answer.id);
      thread.waiting.delete(answer.id);
      if (thread.waiting.size === 0) worker.unref();
      if ('result' in answer) asked?.resolve(answer.result);
      else asked?.reject(new DownpourError(answer.code, answer.message));
    });
    const end = (cause?: unknown) => {
      const at = this.#threads.indexOf(thread);
      if (at >= 0) this.#threads.splice(at, 1);
      for (const { reject } of thread.waiting.values()) {
        reject(
          new DownpourError('DP_INTERNAL', `the thread that ${work} ended; try again`, { cause }),
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
