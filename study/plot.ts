/** Plots as SVG text, written here: no browser, no library; readable in any viewer, light in bytes. */

export interface PlotPoint {
  readonly x: number;
  readonly y: number;
  /** Ends of an error bar in y. */
  readonly low?: number;
  readonly high?: number;
}

export interface Series {
  readonly name: string;
  readonly points: readonly PlotPoint[];
  /** Default: line. `curve`: one without its points. `band`: the area between low and high. */
  readonly style?: 'line' | 'curve' | 'dashed' | 'scatter' | 'band';
  /** Index of the colour; default: the series' own. Lets a band share its line's. */
  readonly color?: number;
}

export interface Axis {
  readonly label: string;
  readonly log?: boolean;
}

export interface ChartOptions {
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
}

const WIDTH = 760;
const HEIGHT = 460;
const MARGIN = { left: 76, right: 24, top: 44, bottom: 60 };
/** Told apart by people who see colours differently too (Okabe and Ito 2008). */
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000'];
const INK = '#222222';
const PALE = '#dddddd';

/** Lines, points, error bars and bands over two axes, each linear or logarithmic. */
export function chart({ title, x, y, series }: ChartOptions): string {
  const all = series.flatMap(({ points }) => points);
  const xs = scaleOf(
    all.map((point) => point.x),
    x.log === true,
    MARGIN.left,
    WIDTH - MARGIN.right,
  );
  const ys = scaleOf(
    all.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]),
    y.log === true,
    HEIGHT - MARGIN.bottom,
    MARGIN.top,
  );
  const parts = [frame(xs, ys, x.label, y.label)];
  series.forEach(({ points, style = 'line', color }, i) => {
    const stroke = colorOf(color ?? i);
    const shown = points.filter((point) => xs.holds(point.x) && ys.holds(point.y));
    const at = (point: PlotPoint, value: number) =>
      `${round(xs.at(point.x))},${round(ys.at(value))}`;
    if (style === 'band') {
      const outline = [
        ...shown.map((point) => at(point, ys.clip(point.high ?? point.y))),
        ...shown.toReversed().map((point) => at(point, ys.clip(point.low ?? point.y))),
      ];
      parts.push(
        `<polygon points="${outline.join(' ')}" fill="${stroke}" fill-opacity="0.15" stroke="none"/>`,
      );
      return;
    }
    if (style !== 'scatter') {
      const dash = style === 'dashed' ? ' stroke-dasharray="6 4"' : '';
      parts.push(
        `<polyline points="${shown.map((point) => at(point, point.y)).join(' ')}" fill="none" stroke="${stroke}" stroke-width="2"${dash}/>`,
      );
    }
    for (const point of shown) {
      const cx = round(xs.at(point.x));
      if (point.low !== undefined && point.high !== undefined) {
        const [top, bottom] = [ys.at(ys.clip(point.high)), ys.at(ys.clip(point.low))].map(round);
        parts.push(
          `<path d="M${cx} ${top}V${bottom}M${cx - 4} ${top}h8M${cx - 4} ${bottom}h8" stroke="${stroke}" fill="none"/>`,
        );
      }
      if (style !== 'dashed' && style !== 'curve') {
        parts.push(`<circle cx="${cx}" cy="${round(ys.at(point.y))}" r="3.5" fill="${stroke}"/>`);
      }
    }
  });
  const drawn = series.flatMap(({ points }) =>
    points
      .filter((point) => xs.holds(point.x) && ys.holds(point.y))
      .map((point) => ({ x: xs.at(point.x), y: ys.at(point.y) })),
  );
  const named = series
    .map(({ name, color }, i) => ({ name, color: colorOf(color ?? i) }))
    .filter(({ name }) => name !== '');
  return svg(title, [...parts, legend(named, drawn)]);
}

export interface ParallelAxis {
  readonly label: string;
  /** Where a value stands, from 0 (below) to 1 (above); null: the line passes by in the middle. */
  readonly place: (value: unknown) => number | null;
  /** Written beside the axis, from below to above. */
  readonly ticks: readonly { readonly place: number; readonly text: string }[];
}

