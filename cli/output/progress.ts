import pc from 'picocolors';
import { clean, cleanJson } from '../../shared/clean.ts';
import { isOver } from '../../shared/phases.ts';
import type { ErrorMeasure } from '../../shared/protocol.ts';
import type {
  Rollback,
  RowTableFacts,
  RunDetail,
  RunSummary,
  WorkerSummary,
} from '../../shared/rest.ts';
import { stoppingText } from '../../shared/stopping.ts';
import { collectingText, errorFormat, failureText, groupText } from '../../shared/text.ts';
import { isRefitted } from '../../shared/trained-last.ts';

/** Shows how a run gets on: live lines on a terminal, plain lines elsewhere, JSON for programs. */

/** Where progress is written; `process.stdout` is one. */
export interface Screen {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

export interface ProgressOptions {
  readonly screen: Screen;
  /** `lines`: live on a terminal, else plain. */
  readonly mode: 'lines' | 'json' | 'quiet';
  /** Milliseconds, from any origin. */
  readonly now: () => number;
  readonly color?: boolean;
}

export interface Progress {
  /** Shows the newest facts; call as often as they come. */
  update(run: RunSummary, workers: readonly WorkerSummary[]): void;
  /** A line that stays, above the live ones; not with `quiet`, as an event with `json`. */
  note(line: string): void;
  /** An event for programs: one line of JSON; nothing in the other modes. */
  event(name: string, facts: Readonly<Record<string, unknown>>): void;
  /** Takes the live lines away. */
  end(): void;
}

/** Between two drawings of the live lines. */
const REDRAW_MS = 100;
/** Between two plain lines, where nothing else is new than time. */
const PLAIN_MS = 5_000;

/** Colours on a terminal, unless NO_COLOR is set; a log of CI is read as text. */
export function colorsOf(screen: Screen) {
  return pc.createColors(pc.isColorSupported && screen.isTTY === true);
}

export function createProgress(options: ProgressOptions): Progress {
  const { screen, mode, now } = options;
  const colors = options.color === undefined ? colorsOf(screen) : pc.createColors(options.color);
  const live = mode === 'lines' && screen.isTTY === true ? createLiveLines(screen) : null;
  const losses = new History();
  let drawnAt = Number.NEGATIVE_INFINITY;
  let lastLine = '';
  let lastPhase = '';
  let lastEvaluation = '';
  let lastWorkers = '';

  return {
    update(run, workers) {
      const at = now();
      const evaluation = run.validation ? `${run.phase} ${run.validation.step}` : '';
      const joined = workers
        .filter((w) => w.state !== 'gone')
        .map((w) => w.worker)
        .join(' ');
      const isNew =
        run.phase !== lastPhase || evaluation !== lastEvaluation || joined !== lastWorkers;
      if (mode === 'json') {
        if (!isNew && at - drawnAt < 1000) return;
        screen.write(`${cleanJson({ event: 'progress', run, workers })}\n`);
      } else if (live) {
        losses.add(run.step, run.trainingLoss);
        if (at - drawnAt < REDRAW_MS) return;
        const facts = fill(liveParts(run, losses.values), (screen.columns ?? 80) - 1);
        live.draw([
          ...facts.map((line) => ({ line, paint: colors.bold })),
          ...liveWorkers(workers).map((line) => ({ line, paint: colors.dim })),
        ]);
      } else if (mode === 'lines') {
        const line = runLine(run);
        if ((!isNew || line === lastLine) && at - drawnAt < PLAIN_MS) return;
        screen.write(`${clean(line)}\n`);
        lastLine = line;
      }
      lastPhase = run.phase;
      lastEvaluation = evaluation;
      lastWorkers = joined;
      drawnAt = at;
    },
    note(line) {
      if (mode === 'json') screen.write(`${cleanJson({ event: 'note', text: line })}\n`);
      if (mode !== 'lines') return;
      live?.erase();
      screen.write(`${clean(line)}\n`);
      // The live lines are drawn again at once, below it.
      if (live) drawnAt = Number.NEGATIVE_INFINITY;
    },
    event(name, facts) {
      if (mode === 'json') screen.write(`${cleanJson({ event: name, ...facts })}\n`);
    },
    end() {
      live?.erase();
    },
  };
}

/** Lines that stand in one place of a terminal, each time other ones. */
export interface LiveLines {
  /** Cut at the terminal's width, no more than it has rows. @param paint colours what is left of a line. */
  draw(lines: readonly { readonly line: string; paint(line: string): string }[]): void;
  /** Takes them away. */
  erase(): void;
}

export function createLiveLines(screen: Screen): LiveLines {
  let drawn = 0;
  const eraser = () => (drawn > 0 ? `\x1b[${drawn}A\r\x1b[J` : '');
  return {
    draw(lines) {
      const columns = screen.columns ?? 80;
      const shown = lines.slice(0, Math.max(1, (screen.rows ?? 24) - 1));
      const text = shown.map(({ line, paint }) => `${paint(clean(line).slice(0, columns - 1))}\n`);
      screen.write(eraser() + text.join(''));
      drawn = shown.length;
    },
    erase() {
      if (drawn > 0) screen.write(eraser());
      drawn = 0;
    },
  };
}

/** A curve as it grows, thinned out evenly so that it never gets long. */
class History {
  values: number[] = [];
  #stride = 1;
  #seen = 0;
  #step = -1;

