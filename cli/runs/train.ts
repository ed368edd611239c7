import { dirname, join, relative, resolve } from 'node:path';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { resolveConfig } from '../../shared/config.ts';
import type { DataFacts } from '../../shared/data-facts.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { isFinal, isOver } from '../../shared/phases.ts';
import { parseReading } from '../../shared/reading.ts';
import type { CheckpointSummary, RunDetail, RunSummary } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import { percent } from '../../shared/text.ts';
import { isRefitted, kindOfModel } from '../../shared/trained-last.ts';
import {
  experimentFolders,
  experimentName,
  findExperiments,
  hashExperiment,
  loadExperiment,
} from '../../worker/experiment.ts';
import type { ExperimentBundle } from '../bundles/send-bundle.ts';
import {
  type ConfigOptions,
  configOf,
  DEFAULT_EXPERIMENTS,
  DEFAULT_STATE,
  EXIT,
  print,
  type ServerOptions,
  tell,
  untilInterrupted,
} from '../options.ts';
import {
  clockText,
  createProgress,
  errorOf,
  fourDigits,
  groups,
  type Progress,
  waitingText,
} from '../output/progress.ts';
import { writtenCheckpoints } from '../trained/checkpoint-copy.ts';
import { runsAndTrials } from '../trained/trials.ts';
import { openTrainServer, patiently, type UsedServer, urlOfFolder } from '../used-server.ts';
import { startLocalWorkers } from '../workers/local-workers.ts';
import type { Pool } from '../workers/pool.ts';
import { followRun } from './follow.ts';

/** `downpour train`, `downpour resume` and `downpour test`: a run from its start to its end, with local workers. */

