import { setTimeout as wait } from 'node:timers/promises';
import type { CopyFacts, WorkerSummary } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import {
  clientOf,
  errorLine,
  print,
  printJson,
  type RunOptions,
  type ServerOptions,
  untilInterrupted,
} from '../options.ts';
import {
  createLiveLines,
  duration,
  errorOf,
  groups,
  runFacts,
  short,
  sparkLine,
  table,
  workerLine,
} from '../output/progress.ts';
import { openUsedServer, type UsedServer } from '../used-server.ts';

export interface StatusOptions extends RunOptions {
  /** Seconds between two looks. */
  readonly watch?: number;
}

/** Runs of the table: those at work, then the newest. */
const ROWS_MAX = 200;

/** `downpour status [run]` */
export async function statusCommand(
  run: string | undefined,
  options: StatusOptions,
): Promise<void> {
  if (options.watch !== undefined) return watch(run, options, options.watch);
  const usedServer = await openUsedServer({ ...options, run });
  try {
    if (options.json) printJson(await factsFor(usedServer.client, run));
    else for (const line of await linesFor(usedServer, run)) print(line);
  } finally {
    await usedServer.close();
  }
}

/** The same again and again, until Ctrl-C: in one place of a terminal, else one after the other. */
async function watch(run: string | undefined, options: StatusOptions, seconds: number) {
  const client = clientOf(options);
  const interruption = untilInterrupted(() => {});
  const { signal } = interruption;
  const live = process.stdout.isTTY === true ? createLiveLines(process.stdout) : null;
  const plain = (line: string) => line;
  while (!signal.aborted) {
    if (options.json) {
      const facts = await factsFor(client, run).catch((error) => ({ error: errorLine(error) }));
      printJson(facts, 0);
    } else {
      const lines = await linesFor({ client, state: null }, run).catch((error) => [
        errorLine(error),
        'trying again; Ctrl-C ends',
      ]);
      if (live) live.draw(lines.map((line) => ({ line, paint: plain })));
      else for (const line of [...lines, '']) print(line);
    }
    await wait(1000 * seconds, null, { signal }).catch(() => {});
  }
  interruption.dispose();
}

async function factsFor(client: RestClient, run: string | undefined): Promise<object> {
  if (run === undefined) return client.status();
  const [detail, workerList, checkpoints] = await Promise.all([
    client.run(run),
    client.workers(run),
    client.checkpoints(run),
  ]);
  return { ...detail, workerList, checkpoints };
}

async function linesFor(
  { client, state }: Pick<UsedServer, 'client' | 'state'>,
  run: string | undefined,
): Promise<string[]> {
  if (run !== undefined) {
    const [detail, workers, checkpoints, { training }] = await Promise.all([
      client.run(run),
      client.workers(run),
      client.checkpoints(run),
      client.metrics(run),
    ]);
    const lines = [...runFacts(detail)];
    if (training.loss.length > 1) lines.push(`  loss           ${sparkLine(training.loss)}`);
    lines.push(...workerLines(workers));
    for (const { kind, step, file, bytes } of checkpoints) {
      lines.push(`  ${kind.padEnd(13)}  step ${groups(step)}, ${groups(bytes)} bytes: ${file}`);
    }
    return lines;
  }
  const status = await client.status(ROWS_MAX);
  const where = state === null ? client.url : `no server runs; in ${state}`;
  const lines = [`${where}: Downpour ${status.version}, state in ${status.stateStore}`];
  if (status.stateStoreAway) {
    const { seconds, records } = status.stateStoreAway;
    lines.push(
      `Redis is away for ${duration(seconds)}: ${groups(records)} records wait on disk; training continues`,
    );
  }
  if (status.copies) lines.push(copyLine(status.copies));
  if (status.runs.length === 0) {
    return [...lines, 'no runs yet; `downpour train examples/mnist-mlp.ts` makes one'];
  }
  const rows = status.runs.map((r) => [
    r.id,
    r.phase,
    groups(r.step),
    String(r.epoch),
    duration(r.seconds),
    short(r.trainingLoss),
    short(r.best?.loss ?? null),
    errorOf(r)(r.best?.error),
    errorOf(r)(r.test?.error),
    String(r.workers),
  ]);
  const headings =
    'run,phase,step,epoch,time,training loss,best loss,best error,test error,workers';
  const urgent = status.alerts.filter(({ severity }) => severity === 'critical');
  lines.push(...urgent.map(({ text }) => `CRITICAL: ${text}`));
  lines.push(...table(headings.split(','), rows));
  const left = (status.runCount ?? 0) - status.runs.length;
  if (left > 0) {
    lines.push(`and ${groups(left)} older ones; \`downpour status <run>\` shows one, --json all`);
  }
  return [...lines, ...workerLines(status.workers)];
}

export function copyLine({ to, copied, waiting, failed, away, refused }: CopyFacts): string {
  const failures = failed === 0 ? '' : `, ${groups(failed)} attempts failed`;
  const line = `copies to ${to}: ${groups(copied)} made, ${groups(waiting)} waiting${failures}`;
  const problems = refused.map(({ run, why }) => `${run} is not copied: ${why}`);
  if (away) problems.unshift(`none for ${duration(away.seconds)}: ${away.why}`);
  return [line, ...problems].join('; ');
}

const workerLines = (workers: readonly WorkerSummary[]) =>
  workers.length === 0 ? [] : ['workers:', ...workers.map(workerLine)];

/** `downpour remove <run>` */
export async function removeCommand(
  run: string,
  options: ServerOptions & { readonly force?: boolean; readonly json?: boolean },
): Promise<void> {
  await clientOf(options).removeRun(run, options.force);
  if (options.json) return printJson({ removed: run });
  print(`${run} is removed, with its checkpoints`);
}

/** `downpour stop <run>` */
export async function stopCommand(
  run: string,
  options: ServerOptions & { readonly json?: boolean },
): Promise<void> {
  const summary = await clientOf(options).stop(run);
  if (options.json) return printJson(summary);
  print(`${summary.id}: ${summary.phase} at step ${groups(summary.step)}`);
  if (summary.checkpoint) print(`checkpoint: ${summary.checkpoint.file}`);
  print(`\`downpour resume ${summary.id}\` goes on`);
}
