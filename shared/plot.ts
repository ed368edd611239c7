import type { Axis, ChartFigure, MatrixFigure, ParallelFigure, PlotPoint } from './figure.ts';
import { dashesOf, mixed, tintOf } from './palette.ts';

/**
 * Figures as SVG text, drawn here: no browser, no library; readable in any viewer, light in bytes. The command line
 * writes them to files, the dashboard shows them in its own size and colours. All text is escaped.
 */

/** How a figure is drawn. Colours are of SVG: names, numbers, or variables of a style sheet. */
export interface Look {
  readonly width: number;
  readonly height: number;
  readonly ink: string;
  readonly pale: string;
  readonly surface: string;
  /** The colour of a series by its index, which may be any. */
  readonly color: (index: number) => string;
  /** Lengths of dashes and gaps of its line, where colours alone do not tell it from others. */
  readonly dashes: (index: number) => readonly number[];
  /** From 0, the best, to 1, the worst. */
  readonly heat: (rank: number) => string;
  /** Whether the title stands in the picture: a page has it above. */
  readonly titled: boolean;
}

/** Told apart by people who see colours differently too (Okabe and Ito 2008). */
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#000000'];

/** For files. */
export const PAPER: Look = {
  ...{ width: 760, height: 460, ink: '#222222', pale: '#dddddd', surface: '#ffffff', titled: true },
  color: (index) => {
    const base = COLORS[index % COLORS.length]!;
    const round = Math.floor(index / COLORS.length);
    return round === 0 ? base : mixed(base, '#bbbbbb', tintOf(round));
  },
  dashes: (index) => dashesOf(Math.floor(index / COLORS.length)),
  heat: (rank) => {
    const from = [0, 60, 130];
    const to = [245, 190, 120];
    const mixed = from.map((start, i) => Math.round(start + Math.min(1, rank) * (to[i]! - start)));
    return `rgb(${mixed.join(',')})`;
  },
};