export interface ParallelLine {
  /** One for each axis. */
  readonly values: readonly unknown[];
  /** From 0, the best, to 1, the worst: its colour, and the order of drawing. */
  readonly rank: number;
}

/** One axis for each hyperparameter and one line for each trial, the best ones dark and on top. */
export function parallelCoordinates(options: {
  readonly title: string;
  readonly axes: readonly ParallelAxis[];
  readonly lines: readonly ParallelLine[];
}): string {
  const { axes, lines } = options;
  const bottom = HEIGHT - MARGIN.bottom;
  const step = (WIDTH - 2 * MARGIN.left) / Math.max(1, axes.length - 1);
  const xOf = (i: number) => round(MARGIN.left + i * step);
  const yOf = (place: number) => round(bottom - place * (bottom - MARGIN.top));
  const parts = [...lines]
    .sort((a, b) => b.rank - a.rank)
    .map(({ values, rank }) => {
      const points = values.map((value, i) => `${xOf(i)},${yOf(axes[i]!.place(value) ?? 0.5)}`);
      const best = rank === 0;
      return `<polyline points="${points.join(' ')}" fill="none" stroke="${heat(rank)}" stroke-width="${best ? 3 : 1.5}" stroke-opacity="${best ? 1 : 0.75}"/>`;
    });
  axes.forEach(({ label, ticks }, i) => {
    const x = xOf(i);
    parts.push(`<path d="M${x} ${MARGIN.top}V${bottom}" stroke="${INK}"/>`);
    for (const { place, text } of ticks) {
      parts.push(
        `<path d="M${x - 4} ${yOf(place)}h8" stroke="${INK}"/>`,
        `<text x="${x + 7}" y="${yOf(place) + 4}" font-size="11" stroke="#ffffff" stroke-width="3" paint-order="stroke">${escapeXml(text)}</text>`,
      );
    }
    // Two heights, so that the names of neighbours do not run into each other.
    const y = bottom + (i % 2 === 0 ? 22 : 40);
    parts.push(`<text x="${x}" y="${y}" text-anchor="middle">${escapeXml(label)}</text>`);
  });
  return svg(options.title, parts);
}

/** Numbers for ticks: `0.001`, `1e-5`, `20000`. */
export function tickText(value: number): string {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential().replace('e+', 'e');
  return String(Number(value.toPrecision(4)));
}

/** Round numbers that cut a range into about six parts. */
export function linearTicks(low: number, high: number): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough)!;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(12)),
  );
}

