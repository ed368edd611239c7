import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { Assign, MissingExperiment } from '../shared/protocol.ts';
import {
  type Experiment,
  type FoundExperiment,
  findExperiments,
  hashExperiment,
  loadExperiment,
  sourcesOf,
} from './experiment.ts';

/** An experiment that no file need be read for. */
export interface GivenExperiment {
  readonly experiment: Experiment;
  /** As that of an experiment's files: two that are not the same have not the same. */
  readonly hash: string;
}

/** Experiments that operators have sent to a server. */
export interface BundleSource {
  /**
   * @param server its address, `http://host:port`
   * @returns the path of a file with the content that `missing.bundle` names.
   * @throws DownpourError
   */
  fetch(server: string, missing: MissingExperiment, signal: AbortSignal): Promise<string>;
}

/** Pauses between attempts to fetch a bundle: doubled from the first to the last. */
const FETCH_AGAIN_MS = { first: 1_000, last: 60_000 } as const;

/**
 * The experiments that a worker has in its folders, which may get new ones while it waits, and those that it was sent.
 * A name stands for one of them at a time: `hello` has one hash for it.
 */
export class Shelf {
  readonly #folders: readonly string[];
  readonly #log: Log;
  #found: ReadonlyMap<string, FoundExperiment> = new Map();
  /** Contents of the files that this process has imported: it would never import another version of them. */
  readonly #loaded = new Map<string, string>();
  /** What the log has said, so that it says it once. */
  readonly #told = new Set<string>();

  /** Null: experiments that were sent are not run. */
  readonly #bundles: BundleSource | null;
  /** Bundles that stand for their names, before files of the folders. */
  readonly #sent = new Map<string, MissingExperiment>();
  /** Runs that this process could not take part in. */
  readonly #refused = new Set<string>();
  /** When to try again to fetch a bundle that could not be fetched, monotonic ms. */
  readonly #failures = new Map<string, { readonly count: number; readonly againMs: number }>();

  readonly #given: ReadonlyMap<string, GivenExperiment>;

  constructor({
    folders,
    log,
    bundles = null,
    given = {},
  }: {
    readonly folders: readonly string[];
    readonly log: Log;
    readonly bundles?: BundleSource | null;
    readonly given?: Readonly<Record<string, GivenExperiment>>;
  }) {
    this.#folders = folders;
    this.#log = log;
    this.#bundles = bundles;
    this.#given = new Map(Object.entries(given));
  }

