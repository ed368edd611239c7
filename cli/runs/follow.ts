import { setTimeout as wait } from 'node:timers/promises';
import { type DownpourError, isAway } from '../../shared/errors.ts';
import { isOver } from '../../shared/phases.ts';
import type { RunDetail } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { failureText } from '../../shared/text.ts';
import {
  groups,
  type Progress,
  rollbackLine,
  unwrittenText,
  waitingText,
} from '../output/progress.ts';
import type { Pool } from '../workers/pool.ts';

/** How a run is watched from its start to its end, by a command or by a program. */

/** A small training takes two seconds. */
const POLL_MS = 200;
/** How long a server of somebody else may be away before we give up on it. */
const PATIENCE_MS = 120_000;

/**
 * Shows the run until it is over, stopped by us or by others.
 * @returns also whether we cut it short: a test that is cut leaves the run finished as before.
 * @throws DownpourError of the last worker when all are given up; DP_SERVER_UNREACHABLE when the
 *   server stays away.
 */
export async function followRun(
  client: RestClient,
  id: string,
  progress: Pick<Progress, 'note' | 'update'>,
  pool: Pool | null,
  signal: AbortSignal,
): Promise<{ readonly run: RunDetail; readonly cut: boolean }> {
  let failure: DownpourError | null = null;
  const stopped = new AbortController();
  void pool?.failed.then((error) => {
    failure = error;
    stopped.abort();
  });
  const wake = AbortSignal.any([signal, stopped.signal]);
  let toldData = false;
  let toldEngine = false;
  let awaySince: number | null = null;
  let lost: number | null = null;
  let rollbacks: number | null = null;
  let hinted = false;
  let corrected: string | null = null;
  let unwritten = false;
  let failedAt: string | null | undefined;
  let cut = false;
  for (;;) {
    let run: RunDetail;
    try {
      if (signal.aborted || failure !== null) {
        const before = await client.run(id);
        if (!isOver(before.phase)) {
          cut = true;
          await client.stop(id, (seconds) => progress.note(waitingText(id, seconds)));
        }
      }
      const [detail, workers] = await Promise.all([client.run(id), client.workers(id)]);
      run = detail;
      awaySince = null;
      if (run.data && !toldData) {
        toldData = true;
        const { source, trainCount, validationCount, testCount } = run.data;
        progress.note(
          `data: ${source}; ${groups(trainCount)} training, ${groups(validationCount)} validation, ${groups(testCount)} test examples`,
        );
      }
      const works = workers.find(({ state }) => state !== 'idle' && state !== 'joining');
      if (works && !toldEngine && !pool?.hasNamedEngine?.()) {
        toldEngine = true;
        const { engine, device } = works;
        const slow = engine === 'wasm' || engine === 'cpu';
        progress.note(
          `engine: ${engine} on ${device}${slow ? '; `npx downpour engine install` brings a faster one' : ''}`,
        );
      }
      if (lost !== null && run.stepsLost > lost) {
        progress.note(
          `the server came back from its checkpoint: ${groups(run.stepsLost - lost)} steps are lost`,
        );
      }
      lost = run.stepsLost;
      for (const rollback of run.rollbacks.slice(rollbacks ?? run.rollbacks.length)) {
        progress.note(`diverged ${rollbackLine(rollback)}`);
      }
      rollbacks = run.rollbacks.length;
      if (run.unwritten && !unwritten)
        progress.note(`NOT WRITTEN: ${unwrittenText(run, run.unwritten)}`);
      unwritten = Boolean(run.unwritten);
      const failed = run.workerFailure ?? null;
      // What was there before is not of this command; of its own workers the pool has said it.
      const isNew = failedAt !== undefined && failed !== null && failed.at !== failedAt;
      if (isNew && !pool?.names?.includes(failed.worker)) progress.note(failureText(failed));
      failedAt = failed?.at ?? null;
      const correction = run.correction?.text ?? null;
      if (correction !== corrected)
        progress.note(correction ?? 'as with one worker: look-ahead off');
      corrected = correction;
      // Its numbers change; the user is told once.
      if (run.hint && !hinted) progress.note(`hint: ${run.hint}`);
      hinted ||= run.hint !== null;
      progress.update(run, workers);
    } catch (error) {
      if (!isAway(error) || signal.aborted) throw error;
      const answers = error.code === 'DP_SHARD_LOST';
      if (awaySince === null) {
        const silent = error.code === 'DP_SERVER_UNREACHABLE';
        progress.note(silent ? 'the server does not answer; trying again' : error.message);
      }
      awaySince ??= performance.now();
      if (!answers && performance.now() - awaySince > PATIENCE_MS) throw error;
      await wait(POLL_MS, undefined, { signal: wake }).catch(() => {});
      continue;
    }
    if (failure !== null && (run.phase !== 'finished' || cut)) throw failure;
    if (isOver(run.phase)) return { run, cut };
    await wait(POLL_MS, undefined, { signal: wake }).catch(() => {});
  }
}
