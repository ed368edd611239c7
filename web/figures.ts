import { bytesOfBase64 } from '../shared/base64.ts';
import type {
  Card,
  ChartFigure,
  Figure,
  GalleryFigure,
  MatrixFigure,
  ParallelFigure,
  ThresholdsFigure,
} from '../shared/figure.ts';
import { chartSvg, type Look, matrixSvg, PAPER, parallelSvg } from '../shared/plot.ts';
import { percent } from '../shared/text.ts';
import { short } from './format.ts';
import { h, setText, svg } from './html.ts';
import { lineDashesOf, styledColorOf } from './palette.ts';
import { csvText, picturesOf } from './save.ts';

/** Figures of studies and looks, drawn in the size and the colours of the page. */

/** A figure on the page; `destroy` when it goes. */
export interface FigureView {
  readonly element: HTMLElement;
  /** Buttons that save it; null: there is nothing to be saved but the picture itself. */
  readonly tools: HTMLElement | null;
  readonly wide: boolean;
  destroy(): void;
}

/** The dashboard's own colours: they follow its theme by themselves. */
const lookOf = (width: number, height: number): Look => ({
  ...{ width, height, ink: 'var(--text)', pale: 'var(--grid)', surface: 'var(--surface)' },
  color: styledColorOf,
  dashes: lineDashesOf,
  heat: (rank) =>
    `color-mix(in oklab, var(--series-0) ${Math.round(100 * (1 - Math.min(1, rank)))}%, var(--series-1))`,
  titled: false,
});

export function figureOf(figure: Figure): FigureView {
  switch (figure.kind) {
    case 'chart':
      return drawn(figure, (width) => chartSvg(figure, lookOf(width, 300)));
    case 'parallel':
      return parallelOf(figure);
    case 'matrix':
      return drawn(figure, (width) => matrixSvg(figure, lookOf(width, 0)));
    case 'gallery':
      return galleryOf(figure);
    case 'thresholds':
      return thresholdsOf(figure);
  }
}

/** Drawn anew for each width, so that its words stay as large as those of the page. */
class ResponsiveFigure {
  readonly element = h('div', { class: 'figure' });
  readonly #draw: (width: number) => string;
  readonly #observer = new ResizeObserver(() => this.#fit());
  #width = 0;

  constructor(draw: (width: number) => string, widthMin = 240) {
    this.#draw = (width) => draw(Math.max(widthMin, width));
    this.#observer.observe(this.element);
  }

  #fit(): void {
    const width = Math.floor(this.element.clientWidth);
    if (width > 0 && width !== this.#width) this.redraw(width);
  }