  /** Content hashes by name, as `hello` has them: of a bundle its own. */
  get hashes(): Record<string, string> {
    const hashes = Object.fromEntries([...this.#found].map(([name, { hash }]) => [name, hash]));
    for (const [name, { bundle }] of this.#sent) hashes[name] = bundle!.sha256;
    for (const [name, { hash }] of this.#given) hashes[name] = hash;
    return hashes;
  }

  /** Looks through the folders. @returns whether there is another experiment, or another version of one. */
  async look(): Promise<boolean> {
    const found = await findExperiments(this.#folders);
    for (const [name, { path, hash }] of found) {
      const stale = await this.#staleFile(path);
      if (stale === null) continue;
      found.delete(name);
      const text = `${stale} has changed since this worker loaded it: restart the worker to train the new ${name}`;
      this.#tell(`${name} ${hash}`, text);
    }
    const before = JSON.stringify(this.hashes);
    this.#found = found;
    return JSON.stringify(this.hashes) !== before;
  }

  /** A file of an experiment of which this process has another version; null: there is none. */
  async #staleFile(path: string): Promise<string | null> {
    if (this.#loaded.size === 0) return null;
    for (const [file, source] of await sourcesOf(path)) {
      const loaded = this.#loaded.get(file);
      if (loaded !== undefined && loaded !== source) return file;
    }
    return null;
  }

  /** A run is not for this worker: it is not sent for again. */
  refuse(run: string): void {
    this.#refused.add(run);
  }

  /**
   * Fetches what was sent of what runs wait for, and puts a file of the folders back in the place of a bundle where a run
   * needs that one.
   * @param server that has told what is missing. @returns whether there is another experiment, or another version of one.
   */
  async obtain(
    missing: readonly MissingExperiment[],
    server: string,
    signal: AbortSignal,
  ): Promise<boolean> {
    const changed = new Set<string>();
    for (const wanted of missing) {
      const { run, experiment: name, experimentHash, bundle } = wanted;
      const standing = this.#sent.get(name)?.bundle?.sha256;
      const isHere = standing !== undefined && standing === bundle?.sha256;
      if (changed.has(name) || isHere || this.#refused.has(run)) continue;
      if (this.#found.get(name)?.hash === experimentHash) {
        if (this.#sent.delete(name)) changed.add(name);
      } else if (await this.#fetch(wanted, server, signal)) {
        this.#sent.set(name, wanted);
        changed.add(name);
      }
    }
    return changed.size > 0;
  }

  async #fetch(wanted: MissingExperiment, server: string, signal: AbortSignal): Promise<boolean> {
    const { run, experiment, bundle } = wanted;
    if (!bundle || !this.#bundles) return false;
    const { sha256, bytes } = bundle;
    const { count, againMs } = this.#failures.get(sha256) ?? { count: 0, againMs: 0 };
    if (performance.now() < againMs) return false;
    try {
      await this.#bundles.fetch(server, wanted, signal);
    } catch (error) {
      signal.throwIfAborted();
      const pauseMs = Math.min(FETCH_AGAIN_MS.last, FETCH_AGAIN_MS.first * 2 ** count);
      this.#failures.set(sha256, { count: count + 1, againMs: performance.now() + pauseMs });
      const why = `${errorCode(error)} ${errorText(error)}`;
      this.#tell(`${run} ${why}`, `run ${run}: its experiment was sent and is not here: ${why}`);
      return false;
    }
    this.#failures.delete(sha256);
    this.#log(
      `run ${run}: experiment '${experiment}' was sent through ${server}: its bundle ${sha256} (${bytes} bytes) runs here now`,
      { run },
    );
    return true;
  }

  /**
   * The experiment that a run needs.
   * @param server that has assigned it.
   * @throws DownpourError as `#take` and `loadExperiment`.
   */
  async load(assign: Assign, server: string, signal: AbortSignal): Promise<Experiment> {
    const given = this.#given.get(assign.experiment);
    if (given?.hash === assign.experimentHash) return given.experiment;
    const file = await this.#take(assign, server, signal);
    try {
      return await loadExperiment(file);
    } catch (error) {
      const { code, path } = Object((error as Error).cause) as { code?: unknown; path?: unknown };
      if (!this.#sent.has(assign.experiment) || code !== 'ENOENT') throw error;
      throw new DownpourError(
        errorCode(error),
        `${errorText(error)}; data are not sent with an experiment: put ${path} on this machine, and read it in data() from the folder that --data names`,
        { cause: error },
      );
    }
  }

  /**
   * The file of the experiment that a run needs, which is going to be imported.
   * @param server that has assigned it.
   * @throws DownpourError DP_EXPERIMENT_UNKNOWN, DP_EXPERIMENT_MISMATCH, what the fetching of a bundle throws.
   */
  async #take(
    { experiment, experimentHash }: Assign,
    server: string,
    signal: AbortSignal,
  ): Promise<string> {
    const sent = this.#sent.get(experiment);
    if (sent?.experimentHash === experimentHash) {
      // It was here; its file may have made room for others since, or been changed.
      return this.#bundles!.fetch(server, sent, signal);
    }
    const found = this.#found.get(experiment);
    if (!found) {
      throw new DownpourError(
        'DP_EXPERIMENT_UNKNOWN',
        `experiment '${experiment}' is in none of ${this.#folders.join(', ')}: add its folder with --experiments`,
      );
    }
    // The file may have changed since this worker said what it has.
    const hash = await hashExperiment(found.path);
    if (hash !== experimentHash) {
      throw new DownpourError(
        'DP_EXPERIMENT_MISMATCH',
        `${found.path} has hash ${hash.slice(0, 12)}, the run's has ${experimentHash.slice(0, 12)}: copy the same files to all workers`,
      );
    }
    for (const [file, source] of await sourcesOf(found.path)) this.#loaded.set(file, source);
    return found.path;
  }

  /** Says which experiments runs wait for, and where they are looked for; each once. */
  tellMissing(missing: readonly MissingExperiment[]): void {
    for (const { run, experiment, experimentHash, bundle } of missing) {
      const found = this.#found.get(experiment);
      // It is going to be fetched, or is here.
      if ((bundle && this.#bundles) || found?.hash === experimentHash) continue;
      const wanted = experimentHash.slice(0, 12);
      const text =
        found === undefined
          ? `run ${run} needs experiment '${experiment}', which is in none of ${this.#folders.join(', ')}: put its files there, or add their folder with --experiments`
          : `run ${run} needs experiment '${experiment}' with hash ${wanted}; ${found.path} has ${found.hash.slice(0, 12)}: copy the run's files there`;
      const other = bundle
        ? '; or start this worker with --accept-experiments, since the experiment was sent: that lets the operators of the server run code here'
        : '';
      this.#tell(`${run} ${found?.hash}`, `${text}${other}; looking again`);
    }
  }

  #tell(key: string, text: string): void {
    if (this.#told.has(key)) return;
    this.#told.add(key);
    this.#log(text, { level: 'warn' });
  }
}
