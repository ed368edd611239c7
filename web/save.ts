import { type Chart, type Content, type Curve, colorOf, dashOf } from './chart.ts';
import { compact } from './format.ts';
import { h, svg } from './html.ts';

/** Plots as files: the numbers, the picture, the drawing. */

/** CSV, SVG and PNG buttons for a plot. */
export function saveButtons(chart: Chart): HTMLElement {
  const name = () => chart.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-');
  const save = (blob: Blob, ending: string) => download(blob, `${name()}.${ending}`);
  const button = (text: string, onClick: () => void) =>
    h(
      'button',
      { type: 'button', class: 'quiet', 'aria-label': `Save ${chart.title} as ${text}`, onClick },
      text,
    );
  return h(
    'div',
    { class: 'save' },
    button('CSV', () => {
      if (chart.content) save(new Blob([csvOf(chart.content)], { type: 'text/csv' }), 'csv');
    }),
    button('PNG', () => chart.picture()?.toBlob((blob) => blob && save(blob, 'png'))),
    button('SVG', () => {
      if (chart.content)
        save(new Blob([svgOf(chart.content, chart.title)], { type: 'image/svg+xml' }), 'svg');
    }),
  );
}

export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** One line for each point: the curve, x, y. All points that the page has, not those of the picture. */
export function csvOf({ curves, xLabel, yLabel }: Content): string {
  const quoted = (text: string) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [['curve', xLabel, yLabel].map(quoted).join()];
  for (const { label, x, y } of curves) {
    for (const [i, each] of x.entries()) lines.push(`${quoted(label)},${each},${y[i] ?? ''}`);
  }
  return `${lines.join('\n')}\n`;
}

const WIDTH = 900;
const HEIGHT = 480;
const BOX = { left: 70, right: 20, top: 44, bottom: 50 };

/** A drawing of its own size, with ticks at round numbers. */
export function svgOf(content: Content, title: string): string {
  const { curves, marks = [] } = content;
  const drawn = curves.filter(({ x }) => x.length > 0);
  const x = scaleOf(
    drawn.flatMap((curve) => curve.x),
    content.xLog ?? false,
    [BOX.left, WIDTH - BOX.right],
  );
  const y = scaleOf(
    drawn.flatMap((curve) => curve.y.filter((value) => value !== null)),
    content.yLog ?? false,
    [HEIGHT - BOX.bottom, BOX.top],
  );
  const style = getComputedStyle(document.documentElement);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const text = (
    words: string,
    px: number,
    py: number,
    more: Record<string, string | number> = {},
  ) => svg('text', { x: px, y: py, fill: color('--muted'), 'font-size': 12, ...more }, words);
  const root = svg(
    'svg',
    {
      xmlns: 'http://www.w3.org/2000/svg',
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      width: WIDTH,
      height: HEIGHT,
      'font-family': 'system-ui, sans-serif',
    },
    svg('rect', { width: WIDTH, height: HEIGHT, fill: color('--surface') }),
    text(title, BOX.left, 24, { fill: color('--text'), 'font-size': 15, 'font-weight': 600 }),
    text(content.xLabel, (WIDTH + BOX.left) / 2, HEIGHT - 10, { 'text-anchor': 'middle' }),
    ...y.ticks.flatMap((tick) => [
      svg('line', {
        x1: BOX.left,
        x2: WIDTH - BOX.right,
        y1: y.at(tick),
        y2: y.at(tick),
        stroke: color('--grid'),
      }),
      text((content.formatTick ?? compact)(tick), BOX.left - 8, y.at(tick) + 4, {
        'text-anchor': 'end',
      }),
    ]),
    ...x.ticks.map((tick) =>
      text((content.formatX ?? compact)(tick), x.at(tick), HEIGHT - BOX.bottom + 20, {
        'text-anchor': 'middle',
      }),
    ),
    ...drawn.map((curve) => pathOf(curve, x.at, y.at)),
    ...marks.flatMap((mark) => [
      svg('circle', { cx: x.at(mark.x), cy: y.at(mark.y), r: 5, fill: colorOf(2) }),
      text(mark.text, x.at(mark.x) + 8, y.at(mark.y) - 8, { fill: colorOf(2) }),
    ]),
    ...drawn.slice(0, 12).map((curve, i) =>
      text(curve.label, WIDTH - BOX.right, BOX.top + 16 * (i + 1), {
        fill: colorOf(curve.color),
        'text-anchor': 'end',
      }),
    ),
  );
  return root.outerHTML;
}

function pathOf(curve: Curve, toX: (v: number) => number, toY: (v: number) => number): SVGElement {
  const stroke = colorOf(curve.color);
  if (curve.draw === 'bars') {
    const bottom = HEIGHT - BOX.bottom;
    return svg(
      'g',
      { fill: stroke },
      ...curve.x.map((value, i) => {
        const top = toY(curve.y[i] ?? 0);
        return svg('rect', {
          x: toX(value) - 4,
          y: top,
          width: 8,
          height: Math.max(0, bottom - top),
        });
      }),
    );
  }
  let d = '';
  let pen = 'M';
  for (const [i, value] of curve.x.entries()) {
    const each = curve.y[i];
    const at = each == null ? Number.NaN : toY(each);
    if (!Number.isFinite(at) || !Number.isFinite(toX(value))) continue;
    d += `${pen}${toX(value).toFixed(1)} ${at.toFixed(1)}`;
    pen = 'L';
  }
  return svg('path', {
    d,
    fill: 'none',
    stroke,
    'stroke-width': curve.draw === 'faint' ? 1 : 2,
    'stroke-opacity': curve.draw === 'faint' ? 0.35 : 1,
    'stroke-dasharray': dashOf(curve).join(' '),
  });
}

interface Scale {
  readonly ticks: readonly number[];
  at(value: number): number;
}

function scaleOf(values: readonly number[], log: boolean, [from, to]: [number, number]): Scale {
  const forward = (v: number) => (log ? Math.log10(v) : v);
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    const v = forward(value);
    if (!Number.isFinite(v)) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (!(low <= high)) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const at = (value: number) => from + ((forward(value) - low) / (high - low)) * (to - from);
  return { ticks: log ? powers(low, high) : roundTicks(low, high), at };
}

function powers(low: number, high: number): number[] {
  const all: number[] = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e++) {
    for (const m of high - low < 2 ? [1, 2, 5] : [1]) all.push(m * 10 ** e);
  }
  return all.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
}

function roundTicks(low: number, high: number): number[] {
  const rough = (high - low) / 6;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * ([1, 2, 5, 10].find((m) => m * size >= rough) ?? 10);
  const ticks: number[] = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) ticks.push(v);
  return ticks;
}