/** The part of a picture that its axes enclose. */
interface Box {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

function boxOf({ width, height, titled }: Look): Box {
  const isNarrow = width < 480;
  return {
    left: isNarrow ? 58 : 76,
    right: width - (isNarrow ? 12 : 24),
    top: titled ? 44 : 14,
    bottom: height - 60,
  };
}

/** Lines, points, bars, error bars and bands over two axes, each linear or logarithmic. */
export function chartSvg(figure: ChartFigure, look = PAPER): string {
  const { title, x, y, series, marks = [] } = figure;
  const named = series
    .map(({ name, color, style }, i) => ({
      ...{ name, color: look.color(color ?? i) },
      dashes: style === 'dashed' ? [6, 4] : look.dashes(color ?? i),
    }))
    .filter(({ name }) => name !== '');
  const whole = boxOf(look);
  const { strip, legend } = legendOf(named, inkOf(figure, whole), whole, look);
  const box = { ...whole, top: whole.top + strip };
  const [xs, ys] = scalesOf(figure, box);
  const parts = [frame(xs, ys, x, y, box, look)];
  series.forEach(({ points, style = 'line', color }, i) => {
    const stroke = look.color(color ?? i);
    const shown = points.filter(
      (point): point is PlotPoint & { x: number; y: number } =>
        xs.holds(point.x) && ys.holds(point.y),
    );
    const isKnown = (value: number | null | undefined): value is number => Number.isFinite(value);
    const edge = (value: number | null | undefined, y: number) =>
      ys.clip(isKnown(value) ? value : y);
    const at = (point: { x: number }, value: number) =>
      `${round(xs.at(point.x))},${round(ys.at(value))}`;
    if (style === 'band') {
      const outline = [
        ...shown.map((point) => at(point, edge(point.high, point.y))),
        ...shown.toReversed().map((point) => at(point, edge(point.low, point.y))),
      ];
      parts.push(
        `<polygon points="${outline.join(' ')}" fill="${stroke}" fill-opacity="0.15" stroke="none"/>`,
      );
      return;
    }
    if (style === 'line' || style === 'curve' || style === 'dashed') {
      const dashes = style === 'dashed' ? [6, 4] : look.dashes(color ?? i);
      const dash = dashes.length === 0 ? '' : ` stroke-dasharray="${dashes.join(' ')}"`;
      parts.push(
        `<polyline points="${shown.map((point) => at(point, point.y)).join(' ')}" fill="none" stroke="${stroke}" stroke-width="2"${dash}/>`,
      );
    }
    for (const point of shown) {
      const cx = round(xs.at(point.x));
      const hint = point.label === undefined ? '' : `<title>${escapeXml(point.label)}</title>`;
      if (style === 'bars') {
        const wide = round(Math.abs(xs.at(point.x + 0.35) - xs.at(point.x - 0.35)));
        const top = round(ys.at(point.y));
        parts.push(
          `<rect x="${round(cx - wide / 2)}" y="${top}" width="${wide}" height="${round(Math.max(0, ys.at(ys.clip(0)) - top))}" fill="${stroke}">${hint}</rect>`,
        );
      }
      if (isKnown(point.low) && isKnown(point.high)) {
        const [top, bottom] = [ys.at(ys.clip(point.high)), ys.at(ys.clip(point.low))].map(round);
        parts.push(
          `<path d="M${cx} ${top}V${bottom}M${cx - 4} ${top}h8M${cx - 4} ${bottom}h8" stroke="${stroke}" fill="none"/>`,
        );
      }
      if (style === 'line' || style === 'scatter') {
        parts.push(
          `<circle cx="${cx}" cy="${round(ys.at(point.y))}" r="3.5" fill="${stroke}">${hint}</circle>`,
        );
      }
    }
  });
  for (const [i, { x: value, text }] of marks.entries()) {
    if (!xs.holds(value)) continue;
    const cx = round(xs.at(value));
    const isLeft = isLeftOf(cx, box);
    parts.push(
      `<path d="M${cx} ${box.top}V${box.bottom}" stroke="${look.ink}" stroke-dasharray="3 3"/>`,
      `<text x="${cx + (isLeft ? -6 : 6)}" y="${markLine(box, i)}" text-anchor="${isLeft ? 'end' : 'start'}" font-weight="bold"${halo(look)}>${escapeXml(text)}</text>`,
    );
  }
  return figureSvg(title, [...parts, legend], look);
}

function scalesOf({ x, y, series }: ChartFigure, box: Box): readonly [Scale, Scale] {
  const all = series.flatMap(({ points }) => points);
  const hasBars = series.some(({ style }) => style === 'bars');
  const xs = scaleOf(
    [
      ...all.map((point) => point.x),
      // Names and bars are wider than a point.
      ...(x.names ? [-0.5, x.names.length - 0.5] : []),
    ],
    { ...x, from: box.left, to: box.right },
  );
  const ys = scaleOf(
    [
      ...all.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]),
      ...(hasBars ? [0] : []),
    ],
    { ...y, from: box.bottom, to: box.top },
  );
  return [xs, ys];
}

interface Place {
  readonly x: number;
  readonly y: number;
}

/** Places that something is drawn at, every few pixels: points, lines between them, bars, and marks with their texts. */
function inkOf(figure: ChartFigure, box: Box): Place[] {
  const [xs, ys] = scalesOf(figure, box);
  const bottom = ys.at(ys.clip(0));
  const lines = figure.series.flatMap(({ points, style = 'line' }) => {
    const places = points
      .filter((point): point is PlotPoint & Place => xs.holds(point.x) && ys.holds(point.y))
      .map((point) => ({ x: xs.at(point.x), y: ys.at(point.y) }));
    return places.map((place, i): readonly [Place, Place] => {
      if (style === 'bars') return [{ x: place.x, y: bottom }, place];
      return [style === 'scatter' ? place : (places[i - 1] ?? place), place];
    });
  });
  for (const [i, { x, text }] of (figure.marks ?? []).entries()) {
    if (!xs.holds(x)) continue;
    const at = xs.at(x);
    const y = markLine(box, i);
    lines.push([
      { x: at, y: box.top },
      { x: at, y: box.bottom },
    ]);
    lines.push([
      { x: at, y },
      { x: at + (isLeftOf(at, box) ? -1 : 1) * letters(text), y },
    ]);
  }
  return lines.flatMap(([from, to]) => {
    const pieces = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / INK_PIXELS));
    return Array.from({ length: pieces + 1 }, (_, k) => ({
      x: from.x + ((to.x - from.x) * k) / pieces,
      y: from.y + ((to.y - from.y) * k) / pieces,
    }));
  });
}

