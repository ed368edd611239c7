import { mix, STREAMS } from '../../../shared/random.ts';
import type { TableInitializer } from '../../../shared/tables.ts';

/** Writes the initial values of the row of a key. @param out shape [width]. */
export type InitialRow = (key: number, out: Float32Array) => void;

/**
 * Initial values that follow from the seed, the table's name and the key alone, so that a row which was never updated
 * need not be kept.
 */
export function createInitialRow(
  initializer: TableInitializer,
  seed: number,
  name: string,
): InitialRow {
  if (initializer.kind === 'zeros') return (_, out) => void out.fill(0);
  let base = mix(seed >>> 0, mix(Math.floor(seed / 2 ** 32) >>> 0, STREAMS.rows));
  for (let i = 0; i < name.length; i++) base = mix(base, name.charCodeAt(i));
  const uniform = (row: number, i: number) => mix(row, i) / 2 ** 32;
  if (initializer.kind === 'uniform') {
    const { limit } = initializer;
    return (key, out) => {
      const row = mix(base, key);
      for (let i = 0; i < out.length; i++) out[i] = limit * (2 * uniform(row, i) - 1);
    };
  }
  const { deviation } = initializer;
  // Box and Muller's method, each pair of uniform numbers for one normal number.
  return (key, out) => {
    const row = mix(base, key);
    for (let i = 0; i < out.length; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform(row, 2 * i)));
      out[i] = deviation * radius * Math.cos(2 * Math.PI * uniform(row, 2 * i + 1));
    }
  };
}
