import { bestTrial } from '../../shared/best-trial.ts';
import type { Phase } from '../../shared/protocol.ts';
import type { RunSummary, StudyFold } from '../../shared/rest.ts';

/**
 * All runs as REST tells them, kept ready: a server has up to 10,000, and most of them stand still. What stands still
 * is read again when something has happened to it, and never since somebody asks; so what a question costs grows with
 * the runs at work and with what it is told, not with those that wait or have ended.
 */

export interface Listed {
  readonly id: string;
  /** Nothing more will happen unless somebody resumes it. */
  readonly over: boolean;
  /** Its summary changes with time alone. */
  readonly moving: boolean;
}

export interface ListEntry<L extends Listed = Listed> {
  readonly run: L;
  /** In the order of creation. */
  readonly index: number;
  readonly summary: RunSummary;
  /** The summary as JSON. */
  readonly text: string;
}

interface KeptEntry<L extends Listed> extends ListEntry<L> {
  index: number;
  readonly createdAt: string;
  summary: RunSummary;
  text: string;
  phase: Phase | null;
  over: boolean;
}

/** Which runs a list has; absent: all but archived ones. */
export interface RunFilter {
  readonly archived?: boolean | 'all';
  readonly tag?: string;
  readonly study?: string;
  /** Without trials of studies. */
  readonly noTrials?: boolean;
}

/** The trials of one study. */
interface StudyGroup<L extends Listed> {
  readonly entries: Set<KeptEntry<L>>;
  /** Null: something has happened to one of them since. */
  fold: Fold | null;
}

/** What the server knows of a study by its runs alone. */
export type Fold = Omit<StudyFold, 'kind' | 'state' | 'title' | 'trials'>;

/** What has happened since it was looked at last. */
export interface Changes<L extends Listed> {
  readonly changed: Set<ListEntry<L>>;
  readonly gone: Set<string>;
  /** All were read anew, as after the loss of a shard. */
  isReset: boolean;
}

export interface ListingOptions<L extends Listed> {
  /** When it was created, as text that sorts. Default: each one is newer than those before. */
  readonly createdAt?: (run: L) => string;
  readonly summaryOf: (run: L) => RunSummary;
  /** There is something to say of it in the alerts. */
  readonly alarms: (summary: RunSummary) => boolean;
  /** It has work, and no worker. */
  readonly waits: (summary: RunSummary) => boolean;
}

export class Listing<L extends Listed> {
  readonly #options: ListingOptions<L>;
  /** In the order of creation. */
  #entries: KeptEntry<L>[] = [];
  readonly #byId = new Map<string, KeptEntry<L>>();
  readonly #moving = new Set<KeptEntry<L>>();
  /** Something has happened to them since they were read. */
  readonly #touched = new Set<KeptEntry<L>>();
  readonly #alarming = new Set<KeptEntry<L>>();
  readonly #waiting = new Set<KeptEntry<L>>();
  readonly #archived = new Set<KeptEntry<L>>();
  readonly #phases = new Map<Phase, number>();
  /** By the name of the study. */
  readonly #groups = new Map<string, StudyGroup<L>>();
  /** Those that are not over, in the order of creation; null: some have begun or ended. */
  #atWork: KeptEntry<L>[] | null = null;
  readonly #watchers = new Set<Changes<L>>();
  #isFrozen = false;
  /** Summaries that were made, and those looked at to fold studies, for tests. */
  reads = 0;
  folded = 0;

  constructor(options: ListingOptions<L>) {
    this.#options = options;
  }

  get size(): number {
    return this.#entries.length;
  }

  get #sets(): Set<KeptEntry<L>>[] {
    return [this.#moving, this.#touched, this.#alarming, this.#waiting, this.#archived];
  }

  /** As a rule it is newer than all others. */
  add(run: L): void {
    this.remove(run.id);
    const nothing = null as unknown as RunSummary;
    const createdAt = this.#options.createdAt?.(run) ?? '';
    const entries = this.#entries;
    let index = entries.length;
    while (index > 0 && entries[index - 1]!.createdAt > createdAt) index--;
    const entry: KeptEntry<L> = {
      ...{ run, index, createdAt, summary: nothing, text: '', phase: null },
      over: run.over,
    };
    entries.splice(index, 0, entry);
    for (let i = index + 1; i < entries.length; i++) entries[i]!.index = i;
    this.#byId.set(run.id, entry);
    this.#atWork = null;
    this.#touched.add(entry);
  }

