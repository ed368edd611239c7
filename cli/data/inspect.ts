import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Column, isFloat, kindOf } from '../../worker/data/columns.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { filePieces, unreadable } from '../../worker/data/files.ts';
import { isIdx, readIdx } from '../../worker/data/idx.ts';
import { loadMnist } from '../../worker/data/mnist.ts';
import { isNpy, readNpy } from '../../worker/data/npy.ts';
import { loadImageFolder } from '../../worker/data/pictures/images.ts';
import { isNumber, sortNames } from '../../worker/data/tables/cells.ts';
import {
  type ColumnSummary,
  describeCsv,
  summarise,
} from '../../worker/data/tables/table-summary.ts';
import { quotedText } from '../init/columns.ts';
import { print, printJson } from '../options.ts';
import { groups } from '../output/progress.ts';
import { type GivenTableOptions, tableOptionsOf, withOptions } from './table-options.ts';

/** `downpour data inspect`: what a data set holds. */

export interface InspectOptions extends GivenTableOptions {
  readonly json?: boolean;
}

/** Facts about a column of numbers; bytes are on the scale that training sees, divided by 255. */
export interface ColumnFacts {
  readonly name: string;
  readonly kind: string;
  readonly shape: readonly number[];
  /** Null where classes are counted instead, or there are no numbers. */
  readonly numbers: { mean: number; deviation: number; min: number; max: number } | null;
  readonly classes: Readonly<Record<string, number>> | null;
}

export interface Inspection {
  readonly source: string;
  readonly columns: readonly (ColumnFacts | ColumnSummary)[];
}

export async function inspectCommand(
  path: string | undefined,
  options: InspectOptions,
): Promise<void> {
  const facts = await inspectData(path, tableOptionsOf(options));
  if (options.json) {
    printJson(facts);
    return;
  }
  print(facts.source);
  for (const column of facts.columns) for (const line of factLines(column)) print(line);
}

/**
 * What a data set holds. @param path a file or folder; undefined: the MNIST digits of `loadMnist`.
 * @throws DownpourError DP_DATA_MISSING, DP_DATA_CORRUPT
 */
export async function inspectData(
  path?: string,
  options: GivenTableOptions = {},
): Promise<Inspection> {
  if (path === undefined) return examplesFacts(await loadMnist());
  const entry = await stat(path).catch((error) => {
    throw unreadable(path, error);
  });
  if (entry.isDirectory()) {
    return examplesFacts(
      (await holdsMnist(path)) ? await loadMnist({ folder: path }) : await loadImageFolder(path),
    );
  }
  const head = await fileHead(path);
  if (isNpy(head)) return fileFacts(path, await readNpy(path));
  if (isIdx(head)) return fileFacts(path, await readIdx(path));
  const { columns, count, notes, isParquet } = await withOptions(describeCsv(path, options));
  return {
    source: [`${path}: ${count} ${isParquet ? 'rows' : 'lines'}`, ...notes].join('; '),
    columns,
  };
}

/** The first bytes of a file, decompressed. */
async function fileHead(path: string): Promise<Uint8Array> {
  for await (const piece of filePieces(path)) return piece;
  return new Uint8Array(0);
}

async function holdsMnist(folder: string): Promise<boolean> {
  const names = [
    ...(await readdir(folder)),
    ...(await readdir(join(folder, 'mnist')).catch(() => [])),
  ];
  return names.some((name) => /^(train|t10k)-(images|labels)-idx/.test(name));
}

function examplesFacts(data: ExperimentData): Inspection {
  const columns: ColumnFacts[] = [];
  for (const part of ['train', 'validation', 'test'] as const) {
    const examples = data[part];
    if (!examples) continue;
    columns.push(columnFacts(`${part} inputs`, examples.inputs, false));
    columns.push(columnFacts(`${part} targets`, examples.targets, data.classCount !== undefined));
  }
  return { source: data.source, columns };
}

function fileFacts(path: string, column: Column): Inspection {
  const { shape, values } = column;
  // NumPy saves labels as float64 where they went through a table.
  const labels = shape.length === 1 && (!isFloat(values) || values.every(isLabel));
  return { source: path, columns: [columnFacts('values', column, labels)] };
}

const isLabel = (value: number) => Number.isInteger(value) && value >= 0;

const CLASSES_MAX = 1000;

function columnFacts(name: string, column: Column, labels: boolean): ColumnFacts {
  const { values, shape } = column;
  const kind = kindOf(values);
  const classes = labels ? countClasses(values, column.classes) : null;
  const summary = values.length > 0 && classes === null ? summarise(values) : null;
  const scale = kind === 'uint8' ? 1 / 255 : 1;
  const numbers = summary && {
    mean: summary.mean * scale,
    deviation: summary.deviation * scale,
    min: summary.min * scale,
    max: summary.max * scale,
  };
  return { name, kind, shape, numbers, classes };
}

/**
 * By number, with its name where it has one: `0 = cat`. Null when there are too many different values for classes.
 */
function countClasses(
  values: Column['values'],
  names: readonly string[] = [],
): Record<string, number> | null {
  const counts = new Map<number, number>();
  for (let i = 0; i < values.length; i++) {
    counts.set(values[i]!, (counts.get(values[i]!) ?? 0) + 1);
    if (counts.size > CLASSES_MAX) return null;
  }
  const named = (label: number) => (label in names ? `${label} = ${names[label]}` : `${label}`);
  const sorted = [...counts].sort(([a], [b]) => a - b);
  return Object.fromEntries(sorted.map(([label, count]) => [named(label), count]));
}

function factLines(column: ColumnFacts | ColumnSummary): string[] {
  const { name, numbers } = column;
  const isTable = 'missing' in column;
  const what = isTable
    ? `${column.unit === null ? '' : `  in ${column.unit}`}${column.missing > 0 ? `  ${column.missing} MISSING` : ''}`
    : `  ${column.kind} [${column.shape.join(', ')}]`;
  const lines = [`${name}${what}`];
  if (numbers) {
    const { mean, deviation, min, max } = numbers;
    lines.push(
      `  mean ${digits(mean)}  standard deviation ${digits(deviation)}  min ${digits(min)}  max ${digits(max)}`,
    );
  }
  const classes = isTable ? column.categories : column.classes;
  if (classes && (!isTable || numbers === null || mayBeClasses(column))) {
    const counts = inOrder(classes).map((value) => `${value}: ${classes[value]}`);
    lines.push(`  ${counts.join('  ')}`);
  } else if (numbers === null) {
    lines.push(`  ${isTable ? kindText(column) : 'text of many kinds'}`);
  }
  return lines;
}

/** What a column is whose cells are no numbers, and too many for categories. */
function kindText({ dates, count, missing }: ColumnSummary): string {
  if (dates === null) return 'text of many kinds';
  const example = `such as ${quotedText(dates.first)}`;
  return dates.count === count - missing
    ? `dates or times, ${example}`
    : `text of many kinds; ${groups(dates.count)} cells are dates or times, ${example}`;
}

/** Whole numbers of few kinds. */
function mayBeClasses({ categories, count }: ColumnSummary): boolean {
  const names = Object.keys(categories ?? {});
  return 2 * names.length < count && names.every((name) => Number.isInteger(Number(name)));
}

/** An object has its whole numbers first. */
function inOrder(classes: Readonly<Record<string, number>>): string[] {
  const names = Object.keys(classes);
  return names.every(isNumber) ? sortNames(names) : names;
}

function digits(value: number): string {
  return String(Number(value.toPrecision(5)));
}
