import type { ExampleView } from '../../shared/example-view.ts';
import {
  type ColumnReading,
  DATE_PARTS,
  inputNamesOf,
  type TableReading,
} from '../../shared/reading.ts';
import { type Column, sizeOf } from './columns.ts';
import type { Examples, Minibatch, PreparedData } from './examples.ts';
import { examplesAt } from './stored.ts';

/** Examples as people see them: pictures, columns of a table with their values, or the first numbers. */

/** Columns of a table, or numbers, that are shown of an example. */
const SHOWN = 12;

/**
 * @param rows of the part: the examples that will be shown. A source is asked for them.
 * @returns shows an example by its index in the part.
 */
export async function viewerFor(
  prepared: PreparedData,
  part: 'train' | 'validation',
  rows: readonly number[],
): Promise<(row: number) => ExampleView> {
  if (!prepared[part].stored) return viewerOf(prepared, part);
  const own = [...new Set(rows)];
  const read = await examplesAt(prepared[part], Int32Array.from(own));
  const show = viewerOf({ ...prepared, [part]: read }, part);
  return (row) => show(own.indexOf(row));
}

/** @returns shows an example by its index in the part, which is in memory. */
export function viewerOf(
  prepared: PreparedData,
  part: 'train' | 'validation',
): (row: number) => ExampleView {
  const examples: Examples = prepared[part];
  const { values, shape } = examples.inputs;
  const { fields = {} } = examples;
  const given = Object.entries(fields).filter(([, { role }]) => role === 'input');
  if (given.length > 0) {
    return (row) => fieldsView(given.map(([name, field]) => ownOf(name, field, row)));
  }
  const size = sizeOf(shape.slice(1));
  const table = tableOf(prepared);
  return (row) => {
    const own = values.subarray(row * size, (row + 1) * size);
    const image = imageOf(own, shape.slice(1));
    if (image) return image;
    if (table) return { kind: 'text', text: linesOfTable(table, own) };
    return numbersOf(own, prepared.inputNames);
  };
}

/** Inputs of a minibatch, as the model gets them. @param row in the minibatch. @param like the data that it is of. */
export function inputsView(
  { inputs, inputShape, fields = {} }: Pick<Minibatch, 'inputs' | 'inputShape' | 'fields'>,
  row: number,
  { train, inputNames }: Pick<PreparedData, 'train' | 'inputNames'>,
): ExampleView {
  const given = Object.entries(train.fields ?? {}).filter(([, { role }]) => role === 'input');
  if (given.length > 0) {
    return fieldsView(
      given.map(([name, { names }]) => {
        const { values, shape } = fields[name]!;
        return ownOf(name, { values, shape: [0, ...shape], ...(names && { names }) }, row);
      }),
    );
  }
  return numbersView(inputs, inputShape, row, inputNames);
}

/** An example's numbers of this shape: as a picture if they can be one. @param row among the values. */
export function numbersView(
  values: Column['values'],
  shape: readonly number[],
  row: number,
  names: readonly string[] | null,
): ExampleView {
  const size = sizeOf(shape);
  const own = values.subarray(row * size, (row + 1) * size);
  return imageOf(own, shape) ?? numbersOf(own, names);
}

/** The numbers that an example has in one field. */
interface ShownField {
  readonly name: string;
  readonly values: Column['values'];
  /** Shape of one example. */
  readonly shape: readonly number[];
  readonly names: readonly string[] | null;
}

function ownOf(
  name: string,
  { values, shape, names }: Pick<Column, 'values' | 'shape' | 'names'>,
  row: number,
): ShownField {
  const size = sizeOf(shape, 1);
  const own = values.subarray(row * size, (row + 1) * size);
  return { name, values: own, shape: shape.slice(1), names: names ?? null };
}

/** The first field that can be a picture; else all fields in words. */
function fieldsView(fields: readonly ShownField[]): ExampleView {
  for (const { values, shape } of fields) {
    const image = imageOf(values, shape);
    if (image) return image;
  }
  const lines = fields.flatMap(({ name, values, names }) => {
    if (names) return names.map((each, i) => `${each}: ${numberText(values[i]!)}`);
    const shown = Array.from(values.subarray(0, FIELD_SHOWN), numberText).join(' ');
    return [`${name}: ${shown}${values.length > FIELD_SHOWN ? ' …' : ''}`];
  });
  return { kind: 'text', text: shortened(lines) };
}

