import type { ScaledRun } from '../../study/scale.ts';
import { trainingRate } from '../../study/training-rate.ts';
import { print } from '../options.ts';
import {
  bar,
  clockText,
  colorsOf,
  createLiveLines,
  fourDigits,
  groups,
} from '../output/progress.ts';
import {
  simulateRun,
  type VirtualClusterOptions,
  type VirtualOutcome,
  type VirtualProblem,
} from './virtual-cluster.ts';

/** Many simulations, one after the other, and how they get on. */

export interface Arm {
  readonly mode: string;
  readonly workers: number;
  readonly seed: number;
}

export interface ConductOptions {
  readonly arms: readonly Arm[];
  /** What is simulated for one of them. */
  readonly prepare: (
    arm: Arm,
  ) => Promise<
    Omit<VirtualClusterOptions, 'workers' | 'seed'> & { readonly problem: VirtualProblem }
  >;
  readonly show: ArmsShown;
  readonly signal: AbortSignal;
  readonly onEnd?: (run: ScaledRun, arm: Arm, outcome: VirtualOutcome) => void;
}

/** @throws the signal's reason; DownpourError of the simulation. */
export async function conductSimulations(options: ConductOptions): Promise<ScaledRun[]> {
  const { arms, prepare, show, signal, onEnd } = options;
  const runs: ScaledRun[] = [];
  try {
    for (const [index, arm] of arms.entries()) {
      signal.throwIfAborted();
      const { workers, seed } = arm;
      const given = await prepare(arm);
      show.begin(arm, index, arms.length);
      const outcome = await simulateRun({
        ...{ ...given, workers, seed, signal },
        onProgress: (step, nowMs, stepsMax) => show.progress(step, nowMs, stepsMax),
      });
      const run = scaledRun(arm, outcome);
      runs.push(run);
      show.ended(run);
      onEnd?.(run, arm, outcome);
    }
  } finally {
    show.close();
  }
  return runs;
}

/** What a simulation tells, as a real run does. */
export function scaledRun(arm: Arm, outcome: VirtualOutcome): ScaledRun {
  const { server, nowMs, staleness, applied, unused, serverBusy } = outcome;
  const { phase, reason, step, test } = server.summary(nowMs);
  const { training, evaluations: all } = server.metrics();
  const evaluations = all.filter(({ part }) => part === 'validation');
  return {
    ...{ ...arm, phase: server.over ? phase : 'unfinished', reason, step, test, evaluations },
    ...{ seconds: nowMs / 1_000, staleness, serverBusy },
    updatesPerSecond: trainingRate(training)?.updatesPerSecond,
    used: applied + unused === 0 ? null : applied / (applied + unused),
  };
}

/** How simulations get on, for people. */
export interface ArmsShown {
  begin(arm: Arm, index: number, of: number): void;
  progress(step: number, nowMs: number, stepsMax: number | null): void;
  ended(run: ScaledRun): void;
  close(): void;
}

/** Between two drawings, ms; between two lines where nothing is drawn. */
const REDRAW_MS = 100;
const PLAIN_MS = 15_000;
/** The first of them comes earlier: somebody waits to see that it goes on. */
const FIRST_MS = 1_000;

/** A bar on a terminal, else a line now and then. @param quiet nothing at all. */
export function showArms(quiet: boolean): ArmsShown {
  const screen = process.stdout;
  const live = !quiet && screen.isTTY === true ? createLiveLines(screen) : null;
  const colors = colorsOf(screen);
  let drawnMs = performance.now() - PLAIN_MS + FIRST_MS;
  let arm: Arm | null = null;
  let place = '';
  const name = () =>
    `${place}  ${arm!.workers} worker${arm!.workers === 1 ? '' : 's'}, ${arm!.mode}, seed ${arm!.seed}`;
  return {
    begin(next, index, of) {
      arm = next;
      place = `${index + 1}/${of}`;
    },
    progress(step, nowMs, stepsMax) {
      const now = performance.now();
      if (quiet || now - drawnMs < (live ? REDRAW_MS : PLAIN_MS)) return;
      drawnMs = now;
      const share = stepsMax === null ? null : Math.min(1, step / stepsMax);
      const how = share === null ? '' : `${bar(share)} ${Math.floor(100 * share)} %  `;
      const line = `${name()}  ${how}update ${groups(step)}, virtual ${clockText(nowMs / 1_000)}`;
      if (live) live.draw([{ line, paint: colors.cyan }]);
      else print(line);
    },
    ended(run) {
      live?.erase();
      if (quiet) return;
      const last = run.evaluations.at(-1);
      const result = last
        ? `loss ${fourDigits(last.loss)}, error ${fourDigits(last.error)}`
        : 'no evaluation';
      print(
        `${name()}: ${run.phase}, ${result} after ${groups(run.step)} updates, virtual ${clockText(run.seconds)}`,
      );
    },
    close: () => live?.erase(),
  };
}