export interface FollowOptions extends ServerOptions {
  readonly workers: number;
  readonly state: string;
  /** True when --state was written on the command line. */
  readonly stateGiven: boolean;
  readonly port?: number;
  readonly data?: string;
  readonly engine?: string;
  readonly experiments?: string[];
  readonly detach?: boolean;
  readonly verbose?: boolean;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

export interface TrainCommandOptions extends FollowOptions, ConfigOptions {
  readonly run?: string;
  readonly send?: boolean;
}

/** Files and packages of a bundle that the user is told of. */
const MADE_TOLD_MAX = 8;

/** `downpour train <experiment>`. @returns the exit code. */
export async function trainCommand(file: string, options: TrainCommandOptions): Promise<number> {
  const experiment = await loadExperiment(file);
  const config = resolveConfig(experiment.config, configOf(options));
  const experimentHash = await hashExperiment(file);
  // The folder is named in what we tell the user only where `resume` would not look by itself.
  const folder = relative(process.cwd(), dirname(resolve(file))) || '.';
  const isKnown = DEFAULT_EXPERIMENTS.some((known) => known === folder);
  const bundle = options.send ? await bundleToSend(file, options) : null;
  return conduct({ ...options, experiments: isKnown ? [] : [folder] }, async (client, progress) => {
    if (bundle) await send(bundle, client, progress);
    return client.createRun({
      ...(options.run === undefined ? {} : { id: options.run }),
      experiment: experimentName(file),
      // The hash of the files that were bundled.
      experimentHash: bundle?.experimentHash ?? experimentHash,
      ...(bundle && { bundle: bundle.sha256 }),
      config,
    });
  });
}

async function bundleToSend(
  file: string,
  { server }: TrainCommandOptions,
): Promise<ExperimentBundle> {
  if (server === undefined) {
    throw new DownpourError(
      'DP_USAGE',
      '--send needs --server: without it, the workers run on this machine and have the experiment',
    );
  }
  const { bundleExperiment } = await import('../bundles/send-bundle.ts');
  return bundleExperiment(file);
}

/** @throws DownpourError DP_USAGE: the server is of an older release; what it answers, such as DP_FORBIDDEN. */
async function send(
  { experiment, sha256, content, files, outside, packages }: ExperimentBundle,
  client: RestClient,
  progress: Progress,
): Promise<void> {
  try {
    await client.sendBundle(sha256, content);
  } catch (error) {
    // A server that knows bundles answers nothing like this when it is sent one.
    if (errorCode(error) !== 'DP_NOT_FOUND') throw error;
    throw new DownpourError(
      'DP_USAGE',
      `the server at ${client.url} is of a release that takes no experiments: update it, or copy ${files.join(', ')} to the workers and leave --send out`,
      { cause: error },
    );
  }
  const made = [...files, ...packages];
  const more = made.length > MADE_TOLD_MAX ? `, and ${made.length - MADE_TOLD_MAX} more` : '';
  progress.note(
    `${experiment} sent: bundle ${sha256.slice(0, 12)}, ${groups(content.length)} bytes of ${made.slice(0, MADE_TOLD_MAX).join(', ')}${more}; workers with --accept-experiments run it, each with its own data`,
  );
  if (outside.length > 0) {
    progress.note(
      `it has ${outside.join(', ')}, which the hash of the experiment does not cover: workers with files of their own may have others`,
    );
  }
  progress.event('sent', { sha256, bytes: content.length, files, packages });
}

/** `downpour resume [run]`. @returns the exit code. */
export async function resumeCommand(
  id: string | undefined,
  options: FollowOptions,
): Promise<number> {
  return conduct(options, async (client, progress) => {
    const run = await client.run(id ?? (await newestUnfinished(client)));
    if (options.workers > 0 && !options.detach) await mustHaveExperiment(run, options);
    const waiting = (seconds: number) => progress.note(waitingText(run.id, seconds));
    return isOver(run.phase) ? client.resume(run.id, waiting) : run;
  });
}

/** `downpour test <run>`. @returns the exit code. */
export async function testCommand(id: string, options: FollowOptions): Promise<number> {
  return conduct(options, async (client) => {
    const run = await client.run(id);
    if (options.workers > 0 && !options.detach) await mustHaveExperiment(run, options);
    return client.test(id);
  });
}

/** Workers would wait for ever for a run whose experiment they lack: better to say so at once. */
async function mustHaveExperiment(run: RunDetail, options: FollowOptions): Promise<void> {
  const folders = experimentFolders(foldersOf(options));
  const found = (await findExperiments(folders)).get(run.experiment);
  if (found?.hash === run.experimentHash) return;
  if (found) {
    throw new DownpourError(
      'DP_EXPERIMENT_MISMATCH',
      `${found.path} has changed since run ${run.id} began: bring the old one back, or name its folder by --experiments`,
    );
  }
  throw new DownpourError(
    'DP_EXPERIMENT_UNKNOWN',
    `run ${run.id} needs the experiment '${run.experiment}', which is in none of ${folders.join(', ')}: name its folder by --experiments`,
  );
}

/** Trials of a study are left out: calling the study again goes on with those that should. */
export async function newestUnfinished(
  client: Pick<RestClient, 'runs' | 'studies'>,
): Promise<string> {
  const { own, trials: others } = await runsAndTrials(client);
  const isOpen = ({ phase }: RunSummary) => !isFinal(phase);
  const newest = own.findLast(isOpen);
  if (newest) return newest.id;
  const trials = others.some(isOpen)
    ? '; to continue the trials of a study, call its command again'
    : '';
  throw new DownpourError(
    'DP_NOT_FOUND',
    `there is no run to resume: all have ended${trials}; \`downpour status\` lists them, \`downpour train\` starts one`,
  );
}

/**
 * Opens the server, begins the run, starts workers, shows progress, and ends all of it in order.
 * @param begin makes or wakes the run
 */
async function conduct(
  options: FollowOptions,
  begin: (client: RestClient, progress: Progress) => Promise<{ readonly id: string }>,
): Promise<number> {
  const progress = createProgress({
    screen: process.stdout,
    mode: options.json ? 'json' : options.quiet ? 'quiet' : 'lines',
    now: () => performance.now(),
  });
  const interruption = untilInterrupted(() =>
    progress.note('stopping with a checkpoint; Ctrl-C once more to stop at once'),
  );
  const log = options.verbose ? tell : () => {};
  let usedServer: UsedServer | null = null;
  let pool: Pool | null = null;
  try {
    if (options.detach && options.server === undefined && !(await urlOfFolder(options.state))) {
      throw new DownpourError(
        'DP_USAGE',
        '--detach needs a server that runs already, since the server that this command starts ends with the command: name one by --server',
      );
    }
    usedServer = await openTrainServer(options, log);
    if (usedServer.shared !== undefined) progress.note(usedServer.shared);
    const { id } = await begin(usedServer.client, progress);
    if (options.detach) {
      progress.note(`run ${id} waits for workers: downpour work --server ${usedServer.client.url}`);
      progress.event('started', { run: id, url: usedServer.client.url });
      return EXIT.ok;
    }
    progress.event('started', { run: id, url: usedServer.client.url });
    progress.note(`run ${id}: watch it at ${usedServer.client.url}/#/runs/${id}`);
    if (options.server === undefined) {
      progress.note(
        `Ctrl-C stops with a checkpoint; \`${commandLine('resume', id, options)}\` goes on`,
      );
    }
    const { client } = usedServer;
    if (options.workers > 0)
      pool = startLocalWorkers({
        ...{ run: id, options, usedServer, log, folders: foldersOf(options) },
        note: (line) => progress.note(line),
        isOver: async () =>
          interruption.signal.aborted ||
          (await client.run(id).then(
            ({ phase }) => isOver(phase),
            () => false,
          )),
      });
    const { run, cut } = await followRun(
      usedServer.client,
      id,
      progress,
      pool,
      interruption.signal,
    );
    await pool?.stop();
    pool = null;
    progress.end();
    const checkpoints = await patiently(usedServer, () => writtenCheckpoints(client, run));
    progress.event('ended', { run, checkpoints });
    if (!options.json) {
      // Only what a reader of ours has read can be read again the same way.
      const { facts } = await client.runData(run.id).catch(() => ({ facts: null }));
      report(run, checkpoints, options, nextUses(run, facts));
    }
    return cut && run.phase === 'finished' ? EXIT.interrupted : exitCodeOfRun(run);
  } finally {
    progress.end();
    await pool?.stop();
    await usedServer?.close();
    interruption.dispose();
  }
}

/** Folders of experiments, absolute. */
function foldersOf(options: { readonly experiments?: readonly string[] }): string[] {
  const given = options.experiments ?? [];
  return (given.length > 0 ? given : DEFAULT_EXPERIMENTS).map((folder) => resolve(folder));
}

function exitCodeOfRun(run: RunDetail): number {
  if (run.phase === 'finished') return EXIT.ok;
  if (run.phase === 'stopped') return EXIT.interrupted;
  tell(`error DP_RUN_FAILED: run ${run.id} failed: ${run.reason}`);
  return EXIT.runFailed;
}

function report(
  run: RunDetail,
  checkpoints: readonly CheckpointSummary[],
  options: FollowOptions,
  { use, format }: NextUses,
): void {
  const lines = [
    '',
    `${run.id} ${run.phase}: ${run.reason}`,
    `${groups(run.step)} steps, ${run.epoch} epochs, ${groups(run.examples)} examples in ${clockText(run.seconds)}`,
  ];
  const kind = kindOfModel(run);
  if (run.best) {
    const { step, loss, error } = run.best;
    const before = isRefitted(run) ? `, before '${run.earlyStopping.afterStop}'` : '';
    lines.push(
      `best at step ${groups(step)}${before}: validation loss ${fourDigits(loss)}, error ${errorOf(run)(error)}`,
    );
  }
  if (run.test) {
    const { loss, error, examples } = run.test;
    const isShare = run.errorMeasure === 'misclassification' && error !== null;
    const accuracy = isShare ? `, accuracy ${percent(1 - error)}` : '';
    const day = run.testedAt === null ? '' : `, evaluated on ${run.testedAt.slice(0, 10)}`;
    lines.push(
      `test: error ${errorOf(run)(error)}${accuracy}, loss ${fourDigits(loss)}, on ${groups(examples)} examples${day}`,
    );
  }
  const model = checkpoints.findLast((one) => one.kind === kind);
  if (model) lines.push(`${kind} checkpoint: ${checkpointPath(model, run.id, options)}`);
  lines.push('', 'how to continue:');
  if (run.phase === 'stopped') lines.push(`  ${commandLine('resume', run.id, options)}`);
  lines.push(`  ${commandLine('status', run.id, options)}`);
  if (model) {
    if (use !== null) {
      const more = use === 'predict' ? [NEW_DATA] : [];
      lines.push(`  ${commandLine(use, run.id, options, more)}`);
    }
    lines.push(`  ${commandLine('export', run.id, options)} --to exported --format ${format}`);
  }
  for (const line of lines) print(line);
}

/** The path as seen from here for an own server, else the name that the server has for it. */
function checkpointPath(
  checkpoint: CheckpointSummary,
  run: string,
  options: FollowOptions,
): string {
  if (options.server !== undefined) return `${checkpoint.file}, on the server`;
  return relative(
    process.cwd(),
    join(checkpointFolder(resolve(options.state), run), checkpoint.file),
  );
}

interface NextUses {
  /** Null: the model does not answer, or does not know how its data were read. */
  readonly use: 'predict' | 'sample' | null;
  readonly format: 'safetensors' | 'tfjs';
}

/** The commands that take the model of a run: no other one is named to the user. @param facts null: none are kept. */
export function nextUses(
  { tables }: Pick<RunDetail, 'tables'>,
  facts: Pick<DataFacts, 'reading' | 'uses'> | null,
): NextUses {
  const { reading, uses } = facts ?? {};
  // TensorFlow.js has no layers for some lookups of tables.
  const format = uses?.includes('tfjs') && !tables?.length ? 'tfjs' : 'safetensors';
  if (reading === undefined || uses?.includes('predict') === false) return { use: null, format };
  const known = parseReading(reading);
  return { use: known.kind === 'text' && known.as === 'next' ? 'sample' : 'predict', format };
}

/** Stands for a file or a folder of the user's. */
const NEW_DATA = 'NEW-DATA';

/** The command as the user would write it here. */
function commandLine(
  command: string,
  run: string,
  options: FollowOptions,
  more: readonly string[] = [],
): string {
  const words = ['npx', 'downpour', command, run, ...more];
  if (options.server !== undefined) words.push('--server', options.server);
  else if (options.state !== DEFAULT_STATE) words.push('--state', pathArgument(options.state));
  const { experiments = [] } = options;
  if (command !== 'status' && experiments.length > 0)
    words.push('--experiments', ...experiments.map(pathArgument));
  return shellCommand(...words);
}
