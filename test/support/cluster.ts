import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createRestClient, type RestClient } from '../../shared/rest-client.ts';
import type { Engine } from '../../worker/engine.ts';
import { experimentName, hashExperiment } from '../../worker/experiment.ts';
import { runWorker, type WorkerOptions } from '../../worker/main.ts';
import { until } from './until.ts';

export const FIXTURES = join(import.meta.dirname, '..', 'fixtures');

/** A real server and real workers in one process: they meet on the wire. */
export class Cluster {
  readonly folder: string;
  readonly state: string;
  readonly #engine: Engine;
  readonly #options: Partial<ServeOptions>;
  #serving: { server: Serving; stop: AbortController } | null = null;
  readonly #workers: { stop: AbortController; done: Promise<unknown> }[] = [];

  private constructor(folder: string, engine: Engine, options: Partial<ServeOptions>) {
    this.#options = options;
    this.folder = folder;
    this.state = join(folder, 'state');
    this.#engine = engine;
  }

  /** @param options of the server: with tokens, the workers and `client` have the operators'. */
  static async start(engine: Engine, options: Partial<ServeOptions> = {}): Promise<Cluster> {
    const cluster = new Cluster(await mkdtemp(join(tmpdir(), 'downpour-')), engine, options);
    await cluster.serve();
    return cluster;
  }

  get url(): string {
    return this.#serving!.server.url;
  }

  get client(): RestClient {
    return createRestClient({ server: this.url, token: this.#options.token });
  }

  /** @param port the same as before, for one that comes back. @param options other ones from now on. */
  async serve(port = 0, options: Partial<ServeOptions> = {}): Promise<void> {
    const stop = new AbortController();
    const server = await serve({
      host: '127.0.0.1',
      port,
      state: this.state,
      ...this.#options,
      ...options,
      signal: stop.signal,
    });
    this.#serving = { server, stop };
  }

  /** Ends the server in good order: each run leaves a checkpoint. */
  async stopServer(): Promise<void> {
    const serving = this.#serving;
    this.#serving = null;
    serving?.stop.abort();
    await serving?.server.closed;
  }

  async createRun(id: string, file: string, config: PartialConfig): Promise<void> {
    const experimentHash = await hashExperiment(file);
    await this.client.createRun({ id, experiment: experimentName(file), experimentHash, config });
  }

  work(run: string, name: string, options: Partial<WorkerOptions> = {}) {
    const stop = new AbortController();
    const done = runWorker({
      server: this.url.replace('http', 'ws'),
      run,
      name,
      engine: this.#engine,
      folders: [FIXTURES],
      dataFolder: this.folder,
      once: true,
      signal: stop.signal,
      log: () => {},
      ...(this.#options.token === undefined ? {} : { token: this.#options.token }),
      ...options,
    });
    // A failure is looked at where it is awaited.
    done.catch(() => {});
    const worker = { stop, done };
    this.#workers.push(worker);
    return worker;
  }

  /** Waits until the server knows this many workers: a study that brings none asks at once. */
  async joined(count: number): Promise<void> {
    const known = async () => (await this.client.status(1)).workers.length >= count;
    await until(`${count} workers have joined`, known);
  }

  async stopWorkers(): Promise<void> {
    const workers = this.#workers.splice(0);
    for (const { stop } of workers) stop.abort();
    await Promise.allSettled(workers.map(({ done }) => done));
  }

  async close(): Promise<void> {
    await this.stopWorkers();
    await this.stopServer();
    await rm(this.folder, { recursive: true, force: true });
  }
}
