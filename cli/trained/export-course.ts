import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { readCheckpoint } from '../../files/checkpoint.ts';
import { Curves } from '../../server/core/curves.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { EventStream } from '../../server/watch/tensorboard.ts';
import { evaluationMoment, type Moment, secondsOf, trainingMoments } from '../../shared/history.ts';
import type { Metrics, Observations, RunDetail } from '../../shared/rest.ts';
import type { UsedServer } from '../used-server.ts';

/** What happened in a run, for programs that draw curves: `downpour export --format tensorboard | jsonl`. */

/** All that is known of a run's course. */
export interface Course {
  readonly run: string;
  readonly step: number;
  readonly createdAt: string;
  readonly config: unknown;
  /** Facts for whom the numbers are not enough. */
  readonly facts: Readonly<Record<string, unknown>>;
  readonly metrics: Metrics;
  readonly observed: Pick<Observations, 'samples'>;
}

export async function courseOfRun({ client }: UsedServer, id: string): Promise<Course> {
  const [detail, metrics, observed] = await Promise.all([
    client.run(id),
    client.metrics(id),
    client.observations(id),
  ]);
  const { config, sparkline: _, ...facts } = detail satisfies RunDetail;
  const { step, createdAt } = detail;
  return { run: id, step, createdAt, config, facts, metrics, observed };
}

/** Up to the time of a checkpoint. @throws DownpourError of its reading. */
export async function courseOfFile(path: string): Promise<Course> {
  const { manifest } = await readCheckpoint(process.cwd(), path);
  const { options, phase, reason, step, seconds, data, best, test, observations } =
    manifest.state as RunState;
  const { id: run, experiment, experimentHash, createdAt, config } = options;
  const course = new Curves(observations);
  return {
    ...{ run, step, createdAt, config },
    facts: {
      ...{ id: run, experiment, experimentHash, createdAt, phase, reason, step, seconds, data },
      ...{ best: best?.evaluation ?? null, test },
    },
    metrics: course.metrics(),
    observed: course.observed(),
  };
}

/** @returns the files that were written. */
export async function writeEventFile(course: Course, to: string): Promise<string[]> {
  const { metrics, observed } = course;
  const name = `events.out.tfevents.${Math.floor(secondsOf(course.createdAt))}.${course.run}`;
  await writeFile(join(to, name), new EventStream(course).more(metrics, observed).bytes);
  return [name];
}

/**
 * `history.jsonl`, a line a step with `_step`, `_runtime` (seconds of training) and `_timestamp` as in the files of
 * Weights & Biases; `config.json`; `summary.json`, the last value of each.
 */
export async function writeHistory(course: Course, to: string): Promise<string[]> {
  const { config, facts } = course;
  const lines = historyOf(course);
  const summary = { ...Object.assign({}, ...lines), run: facts };
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  const files = {
    'history.jsonl': lines.map((line) => `${JSON.stringify(line)}\n`).join(''),
    'config.json': json(config),
    'summary.json': json(summary),
  };
  for (const [name, text] of Object.entries(files)) await writeFile(join(to, name), text);
  return Object.keys(files);
}

function historyOf({ metrics, createdAt }: Course): Record<string, number>[] {
  const moments: Moment[] = [
    ...trainingMoments(metrics.training),
    ...metrics.evaluations.map(evaluationMoment),
  ];
  const byStep = new Map<number, { seconds: number; values: Record<string, number> }>();
  for (const { step, seconds, values } of moments) {
    const known = byStep.get(step);
    // An evaluation comes some time after the step that it is of.
    byStep.set(step, {
      seconds: Math.max(seconds, known?.seconds ?? 0),
      values: { ...known?.values, ...values },
    });
  }
  const started = secondsOf(createdAt);
  return [...byStep]
    .sort(([a], [b]) => a - b)
    .map(([step, { seconds, values }]) => ({
      _step: step,
      _runtime: seconds,
      _timestamp: started + seconds,
      ...values,
    }));
}
