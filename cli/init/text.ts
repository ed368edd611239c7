import { basename } from 'node:path';
import { textWindows } from '../../worker/data/sources/text.ts';
import { readTextFile } from '../../worker/data/texts/text-files.ts';
import { findTexts } from '../../worker/data/texts/text-folder.ts';
import { unitsOf } from '../../worker/data/texts/units.ts';
import { groups } from '../output/progress.ts';
import {
  CLASS_RULES,
  type Draft,
  QUANTITY_RULES,
  type QuantityCode,
  testShare,
  VALIDATION_SHARE,
} from './draft.ts';
import { code, comment } from './source.ts';

/** Experiments for texts: language models, and classes or quantities of whole texts. */

/** A vocabulary of more entries goes into a table, of which a minibatch uses a few rows. */
const TABLE_FROM = 10_000;
/** Entries of the vocabulary of a language model of words, whose output has one number for each. */
const WORDS_MAX = 20_000;
/** From so many tokens on, words that stand there once are left out: nothing is learnt of them. */
const RARE_FROM = 20_000;

export interface LanguageRequest {
  /** As the user named it. */
  readonly data: string;
  /** Source code that gives the path. */
  readonly place: string;
  readonly words: boolean;
  readonly testFraction?: number;
}

/** Shares of a text for the parts. */
const TEXT_SHARE = 0.1;

/** The experiment for a language model: which character or word follows. */
export async function languageDraft(request: LanguageRequest): Promise<Draft> {
  const { data, words, testFraction = TEXT_SHARE } = request;
  const window = words ? 32 : 64;
  const reading = words ? { tokens: 'words' as const, size: WORDS_MAX } : {};
  const shares = { validationFraction: TEXT_SHARE, ...(testFraction > 0 && { testFraction }) };
  const read = (minCount?: number) =>
    textWindows({ file: data, window, ...reading, ...shares, ...(minCount && { minCount }) });
  const all = await read();
  const isRare = words && all.train.count * window >= RARE_FROM;
  const chosen = isRare ? await read(2) : all;
  const { train, classCount, validation, test } = chosen;
  const what = words ? 'word' : 'character';
  const isLarge = words && classCount > TABLE_FROM;
  const counted = [
    `${groups(train.count * window)} ${what}s to train on`,
    ...(validation ? [`${groups(validation.count * window)} to validate`] : []),
    ...(test ? [`${groups(test.count * window)} for \`downpour test\``] : []),
  ];
  const notes = [
    `${data}: ${counted.join(', ')}; a language model: which ${what} follows, of ${groups(classCount)}`,
    ...(words
      ? [
          `the vocabulary has the words of the training part${isRare ? ' that stand there twice or more' : ''}${classCount === WORDS_MAX ? `, the ${groups(WORDS_MAX)} most frequent ones` : ''}; others are one unknown word`,
        ]
      : ['--words predicts words instead of characters']),
    ...(isLarge ? [tableNote(classCount)] : []),
  ];
  const options = [
    `file: ${request.place},`,
    ...(words ? [`tokens: 'words',`, `size: ${WORDS_MAX},`] : []),
    ...(isRare ? ['minCount: 2,'] : []),
    'window: WINDOW,',
    `// The end of the text, or whole documents if there are several.`,
    `validationFraction: ${TEXT_SHARE},`,
    ...(testFraction > 0 ? [`testFraction: ${testFraction},`] : []),
    'log,',
  ];
  const embedding = isLarge
    ? `layers.rows({ table: 'word', inputShape: [WINDOW] }),`
    : `tf.layers.embedding({ inputDim: classCount, outputDim: 64, inputLength: WINDOW }),`;
  const source = `import { resolve } from 'node:path';
import { defineExperiment } from 'downpour';
${isLarge ? `import { layers } from 'downpour/layers';\n` : ''}import { textWindows } from 'downpour/text';

/** A language model of ${comment(basename(data))}: which ${what} follows. \`downpour sample\` writes texts by it. */
const WINDOW = ${window};

export default defineExperiment({
  data: ({ log }) =>
    textWindows({
${options.map((line) => `      ${line}`).join('\n')}
    }),
${isLarge ? tableSource(WORDS_MAX, 64) : ''}
  model: ({ tf, classCount, hyperparameters }) =>
    tf.sequential({
      layers: [
        ${embedding}
        tf.layers.lstm({
          units: Number(hyperparameters.units ?? 128),
          returnSequences: true,
          recurrentActivation: 'sigmoid',
          recurrentInitializer: 'glorotUniform',
          // A gate that is open at the beginning lets gradients through.
          unitForgetBias: true,
        }),
        // Logits: the softmax is in the loss.
        tf.layers.dense({ units: classCount }),
      ],
    }),
  // In nats for each ${what}.
  loss: 'softmaxCrossEntropy',

  config: {
    minibatchSize: ${Math.min(32, train.count)},
    learningRate: 0.004,
    optimizer: { kind: 'adam' },
    // A long product of matrices may explode.
    clip: { norm: 1 },
    earlyStopping: { patience: 3, metric: 'loss' },
    epochsMax: 30,
  },

  // Where \`downpour search\` looks for better values.
  search: {
    learningRate: { kind: 'log', low: 0.0005, high: 0.02 },
    'hyperparameters.units': { kind: 'logInteger', low: 32, high: 512 },
  },
});
`;
  return { notes, source };
}

