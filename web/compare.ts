import type { Metrics, RunDetail } from '../shared/rest.ts';
import { percent } from '../shared/text.ts';
import { Chart, type Curve } from './chart.ts';
import {
  curveOf,
  isLogByDefault,
  labelOfY,
  metricNames,
  metricY,
  type RunCurve,
  type X,
  XS,
  type Y,
  YS,
} from './compare/curves.ts';
import {
  type Compared,
  differences,
  type GroupBy,
  type RunGroup,
  runGroups,
} from './compare/groups.ts';
import { differencesTable, GROUPS_SHOWN, runHeadings, runRow } from './compare/tables.ts';
import { compact, duration, errorOf, plural, roundPercent } from './format.ts';
import { fillNew, h, setText } from './html.ts';
import { meanLine, smoothed, spansDecades } from './lines.ts';
import { card, emptyState, Select, slider, Toggle, type View } from './parts.ts';
import type { Query } from './queries.ts';
import { selected } from './runs.ts';
import { saveButtons } from './save.ts';
import { client, drawSoon, state } from './store.ts';
import { ViewQueries } from './view-queries.ts';

/** Curves of several runs on one plot: one for each run, or the mean of each group with its band. */

const GROUPS: readonly (readonly [GroupBy, string])[] = [
  ['configuration', 'Configuration, all seeds'],
  ['run', 'Nothing: each run'],
  ['study', 'Study'],
  ['tag', 'Tags'],
  ['experiment', 'Experiment'],
];
/** Rows of the table at first: a hundred take longer to lay out than to draw their curves. */
const ROWS_FIRST = 20;
/** How many are read at once, so that a hundred runs do not hold up the training. */
const READERS = 4;
const READ_MS = 3_000;
/** Places at which groups are averaged. */
const MEAN_POINTS = 400;

export function compareView(): View {
  return new CompareView([...selected]);
}

class CompareView implements View {
  readonly title = 'Compare';
  readonly element: HTMLElement;
  readonly #ids: readonly string[];
  readonly #metrics = new Map<string, Metrics>();
  readonly #details = new Map<string, RunDetail>();
  readonly #queries = new ViewQueries(READERS);
  readonly #ofRun = new Map<string, Query<[Metrics, RunDetail]>>();
  /** Curves for the axes that are shown: made when a run is read, not all of them in the frame that draws them. */
  readonly #chosen = new WeakMap<Metrics, { axes: string; curve: RunCurve }>();

  #y: Y = 'trainingLoss';
  #x: X = 'step';
  #by: GroupBy = 'configuration';
  #smoothing = 0;
  #xLog = false;
  /** Null: as the values suggest. */
  #yLog: boolean | null = null;
  #showsAll = false;
  /** Something was read that is not drawn yet. */
  #isNew = false;
  #drawnAt = performance.now();

