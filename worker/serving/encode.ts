import type {
  ColumnReading,
  ImageReading,
  Reading,
  TableReading,
  TextReading,
} from '../../shared/reading.ts';
import { paint } from '../data/pictures/paint.ts';
import {
  givenNames,
  isMissing,
  missingNumbers,
  nameOf,
  numberReader,
} from '../data/tables/cells.ts';
import { dateParts } from '../data/tables/dates.ts';
import { placeOfWord, wordsOf } from '../data/tables/words.ts';
import { writePadded } from '../data/texts/padded.ts';
import { type Tokenizer, tokenizerOf } from '../data/texts/vocabulary.ts';

/**
 * Single examples as the numbers that a model takes: for programs that have records and pictures rather than files. It needs
 * nothing of Node, so that it runs in browsers and in the file that `export` writes. The same cells give the same numbers as
 * `readNewTable`, which a test compares.
 */

export interface Encoder {
  /** Numbers of one example. */
  readonly size: number;
  /**
   * Writes them, before standardisation; NaN: missing.
   * @param example a row of a table by its columns, or a picture as a canvas has it. @throws BadExample.
   */
  encode(example: unknown, target: Float64Array, at: number): void;
}

/** An example that is not what the model was trained on. */
export class BadExample extends Error {}

/** @param tokenizer of texts, where the reading names its file alone */
export function encoderOf(reading: Reading, tokenizer?: Tokenizer): Encoder {
  switch (reading.kind) {
    case 'table':
      return tableEncoder(reading);
    case 'images':
      return imageEncoder(reading);
    case 'text':
      return textEncoder(reading, tokenizer);
  }
}

interface ColumnEncoder {
  /** Without that of the gap. */
  readonly size: number;
  /** What stands in each number where the value is missing. */
  readonly filler: number;
  isMissing(cell: GivenCell): boolean;
  /** @returns what is wrong; null: nothing. */
  write(cell: GivenCell, target: Float64Array, at: number): string | null;
}

interface GivenCell {
  readonly text: string;
  /** NaN: it was given as a text. A number needs no reading, and `1.234` may be 1234 in the form of the file. */
  readonly number: number;
}

function tableEncoder(reading: TableReading): Encoder {
  const columns = reading.columns.map((column) => ({
    column,
    own: columnEncoder(column, reading),
  }));
  return {
    size: columns.reduce((sum, { column, own }) => sum + own.size + (column.gap ? 1 : 0), 0),
    encode(example, target, start) {
      if (typeof example !== 'object' || example === null || Array.isArray(example)) {
        const names = reading.columns.map(({ name }) => `'${name}'`).join(', ');
        throw new BadExample(`it must be an object with the columns ${names}`);
      }
      let at = start;
      for (const { column, own } of columns) {
        const { name, gap } = column;
        const cell = cellOf((example as Record<string, unknown>)[name], name);
        const lacks = own.isMissing(cell);
        if (lacks && !gap && reading.missing !== 'mean' && reading.unknown !== 'none') {
          throw new BadExample(
            `'${name}' is missing; give a value: the model was trained on data that never lacked it`,
          );
        }
        const problem = lacks ? null : own.write(cell, target, at);
        if (problem !== null)
          throw new BadExample(`'${name}' is '${cell.text.slice(0, 40)}': ${problem}`);
        if (lacks) target.fill(own.filler, at, at + own.size);
        at += own.size;
        if (gap) target[at++] = lacks ? 1 : 0;
      }
    },
  };
}

function cellOf(value: unknown, name: string): GivenCell {
  const asText = (text: string): GivenCell => ({ text, number: Number.NaN });
  if (value === undefined || value === null || Number.isNaN(value)) return asText('');
  if (typeof value === 'number') return { text: String(value), number: value };
  if (typeof value === 'string') return asText(nameOf(value));
  if (typeof value === 'boolean') return { text: String(value), number: Number(value) };
  throw new BadExample(`'${name}' is neither a number nor a text`);
}

