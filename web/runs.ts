import type { RunSummary } from '../shared/rest.ts';
import { ago, count, duration, errorOf, plural, short } from './format.ts';
import { arrange, fill, h, setAttribute, setText } from './html.ts';
import { badge, emptyState, isActive, sparkline, Tile, type View } from './parts.ts';
import { knowsAllRuns, runsNewestFirst, state } from './store.ts';

/** All runs: what each is doing, and which are to be compared. */

type Show = 'all' | 'active' | 'ended';
const SHOWS: readonly (readonly [Show, string])[] = [
  ['all', 'All'],
  ['active', 'Active'],
  ['ended', 'Ended'],
];
/** So many rows at first; a search may leave thousands. */
const ROWS = 200;

interface Column {
  readonly name: string;
  readonly title: string;
  /** What it is ordered by; null: at the end, whichever way. */
  readonly key: (run: RunSummary) => number | string | null;
  readonly class?: string;
}

const COLUMNS: readonly Column[] = [
  { name: 'run', title: 'Run', key: (run) => run.createdAt },
  { name: 'state', title: 'State', key: (run) => run.phase },
  { name: 'step', title: 'Step', key: (run) => run.step, class: 'number' },
  { name: 'loss', title: 'Training loss', key: (run) => run.trainingLoss },
  {
    name: 'best',
    title: 'Best validation',
    key: (run) => run.best?.error ?? run.best?.loss ?? null,
    class: 'number',
  },
  { name: 'speed', title: 'Throughput', key: (run) => run.examplesPerSecond, class: 'number' },
  { name: 'time', title: 'Time', key: (run) => run.seconds, class: 'number' },
];

/** What is chosen outlives the page: from runs to their comparison and back. */
export const selected = new Set<string>();

export function runsView(): View {
  let filter = '';
  let show: Show = 'all';
  let order: { column: Column; descending: boolean } = { column: COLUMNS[0]!, descending: true };
  let rowsMax = ROWS;
  const rows = new Map<string, Row>();

  const tiles = {
    active: new Tile('Active runs'),
    workers: new Tile('Workers'),
    speed: new Tile('Throughput'),
  };
  const body = h('tbody');
  const table = h(
    'table',
    { class: 'runs' },
    h('caption', { class: 'hidden' }, 'Runs'),
    head(),
    body,
  );
  const scroll = h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Runs' },
    table,
  );
  const none = h('p', { class: 'none' }, 'No run matches.');
  const more = h(
    'button',
    { class: 'button', type: 'button', onClick: () => showMore() },
    'Show more',
  );
  const compareText = h('span', {});
  const compare = h(
    'div',
    { class: 'selection', role: 'region', 'aria-label': 'Selected runs' },
    compareText,
    h('a', { class: 'button primary', href: '#/compare' }, 'Compare'),
    h('button', { class: 'button', type: 'button', onClick: () => clear() }, 'Clear'),
  );
  const chips = SHOWS.map(([value, text]) =>
    h(
      'button',
      {
        type: 'button',
        class: 'chip',
        'aria-pressed': value === show,
        'data-show': value,
        onClick: () => showOnly(value),
      },
      text,
    ),
  );
  const tools = h(
    'div',
    { class: 'tools' },
    h('input', {
      type: 'search',
      'aria-label': 'Filter runs',
      placeholder: 'Filter by name, experiment or state',
      onInput: (event) => showMatching((event.target as HTMLInputElement).value),
    }),
    h('div', { class: 'chips', role: 'group', 'aria-label': 'Which runs' }, ...chips),
  );
  const empty = emptyState(
    'No runs yet',
    'A run appears here as soon as it is created. To train on handwritten digits:',
    'npx downpour train examples/mnist-mlp.ts',
  );
  const list = h(
    'div',
    {},
    h('dl', { class: 'tiles' }, tiles.active.element, tiles.workers.element, tiles.speed.element),
    tools,
    scroll,
    none,
    more,
    compare,
  );
  const element = h('div', {}, h('h1', {}, 'Runs'), list, empty);

  function showMore(): void {
    rowsMax += ROWS;
    update();
  }

  function showOnly(which: Show): void {
    show = which;
    update();
  }

  function showMatching(text: string): void {
    filter = text.trim().toLowerCase();
    update();
  }

  function clear(): void {
    selected.clear();
    update();
  }

  function head(): HTMLElement {
    const cells = COLUMNS.map((column) =>
      h(
        'th',
        {
          scope: 'col',
          class: `${column.class ?? ''} col-${column.name}`,
          'data-column': column.name,
        },
        h(
          'button',
          {
            type: 'button',
            class: 'sort',
            onClick: () => {
              const same = order.column === column;
              order = { column, descending: same ? !order.descending : column.name !== 'state' };
              update();
            },
          },
          column.title,
        ),
      ),
    );
    return h(
      'thead',
      {},
      h(
        'tr',
        {},
        h('th', { scope: 'col', class: 'col-select' }, h('span', { class: 'hidden' }, 'Select')),
        ...cells,
      ),
    );
  }

  function chosen(): RunSummary[] {
    const wanted = runsNewestFirst().filter((run) => {
      if (show !== 'all' && isActive(run) !== (show === 'active')) return false;
      return (
        filter === '' || [run.id, run.experiment, run.phase].some((text) => text.includes(filter))
      );
    });
    const { key } = order.column;
    const sign = order.descending ? -1 : 1;
    return wanted.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
      return x < y ? -sign : x > y ? sign : 0;
    });
  }

  function update(): void {
    const all = [...state.runs.values()];
    list.hidden = all.length === 0;
    empty.hidden = all.length > 0 || state.link === 'connecting';
    const active = all.filter(isActive);
    const workers = [...state.workers.values()].filter((worker) => worker.state !== 'gone');
    tiles.active.show(count(active.length), `of ${plural(all.length, 'run')}`);
    tiles.workers.show(
      count(workers.length),
      plural(workers.filter((w) => w.state === 'idle').length, 'idle', 'idle'),
    );
    tiles.speed.show(
      count(active.reduce((sum, run) => sum + (run.examplesPerSecond ?? 0), 0)),
      'examples a second',
    );
    for (const chip of chips)
      setAttribute(chip, 'aria-pressed', String(chip.dataset.show === show));
    for (const cell of table.querySelectorAll<HTMLElement>('th[data-column]')) {
      const mine = cell.dataset.column === order.column.name;
      setAttribute(
        cell,
        'aria-sort',
        mine ? (order.descending ? 'descending' : 'ascending') : null,
      );
    }
    const wanted = chosen();
    const shown = wanted.slice(0, rowsMax);
    const elements = shown.map((run) => {
      let row = rows.get(run.id);
      if (!row) {
        row = new Row(run.id, update);
        rows.set(run.id, row);
      }
      row.show(run);
      return row.element;
    });
    arrange(body, elements);
    none.hidden = wanted.length > 0;
    scroll.hidden = wanted.length === 0;
    more.hidden = wanted.length <= rowsMax;
    for (const id of selected) if (!state.runs.has(id) && knowsAllRuns()) selected.delete(id);
    compare.hidden = selected.size === 0;
    setText(compareText, `${plural(selected.size, 'run')} selected`);
  }

  update();
  return { title: 'Runs', element, update };
}

