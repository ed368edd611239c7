import { join } from 'node:path';
import { writeAll, writeFileAtomic } from '../../files/atomic-file.ts';
import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';
import { groups } from '../output/progress.ts';
import type { StoredRows, StoredTable } from './trained-rows.ts';
import type { VectorFormat } from './vector-formats.ts';

/**
 * Rows of tables as files of vectors: a line for each row, the word of its id and then its numbers. They are written in
 * pieces, so a table of any size takes a few MB.
 */

export interface WriteVectorsOptions {
  readonly format: VectorFormat;
  /** A folder that exists. */
  readonly to: string;
  /** The text of each id; null: its number is its word. */
  readonly words: readonly string[] | null;
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
}

/** What was written of a table. */
export interface WrittenVectors {
  readonly table: string;
  /** Names in the folder. */
  readonly files: readonly string[];
  readonly rows: number;
  readonly width: number;
  /** Rows that training has changed, that began with the values of a file, and that nothing has changed. */
  readonly trained: number;
  readonly pretrained: number;
  readonly initial: number;
  /** Ids that have no word, and rows that have an id beyond the vocabulary: they are left out. */
  readonly withoutWord: number;
  /** Words that were changed, since a blank or a line break ends a word in such a file, or it had been there before. */
  readonly changedWords: number;
}

/** Numbers written at once. */
const PIECE = 2 ** 18;
/** Rows that one reading may bring. */
const PIECE_ROWS = 2 ** 15;
const TELL_EVERY_MS = 5_000;

/** @throws DownpourError DP_DISK, DP_CHECKPOINT_CORRUPT; DP_USAGE: there is nothing to write. @throws what `signal` was aborted with. */
export async function writeVectors(
  table: StoredTable,
  options: WriteVectorsOptions,
): Promise<WrittenVectors> {
  const { format, to, words } = options;
  const { name, width } = table;
  if (format === 'glove' && width === 1) {
    throw new DownpourError(
      'DP_USAGE',
      `table '${name}' has rows of 1 number, and a line of two numbers is the first line of word2vec's format: use --format word2vec`,
    );
  }
  const { ids, withoutWord } = idsToWrite(table, words);
  if (ids.length === 0) {
    throw new DownpourError(
      'DP_USAGE',
      `table '${name}' has no row to write: ${table.isGrowing ? 'no id has a row of its own' : 'no id has a word'}; choose another table by --table`,
    );
  }
  const { textOf, changed } = writtenWords(ids, words);
  const counted = countKinds(table, ids);
  const facts = { table: name, rows: ids.length, width, ...counted, withoutWord };
  if (format === 'projector') {
    const files = [`${name}-tensors.tsv`, `${name}-metadata.tsv`];
    await writeRows(join(to, files[0]!), table, ids, { ...options, textOf: null });
    await writeFileAtomic(join(to, files[1]!), async (handle) => {
      for (let from = 0; from < ids.length; from += PIECE_ROWS) {
        options.signal.throwIfAborted();
        const lines = Array.from(
          ids.subarray(from, from + PIECE_ROWS),
          (_, i) => `${textOf(from + i)}\n`,
        );
        await writeAll(handle, Buffer.from(lines.join('')));
      }
    });
    return { ...facts, files, changedWords: changed };
  }
  const file = `${name}.txt`;
  await writeRows(join(to, file), table, ids, { ...options, textOf });
  return { ...facts, files: [file], changedWords: changed };
}

/** What TensorBoard looks for in its folder, so that it finds the files of all tables. */
export async function writeProjectorConfig(
  to: string,
  written: readonly WrittenVectors[],
): Promise<string> {
  const file = 'projector_config.pbtxt';
  const text = written.map(
    ({ table, files: [tensors, metadata] }) =>
      `embeddings {\n  tensor_name: "${table}"\n  tensor_path: "${tensors}"\n  metadata_path: "${metadata}"\n}\n`,
  );
  await writeFileAtomic(join(to, file), (handle) => writeAll(handle, Buffer.from(text.join(''))));
  return file;
}

/**
 * Chooses tables by name. @param wanted undefined: all of them.
 * @throws DownpourError DP_USAGE: there is none of that name.
 */
export function chosenTables(
  { tables }: StoredRows,
  wanted: string | undefined,
): readonly StoredTable[] {
  if (wanted === undefined) return tables;
  const found = tables.filter(({ name }) => name === wanted);
  if (found.length > 0) return found;
  const names = tables.map(({ name }) => name);
  const near = nearest(wanted, names);
  throw new DownpourError(
    'DP_USAGE',
    `--table is '${wanted}', which the run does not have; ${near ? `did you mean '${near}'?` : `its tables: ${names.join(', ')}`}`,
  );
}

