import { BadExample } from './encode.ts';
import type { EncodedField } from './fields.ts';

/** Ids of examples as places in the embeddings that an export has made of tables. It needs nothing of Node. */

/** What `downpour.json` says of fields whose ids are looked up in tables. */
export interface AboutIds {
  readonly fields: readonly string[];
  /** The place of padding. Negative ids are padding. */
  readonly padding: number;
  readonly zeroIsPadding: boolean;
  /** Ids are below it, and are their places; null: `keys` says the places. */
  readonly ids: number | null;
  /** The file with the keys at the places 1, 2, …, rising, as uint32, little-endian. Others share the place behind them. */
  readonly keys?: string;
}

/** The same with the keys of its file. */
interface OpenIds extends Omit<AboutIds, 'keys'> {
  readonly keys: Uint32Array | null;
}

/** @param read gives a file beside the model. */
export async function placesOf(
  about: AboutIds,
  read: (file: string) => Promise<Uint8Array>,
): Promise<OpenIds> {
  const { keys: file, ...rest } = about;
  if (file === undefined) return { ...rest, keys: null };
  const bytes = await read(file);
  return { ...rest, keys: new Uint32Array(bytes.slice().buffer) };
}

/**
 * Inputs with places instead of ids. @param examples their number.
 * @throws BadExample: a number is no id of the table.
 */
export function inPlaces(
  inputs: Readonly<Record<string, EncodedField>>,
  all: readonly OpenIds[],
  examples: number,
): Readonly<Record<string, EncodedField>> {
  const placed = { ...inputs };
  for (const own of all) {
    for (const name of own.fields) {
      const given = inputs[name];
      if (!given) continue;
      const { values, shape } = given;
      const size = values.length / examples;
      const places = values.slice();
      for (let i = 0; i < values.length; i++) {
        const place = placeOf(values[i]!, own);
        if (place === null) {
          throw new BadExample(
            `example ${Math.floor(i / size)}: '${name}' has ${values[i]}, which is no id of the table: ids are whole numbers${own.ids === null ? '' : ` from 0 to ${own.ids - 1}`}, and negative ones are padding`,
          );
        }
        places[i] = place;
      }
      placed[name] = { values: places, shape };
    }
  }
  return placed;
}

/** @returns null: it is no id. */
function placeOf(id: number, { padding, zeroIsPadding, ids, keys }: OpenIds): number | null {
  if (!Number.isInteger(id)) return null;
  if (id < 0 || (zeroIsPadding && id === 0)) return padding;
  if (keys === null) return id < ids! ? id : null;
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (keys[middle]! < id) low = middle + 1;
    else high = middle;
  }
  // An id without a row of its own: behind all others.
  return keys[low] === id ? low + 1 : keys.length + 1;
}