/** Powers of ten, with 2 and 5 times them where the range is short. */
export function logTicks(low: number, high: number): number[] {
  const decades = Math.log10(high / low);
  const factors = decades < 1 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 3 ? [1, 2, 5] : [1];
  const ticks: number[] = [];
  const skip = Math.max(1, Math.ceil(decades / 8));
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (e % skip !== 0) continue;
    for (const factor of factors) {
      const tick = Number((factor * 10 ** e).toPrecision(6));
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

interface Scale {
  readonly ticks: readonly number[];
  at(value: number): number;
  holds(value: number): boolean;
  clip(value: number): number;
}

/** Maps the range of some values, widened a little, to pixels; what is not drawable is left out. */
function scaleOf(values: readonly number[], log: boolean, from: number, to: number): Scale {
  const holds = (value: number) => Number.isFinite(value) && (!log || value > 0);
  const drawable = values.filter(holds);
  let low = drawable.length === 0 ? (log ? 0.1 : 0) : Math.min(...drawable);
  let high = drawable.length === 0 ? 1 : Math.max(...drawable);
  const map = log ? Math.log : (value: number) => value;
  const back = log ? Math.exp : (value: number) => value;
  if (low === high) {
    [low, high] = log
      ? [low / 2, high * 2]
      : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  }
  const room = 0.05 * (map(high) - map(low));
  const [start, end] = [map(low) - room, map(high) + room];
  return {
    ticks: log ? logTicks(back(start), back(end)) : linearTicks(start, end),
    at: (value) => from + ((map(value) - start) / (end - start)) * (to - from),
    holds,
    clip: (value) => Math.min(back(end), Math.max(back(start), holds(value) ? value : back(start))),
  };
}

function frame(xs: Scale, ys: Scale, xLabel: string, yLabel: string): string {
  const bottom = HEIGHT - MARGIN.bottom;
  const right = WIDTH - MARGIN.right;
  const parts: string[] = [];
  for (const tick of xs.ticks) {
    const x = round(xs.at(tick));
    parts.push(
      `<path d="M${x} ${MARGIN.top}V${bottom}" stroke="${PALE}"/>`,
      `<text x="${x}" y="${bottom + 18}" text-anchor="middle">${tickText(tick)}</text>`,
    );
  }
  for (const tick of ys.ticks) {
    const y = round(ys.at(tick));
    parts.push(
      `<path d="M${MARGIN.left} ${y}H${right}" stroke="${PALE}"/>`,
      `<text x="${MARGIN.left - 8}" y="${y + 4}" text-anchor="end">${tickText(tick)}</text>`,
    );
  }
  const middle = (MARGIN.top + bottom) / 2;
  parts.push(
    `<path d="M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}" stroke="${INK}" fill="none"/>`,
    `<text x="${(MARGIN.left + right) / 2}" y="${HEIGHT - 16}" text-anchor="middle">${escapeXml(xLabel)}</text>`,
    `<text x="18" y="${middle}" text-anchor="middle" transform="rotate(-90 18 ${middle})">${escapeXml(yLabel)}</text>`,
  );
  return parts.join('');
}

/** In the corner where it hides least. */
function legend(
  named: readonly { name: string; color: string }[],
  drawn: readonly { x: number; y: number }[],
): string {
  if (named.length < 2) return '';
  const longest = Math.max(...named.map(({ name }) => name.length));
  const width = round(34 + 6.4 * longest);
  const height = 18 * named.length + 8;
  const corners = [WIDTH - MARGIN.right - width - 6, MARGIN.left + 6].flatMap((x) =>
    [MARGIN.top + 4, HEIGHT - MARGIN.bottom - height - 4].map((y) => ({ x, y })),
  );
  const hidden = (corner: { x: number; y: number }) =>
    drawn.filter(
      ({ x, y }) =>
        x >= corner.x && x <= corner.x + width && y >= corner.y && y <= corner.y + height,
    ).length;
  const { x, y } = corners.reduce((a, b) => (hidden(b) < hidden(a) ? b : a));
  const rows = named.map(
    ({ name, color }, i) =>
      `<path d="M${x + 8} ${y + 13 + 18 * i}h14" stroke="${color}" stroke-width="3"/>` +
      `<text x="${x + 28}" y="${y + 17 + 18 * i}">${escapeXml(name)}</text>`,
  );
  const box = `<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="#ffffff" fill-opacity="0.85" stroke="${PALE}"/>`;
  return box + rows.join('');
}

/** A whole figure with its title. @param size in pixels. */
export function svg(
  title: string,
  parts: readonly string[],
  { width = WIDTH, height = HEIGHT }: { readonly width?: number; readonly height?: number } = {},
): string {
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="${INK}" role="img">` +
    `<title>${escapeXml(title)}</title><rect width="100%" height="100%" fill="#ffffff"/>` +
    `<text x="${width / 2}" y="26" text-anchor="middle" font-size="15" font-weight="bold">${escapeXml(title)}</text>` +
    `${parts.join('\n')}</svg>\n`
  );
}

/** From dark blue, 0, to pale orange, 1. */
export function heat(rank: number): string {
  const from = [0, 60, 130];
  const to = [245, 190, 120];
  const mixed = from.map((start, i) => Math.round(start + Math.min(1, rank) * (to[i]! - start)));
  return `rgb(${mixed.join(',')})`;
}

const colorOf = (index: number) => COLORS[index % COLORS.length]!;
const round = (value: number) => Math.round(value * 10) / 10;

export function escapeXml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
