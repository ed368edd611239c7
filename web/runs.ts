import type { RunSummary } from '../shared/rest.ts';
import { count, plural } from './format.ts';
import { arrange, fill, fillNew, h, setAttribute, setText } from './html.ts';
import { emptyState, isActive, notify, Tile, type View } from './parts.ts';
import {
  COLUMNS,
  METRICS_FIRST,
  metricColumn,
  metricNamesOfRuns,
  type RunColumn,
} from './runs/columns.ts';
import { type ListLine, listLines, type Show } from './runs/fold.ts';
import { Row } from './runs/rows.ts';
import { client, isOperator, knowsAllRuns, runsNewestFirst, state } from './store.ts';

/** All runs: what each is doing, and which are to be compared. */

const SHOWS: readonly (readonly [Show, string])[] = [
  ['all', 'All'],
  ['active', 'Active'],
  ['ended', 'Ended'],
  ['archived', 'Archived'],
];
/** Rows at first; a search may leave thousands of runs. */
const ROWS = 200;

/** What is chosen outlives the page: from runs to their comparison and back. */
export const selected = new Set<string>();
/** Studies whose trials are listed, the same. */
const open = new Set<string>();
/** Metrics that have a column; null: the first ones. */
let chosenMetrics: Set<string> | null = null;

export function runsView(): View {
  return new RunsView();
}