const tableNote = (entries: number) =>
  `the vectors of ${groups(entries)} words are a table: workers exchange those of a minibatch alone`;

const tableSource = (rows: number | string, width: number) =>
  `  tables: { word: { rows: ${rows}, width: ${width}, optimizer: { kind: 'adam' } } },\n`;

/** What init finds out about texts. */
interface SurveyedTexts {
  readonly count: number;
  /** Tokens of an example. */
  readonly length: number;
  readonly minCount: number;
  /** Entries of a vocabulary of all texts. */
  readonly size: number;
}

/** Nine of ten texts are not cut, if they are not longer than this. */
const LENGTH_MAX = 400;
const WHOLE_SHARE = 0.9;

export function surveyTexts(texts: readonly string[]): SurveyedTexts {
  const counts = new Map<string, number>();
  let all = 0;
  const lengths = Int32Array.from(texts, (text) => {
    const words = unitsOf(text, 'words', true);
    for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
    all += words.length;
    return words.length;
  }).sort();
  const usual = lengths[Math.floor(WHOLE_SHARE * (lengths.length - 1))] ?? 1;
  const minCount = all >= RARE_FROM ? 2 : 1;
  const often = [...counts.values()].filter((count) => count >= minCount).length;
  return {
    count: texts.length,
    length: Math.min(LENGTH_MAX, 10 * Math.max(1, Math.ceil(usual / 10))),
    minCount,
    size: often + 2,
  };
}

export interface WholeTexts {
  readonly survey: SurveyedTexts;
  /** Code that calls the reader, up to its options, and options of this reader alone. */
  readonly reader: string;
  readonly call: string;
  readonly options: readonly string[];
  /** What is predicted, for the comment. */
  readonly title: string;
  /** Null: classes. */
  readonly quantity: QuantityCode | null;
  /** Parts that the files have already. */
  readonly parts: readonly string[];
  readonly testFraction: number | undefined;
  readonly notes: readonly string[];
}

/** The experiment for classes or a quantity of whole texts: the mean of the vectors of their words. */
export function wholeTextsDraft(texts: WholeTexts): Draft {
  const { survey, reader, call, title, quantity, parts } = texts;
  const { count, length, minCount, size } = survey;
  const isLarge = size > TABLE_FROM;
  const share = parts.includes('test') ? 0 : testShare(count, texts.testFraction);
  const validates = parts.includes('validation') ? 0 : VALIDATION_SHARE;
  const options = [
    ...texts.options,
    `tokens: 'words',`,
    'lowerCase: true,',
    ...(minCount > 1 ? [`minCount: ${minCount},`] : []),
    'size: VOCABULARY,',
    '// A longer text is cut at its end.',
    `length: LENGTH,`,
    ...(share > 0
      ? ['// Held out for `downpour test`: the same texts in every run.', `testFraction: ${share},`]
      : []),
    ...(validates > 0
      ? [
          '// Held out before the vocabulary is built, which then has nothing of these texts.',
          `validationFraction: ${validates},`,
        ]
      : []),
    'log,',
  ];
  const rest = Math.round(count * (1 - share) * (1 - validates));
  const minibatch = Math.max(1, Math.min(32, rest));
  const words = isLarge
    ? [`layers.rows({ table: 'word', combine: 'mean', maskZero: true, inputShape: [LENGTH] }),`]
    : [
        'args.tf.layers.embedding({',
        '  ...{ inputDim: VOCABULARY, outputDim: 32, maskZero: true, inputLength: LENGTH },',
        '}),',
        'layers.maskedMean(),',
      ];
  const source = `import { resolve } from 'node:path';
import { defineExperiment } from 'downpour';
import { layers } from 'downpour/layers';
import { ${reader} } from 'downpour/text';

/** ${title} */
const LENGTH = ${length};
/** Entries of the vocabulary at most, with those for padding and unknown words. */
const VOCABULARY = ${size};

export default defineExperiment({
  data: ({ log }) =>
    ${call}, {
${options.map((line) => `      ${line}`).join('\n')}
    }),
${isLarge ? tableSource('VOCABULARY', 32) : ''}
  model: (args) =>
    args.tf.sequential({
      layers: [
${words.map((line) => `        ${line}`).join('\n')}
        args.tf.layers.dropout({ rate: Number(args.hyperparameters.dropout ?? 0.3) }),
${quantity?.layers ?? LOGITS_OF_CLASSES}
      ],
    }),
${quantity?.loss ?? `  loss: 'softmaxCrossEntropy',`}

  config: {
    minibatchSize: ${minibatch},
    learningRate: 0.01,
${quantity === null ? CLASS_RULES : QUANTITY_RULES}
    epochsMax: 100,
  },

  // Where \`downpour search\` looks for better values.
  search: {
    learningRate: { kind: 'log', low: 0.0005, high: 0.05 },
    'hyperparameters.dropout': { kind: 'uniform', low: 0, high: 0.6 },
  },
});
`;
  const notes = [
    ...texts.notes,
    `texts become words in lower case; an example is ${length} of them, and a vocabulary of the training part has at most ${groups(size)} entries${minCount > 1 ? `, words that stand there ${minCount} times or more` : ''}`,
    ...(isLarge ? [tableNote(size)] : []),
    ...(share > 0 ? [`sets ${100 * share} % of the texts apart for \`downpour test\``] : []),
  ];
  return { notes: notes.map((note) => note.replaceAll('\n', ' ')), source };
}

