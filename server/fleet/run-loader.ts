import type { RunsRead } from '../../shared/rest.ts';
import type { Run } from '../core/run.ts';

/**
 * Runs of a state folder are read behind the server that listens already: first those that are asked for, then those
 * that workers are needed for, then those that are over, the newest first, archived ones last.
 */

/** A run that is known and not read yet. */
export interface UnreadRun {
  readonly id: string;
  /** Whether no worker is needed for it, as far as its record says. */
  readonly isOver: boolean;
  /** Nobody wants to see it: it is read last. */
  readonly isArchived?: boolean;
  readonly bundle: string | null;
}

export interface RunLoaderOptions<K extends UnreadRun> {
  /** Oldest first. */
  readonly known: readonly K[];
  /** @returns null: it can't be read, which has been told. */
  readonly read: (known: K) => Promise<Run | null>;
  readonly adopt: (run: Run) => void;
  /** Runs that are read together. */
  readonly atOnce?: number;
}

/** Little of the main thread, so that the workers of runs that are there already go on meanwhile. */
const AT_ONCE = 4;

/** What others know of it. */
export type RunsToCome = Pick<
  RunLoader,
  'has' | 'left' | 'bundles' | 'facts' | 'want' | 'unfinished' | 'done' | 'stop'
>;

interface LoadEntry<K> {
  readonly known: K;
  readonly done: Promise<void>;
  resolve(): void;
  begun: boolean;
}

export class RunLoader<K extends UnreadRun = UnreadRun> {
  readonly #options: RunLoaderOptions<K>;
  /** In the order in which they are read; without those that are done. */
  readonly #left = new Map<string, LoadEntry<K>>();
  readonly #wanted: LoadEntry<K>[] = [];
  readonly #order: Iterator<LoadEntry<K>>;
  readonly #count: number;
  #unfinished: number;
  readonly #unfinishedRead: LoadEntry<null>;
  #stopped = false;
  /** Resolves when all are read, or `stop` was called and what had begun has ended. */
  readonly done: Promise<void>;

  constructor(options: RunLoaderOptions<K>) {
    this.#options = options;
    const newestFirst = options.known.toReversed();
    const open = newestFirst.filter(({ isOver }) => !isOver);
    const rest = newestFirst.filter(({ isOver }) => isOver);
    const over = rest.filter(({ isArchived = false }) => !isArchived);
    const archived = rest.filter(({ isArchived = false }) => isArchived);
    for (const known of [...open, ...over, ...archived]) this.#left.set(known.id, entryOf(known));
    this.#order = [...this.#left.values()].values();
    this.#count = this.#left.size;
    this.#unfinished = open.length;
    this.#unfinishedRead = entryOf(null);
    if (this.#unfinished === 0) this.#unfinishedRead.resolve();
    const atOnce = Math.min(options.atOnce ?? AT_ONCE, this.#count);
    this.done = Promise.all(Array.from({ length: atOnce }, () => this.#read())).then(() => {});
  }

  /** There is such a run, and it is not read yet. */
  has(id: string): boolean {
    return this.#left.has(id);
  }

  get left(): number {
    return this.#left.size;
  }

  /** Bundles of runs that are not read yet. */
  get bundles(): string[] {
    return [...this.#left.values()].flatMap(({ known }) => known.bundle ?? []);
  }

  /** Null: all are read. */
  get facts(): RunsRead | null {
    if (this.#left.size === 0) return null;
    return { done: this.#count - this.#left.size, of: this.#count };
  }

  /** Reads it next. @returns null: it is not to be read. Resolves when it has been, or cannot be. */
  want(id: string): Promise<void> | null {
    const entry = this.#left.get(id);
    if (!entry) return null;
    if (!entry.begun && !this.#wanted.includes(entry)) this.#wanted.push(entry);
    return entry.done;
  }

  /** Resolves when those that workers are needed for have been read; null: they have. */
  get unfinished(): Promise<void> | null {
    return this.#unfinished === 0 ? null : this.#unfinishedRead.done;
  }

  /** Reads no more. Resolves when what had begun has ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.done;
    for (const { resolve } of this.#left.values()) resolve();
    this.#unfinishedRead.resolve();
  }

  #next(): LoadEntry<K> | null {
    for (;;) {
      const next = this.#wanted.shift() ?? this.#order.next().value;
      if (!next || this.#stopped) return null;
      if (!next.begun) return next;
    }
  }

  async #read(): Promise<void> {
    for (let next = this.#next(); next; next = this.#next()) {
      next.begun = true;
      const { known, resolve } = next;
      const run = await this.#options.read(known);
      this.#left.delete(known.id);
      if (!known.isOver) this.#unfinished--;
      if (run && !this.#stopped) this.#options.adopt(run);
      resolve();
      if (this.#unfinished === 0) this.#unfinishedRead.resolve();
    }
  }
}

function entryOf<K>(known: K): LoadEntry<K> {
  let resolve = () => {};
  const done = new Promise<void>((done) => {
    resolve = done;
  });
  return { known, done, resolve, begun: false };
}
