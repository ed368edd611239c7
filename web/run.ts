import type {
  CheckpointSummary,
  Metrics,
  RunDetail,
  RunExamples,
  RunSummary,
  StudySummary,
} from '../shared/rest.ts';
import type { Chart } from './chart.ts';
import { cardsOf } from './figures.ts';
import { ago, count } from './format.ts';
import { fillNew, h, patch, setText } from './html.ts';
import { observationsCards } from './observations.ts';
import { badge, card, emptyState, isActive, type View } from './parts.ts';
import { actionsOf, fork, reportButton } from './run/actions.ts';
import {
  checkpointTable,
  configurationOf,
  eventsOf,
  stoppingOf,
  tableCard,
  workersHere,
  workersOf,
} from './run/cards.ts';
import { namesOfMetrics, RunCharts } from './run/charts.ts';
import { labelsOf } from './run/labels.ts';
import { logOf } from './run/log.ts';
import { RunTiles } from './run/tiles.ts';
import { saveButtons } from './save.ts';
import { addRun, client, isOperator, knowsAllRuns, state } from './store.ts';
import { kindText, studiesStamp } from './studies.ts';
import { ViewQueries } from './view-queries.ts';

/** One run: its curves, where its early stopping stands, its checkpoints, and what may be done with it. */

/** About as many as a plot has pixels on a wide screen. */
const POINTS = 600;
/** Between two queries of the curves while it trains. */
const READ_MS = 2_000;
/** The same of samples, which are large. */
const OBSERVE_MS = 10_000;

export function runView(id: string): View {
  return new RunScreen(id);
}

class RunScreen implements View {
  readonly title: string;
  readonly element: HTMLElement;
  readonly #charts = new RunCharts();
  readonly #tiles = new RunTiles();
  readonly #observations = observationsCards();
  readonly #phase = h('span', {});
  readonly #name = h('h1', {});
  readonly #labels = h('div', {});
  readonly #reason = h('p', { class: 'reason' });
  readonly #actions = h('div', { class: 'buttons' });
  readonly #stopping = h('div', {});
  readonly #checkpoints = h('div', {});
  readonly #workers = h('div', {});
  readonly #events = h('div', {});
  readonly #tables = h('div', {});
  readonly #configuration = h('div', {});
  readonly #examples = h('div', {});
  readonly #examplesCard = withClass(card('Predictions', this.#examples), 'full');
  readonly #log = h('div', {});
  readonly #looks = h('section', { class: 'card full', 'aria-label': 'Looks at this model' });
  readonly #sampling = samplingCard();
  readonly #metricsCard = chartCard(this.#charts.metrics);
  readonly #page: HTMLElement;
  readonly #missing: HTMLElement;

  readonly #queries = new ViewQueries();
  #metrics: Metrics | null = null;
  #detail: RunDetail | null = null;
  #readStep = -1;
  #isDrawn = false;
  #observedStep = -1;

