import { LIMITS } from '../shared/limits.ts';
import { vocabularyOf } from './data/columns.ts';
import { columnOfField, type Examples, type PreparedData } from './data/examples.ts';
import { examplesAt } from './data/stored.ts';
import type { Model } from './model.ts';
import type { RowSource } from './rows/model-rows.ts';

/** Words of a trained model: the vectors that it has of them, and the examples that they are in. */

export interface ModelWords {
  /** The table, or the layer of the embedding. */
  readonly name: string;
  /** Those with a text, in the order of their ids. */
  readonly words: readonly string[];
  /** Shape [words, width]. */
  readonly values: Float32Array;
  readonly width: number;
}

/** Rows that are read at once. */
const ROWS_AT_ONCE = 2 ** 14;

/**
 * The vectors of each table and embedding whose ids have texts; at most `LIMITS.lookedNumbersMax` numbers of each: those of
 * the first ids.
 * @param rows of the tables; null: they are not known.
 * @param given words of ids of tables, beside the vocabularies of the data.
 */
export async function modelWords(
  model: Pick<Model, 'rows' | 'embeddings'>,
  { train }: Pick<PreparedData, 'train'>,
  rows: RowSource | null,
  given: Readonly<Record<string, readonly string[]>> = {},
): Promise<readonly ModelWords[]> {
  const found = new Map<string, ModelWords>();
  const textsOf = (field: string) => {
    const column = columnOfField(train, field);
    return column ? vocabularyOf(column) : null;
  };
  for (const { layer, field, values, width } of model.embeddings()) {
    const texts = textsOf(field);
    if (!texts || found.has(layer)) continue;
    const ids = idsWithText(texts, values.length / width, width);
    const own = new Float32Array(ids.length * width);
    for (const [i, id] of ids.entries()) {
      own.set(values.subarray(id * width, (id + 1) * width), i * width);
    }
    found.set(layer, { name: layer, words: wordsAt(texts, ids), values: own, width });
  }
  const { bindings = [], shapes = [] } = model.rows ?? {};
  for (const { table, field } of rows ? bindings : []) {
    const texts = textsOf(field) ?? given[table];
    if (!texts || found.has(table)) continue;
    const { width, keysMax } = shapes.find(({ name }) => name === table)!;
    const ids = idsWithText(texts, keysMax, width);
    const values = new Float32Array(ids.length * width);
    for (let from = 0; from < ids.length; from += ROWS_AT_ONCE) {
      const some = ids.subarray(from, from + ROWS_AT_ONCE);
      const keys = shapes.map(({ name }) => (name === table ? some : new Uint32Array(0)));
      const read = await rows!(keys);
      values.set(read[shapes.findIndex(({ name }) => name === table)]!.values, from * width);
    }
    found.set(table, { name: table, words: wordsAt(texts, ids), values, width });
  }
  return [...found.values()];
}

const wordsAt = (texts: readonly string[], ids: Uint32Array) => Array.from(ids, (id) => texts[id]!);

/** Ids below `count` that have a text, rising: as many as fit. */
function idsWithText(texts: readonly string[], count: number, width: number): Uint32Array {
  const ids: number[] = [];
  const most = Math.floor(LIMITS.lookedNumbersMax / width);
  for (let id = 0; id < Math.min(texts.length, count) && ids.length < most; id++) {
    if (texts[id] !== '') ids.push(id);
  }
  return Uint32Array.from(ids);
}

/** Ids that examples have in one field, with the texts of all ids. */
export interface ExampleWords {
  readonly texts: readonly string[];
  /** @param i among the rows asked for. */
  idsOf(i: number): Iterable<number>;
}

/**
 * The first input whose ids have texts. @param rows of the part.
 * @returns null: there is none. @throws what reading a source throws.
 */
export async function exampleWords(
  examples: Examples,
  rows: Int32Array,
): Promise<ExampleWords | null> {
  const names = Object.entries(examples.fields ?? {}).flatMap(([name, { role }]) =>
    role === 'input' ? [name] : [],
  );
  for (const name of ['inputs', ...names]) {
    const texts = vocabularyOf(columnOfField(examples, name)!);
    if (!texts) continue;
    const { values, shape } = columnOfField(await examplesAt(examples, rows), name)!;
    const size = values.length / shape[0]!;
    return { texts, idsOf: (i) => values.subarray(i * size, (i + 1) * size) };
  }
  return null;
}
