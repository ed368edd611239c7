import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { RowShape, TableRows } from '../../shared/rows.ts';
import type { Tables } from '../../shared/tables.ts';
import { vocabularyOf } from '../data/columns.ts';
import type { DataArguments } from '../data/data-arguments.ts';
import { columnOfField, type PreparedData } from '../data/examples.ts';
import { type FieldRules, isRecord } from '../fields.ts';
import type { FrozenRows } from '../rows/kept-rows.ts';
import type { RowBinding } from '../rows/places.ts';
import type { VectorBatch } from './vector-parser.ts';
import { readWordVectors, VECTOR_ENDINGS } from './word-vectors.ts';

/**
 * Tables of an experiment whose rows begin with vectors of a file. The worker that gives the initial parameters sends the
 * rows, and the server keeps them: in its checkpoints, too, so that a run needs the file once. Every other worker looks
 * into the file only to know which rows are frozen.
 */

/** Words by their ids. */
export type WordList =
  | readonly string[]
  | ((args: DataArguments) => readonly string[] | Promise<readonly string[]>);

/** `pretrained` of a table. */
export interface TableVectors {
  /** A file of word vectors, relative to the file of the experiment. The end of its name says the format. */
  readonly from: string;
  /** The hash of the file. The error for a wrong one says the right one. */
  readonly sha256: string;
  /**
   * The word of each id, from 0. Words that the file does not have begin with the values of the initializer; ids with the same
   * word begin with the same vector. Default: the vocabulary of the field that the table is looked up by.
   */
  readonly words?: WordList;
}

const isEnding = (path: string) =>
  VECTOR_ENDINGS.some((ending) => path.toLowerCase().replace(/\.gz$/, '').endsWith(ending));

export const TABLE_VECTORS_FIELDS: FieldRules<keyof TableVectors> = {
  from: {
    allowed: `the path of a file on this machine that ends in ${VECTOR_ENDINGS.join(', ')}, or one of these with .gz`,
    test: (v) => typeof v === 'string' && isEnding(v) && !/^\w+:\/\//.test(v),
  },
  sha256: {
    allowed: "the hash of the file as text; '' gives an error that says it",
    test: (v) => typeof v === 'string',
  },
  words: {
    allowed: 'a list of words, or a function that gives one',
    test: (v) =>
      v === undefined ||
      typeof v === 'function' ||
      (Array.isArray(v) && v.length > 0 && v.every((word) => typeof word === 'string')),
  },
};

/** What of a vocabulary has a vector in the file. */
export interface Coverage {
  readonly table: string;
  readonly words: number;
  readonly found: number;
  /** Ids of the training part, those of padding left out, and how many of them are of words that were found; null: unknown. */
  readonly tokens: { readonly all: number; readonly found: number } | null;
  /** Words that were not found, the first of the vocabulary first: some of them. */
  readonly missing: readonly string[];
}

interface VectorOptions {
  readonly tables: Readonly<Record<string, { readonly pretrained?: TableVectors }>>;
  readonly config: { readonly tables?: Tables | undefined };
  readonly args: DataArguments;
  readonly prepared: PreparedData;
  /** By which fields the tables are looked up. */
  readonly bindings: readonly RowBinding[];
  readonly signal?: AbortSignal | undefined;
}

/** One table with its file. */
interface FoundVectors {
  readonly table: string;
  readonly width: number;
  readonly vectors: TableVectors;
  readonly words: readonly string[];
  readonly ids: IdsOfWords;
  /** 1 for ids whose word the file has. */
  readonly found: Uint8Array;
  readonly isFrozen: boolean;
  /** Null: the file was read; else why it could not be. */
  readonly missing: DownpourError | null;
}

/** The ids of each word, rising. Few words have several: the others cost no list. */
class IdsOfWords {
  readonly #first = new Map<string, number>();
  readonly #more = new Map<string, number[]>();

  /** @param words by their ids; an empty text is none. */
  constructor(words: readonly string[]) {
    for (const [id, word] of words.entries()) {
      if (word === '') continue;
      const first = this.#first.get(word);
      const more = this.#more.get(word);
      if (first === undefined) this.#first.set(word, id);
      else if (more) more.push(id);
      else this.#more.set(word, [first, id]);
    }
  }

  has(word: string): boolean {
    return this.#first.has(word);
  }

  /** The ids of a word that has some. */
  of(word: string): readonly number[] {
    return this.#more.get(word) ?? [this.#first.get(word)!];
  }
}

