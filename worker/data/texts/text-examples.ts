import { LIMITS } from '../../../shared/limits.ts';
import type { TextReading } from '../../../shared/reading.ts';
import type { Column } from '../columns.ts';
import { invalid } from '../described.ts';
import { DATA_PARTS, type DataPart } from '../examples.ts';
import { corrupt } from '../files.ts';
import type { GivenData } from '../given.ts';
import { LOG, oneOf, optional, TEST_FRACTION } from '../reader-options.ts';
import { heldOutRows } from '../split.ts';
import { writePadded } from './padded.ts';
import { TOKENS_MAX } from './token-list.ts';
import type { TextUnit } from './units.ts';
import {
  buildVocabulary,
  type Tokenizer,
  VOCABULARY_FIELDS,
  type VocabularyOptions,
} from './vocabulary.ts';

/** Whole texts as examples: each is as many tokens as all others, padded with 0 at its end. */

export interface TextExampleOptions
  extends Pick<VocabularyOptions, 'lowerCase' | 'minCount' | 'size'> {
  /** Default: words. */
  readonly tokens?: TextUnit | Tokenizer;
  /** Tokens of an example: of longer texts the first ones count, shorter ones are filled up with 0. */
  readonly length: number;
  /** Shares of the texts for the test part, and of the others for the validation part; the same texts in every run. Default: 0. */
  readonly testFraction?: number;
  readonly validationFraction?: number;
  /** Receives lines for the user. */
  readonly log?: (line: string) => void;
}

export interface TextData extends GivenData {
  /** The text of each token; null: of a tokenizer, which knows it itself. */
  readonly vocabulary: readonly string[] | null;
  /** Kinds of tokens: rows of an embedding. */
  readonly size: number;
  readonly source: string;
}

const isLength = (value: unknown) =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= LIMITS.textLengthMax;
const units = oneOf('characters', 'words', 'spaces');

/** What these options must be. */
export const TEXT_FIELDS = {
  ...VOCABULARY_FIELDS,
  tokens: optional({
    allowed: `${units.allowed}, or a tokenizer { encode(text), size }`,
    test: (value) => units.test(value) || typeof (value as Tokenizer | null)?.encode === 'function',
  }),
  length: {
    allowed: `a whole number of tokens from 1 to ${LIMITS.textLengthMax}`,
    test: isLength,
  },
  ...{ testFraction: TEST_FRACTION, validationFraction: TEST_FRACTION, log: LOG },
};

/** Texts of one part, and what is to be predicted of each. */
export interface LabelledTexts {
  readonly texts: readonly string[];
  readonly targets: Pick<Column, 'names'> & {
    readonly values: Int32Array | Float64Array;
    readonly classes?: readonly string[];
  };
}

/**
 * @param name of the texts, for messages @param how what of the reading depends on the files
 * @throws DownpourError DP_EXPERIMENT_INVALID, DP_DATA_CORRUPT: they are too many.
 */
export function textExamples(
  name: string,
  given: Readonly<Partial<Record<DataPart, LabelledTexts>>>,
  options: TextExampleOptions,
  how: Partial<TextReading> = {},
): TextData {
  const parts = splitTexts(given, options);
  const { tokens = 'words', length, lowerCase, minCount, size } = options;
  const chosen = {
    ...(lowerCase === undefined ? {} : { lowerCase }),
    ...(minCount === undefined ? {} : { minCount }),
    ...(size === undefined ? {} : { size }),
  };
  if (typeof tokens === 'object' && Object.keys(chosen).length > 0) {
    throw invalid(
      `${Object.keys(chosen).join(', ')}: a tokenizer has its own vocabulary; leave ${Object.keys(chosen).length > 1 ? 'them' : 'it'} out`,
    );
  }
  const tokenizer =
    typeof tokens === 'object'
      ? tokens
      : buildVocabulary(parts.train!.texts, { ...chosen, tokens });
  const { kept } = tokenizer;
  const reading: TextReading | null = kept
    ? { kind: 'text', ...kept, length, as: 'padded', ...how }
    : null;
  const counts = { cut: 0, empty: 0, all: 0 };
  const examples = Object.entries(parts).map(([part, { texts, targets }]) => {
    const rows = texts.length;
    counts.all += rows;
    if (rows * length > TOKENS_MAX) {
      throw corrupt(
        name,
        `${rows} texts of ${length} tokens are ${rows * length} tokens; allowed: ${TOKENS_MAX}. Make \`length\` smaller`,
      );
    }
    const values = new Int32Array(rows * length);
    for (const [i, text] of texts.entries()) {
      const own = tokenizer.encode(text);
      if (own.length === 0) counts.empty++;
      if (writePadded(own, values, i * length, length) > 0) counts.cut++;
    }
    const inputs = { values, shape: [rows, length], ...(reading && { reading }) };
    return [
      part,
      { inputs, targets: { ...targets, shape: [rows, ...(targets.classes ? [] : [1])] } },
    ];
  });
  const { classes } = parts.train!.targets;
  const notes = [
    ...(counts.cut > 0
      ? [`${counts.cut} are longer than ${length} tokens, and their ends are left out`]
      : []),
    ...(counts.empty > 0 ? [`${counts.empty} have no token`] : []),
  ];
  for (const note of notes) options.log?.(`${name}: ${note}`);
  return {
    ...(Object.fromEntries(examples) as Pick<GivenData, 'train'>),
    ...(classes && { classes, classCount: classes.length }),
    ...{ size: tokenizer.size, vocabulary: kept?.vocabulary ?? null },
    source: [
      `${counts.all} texts from ${name}`,
      `${tokenizer.size} kinds of tokens`,
      ...notes,
    ].join('; '),
  };
}

/** Parts that were given, or of which some texts are held out: before anything is learnt of them. */
function splitTexts(
  given: Readonly<Partial<Record<DataPart, LabelledTexts>>>,
  { testFraction = 0, validationFraction = 0 }: TextExampleOptions,
): Readonly<Partial<Record<DataPart, LabelledTexts>>> {
  let train = given.train!;
  const held: Partial<Record<DataPart, LabelledTexts>> = {};
  for (const [part, fraction] of [
    ['test', testFraction],
    ['validation', validationFraction],
  ] as const) {
    if (given[part] && fraction > 0) {
      throw invalid(
        `${part}Fraction is ${fraction}, but there is a ${part} part already; leave it out`,
      );
    }
    const rows = heldOutRows(train.texts.length, fraction);
    if (given[part]) held[part] = given[part];
    if (rows === null) continue;
    held[part] = some(train, rows.test);
    train = some(train, rows.train);
  }
  const parts = { ...held, train };
  return Object.fromEntries(
    DATA_PARTS.flatMap((part) => (parts[part] ? [[part, parts[part]]] : [])),
  );
}

const some = ({ texts, targets }: LabelledTexts, rows: Int32Array): LabelledTexts => ({
  texts: Array.from(rows, (row) => texts[row]!),
  targets: { ...targets, values: rowsOf(targets.values, rows) },
});

const rowsOf = (values: Int32Array | Float64Array, rows: Int32Array) =>
  values instanceof Int32Array
    ? rows.map((row) => values[row]!)
    : Float64Array.from(rows, (row) => values[row]!);
