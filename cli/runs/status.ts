import { setTimeout as wait } from 'node:timers/promises';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import type {
  CopyFacts,
  EditRun,
  RunSummary,
  Status,
  StudyFold,
  WorkerSummary,
} from '../../shared/rest.ts';
import type { RestClient, WhichRuns } from '../../shared/rest-client.ts';
import {
  clientOf,
  errorLine,
  print,
  printJson,
  type RunCommandOptions,
  tell,
  untilInterrupted,
} from '../options.ts';
import {
  clockText,
  createLiveLines,
  errorOf,
  fourDigits,
  groups,
  runFacts,
  sparkLine,
  table,
  waitingText,
  workerLine,
} from '../output/progress.ts';
import { studyNamed } from '../trained/trials.ts';
import {
  openUsedServer,
  type UsedServer,
  type UsedServerOptions,
  urlOfFolder,
} from '../used-server.ts';

export interface StatusOptions extends RunCommandOptions {
  /** Seconds between two looks. */
  readonly watch?: number;
  /** Archived runs too. */
  readonly all?: boolean;
  readonly tag?: string;
}

/** Runs of the table: those at work, then the newest. */
const ROWS_MAX = 200;
/**
 * How long the runs of a folder are waited for, where no server had read them before. A program wants all of them; a
 * person is shown `ROWS_MAX` at most, and how many are read.
 */
const READ_MS = { program: 10_000, person: 2_000 } as const;

/** `downpour status [run]` */
export async function statusCommand(
  run: string | undefined,
  options: StatusOptions,
): Promise<void> {
  if (options.watch !== undefined) return watch(run, options, options.watch);
  const usedServer = await openUsedServer({ ...options, run });
  try {
    if (usedServer.state !== null && run === undefined) await untilRead(usedServer.client, options);
    if (options.json) printJson(await factsFor(usedServer.client, run, options));
    else for (const line of await linesFor(usedServer, run, options)) print(line);
  } finally {
    await usedServer.close();
  }
}

/**
 * A server of this command has just begun: without a while for reading, a large folder would look empty. Runs are read
 * in the order of the table, so the rest can wait.
 */
async function untilRead(client: RestClient, { json, all, tag }: StatusOptions): Promise<void> {
  const limitMs = json ? READ_MS.program : READ_MS.person;
  const enough = json || all || tag !== undefined ? Number.POSITIVE_INFINITY : ROWS_MAX;
  const since = performance.now();
  for (;;) {
    const { runsRead } = await client.status(1);
    if (!runsRead || runsRead.done >= enough || performance.now() - since > limitMs) return;
    await wait(50);
  }
}

