import { appendFile, mkdir, open, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as events from '../../files/event-file.ts';
import { errorText } from '../../shared/errors.ts';
import { evaluationMoment, secondsOf, trainingMoments } from '../../shared/history.ts';
import type { Log } from '../../shared/log.ts';
import type { Evaluation, Metrics, Observations, ObservedSample } from '../../shared/rest.ts';
import type { Run } from '../core/run.ts';

/**
 * `serve --tensorboard FOLDER`: a folder a run with one event file, which grows while the run trains. A server that
 * begins, and one that could not write, writes a new file from all that the run remembers, and then removes the old one: so
 * nothing is in it twice, and steps that a crash took back are gone. Training never waits for it.
 */

/** What is told of a run beside its curves. */
export interface BoardFacts {
  readonly createdAt: string;
  readonly config: unknown;
}

/** The course of one run as events. */
export class EventStream {
  readonly #startedSeconds: number;
  readonly #facts: BoardFacts;
  #begun = false;
  #step = -1;
  readonly #evaluations = new WeakSet<Evaluation>();
  readonly #samples = new WeakSet<ObservedSample>();

  constructor(facts: BoardFacts) {
    this.#facts = facts;
    this.#startedSeconds = secondsOf(facts.createdAt);
  }

  /**
   * What is new since the last call. @param bytesMax about; what is beyond comes with the next call.
   * @returns whether that is all.
   */
  more(
    metrics: Metrics,
    observed: Pick<Observations, 'samples'>,
    bytesMax = Infinity,
  ): { readonly bytes: Buffer; readonly all: boolean } {
    const parts: Buffer[] = [];
    let size = 0;
    const add = (...more: Buffer[]) => {
      parts.push(...more);
      for (const { length } of more) size += length;
    };
    if (!this.#begun) add(...this.#begin());
    this.#begun = true;
    for (const { step, seconds, values } of trainingMoments(metrics.training, this.#step)) {
      if (size >= bytesMax) break;
      add(events.scalars(this.#at(step, seconds), values));
      this.#step = step;
    }
    for (const evaluation of metrics.evaluations) {
      if (size >= bytesMax) break;
      if (this.#evaluations.has(evaluation)) continue;
      this.#evaluations.add(evaluation);
      const { step, seconds, values } = evaluationMoment(evaluation);
      add(events.scalars(this.#at(step, seconds), values));
    }
    for (const sample of observed.samples) {
      if (size >= bytesMax) break;
      if (this.#samples.has(sample)) continue;
      this.#samples.add(sample);
      add(...this.#sample(sample));
    }
    return { bytes: Buffer.concat(parts), all: size < bytesMax };
  }

  #begin(): Buffer[] {
    const place = this.#at(0, 0);
    const config = `\`\`\`json\n${JSON.stringify(this.#facts.config, null, 2)}\n\`\`\``;
    return [
      events.fileVersion(place.wallTime),
      events.sessionStart(place),
      events.note(place, 'config', config),
    ];
  }

  #sample({ step, seconds, tensors, layers }: ObservedSample): Buffer[] {
    const place = this.#at(step, seconds);
    const shapes: Parameters<typeof events.histograms>[1] = Object.fromEntries([
      ...tensors.flatMap(({ name, weights, gradients, updates }) => [
        [`weights/${name}`, weights],
        [`gradients/${name}`, gradients],
        ...(updates ? [[`updates/${name}`, updates]] : []),
      ]),
      ...layers.map(({ layer, values }) => [`activations/${layer}`, values]),
    ]);
    const numbers = Object.fromEntries([
      ...tensors.map(({ name, gradientNorm }) => [`gradient_norm/${name}`, gradientNorm]),
      ...tensors.flatMap(({ name, updateRatio }) =>
        updateRatio === null ? [] : [[`update_ratio/${name}`, updateRatio]],
      ),
      ...layers.map(({ layer, dead }) => [`dead/${layer}`, dead]),
    ]);
    return [events.histograms(place, shapes), events.scalars(place, numbers)];
  }

  /** Time of training, so that pauses do not show. */
  #at(step: number, seconds: number): events.EventPlace {
    return { step, wallTime: this.#startedSeconds + seconds };
  }
}

interface RunEvents {
  /** Another one of the same name: all runs went back to their checkpoints. */
  readonly run: Run;
  stream: EventStream;
  /** Null: a new file is to be begun. */
  path: string | null;
  /** Older files of the run are gone. */
  alone: boolean;
  /** Nothing more will come, as it stands. */
  ended: boolean;
}

export interface TensorBoardOptions {
  readonly folder: string;
  readonly now: () => number;
  readonly log: Log;
}

const RETRY_MS = 5_000;
/** That are made in one go: some milliseconds, in which nobody is answered. */
const BYTES_AT_ONCE = 2 ** 15;
const OURS = /^events\.out\.tfevents\.\d+\.\d+\.downpour$/;

export class TensorBoard {
  readonly #options: TensorBoardOptions;
  readonly #entries = new Map<string, RunEvents>();
  #passing: Promise<void> | null = null;
  #retryAt = 0;
  #failing = false;
  #files = 0;

  constructor(options: TensorBoardOptions) {
    this.#options = options;
  }

  /** Once a second; one pass at a time. */
  tick(runs: readonly Run[]): void {
    if (this.#passing !== null || this.#options.now() < this.#retryAt) return;
    this.#passing = this.#pass(runs).finally(() => {
      this.#passing = null;
    });
  }

  /** What is left is written. Never throws. */
  async close(runs: readonly Run[]): Promise<void> {
    await this.#passing;
    await this.#pass(runs);
  }

  async #pass(runs: readonly Run[]): Promise<void> {
    const { folder, log, now } = this.#options;
    const problems: string[] = [];
    const ids = new Set(runs.map(({ id }) => id));
    // With those that were removed goes the memory of their parameters.
    for (const id of this.#entries.keys()) if (!ids.has(id)) this.#entries.delete(id);
    for (const run of runs) {
      // One whose folder cannot be read or written keeps no other from being written.
      await this.#write(run).catch((error: unknown) => problems.push(errorText(error)));
    }
    if (problems.length === 0) {
      if (this.#failing) log(`the event files in ${folder} are whole again`);
      this.#failing = false;
      return;
    }
    this.#retryAt = now() + RETRY_MS;
    if (this.#failing) return;
    this.#failing = true;
    log(
      `the event files in ${folder} are not written for ${problems.length} runs, trying again; training continues: ${problems[0]}`,
      { level: 'warn' },
    );
  }

  async #write(run: Run): Promise<void> {
    const folder = join(this.#options.folder, run.id);
    let entry = this.#entries.get(run.id);
    if (entry?.run !== run) {
      const ended = entry === undefined && run.over && (await isWhole(folder));
      entry = { run, stream: streamOf(run), path: null, alone: false, ended };
      this.#entries.set(run.id, entry);
    }
    if (!run.over) entry.ended = false;
    if (entry.ended) return;
    try {
      for (;;) {
        const { over } = run;
        const { bytes, all } = entry.stream.more(run.metrics(), run.observed, BYTES_AT_ONCE);
        const ends = all && over;
        const whole = ends ? Buffer.concat([bytes, events.SESSION_STOP]) : bytes;
        if (entry.path === null) entry.path = await this.#begin(folder, run.life, whole);
        else if (whole.length > 0) await appendFile(entry.path, whole);
        entry.ended = ends;
        if (!all) continue;
        if (!entry.alone) await removeOthers(folder, entry.path);
        entry.alone = true;
        return;
      }
    } catch (error) {
      // It may end in half a record, after which nothing can be read.
      entry.stream = streamOf(run);
      entry.path = null;
      entry.alone = false;
      throw error;
    }
  }

  async #begin(folder: string, life: number, bytes: Buffer): Promise<string> {
    await mkdir(folder, { recursive: true });
    // In the order of their names, which is that in which they are read.
    const number = (value: number, digits: number) => String(value).padStart(digits, '0');
    const name = `events.out.tfevents.${number(life, 10)}.${number(this.#files++, 6)}.downpour`;
    await writeFile(join(folder, name), bytes);
    return join(folder, name);
  }
}

/** @param path of ours that stays. */
async function removeOthers(folder: string, path: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const other = join(folder, name);
    if (OURS.test(name) && other !== path) await rm(other, { force: true });
  }
}

const streamOf = ({ options, config }: Run) =>
  new EventStream({ createdAt: options.createdAt, config });

/** Whether all of a run that is over has been written. */
async function isWhole(folder: string): Promise<boolean> {
  const names = (await readdir(folder).catch(() => [])).filter((name) => OURS.test(name));
  if (names.length !== 1) return false;
  const file = await open(join(folder, names[0]!));
  try {
    const { size } = await file.stat();
    const { length } = events.SESSION_STOP;
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, Math.max(0, size - length));
    return buffer.equals(events.SESSION_STOP);
  } finally {
    await file.close();
  }
}
