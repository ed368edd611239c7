import type { StudyDetail, StudySummary } from '../shared/rest.ts';
import { BASE } from './base.ts';
import { type FigureView, figureOf } from './figures.ts';
import { ago, count, plural } from './format.ts';
import { fillNew, h, patch, setText } from './html.ts';
import { badge, card, confirm, emptyState, notify, tableElement, type View } from './parts.ts';
import { selected } from './runs.ts';
import { client, isOperator, state } from './store.ts';
import { ViewQueries } from './view-queries.ts';

/** Studies and looks at models: what commands told the server of what they found. */

/** What each kind of study asks. Others are called as they call themselves. */
const KINDS: Readonly<Record<string, string>> = {
  lr: 'learning rate',
  curve: 'data size',
  stopping: 'early stopping',
  ablate: 'ablation',
  look: 'look at the model',
  refuse: 'refusing to answer',
};
export const kindText = (kind: string) => KINDS[kind] ?? kind;

export function studiesView(): View {
  const list = h('div', { class: 'section card' });
  const empty = emptyState(
    'No studies yet',
    'Searches, learning-rate tests, folds and inspections of a trained model appear here as soon as they start on this server:',
    `npx downpour search my.ts --server ${BASE}`,
  );
  const queries = new ViewQueries();
  const element = h('div', {}, h('h1', {}, 'Studies'), queries.problem, list, empty);
  list.hidden = true;
  empty.hidden = true;
  const studies = queries.of({
    what: 'the studies',
    read: () => client.studies(),
    show: (found) => {
      empty.hidden = found.length > 0;
      list.hidden = found.length === 0;
      patch(list, [studyTable(found)]);
    },
  });
  const update = () => studies.want(studiesStamp());
  update();
  return { title: 'Studies', element, update, destroy: () => queries.end() };
}

/** Another one when something was told of a study. */
export const studiesStamp = () => String(state.server?.studiesVersion ?? 'none yet');

const progressText = ({ trials }: StudySummary) =>
  trials === null ? '–' : `${count(trials.ended)} of ${count(trials.of)}`;

function studyTable(studies: readonly StudySummary[]): HTMLElement {
  const rows = studies.map((study) =>
    h(
      'tr',
      { 'data-study': study.name },
      h(
        'td',
        {},
        h('a', { class: 'run-name', href: `#/studies/${study.name}` }, study.name),
        h('span', { class: 'sub' }, study.title),
      ),
      h('td', { class: 'col-kind' }, kindText(study.kind)),
      h('td', {}, badge(study.state)),
      h('td', { class: 'col-experiment' }, study.experiment),
      h('td', { class: 'number' }, progressText(study)),
      h('td', { class: 'col-time', title: study.updatedAt }, ago(study.updatedAt)),
    ),
  );
  const headings = ['Study', 'Kind', 'State', 'Experiment', 'Trials', 'Updated'];
  const classes = ['', 'col-kind', '', 'col-experiment', 'number', 'col-time'];
  const table = tableElement('Studies', headings, rows, classes);
  table.classList.add('studies');
  return table;
}

export function studyView(name: string): View {
  return new StudyView(name);
}

