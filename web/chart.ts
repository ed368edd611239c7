import uPlot from 'uplot';
import { compact, short } from './format.ts';
import { fill, h, setText } from './html.ts';
import { lastOf, nearestValue, readAt } from './lines.ts';
import { type Color, colorIn, lineDashesOf, styledColorOf } from './palette.ts';
import { swatch } from './parts.ts';

/** Curves on a plot: one wrapper around uPlot, with a legend, a theme and files to save. */

export interface Curve {
  readonly label: string;
  readonly color: Color;
  /** Ascending. */
  readonly x: readonly number[];
  readonly y: readonly (number | null)[];
  /** A band around the curve, at the same places. Many curves are drawn without theirs. */
  readonly low?: readonly (number | null)[];
  readonly high?: readonly (number | null)[];
  /** Default: a line. */
  readonly draw?: 'line' | 'faint' | 'points' | 'steps' | 'bars';
  readonly dashed?: boolean;
}

export interface Mark {
  readonly x: number;
  readonly y: number;
  readonly text: string;
}

export interface ChartContent {
  readonly curves: readonly Curve[];
  readonly marks?: readonly Mark[];
  readonly xLabel: string;
  readonly yLabel: string;
  readonly xLog?: boolean;
  readonly yLog?: boolean;
  /** How values of the legend and ticks are written. */
  readonly formatY?: (value: number) => string;
  readonly formatTick?: (value: number) => string;
  readonly formatX?: (value: number) => string;
  /** A range of y that is meant, drawn below the curves. */
  readonly band?: { readonly low: number; readonly high: number; readonly text: string };
  /** Not above it where all is below: a share, say. */
  readonly yFrom?: number;
}

/** Cells of the joined table up to which every point of every curve is kept. */
const CELLS_MAX = 200_000;
/** Columns of the table where that would be too much: about as many as a plot has pixels; fewer for many curves. */
const GRID_POINTS = 700;
const GRID_POINTS_MANY = 200;
/**
 * With more curves than this none can be told from the others by its dashes, nor by pointing at it: drawn without
 * either, and as thin as can be, a hundred of them take a third of the time.
 */
const MANY = 24;
/** Many curves are drawn for so long at a time, so that no frame is long; the browser takes as long to fill in what was asked. */
const SLICE_MS = 6;
/** Names in the legend: more than can be read say nothing. */
const NAMED = 12;
/** Asking for a colour makes the browser bring the page's style up to date, which a hundred curves would do in turn. */
const colors = new Map<string, string>();
document.addEventListener('theme', () => colors.clear());

/** For pictures: as it is now. */
export const colorOf = (color: Color): string => colorIn(styleOf, color);

function styleOf(name: string): string {
  let value = colors.get(name);
  if (value === undefined) {
    value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    colors.set(name, value);
  }
  return value;
}

const DASHED = [7, 4];

export const dashOf = (curve: Pick<Curve, 'color' | 'dashed'>): number[] =>
  curve.dashed ? DASHED : lineDashesOf(curve.color);

export class Chart {
  readonly element: HTMLElement;
  readonly #title: string;
  readonly #area: HTMLElement;
  readonly #legend: HTMLElement;
  readonly #empty: HTMLElement;
  readonly #height: number;
  readonly #observer: ResizeObserver;
  readonly #onTheme = () => this.#rebuild();
  #values: HTMLElement[] = [];
  #plot: uPlot | null = null;
  /** Set: curves that are still to be drawn. */
  #drawing: LineDrawing | null = null;
  #shape = '';
  #content: ChartContent | null = null;