  remove(id: string): void {
    const entry = this.#byId.get(id);
    if (!entry) return;
    this.#byId.delete(id);
    this.#entries.splice(entry.index, 1);
    for (let i = entry.index; i < this.#entries.length; i++) this.#entries[i]!.index = i;
    for (const set of this.#sets) {
      set.delete(entry);
    }
    this.#count(entry.phase, -1);
    this.#ungroup(entry);
    this.#atWork = null;
    for (const { changed, gone } of this.#watchers) {
      changed.delete(entry);
      gone.add(id);
    }
  }

  /** All are told as they are now, whatever becomes of them, until `reset`. */
  freeze(): void {
    this.refresh();
    this.#isFrozen = true;
  }

  /** Others take the place of all. */
  reset(runs: readonly L[]): void {
    this.#isFrozen = false;
    this.#entries = [];
    this.#byId.clear();
    for (const set of this.#sets) set.clear();
    this.#phases.clear();
    this.#groups.clear();
    for (const run of runs) this.add(run);
    for (const watcher of this.#watchers) {
      watcher.changed.clear();
      watcher.gone.clear();
      watcher.isReset = true;
    }
  }

  /** Something may have happened to it. Called for each message. */
  touch(run: L): void {
    const entry = this.#byId.get(run.id);
    if (entry && !this.#isFrozen) this.#touched.add(entry);
  }

  /** What changes from now on, as it is told by `refresh`. */
  watch(): Changes<L> {
    const changes: Changes<L> = { changed: new Set(), gone: new Set(), isReset: false };
    this.#watchers.add(changes);
    return changes;
  }

  /** Reads those that something has happened to, and those that change with time. Call before anything is told. */
  refresh(): void {
    if (this.#isFrozen) return;
    for (const entry of this.#moving) this.#touched.add(entry);
    for (const entry of this.#touched) this.#read(entry);
    this.#touched.clear();
  }

  #read(entry: KeptEntry<L>): void {
    const { run } = entry;
    const { summaryOf, alarms, waits } = this.#options;
    const summary = summaryOf(run);
    this.reads++;
    const text = JSON.stringify(summary);
    put(this.#moving, entry, run.moving);
    put(this.#alarming, entry, alarms(summary));
    put(this.#waiting, entry, waits(summary));
    if (entry.over !== run.over) this.#atWork = null;
    entry.over = run.over;
    if (entry.phase !== summary.phase) {
      this.#count(entry.phase, -1);
      this.#count(summary.phase, 1);
      entry.phase = summary.phase;
    }
    put(this.#archived, entry, summary.archived ?? false);
    if (text === entry.text) return;
    entry.summary = summary;
    entry.text = text;
    this.#group(entry);
    for (const { changed, gone } of this.#watchers) {
      changed.add(entry);
      gone.delete(run.id);
    }
  }

  #group(entry: KeptEntry<L>): void {
    const { study } = entry.summary;
    if (study == null) return;
    const group = this.#groups.get(study) ?? { entries: new Set(), fold: null };
    this.#groups.set(study, group);
    group.entries.add(entry);
    group.fold = null;
  }

  #ungroup(entry: KeptEntry<L>): void {
    const study = (entry.summary as RunSummary | null)?.study ?? null;
    const group = study === null ? null : this.#groups.get(study);
    if (!group) return;
    group.entries.delete(entry);
    group.fold = null;
    if (group.entries.size === 0) this.#groups.delete(study!);
  }

  #count(phase: Phase | null, by: number): void {
    if (phase !== null) this.#phases.set(phase, (this.#phases.get(phase) ?? 0) + by);
  }

  // What is told, as of the last `refresh`.

  /** In the order of creation. */
  at(index: number): ListEntry<L> | null {
    return this.#entries[index] ?? null;
  }

  /** Entries whose summaries change with time alone. */
  get moving(): Iterable<ListEntry<L>> {
    return this.#moving;
  }

  /**
   * Some runs in the order of creation.
   * @param after the id of the one before; null: from the first on.
   * @returns null: there is no such run. `next`: what to go on after; null: there are no more.
   */
  page(
    after: string | null,
    limit: number,
    wanted: RunFilter = {},
  ): { readonly entries: readonly ListEntry<L>[]; readonly next: string | null } | null {
    const before = after === null ? null : this.#byId.get(after);
    if (before === undefined) return null;
    const entries: KeptEntry<L>[] = [];
    for (let i = before === null ? 0 : before.index + 1; i < this.#entries.length; i++) {
      const entry = this.#entries[i]!;
      if (!isWanted(entry, wanted)) continue;
      if (entries.length === limit) return { entries, next: entries.at(-1)!.run.id };
      entries.push(entry);
    }
    return { entries, next: null };
  }

  /** So many, those at work first, then the newest. In that order. */
  newest(count: number, wanted: RunFilter = {}): ListEntry<L>[] {
    this.#atWork ??= this.#entries.filter(({ over }) => !over);
    const chosen: KeptEntry<L>[] = [];
    for (const ones of [this.#atWork, this.#entries]) {
      for (let i = ones.length - 1; i >= 0 && chosen.length < count; i--) {
        const entry = ones[i]!;
        if ((ones === this.#atWork || entry.over) && isWanted(entry, wanted)) chosen.push(entry);
      }
    }
    return chosen;
  }

  get archivedCount(): number {
    return this.#archived.size;
  }

  /** Each study with the trials that are wanted, in the order of their first ones. Costs what has changed. */
  folds(wanted: RunFilter = {}): Fold[] {
    const isPlain = wanted.archived === undefined && wanted.tag === undefined;
    const folds = [...this.#groups.values()].map((group) => {
      if (isPlain && group.fold) return group.fold;
      const trials = [...group.entries].filter((entry) => isWanted(entry, wanted));
      this.folded += trials.length;
      const fold = foldOf(trials);
      if (isPlain) group.fold = fold;
      return fold;
    });
    return folds
      .filter(({ runs }) => runs > 0)
      .sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
  }

  /** There is something to say of them, in the order of creation. */
  get alarming(): RunSummary[] {
    const entries = [...this.#alarming].sort((a, b) => a.index - b.index);
    return entries.map(({ summary }) => summary);
  }

  /** Those that have work and no worker: how many, and one of them. */
  get waiting(): { readonly count: number; readonly one: string | null } {
    const [first] = this.#waiting;
    return { count: this.#waiting.size, one: first?.run.id ?? null };
  }

  get phases(): ReadonlyMap<string, number> {
    return this.#phases;
  }
}

function isWanted<L extends Listed>({ summary }: KeptEntry<L>, wanted: RunFilter): boolean {
  const { archived = false, tag, study, noTrials = false } = wanted;
  if (archived !== 'all' && (summary.archived ?? false) !== archived) return false;
  if (noTrials && summary.study != null) return false;
  if (study !== undefined && summary.study !== study) return false;
  return tag === undefined || (summary.tags ?? []).includes(tag);
}

/** @param trials of one study. */
function foldOf(trials: readonly { readonly summary: RunSummary }[]): Fold {
  const summaries = trials
    .map(({ summary }) => summary)
    .sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
  const phases: Record<string, number> = {};
  let workers = 0;
  let examplesPerSecond: number | null = null;
  for (const { phase, workers: own, examplesPerSecond: speed } of summaries) {
    phases[phase] = (phases[phase] ?? 0) + 1;
    workers += own;
    if (speed !== null) examplesPerSecond = (examplesPerSecond ?? 0) + speed;
  }
  const best = bestTrial(summaries);
  const first = summaries[0];
  return {
    study: first?.study ?? '',
    experiment: first?.experiment ?? '',
    createdAt: first?.createdAt ?? '',
    newestAt: summaries.at(-1)?.createdAt ?? '',
    ...{ runs: summaries.length, phases, workers, examplesPerSecond },
    best: best && {
      ...{ run: best.run.id, metric: best.metric, value: best.value },
      errorMeasure: best.run.errorMeasure,
    },
  };
}

function put<E>(set: Set<E>, element: E, isIn: boolean): void {
  if (isIn) set.add(element);
  else set.delete(element);
}