/** Numbers of a field that are shown of an example. */
const FIELD_SHOWN = 3;

/** The picture that numbers of this shape are; null: they are none. */
function imageOf(own: Column['values'], shape: readonly number[]): ExampleView | null {
  const [height = 0, width = 0, channels = 1] = shape;
  const isImage =
    (shape.length === 2 || (shape.length === 3 && [1, 3, 4].includes(channels))) &&
    Math.min(height, width) >= 4;
  if (!isImage) return null;
  const pixels = own instanceof Uint8Array ? own : brightness(own);
  return { kind: 'image', width, height, channels: channels as 1 | 3 | 4, pixels };
}

function numbersOf(own: Column['values'], names: readonly string[] | null): ExampleView {
  if (names?.length === own.length) return { kind: 'text', text: linesOfNames(names, own) };
  const text = Array.from(own.subarray(0, SHOWN), (value) => Number(value.toPrecision(3)));
  return { kind: 'text', text: linesOf(text) };
}

/** @returns how the inputs were read from a table; null: they were not, or are not as they were read. */
function tableOf({ train, inputNames }: PreparedData): TableReading | null {
  const { reading } = train.inputs;
  if (reading?.kind !== 'table') return null;
  return JSON.stringify(inputNamesOf(reading)) === JSON.stringify(inputNames) ? reading : null;
}

/** One line for each column of the file, though a column may have become many inputs. */
function linesOfTable({ columns }: TableReading, values: ArrayLike<number>): string {
  const lines: string[] = [];
  let at = 0;
  for (const column of columns) {
    const width = widthOf(column);
    const own = Array.from({ length: width }, (_, i) => values[at + i]!);
    at += width;
    const isMissing = column.gap && values[at++] === 1;
    lines.push(`${column.name}: ${isMissing ? '–' : textOf(column, own)}`);
  }
  return shortened(lines);
}

function widthOf(column: ColumnReading): number {
  switch (column.as) {
    case 'number':
      return 1;
    case 'category':
      return column.names.length;
    case 'date':
      return DATE_PARTS.length + (column.time ? 1 : 0);
    case 'hashed':
      return column.size;
  }
}

function textOf(column: ColumnReading, values: readonly number[]): string {
  switch (column.as) {
    case 'number':
      return column.unit ? `${numberText(values[0]!)} ${column.unit}` : numberText(values[0]!);
    case 'category':
      // A kind that was not in the training part has no input.
      return column.names[values.indexOf(1)] ?? 'other';
    case 'date': {
      const [year, month, day, , hour] = values;
      const date = [year, month, day].map((part) => String(part ?? '').padStart(2, '0')).join('-');
      return hour === undefined ? date : `${date} ${hour} h`;
    }
    case 'hashed':
      return `text of ${values.filter((value) => value !== 0).length} words`;
  }
}

const linesOfNames = (names: readonly string[], values: ArrayLike<number>) =>
  shortened(names.map((name, i) => `${name}: ${numberText(values[i]!)}`));

function shortened(lines: readonly string[]): string {
  const more = lines.length - SHOWN;
  return [...lines.slice(0, SHOWN), ...(more > 0 ? [`and ${more} more`] : [])].join('\n');
}

const numberText = (value: number) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(4))) : '–';

function linesOf(numbers: readonly number[]): string {
  const lines: string[] = [];
  for (let i = 0; i < numbers.length; i += 3) lines.push(numbers.slice(i, i + 3).join(' '));
  return lines.join('\n');
}

/** From black, the least of an image's numbers, to white. */
function brightness(values: ArrayLike<number>): Uint8Array {
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < values.length; i++) {
    low = Math.min(low, values[i]!);
    high = Math.max(high, values[i]!);
  }
  const scale = high > low ? 255 / (high - low) : 0;
  return Uint8Array.from({ length: values.length }, (_, i) => (values[i]! - low) * scale);
}
