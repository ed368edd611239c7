import Type, { type Static } from 'typebox';
import { Compile } from 'typebox/compile';
import { DownpourError } from './errors.ts';

/**
 * How the examples of a run were read from files: enough to read new ones in the same way, long after and without the
 * experiment. A run keeps it with the facts of its data; `downpour predict` and exported models use it.
 */

const closed = { additionalProperties: false } as const;
const name = Type.String();
/** Some rows lacked a value: an input after those of the column says where. */
const gap = Type.Boolean();

const ColumnReadingSchema = Type.Union([
  /** One input. `unit` may stand behind the number. */
  Type.Object({ name, as: Type.Literal('number'), unit: Type.Optional(name), gap }, closed),
  /** One 0/1 input for each category. */
  Type.Object({ name, as: Type.Literal('category'), names: Type.Array(name), gap }, closed),
  /** Year, month, day, weekday, and the hour if there are times. */
  Type.Object(
    {
      ...{ name, as: Type.Literal('date'), time: Type.Boolean(), gap },
      order: Type.Optional(Type.Union([Type.Literal('dayFirst'), Type.Literal('monthFirst')])),
    },
    closed,
  ),
  /** Words, hashed to `size` inputs. */
  Type.Object(
    { name, as: Type.Literal('hashed'), size: Type.Integer({ minimum: 1 }), gap },
    closed,
  ),
]);
export type ColumnReading = Static<typeof ColumnReadingSchema>;

/** How a file of text is written: options of its reader, where they were given. */
const written = {
  delimiter: Type.Optional(Type.String()),
  encoding: Type.Optional(Type.String()),
  quote: Type.Optional(Type.Union([Type.String(), Type.Null()])),
  comment: Type.Optional(Type.String()),
  decimal: Type.Optional(Type.Union([Type.Literal('.'), Type.Literal(',')])),
};

const TableReadingSchema = Type.Object(
  {
    kind: Type.Literal('table'),
    /** In the order of the inputs. */
    columns: Type.Array(ColumnReadingSchema),
    /** Names of the target columns. */
    targets: Type.Array(name),
    /** Units of targets that have one, by name. */
    targetUnits: Type.Optional(Type.Record(name, name)),
    /** The mean of the training part replaces a missing value in any column. Absent: only where a column has `gap`. */
    missing: Type.Optional(Type.Literal('mean')),
    /** Options of `loadCsv`, where they were given. */
    missingTexts: Type.Optional(Type.Array(Type.String())),
    ...written,
    thousands: Type.Optional(Type.String()),
    /** A category that the model has never seen sets none of the inputs of its column. Absent: it is an error. No run keeps it. */
    unknown: Type.Optional(Type.Literal('none')),
  },
  closed,
);
export type TableReading = Static<typeof TableReadingSchema>;

const ImageReadingSchema = Type.Object(
  {
    kind: Type.Literal('images'),
    height: Type.Integer({ minimum: 1 }),
    width: Type.Integer({ minimum: 1 }),
    channels: Type.Union([Type.Literal(1), Type.Literal(3)]),
    /** Behind transparent pixels: red, green, blue. */
    background: Type.Array(Type.Integer({ minimum: 0, maximum: 255 }), {
      minItems: 3,
      maxItems: 3,
    }),
    /** How pictures of another size are brought to it. Absent: there are none. */
    fit: Type.Optional(
      Type.Union([Type.Literal('crop'), Type.Literal('pad'), Type.Literal('stretch')]),
    ),
  },
  closed,
);
export type ImageReading = Static<typeof ImageReadingSchema>;

const TextReadingSchema = Type.Object(
  {
    kind: Type.Literal('text'),
    /** What a token is; `tokenizer`: what the file of a tokenizer says. */
    tokens: Type.Union([
      Type.Literal('characters'),
      Type.Literal('bytes'),
      Type.Literal('words'),
      Type.Literal('spaces'),
      Type.Literal('tokenizer'),
    ]),
    /** Texts become lower case first. Absent: they do not. */
    lowerCase: Type.Optional(Type.Literal(true)),
    /** Kinds of tokens. */
    size: Type.Integer({ minimum: 1 }),
    /** The text of each token, '' for those with a meaning of their own. Absent: bytes, or of a tokenizer. */
    vocabulary: Type.Optional(Type.Array(Type.String())),
    /** The token of what is not in the vocabulary. */
    unknown: Type.Optional(Type.Integer({ minimum: 0, maximum: 1 })),
    tokenizer: Type.Optional(
      Type.Object(
        { file: Type.String(), sha256: Type.String({ pattern: '^[0-9a-f]{64}$' }) },
        closed,
      ),
    ),
    /** Tokens of an example. */
    length: Type.Integer({ minimum: 1 }),
    /** `next`: the targets are the token after each one. `padded`: an example is a text, filled up with the token 0. */
    as: Type.Union([Type.Literal('next'), Type.Literal('padded')]),
    /** Column of the texts in a table. Absent: each text was a file, or the experiment had them. */
    column: Type.Optional(name),
    ...written,
  },
  closed,
);
export type TextReading = Static<typeof TextReadingSchema>;
/** What turns a text into tokens, and tokens into text. */
export type TokensReading = Omit<
  TextReading,
  'kind' | 'length' | 'as' | 'column' | keyof typeof written
>;

const ReadingSchema = Type.Union([TableReadingSchema, ImageReadingSchema, TextReadingSchema]);
export type Reading = Static<typeof ReadingSchema>;

const validator = Compile(ReadingSchema);

/** @param text of the facts of a run. @throws DownpourError DP_DATA_CORRUPT: it is something else. */
export function parseReading(text: string): Reading {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // Said below.
  }
  if (validator.Check(value)) return value;
  throw new DownpourError(
    'DP_DATA_CORRUPT',
    `what the run keeps about how its data were read cannot be understood: '${text.slice(0, 80)}'; read the data in a program, or use a newer release`,
  );
}

/** Names of the inputs of a table, in order. */
export function inputNamesOf({ columns }: TableReading): string[] {
  return columns.flatMap((column) => [
    ...partsOf(column),
    ...(column.gap ? [`${column.name} is missing`] : []),
  ]);
}

function partsOf(column: ColumnReading): string[] {
  const { name } = column;
  switch (column.as) {
    case 'number':
      return [name];
    case 'category':
      return column.names.map((kind) => `${name}=${kind}`);
    case 'date':
      return [...DATE_PARTS, ...(column.time ? ['hour'] : [])].map((part) => `${name}: ${part}`);
    case 'hashed':
      return Array.from({ length: column.size }, (_, i) => `${name}#${i}`);
  }
}

/** What a date becomes, beside the hour. */
export const DATE_PARTS = ['year', 'month', 'day', 'weekday'] as const;