  readonly #chart = new Chart('Comparison', { height: 420, empty: 'Reading the curves …' });
  readonly #progress = h('p', { class: 'muted', role: 'status' });
  readonly #note = h('p', { class: 'muted' });
  readonly #value = new Select('Value', YS, this.#y, (value) => {
    this.#y = value as Y;
    this.#draw();
  });
  readonly #logarithmic = new Toggle('Logarithmic y', false, (on) => {
    this.#yLog = on;
    this.#draw();
  });
  readonly #rows = h('tbody');
  readonly #more: HTMLElement;
  readonly #differences = h('div', {});

  constructor(ids: readonly string[]) {
    this.#ids = ids;
    const onClick = () => {
      this.#showsAll = true;
      this.update();
    };
    const words = `Show all ${ids.length} runs`;
    this.#more = h('button', { type: 'button', class: 'button', onClick }, words);
    this.element = this.#build();
    this.update();
  }

  update(): void {
    if (this.#ids.length === 0) return;
    this.#showTables();
    const { isReading } = this.#queries;
    const { size } = this.#metrics;
    const isSome = isReading && size > 0 && size < this.#ids.length;
    setText(this.#progress, isSome ? `${size} of ${plural(this.#ids.length, 'run')} read` : '');
    // All that was read is drawn at once: a drawing of a hundred curves for each of them would take long.
    const isDue = !isReading || performance.now() - this.#drawnAt > READ_MS;
    if (this.#isNew && isDue) this.#draw();
    this.#read();
  }

  destroy(): void {
    this.#queries.end();
    this.#chart.destroy();
  }

  #build(): HTMLElement {
    const runs = h('a', { href: '#/' }, 'Runs');
    const crumbs = h('nav', { class: 'crumbs', 'aria-label': 'Breadcrumb' }, runs, ' / ');
    const parts =
      this.#ids.length === 0
        ? [
            emptyState(
              'Nothing selected',
              'Tick the runs to compare in the table of runs, then press Compare.',
            ),
          ]
        : [
            card(
              'Curves',
              this.#controls(),
              this.#chart.element,
              this.#note,
              this.#progress,
              this.#queries.problem,
            ),
            card('What differs', this.#differences),
            card('Runs', this.#table(), this.#more),
          ];
    return h('div', {}, crumbs, h('h1', {}, 'Compare'), ...parts);
  }

  #controls(): HTMLElement {
    const over = new Select('Over', XS, this.#x, (value) => {
      this.#x = value as X;
      this.#draw();
    });
    const group = new Select('Group by', GROUPS, this.#by, (value) => {
      this.#by = value as GroupBy;
      this.update();
      this.#draw();
    });
    const smoothing = slider('Smoothing', { max: 0.99, step: 0.01, value: 0 }, (value) => {
      this.#smoothing = value;
      this.#draw();
    });
    const xLog = new Toggle('Logarithmic x', false, (on) => {
      this.#xLog = on;
      this.#draw();
    });
    return h(
      'div',
      { class: 'tools' },
      ...[this.#value.element, over.element, group.element, smoothing],
      ...[xLog.element, this.#logarithmic.element],
      saveButtons(this.#chart),
    );
  }

  #table(): HTMLElement {
    return h(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Compared runs' },
      h('table', {}, h('thead', {}, h('tr', {}, ...runHeadings())), this.#rows),
    );
  }

  /** Those runs that the server has told of. */
  #compared(): Compared[] {
    return this.#ids.flatMap((id) => {
      const run = state.runs.get(id);
      if (!run) return [];
      const { experiment, study } = run;
      return [
        { id, experiment, study, tags: run.tags ?? [], detail: this.#details.get(id) ?? null },
      ];
    });
  }

  #showTables(): void {
    const compared = this.#compared();
    const groups = runGroups(compared, this.#by);
    const of = new Map(groups.flatMap((group, i) => group.runs.map((id) => [id, i] as const)));
    const ids = groups.flatMap((group) => group.runs);
    const shown = this.#showsAll ? ids : ids.slice(0, ROWS_FIRST);
    this.#more.hidden = shown.length === ids.length;
    const facts = shown.map((id) => [state.runs.get(id), groups[of.get(id)!]!.label]);
    fillNew(this.#rows, facts, () =>
      shown.map((id) => runRow(state.runs.get(id)!, groups[of.get(id)!]!, of.get(id)!)),
    );
    const isRead = compared.every(({ detail }) => detail !== null);
    const facts2 = [isRead, groups];
    fillNew(this.#differences, facts2, () => this.#differencesOf(groups, compared, isRead));
  }

  #differencesOf(groups: readonly RunGroup[], compared: readonly Compared[], isRead: boolean) {
    const byId = new Map(compared.map((run) => [run.id, run]));
    const members = groups.map(({ runs }) => runs.map((id) => byId.get(id)!));
    const found = differences(members);
    if (found.length > 0) {
      const more = groups.length - GROUPS_SHOWN;
      return [
        differencesTable(groups, found),
        more > 0 && h('p', { class: 'muted' }, `and ${plural(more, 'more group')}`),
      ];
    }
    const words = !isRead
      ? 'Reading the configurations …'
      : compared.length === 1
        ? 'One run differs from nothing: choose several.'
        : 'Nothing: all have the same configuration.';
    return [h('p', { class: 'muted' }, words)];
  }

  /** Runs whose step has moved, a few at a time. */
  #read(): void {
    for (const id of this.#ids) {
      const run = state.runs.get(id);
      if (run) this.#queryOf(id).want(`${run.step} ${run.validation?.step}`, READ_MS);
    }
  }

  #queryOf(id: string): Query<[Metrics, RunDetail]> {
    const known = this.#ofRun.get(id);
    if (known) return known;
    // What is many is drawn in fewer points each.
    const points = Math.max(100, Math.min(600, Math.floor(20_000 / this.#ids.length)));
    const query = this.#queries.of({
      what: `run ${id}`,
      read: () =>
        Promise.all([client.metrics(id, points), this.#details.get(id) ?? client.run(id)]),
      show: ([metrics, detail]) => {
        this.#details.set(id, detail);
        this.#metrics.set(id, metrics);
        this.#curveOf(metrics);
        this.#isNew = true;
        drawSoon();
      },
    });
    this.#ofRun.set(id, query);
    return query;
  }

  #curveOf(of: Metrics): RunCurve {
    const axes = `${this.#x} ${this.#y}`;
    const known = this.#chosen.get(of);
    if (known?.axes === axes) return known.curve;
    const curve = curveOf(of, this.#x, this.#y);
    this.#chosen.set(of, { axes, curve });
    return curve;
  }

  #curves(): Curve[] {
    const groups = runGroups(this.#compared(), this.#by);
    return groups.flatMap(({ label, runs }, color): Curve[] => {
      const lines = runs.flatMap((id) => {
        const metrics = this.#metrics.get(id);
        const curve = metrics ? this.#curveOf(metrics) : null;
        if (!curve?.y.some((value) => value !== null)) return [];
        return [{ ...curve, y: smoothed(curve.y, this.#smoothing) }];
      });
      const [first] = lines;
      if (!first) return [];
      if (runs.length === 1) {
        const { x, y, points } = first;
        return [{ label, color, x, y, ...(points ? { draw: 'points' as const } : {}) }];
      }
      return [
        { label: `${label}: mean of ${lines.length}`, color, ...meanLine(lines, MEAN_POINTS) },
      ];
    });
  }

  #draw(): void {
    this.#isNew = false;
    this.#drawnAt = performance.now();
    const metrics = metricNames(this.#metrics.values());
    this.#value.offer([...YS, ...metrics.map((name) => [metricY(name), name] as const)]);
    const curves = this.#curves();
    const isAuto = isLogByDefault(this.#y) && spansDecades(curves.flatMap(({ y }) => y));
    const yLog = this.#yLog ?? isAuto;
    this.#logarithmic.show(yLog);
    const hasBands = curves.some(({ low }) => low?.some((value) => value !== null));
    setText(
      this.#note,
      hasBands ? 'Bands reach one standard deviation of the runs to both sides of their mean.' : '',
    );
    this.#chart.show({
      curves: this.#xLog ? curves.map(positiveX) : curves,
      xLabel: this.#x === 'seconds' ? 'training time' : this.#x,
      yLabel: labelOfY(this.#y),
      xLog: this.#xLog,
      yLog,
      formatX: this.#x === 'seconds' ? duration : compact,
      ...(this.#y === 'validationError' && this.#areShares()
        ? { formatY: percent, formatTick: roundPercent }
        : {}),
    });
    this.element.dataset.curves = String(curves.length);
  }

  /** All errors are shares of the examples. */
  #areShares(): boolean {
    return this.#ids.every((id) => {
      const run = state.runs.get(id);
      return !run || errorOf(run) === percent;
    });
  }
}

function positiveX(curve: Curve): Curve {
  const from = curve.x.findIndex((value) => value > 0);
  if (from <= 0) return curve;
  const { x, y, low, high } = curve;
  return {
    ...curve,
    ...{ x: x.slice(from), y: y.slice(from) },
    ...(low && high ? { low: low.slice(from), high: high.slice(from) } : {}),
  };
}
