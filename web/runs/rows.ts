import { type BestTrial, bestTrial } from '../../shared/best-trial.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { ago, count, duration, errorOf, plural, short } from '../format.ts';
import { arrange, type Child, h, patch } from '../html.ts';
import { badge, isActive, sparkline } from '../parts.ts';
import { metricOf, type RunColumn } from './columns.ts';
import type { ListLine } from './fold.ts';

/** One line of the table of runs. */

export interface RowEvents {
  readonly isSelected: (run: string) => boolean;
  readonly onSelect: (runs: readonly string[], on: boolean) => void;
  readonly onOpen: (study: string) => void;
  readonly onTag: (tag: string) => void;
}

const sub = (text: string) => h('span', { class: 'sub' }, text);

export class Row {
  readonly element: HTMLElement;
  readonly #events: RowEvents;
  readonly #box: HTMLInputElement;
  readonly #select: HTMLElement;
  readonly #cells = new Map<string, HTMLElement>();
  #columns = '';
  #runs: readonly string[] = [];
  #text = '';

  constructor(line: ListLine, events: RowEvents) {
    this.#events = events;
    const name = line.kind === 'run' ? line.run.id : `all trials of ${line.study}`;
    this.#box = h('input', {
      type: 'checkbox',
      'aria-label': `Select ${name}`,
      onChange: () => events.onSelect(this.#runs, this.#box.checked),
    });
    this.#select = h('td', { class: 'col-select' }, this.#box);
    this.element = h('tr', {
      'data-run': line.kind === 'run' ? line.run.id : null,
      'data-study': line.kind === 'study' ? line.study : null,
    });
  }

  show(line: ListLine, columns: readonly RunColumn[]): void {
    const runs = line.kind === 'run' ? [line.run] : line.runs;
    this.#runs = runs.map(({ id }) => id);
    const chosen = this.#runs.filter((id) => this.#events.isSelected(id)).length;
    this.#box.checked = chosen === runs.length;
    this.#box.indeterminate = chosen > 0 && chosen < runs.length;
    // Times ago go on by themselves, so they are looked at too.
    const names = columns.map(({ name }) => name);
    const text = JSON.stringify([line, names, runs.map(({ createdAt }) => ago(createdAt))]);
    if (text === this.#text) return;
    this.#text = text;
    this.element.classList.toggle('trial', line.kind === 'run' && line.isTrial);
    const cells = line.kind === 'run' ? this.#runCells(line) : this.#studyCells(line);
    if (names.join() !== this.#columns) this.#layOut(columns);
    for (const column of columns) {
      const content = cells[column.name] ?? metricCell(column, runs);
      patch(this.#cells.get(column.name)!, [content].flat());
    }
  }

  #layOut(columns: readonly RunColumn[]): void {
    this.#columns = columns.map(({ name }) => name).join();
    this.#cells.clear();
    for (const { name, class: kind = '' } of columns) {
      this.#cells.set(name, h('td', { class: `${kind} col-${name}` }));
    }
    arrange(this.element, [this.#select, ...this.#cells.values()]);
  }

  #runCells({ run, isTrial }: Extract<ListLine, { kind: 'run' }>): Cells {
    const trial = run.study === null || isTrial ? '' : ` · trial of ${run.study}`;
    const id = run.name == null ? '' : `${run.id} · `;
    return {
      run: [
        h('a', { class: 'run-name', href: `#/runs/${run.id}` }, run.name ?? run.id),
        sub(`${id}${run.experiment}${trial} · ${ago(run.createdAt)}`),
        tagsOf(run.tags ?? [], this.#events.onTag),
      ],
      state: badge(run.phase),
      step: stepOf(run),
      loss: h(
        'span',
        { class: 'loss' },
        sparkline(run.sparkline),
        h('span', {}, short(run.trainingLoss)),
      ),
      best: run.best
        ? [bestText(run), sub(`loss ${short(run.best.loss)} at ${count(run.best.step)}`)]
        : '–',
      speed: [
        run.examplesPerSecond ? `${count(run.examplesPerSecond)}/s` : '–',
        isActive(run) && sub(plural(run.workers, 'worker')),
      ],
      time: [
        duration(run.seconds),
        run.secondsLeft !== null && sub(`${duration(run.secondsLeft)} left at most`),
      ],
    };
  }

  #studyCells({ study, runs, isOpen }: Extract<ListLine, { kind: 'study' }>): Cells {
    const newest = runs.reduce((a, b) => (a.createdAt < b.createdAt ? b : a));
    const best = bestTrial(runs);
    const speed = runs.reduce((sum, run) => sum + (run.examplesPerSecond ?? 0), 0);
    const workers = runs.reduce((sum, run) => sum + run.workers, 0);
    const active = runs.filter(isActive).length;
    const button = h(
      'button',
      {
        ...{ type: 'button', class: 'fold', 'aria-expanded': String(isOpen) },
        'aria-label': `${isOpen ? 'Hide' : 'Show'} the trials of ${study}`,
        onClick: () => this.#events.onOpen(study),
      },
      isOpen ? '▾' : '▸',
    );
    return {
      run: [
        button,
        h('a', { class: 'run-name', href: `#/studies/${encodeURIComponent(study)}` }, study),
        sub(
          `study of ${newest.experiment} · ${plural(runs.length, 'trial')} · ${ago(newest.createdAt)}`,
        ),
      ],
      state: active > 0 ? badge('running') : badge('ended'),
      step: h('span', { class: 'muted' }, `${count(active)} active`),
      loss: '',
      best: best ? [valueText(best), sub(`by ${best.run.name ?? best.run.id}`)] : '–',
      speed: [speed > 0 ? `${count(speed)}/s` : '–', active > 0 && sub(plural(workers, 'worker'))],
      time: duration(runs.reduce((sum, run) => sum + run.seconds, 0)),
    };
  }
}

type Cells = Readonly<Record<string, Child | Child[]>>;

function metricCell({ title }: RunColumn, runs: readonly RunSummary[]): string {
  const [run] = runs;
  return runs.length === 1 ? short(metricOf(run!, title)) : '';
}

function stepOf(run: RunSummary): Child[] {
  const share = run.stepsMax ? Math.min(1, run.step / run.stepsMax) : null;
  return [
    h(
      'span',
      {},
      count(run.step),
      run.stepsMax !== null && h('span', { class: 'muted' }, ` / ${count(run.stepsMax)}`),
    ),
    share !== null &&
      h(
        'span',
        { class: 'bar', 'aria-hidden': 'true' },
        h('span', { style: { width: `${100 * share}%` } }),
      ),
    sub(`epoch ${count(run.epoch)}`),
  ];
}

const valueText = ({ run, metric, value }: BestTrial<RunSummary>) =>
  metric === 'error' ? errorOf(run)(value) : short(value);

const bestText = (run: RunSummary) =>
  run.best!.error === null ? short(run.best!.loss) : errorOf(run)(run.best!.error);

/** Buttons that list the runs with a tag. */
function tagsOf(tags: readonly string[], onTag: (tag: string) => void): HTMLElement | null {
  if (tags.length === 0) return null;
  const buttons = tags.map((tag) =>
    h(
      'button',
      {
        ...{ type: 'button', class: 'tag', 'aria-label': `Runs with tag ${tag}` },
        onClick: () => onTag(tag),
      },
      tag,
    ),
  );
  return h('span', { class: 'tags' }, ...buttons);
}