/** In a sentence, for the one who exports. */
export function vectorsText(written: WrittenVectors): string {
  const { table, rows, width, trained, pretrained, initial, withoutWord, changedWords } = written;
  const kinds = [
    [trained, 'were trained'],
    [pretrained, 'began with vectors of a file'],
    [initial, 'have their initial values, since no push had them'],
  ] as const;
  const told = kinds.flatMap(([count, what]) => (count > 0 ? `${groups(count)} ${what}` : []));
  const left = withoutWord > 0 ? `. Left out: ${groups(withoutWord)} ids that have no word` : '';
  const changed =
    changedWords > 0
      ? `. ${groups(changedWords)} words have blanks or line breaks, or are there twice: they are written with '_'`
      : '';
  return `table '${table}': ${groups(rows)} rows of ${groups(width)} numbers; ${told.join(', ')}${left}${changed}`;
}

/** The ids that have a row and a word, rising. */
function idsToWrite(
  { isGrowing, keys, keysMax }: StoredTable,
  words: readonly string[] | null,
): { readonly ids: Uint32Array; readonly withoutWord: number } {
  const all = isGrowing ? keys : Uint32Array.from({ length: keysMax }, (_, id) => id);
  const ids = words === null ? all : all.filter((id) => (words[id] ?? '') !== '');
  return { ids, withoutWord: all.length - ids.length };
}

/** @returns the word at each place of the ids, without what would end it and each another one. */
function writtenWords(
  ids: Uint32Array,
  words: readonly string[] | null,
): { readonly textOf: (i: number) => string; readonly changed: number } {
  if (words === null) return { textOf: (i) => String(ids[i]), changed: 0 };
  const taken = new Set<string>();
  const again: number[] = [];
  for (let i = 0; i < ids.length; i++) {
    const word = words[ids[i]!]!;
    if (taken.has(word) || /\s/u.test(word)) again.push(i);
    else taken.add(word);
  }
  const others = new Map<number, string>();
  for (const i of again) {
    let word = words[ids[i]!]!.replaceAll(/\s/gu, '_');
    while (taken.has(word)) word += '_';
    taken.add(word);
    others.set(i, word);
  }
  return { textOf: (i) => others.get(i) ?? words[ids[i]!]!, changed: again.length };
}

function countKinds(
  { keys, pretrained }: StoredTable,
  ids: Uint32Array,
): Pick<WrittenVectors, 'trained' | 'pretrained' | 'initial'> {
  const counts = { trained: 0, pretrained: 0, initial: 0 };
  for (let i = 0, at = 0; i < ids.length; i++) {
    while (at < keys.length && keys[at]! < ids[i]!) at++;
    if (keys[at] !== ids[i]) counts.initial++;
    else if (pretrained[at] === 1) counts.pretrained++;
    else counts.trained++;
  }
  return counts;
}

/** @param textOf the word of a row; null: the lines have the numbers alone. */
async function writeRows(
  path: string,
  table: StoredTable,
  ids: Uint32Array,
  {
    format,
    signal,
    log,
    textOf,
  }: WriteVectorsOptions & { readonly textOf: ((i: number) => string) | null },
): Promise<void> {
  const { width } = table;
  const [separator, rowsAtOnce] = [
    format === 'projector' ? '\t' : ' ',
    Math.max(1, Math.min(PIECE_ROWS, Math.floor(PIECE / width))),
  ];
  let told = performance.now();
  await writeFileAtomic(path, async (handle) => {
    if (format === 'word2vec') await writeAll(handle, Buffer.from(`${ids.length} ${width}\n`));
    for (let from = 0; from < ids.length; from += rowsAtOnce) {
      signal.throwIfAborted();
      const some = ids.subarray(from, from + rowsAtOnce);
      const values = await table.read(some);
      let text = '';
      for (let i = 0; i < some.length; i++) {
        if (textOf) text += textOf(from + i);
        for (let k = 0; k < width; k++) {
          if (k > 0 || textOf) text += separator;
          text += decimalOf(values[i * width + k]!);
        }
        text += '\n';
      }
      await writeAll(handle, Buffer.from(text));
      if (performance.now() - told < TELL_EVERY_MS) continue;
      told = performance.now();
      const share = Math.floor((100 * (from + some.length)) / ids.length);
      log(`table '${table.name}': ${share} % of ${groups(ids.length)} rows written`);
    }
  });
}

/** Decimals that are tried: as a float32 has 7 to 9 digits, more are needed for small numbers alone. */
const DECIMALS_MAX = 12;
const POWERS = Array.from({ length: DECIMALS_MAX + 1 }, (_, k) => 10 ** k);
/** Below it, the product with a power of ten is a whole number that a double has. */
const DIRECT_MAX = 100;

/** The number with as few decimals as give the same float32 again. @param x a float32. */
export function decimalOf(x: number): string {
  if (Math.abs(x) < DIRECT_MAX) {
    for (const power of POWERS) {
      const rounded = Math.round(x * power) / power;
      if (Math.fround(rounded) === x) return `${rounded}`;
    }
  }
  // 9 digits are enough for any float32.
  for (let digits = 1; ; digits++) {
    const rounded = Number(x.toPrecision(digits));
    if (Math.fround(rounded) === x || digits === 9) return `${rounded}`;
  }
}
