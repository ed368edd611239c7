/** What happens when, in virtual time. */

interface Timed {
  readonly at: number;
  readonly order: number;
}

const isBefore = (a: Timed, b: Timed) => a.at < b.at || (a.at === b.at && a.order < b.order);

/** Earliest first; of those at one time, the one that came first. */
export class EventQueue<T> {
  readonly #items: (Timed & { readonly item: T })[] = [];
  #order = 0;

  get next(): (Timed & { readonly item: T }) | undefined {
    return this.#items[0];
  }

  push(at: number, item: T): void {
    const items = this.#items;
    const entry = { at, order: this.#order++, item };
    let i = items.push(entry) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!isBefore(entry, items[parent]!)) break;
      items[i] = items[parent]!;
      i = parent;
    }
    items[i] = entry;
  }

  pop(): { readonly at: number; readonly item: T } | undefined {
    const items = this.#items;
    const first = items[0];
    const last = items.pop();
    if (!first || !last || items.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= items.length) break;
      const right = items[child + 1];
      if (right && isBefore(right, items[child]!)) child++;
      if (!isBefore(items[child]!, last)) break;
      items[i] = items[child]!;
      i = child;
    }
    items[i] = last;
    return first;
  }
}

/**
 * One after the other, in the order in which they come: a server's thread, or a cable.
 * @returns when this one has been served.
 */
export class ServiceQueue {
  #freeMs = 0;
  #busyMs = 0;

  serve(nowMs: number, durationMs: number): number {
    this.#busyMs += durationMs;
    this.#freeMs = Math.max(this.#freeMs, nowMs) + durationMs;
    return this.#freeMs;
  }

  get busyMs(): number {
    return this.#busyMs;
  }
}

/**
 * Cores that workers on one machine share evenly: of n that compute, each has min(1, cores / n) of one. The clock of
 * the work done, not that of the world, orders who ends first.
 */
export class SharedCores<T> {
  readonly #cores: number;
  readonly #queue = new EventQueue<T>();
  #count = 0;
  #nowMs = 0;
  /** CPU ms that each of those who compute has had since the beginning. */
  #doneMs = 0;

  constructor(cores: number) {
    this.#cores = cores;
  }

  get #rate(): number {
    return Math.min(1, this.#cores / Math.max(1, this.#count));
  }

  #advance(nowMs: number): void {
    this.#doneMs += (nowMs - this.#nowMs) * this.#rate;
    this.#nowMs = nowMs;
  }

  /** @param cpuMs that it needs of one core. */
  add(item: T, cpuMs: number, nowMs: number): void {
    this.#advance(nowMs);
    this.#queue.push(this.#doneMs + cpuMs, item);
    this.#count++;
  }

  /** When the next one ends, if nobody comes before; Infinity: there is none. */
  get nextMs(): number {
    const next = this.#queue.next;
    return next ? this.#nowMs + Math.max(0, next.at - this.#doneMs) / this.#rate : Infinity;
  }

  /** The one that ends at `nextMs`. */
  pop(): T {
    const at = this.nextMs;
    const first = this.#queue.pop()!;
    this.#advance(at);
    this.#doneMs = Math.max(this.#doneMs, first.at);
    this.#count--;
    return first.item;
  }
}
