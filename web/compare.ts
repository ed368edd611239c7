import type { Metrics, RunSummary } from '../shared/rest.ts';
import { percent } from '../shared/text.ts';
import { Chart, type Curve, smoothed, styledColorOf } from './chart.ts';
import { compact, count, duration, errorOf, plural, roundPercent, short } from './format.ts';
import { fillNew, h, setText } from './html.ts';
import { badge, card, emptyState, select, slider, toggle, type View } from './parts.ts';
import { selected } from './runs.ts';
import { saveButtons } from './save.ts';
import { client, state } from './store.ts';

/** Curves of several runs on one plot. */

type Y =
  | 'validationError'
  | 'validationLoss'
  | 'trainingLoss'
  | 'gradientNorm'
  | 'learningRate'
  | 'staleness';
type X = 'step' | 'examples' | 'seconds';

const YS: readonly (readonly [Y, string])[] = [
  ['trainingLoss', 'Training loss'],
  ['validationLoss', 'Validation loss'],
  ['validationError', 'Validation error'],
  ['gradientNorm', 'Gradient norm'],
  ['learningRate', 'Learning rate'],
  ['staleness', 'Staleness'],
];
const XS: readonly (readonly [X, string])[] = [
  ['step', 'Step'],
  ['examples', 'Examples'],
  ['seconds', 'Time'],
];
/** Rows of the table at first: a hundred take longer to lay out than to draw their curves. */
const ROWS_FIRST = 20;
/** How many are read at once, so that a hundred runs do not hold up the training. */
const READERS = 4;
const READ_MS = 3_000;

export function compareView(): View {
  const ids = [...selected];
  const metrics = new Map<string, Metrics>();
  const steps = new Map<string, number>();
  let y: Y = 'trainingLoss';
  let x: X = 'step';
  let weight = 0;
  let xLog = false;
  let yLog = false;
  let ended = false;
  let reading = false;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const chart = new Chart('Comparison', { height: 420, empty: 'Reading the curves …' });
  const progress = h('p', { class: 'muted', role: 'status' });
  const table = h('tbody');
  const redraw =
    <T>(set: (value: T) => void) =>
    (value: T) => {
      set(value);
      draw();
    };
  const controls = h(
    'div',
    { class: 'tools' },
    select(
      'Value',
      YS,
      y,
      redraw((value) => {
        y = value as Y;
      }),
    ),
    select(
      'Over',
      XS,
      x,
      redraw((value) => {
        x = value as X;
      }),
    ),
    slider(
      'Smoothing',
      { max: 0.99, step: 0.01, value: 0 },
      redraw((value: number) => {
        weight = value;
      }),
    ),
    toggle(
      'Logarithmic x',
      xLog,
      redraw((on: boolean) => {
        xLog = on;
      }),
    ),
    toggle(
      'Logarithmic y',
      yLog,
      redraw((on: boolean) => {
        yLog = on;
      }),
    ),
    saveButtons(chart),
  );
  let all = false;
  const more = h(
    'button',
    {
      type: 'button',
      class: 'button',
      onClick: () => {
        all = true;
        update();
      },
    },
    `Show all ${ids.length} runs`,
  );
  const rows = card(
    'Runs',
    h(
      'div',
      { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Compared runs' },
      h(
        'table',
        {},
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            ...['Run', 'State', 'Step', 'Training loss', 'Best loss', 'Best error', 'Time'].map(
              (title, i) => h('th', { scope: 'col', class: i > 1 ? 'number' : '' }, title),
            ),
          ),
        ),
        table,
      ),
    ),
    more,
  );
  const element = h(
    'div',
    {},
    h(
      'nav',
      { class: 'crumbs', 'aria-label': 'Breadcrumb' },
      h('a', { href: '#/' }, 'Runs'),
      ' / ',
    ),
    h('h1', {}, 'Compare'),
    ...(ids.length === 0
      ? [
          emptyState(
            'Nothing selected',
            'Tick the runs to compare in the table of runs, then press Compare.',
          ),
        ]
      : [card('Curves', controls, chart.element, progress), rows]),
  );

  function update(): void {
    if (ids.length === 0) return;
    const shown = all ? ids : ids.slice(0, ROWS_FIRST);
    more.hidden = shown.length === ids.length;
    const facts = shown.map((id) => state.runs.get(id));
    fillNew(table, facts, () => shown.map(rowOf));
    void read();
  }

  /** Those whose step has moved, a few at a time. */
  async function read(): Promise<void> {
    if (reading || ended) return;
    const due = ids.filter((id) => {
      const run = state.runs.get(id);
      return run !== undefined && steps.get(id) !== stampOf(run);
    });
    if (due.length === 0) return;
    reading = true;
    // What is many is drawn in fewer points each.
    const points = Math.max(100, Math.min(600, Math.floor(20_000 / ids.length)));
    let done = 0;
    const next = async (): Promise<void> => {
      for (let id = due.shift(); id !== undefined && !ended; id = due.shift()) {
        const run = state.runs.get(id);
        const found = await client.metrics(id, points).catch(() => null);
        if (!found || !run) continue;
        metrics.set(id, found);
        chosenOf(found);
        steps.set(id, stampOf(run));
        done++;
        if (metrics.size < ids.length)
          setText(progress, `${metrics.size} of ${plural(ids.length, 'run')} read`);
      }
    };
    await Promise.all(Array.from({ length: READERS }, next));
    reading = false;
    if (ended) return;
    setText(progress, '');
    if (done > 0) draw();
    clearTimeout(timer);
    timer = setTimeout(() => void read(), READ_MS);
  }

  /** As it is read, not all of them in the frame that draws them. */
  const chosen = new WeakMap<Metrics, { axes: string; curve: ReturnType<typeof curveOf> }>();
  function chosenOf(of: Metrics): ReturnType<typeof curveOf> {
    const axes = `${x} ${y}`;
    const known = chosen.get(of);
    if (known?.axes === axes) return known.curve;
    const curve = curveOf(of, x, y);
    chosen.set(of, { axes, curve });
    return curve;
  }
  const allShares = () =>
    ids.every((id) => {
      const run = state.runs.get(id);
      return !run || errorOf(run) === percent;
    });

  function draw(): void {
    const curves = ids.flatMap((id, i) => {
      const found = metrics.get(id);
      const curve = found ? chosenOf(found) : null;
      if (!curve || curve.x.length === 0) return [];
      return [
        {
          label: id,
          color: i,
          x: curve.x,
          y: smoothed(curve.y, weight),
          ...(curve.points ? { draw: 'points' as const } : {}),
        } satisfies Curve,
      ];
    });
    const yLabel = YS.find(([value]) => value === y)![1];
    chart.show({
      curves: xLog ? curves.map(positiveX) : curves,
      xLabel: x === 'seconds' ? 'training time' : x,
      yLabel: yLabel.toLowerCase(),
      xLog,
      yLog,
      formatX: x === 'seconds' ? duration : compact,
      ...(y === 'validationError' && allShares()
        ? { formatY: percent, formatTick: roundPercent }
        : {}),
    });
    element.dataset.curves = String(curves.length);
  }

  update();
  return {
    title: 'Compare',
    element,
    update,
    destroy() {
      ended = true;
      clearTimeout(timer);
      chart.destroy();
    },
  };
}