  /** @param title names the picture for those who cannot see it, and its files. */
  constructor(title: string, { height = 240, empty = 'Nothing yet' } = {}) {
    this.#title = title;
    this.#height = height;
    this.#legend = h('div', { class: 'legend' });
    this.#area = h('div', { class: 'plot', role: 'img', 'aria-label': title });
    this.#empty = h('p', { class: 'empty-plot', style: { height: `${height}px` } }, empty);
    this.element = h('div', { class: 'chart' }, this.#legend, this.#area, this.#empty);
    this.#area.hidden = true;
    this.#observer = new ResizeObserver(() => this.#fit());
    this.#observer.observe(this.element);
    document.addEventListener('theme', this.#onTheme);
  }

  get content(): ChartContent | null {
    return this.#content;
  }

  get title(): string {
    return this.#title;
  }

  show(content: ChartContent): void {
    this.#content = content;
    const curves = content.curves.filter(({ x }) => x.length > 0);
    this.#empty.hidden = curves.length > 0;
    this.#area.hidden = curves.length === 0;
    this.#legend.hidden = curves.length === 0;
    if (curves.length === 0) return;
    const { marks: _, curves: all, ...rest } = content;
    const shape = JSON.stringify([
      rest,
      all.map(({ label, color, draw, dashed }) => [label, color, draw, dashed]),
    ]);
    if (shape !== this.#shape || !this.#plot) {
      this.#shape = shape;
      this.#rebuild();
    } else this.#plot.setData(aligned(content.curves));
    this.#describe();
  }

  destroy(): void {
    this.#observer.disconnect();
    document.removeEventListener('theme', this.#onTheme);
    this.#drawing?.stop();
    this.#plot?.destroy();
    this.#plot = null;
  }

  /** @param scale of pixels. @returns the picture as it is seen, on its background. */
  picture(): HTMLCanvasElement | null {
    const source = this.#plot?.ctx.canvas;
    if (!source) return null;
    this.#drawing?.finish();
    const canvas = h('canvas', { width: source.width, height: source.height });
    const context = canvas.getContext('2d')!;
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue('--surface');
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(source, 0, 0);
    return canvas;
  }

  #fit(): void {
    const width = Math.floor(this.element.clientWidth);
    if (this.#plot && width > 0 && width !== this.#plot.width) {
      this.#plot.setSize({ width, height: this.#height });
    }
  }

  /** For those who hear the page, and for tests: the last value of each curve. */
  #describe(): void {
    const { curves } = this.#content!;
    const parts = curves.slice(0, 8).map(({ label, y }) => `${label} ${this.#format(lastOf(y))}`);
    const more = curves.length > 8 ? `, and ${curves.length - 8} more` : '';
    this.#area.setAttribute('aria-label', `${this.#title}: ${parts.join(', ')}${more}`);
    if (this.#plot?.cursor.idx == null) this.#tell(null);
  }

  #format(value: number | null): string {
    if (value === null) return '–';
    return (this.#content?.formatY ?? short)(value);
  }

  /** Values in the legend: at the pointer, else the last ones. */
  #tell(index: number | null): void {
    const plot = this.#plot;
    if (!plot) return;
    for (const [i, element] of this.#values.slice(0, NAMED).entries()) {
      const y = plot.data[i + 1] as (number | null)[];
      setText(element, this.#format(index === null ? lastOf(y) : nearestValue(y, index)));
    }
  }

  #rebuild(): void {
    const content = this.#content;
    if (!content || content.curves.length === 0) return;
    this.#drawing?.stop();
    this.#plot?.destroy();
    const width = Math.max(200, Math.floor(this.element.clientWidth));
    this.#plot = new uPlot(this.#options(content, width), aligned(content.curves), this.#area);
    this.#buildLegend(content);
    this.#tell(null);
  }

  #buildLegend({ curves }: ChartContent): void {
    this.#values = curves.map(() => h('span', { class: 'legend-value' }));
    // The selection beside the plot has them all.
    const items = curves.slice(0, NAMED).map((curve, i) =>
      h(
        'span',
        { class: 'legend-item' },
        swatch(styledColorOf(curve.color), dashOf(curve), curve.draw),
        h('span', {}, curve.label),
        // A bar has no last value.
        curve.draw !== 'bars' && this.#values[i],
      ),
    );
    fill(
      this.#legend,
      ...items,
      curves.length > NAMED && h('span', { class: 'muted' }, `and ${curves.length - NAMED} more`),
    );
  }

