import { stat } from 'node:fs/promises';
import { DownpourError } from '../../../shared/errors.ts';
import type { TextReading } from '../../../shared/reading.ts';
import { lacks } from '../tables/csv-columns.ts';
import { readNewRows } from '../tables/read-examples.ts';
import { tableFiles } from '../tables/table-files.ts';
import { keptOptions, readRows } from '../tables/table-rows.ts';
import { TEXT_FILES } from './corpus.ts';
import { filesUnder, readTextFile } from './text-files.ts';

/** New texts, read as those were that a model was trained on. */

export interface NewTexts {
  /** Texts, or what a line of JSON has. */
  readonly examples: readonly unknown[];
  /** The line of each, from 1. Null: the file is one text. */
  readonly lines: readonly number[] | null;
}

const LINES = /\.(jsonl|ndjson)(\.gz)?$/i;
const TABLES = /\.(csv|tsv)(\.gz)?$/i;

/** The files that a path names: a folder means all files in it, or its tables if the model was trained on one. */
export async function newTextFiles(path: string, { column }: TextReading): Promise<string[]> {
  if (column !== undefined) return tableFiles(path);
  const found = await stat(path).catch(() => null);
  if (found?.isDirectory()) return filesUnder(path);
  return tableFiles(path, TEXT_FILES);
}

/** @throws DownpourError of reading; DP_EXPERIMENT_INVALID: a table has no column of texts. */
export async function readNewTexts(file: string, reading: TextReading): Promise<NewTexts> {
  const { column = 'text', encoding } = reading;
  if (LINES.test(file)) return readNewRows(file);
  if (TEXT_FILES.fits.test(file) || (!TABLES.test(file) && reading.column === undefined)) {
    return { examples: [await readTextFile(file, encoding)], lines: null };
  }
  const examples: string[] = [];
  const lines: number[] = [];
  let at: number | null = null;
  await readRows(file, keptOptions(reading), (cells, line, { names }) => {
    at ??= names.indexOf(column);
    if (at < 0) throw lacks(file, column, names, ', whose texts the model needs');
    examples.push(cells[at]!);
    lines.push(line);
  });
  if (examples.length > 0) return { examples, lines };
  throw new DownpourError('DP_DATA_CORRUPT', `${file}: it has no line after the header`);
}