/** The base line of the text of mark `i`. */
const markLine = (box: Box, i: number) => box.top + 14 + 16 * i;
/** Whether the text of a mark stands on its left. */
const isLeftOf = (at: number, box: Box) => at > (box.left + box.right) / 2;
/** The width of a text in pixels, about. */
const letters = (text: string) => 6.4 * text.length;
const INK_PIXELS = 8;

/** One axis for each hyperparameter and one line for each trial, the best ones dark and on top. */
export function parallelSvg({ title, axes, lines }: ParallelFigure, look = PAPER): string {
  const box = boxOf(look);
  const step = (box.right - box.left - 40) / Math.max(1, axes.length - 1);
  const xOf = (i: number) => round(box.left + i * step);
  const yOf = (place: number) => round(box.bottom - place * (box.bottom - box.top));
  const parts = [...lines]
    .sort((a, b) => b.rank - a.rank)
    .map(({ label, places, rank }) => {
      const points = axes.map((_, i) => `${xOf(i)},${yOf(places[i] ?? 0.5)}`);
      const best = rank === 0;
      return `<polyline points="${points.join(' ')}" fill="none" stroke="${look.heat(rank)}" stroke-width="${best ? 3 : 1.5}" stroke-opacity="${best ? 1 : 0.75}"><title>${escapeXml(label)}</title></polyline>`;
    });
  axes.forEach(({ label, ticks }, i) => {
    const x = xOf(i);
    parts.push(`<path d="M${x} ${box.top}V${box.bottom}" stroke="${look.ink}"/>`);
    for (const { place, text } of ticks) {
      parts.push(
        `<path d="M${x - 4} ${yOf(place)}h8" stroke="${look.ink}"/>`,
        `<text x="${x + 7}" y="${yOf(place) + 4}" font-size="11"${halo(look)}>${escapeXml(text)}</text>`,
      );
    }
    // Two heights, so that the names of neighbours do not run into each other.
    const y = box.bottom + (i % 2 === 0 ? 22 : 40);
    parts.push(`<text x="${x}" y="${y}" text-anchor="middle">${escapeXml(label)}</text>`);
  });
  return figureSvg(title, parts, look);
}

/** Letters of a name beside a matrix, and how wide one is at most, in pixels. */
const NAME_LETTERS = 20;
const LETTER = 6.8;

/** A matrix of counts: true classes in rows, answers in columns; colour by the share of the row. */
export function matrixSvg({ title, names, counts }: MatrixFigure, look = PAPER): string {
  const size = counts.length;
  // Names at the left and, where they are wider than a column, upright above.
  const longest = Math.max(1, ...names.slice(0, size).map((name) => name.length));
  const nameWidth = Math.min(NAME_LETTERS, longest) * LETTER;
  const left = Math.max(64, Math.ceil(nameWidth) + 36);
  const room = Math.min(560, look.width - left - 12);
  const cell = Math.max(6, Math.min(46, Math.floor(room / Math.max(1, size))));
  const isUpright = nameWidth > cell * Math.max(1, Math.ceil(14 / cell)) - 4;
  const top = (look.titled ? 70 : 46) + (isUpright ? Math.ceil(nameWidth) - 12 : 0);
  const every = Math.max(1, Math.ceil(14 / cell));
  const shortName = (i: number) => {
    const name = names[i] ?? String(i);
    return name.length <= NAME_LETTERS ? name : `${name.slice(0, NAME_LETTERS - 1)}…`;
  };
  const above = (i: number) => {
    const [x, y] = [left + i * cell + cell / 2, top - 8];
    const how = isUpright
      ? `transform="rotate(-90 ${x + 4} ${y})" x="${x + 4}"`
      : `text-anchor="middle" x="${x}"`;
    return `<text ${how} y="${y}">${escapeXml(shortName(i))}</text>`;
  };
  const parts = [
    `<text x="${left + (size * cell) / 2}" y="${look.titled ? 44 : 16}" text-anchor="middle">answer</text>`,
    `<text x="16" y="${top + (size * cell) / 2}" text-anchor="middle" transform="rotate(-90 16 ${top + (size * cell) / 2})">true class</text>`,
  ];
  counts.forEach((row, i) => {
    const total = row.reduce((a, b) => a + b, 0);
    const y = top + i * cell;
    const name = names[i] ?? String(i);
    if (i % every === 0) {
      parts.push(
        `<text x="${left - 6}" y="${y + cell / 2 + 4}" text-anchor="end">${escapeXml(shortName(i))}</text>`,
        above(i),
      );
    }
    row.forEach((count, j) => {
      const share = total === 0 ? 0 : count / total;
      const [fill, strength] = i === j ? [look.color(0), share] : [look.color(1), Math.sqrt(share)];
      const x = left + j * cell;
      const hint = `is ${name}, said ${names[j] ?? j}: ${count} of ${total}`;
      parts.push(
        `<rect x="${x}" y="${y}" width="${cell}" height="${cell}" fill="${fill}" fill-opacity="${round(100 * strength) / 100}" stroke="${look.pale}"><title>${escapeXml(hint)}</title></rect>`,
      );
      if (cell >= 22 && count > 0) {
        const ink = strength > 0.5 ? look.surface : look.ink;
        parts.push(
          `<text x="${x + cell / 2}" y="${y + cell / 2 + 4}" font-size="11" text-anchor="middle" fill="${ink}" pointer-events="none">${count}</text>`,
        );
      }
    });
  });
  return figureSvg(title, parts, {
    ...look,
    width: left + size * cell + (look.titled ? 30 : 2),
    height: top + size * cell + (look.titled ? 20 : 2),
  });
}