class RunsView implements View {
  readonly title = 'Runs';
  readonly element: HTMLElement;
  #filter = '';
  #show: Show = 'all';
  #order: { readonly column: string; readonly descending: boolean } = {
    ...{ column: 'run', descending: true },
  };
  #rowsMax = ROWS;
  #columns: readonly RunColumn[] = [];
  readonly #rows = new Map<string, Row>();

  readonly #tiles = {
    active: new Tile('Active runs'),
    workers: new Tile('Workers'),
    speed: new Tile('Throughput'),
  };
  readonly #head = h('tr');
  readonly #body = h('tbody');
  readonly #scroll: HTMLElement;
  readonly #none = h('p', { class: 'none' }, 'No run matches.');
  readonly #more: HTMLElement;
  readonly #chips: readonly HTMLElement[];
  readonly #search: HTMLInputElement;
  readonly #metrics = h('div', {});
  readonly #compareText = h('span', {});
  readonly #selection: HTMLElement;
  readonly #archive: HTMLElement;
  readonly #list: HTMLElement;
  readonly #empty = emptyState(
    'No runs yet',
    'A run appears here as soon as it is created. To train on handwritten digits:',
    'npx downpour train examples/mnist-mlp.ts',
  );

  constructor() {
    this.#scroll = this.#table();
    this.#more = button('button', 'Show more', () => {
      this.#rowsMax += ROWS;
      this.update();
    });
    this.#search = h('input', {
      ...{ type: 'search', 'aria-label': 'Filter runs' },
      placeholder: 'Filter by name, tag, note, experiment or state',
      onInput: () => this.#showMatching(this.#search.value),
    });
    this.#chips = SHOWS.map(([value, text]) =>
      h(
        'button',
        {
          ...{ type: 'button', class: 'chip', 'data-show': value },
          onClick: () => {
            this.#show = value;
            this.update();
          },
        },
        text,
      ),
    );
    this.#archive = button('button', 'Archive', () => void this.#archiveSelected());
    this.#selection = this.#selectionBar();
    this.#list = this.#build();
    this.element = h('div', {}, h('h1', {}, 'Runs'), this.#list, this.#empty);
    this.update();
  }

  update(): void {
    const all = runsNewestFirst();
    this.#list.hidden = all.length === 0;
    this.#empty.hidden = all.length > 0 || state.link === 'connecting';
    this.#showTiles(all);
    for (const chip of this.#chips) {
      setAttribute(chip, 'aria-pressed', String(chip.dataset.show === this.#show));
    }
    this.#showColumns(all);
    const column = this.#columns.find(({ name }) => name === this.#order.column) ?? COLUMNS[0]!;
    const { descending } = this.#order;
    const wanted = { column, descending, filter: this.#filter, show: this.#show, open, isActive };
    const lines = listLines(all, wanted);
    arrange(
      this.#body,
      lines.slice(0, this.#rowsMax).map((line) => this.#rowOf(line)),
    );
    this.#none.hidden = lines.length > 0;
    this.#scroll.hidden = lines.length === 0;
    this.#more.hidden = lines.length <= this.#rowsMax;
    for (const id of selected) if (!state.runs.has(id) && knowsAllRuns()) selected.delete(id);
    this.#selection.hidden = selected.size === 0;
    this.#archive.hidden = !isOperator() || !this.#archivable().length;
    setText(this.#archive, this.#show === 'archived' ? 'Take back' : 'Archive');
    setText(this.#compareText, `${plural(selected.size, 'run')} selected`);
  }

  #build(): HTMLElement {
    const { active, workers, speed } = this.#tiles;
    const tiles = h('dl', { class: 'tiles' }, active.element, workers.element, speed.element);
    const chips = { class: 'chips', role: 'group', 'aria-label': 'Which runs' };
    const tools = h(
      'div',
      { class: 'tools' },
      this.#search,
      h('div', chips, ...this.#chips),
      this.#metrics,
    );
    return h('div', {}, tiles, tools, this.#scroll, this.#none, this.#more, this.#selection);
  }

  #table(): HTMLElement {
    const caption = h('caption', { class: 'hidden' }, 'Runs');
    const table = h('table', { class: 'runs' }, caption, h('thead', {}, this.#head), this.#body);
    const region = { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Runs' };
    return h('div', region, table);
  }

  #selectionBar(): HTMLElement {
    return h(
      'div',
      { class: 'selection', role: 'region', 'aria-label': 'Selected runs' },
      this.#compareText,
      h('a', { class: 'button primary', href: '#/compare' }, 'Compare'),
      this.#archive,
      button('button', 'Clear', () => {
        selected.clear();
        this.update();
      }),
    );
  }

  #showMatching(text: string): void {
    this.#filter = text.trim().toLowerCase();
    this.update();
  }

  #showTiles(all: readonly RunSummary[]): void {
    const active = all.filter(isActive);
    const workers = [...state.workers.values()].filter((worker) => worker.state !== 'gone');
    this.#tiles.active.show(count(active.length), `of ${plural(all.length, 'run')}`);
    this.#tiles.workers.show(
      count(workers.length),
      plural(workers.filter((w) => w.state === 'idle').length, 'idle', 'idle'),
    );
    this.#tiles.speed.show(
      count(active.reduce((sum, run) => sum + (run.examplesPerSecond ?? 0), 0)),
      'examples a second',
    );
  }

  /** Columns of metrics are there where runs have such metrics. */
  #showColumns(all: readonly RunSummary[]): void {
    const names = metricNamesOfRuns(all);
    const isShown = (name: string, i: number) => chosenMetrics?.has(name) ?? i < METRICS_FIRST;
    const shown = names.filter(isShown);
    this.#columns = [...COLUMNS, ...shown.map(metricColumn)];
    fillNew(this.#metrics, [names, shown], () =>
      names.length === 0 ? [] : [this.#metricChoice(names, shown)],
    );
    const facts = [this.#columns.map(({ name }) => name), this.#order];
    fillNew(this.#head, facts, () => [
      h('th', { scope: 'col', class: 'col-select' }, h('span', { class: 'hidden' }, 'Select')),
      ...this.#columns.map((column) => this.#heading(column)),
    ]);
  }

  #heading({ name, title, class: kind = '' }: RunColumn): HTMLElement {
    const { column, descending } = this.#order;
    const order = column === name ? (descending ? 'descending' : 'ascending') : null;
    const sort = button('sort', title, () => {
      const isSame = this.#order.column === name;
      this.#order = {
        column: name,
        descending: isSame ? !this.#order.descending : name !== 'state',
      };
      this.update();
      this.#head.querySelector<HTMLElement>(`[data-column="${CSS.escape(name)}"] button`)?.focus();
    });
    return h(
      'th',
      { scope: 'col', class: `${kind} col-${name}`, 'data-column': name, 'aria-sort': order },
      sort,
    );
  }

  #metricChoice(names: readonly string[], shown: readonly string[]): HTMLElement {
    const boxes = names.map((name) => {
      const box = h('input', {
        type: 'checkbox',
        checked: shown.includes(name),
        onChange: () => {
          chosenMetrics ??= new Set(shown);
          if (box.checked) chosenMetrics.add(name);
          else chosenMetrics.delete(name);
          this.update();
          // The list is made anew, and stays open.
          this.#metrics.querySelector('details')!.open = true;
        },
      });
      return h('label', { class: 'check' }, box, h('span', {}, name));
    });
    return h(
      'details',
      { class: 'choice' },
      h('summary', {}, 'Metrics'),
      h('div', { class: 'choices' }, ...boxes),
    );
  }

  #rowOf(line: ListLine): HTMLElement {
    const key = line.kind === 'run' ? `run ${line.run.id}` : `study ${line.study}`;
    let row = this.#rows.get(key);
    if (!row) {
      row = new Row(line, {
        isSelected: (run) => selected.has(run),
        onSelect: (runs, on) => {
          for (const id of runs) {
            if (on) selected.add(id);
            else selected.delete(id);
          }
          this.update();
        },
        onOpen: (study) => {
          if (!open.delete(study)) open.add(study);
          this.update();
        },
        onTag: (tag) => {
          this.#search.value = tag;
          this.#showMatching(tag);
        },
      });
      this.#rows.set(key, row);
    }
    row.show(line, this.#columns);
    return row.element;
  }

  /** Selected runs that may be archived: those that are not at work. */
  #archivable(): RunSummary[] {
    return [...selected].flatMap((id) => {
      const run = state.runs.get(id);
      const isFit =
        run && !isActive(run) && (run.archived ?? false) === (this.#show === 'archived');
      return isFit ? [run] : [];
    });
  }

  async #archiveSelected(): Promise<void> {
    const archived = this.#show !== 'archived';
    const runs = this.#archivable();
    try {
      for (const { id } of runs) {
        await client.editRun(id, { archived });
        selected.delete(id);
      }
      notify(`${plural(runs.length, 'run')} ${archived ? 'archived' : 'taken back'}`);
    } catch (error) {
      notify((error as Error).message, 'error');
    }
    this.update();
  }
}

function button(kind: string, text: string, onClick: () => void): HTMLElement {
  const element = h('button', { type: 'button', class: kind, onClick });
  fill(element, text);
  return element;
}