class Row {
  readonly element: HTMLElement;
  readonly #box: HTMLInputElement;
  readonly #cells: Record<string, HTMLElement> = {};
  #text = '';

  constructor(id: string, onSelect: () => void) {
    this.#box = h('input', {
      type: 'checkbox',
      'aria-label': `Select ${id}`,
      onChange: () => {
        if (this.#box.checked) selected.add(id);
        else selected.delete(id);
        onSelect();
      },
    });
    for (const column of COLUMNS) {
      this.#cells[column.name] = h('td', { class: `${column.class ?? ''} col-${column.name}` });
    }
    this.element = h(
      'tr',
      { 'data-run': id },
      h('td', { class: 'col-select' }, this.#box),
      ...Object.values(this.#cells),
    );
  }

  show(run: RunSummary): void {
    this.#box.checked = selected.has(run.id);
    // Times ago go on by themselves, so they are looked at too.
    const text = JSON.stringify([run, ago(run.createdAt)]);
    if (text === this.#text) return;
    this.#text = text;
    const {
      run: name,
      state: phase,
      step,
      loss,
      best,
      speed,
      time,
    } = this.#cells as Record<string, HTMLElement>;
    if (!name!.firstChild) {
      fill(
        name!,
        h('a', { class: 'run-name', href: `#/runs/${run.id}` }, run.id),
        h('span', { class: 'sub' }),
      );
    }
    const trial = run.study === null ? '' : ` · trial of ${run.study}`;
    setText(name!.querySelector('.sub')!, `${run.experiment}${trial} · ${ago(run.createdAt)}`);
    fill(phase!, badge(run.phase));
    const share = run.stepsMax ? Math.min(1, run.step / run.stepsMax) : null;
    fill(
      step!,
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
      h('span', { class: 'sub' }, `epoch ${count(run.epoch)}`),
    );
    fill(
      loss!,
      h(
        'span',
        { class: 'loss' },
        sparkline(run.sparkline),
        h('span', {}, short(run.trainingLoss)),
      ),
    );
    fill(
      best!,
      run.best
        ? h(
            'span',
            {},
            run.best.error === null ? short(run.best.loss) : errorOf(run)(run.best.error),
          )
        : '–',
      run.best &&
        h('span', { class: 'sub' }, `loss ${short(run.best.loss)} at ${count(run.best.step)}`),
    );
    fill(
      speed!,
      run.examplesPerSecond ? `${count(run.examplesPerSecond)}/s` : '–',
      isActive(run) && h('span', { class: 'sub' }, plural(run.workers, 'worker')),
    );
    fill(
      time!,
      duration(run.seconds),
      run.secondsLeft !== null &&
        h('span', { class: 'sub' }, `${duration(run.secondsLeft)} left at most`),
    );
  }
}
