import { PNG } from 'pngjs';
import type { ExampleView } from '../shared/example-view.ts';
import type { ChartFigure, MatrixFigure, ThresholdsFigure } from '../shared/figure.ts';
import { escapeXml, figureSvg, PAPER } from '../shared/plot.ts';

/** Figures of a model: pictures with captions, a matrix of counts, thresholds, histograms over time. */

export interface SheetCard {
  readonly shown: ExampleView;
  /** Lines below it. */
  readonly caption: readonly string[];
  /** Framed in another colour. */
  readonly wrong: boolean;
}

/** Examples with captions; unlike a `GalleryFigure`, of any number and in full size. */
export interface Gallery {
  readonly kind: 'gallery';
  readonly title: string;
  readonly cards: readonly SheetCard[];
}

export const contactSheet = (title: string, cards: readonly SheetCard[]): Gallery => ({
  ...{ kind: 'gallery', title, cards },
});

const COLUMNS = 8;
const CARD = { width: 118, image: 84, line: 14, gap: 10 };

export function galleryPicture({ title, cards }: Gallery): string {
  const captions = cards.map(({ caption }) => caption.flatMap(wrapped));
  const lines = Math.max(1, ...captions.map(({ length }) => length));
  const cardHeight = CARD.image + lines * CARD.line + 12;
  const columns = Math.min(COLUMNS, Math.max(4, cards.length));
  const parts = cards.map(({ shown, wrong }, i) => {
    const x = CARD.gap + (i % columns) * (CARD.width + CARD.gap);
    const y = 44 + Math.floor(i / columns) * (cardHeight + CARD.gap);
    const frame = `<rect x="${x}" y="${y}" width="${CARD.width}" height="${cardHeight}" fill="none" stroke="${wrong ? '#d55e00' : '#bbbbbb'}"/>`;
    const text = captions[i]!.map(
      (line, l) =>
        `<text x="${x + 6}" y="${y + CARD.image + 14 + l * CARD.line}" font-size="11">${escapeXml(line)}</text>`,
    );
    return frame + drawn(shown, x, y) + text.join('');
  });
  const rows = Math.ceil(cards.length / columns);
  return figureSvg(title, parts, {
    ...PAPER,
    width: CARD.gap + columns * (CARD.width + CARD.gap),
    height: 50 + rows * (cardHeight + CARD.gap),
  });
}

/** Letters of a caption that a card is wide, at 11 pixels. */
const LINE_LETTERS = 18;

/** A caption in lines that a card has room for; a word that is longer is cut in pieces. */
function wrapped(caption: string): string[] {
  const lines: string[] = [];
  for (const word of caption.split(' ')) {
    for (let at = 0; at === 0 || at < word.length; at += LINE_LETTERS) {
      const piece = word.slice(at, at + LINE_LETTERS);
      const last = lines.at(-1);
      if (last !== undefined && at === 0 && last.length + 1 + piece.length <= LINE_LETTERS) {
        lines[lines.length - 1] = `${last} ${piece}`;
      } else lines.push(piece);
    }
  }
  return lines;
}

function drawn(shown: ExampleView, x: number, y: number): string {
  if (shown.kind === 'image') {
    const href = `data:image/png;base64,${pngOf(shown).toString('base64')}`;
    const at = `x="${x + (CARD.width - CARD.image) / 2}" y="${y + 3}" width="${CARD.image}" height="${CARD.image - 6}"`;
    return `<image ${at} href="${href}" style="image-rendering:pixelated"/>`;
  }
  const rows: string[] = [];
  for (const line of shown.text.split('\n').slice(0, 6)) {
    const fits = line.length > 19 ? `${line.slice(0, 18)}…` : line;
    rows.push(
      `<text x="${x + 6}" y="${y + 14 + rows.length * 13}" font-size="10" font-family="monospace">${escapeXml(fits)}</text>`,
    );
  }
  return rows.join('');
}