  add(step: number, value: number | null): void {
    if (value === null || step === this.#step) return;
    this.#step = step;
    if (this.#seen++ % this.#stride === 0) this.values.push(value);
    if (this.values.length <= 2 * SPARK_COLUMNS) return;
    this.values = this.values.filter((_, i) => i % 2 === 0);
    this.#stride *= 2;
  }
}

const SPARK_COLUMNS = 30;
const SPARKS = '▁▂▃▄▅▆▇█';
const BAR_COLUMNS = 20;

/**
 * A curve in one line, from its smallest value to its largest; what is not finite is left out.
 * @param columns at most; of several values in one, the mean.
 */
export function sparkLine(values: readonly (number | null)[], columns = SPARK_COLUMNS): string {
  const finite = values.filter((value) => value !== null && Number.isFinite(value)) as number[];
  const width = Math.min(columns, finite.length);
  const means = Array.from({ length: width }, (_, i) => {
    const from = Math.floor((i * finite.length) / width);
    const to = Math.floor(((i + 1) * finite.length) / width);
    return finite.slice(from, to).reduce((sum, value) => sum + value, 0) / (to - from);
  });
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const level = (value: number) =>
    high === low ? 0 : Math.round(((value - low) / (high - low)) * (SPARKS.length - 1));
  return means.map((value) => SPARKS[level(value)]).join('');
}

/** @param share 0 … 1 */
export function bar(share: number, columns = BAR_COLUMNS): string {
  const full = Math.round(Math.min(1, Math.max(0, share)) * columns);
  return '█'.repeat(full) + '░'.repeat(columns - full);
}

function liveParts(run: RunSummary, losses: readonly number[]): string[] {
  const parts = runParts(run);
  const { step, stepsMax } = run;
  if (run.phase !== 'waiting' && stepsMax !== null && stepsMax > 0) {
    const share = Math.min(1, step / stepsMax);
    parts.splice(2, 0, `${bar(share)} ${Math.floor(100 * share)} %`);
  }
  if (losses.length > 1) parts.push(`loss ${sparkLine(losses)}`);
  return parts;
}

/** Each with a bar: its pushes against those of the worker that has the most. */
function liveWorkers(workers: readonly WorkerSummary[]): string[] {
  const done = workers.map(({ pushes }) => pushes.applied + pushes.damped);
  const most = Math.max(1, ...done);
  return workers.map((worker, i) => `  ${bar(done[i]! / most, 8)}${workerLine(worker)}`);
}

/** One line: where the run is, how fast and how good. */
export function runLine(run: RunSummary): string {
  return runParts(run).join('  ');
}

/** As many parts a line as fit; what follows the first line is indented. */
function fill(parts: readonly string[], columns: number): string[] {
  const lines: string[] = [];
  for (const part of parts) {
    const line = lines.at(-1);
    if (line !== undefined && line.length + 2 + part.length <= columns) {
      lines[lines.length - 1] = `${line}  ${part}`;
    } else lines.push(line === undefined ? part : `  ${part}`);
  }
  return lines;
}

function runParts(run: RunSummary): string[] {
  if (run.phase === 'waiting') {
    return [run.id, `waiting for ${run.workers === 0 ? 'a worker' : 'the first parameters'}`];
  }
  const { validation, earlyStopping } = run;
  return [
    run.id,
    run.phase,
    `step ${groups(run.step)}${run.stepsMax === null ? '' : `/${groups(run.stepsMax)}`}`,
    `epoch ${run.epoch}`,
    `${speedOf(run)} examples/s`,
    `loss ${fourDigits(run.trainingLoss)}`,
    validation
      ? `validation ${fourDigits(validation.loss)}, error ${errorOf(run)(validation.error)}`
      : 'validation –',
    ...(earlyStopping.enabled && run.phase === 'training'
      ? [`patience ${earlyStopping.patienceLeft}/${earlyStopping.patience}`]
      : []),
    `staleness ${fourDigits(run.staleness?.p50)}/${fourDigits(run.staleness?.p95)}`,
    `rate ${fourDigits(run.learningRate)}`,
    `left ${run.secondsLeft === null ? '–' : `≤ ${clockText(run.secondsLeft)}`}`,
  ];
}

/** One line: what a worker does. */
export function workerLine(worker: WorkerSummary): string {
  const { pushes } = worker;
  const parts = [
    `  ${worker.worker}`,
    worker.state,
    worker.engine,
    `${groups(pushes.applied + pushes.damped)} pushes`,
  ];
  if (pushes.rejected > 0) parts.push(`${groups(pushes.rejected)} rejected`);
  parts.push(
    `${fourDigits(worker.computeMsMean)} ms a minibatch`,
    `staleness ${fourDigits(worker.stalenessMean)}`,
  );
  parts.push(...machineParts(worker));
  if (worker.quarantine) parts.push('in quarantine');
  if (worker.lastError) {
    const { code, message, at } = worker.lastError;
    parts.push(`${code} at ${at.slice(0, 19)}Z: ${message}`);
  }
  return parts.join('  ');
}

/** How busy its machine is, as far as it is known. */
function machineParts({ machine }: WorkerSummary): string[] {
  if (!machine) return [];
  const { cpuCores, cores, memoryBytes, tensorBytes, gpuShare, gpuMemoryBytes } = machine;
  const gigabytes = (bytes: number) => `${fourDigits(bytes / 1e9)} GB`;
  return [
    ...(cpuCores === null ? [] : [`${fourDigits(cpuCores)} of ${cores ?? '?'} cores`]),
    ...(memoryBytes === null ? [] : [`${gigabytes(memoryBytes)} memory`]),
    ...(tensorBytes === null ? [] : [`${gigabytes(tensorBytes)} tensors`]),
    ...(gpuShare === null ? [] : [`GPU ${Math.round(100 * gpuShare)} %`]),
    ...(gpuMemoryBytes === null ? [] : [`${gigabytes(gpuMemoryBytes)} GPU memory`]),
  ];
}

const speedOf = ({ examplesPerSecond: speed }: RunSummary) =>
  speed === null ? '–' : groups(Math.round(speed));

/** Now; of a run that is over, the mean. Older servers tell no mean, and with the warm-up it would be another figure. */
function speedText(run: RunSummary): string {
  if (!isOver(run.phase)) return `${speedOf(run)} examples/s`;
  const { examplesPerSecondMean: mean = null } = run;
  return mean === null ? '–' : `${groups(Math.round(mean))} examples/s on average`;
}

function tableText({
  name,
  rows,
  rowsMax,
  width,
  memoryBytes,
  updates,
  dropped,
  ...table
}: RowTableFacts) {
  const parts = [
    `${groups(rows)} of ${groups(rowsMax)} rows, ${width} wide, ${Number((memoryBytes / 1e6).toPrecision(3))} MB`,
    `${groups(updates)} rows updated`,
  ];
  const { staleness, admitted, forgotten } = table;
  if (staleness) parts.push(`staleness mean ${fourDigits(staleness.mean)}, max ${staleness.max}`);
  if (admitted > 0) parts.push(`${groups(admitted)} admitted, ${groups(forgotten)} forgotten`);
  if (dropped > 0) parts.push(`${groups(dropped)} gradients dropped`);
  return `${name}: ${parts.join('; ')}`;
}

/** All that one asks about a run, a fact a line. */
export function runFacts(run: RunSummary | RunDetail): string[] {
  const lines = [
    `${run.id}: ${run.phase}${run.reason === '' ? '' : ` – ${run.reason}`}`,
    `  experiment     ${run.experiment}${run.study == null ? '' : `, a trial of study ${run.study}`}, ${run.parameters === null ? 'parameters not made yet' : `${groups(run.parameters)} parameters`}`,
    `  progress       step ${groups(run.step)}, epoch ${run.epoch}, ${groups(run.examples)} examples in ${clockText(run.seconds)}`,
    `  speed          ${speedText(run)}, ${run.workers} worker${run.workers === 1 ? '' : 's'}${run.secondsLeft === null ? '' : `, at most ${clockText(run.secondsLeft)} left`}`,
    `  training       loss ${fourDigits(run.trainingLoss)}, learning rate ${fourDigits(run.learningRate)}${run.momentum === null ? '' : `, momentum ${fourDigits(run.momentum)}`}`,
  ];
  for (const group of ('groups' in run && run.groups) || []) {
    const size = group.parameters === null ? '' : `${groups(group.parameters)} parameters, `;
    const rate = group.frozen ? '' : `, learning rate ${fourDigits(group.learningRate)}`;
    lines.push(`  group          ${group.name}: ${size}${groupText(group)}${rate}`);
  }
  for (const table of run.tables ?? []) lines.push(`  table          ${tableText(table)}`);
  for (const [name, evaluation] of [
    ['validation', run.validation],
    ['best', run.best],
    ['test', run.test],
  ] as const) {
    if (!evaluation) continue;
    const before =
      name === 'best' && isRefitted(run)
        ? `, before '${run.earlyStopping.afterStop}' trained the final parameters`
        : '';
    lines.push(
      `  ${name.padEnd(13)}  loss ${fourDigits(evaluation.loss)}, error ${errorOf(run)(evaluation.error)}, at step ${groups(evaluation.step)}${before}`,
    );
  }
  const metrics = Object.entries(run.best?.metrics ?? {});
  if (metrics.length > 0) {
    const told = metrics.map(([name, value]) => `${name} ${fourDigits(value)}`);
    lines.push(`  metrics        ${told.join(', ')}, of the best`);
  }
  const { staleness, pushes } = run;
  lines.push(
    `  early stopping ${stoppingText(run, groups)}`,
    `  staleness      ${staleness === null ? '– (no push was applied yet)' : `p50 ${fourDigits(staleness.p50)}, p95 ${fourDigits(staleness.p95)}, max ${staleness.max}`}`,
    `  pushes         ${groups(pushes.applied)} applied, ${groups(pushes.damped)} damped, ${groups(pushes.duplicate)} duplicate, ${groups(pushes.rejected)} rejected`,
  );
  if (run.collecting) lines.push(`  next update    ${collectingText(run.collecting)}`);
  if (run.correction?.text) lines.push(`  correction     ${run.correction.text}`);
  if (run.hint) lines.push(`  hint           ${run.hint}`);
  for (const rollback of run.rollbacks) lines.push(`  diverged       ${rollbackLine(rollback)}`);
  if (run.stepsLost > 0) {
    lines.push(
      `  lost           ${groups(run.stepsLost)} steps that came after the last checkpoint, with crashes of the server`,
    );
  }
  if (run.data) {
    const { trainCount, validationCount, testCount, source } = run.data;
    lines.push(
      `  data           ${source}: ${groups(trainCount)} training, ${groups(validationCount)} validation, ${groups(testCount)} test examples`,
    );
  }
  if (run.dataNote) lines.push(`  mind           ${run.dataNote}`);
  if (run.checkpoint) {
    lines.push(`  checkpoint     step ${groups(run.checkpoint.step)}: ${run.checkpoint.file}`);
  }
  if (run.workerFailure) lines.push(`  failure        ${failureText(run.workerFailure)}`);
  if (run.unwritten) lines.push(`  NOT WRITTEN    ${unwrittenText(run, run.unwritten)}`);
  return lines;
}

/** What a restart would cost. */
export function unwrittenText({ step, checkpoint }: RunSummary, why: string): string {
  const from = checkpoint ? `step ${groups(checkpoint.step)}` : 'its beginning';
  return `a restart of the server would go back from step ${groups(step)} to ${from}: ${why}`;
}

/** A command that is stopped by Ctrl-C loses nothing: the server goes on writing. */
export const waitingText = (run: string, seconds: number) =>
  `the server is still writing the checkpoint of run ${run}, since ${seconds} s`;

/** What came of a divergence. */
export function rollbackLine({ step, to, learningRate, reason }: Rollback): string {
  const where =
    to === null ? 'the initial parameters' : `the best parameters, of step ${groups(to)}`;
  return `at step ${groups(step)}, back to ${where} with learning rate ${fourDigits(learningRate)}: ${reason}`;
}

/** Rows under headings, as wide as needed; numbers' columns are not told apart from text. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const widths = headings.map((heading, i) =>
    Math.max(heading.length, ...rows.map((row) => row[i]?.length ?? 0)),
  );
  return [headings, ...rows].map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  );
}

/** 1234567 → `1,234,567`. */
export function groups(value: number): string {
  return String(Math.trunc(value)).replace(/\B(?=(\d{3})+(?!\d))/g, ',');
}

/** Four significant digits; `–` for nothing. */
export function fourDigits(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return '–';
  return String(Number(value.toPrecision(4)));
}

/** How the errors of a run, or of a trial, are told. */
export const errorOf = ({ errorMeasure }: { readonly errorMeasure?: ErrorMeasure | null }) =>
  errorFormat(errorMeasure, fourDigits);

/** Seconds → `42 s`, `3:05`, `2:03:05`. */
export function clockText(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const two = (value: number) => String(value).padStart(2, '0');
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