/** Text that can be read on lines. */
const halo = ({ surface }: Look) => ` stroke="${surface}" stroke-width="3" paint-order="stroke"`;

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

export interface Scale {
  readonly ticks: readonly number[];
  at(value: number): number;
  holds(value: number | null | undefined): value is number;
  clip(value: number): number;
}

/** What is next to 0 has no size to make room by. */
const sizeOf = (value: number) => (Math.abs(value) > 1e-300 ? Math.abs(value) : 1);

/** ln of the smallest number that is drawn. */
const LOG_MIN = -700;

/** Maps the range of some values, widened a little, to pixels; what is not drawable is left out. */
function scaleOf(
  values: readonly (number | null | undefined)[],
  { log = false, from, to }: { readonly log?: boolean; readonly from: number; readonly to: number },
): Scale {
  const holds = (value: number | null | undefined): value is number =>
    value != null && Number.isFinite(value) && (!log || value > Math.exp(LOG_MIN));
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!holds(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = [log ? 0.1 : 0, 1];
  const map = log ? Math.log : (value: number) => value;
  const back = log ? Math.exp : (value: number) => value;
  if (low === high) {
    [low, high] = log ? [low / 2, high * 2] : [low - sizeOf(low) / 2, high + sizeOf(high) / 2];
  }
  const room = 0.05 * (map(high) - map(low));
  // A logarithmic scale stays within what a double can hold: below it lies 0, which has no logarithm.
  const [start, end] = [
    log ? Math.max(LOG_MIN, map(low) - room) : map(low) - room,
    log ? Math.min(-LOG_MIN, map(high) + room) : map(high) + room,
  ];
  return {
    ticks: log ? logTicks(back(start), back(end)) : linearTicks(start, end),
    at: (value) => from + ((map(value) - start) / (end - start)) * (to - from),
    holds,
    clip: (value) => Math.min(back(end), Math.max(back(start), holds(value) ? value : back(start))),
  };
}

function frame(xs: Scale, ys: Scale, x: Axis, y: Axis, box: Box, look: Look): string {
  const { left, right, top, bottom } = box;
  const parts: string[] = [];
  let free = Number.NEGATIVE_INFINITY;
  const words = x.names?.map((name, i) => [i, name] as const);
  for (const [tick, text] of words ?? xs.ticks.map((t) => [t, tickOf(x)(t)] as const)) {
    const at = round(xs.at(tick));
    const fits = Math.max(4, Math.floor((right - left) / Math.max(1, words?.length ?? 1) / 6.2));
    const shown = words && text.length > fits ? `${text.slice(0, fits - 1)}…` : text;
    if (!words) parts.push(`<path d="M${at} ${top}V${bottom}" stroke="${look.pale}"/>`);
    // Where there is no room for all, some ticks have no number.
    const half = 3.6 * shown.length;
    if (at - half < free) continue;
    free = at + half + 4;
    parts.push(
      `<text x="${at}" y="${bottom + 18}" text-anchor="middle">${escapeXml(shown)}</text>`,
    );
  }
  for (const tick of ys.ticks) {
    const at = round(ys.at(tick));
    parts.push(
      `<path d="M${left} ${at}H${right}" stroke="${look.pale}"/>`,
      `<text x="${left - 8}" y="${at + 4}" text-anchor="end">${tickOf(y)(tick)}</text>`,
    );
  }
  const middle = (top + bottom) / 2;
  parts.push(
    `<path d="M${left} ${top}V${bottom}H${right}" stroke="${look.ink}" fill="none"/>`,
    `<text x="${(left + right) / 2}" y="${look.height - 16}" text-anchor="middle">${escapeXml(x.label)}</text>`,
    `<text x="14" y="${middle}" text-anchor="middle" transform="rotate(-90 14 ${middle})">${escapeXml(y.label)}</text>`,
  );
  return parts.join('');
}

interface NamedSeries {
  readonly name: string;
  readonly color: string;
  readonly dashes: readonly number[];
}

/** The most of a picture's height that a legend above the plot may take. */
const STRIP_SHARE = 1 / 4;
const ROW_PIXELS = 18;
const textPixels = (name: string) => round(34 + letters(name));

/**
 * The legend in a corner where it hides nothing; if there is none, above the plot, which gives way by `strip` pixels; if that
 * would take too much of it, in the corner where it hides least.
 */
function legendOf(
  named: readonly NamedSeries[],
  ink: readonly Place[],
  box: Box,
  look: Look,
): { readonly strip: number; readonly legend: string } {
  if (named.length < 2) return { strip: 0, legend: '' };
  const width = Math.max(...named.map(({ name }) => textPixels(name)));
  const height = ROW_PIXELS * named.length + 8;
  const hidden = (corner: Place) =>
    ink.filter(
      ({ x, y }) =>
        x >= corner.x && x <= corner.x + width && y >= corner.y && y <= corner.y + height,
    ).length;
  const corners = [box.right - width - 6, box.left + 6].flatMap((x) =>
    [box.top + 4, box.bottom - height - 4].map((y) => ({ x, y })),
  );
  const corner = corners.reduce((a, b) => (hidden(b) < hidden(a) ? b : a));
  if (hidden(corner) > 0) {
    const places = rowsOf(named, box);
    const strip = places.at(-1)!.y + ROW_PIXELS - box.top + 6;
    if (strip <= STRIP_SHARE * look.height) {
      return { strip, legend: named.map((each, i) => nameOf(each, places[i]!)).join('') };
    }
  }
  const { x, y } = corner;
  const rows = named.map((each, i) => nameOf(each, { x, y: y + 4 + ROW_PIXELS * i }));
  const back = `<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${look.surface}" fill-opacity="0.85" stroke="${look.pale}"/>`;
  return { strip: 0, legend: back + rows.join('') };
}

/** Where names go that stand in rows from the top of the box, the upper left corner of each. */
function rowsOf(named: readonly NamedSeries[], box: Box): Place[] {
  let [x, y] = [box.left, box.top];
  return named.map(({ name }) => {
    const width = textPixels(name);
    if (x > box.left && x + width > box.right) [x, y] = [box.left, y + ROW_PIXELS];
    const place = { x, y };
    x += width;
    return place;
  });
}

const nameOf = ({ name, color, dashes }: NamedSeries, { x, y }: Place): string =>
  `<path d="M${x + 8} ${y + 9}h14" stroke="${color}" stroke-width="3" stroke-dasharray="${dashes.join(' ')}"/>` +
  `<text x="${x + 28}" y="${y + 13}">${escapeXml(name)}</text>`;

/** A whole figure, with its title where the look has one. */
export function figureSvg(
  title: string,
  parts: readonly string[],
  { width, height, ink, surface, titled }: Omit<Look, 'color' | 'dashes' | 'heat' | 'pale'> = PAPER,
): string {
  const words = escapeXml(title);
  const head = titled
    ? `<text x="${width / 2}" y="26" text-anchor="middle" font-size="15" font-weight="bold">${words}</text>`
    : '';
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="${ink}" role="img" aria-label="${words}">` +
    `${titled ? `<title>${words}</title>` : ''}<rect width="100%" height="100%" fill="${surface}"/>${head}` +
    `${parts.join('\n')}</svg>\n`
  );
}

/** How the ticks of an axis are written: shares as tables have them. */
const tickOf = (axis: Axis) => (value: number) =>
  axis.percent ? `${tickText(Number((100 * value).toPrecision(6)))} %` : tickText(value);

const round = (value: number) => Math.round(value * 10) / 10;

export function escapeXml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
