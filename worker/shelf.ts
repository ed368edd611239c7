import { DownpourError } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { Assign, MissingExperiment } from '../shared/protocol.ts';
import { type FoundExperiment, findExperiments, hashExperiment, sourcesOf } from './experiment.ts';

/** The experiments that a worker has in its folders, which may get new ones while it waits. */
export class Shelf {
  readonly #folders: readonly string[];
  readonly #log: Log;
  #found: ReadonlyMap<string, FoundExperiment> = new Map();
  /** Contents of the files that this process has imported: it would never import another version of them. */
  readonly #loaded = new Map<string, string>();
  /** What the log has said, so that it says it once. */
  readonly #told = new Set<string>();

  constructor(folders: readonly string[], log: Log) {
    this.#folders = folders;
    this.#log = log;
  }

  /** Content hashes by name, as `hello` has them. */
  get hashes(): Record<string, string> {
    return Object.fromEntries([...this.#found].map(([name, { hash }]) => [name, hash]));
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

  /**
   * The file of the experiment that a run needs, which is going to be imported.
   * @throws DownpourError DP_EXPERIMENT_UNKNOWN, DP_EXPERIMENT_MISMATCH
   */
  async take({ experiment, experimentHash }: Assign): Promise<string> {
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
    for (const { run, experiment, experimentHash } of missing) {
      const found = this.#found.get(experiment);
      const wanted = experimentHash.slice(0, 12);
      const text =
        found === undefined
          ? `run ${run} needs experiment '${experiment}', which is in none of ${this.#folders.join(', ')}: put its files there, or add their folder with --experiments`
          : `run ${run} needs experiment '${experiment}' with hash ${wanted}; ${found.path} has ${found.hash.slice(0, 12)}: copy the run's files there`;
      this.#tell(`${run} ${found?.hash}`, `${text}; looking again`);
    }
  }

  #tell(key: string, text: string): void {
    if (this.#told.has(key)) return;
    this.#told.add(key);
    this.#log(text, { level: 'warn' });
  }
}
