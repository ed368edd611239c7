import { DownpourError } from '../../shared/errors.ts';
import { ENGINES, type EngineName } from '../../worker/engine.ts';
import type { LogFormat, ServerOptions } from '../options.ts';

/** What `downpour work` takes, for one worker and for one on each GPU. */

export interface WorkOptions extends ServerOptions {
  readonly run?: string;
  readonly name?: string;
  readonly engine?: string;
  readonly threads?: number;
  readonly gpus?: string;
  readonly aliveFile?: string;
  readonly experiments?: string[];
  readonly acceptExperiments?: boolean;
  readonly data?: string;
  readonly once?: boolean;
  /** Commander's: true unless --no-local-socket was given. */
  readonly localSocket: boolean;
  readonly log?: LogFormat;
  readonly json?: boolean;
}

const ON = ['1', 'true', 'yes', 'on'];
const OFF = ['', '0', 'false', 'no', 'off'];

/** By the option or the environment. @throws DownpourError DP_USAGE: whether it is meant is not clear. */
export function accepts(
  { acceptExperiments }: Pick<WorkOptions, 'acceptExperiments'>,
  env: NodeJS.ProcessEnv = process.env,
): boolean {
  const said = (env.DOWNPOUR_ACCEPT_EXPERIMENTS ?? '').trim().toLowerCase();
  if (acceptExperiments || ON.includes(said)) return true;
  if (OFF.includes(said)) return false;
  throw new DownpourError(
    'DP_USAGE',
    `DOWNPOUR_ACCEPT_EXPERIMENTS is '${said.slice(0, 40)}'; it must be 1, or 0`,
  );
}

/** @throws DownpourError DP_USAGE. */
export function engineOf(name: string): EngineName | 'auto' {
  if (name === 'auto' || (ENGINES as readonly string[]).includes(name)) {
    return name as EngineName | 'auto';
  }
  throw new DownpourError(
    'DP_USAGE',
    `there is no engine '${name}'; there are: auto, ${ENGINES.join(', ')}`,
  );
}
