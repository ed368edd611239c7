import { linearTicks, logTicks, type Scale } from '../shared/plot.ts';
import { type Chart, type ChartContent, type Curve, colorOf, dashOf } from './chart.ts';
import { compact } from './format.ts';
import { h, svg } from './html.ts';

/** Plots as files: the numbers, the picture, the drawing. */

/** CSV, PNG and SVG buttons for a plot. */
export function saveButtons(chart: Chart): HTMLElement {
  return buttonsOf(chart.title, {
    csv: () => chart.content && csvOf(chart.content),
    png: (save) => chart.picture()?.toBlob(save),
    svg: () => chart.content && svgOf(chart.content, chart.title),
  });
}

/** The same for a figure that is drawn as SVG. */
export function picturesOf(
  title: string,
  files: { readonly csv: () => string; readonly svg: () => string },
): HTMLElement {
  return buttonsOf(title, { ...files, png: (save) => void pictureOf(files.svg()).then(save) });
}

/** @param svgText with a size of its own. @returns null where the browser cannot. */
async function pictureOf(svgText: string): Promise<Blob | null> {
  const url = URL.createObjectURL(new Blob([svgText], { type: 'image/svg+xml' }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const [width, height] = [2 * image.naturalWidth, 2 * image.naturalHeight];
    const canvas = h('canvas', { width, height });
    canvas.getContext('2d')!.drawImage(image, 0, 0, width, height);
    return await new Promise((resolve) => canvas.toBlob(resolve));
  } finally {
    URL.revokeObjectURL(url);
  }
}

function buttonsOf(
  title: string,
  files: {
    readonly csv: () => string | null;
    readonly png: (save: (blob: Blob | null) => void) => void;
    readonly svg: () => string | null;
  },
): HTMLElement {
  const name = title.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-');
  const save = (blob: Blob | null, ending: string) => {
    if (blob) download(blob, `${name}.${ending}`);
  };
  const text = (content: string | null, type: string, ending: string) =>
    save(content === null ? null : new Blob([content], { type }), ending);
  const button = (words: string, onClick: () => void) =>
    h(
      'button',
      { type: 'button', class: 'quiet', 'aria-label': `Save ${title} as ${words}`, onClick },
      words,
    );
  return h(
    'div',
    { class: 'save' },
    button('CSV', () => text(files.csv(), 'text/csv', 'csv')),
    button('PNG', () => files.png((blob) => save(blob, 'png'))),
    button('SVG', () => text(files.svg(), 'image/svg+xml', 'svg')),
  );
}

export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** One line for each point: the curve, x, y. All points that the page has, not those of the picture. */
function csvOf({ curves, xLabel, yLabel }: ChartContent): string {
  const hasBands = curves.some(({ low }) => low);
  return csvText([
    ['curve', xLabel, yLabel, ...(hasBands ? ['low', 'high'] : [])],
    ...curves.flatMap(({ label, x, y, low, high }) =>
      x.map((each, i) => [label, each, y[i], ...(hasBands ? [low?.[i], high?.[i]] : [])]),
    ),
  ]);
}

/** RFC 4180, but for its line ends. */
export function csvText(
  rows: readonly (readonly (string | number | null | undefined)[])[],
): string {
  const quoted = (cell: string | number | null | undefined) => {
    const text = String(cell ?? '');
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(quoted).join()}\n`).join('');
}

const WIDTH = 900;
const HEIGHT = 480;
const BOX = { left: 70, right: 20, top: 44, bottom: 50 };

/** A drawing of its own size, with ticks at round numbers. */
function svgOf(content: ChartContent, title: string): string {
  const { curves, marks = [] } = content;
  const drawn = curves.filter(({ x }) => x.length > 0);
  const x = scaleOf(
    drawn.flatMap((curve) => curve.x),
    content.xLog ?? false,
    [BOX.left, WIDTH - BOX.right],
  );
  const y = scaleOf(
    drawn.flatMap(({ y: middle, low = [], high = [] }) =>
      [...middle, ...low, ...high].filter((value) => value !== null),
    ),
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
    ...drawn.flatMap((curve) => bandOf(curve, x.at, y.at) ?? []),
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

function bandOf(
  { color, x, low, high }: Curve,
  toX: (v: number) => number,
  toY: (v: number) => number,
): SVGElement | null {
  if (!low || !high) return null;
  const edge = (values: readonly (number | null)[]) =>
    x.flatMap((value, i) => {
      const at = values[i] == null ? Number.NaN : toY(values[i]!);
      return Number.isFinite(at) && Number.isFinite(toX(value))
        ? [`${toX(value).toFixed(1)},${at.toFixed(1)}`]
        : [];
    });
  const points = [...edge(high), ...edge(low).reverse()].join(' ');
  return svg('polygon', { points, fill: colorOf(color), 'fill-opacity': 0.18 });
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

function scaleOf(
  values: readonly number[],
  log: boolean,
  [from, to]: [number, number],
): Pick<Scale, 'ticks' | 'at'> {
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
  return { ticks: log ? logTicks(10 ** low, 10 ** high) : linearTicks(low, high), at };
}
