import { fork } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import type { JoinPageFiles } from '../../server/http/join.ts';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';
import { ownEntry } from '../../shared/own-files.ts';
import { openScratch } from '../scratch.ts';
import type { BundleManifest, BundleOptions } from './join-bundle.ts';

/** What `/join` sends to browsers: made by a process of its own, since the server runs no experiment. */
export interface JoinPageBundle {
  readonly files: JoinPageFiles;
  readonly experiments: readonly string[];
  /** Removes it. */
  dispose(): Promise<void>;
}

type BundlerMessage =
  | { readonly log: string }
  | { readonly manifest: BundleManifest }
  | { readonly error: { readonly code: ErrorCode; readonly message: string } };

/**
 * @param paths of experiments or of folders with experiments. @param dataFolder where their data lie.
 * @throws DownpourError what keeps an experiment from being sent; DP_INTERNAL.
 */
export async function makeJoinBundle(
  paths: readonly string[],
  dataFolder: string,
  log: (line: string) => void,
): Promise<JoinPageBundle> {
  const { folder, remove: dispose } = await openScratch('join');
  try {
    const options = { paths: paths.map((path) => resolve(path)), dataFolder, folder };
    const { files, experiments } = await inProcess(options, log);
    return { files: { folder, files: new Map(Object.entries(files)) }, experiments, dispose };
  } catch (error) {
    await dispose();
    throw error;
  }
}

async function inProcess(
  options: BundleOptions,
  log: (line: string) => void,
): Promise<BundleManifest> {
  const tokens = /^DOWNPOUR_.*TOKEN/;
  const child = fork(ownEntry('join-program', new URL('join-program.js', import.meta.url)), {
    // What an experiment prints is no fact of ours.
    stdio: ['ignore', 2, 2, 'ipc'],
    env: Object.fromEntries(Object.entries(process.env).filter(([name]) => !tokens.test(name))),
    execArgv: [],
  });
  let answer: Exclude<BundlerMessage, { log: string }> | null = null;
  child.on('message', (message: BundlerMessage) => {
    if ('log' in message) log(message.log);
    else answer = message;
  });
  child.send(options);
  const [code, signal] = (await once(child, 'exit')) as [number | null, string | null];
  const said = answer as Exclude<BundlerMessage, { log: string }> | null;
  if (said === null) {
    const end = signal === null ? `exit code ${code}` : `signal ${signal}`;
    throw new DownpourError('DP_INTERNAL', `the files of /join were not made: ${end}`);
  }
  if ('error' in said) throw new DownpourError(said.error.code, said.error.message);
  return said.manifest;
}
