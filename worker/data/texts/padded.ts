import { PADDING } from './vocabulary.ts';

/**
 * Writes the first tokens of a text, and fills the rest up with padding.
 * @param length of the example, in tokens @returns how many tokens of the text are left out
 */
export function writePadded(
  tokens: ArrayLike<number>,
  target: Float64Array | Int32Array,
  at: number,
  length: number,
): number {
  const own = Math.min(length, tokens.length);
  for (let i = 0; i < own; i++) target[at + i] = tokens[i]!;
  target.fill(PADDING, at + own, at + length);
  return tokens.length - own;
}