/** Rows sent in one message. */
const ROWS_AT_ONCE = 2 ** 14;

export class PretrainedTables {
  readonly #tables: readonly FoundVectors[];
  readonly #prepared: PreparedData;
  readonly #bindings: readonly RowBinding[];
  readonly #log: (line: string) => void;
  readonly #signal: AbortSignal | undefined;

  private constructor(tables: readonly FoundVectors[], options: VectorOptions) {
    const { args, prepared, bindings, signal } = options;
    this.#tables = tables;
    this.#prepared = prepared;
    this.#bindings = bindings;
    this.#log = args.log;
    this.#signal = signal;
  }

  /**
   * Looks which words the files have. A file that is not there is an error only for the worker that is to send its rows.
   * @returns null: no table begins with vectors of a file.
   * @throws DownpourError DP_EXPERIMENT_INVALID: words, width or hash do not fit; DP_DATA_CORRUPT, DP_DATA_MISMATCH.
   */
  static async open(options: VectorOptions): Promise<PretrainedTables | null> {
    const given = Object.entries(options.tables).flatMap(([name, { pretrained }]) =>
      pretrained && options.config.tables?.[name] ? [[name, pretrained] as const] : [],
    );
    if (given.length === 0) return null;
    const tables: FoundVectors[] = [];
    for (const [name, vectors] of given) tables.push(await lookUp(name, vectors, options));
    return new PretrainedTables(tables, options);
  }

  /** Which rows of a table are never changed; null: none are, or it is not known. */
  frozen(table: string): FrozenRows | null {
    const own = this.#tables.find((each) => each.table === table);
    if (!own?.isFrozen || own.missing) return null;
    return { has: (key) => own.found[key] === 1 };
  }

  coverage(): readonly Coverage[] {
    return this.#tables.flatMap(({ table, words, found, missing }) => {
      if (missing) return [];
      const fields = this.#bindings.filter((binding) => binding.table === table);
      const named = words.flatMap((word, id) => (word === '' ? [] : [{ word, id }]));
      return {
        ...{ table, words: named.length, found: found.reduce((sum, one) => sum + one, 0) },
        tokens: tokensOf(this.#prepared, fields, found),
        missing: named.flatMap(({ word, id }) => (found[id] === 0 ? word : [])).slice(0, SHOWN),
      };
    });
  }

  /**
   * Rows of all tables, in pieces. @param shapes of all tables of the run.
   * @throws DownpourError as `open`, and DP_DATA_MISSING.
   */
  async send(
    shapes: readonly RowShape[],
    give: (rows: readonly TableRows[]) => Promise<void>,
  ): Promise<void> {
    for (const { table, ids, missing, vectors, width } of this.#tables) {
      if (missing) throw missing;
      const seen = new Set<number>();
      const take = async ({ words, values }: VectorBatch) => {
        const places = words
          .flatMap((word, i) => ids.of(word).map((key) => ({ key, i })))
          // A file may have a word twice: the first one, the more frequent, counts.
          .filter(({ key }) => !seen.has(key) && seen.add(key))
          .sort((a, b) => a.key - b.key);
        for (let from = 0; from < places.length; from += ROWS_AT_ONCE) {
          const some = places.slice(from, from + ROWS_AT_ONCE);
          const rows = new Float32Array(some.length * width);
          for (const [at, { i }] of some.entries()) {
            rows.set(values.subarray(i * width, (i + 1) * width), at * width);
          }
          const own = { keys: Uint32Array.from(some, ({ key }) => key), values: rows };
          await give(shapes.map(({ name }) => (name === table ? own : NO_ROWS)));
        }
      };
      await readWordVectors(vectors.from, take, {
        ...{ wants: (word) => ids.has(word), sha256: vectors.sha256 },
        ...{ log: this.#log, signal: this.#signal },
      });
    }
  }
}

const NO_ROWS: TableRows = { keys: new Uint32Array(0), values: new Float32Array(0) };
const SHOWN = 8;