/** Encoded, with the size that it has. */
export function pngOf(shown: Extract<ExampleView, { kind: 'image' }>): Buffer {
  const { width, height, channels, pixels } = shown;
  const png = new PNG({ width, height });
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      png.data[4 * i + c] = pixels[i * channels + (channels === 1 ? 0 : c)]!;
    }
    png.data[4 * i + 3] = channels === 4 ? pixels[i * channels + 3]! : 255;
  }
  return PNG.sync.write(png);
}

/** Counts by true class and answer. */
export const matrixFigure = (
  title: string,
  counts: readonly (readonly number[])[],
  names: readonly string[] = counts.map((_, i) => String(i)),
): MatrixFigure => ({
  ...{ kind: 'matrix', title, names: [...names], counts: counts.map((row) => [...row]) },
});

/** The curve that the thresholds make, and those of the table. */
export const thresholdsChart = ({ title, points, choices }: ThresholdsFigure): ChartFigure => ({
  ...{ kind: 'chart', title, x: { label: 'coverage' }, y: { label: 'accuracy' } },
  series: [
    {
      name: 'calibrated, measured on the other half',
      style: 'curve',
      points: points.map(({ coverage, accuracy }) => ({ x: coverage, y: accuracy })),
    },
    choices,
  ],
});

export interface HistogramAt {
  readonly step: number;
  readonly low: number;
  readonly high: number;
  readonly counts: readonly number[];
}

/** One panel for each row of histograms over steps: the darker, the larger the share of that step. */
export interface Histograms {
  readonly kind: 'histograms';
  readonly title: string;
  readonly panels: readonly { readonly name: string; readonly over: readonly HistogramAt[] }[];
}

export const histogramsFigure = (title: string, panels: Histograms['panels']): Histograms => ({
  ...{ kind: 'histograms', title, panels },
});

export function histogramsPicture({ title, panels }: Histograms): string {
  const [width, height, gap, columns] = [340, 150, 50, 2];
  const parts = panels.map(({ name, over }, p) => {
    const x0 = 70 + (p % columns) * (width + 80);
    const y0 = 70 + Math.floor(p / columns) * (height + gap);
    const low = Math.min(...over.map((h) => h.low));
    const high = Math.max(...over.map((h) => h.high));
    const yOf = (value: number) =>
      y0 + height - ((value - low) / Math.max(high - low, 1e-30)) * height;
    const column = width / Math.max(1, over.length);
    const cells = over.flatMap((h, i) => {
      const most = Math.max(1, ...h.counts);
      return h.counts.map((count, b) => {
        if (count === 0) return '';
        const from = h.low + ((h.high - h.low) * b) / h.counts.length;
        const to = h.low + ((h.high - h.low) * (b + 1)) / h.counts.length;
        const tall = Math.max(0.6, yOf(from) - yOf(to));
        return `<rect x="${(x0 + i * column).toFixed(1)}" y="${yOf(to).toFixed(1)}" width="${(column + 0.2).toFixed(1)}" height="${tall.toFixed(1)}" fill="#0072b2" fill-opacity="${(0.08 + 0.92 * Math.sqrt(count / most)).toFixed(2)}"/>`;
      });
    });
    const text = (value: number) => String(Number(value.toPrecision(2)));
    return [
      `<rect x="${x0}" y="${y0}" width="${width}" height="${height}" fill="none" stroke="#999999"/>`,
      ...cells,
      `<text x="${x0}" y="${y0 - 6}" font-weight="bold">${escapeXml(name)}</text>`,
      `<text x="${x0 - 6}" y="${y0 + 10}" text-anchor="end" font-size="10">${text(high)}</text>`,
      `<text x="${x0 - 6}" y="${y0 + height}" text-anchor="end" font-size="10">${text(low)}</text>`,
      `<text x="${x0}" y="${y0 + height + 14}" font-size="10">step ${over[0]?.step ?? 0}</text>`,
      `<text x="${x0 + width}" y="${y0 + height + 14}" text-anchor="end" font-size="10">${over.at(-1)?.step ?? 0}</text>`,
    ].join('');
  });
  const rows = Math.ceil(panels.length / columns);
  return figureSvg(title, parts, { ...PAPER, width: 880, height: 80 + rows * (height + gap) });
}
