import { dashesOf, mixed, tintOf } from '../shared/palette.ts';

/** The colours of the style sheet, `--series-0` to `--series-7`, and what comes after them. */

/** Index of a curve, or the name of a colour of the style sheet. */
export type Color = number | 'muted';

const COLOR_COUNT = 8;
const roundOf = (index: number) => Math.floor(index / COLOR_COUNT);

/** For elements and SVG, which follow the theme by themselves. */
export function styledColorOf(color: Color): string {
  if (color === 'muted') return 'var(--muted)';
  const base = `var(--series-${color % COLOR_COUNT})`;
  const round = roundOf(color);
  if (round === 0) return base;
  return `color-mix(in srgb, ${base} ${100 * tintOf(round)}%, var(--text))`;
}

/** The same as a number, for pictures. @param styleOf a colour of the style sheet, by its name, as `#rrggbb`. */
export function colorIn(styleOf: (name: string) => string, color: Color): string {
  if (color === 'muted') return styleOf('--muted');
  const base = styleOf(`--series-${color % COLOR_COUNT}`);
  const round = roundOf(color);
  return round === 0 ? base : mixed(base, styleOf('--text'), tintOf(round));
}

/** Lengths of dashes and gaps in pixels; empty: a solid line. */
export const lineDashesOf = (color: Color): number[] =>
  color === 'muted' ? [] : dashesOf(roundOf(color));