  #options(content: ChartContent, width: number): uPlot.Options {
    const { curves, xLog, yLog, formatX = compact, formatTick = compact } = content;
    const muted = colorOf('muted');
    const style = getComputedStyle(document.documentElement);
    const grid = { stroke: style.getPropertyValue('--grid').trim(), width: 1 };
    const font = '12px system-ui, sans-serif';
    const bars = curves.some(({ draw }) => draw === 'bars');
    const isMany = curves.length > MANY;
    return {
      width,
      height: this.#height,
      legend: { show: false },
      cursor: {
        points: isMany ? { show: false } : { size: 7 },
        drag: { x: true, y: false },
        focus: { prox: isMany ? -1 : 24 },
      },
      focus: { alpha: curves.length > 3 ? 0.35 : 1 },
      scales: {
        x: {
          time: false,
          ...(xLog ? { distr: 3 as const } : {}),
          ...(bars ? { range: barRange } : {}),
        },
        y: {
          ...(yLog ? { distr: 3 as const } : {}),
          ...(content.band ? { range: rangeWith(content.band) } : {}),
          ...(content.yFrom === undefined || yLog
            ? {}
            : {
                range: (_: uPlot, _low: number, high: number): uPlot.Range.MinMax => [
                  content.yFrom!,
                  high > content.yFrom! ? high * 1.05 : 1,
                ],
              }),
        },
      },
      axes: [
        {
          stroke: muted,
          font,
          grid: { ...grid, show: false },
          ticks: { ...grid, size: 5 },
          size: 24,
          gap: 3,
          space: 64,
          label: content.xLabel,
          labelFont: font,
          labelSize: 20,
          labelGap: 0,
          values: (_, splits) => splits.map((v) => (v === null ? '' : formatX(v))),
        },
        {
          stroke: muted,
          font,
          grid,
          ticks: { ...grid, show: false },
          size: 58,
          gap: 6,
          space: 34,
          values: (_, splits) => splits.map((v) => (v === null ? '' : formatTick(v))),
        },
      ],
      series: [{}, ...curves.map((curve) => seriesOf(curve, isMany)), ...edgesOf(curves)],
      bands: bandsOf(curves),
      hooks: {
        setCursor: [({ cursor }) => this.#tell(cursor.idx ?? null)],
        drawClear: [(plot) => drawBand(plot, this.#content?.band)],
        draw: [
          (plot) => {
            this.#drawing?.stop();
            this.#drawing = isMany ? new LineDrawing(plot) : null;
            drawMarks(plot, this.#content?.marks ?? []);
          },
        ],
      },
    };
  }
}

/** Curves that have a band, unless there are too many to tell bands apart. */
const withBand = (curves: readonly Curve[]) =>
  curves.length > MANY ? [] : curves.filter(({ low, high }) => low && high);

/** The invisible ends of bands, after all curves. */
const edgesOf = (curves: readonly Curve[]): uPlot.Series[] =>
  withBand(curves).flatMap(() => [EDGE, EDGE]);
const EDGE: uPlot.Series = { width: 0, points: { show: false }, spanGaps: true, stroke: '#0000' };

const bandsOf = (curves: readonly Curve[]): uPlot.Band[] =>
  withBand(curves).map(({ color }, i) => {
    const low = 1 + curves.length + 2 * i;
    return { series: [low + 1, low], fill: `${colorOf(color)}2e` };
  });

function seriesOf(curve: Curve, isMany: boolean): uPlot.Series {
  const stroke = colorOf(curve.color);
  const { draw = 'line' } = curve;
  const base = { label: curve.label, stroke, dash: dashOf(curve), spanGaps: true };
  if (draw === 'points') {
    return { ...base, width: 1.5, points: { show: true, size: 6, fill: stroke, stroke } };
  }
  if (draw === 'bars') {
    return {
      ...base,
      width: 0,
      fill: stroke,
      paths: uPlot.paths.bars!({ size: [0.8, 40] }),
      points: { show: false },
    };
  }
  return {
    ...base,
    width: draw === 'faint' || isMany ? 1 : 2,
    ...(isMany ? { paths: () => null } : {}),
    ...(draw === 'faint' ? { alpha: 0.35 } : {}),
    ...(draw === 'steps' ? { paths: uPlot.paths.stepped!({ align: 1 }) } : {}),
    points: { show: curve.x.length === 1, size: 6, fill: stroke },
  };
}

/** Draws all curves of a plot as lines, as many in a frame as take no longer than a slice. */
class LineDrawing {
  readonly #plot: uPlot;
  readonly #left: Float64Array;
  readonly #from: number;
  readonly #to: number;
  #next = 1;
  #frame = 0;

  constructor(plot: uPlot) {
    this.#plot = plot;
    const x = plot.data[0];
    const { min = 0, max = 0 } = plot.scales.x!;
    const from = x.findIndex((value) => value >= min!);
    const to = x.findLastIndex((value) => value <= max!);
    // One beyond each side: lines go on to the edge.
    this.#from = Math.max(0, from - 1);
    this.#to = from < 0 || to < 0 ? -1 : Math.min(x.length - 1, to + 1);
    this.#left = Float64Array.from(x, (value) => plot.valToPos(value, 'x', true));
    this.#slice();
  }

  stop(): void {
    cancelAnimationFrame(this.#frame);
  }

  /** Draws at once what is waiting. */
  finish(): void {
    this.stop();
    this.#draw(Infinity);
  }

  #slice(): void {
    this.#draw(performance.now() + SLICE_MS);
    if (this.#next < this.#plot.series.length) {
      this.#frame = requestAnimationFrame(() => this.#slice());
    }
  }

  #draw(untilMs: number): void {
    const { ctx, bbox, series, data } = this.#plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineWidth = devicePixelRatio;
    ctx.lineJoin = 'round';
    while (this.#next < series.length && performance.now() < untilMs) {
      const { stroke } = series[this.#next] as { readonly stroke: unknown };
      ctx.strokeStyle = (typeof stroke === 'function' ? stroke() : stroke) as string;
      this.#line(data[this.#next++]!);
    }
    ctx.restore();
  }

  #line(y: uPlot.AlignedData[number]): void {
    const { ctx } = this.#plot;
    ctx.beginPath();
    let drawn = false;
    for (let i = this.#from; i <= this.#to; i++) {
      const value = y[i];
      if (value == null) continue;
      const top = this.#plot.valToPos(value, 'y', true);
      // What is not above 0 has no logarithm.
      if (!Number.isFinite(top)) continue;
      if (drawn) ctx.lineTo(this.#left[i]!, top);
      else ctx.moveTo(this.#left[i]!, top);
      drawn = true;
    }
    ctx.stroke();
  }
}

function barRange(_: uPlot, low: number, high: number): uPlot.Range.MinMax {
  return [low - 0.6, high + 0.6];
}

/** So much that the band is seen: it says where the curves should be. */
const rangeWith =
  ({ low, high }: { low: number; high: number }) =>
  (_: uPlot, from: number | null, to: number | null): uPlot.Range.MinMax => [
    Math.min(from ?? low, low) / 2,
    Math.max(to ?? high, high) * 2,
  ];

function drawBand({ ctx, valToPos, bbox }: uPlot, band: ChartContent['band']): void {
  if (!band) return;
  const top = valToPos(band.high, 'y', true);
  const bottom = valToPos(band.low, 'y', true);
  ctx.save();
  ctx.fillStyle = colorOf(2);
  ctx.globalAlpha = 0.13;
  ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
  ctx.globalAlpha = 1;
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textBaseline = 'top';
  ctx.fillText(band.text, bbox.left + 8 * devicePixelRatio, top + 4 * devicePixelRatio);
  ctx.restore();
}

function drawMarks({ ctx, valToPos, bbox }: uPlot, marks: readonly Mark[]): void {
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  for (const { x, y, text } of marks) {
    const left = valToPos(x, 'x', true);
    const top = valToPos(y, 'y', true);
    if (left < bbox.left || left > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colorOf(2);
    ctx.fillStyle = colorOf(2);
    ctx.lineWidth = 1.5 * ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.arc(left, top, 5 * ratio, 0, 2 * Math.PI);
    ctx.fill();
    const width = ctx.measureText(text).width;
    const fits = left + width + 10 * ratio < bbox.left + bbox.width;
    ctx.textAlign = 'left';
    ctx.textBaseline = 'top';
    ctx.fillText(text, fits ? left + 6 * ratio : left - width - 6 * ratio, bbox.top + 2 * ratio);
  }
  ctx.restore();
}

/**
 * One table with a column for each curve, as uPlot wants it. Where that would be too large, each curve is
 * read at equal distances of x, on the line between its points.
 */
function aligned(given: readonly Curve[]): uPlot.AlignedData {
  const edges = withBand(given).flatMap(({ x, low, high }) => [
    { x, y: low! },
    { x, y: high! },
  ]);
  const curves: readonly Pick<Curve, 'x' | 'y'>[] = [...given, ...edges];
  const points = curves.reduce((sum, { x }) => sum + x.length, 0);
  if (points * curves.length <= CELLS_MAX) {
    const tables = curves.map(({ x, y }) => [x, y] as unknown as uPlot.AlignedData);
    return tables.length === 1 ? tables[0]! : uPlot.join(tables);
  }
  let low = Infinity;
  let high = -Infinity;
  for (const { x } of curves) {
    if (x.length === 0) continue;
    low = Math.min(low, x[0]!);
    high = Math.max(high, x.at(-1)!);
  }
  const count = given.length > MANY ? GRID_POINTS_MANY : GRID_POINTS;
  const grid = Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
  return [grid, ...curves.map((curve) => readAt(curve, grid))] as uPlot.AlignedData;
}