async function lookUp(
  table: string,
  vectors: TableVectors,
  options: VectorOptions,
): Promise<FoundVectors> {
  const { config, args, signal } = options;
  const { rows, rowsMax, width, pretrainedRate, learningRate } = config.tables![table]!;
  const words = await wordsOf(table, vectors, options);
  const room = rows === 'hash' ? rowsMax : rows;
  if (words.length > room) {
    throw invalid(
      `tables.${table} has room for ${room} rows, and ${vectors.words === undefined ? 'the vocabulary of its ids' : 'pretrained.words'} has ${words.length} words: set ${rows === 'hash' ? 'rowsMax' : 'rows'} to ${words.length} or more, or give fewer words`,
    );
  }
  const ids = new IdsOfWords(words);
  const found = new Uint8Array(words.length);
  const isFrozen = pretrainedRate * learningRate === 0;
  const common = { ...{ table, width, vectors, words, ids, found, isFrozen } };
  let facts: { width: number; words: number };
  try {
    facts = await readWordVectors(
      vectors.from,
      (batch) => {
        for (const word of batch.words) for (const id of ids.of(word)) found[id] = 1;
      },
      {
        ...{ wants: (word) => ids.has(word), sha256: vectors.sha256 },
        ...{ log: args.log, signal },
      },
    );
  } catch (error) {
    if (!(error instanceof DownpourError) || error.code !== 'DP_DATA_MISSING') throw error;
    args.log(
      `tables.${table}.pretrained: ${error.message}. This worker needs the file only if it is asked for the initial parameters${isFrozen ? ', and it pushes gradients of frozen rows, which the server leaves out' : ''}`,
    );
    return { ...common, missing: error };
  }
  if (facts.width !== width) {
    throw invalid(
      `tables.${table}.width is ${width}, and the vectors of ${vectors.from} have ${facts.width} numbers: set width to ${facts.width}`,
    );
  }
  if (!found.includes(1)) {
    throw invalid(
      `none of the ${words.length} words of tables.${table}.pretrained is in ${vectors.from}: the words begin with ${quoted(words)}; are they written as in the file?`,
    );
  }
  return { ...common, missing: null };
}

async function wordsOf(
  table: string,
  { words }: TableVectors,
  { args, prepared, bindings }: VectorOptions,
): Promise<readonly string[]> {
  if (words === undefined) return vocabularyOfTable(table, prepared, bindings);
  const given: unknown = typeof words === 'function' ? await words(args) : words;
  const isList = Array.isArray(given) && given.every((word) => typeof word === 'string');
  if (isList && given.length > 0 && given.length <= LIMITS.rowIdsMax) return given;
  throw invalid(
    `tables.${table}.pretrained.words() gave ${Array.isArray(given) ? `a list of ${given.length} with something else than texts` : isRecord(given) ? 'an object' : typeof given}; it must give a list with the word of each id`,
  );
}

/** The texts of the ids that a table is looked up by. @throws DownpourError DP_EXPERIMENT_INVALID: they are not known. */
function vocabularyOfTable(
  table: string,
  { train }: PreparedData,
  bindings: readonly RowBinding[],
): readonly string[] {
  const fields = bindings.flatMap((each) => (each.table === table ? [each.field] : []));
  for (const field of fields) {
    const column = columnOfField(train, field);
    const known = column && vocabularyOf(column);
    if (known) return known;
  }
  throw invalid(
    `tables.${table}.pretrained has no words, and the ids of ${fields.map((field) => `'${field}'`).join(', ')} have no vocabulary: write pretrained: { from, sha256, words }, or give the field a vocabulary: { values, shape, vocabulary }`,
  );
}

/** @returns null: the ids are not in memory. */
function tokensOf(
  { train }: PreparedData,
  bindings: readonly RowBinding[],
  found: Uint8Array,
): Coverage['tokens'] {
  const tokens = { all: 0, found: 0 };
  for (const { field, maskZero } of bindings) {
    const column = columnOfField(train, field);
    if (!column || train.stored) return null;
    for (const id of column.values) {
      if (id < (maskZero ? 1 : 0)) continue;
      tokens.all++;
      tokens.found += found[id] ?? 0;
    }
  }
  return tokens.all > 0 ? tokens : null;
}

/** Coverage in a sentence for the log. */
export function coverageText({ table, words, found, tokens, missing }: Coverage): string {
  const share = (a: number, b: number) => `${((100 * a) / Math.max(1, b)).toFixed(1)} %`;
  const ofTokens = tokens
    ? `; these are ${share(tokens.found, tokens.all)} of the ${tokens.all} tokens of the training part`
    : '';
  const fresh =
    missing.length > 0 ? `. The other rows begin fresh, such as those of ${quoted(missing)}` : '';
  return `table '${table}': ${found} of ${words} words (${share(found, words)}) have a vector in the file${ofTokens}${fresh}`;
}

const quoted = (words: readonly string[]) =>
  words
    .slice(0, SHOWN)
    .map((word) => JSON.stringify(word.slice(0, 30)))
    .join(', ');

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
