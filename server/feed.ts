import { LIMITS } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { FeedUpdate, RunSummary, ServerFacts, WorkerSummary } from '../shared/rest.ts';

/** What the feed tells of, as it is now. */
export interface FeedSource {
  /** @param runs as they are now. */
  server(runs: readonly RunSummary[]): ServerFacts;
  runs(): readonly RunSummary[];
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
  /** The text of each run and worker that it was sent last, by name. */
  readonly runs: Map<string, string>;
  readonly workers: Map<string, string>;
  /** What it was sent of late is paid off by then. */
  quietUntil: number;
  /** Since when it takes nothing; null: it does. */
  stuckAt: number | null;
}

/** One moment, as text: written once, however many look. */
interface Moment {
  readonly server: string;
  readonly runs: ReadonlyMap<string, string>;
  readonly workers: ReadonlyMap<string, string>;
}

/** A connection that takes nothing for so long is closed; all are after an hour, and come again. */
const STUCK_MS = 30_000;
const AGE_MS = 3_600_000;

/**
 * The live feed of dashboards, as server-sent events. Once a tick, and only while somebody looks, the state is
 * read and each reader is sent what has changed since its last event. A reader is sent
 * `LIMITS.feedBytesPerSecondMax` on average: with much to tell it is told less often.
 */
export class Feed {
  readonly #source: FeedSource;
  readonly #now: () => number;
  readonly #readers = new Set<Reader>();

  constructor(source: FeedSource, now: () => number) {
    this.#source = source;
    this.#now = now;
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
    const reader: Reader = {
      sink,
      openedAt: this.#now(),
      runs: new Map(),
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
    if (this.#readers.size === 0) return;
    const now = this.#now();
    let moment: Moment | null = null;
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

  #moment(): Moment {
    const { server, workers } = this.#source;
    const runs = this.#source.runs();
    return {
      server: JSON.stringify(server(runs)),
      runs: new Map(runs.map((run) => [run.id, JSON.stringify(run)])),
      workers: new Map(
        workers().map((each) => [`${each.worker}/${each.incarnation}`, JSON.stringify(each)]),
      ),
    };
  }

  #tell(reader: Reader, moment: Moment, now: number): void {
    const runs = news(reader.runs, moment.runs);
    const workers = news(reader.workers, moment.workers);
    const gone = JSON.stringify({
      runs: runs.gone,
      workers: workers.gone,
    } satisfies FeedUpdate['gone']);
    const text = `data: {"server":${moment.server},"runs":[${runs.changed.join()}],"workers":[${workers.changed.join()}],"gone":${gone}}\n\n`;
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
