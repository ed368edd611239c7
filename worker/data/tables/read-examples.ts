import { errorText } from '../../../shared/errors.ts';
import { corrupt, readDataFile } from '../files.ts';
import { readRows } from './table-rows.ts';

/** New examples by the names of their fields: lines of JSON, or a table with a column for each number. */

export interface NewRows {
  /** Objects by the names of fields or columns; texts of a table are read as numbers later. */
  readonly examples: readonly unknown[];
  /** The line of each in the file, from 1. */
  readonly lines: readonly number[];
}

/** @throws DownpourError of reading; DP_DATA_CORRUPT with the line: it is no JSON, or the file has no example. */
export async function readNewRows(file: string): Promise<NewRows> {
  const rows = /\.(jsonl|ndjson)(\.gz)?$/i.test(file)
    ? await readJsonLines(file)
    : await readTable(file);
  if (rows.examples.length === 0) throw corrupt(file, 'it has no example');
  return rows;
}

async function readJsonLines(file: string): Promise<NewRows> {
  const examples: unknown[] = [];
  const lines: number[] = [];
  const text = (await readDataFile(file)).toString('utf8');
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    try {
      examples.push(JSON.parse(line));
    } catch (error) {
      throw corrupt(file, `line ${i + 1} is no JSON: ${errorText(error)}`);
    }
    lines.push(i + 1);
  }
  return { examples, lines };
}

async function readTable(file: string): Promise<NewRows> {
  const examples: unknown[] = [];
  const lines: number[] = [];
  await readRows(file, {}, (cells, line, { names }) => {
    examples.push(Object.fromEntries(names.map((name, i) => [name, cells[i]])));
    lines.push(line);
  });
  return { examples, lines };
}