const stampOf = (run: RunSummary) => run.step + (run.validation?.step ?? 0) * 1e-9;

const positiveX = (curve: Curve): Curve => {
  const from = curve.x.findIndex((value) => value > 0);
  return from <= 0 ? curve : { ...curve, x: curve.x.slice(from), y: curve.y.slice(from) };
};

/** What is on no axis at all is left out: steps of older releases have no count of examples. */
function curveOf(
  { training, evaluations }: Metrics,
  over: X,
  what: Y,
): { x: number[]; y: (number | null)[]; points: boolean } | null {
  if (what === 'validationLoss' || what === 'validationError') {
    const validation = evaluations.filter(({ part }) => part === 'validation');
    const y = validation.map(({ loss, error }) => (what === 'validationLoss' ? loss : error));
    const x = validation.map(({ step, seconds }) =>
      over === 'step' ? step : over === 'seconds' ? seconds : examplesAt(training, step),
    );
    return { x, y, points: x.length <= 40 };
  }
  const column = {
    trainingLoss: 'loss',
    gradientNorm: 'gradientNorm',
    learningRate: 'learningRate',
    staleness: 'staleness',
  } as const;
  const y: (number | null)[] = [];
  const x: number[] = [];
  for (const [i, at] of training[over].entries()) {
    if (at === null) continue;
    x.push(at);
    y.push(training[column[what]][i]!);
  }
  return { x, y, points: false };
}

/** The examples on the line between the points beside a step. */
function examplesAt({ step, examples }: Metrics['training'], at: number): number {
  const i = step.findIndex((each) => each >= at);
  if (i < 0) return examples.at(-1) ?? at;
  if (i === 0) return ((examples[0] ?? at) * at) / (step[0] || 1);
  const [a, b] = [examples[i - 1] ?? 0, examples[i] ?? 0];
  return a + ((b - a) * (at - step[i - 1]!)) / (step[i]! - step[i - 1]!);
}

function rowOf(id: string, index: number): HTMLElement | null {
  const run = state.runs.get(id);
  if (!run) return null;
  const { best } = run;
  return h(
    'tr',
    { 'data-run': id },
    h(
      'td',
      {},
      h('span', {
        class: 'swatch line',
        style: { color: styledColorOf(index) },
        'aria-hidden': 'true',
      }),
      ' ',
      h('a', { class: 'run-name inline', href: `#/runs/${id}` }, id),
    ),
    h('td', {}, badge(run.phase)),
    h('td', { class: 'number' }, count(run.step)),
    h('td', { class: 'number' }, short(run.trainingLoss)),
    h('td', { class: 'number' }, short(best?.loss)),
    h('td', { class: 'number' }, errorOf(run)(best?.error)),
    h('td', { class: 'number' }, duration(run.seconds)),
  );
}
