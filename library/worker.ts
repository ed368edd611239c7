import { createHash, randomUUID } from 'node:crypto';
import { resolve } from 'node:path';
import { DEFAULT_SERVER } from '../cli/options.ts';
import type { Log } from '../shared/log.ts';
import { webSocketAddress } from '../shared/rest-client.ts';
import { type Experiment, experimentFolders, mustBeExperiment } from '../worker/experiment.ts';
import { runWorker, type WorkerOptions, type WorkerResult } from '../worker/main.ts';
import type { GivenExperiment } from '../worker/shelf.ts';
import { mustBeOptions } from './options.ts';

/** What programs import as `downpour/worker`: a worker in their own process. */

export type { WorkerResult };

export interface StartWorkerOptions
  extends Pick<
    WorkerOptions,
    'name' | 'token' | 'tls' | 'engine' | 'threads' | 'once' | 'localSocket' | 'onProgress'
  > {
  /** `http://host:port` or `ws://host:port`. Default: port 7420 of this machine. */
  readonly server?: string;
  /** Only this run. Default: any that the server has. */
  readonly run?: string;
  /**
   * Folders of experiments, or experiments by their names. An experiment that is an object fits only runs that were made with
   * its `hash`, since nothing tells whether two objects have the same functions.
   */
  readonly experiments?: string | readonly string[] | Readonly<Record<string, Given>>;
  /** Where data lie. Default: `DOWNPOUR_DATA`, or `data` in the working folder. */
  readonly data?: string;
  /** Aborted: the worker hands its leases back and ends. */
  readonly signal?: AbortSignal;
  /** Default: nobody is told. */
  readonly log?: Log;
}

type Given = Experiment | GivenExperiment;

export interface StartedWorker {
  /**
   * Resolves when it was stopped, or when the run that it was started for has ended.
   * @throws DownpourError what trying again cannot mend.
   */
  readonly ended: Promise<WorkerResult>;
  /** Hands its leases back and ends. @throws DownpourError as `ended`. */
  stop(): Promise<void>;
}

const OPTIONS = [
  ...['name', 'token', 'tls', 'engine', 'threads', 'once', 'localSocket', 'onProgress'],
  ...['server', 'run', 'experiments', 'data', 'signal', 'log'],
];

const ELSEWHERE: Readonly<Record<string, string>> = {
  bundles: '`downpour work --accept-experiments` has it',
  workers: 'a worker computes on this thread: start more processes, or use `downpour work`',
};

/** Starts a worker in this process, which computes on this thread: between two gradients others have their turn. */
export function startWorker(options: StartWorkerOptions = {}): StartedWorker {
  mustBeOptions('startWorker', options, OPTIONS, ELSEWHERE);
  const { server = DEFAULT_SERVER, run = null, experiments = [], signal, ...rest } = options;
  const { data = process.env.DOWNPOUR_DATA ?? 'data', log = () => {}, ...more } = rest;
  const stopping = new AbortController();
  const folders = typeof experiments === 'string' ? [experiments] : experiments;
  const isList = Array.isArray(folders);
  const ended = runWorker({
    ...more,
    ...{ server: webSocketAddress(server), run, dataFolder: resolve(data), log },
    folders: experimentFolders(isList ? folders : []),
    experiments: isList ? {} : givenOf(folders as Readonly<Record<string, Given>>),
    signal: signal ? AbortSignal.any([signal, stopping.signal]) : stopping.signal,
  });
  // Whoever does not await it yet learns of a failure when they do.
  ended.catch(() => {});
  return {
    ended,
    async stop() {
      stopping.abort();
      await ended;
    },
  };
}

function givenOf(experiments: Readonly<Record<string, Given>>): Record<string, GivenExperiment> {
  return Object.fromEntries(
    Object.entries(experiments).map(([name, given]) => {
      const { experiment, hash } = 'hash' in given ? given : withHash(given);
      return [name, { experiment: mustBeExperiment(experiment, `'${name}'`), hash }];
    }),
  );
}

/** An experiment of this process alone. */
export function withHash(experiment: Experiment): GivenExperiment {
  return { experiment, hash: createHash('sha256').update(randomUUID()).digest('hex') };
}
