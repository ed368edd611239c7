import { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { listGpus } from '../../worker/engine-nvidia.ts';
import { defaultName } from '../../worker/name.ts';
import { tell, untilInterrupted, withToken } from '../options.ts';
import type { WorkOptions } from './options.ts';
import { startPool } from './pool.ts';

// `downpour work --gpus`: a worker for each GPU of a machine, each in a process of its own that sees only its GPU.

/** What CUDA lets a process see, instead of all. */
const VISIBLE = 'CUDA_VISIBLE_DEVICES';

export interface GpuWorkersOptions {
  /** Instead of this machine's. */
  readonly list?: typeof listGpus;
  /** Instead of bin/downpour.js. */
  readonly program?: string;
  readonly backoffMs?: { readonly first: number; readonly last: number };
}

/**
 * Runs them until Ctrl-C, or with --once or --run until the run has ended. One that dies is started again alone; one that
 * cannot work is left out, and the others go on.
 * @throws DownpourError the last one's reason when none is left; DP_USAGE, DP_ENGINE_UNAVAILABLE: no such GPU.
 */
export async function runGpuWorkers(
  options: WorkOptions & { readonly gpus: string },
  log: Log,
  more: GpuWorkersOptions = {},
): Promise<void> {
  const { list = listGpus, ...pool } = more;
  const chosen = chooseGpus(options.gpus, await list());
  const base = options.name ?? defaultName().replace(/-\d+$/, '');
  const ends = options.once === true || options.run !== undefined;
  const isJson = options.log === 'json';
  log(
    `a worker for each of ${chosen.map(({ index, name }) => `GPU ${index} (${name})`).join(', ')}`,
  );
  const pools = chosen.map(({ index, uuid }) => {
    const name = `${base}-gpu${index}`.slice(-64).replace(/^[-_]+/, '');
    return startPool({
      ...pool,
      names: [name],
      args: argumentsOf(options),
      env: { ...withToken(process.env, options), ...aliveFileOf(options, index), [VISIBLE]: uuid },
      note: (line) => log(line, { level: 'warn', worker: name }),
      // A line of JSON stays one.
      log: (line) => tell(isJson ? line.slice(name.length + 2) : line),
      isOver: async () => ends,
    });
  });
  const interruption = untilInterrupted(() =>
    log('the workers return their unfinished minibatches; press Ctrl-C again to stop at once'),
  );
  try {
    await Promise.race([
      new Promise<void>((done) => {
        interruption.signal.addEventListener('abort', () => done(), { once: true });
      }),
      Promise.all(pools.map(({ ended }) => ended)),
    ]);
    if (interruption.signal.aborted) return;
    // Those that were given up have resolved this by now; the others never do.
    const failures = pools.map(({ failed }) => Promise.race([failed, Promise.resolve(null)]));
    const reasons = await Promise.all(failures);
    const last = reasons.findLast((reason) => reason !== null);
    if (last && reasons.every((reason) => reason !== null)) throw last;
  } finally {
    await Promise.all(pools.map((each) => each.stop()));
    interruption.dispose();
  }
}

/** @param wanted `all`, or numbers of the driver with commas between. @throws DownpourError */
export function chooseGpus<T extends { readonly index: number }>(
  wanted: string,
  present: readonly T[],
): readonly T[] {
  const numbers = present.map(({ index }) => index).join(', ');
  if (present.length === 0) {
    throw new DownpourError('DP_ENGINE_UNAVAILABLE', 'no GPU is found here: nvidia-smi lists none');
  }
  if (wanted.trim() === 'all') return present;
  const indices = wanted.split(',').map((text) => text.trim());
  const wrong = indices.find((text) => !present.some(({ index }) => String(index) === text));
  if (wrong !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `--gpus ${wanted}: there is no GPU '${wrong}'; write all, or some of ${numbers} with commas between`,
    );
  }
  return present.filter(({ index }) => indices.includes(String(index)));
}

/** The arguments of `downpour work` for one GPU; secrets go by the environment. */
function argumentsOf(options: WorkOptions): string[] {
  const given = (name: string, value: string | number | undefined) =>
    value === undefined ? [] : [`--${name}`, String(value)];
  return [
    ...given('server', options.server),
    ...given('run', options.run),
    // It ends with what is missing, instead of training on the processor unnoticed.
    ...given('engine', options.engine ?? 'native-gpu'),
    ...given('threads', options.threads),
    ...given('data', options.data),
    ...given('log', options.log),
    ...given('tls-ca', options.tlsCa),
    ...given('tls-cert', options.tlsCert),
    ...given('tls-key', options.tlsKey),
    ...(options.once ? ['--once'] : []),
    ...(options.acceptExperiments ? ['--accept-experiments'] : []),
    ...(options.localSocket ? [] : ['--no-local-socket']),
    ...(options.experiments ? ['--experiments', ...options.experiments] : []),
  ];
}

/** One that stands still must not hide behind the others. */
const aliveFileOf = ({ aliveFile }: WorkOptions, index: number): NodeJS.ProcessEnv =>
  aliveFile ? { DOWNPOUR_ALIVE_FILE: `${aliveFile}.gpu${index}` } : {};