/** The same again and again, until Ctrl-C: in one place of a terminal, else one after the other. */
async function watch(run: string | undefined, options: StatusOptions, seconds: number) {
  const url = options.server ?? (await urlOfFolder(options.state));
  const client = clientOf(url === null ? options : { ...options, server: url });
  const interruption = untilInterrupted(() => {});
  const { signal } = interruption;
  const live = process.stdout.isTTY === true ? createLiveLines(process.stdout) : null;
  const plain = (line: string) => line;
  while (!signal.aborted) {
    if (options.json) {
      const facts = await factsFor(client, run, options).catch((error) => ({
        error: errorLine(error),
      }));
      printJson(facts, 0);
    } else {
      const lines = await linesFor({ client, state: null }, run, options).catch((error) => [
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

/** Which runs the user asks for; undefined: nothing that an older server would not know. */
function wantedBy({ all, tag }: StatusOptions): WhichRuns | undefined {
  if (!all && tag === undefined) return undefined;
  return { ...(all && { archived: 'all' as const }), ...(tag !== undefined && { tag }) };
}

async function factsFor(
  client: RestClient,
  name: string | undefined,
  options: StatusOptions,
): Promise<object> {
  if (name === undefined) return client.status(undefined, wantedBy(options));
  const trials = await studyNamed(client, name);
  if (trials) return { study: name, runs: trials };
  const [detail, workerList, checkpoints] = await Promise.all([
    client.run(name),
    client.workers(name),
    client.checkpoints(name),
  ]);
  return { ...detail, workerList, checkpoints };
}

async function linesFor(
  { client, state }: Pick<UsedServer, 'client' | 'state'>,
  name: string | undefined,
  options: StatusOptions,
): Promise<string[]> {
  if (name === undefined) return overview({ client, state }, options);
  const trials = await studyNamed(client, name);
  if (trials) return [`study ${name}: ${groups(trials.length)} runs`, ...runTable(trials)];
  const [detail, workers, checkpoints, { training }] = await Promise.all([
    client.run(name),
    client.workers(name),
    client.checkpoints(name),
    client.metrics(name),
  ]);
  const [first, ...facts] = runFacts(detail);
  const lines = [first!, ...labelLines(detail).slice(1), ...facts];
  if (detail.name || detail.archived) lines.unshift(labelLines(detail)[0]!);
  if (training.loss.length > 1) lines.push(`  loss           ${sparkLine(training.loss)}`);
  lines.push(...workerLines(workers));
  for (const { kind, step, file, bytes } of checkpoints) {
    lines.push(`  ${kind.padEnd(13)}  step ${groups(step)}, ${groups(bytes)} bytes: ${file}`);
  }
  return lines;
}

/** All runs, with one line for the trials of a study. */
async function overview(
  { client, state }: Pick<UsedServer, 'client' | 'state'>,
  options: StatusOptions,
): Promise<string[]> {
  const status = await foldedStatus(client, options);
  const { studies = [], archivedCount = 0 } = status;
  const where = state === null ? client.url : `no server runs; in ${state}`;
  const lines = [`${where}: Downpour ${status.version}, state in ${status.stateStore}`];
  if (status.stateStoreAway) {
    const { seconds, records } = status.stateStoreAway;
    lines.push(
      `Redis is away for ${clockText(seconds)}: ${groups(records)} records wait on disk; training continues`,
    );
  }
  if (status.copies) lines.push(copyLine(status.copies));
  if (status.runsRead) {
    const { done, of } = status.runsRead;
    lines.push(`the server has just started: ${groups(done)} of ${groups(of)} runs are read`);
  }
  const urgent = status.alerts.filter(({ severity }) => severity === 'critical');
  lines.push(...urgent.map(({ text }) => `CRITICAL: ${text}`));
  if (status.runs.length > 0) lines.push(...runTable(status.runs));
  const folded = studies.reduce((sum, { runs }) => sum + runs, 0);
  const hidden = options.all ? 0 : archivedCount;
  const isPart = options.tag !== undefined;
  const left = (status.runCount ?? 0) - status.runs.length - folded - hidden;
  if (left > 0 && !isPart) {
    lines.push(`and ${groups(left)} older ones; \`downpour status <run>\` shows one, --json all`);
  }
  lines.push(...studyLines(studies));
  if (hidden > 0) {
    lines.push(
      `${groups(hidden)} archived ${hidden === 1 ? 'run is' : 'runs are'} left out; --all shows ${hidden === 1 ? 'it' : 'them'}`,
    );
  }
  if (status.runs.length + folded + hidden === 0) {
    lines.push(
      isPart
        ? `no run has the tag ${options.tag}`
        : 'no runs yet; `downpour train examples/mnist-mlp.ts` makes one',
    );
  }
  return [...lines, ...workerLines(status.workers)];
}

/** An older server knows neither studies nor tags in this question. */
async function foldedStatus(client: RestClient, options: StatusOptions): Promise<Status> {
  try {
    return await client.status(ROWS_MAX, { ...wantedBy(options), fold: 'studies' });
  } catch (error) {
    if (errorCode(error) !== 'DP_BODY_INVALID' || options.tag !== undefined) throw error;
    return client.status(ROWS_MAX);
  }
}

function runTable(runs: readonly RunSummary[]): string[] {
  const hasNames = runs.some(({ name }) => name);
  const hasTags = runs.some(({ tags = [] }) => tags.length > 0);
  const rows = runs.map((r) => [
    r.id,
    ...(hasNames ? [r.name ?? ''] : []),
    r.archived ? `${r.phase}, archived` : r.phase,
    groups(r.step),
    String(r.epoch),
    clockText(r.seconds),
    fourDigits(r.trainingLoss),
    fourDigits(r.best?.loss ?? null),
    errorOf(r)(r.best?.error),
    errorOf(r)(r.test?.error),
    String(r.workers),
    ...(hasTags ? [(r.tags ?? []).join(', ')] : []),
  ]);
  const headings = [
    ...['run', ...(hasNames ? ['name'] : []), 'phase', 'step', 'epoch', 'time', 'training loss'],
    ...['best loss', 'best error', 'test error', 'workers', ...(hasTags ? ['tags'] : [])],
  ];
  return table(headings, rows);
}

/** One line for each study. */
function studyLines(studies: readonly StudyFold[]): string[] {
  if (studies.length === 0) return [];
  const rows = studies.map(({ study, kind, trials, runs, phases, best, workers }) => [
    study,
    kind ?? '',
    trials ? `${trials.ended} of ${trials.of}` : String(runs),
    Object.entries(phases)
      .map(([phase, count]) => `${count} ${phase}`)
      .join(', '),
    best === null
      ? ''
      : `${best.metric} ${best.metric === 'error' ? errorOf(best)(best.value) : fourDigits(best.value)} (${best.run})`,
    String(workers),
  ]);
  const headings = ['study', 'kind', 'trials', 'runs', 'best validation', 'workers'];
  return [
    ...table(headings, rows),
    `\`downpour status ${studies.length === 1 ? studies[0]!.study : '<study>'}\` lists the runs of a study`,
  ];
}

export function copyLine({ to, copied, waiting, failed, away, refused }: CopyFacts): string {
  const failures = failed === 0 ? '' : `, ${groups(failed)} attempts failed`;
  const line = `copies to ${to}: ${groups(copied)} made, ${groups(waiting)} waiting${failures}`;
  const problems = refused.map(({ run, why }) => `${run} is not copied: ${why}`);
  if (away) problems.unshift(`none for ${clockText(away.seconds)}: ${away.why}`);
  return [line, ...problems].join('; ');
}

const workerLines = (workers: readonly WorkerSummary[]) =>
  workers.length === 0 ? [] : ['workers:', ...workers.map(workerLine)];

/** What `stop`, `remove` and `edit` are given. */
export type OneRunOptions = UsedServerOptions & { readonly json?: boolean };

/** Does something to a run on the server that the user means, and prints what came out. */
async function withServer<T>(
  options: OneRunOptions,
  run: string,
  ownToo: boolean,
  act: (client: RestClient) => Promise<T>,
): Promise<T> {
  const usedServer = await openUsedServer({ ...options, run }, ownToo);
  try {
    return await act(usedServer.client);
  } finally {
    await usedServer.close();
  }
}

/** `downpour remove <run>` */
export async function removeCommand(
  run: string,
  options: OneRunOptions & { readonly force?: boolean },
): Promise<void> {
  await withServer(options, run, true, (client) => client.removeRun(run, options.force));
  if (options.json) return printJson({ removed: run });
  print(`${run} is removed, with its checkpoints`);
}

export interface EditOptions extends OneRunOptions {
  readonly name?: string;
  readonly tag?: readonly string[];
  readonly untag?: readonly string[];
  readonly note?: string;
  readonly archive?: boolean;
  readonly unarchive?: boolean;
}

/** `downpour edit <run>` */
export async function editCommand(run: string, options: EditOptions): Promise<void> {
  const { name, tag, untag, note, archive, unarchive } = options;
  if (archive && unarchive) {
    throw new DownpourError('DP_USAGE', '--archive and --unarchive exclude each other');
  }
  const edit: EditRun = {
    ...(name !== undefined && { name }),
    ...(tag && { addTags: [...tag] }),
    ...(untag && { removeTags: [...untag] }),
    ...(note !== undefined && { note }),
    ...((archive || unarchive) && { archived: archive === true }),
  };
  if (Object.keys(edit).length === 0) {
    throw new DownpourError(
      'DP_USAGE',
      'nothing to change: give --name, --tag, --untag, --note, --archive or --unarchive',
    );
  }
  const summary = await withServer(options, run, true, (client) => client.editRun(run, edit));
  if (options.json) return printJson(summary);
  for (const line of labelLines(summary)) print(line);
}

/** What users say of a run. */
function labelLines({ id, name, tags = [], note, archived }: RunSummary): string[] {
  const lines = [`${id}${name ? `: ${name}` : ''}${archived ? ' (archived)' : ''}`];
  if (tags.length > 0) lines.push(`  tags           ${tags.join(', ')}`);
  if (note)
    lines.push(...note.split('\n').map((line, i) => `  ${i ? '    ' : 'note'}           ${line}`));
  return lines;
}

/** `downpour stop <run>` */
export async function stopCommand(run: string, options: OneRunOptions): Promise<void> {
  const waiting = (seconds: number) => tell(waitingText(run, seconds));
  const summary = await withServer(options, run, false, (client) => client.stop(run, waiting));
  if (options.json) return printJson(summary);
  print(`${summary.id}: ${summary.phase} at step ${groups(summary.step)}`);
  if (summary.checkpoint) print(`checkpoint: ${summary.checkpoint.file}`);
  print(`\`downpour resume ${summary.id}\` goes on`);
}