const LOGITS_OF_CLASSES = `        // Logits: the softmax is in the loss.
        args.tf.layers.dense({ units: args.classCount }),`;

/** Texts of a class; fewer say little about it. */
const TEXTS_FEW = 10;
const CLASSES_SHOWN = 10;

/** A folder with one subfolder for each class. */
export async function textFolderDraft(request: {
  readonly data: string;
  readonly place: string;
  readonly testFraction?: number;
}): Promise<Draft> {
  const { data, place, testFraction } = request;
  const { classes, parts } = await findTexts(data);
  const texts: string[] = [];
  const encoding = await encodingOf(parts.train!.map(({ path }) => path));
  for (const { path } of parts.train!) texts.push(await readTextFile(path, encoding));
  const counts = new Array<number>(classes.length).fill(0);
  for (const { label } of parts.train!) counts[label]!++;
  const shown = classes.slice(0, CLASSES_SHOWN).map((name) => comment(name));
  const more = classes.length > CLASSES_SHOWN ? ` … (${classes.length})` : '';
  const few = classes.filter((_, i) => counts[i]! < TEXTS_FEW).map((name) => comment(name));
  const others = Object.entries(parts).filter(([part]) => part !== 'train');
  return wholeTextsDraft({
    ...{ survey: surveyTexts(texts), parts: others.map(([part]) => part), testFraction },
    ...{ reader: 'loadTextFolder', call: `loadTextFolder(${place}`, quantity: null },
    options: encoding === undefined ? [] : [`encoding: ${code(encoding)},`],
    title: `The class of a text: ${shown.join(', ')}${more}.`,
    notes: [
      `${data}: ${groups(texts.length)} texts${others.map(([part, files]) => `, ${groups(files!.length)} for ${part}`).join('')}; classes ${shown.map((name, i) => `${name} (${groups(counts[i]!)})`).join(', ')}${more}`,
      ...(encoding === undefined
        ? []
        : [
            `${data}: not all texts are UTF-8, so they are read as ${encoding}; if they are something else, change \`encoding\``,
          ]),
      ...(few.length > 0
        ? [
            `${few.length === 1 ? 'class' : 'classes'} ${few.slice(0, CLASSES_SHOWN).join(', ')}: fewer than ${TEXTS_FEW} texts; add more`,
          ]
        : []),
    ],
  });
}

const OLD_ENCODING = 'windows-1252';

/**
 * The encoding of files of which one is no UTF-8. Undefined: all are, or say themselves what they are.
 * @throws DownpourError DP_DATA_CORRUPT: a file is no text in the old encoding, either.
 */
async function encodingOf(paths: readonly string[]): Promise<string | undefined> {
  for (const path of paths) {
    const problem = await readTextFile(path).then(
      () => null,
      (error: unknown) => error,
    );
    if (problem === null) continue;
    await readTextFile(path, OLD_ENCODING).catch(() => {
      throw problem;
    });
    return OLD_ENCODING;
  }
  return undefined;
}
