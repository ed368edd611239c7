/**
 * Colours and dashes of curves: no two curves look the same, however many there are. A palette has few colours; each
 * round through it mixes in more of the ink, and has dashes of its own.
 */

/** @returns how much of the palette's own colour is left, 0.3 to 1. @param round through the palette, from 0. */
export function tintOf(round: number): number {
  return Number((0.3 + 0.7 / (1 + 0.43 * round)).toFixed(4));
}

/** @param first and second as `#rrggbb`. @param share of the first, 0 to 1. */
export function mixed(first: string, second: string, share: number): string {
  const channels = [1, 3, 5].map((at) => {
    const [a, b] = [first, second].map((text) => Number.parseInt(text.slice(at, at + 2), 16));
    return Math.round(share * a! + (1 - share) * b!)
      .toString(16)
      .padStart(2, '0');
  });
  return `#${channels.join('')}`;
}

const FIRST_DASHES: readonly (readonly number[])[] = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

/** Lengths of dashes and gaps in pixels; empty: a solid line. */
export function dashesOf(round: number): number[] {
  const first = FIRST_DASHES[round];
  return first ? [...first] : [round + 8, 3, 2, 3, 2, 3];
}
