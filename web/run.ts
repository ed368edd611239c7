import type { Metrics, RunDetail, RunSummary } from '../shared/rest.ts';
import type { Chart } from './chart.ts';
import { cardsOf } from './figures.ts';
import { ago, count } from './format.ts';
import { fill, fillNew, h, setText } from './html.ts';
import { observationsCards } from './observations.ts';
import { badge, card, emptyState, isActive, type View } from './parts.ts';
import { actionsOf, fork, reportButton } from './run/actions.ts';
import {
  checkpointTable,
  configurationOf,
  eventsOf,
  stoppingOf,
  workersHere,
  workersOf,
} from './run/cards.ts';
import { RunCharts } from './run/charts.ts';
import { labelsOf } from './run/labels.ts';
import { logOf } from './run/log.ts';
import { RunTiles } from './run/tiles.ts';
import { saveButtons } from './save.ts';
import { client, isOperator, knowsAllRuns, lookForRun, state } from './store.ts';
import { kindText } from './studies.ts';

/** One run: its curves, where its early stopping stands, its checkpoints, and what may be done with it. */

/** About as many as a plot has pixels on a wide screen. */
const POINTS = 600;
/** Between two readings of the curves while it trains. */
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
  readonly #configuration = h('div', {});
  readonly #examples = h('div', {});
  readonly #examplesCard = withClass(card('Predictions', this.#examples), 'full');
  readonly #log = h('div', {});
  readonly #looks = h('section', { class: 'card full', 'aria-label': 'Looks at this model' });
  readonly #sampling = samplingCard();
  readonly #page: HTMLElement;
  readonly #missing: HTMLElement;

  #metrics: Metrics | null = null;
  #detail: RunDetail | null = null;
  /** What the curves show: step, phase and last evaluation of the run. */
  #seen = 'nothing';
  #readStep = -1;
  #readAt = Number.NEGATIVE_INFINITY;
  #isReading = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isDrawn = false;
  #isLookedFor = false;
  #isEnded = false;
  #isObserving = false;
  #observedAt = Number.NEGATIVE_INFINITY;
  #observedStep = -1;
  #observedPhase = '';
  #looksVersion = -1;
  #examplesStep: number | null = null;
  #logStamp = '';
  #logAt = Number.NEGATIVE_INFINITY;
  #shownCheckpoint: string | null | undefined;

  constructor(id: string) {
    this.title = id;
    setText(this.#name, id);
    this.#looks.hidden = true;
    this.#examplesCard.hidden = true;
    this.#page = this.#build();
    this.#missing = emptyState(
      'No such run',
      `This server has no run '${id}'. It may be on another server, or its state folder was changed.`,
    );
    this.#missing.hidden = true;
    this.element = h('div', {}, this.#page, this.#missing);
    this.update();
    void this.#read();
  }

  update(): void {
    const run = state.runs.get(this.title);
    this.#missing.hidden = run !== undefined || !knowsAllRuns();
    this.#page.hidden = !this.#missing.hidden;
    if (!run) {
      if (state.link === 'live' && !this.#isLookedFor) void lookForRun(this.title);
      this.#isLookedFor ||= state.link === 'live';
      return;
    }
    this.#show(run);
    // The curves may have come before the facts.
    if (!this.#isDrawn) this.#draw();
    if (stampOf(run) !== this.#seen) void this.#read();
    if (run.checkpoint?.file !== this.#shownCheckpoint) {
      this.#shownCheckpoint = run.checkpoint?.file ?? null;
      void this.#readCheckpoints(run);
    }
    // A group may be trained from this step on.
    const thaws = this.#detail?.groups?.some(
      ({ frozen, trainedFrom }) => frozen && trainedFrom !== null && run.step >= trainedFrom,
    );
    if (!this.#detail || thaws) void this.#readDetail();
    void this.#readObservations(run);
    void this.#readLooks();
    void this.#readExamples(run);
    void this.#readLog(run);
  }

  destroy(): void {
    this.#isEnded = true;
    clearTimeout(this.#timer);
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
      h('dl', { class: 'tiles' }, ...this.#tiles.elements),
      h(
        'div',
        { class: 'cards' },
        withClass(chartCard(loss, this.#charts.logarithmic.element), 'wide'),
        withClass(card('Early stopping', this.#stopping), 'narrow'),
        ...[error, rate, norm, speed, staleness].map((chart) => chartCard(chart)),
        this.#examplesCard,
        ...this.#observations.plots,
        card('Checkpoints', this.#checkpoints),
        ...this.#observations.tables,
        this.#sampling,
        this.#looks,
        withClass(card('Workers of this run', this.#workers), 'full'),
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
    const happened = eventsOf(run);
    fillNew(this.#events, [run.rollbacks, run.stepsLost], () => [
      happened && card('What happened', happened),
    ]);
    this.#events.hidden = happened === null;
  }

  #draw(): void {
    const run = state.runs.get(this.title);
    if (!this.#metrics || !run) return;
    this.#isDrawn = true;
    this.#charts.show(run, this.#metrics);
    this.element.dataset.step = String(this.#readStep);
  }

  /** Curves are asked for when there is something new, and not more often than every two seconds. */
  async #read(): Promise<void> {
    const run = state.runs.get(this.title);
    const stamp = run ? stampOf(run) : '';
    if (this.#isReading || this.#isEnded) return;
    const wait = this.#readAt + READ_MS - performance.now();
    if (wait > 0) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.update(), wait);
      return;
    }
    this.#isReading = true;
    this.#readAt = performance.now();
    try {
      this.#metrics = await client.metrics(this.title, POINTS);
      this.#seen = stamp;
      this.#readStep = run?.step ?? -1;
      if (!this.#isEnded) this.#draw();
    } catch {
      // The link's state is shown above; the next update asks again.
    } finally {
      this.#isReading = false;
    }
  }

  /** Samples are large, and new ones come seldom. */
  async #readObservations(run: RunSummary): Promise<void> {
    const every = this.#detail?.config.observe.everySteps;
    if (this.#detail) this.#sampling.hidden = every !== null;
    const isDue = run.step >= this.#observedStep + (every ?? 0) || !isActive(run);
    const isKnown = this.#observedPhase === `${run.phase} ${run.step}`;
    if (every == null || this.#isObserving || !isDue || isKnown) return;
    const wait = this.#observedAt + OBSERVE_MS - performance.now();
    if (wait > 0 && isActive(run)) return;
    this.#isObserving = true;
    this.#observedAt = performance.now();
    try {
      const observed = await client.observations(this.title);
      this.#observedPhase = `${run.phase} ${run.step}`;
      this.#observedStep = observed.samples.at(-1)?.step ?? 0;
      if (!this.#isEnded) this.#observations.show(observed);
    } catch {
      // As with the curves.
    } finally {
      this.#isObserving = false;
    }
  }

  async #readLooks(): Promise<void> {
    const version = state.server?.studiesVersion ?? -1;
    if (version === this.#looksVersion) return;
    this.#looksVersion = version;
    const studies = await client.studies().catch(() => []);
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
    fill(this.#looks, h('h2', {}, 'Looks at this model'), h('ul', { class: 'plain' }, ...items));
  }

  /** They are new with each evaluation of the validation part. */
  async #readExamples({ validation }: RunSummary): Promise<void> {
    const step = validation?.step ?? null;
    if (step === null || step === this.#examplesStep) return;
    this.#examplesStep = step;
    const found = await client.examples(this.title).catch(() => null);
    if (!found || this.#isEnded) return;
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

  /** When something may have happened to the run, and not more often than its curves. */
  async #readLog(run: RunSummary): Promise<void> {
    const { phase, validation, workers, rollbacks, checkpoint } = run;
    const facts = [phase, validation?.step, workers, rollbacks.length, checkpoint?.file];
    const stamp = JSON.stringify(facts);
    const now = performance.now();
    if (stamp === this.#logStamp || now - this.#logAt < READ_MS) return;
    this.#logStamp = stamp;
    this.#logAt = now;
    // A server of an older release has none.
    const found = await client.runLog(this.title).catch(() => null);
    if (!found || this.#isEnded) return;
    fillNew(this.#log, found, () => [logOf(this.title, found)]);
  }

  async #readDetail(): Promise<void> {
    this.#detail = await client.run(this.title).catch(() => null);
    if (this.#detail) fill(this.#configuration, configurationOf(this.#detail));
  }

  async #readCheckpoints(run: RunSummary): Promise<void> {
    const list = await client.checkpoints(this.title).catch(() => null);
    if (!list || this.#isEnded) return;
    fill(
      this.#checkpoints,
      checkpointTable(run.id, list, () => fork(run)),
    );
  }
}

/** What new curves would show. */
const stampOf = ({ step, phase, validation }: RunSummary) => `${step} ${phase} ${validation?.step}`;

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
