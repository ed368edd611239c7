import { closeSync, openSync, writeSync } from 'node:fs';
import { diskError } from '../../files/atomic-file.ts';
import { collects } from '../../shared/consistency.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Run } from '../core/run.ts';

/**
 * Writes down each applied push, so that somebody else can check afterwards that none was applied twice: a
 * line `push <life> <run> <step> <worker>/<incarnation> <sequence>`, and when a server begins,
 * `begin <life> <run> <step>` for each run that it goes on with. Where several pushes make a step, the line is
 * `take …` with the step that the push is part of, and `begin` ends with how many of the next step are there, if any. Lines are written at once, not buffered: what was
 * applied before a kill is there.
 */
export interface PushLog {
  began(run: Run): void;
  applied(run: Run, worker: string, sequence: number): void;
  close(): void;
}

/**
 * @param path is appended to. @param log is told when it cannot be written: pushes are applied all the same.
 * @throws DownpourError DP_DISK: it cannot be opened.
 */
export function openPushLog(path: string, log: Log): PushLog {
  let file: number;
  try {
    file = openSync(path, 'a');
  } catch (error) {
    throw diskError(error, path, 'open');
  }
  let missing = 0;
  const write = (line: string) => {
    try {
      // A line that did not fit has left its beginning.
      writeSync(file, missing > 0 ? `\n${line}\n` : `${line}\n`);
      if (missing > 0) log(`${path} is written again; ${missing} lines are missing in it`);
      missing = 0;
    } catch (error) {
      const failed = diskError(error, path, 'write');
      if (!(failed instanceof DownpourError)) throw failed;
      if (missing++ > 0) return;
      const { code, message } = failed;
      log(`the log of pushes is not written, and pushes are applied: ${code} ${message}`, {
        ...{ level: 'error', code },
      });
    }
  };
  return {
    began: ({ life, id, step, collected }) =>
      write(`begin ${life} ${id} ${step}${collected > 0 ? ` ${collected}` : ''}`),
    applied: (run, worker, sequence) => {
      const kind = collects(run.config.consistency) ? 'take' : 'push';
      const step = run.step + (run.collected > 0 ? 1 : 0);
      write(`${kind} ${run.life} ${run.id} ${step} ${worker} ${sequence}`);
    },
    close: () => closeSync(file),
  };
}

export interface PushLogReport {
  /** Pushes of the line of history that ended last: what a kill took back is not counted. */
  readonly applied: number;
  /**
   * That were taken back by going on from an older step, or that a server applied after another one had taken over: it
   * did not know yet, and answered nobody.
   */
  readonly lost: number;
  /** `run worker sequence` of pushes that are in it more than once. */
  readonly twice: readonly string[];
  /** `run step` that are in it more than once, or missing below the last. */
  readonly steps: readonly string[];
}

/** Checks a push log, offline. */
export function checkPushLog(text: string): PushLogReport {
  const histories = new Map<string, { kind: string; step: number; push: string }[]>();
  const lives = new Map<string, number>();
  let lost = 0;
  for (const line of text.split('\n')) {
    const [kind, life, run, step, worker, sequence] = line.split(' ');
    if (!run) continue;
    const history = histories.get(run) ?? [];
    if (kind === 'begin') {
      let next = Number(line.split(' ')[4] ?? 0);
      const kept = history.filter(
        (entry) => entry.step <= Number(step) || (entry.step === Number(step) + 1 && next-- > 0),
      );
      lost += history.length - kept.length;
      histories.set(run, kept);
      lives.set(run, Number(life));
    } else if (Number(life) < (lives.get(run) ?? 0)) lost++;
    else {
      history.push({ kind: kind!, step: Number(step), push: `${run} ${worker} ${sequence}` });
      histories.set(run, history);
    }
  }
  const twice: string[] = [];
  const steps: string[] = [];
  let applied = 0;
  for (const [run, history] of histories) {
    applied += history.length;
    const seen = new Set<string>();
    let last = 0;
    for (const { kind, step, push } of history) {
      if (seen.has(push)) twice.push(push);
      seen.add(push);
      const isNext = step === last + 1 || (kind === 'take' && step === last && last > 0);
      if (!isNext) steps.push(`${run} ${step}`);
      last = kind === 'take' ? step : last + 1;
    }
  }
  return { applied, lost, twice, steps };
}