  redraw(width = this.#width): void {
    this.#width = width;
    if (width > 0) this.element.replaceChildren(elementOf(this.#draw(width)));
  }

  destroy(): void {
    this.#observer.disconnect();
  }
}

/** As XML, where nothing of it can be a script of the page. */
function elementOf(text: string): Element {
  return document.adoptNode(new DOMParser().parseFromString(text, 'image/svg+xml').documentElement);
}

function drawn(
  figure: ChartFigure | MatrixFigure | ParallelFigure,
  draw: (width: number) => string,
  widthMin?: number,
): FigureView {
  const drawing = new ResponsiveFigure(draw, widthMin);
  return {
    element: drawing.element,
    tools: picturesOf(figure.title, { csv: () => csvOf(figure), svg: () => paperOf(figure) }),
    wide: figure.kind === 'parallel',
    destroy: () => drawing.destroy(),
  };
}

function paperOf(figure: ChartFigure | MatrixFigure | ParallelFigure): string {
  if (figure.kind === 'chart') return chartSvg(figure, PAPER);
  return figure.kind === 'matrix' ? matrixSvg(figure, PAPER) : parallelSvg(figure, PAPER);
}

/** One line for each point, count or trial. */
function csvOf(figure: ChartFigure | MatrixFigure | ParallelFigure): string {
  if (figure.kind === 'chart') {
    const { x, y, series } = figure;
    return csvText([
      ['series', x.label, y.label, 'low', 'high'],
      ...series.flatMap(({ name, points }) =>
        points.map((p) => [
          name,
          p.x !== null && x.names ? (x.names[p.x] ?? p.x) : p.x,
          ...[p.y, p.low ?? null, p.high ?? null],
        ]),
      ),
    ]);
  }
  if (figure.kind === 'matrix') {
    return csvText(
      [['true class', ...figure.names]].concat(
        figure.counts.map((row, i) => [figure.names[i] ?? String(i), ...row.map(String)]),
      ),
    );
  }
  return csvText([
    ['trial', 'rank', ...figure.axes.map(({ label }) => `${label}, place`)],
    ...figure.lines.map(({ label, rank, places }) => [label, rank, ...places]),
  ]);
}

/** On a phone its axes need more room than there is. */
function parallelOf(figure: ParallelFigure): FigureView {
  const least = 90 * figure.axes.length;
  const shown = drawn(figure, (width) => parallelSvg(figure, lookOf(width, 360)), least);
  const element = h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': figure.title },
    shown.element,
  );
  return { ...shown, element };
}

// Examples.

function galleryOf({ title, cards }: GalleryFigure): FigureView {
  return { element: cardsOf(title, cards), tools: null, wide: true, destroy: () => {} };
}

/** Examples with their captions. */
export const cardsOf = (title: string, cards: readonly Card[]): HTMLElement =>
  h(
    'ul',
    { class: 'gallery', 'aria-label': title },
    ...cards.map((card) =>
      h(
        'li',
        { class: `${card.shown.kind}${card.wrong ? ' wrong' : ''}` },
        exampleOf(card),
        ...card.caption.map((line, i) => h('span', { class: i === 0 ? 'line' : 'sub' }, line)),
      ),
    ),
  );

function exampleOf({ shown, caption }: Card): HTMLElement {
  if (shown.kind === 'text') return h('pre', {}, shown.text);
  const { width, height, channels, pixels } = shown;
  const canvas = h('canvas', { width, height, role: 'img', 'aria-label': caption.join('; ') });
  const values = bytesOfBase64(pixels);
  // Whoever tells a study may have counted wrong.
  if (values.length !== width * height * channels) return h('pre', {}, 'no picture');
  const context = canvas.getContext('2d')!;
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++)
      image.data[4 * i + c] = values[i * channels + (channels === 1 ? 0 : c)]!;
    image.data[4 * i + 3] = channels === 4 ? values[i * channels + 3]! : 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Coverage and accuracy.

/** The curve, and a slider along it that reads out what a threshold gives. */
function thresholdsOf(figure: ThresholdsFigure): FigureView {
  const { points, choices, title } = figure;
  let at = points.length - 1;
  const chart = (here = points[at]): ChartFigure => ({
    ...{ kind: 'chart', title, x: { label: 'coverage' }, y: { label: 'accuracy' } },
    series: [
      {
        ...{ name: 'measured', style: 'curve', color: 0 },
        points: points.map(({ coverage, accuracy }) => ({ x: coverage, y: accuracy })),
      },
      { ...choices, color: 1 },
    ],
    marks: here ? [{ x: here.coverage, text: percent(here.accuracy) }] : [],
  });
  const drawing = new ResponsiveFigure((width) => chartSvg(chart(), lookOf(width, 320)));
  const words = h('output', { class: 'readout', for: 'coverage' });
  const input = h('input', {
    ...{ type: 'range', id: 'coverage', min: 0, max: Math.max(0, points.length - 1), value: at },
    onInput: () => {
      at = Number(input.value);
      tell();
    },
  });
  function tell(): void {
    const point = points[at];
    if (!point) return;
    const { threshold, coverage, accuracy } = point;
    const text = `Answering from a confidence of ${short(threshold)}: ${percent(coverage)} of the examples are answered, ${percent(accuracy)} of these answers are right`;
    setText(words, text);
    input.setAttribute('aria-valuetext', text);
    drawing.redraw();
  }
  tell();
  const element = h(
    'div',
    {},
    drawing.element,
    h('label', { class: 'field', for: 'coverage' }, 'Share of the examples to answer'),
    input,
    h('p', { class: 'muted' }, words),
  );
  const tools = picturesOf(title, { csv: () => csvOf(chart()), svg: () => paperOf(chart()) });
  return { element, tools, wide: true, destroy: () => drawing.destroy() };
}

// Histograms over time.

export interface HistogramsAt {
  readonly step: number;
  readonly low: number;
  readonly high: number;
  readonly counts: readonly number[];
}

/** One column for each sample, from below to above: the stronger the colour, the larger the share of the sample. */
export function heatmap(samples: readonly HistogramsAt[], label: string): HTMLElement {
  const low = Math.min(...samples.map((sample) => sample.low));
  const high = Math.max(...samples.map((sample) => sample.high));
  const span = high - low || 1;
  const first = samples[0]?.step ?? 0;
  const last = samples.at(-1)?.step ?? 0;
  const parts: SVGElement[] = [];
  const wide = 100 / Math.max(1, samples.length);
  for (const [i, { low: from, high: to, counts }] of samples.entries()) {
    const most = Math.max(1, ...counts);
    const tall = (100 * (to - from)) / span / counts.length;
    let d = '';
    // A path for each strength, not a rectangle for each count: sixteen elements a sample at most.
    const byStrength = new Map<number, string>();
    for (const [b, n] of counts.entries()) {
      if (n === 0) continue;
      const strength = Math.ceil(16 * Math.sqrt(n / most));
      const y = 100 - (100 * (from - low)) / span - (b + 1) * tall;
      d = `M${(i * wide).toFixed(2)} ${y.toFixed(2)}h${(wide * 1.02).toFixed(2)}v${Math.max(0.5, tall).toFixed(2)}h-${(wide * 1.02).toFixed(2)}z`;
      byStrength.set(strength, (byStrength.get(strength) ?? '') + d);
    }
    for (const [strength, path] of byStrength)
      parts.push(svg('path', { d: path, 'fill-opacity': (strength / 16).toFixed(2) }));
  }
  return h(
    'div',
    { class: 'heatmap' },
    h('div', { class: 'heat-y' }, h('span', {}, short(high)), h('span', {}, short(low))),
    svg(
      'svg',
      { viewBox: '0 0 100 100', preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
      ...parts,
    ),
    h('div', { class: 'heat-x' }, h('span', {}, `step ${first}`), h('span', {}, String(last))),
  );
}
