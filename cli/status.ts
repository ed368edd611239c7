import type { WorkerSummary } from '../shared/rest.ts';
import type { RunOptions } from './commands.ts';
import { openSession } from './embedded.ts';
import { clientOf, print, printJson, type ServerOptions } from './options.ts';
import { duration, groups, percent, runFacts, short, table, workerLine } from './progress.ts';

/** `downpour status [run]` */
export async function statusCommand(run: string | undefined, options: RunOptions): Promise<void> {
  const session = await openSession({ ...options, run });
  const { client } = session;
  try {
    if (run !== undefined) {
      const [detail, workers, checkpoints] = await Promise.all([
        client.run(run),
        client.workers(run),
        client.checkpoints(run),
      ]);
      if (options.json) return printJson({ ...detail, workerList: workers, checkpoints });
      for (const line of runFacts(detail)) print(line);
      printWorkers(workers);
      for (const { kind, step, file, bytes } of checkpoints) {
        print(`  ${kind.padEnd(13)}  step ${groups(step)}, ${groups(bytes)} bytes: ${file}`);
      }
      return;
    }
    const status = await client.status();
    if (options.json) return printJson(status);
    const where = session.state === null ? client.url : `no server runs; in ${session.state}`;
    print(`${where}: Downpour ${status.version}, state in ${status.stateStore}`);
    if (status.stateStoreAway) {
      const { seconds, records } = status.stateStoreAway;
      print(
        `Redis is away for ${duration(seconds)}: ${groups(records)} records wait on disk, training goes on`,
      );
    }
    if (status.runs.length === 0) {
      print('no runs yet; `downpour train examples/mnist-mlp.ts` makes one');
      return;
    }
    const rows = status.runs.map((r) => [
      r.id,
      r.phase,
      groups(r.step),
      String(r.epoch),
      duration(r.seconds),
      short(r.trainingLoss),
      short(r.best?.loss ?? null),
      percent(r.best?.error ?? null),
      percent(r.test?.error ?? null),
      String(r.workers),
    ]);
    const headings =
      'run,phase,step,epoch,time,training loss,best loss,best error,test error,workers';
    for (const line of table(headings.split(','), rows)) print(line);
    printWorkers(status.workers);
  } finally {
    await session.close();
  }
}

function printWorkers(workers: readonly WorkerSummary[]): void {
  if (workers.length > 0) print('workers:');
  for (const worker of workers) print(workerLine(worker));
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
