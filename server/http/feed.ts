import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { FeedUpdate, ServerFacts, WorkerSummary } from '../../shared/rest.ts';
import type { Changes, ListEntry, Listed, Listing } from '../fleet/listing.ts';

/** What the feed tells of, as it is now. */
export interface FeedSource<L extends Listed = Listed> {
  readonly listing: Pick<Listing<L>, 'size' | 'at' | 'moving' | 'refresh' | 'watch'>;
  /** After `listing.refresh()`. */
  server(): ServerFacts;
  workers(): readonly WorkerSummary[];
}

/** Where one dashboard is written to. */
export interface FeedSink {
  write(text: string): void;
  /** Bytes that it has not taken yet. */
  readonly waiting: number;
  end(): void;
  /** False: who opened it may not look any more. */
  readonly allowed: () => boolean;
}

interface Reader {
  readonly sink: FeedSink;
  readonly openedAt: number;
  /** Runs that it is to be told of: they have changed since it was. */
  readonly changed: Set<ListEntry>;
  readonly gone: Set<string>;
  /** Below this index of the listing it was told of none, but for those in `changed`. */
  rest: number;
  /** The text of each worker that it was sent last, by name. */
  readonly workers: Map<string, string>;
  /** What it was sent of late is paid off by then. */
  quietUntil: number;
  /** Since when it takes nothing; null: it does. */
  stuckAt: number | null;
}

/** One moment, as text: written once, however many look. */
interface FeedMoment {
  readonly server: string;
  readonly workers: ReadonlyMap<string, string>;
}

/** A connection that takes nothing for so long is closed; all are after an hour, and come again. */
const STUCK_MS = 30_000;
const AGE_MS = 3_600_000;

/** Runs that a new reader is told of at once, the newest, and later ones with each event: they are 1 to 2 KB each. */
const FIRST_RUNS = 200;
const MORE_RUNS = 30;

/**
 * The live feed of dashboards, as server-sent events. Once a tick, and only while somebody looks, the state is
 * read and each reader is sent what has changed since its last event. A reader is sent
 * `LIMITS.feedBytesPerSecondMax` on average: with much to tell it is told less often. Of many runs it is told little
 * by little, so that neither an event nor a new reader costs more the more of them there are.
 */
export class Feed {
  readonly #source: FeedSource;
  readonly #now: () => number;
  readonly #readers = new Set<Reader>();
  readonly #changes: Changes<Listed>;

  constructor(source: FeedSource, now: () => number) {
    this.#source = source;
    this.#now = now;
    this.#changes = source.listing.watch();
  }

  /** @throws DownpourError DP_LIMIT. */
  mustHaveRoom(): void {
    if (this.#readers.size < LIMITS.feedCountMax) return;
    throw new DownpourError(
      'DP_LIMIT',
      `${this.#readers.size} dashboards are open; at most ${LIMITS.feedCountMax}: close one of them`,
    );
  }

  /** Sends all, then what changes. @returns what takes the reader off. */
  open(sink: FeedSink): () => void {
    this.#collect();
    const { listing } = this.#source;
    const reader: Reader = {
      sink,
      openedAt: this.#now(),
      changed: new Set(listing.moving),
      gone: new Set(),
      rest: listing.size,
      workers: new Map(),
      quietUntil: 0,
      stuckAt: null,
    };
    this.#readers.add(reader);
    // Sooner than a browser would by itself: a server that is started again is back within seconds.
    sink.write('retry: 1000\n\n');
    this.#tell(reader, this.#moment(), this.#now());
    return () => this.#readers.delete(reader);
  }

  tick(): void {
    if (this.#readers.size === 0) {
      // Nobody is told: who comes next is told of all.
      this.#changes.changed.clear();
      this.#changes.gone.clear();
      return;
    }
    this.#collect();
    const now = this.#now();
    let moment: FeedMoment | null = null;
    for (const reader of this.#readers) {
      const { sink } = reader;
      if (!sink.allowed() || now - reader.openedAt > AGE_MS || this.#isStuck(reader, now)) {
        this.#readers.delete(reader);
        sink.end();
      } else if (now >= reader.quietUntil && sink.waiting === 0) {
        moment ??= this.#moment();
        this.#tell(reader, moment, now);
      }
    }
  }

  close(): void {
    for (const { sink } of this.#readers) sink.end();
    this.#readers.clear();
  }

  #isStuck(reader: Reader, now: number): boolean {
    if (reader.sink.waiting === 0) reader.stuckAt = null;
    else reader.stuckAt ??= now;
    return reader.stuckAt !== null && now - reader.stuckAt > STUCK_MS;
  }

  /** Lets all readers know what has changed. */
  #collect(): void {
    this.#source.listing.refresh();
    const changes = this.#changes;
    if (changes.isReset) {
      // They come again at once, and begin anew.
      this.close();
      changes.isReset = false;
    }
    for (const reader of this.#readers) {
      for (const entry of changes.changed) {
        if (entry.index >= reader.rest || entry.run.moving) reader.changed.add(entry);
      }
      for (const id of changes.gone) reader.gone.add(id);
      if (changes.gone.size === 0) continue;
      for (const entry of reader.changed) {
        if (changes.gone.has(entry.run.id)) reader.changed.delete(entry);
      }
    }
    changes.changed.clear();
    changes.gone.clear();
  }

  #moment(): FeedMoment {
    const { server, workers } = this.#source;
    return {
      server: JSON.stringify(server()),
      workers: new Map(
        workers().map((each) => [`${each.worker}/${each.incarnation}`, JSON.stringify(each)]),
      ),
    };
  }

  /** Those that have changed, and some that it was not told of yet, the newest first. */
  #runsFor(reader: Reader): string[] {
    const { listing } = this.#source;
    const told = new Set(reader.changed);
    reader.changed.clear();
    const until = Math.max(0, reader.rest - (reader.quietUntil === 0 ? FIRST_RUNS : MORE_RUNS));
    while (reader.rest > until) {
      const entry = listing.at(--reader.rest);
      if (entry) told.add(entry);
    }
    return [...told].sort((a, b) => a.index - b.index).map(({ text }) => text);
  }

  #tell(reader: Reader, moment: FeedMoment, now: number): void {
    const runs = this.#runsFor(reader);
    const workers = news(reader.workers, moment.workers);
    const gone = JSON.stringify({
      runs: [...reader.gone],
      workers: workers.gone,
    } satisfies FeedUpdate['gone']);
    reader.gone.clear();
    const text = `data: {"server":${moment.server},"runs":[${runs.join()}],"rest":${reader.rest},"workers":[${workers.changed.join()}],"gone":${gone}}\n\n`;
    reader.quietUntil = now + (text.length / LIMITS.feedBytesPerSecondMax) * 1000;
    reader.sink.write(text);
  }
}

/** Takes over what is new. */
function news(
  sent: Map<string, string>,
  now: ReadonlyMap<string, string>,
): { changed: string[]; gone: string[] } {
  const changed: string[] = [];
  for (const [name, text] of now) {
    if (sent.get(name) === text) continue;
    sent.set(name, text);
    changed.push(text);
  }
  const gone = [...sent.keys()].filter((name) => !now.has(name));
  for (const name of gone) sent.delete(name);
  return { changed, gone };
}