class StudyView implements View {
  readonly title: string;
  readonly element: HTMLElement;
  readonly #phase = h('span', {});
  readonly #words = h('p', { class: 'reason' });
  readonly #actions = h('div', { class: 'buttons' });
  readonly #facts = h('p', { class: 'muted' });
  readonly #advice = h('div', { class: 'section' });
  readonly #figures = h('div', { class: 'cards' });
  readonly #table = h('div', { class: 'section' });
  readonly #page: HTMLElement;
  readonly #missing: HTMLElement;
  readonly #queries = new ViewQueries();
  readonly #study = this.#queries.of({
    what: 'this study',
    read: () => client.study(this.title),
    show: (study) => this.#show(study),
    absent: () => {
      this.#missing.hidden = false;
      this.#page.hidden = true;
    },
  });
  #shown: FigureView[] = [];

  constructor(name: string) {
    this.title = name;
    this.#missing = emptyState('No such study', `This server knows no study '${name}'.`);
    const studies = h('a', { href: '#/studies' }, 'Studies');
    this.#page = h(
      'div',
      {},
      h('nav', { class: 'crumbs', 'aria-label': 'Breadcrumb' }, studies, ' / '),
      h('div', { class: 'headline' }, h('h1', {}, name), this.#phase, this.#actions),
      ...[
        this.#queries.problem,
        this.#words,
        this.#facts,
        this.#advice,
        this.#figures,
        this.#table,
      ],
    );
    this.#missing.hidden = true;
    this.element = h('div', {}, this.#page, this.#missing);
    this.update();
  }

  update(): void {
    this.#study.want(studiesStamp());
  }

  destroy(): void {
    this.#queries.end();
    for (const each of this.#shown) each.destroy();
  }

  #show(study: StudyDetail): void {
    this.#missing.hidden = true;
    this.#page.hidden = false;
    fillNew(this.#phase, study.state, () => [badge(study.state)]);
    setText(this.#words, study.title);
    patch(this.#facts, factsOf(study));
    fillNew(this.#actions, [isOperator(), study.runs], () => this.#buttons(study));
    fillNew(this.#advice, study.advice, () =>
      study.advice === '' ? [] : [card('What follows', h('p', {}, ...wordsOf(study.advice)))],
    );
    fillNew(this.#figures, study.figures, () => this.#draw(study.figures));
    this.#figures.hidden = study.figures.length === 0;
    patch(this.#table, [study.rows.length > 0 && card('Results', resultsOf(study))]);
  }

  #draw(figures: StudyDetail['figures']): HTMLElement[] {
    for (const each of this.#shown) each.destroy();
    this.#shown = figures.map(figureOf);
    return figures.map((figure, i) => {
      const { element: picture, tools, wide } = this.#shown[i]!;
      const buttons = tools && h('div', { class: 'card-tools' }, tools);
      const frame = card(figure.title, buttons, picture);
      if (wide) frame.classList.add('full');
      frame.dataset.figure = figure.kind;
      return frame;
    });
  }

  #buttons(study: StudyDetail): (HTMLElement | false)[] {
    const known = study.runs.filter((id) => state.runs.has(id));
    return [
      known.length > 1 &&
        h(
          'a',
          {
            class: 'button',
            href: '#/compare',
            onClick: () => {
              selected.clear();
              for (const id of known) selected.add(id);
            },
          },
          'Compare its runs',
        ),
      isOperator() &&
        h(
          'button',
          {
            ...{ class: 'button danger', type: 'button' },
            onClick: () => void removeStudy(this.title),
          },
          'Remove',
        ),
    ];
  }
}

async function removeStudy(name: string): Promise<void> {
  const sure = await confirm(
    `Remove ${name}?`,
    'What it found goes from this server. Its runs stay, and so do the files that the command wrote.',
    'Remove the study',
  );
  if (!sure) return;
  try {
    await client.removeStudy(name);
    location.hash = '#/studies';
  } catch (error) {
    notify((error as Error).message, 'error');
  }
}

function factsOf(study: StudyDetail): (Node | string | false)[] {
  const { kind, experiment, run, trials, updatedAt, omitted } = study;
  return [
    `${kindText(kind)} of ${experiment}`,
    trials !== null && ` · ${progressText(study)} trials ended`,
    run !== null && ' · run ',
    run !== null && h('a', { href: `#/runs/${run}` }, run),
    ` · told ${ago(updatedAt)}`,
    omitted > 0 &&
      ` · ${plural(omitted, 'row or figure', 'rows and figures')} left out here: the command's own files have them`,
  ];
}

/** What stands between backticks is code. */
const wordsOf = (text: string) =>
  text.split('`').map((part, i) => (i % 2 === 1 ? h('code', {}, part) : part));

/** Cells that are names of runs lead there; columns of numbers stand to the right. */
function resultsOf({ headings, rows }: StudyDetail): HTMLElement {
  const isNumber = headings.map((_, i) =>
    rows.every((row) => /^[−+-]?[\d.,]+(e[-+]?\d+)?( %)?$|^–$|^$/.test(row[i] ?? '')),
  );
  const body = rows.map((row) =>
    h(
      'tr',
      {},
      ...row.map((text, i) =>
        h(
          'td',
          { class: isNumber[i] ? 'number' : '' },
          state.runs.has(text)
            ? h('a', { class: 'run-name inline', href: `#/runs/${text}` }, text)
            : text,
        ),
      ),
    ),
  );
  const classes = isNumber.map((number) => (number ? 'number' : ''));
  return tableElement('Results', headings, body, classes);
}