  /** One that the feed has not come to yet. */
  readonly #facts = this.#queries.of({
    what: 'this run',
    read: () => client.run(this.title),
    show: addRun,
  });
  readonly #curves = this.#queries.of({
    what: 'the curves',
    read: async () => {
      const step = state.runs.get(this.title)?.step ?? -1;
      return { step, metrics: await client.metrics(this.title, POINTS) };
    },
    show: ({ step, metrics }) => {
      this.#metrics = metrics;
      this.#readStep = step;
      this.#draw();
    },
  });
  readonly #details = this.#queries.of({
    what: 'the configuration',
    read: () => client.run(this.title),
    show: (detail) => {
      this.#detail = detail;
      patch(this.#configuration, [configurationOf(detail)]);
      this.update();
    },
  });
  readonly #list = this.#queries.of({
    what: 'the checkpoints',
    read: () => client.checkpoints(this.title),
    show: (list) => {
      const beginWith = (checkpoint: CheckpointSummary) => {
        const run = state.runs.get(this.title);
        if (run) void fork(run)(checkpoint);
      };
      patch(this.#checkpoints, [checkpointTable(this.title, list, beginWith)]);
    },
  });
  readonly #observed = this.#queries.of({
    what: 'the samples',
    read: () => client.observations(this.title),
    show: (observed) => {
      this.#observedStep = observed.samples.at(-1)?.step ?? 0;
      this.#observations.show(observed);
    },
  });
  readonly #studies = this.#queries.of({
    what: 'the looks at this model',
    read: () => client.studies(),
    show: (studies) => this.#showLooks(studies),
  });
  readonly #predicted = this.#queries.of({
    what: 'the predictions',
    read: () => client.examples(this.title),
    show: (found) => this.#showExamples(found),
  });
  readonly #lines = this.#queries.of({
    what: 'the log',
    read: () => client.runLog(this.title),
    show: (found) => patch(this.#log, [logOf(this.title, found)]),
  });

  constructor(id: string) {
    this.title = id;
    setText(this.#name, id);
    this.#looks.hidden = true;
    this.#examplesCard.hidden = true;
    this.#metricsCard.hidden = true;
    this.#page = this.#build();
    this.#missing = emptyState(
      'No such run',
      `This server has no run '${id}'. It may be on another server, or its state folder was changed.`,
    );
    this.#missing.hidden = true;
    this.element = h('div', {}, this.#page, this.#missing);
    this.#curves.want('', READ_MS);
    this.update();
  }

  update(): void {
    const run = state.runs.get(this.title);
    this.#missing.hidden = run !== undefined || !knowsAllRuns();
    this.#page.hidden = !this.#missing.hidden;
    if (!run) {
      if (state.link === 'live' && !knowsAllRuns()) this.#facts.want('');
      return;
    }
    this.#show(run);
    // The curves may have come before the facts.
    if (!this.#isDrawn) this.#draw();
    this.#curves.want(`${run.step} ${run.phase} ${run.validation?.step}`, READ_MS);
    this.#list.want(String(run.checkpoint?.file));
    // A group may be trained from this step on.
    const thawed = (this.#detail?.groups ?? []).filter(
      ({ trainedFrom }) => trainedFrom !== null && run.step >= trainedFrom,
    );
    this.#details.want(String(thawed.length));
    this.#wantObservations(run);
    this.#studies.want(studiesStamp());
    // They are new with each evaluation of the validation part.
    if (run.validation) this.#predicted.want(String(run.validation.step));
    // When something may have happened to the run, and not more often than its curves.
    const { phase, validation, workers, rollbacks, checkpoint } = run;
    const facts = [phase, validation?.step, workers, rollbacks.length, checkpoint?.file];
    this.#lines.want(JSON.stringify(facts), READ_MS);
  }

  destroy(): void {
    this.#queries.end();
    this.#charts.destroy();
    this.#observations.destroy();
  }

  #build(): HTMLElement {
    const { loss, error, rate, norm, speed, staleness } = this.#charts;
    const runs = h('a', { href: '#/' }, 'Runs');
    return h(
      'div',
      {},
      h('nav', { class: 'crumbs', 'aria-label': 'Breadcrumb' }, runs, ' / '),
      h('div', { class: 'headline' }, this.#name, this.#phase, this.#actions),
      this.#labels,
      this.#reason,
      this.#queries.problem,
      h('dl', { class: 'tiles' }, ...this.#tiles.elements),
      h(
        'div',
        { class: 'cards' },
        withClass(chartCard(loss, this.#charts.logarithmic.element), 'wide'),
        withClass(card('Early stopping', this.#stopping), 'narrow'),
        chartCard(error),
        this.#metricsCard,
        ...[rate, norm, speed, staleness].map((chart) => chartCard(chart)),
        this.#examplesCard,
        ...this.#observations.plots,
        card('Checkpoints', this.#checkpoints),
        ...this.#observations.tables,
        this.#sampling,
        this.#looks,
        withClass(card('Workers of this run', this.#workers), 'full'),
        this.#tables,
        this.#events,
        withClass(card('Log', this.#log), 'full'),
        withClass(card('Configuration', this.#configuration), 'full'),
      ),
    );
  }

  #show(run: RunSummary): void {
    fillNew(this.#phase, run.phase, () => [badge(run.phase)]);
    setText(this.#reason, run.reason);
    setText(this.#name, run.name ?? run.id);
    const labels = [isOperator(), run.name, run.tags, run.note, run.archived];
    fillNew(this.#labels, labels, () => labelsOf(run, isOperator() && run.tags !== undefined));
    fillNew(this.#actions, [isOperator(), run.phase, run.archived], () => [
      ...(isOperator() ? actionsOf(run) : []),
      reportButton(run.id),
    ]);
    this.#tiles.show(run);
    const { earlyStopping, test, best } = run;
    // Before the configuration is known, as most runs have it.
    const tests = (this.#detail?.config.testAtEnd ?? true) && run.data?.testCount !== 0;
    const stopping = [run.phase, run.stepsMax, earlyStopping, best, test, tests];
    fillNew(this.#stopping, stopping, () => [stoppingOf(run, tests)]);
    const mine = workersHere(run);
    fillNew(this.#workers, [run.phase, mine], () => [workersOf(run, mine)]);
    const tables = tableCard(run);
    fillNew(this.#tables, [run.tables, run.pushes.applied], () => [
      tables && card('Tables', tables),
    ]);
    this.#tables.hidden = tables === null;
    const happened = eventsOf(run);
    fillNew(this.#events, [run.rollbacks, run.stepsLost, run.workerFailure], () => [
      happened && card('What happened', happened),
    ]);
    this.#events.hidden = happened === null;
  }

  #draw(): void {
    const run = state.runs.get(this.title);
    if (!this.#metrics || !run) return;
    this.#isDrawn = true;
    this.#charts.show(run, this.#metrics);
    this.#metricsCard.hidden = namesOfMetrics(this.#metrics.evaluations).length === 0;
    this.element.dataset.step = String(this.#readStep);
  }

  /** Samples are large, and new ones come seldom. */
  #wantObservations(run: RunSummary): void {
    const every = this.#detail?.config.observe.everySteps;
    if (this.#detail) this.#sampling.hidden = every !== null;
    const isDue = run.step >= this.#observedStep + (every ?? 0) || !isActive(run);
    if (every == null || !isDue) return;
    this.#observed.want(`${run.phase} ${run.step}`, isActive(run) ? OBSERVE_MS : 0);
  }

  #showLooks(studies: readonly StudySummary[]): void {
    const mine = studies.filter(({ run }) => run === this.title);
    this.#looks.hidden = mine.length === 0;
    const items = mine.map(({ name, kind, title, updatedAt }) =>
      h(
        'li',
        {},
        h('a', { href: `#/studies/${name}` }, title),
        h('span', { class: 'sub' }, `${kindText(kind)}, ${ago(updatedAt)}`),
      ),
    );
    patch(this.#looks, [h('h2', {}, 'Looks at this model'), h('ul', { class: 'plain' }, ...items)]);
  }

  #showExamples(found: RunExamples): void {
    this.#examplesCard.hidden = found.examples.length === 0;
    fillNew(this.#examples, found, () => [
      h(
        'p',
        { class: 'muted' },
        `Examples of the validation part at step ${count(found.step ?? 0)}; wrong answers have a frame.`,
      ),
      cardsOf('Predictions', found.examples),
    ]);
  }
}

/** In the place of samples, where a run has none. */
function samplingCard(): HTMLElement {
  const option = h('code', {}, '--set observe.everySteps=100');
  const text = h(
    'p',
    { class: 'muted' },
    'Of this run nothing is sampled. A run with ',
    option,
    ' shows here how large its updates are, which units are dead or saturated, and histograms of parameters, gradients and activations over time.',
  );
  const sampling = withClass(card('Inside the model', text), 'full');
  sampling.hidden = true;
  return sampling;
}

function chartCard(chart: Chart, ...more: HTMLElement[]): HTMLElement {
  const tools = h('div', { class: 'card-tools' }, ...more, saveButtons(chart));
  return card(chart.title, tools, chart.element);
}

function withClass(element: HTMLElement, name: string): HTMLElement {
  element.classList.add(name);
  return element;
}
