import { mix, STREAMS } from '../../../shared/random.ts';
import type { TableInitializer } from '../../../shared/tables.ts';
import type { RowMemory } from './row-memory.ts';

/** Writes the initial values of the row of a key. @param address in the memory of the table. */
export type InitialRow = (key: number, address: number) => void;

/**
 * Initial values that follow from the seed, the table's name and the key alone, so that a row which was never updated
 * need not be kept.
 */
export function createInitialRow(
  initializer: TableInitializer,
  seed: number,
  name: string,
  { floats, kernels, width }: RowMemory,
): InitialRow {
  if (initializer.kind === 'zeros') {
    return (_, address) => void floats.fill(0, address / 4, address / 4 + width);
  }
  let base = mix(seed >>> 0, mix(Math.floor(seed / 2 ** 32) >>> 0, STREAMS.rows));
  for (let i = 0; i < name.length; i++) base = mix(base, name.charCodeAt(i));
  if (initializer.kind === 'uniform') {
    const { limit } = initializer;
    return (key, address) => kernels.rows_uniform(mix(base, key), width, limit, address);
  }
  const { deviation } = initializer;
  const uniform = (row: number, i: number) => mix(row, i) / 2 ** 32;
  // Box and Muller's method, each pair of uniform numbers for one normal number.
  return (key, address) => {
    const row = mix(base, key);
    const at = address / 4;
    for (let i = 0; i < width; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform(row, 2 * i)));
      floats[at + i] = deviation * radius * Math.cos(2 * Math.PI * uniform(row, 2 * i + 1));
    }
  };
}