function columnEncoder(column: ColumnReading, reading: TableReading): ColumnEncoder {
  const lacks = ({ text }: GivenCell) => isMissing(text, reading.missingTexts);
  const read = numberReader(reading);
  switch (column.as) {
    case 'number': {
      const { unit } = column;
      const read = numberReader({ ...reading, ...(unit !== undefined && { unit }) });
      const missing = missingNumbers(reading.missingTexts, read);
      const numberOf = ({ text, number }: GivenCell) =>
        // Adding 0 makes -0 to 0, as in text.
        Number.isFinite(number) ? number + 0 : read(text);
      return {
        ...{ size: 1, filler: Number.NaN },
        isMissing: (cell) => {
          const value = numberOf(cell);
          return Number.isNaN(value) ? lacks(cell) : missing.has(value);
        },
        write: (cell, target, at) => {
          target[at] = numberOf(cell);
          const what = unit === undefined ? 'a number' : `a number in ${unit}`;
          return Number.isNaN(target[at]) ? `it is not ${what}` : null;
        },
      };
    }
    case 'category': {
      const { names } = column;
      const list = givenNames(names, read);
      return {
        ...{ size: names.length, filler: 0 },
        isMissing: (cell) => list.indexOf(cell.text) < 0 && lacks(cell),
        write: ({ text }, target, at) => {
          target.fill(0, at, at + names.length);
          const index = list.indexOf(text);
          if (index < 0) {
            if (reading.unknown === 'none') return null;
            return `it is none of ${names.slice(0, 20).join(', ')}${names.length > 20 ? ', …' : ''}`;
          }
          target[at + index] = 1;
          return null;
        },
      };
    }
    case 'date':
      return {
        ...{ size: column.time ? 5 : 4, filler: Number.NaN, isMissing: lacks },
        write: ({ text }, target, at) => {
          const parts = dateParts(text, column.order);
          if (!parts) return 'it is not a date that exists, such as 2024-12-31';
          const { year, month, day, weekday, hour } = parts;
          target.set([year, month, day, weekday, ...(column.time ? [hour ?? 0] : [])], at);
          return null;
        },
      };
    case 'hashed':
      return {
        ...{ size: column.size, filler: 0, isMissing: lacks },
        write: ({ text }, target, at) => {
          target.fill(0, at, at + column.size);
          for (const word of wordsOf(text)) {
            const { input, sign } = placeOfWord(word, column.size);
            target[at + input]! += sign;
          }
          return null;
        },
      };
  }
}

function imageEncoder(reading: ImageReading): Encoder {
  const { width, height, channels, fit } = reading;
  const size = width * height * channels;
  const bytes = new Uint8Array(size);
  return {
    size,
    encode(example, target, at) {
      const picture = (example ?? {}) as { width?: unknown; height?: unknown; data?: unknown };
      const [own, rows, data] = [Number(picture.width), Number(picture.height), picture.data];
      if (!Number.isInteger(own) || !Number.isInteger(rows) || !isBytes(data)) {
        throw new BadExample(
          'it must be a picture { width, height, data }: data are bytes of red, green, blue and opacity, row by row, as a canvas gives them',
        );
      }
      if (data.length !== own * rows * 4 || data.length === 0) {
        throw new BadExample(
          `a picture of ${own}×${rows} has ${own * rows * 4} bytes, not ${data.length}`,
        );
      }
      if (fit === undefined && (own !== width || rows !== height)) {
        throw new BadExample(
          `the picture is ${own}×${rows}, but the model takes ${width}×${height}`,
        );
      }
      const rgba = new Uint8Array(data.buffer, data.byteOffset, data.length);
      paint({ width: own, height: rows, rgba, frames: 1 }, bytes, reading);
      target.set(bytes, at);
    },
  };
}

/** The name of a text where it has no column. */
const TEXT_FIELD = 'text';

function textEncoder(reading: TextReading, given: Tokenizer | undefined): Encoder {
  const { length, column = TEXT_FIELD, as } = reading;
  const tokenizer = given ?? tokenizerOf(reading);
  return {
    size: length,
    encode(example, target, at) {
      if (Array.isArray(example) || ArrayBuffer.isView(example)) {
        writeTokens(example as ArrayLike<unknown>, reading, target, at);
        return;
      }
      if (as === 'next') {
        throw new BadExample(
          'the model is a language model, which continues a text: use `downpour sample`',
        );
      }
      if (tokenizer === null) {
        throw new BadExample(
          `its tokens are those of the file ${reading.tokenizer?.file}, which is not read here: give the numbers of the tokens, or use \`downpour predict\``,
        );
      }
      const named = (example as Record<string, unknown> | null)?.[column];
      const text = typeof example === 'string' ? example : named;
      if (typeof text !== 'string') {
        throw new BadExample(`it must be a text, or an object with the text '${column}'`);
      }
      writePadded(tokenizer.encode(text), target, at, length);
    },
  };
}

/** Tokens by their numbers, for programs that have a tokenizer of their own. */
function writeTokens(
  tokens: ArrayLike<unknown>,
  { length, size, as }: TextReading,
  target: Float64Array,
  at: number,
): void {
  const bad = Array.from(tokens).find(
    (token) => !(Number.isInteger(token) && (token as number) >= 0 && (token as number) < size),
  );
  if (bad !== undefined || tokens.length > length || (as === 'next' && tokens.length < length)) {
    const count = as === 'next' ? `${length}` : `at most ${length}`;
    throw new BadExample(`it must be ${count} tokens, whole numbers from 0 to ${size - 1}`);
  }
  writePadded(tokens as ArrayLike<number>, target, at, length);
}

const isBytes = (value: unknown): value is Uint8Array | Uint8ClampedArray =>
  value instanceof Uint8Array || value instanceof Uint8ClampedArray;
