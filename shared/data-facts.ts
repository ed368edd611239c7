import Type, { type Static, type TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import type { Aside } from './asides.ts';
import { base64Of, bytesOfBase64 } from './base64.ts';
import { DownpourError } from './errors.ts';
import { LIMITS } from './limits.ts';
import type { DataSummary } from './protocol.ts';
import { parseReading, type Reading } from './reading.ts';

/**
 * What a run keeps about its data: everything that is needed to use its parameters. It must not be computed again,
 * since the data may have changed. Workers send it when they join, checkpoints contain it, and
 * `GET /runs/:id/data` returns it.
 */

const closed = (description: string) => ({ additionalProperties: false, description }) as const;
const orNull = <S extends TSchema>(schema: S, description: string) =>
  Type.Union([schema, Type.Null()], { description });
const natural = (description: string) =>
  Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, description });
/** The same to the bit everywhere, and a fifth of what JSON would take. */
const doubles = (description: string) =>
  Type.String({ pattern: '^[A-Za-z0-9+/]*={0,2}$', description });
const names = (description: string) =>
  orNull(Type.Array(Type.String({ description: 'Name.' })), description);

const vocabulary = () =>
  Type.Optional(
    Type.Array(Type.String({ description: 'Text.' }), {
      maxItems: LIMITS.vocabularySizeMax,
      description:
        'Text of id 0, 1, … of the input; an empty text: this id has none. Absent: the texts are not known, or `reading` has them.',
    }),
  );

const ColumnFactsSchema = Type.Object(
  {
    kind: Type.Union(
      [
        Type.Literal('uint8'),
        Type.Literal('int32'),
        Type.Literal('float32'),
        Type.Literal('float64'),
      ],
      { description: 'Type of the numbers.' },
    ),
    shape: Type.Array(natural('Elements along one axis.'), {
      description: 'Shape of one example; `[]` is one number.',
    }),
  },
  closed('The numbers of the inputs, or of the targets.'),
);

const TransformSchema = Type.Object(
  {
    kind: Type.Union(
      [Type.Literal('none'), Type.Literal('global'), Type.Literal('feature'), Type.Literal('zca')],
      {
        description:
          'No mean and deviation, one for all numbers, or one for each number. `zca`: one mean for each number, and a matrix.',
      },
    ),
    scale: Type.Number({ description: '1/255 for inputs of kind `uint8`, else 1.' }),
    mean: doubles(
      'Of x · scale in the training part: no number, one, or one for each number of an example, as base64 of little-endian float64.',
    ),
    deviation: doubles('As `mean`: standard deviations. Each is above 0. For `zca` all are 1.'),
    epsilon: Type.Optional(
      Type.Number({
        description: 'For `zca`: what was added to each eigenvalue of the covariance.',
      }),
    ),
    matrix: Type.Optional(
      doubles(
        'For `zca`: the upper triangle of the symmetric matrix that the centred numbers of an example are multiplied by, row by row.',
      ),
    ),
  },
  closed(
    'What is done to each number x of the inputs: (x · scale − mean) / deviation. For `none` it is x · scale. For `zca` the numbers of an example are then multiplied by `matrix`. A missing number (NaN) becomes 0, the mean.',
  ),
);

const FieldFactsSchema = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: 64, description: 'Name.' }),
    role: Type.Union([Type.Literal('input'), Type.Literal('mask'), Type.Literal('target')], {
      description: '`mask`: 1 where the field before it has numbers, 0 where it was padded.',
    }),
    column: ColumnFactsSchema,
    transform: orNull(TransformSchema, 'For a field with the role `input`; else null.'),
    classCount: orNull(natural('Count.'), 'As `classCount` of the data.'),
    classes: names('As `classes` of the data.'),
    names: names('One name for each number of the field of an example. Null: no names.'),
    pad: Type.Optional(
      Type.Number({
        description:
          'What stands behind the end of shorter sequences; the next field is their mask. Absent: nothing was padded, or the worker is of an older release.',
      }),
    ),
    vocabulary: vocabulary(),
  },
  closed('What a run keeps about one field.'),
);
export type FieldFacts = Static<typeof FieldFactsSchema>;

export const DataFactsSchema = Type.Object(
  {
    transform: TransformSchema,
    inputs: ColumnFactsSchema,
    targets: ColumnFactsSchema,
    classCount: orNull(
      natural('Count.'),
      'Classes of the targets. Null: the targets are not classes.',
    ),
    classes: names('Name of class 0, 1, …. Null: classes have no names.'),
    inputNames: names('One name for each number of the inputs of an example. Null: no names.'),
    targetNames: names('One name for each number of the target of an example. Null: no names.'),
    fields: Type.Optional(
      Type.Array(FieldFactsSchema, {
        maxItems: LIMITS.fieldsMax,
        description:
          'Several inputs or several targets, in their order; `inputs` and `targets` then have the shape `[0]`. Absent: there is one input and one target.',
      }),
    ),
    reading: Type.Optional(
      Type.String({
        description:
          'How the inputs were read from files, as JSON; see [data.md](data.md#how-data-were-read). Absent: they were not, or the worker is of an older release.',
      }),
    ),
    vocabulary: vocabulary(),
    uses: Type.Optional(
      Type.Array(
        Type.Union([Type.Literal('predict'), Type.Literal('tfjs')], { description: 'Use.' }),
        {
          maxItems: 2,
          description:
            'What the model is good for besides its parameters. `predict`: it answers to new data. `tfjs`: it has a form for TensorFlow.js without Downpour. Absent: the worker is of an older release.',
        },
      ),
    ),
    architecture: Type.Optional(
      Type.String({
        maxLength: LIMITS.keptArchitectureBytesMax,
        pattern: '^[A-Za-z0-9+/]*={0,2}$',
        description:
          'The layers of the `model.json` of [pretrained](experiments.md#pretrained-models), as base64 of JSON compressed by DEFLATE: `predict` and `export` need no file then. Absent: there is none, or it is longer than 1 MiB.',
      }),
    ),
  },
  closed('What a run keeps about its data, so that its parameters can be used.'),
);
export type DataFacts = Static<typeof DataFactsSchema>;

/**
 * What is done to every input x: (x · scale − mean) / deviation, and for `zca` the product with a matrix. JSON, so that an
 * exported model can carry it.
 */
export interface Transform {
  readonly kind: 'none' | 'global' | 'feature' | 'zca';
  /** 1/255 for bytes, else 1. */
  readonly scale: number;
  /** The mean of x · scale in the training part. Length: none 0, global 1, feature and zca one a feature of an example. */
  readonly mean: readonly number[];
  /** As `mean`; 1 where a feature never varies, and for zca. */
  readonly deviation: readonly number[];
  /** For zca: what was added to each eigenvalue. */
  readonly epsilon?: number;
  /** For zca: the upper triangle of a symmetric matrix for the centred numbers, row by row, as base64 of float64. */
  readonly matrix?: string;
}

const validator = Compile(DataFactsSchema);

/**
 * For workers, which need neither how data were read nor what their model is, and do not know it if they are of an older
 * release.
 */
export function forWorkers(facts: DataFacts): DataFacts {
  const { reading: _, architecture: __, ...needed } = facts;
  return factsFor(needed, () => false);
}

/** For a server: what an older one refuses is left out. @param takes as of the connection to it. */
export function factsFor(facts: DataFacts, takes: (aside: Aside) => boolean): DataFacts {
  const { vocabulary, uses, fields, ...known } = facts;
  const words = takes('vocabulary');
  const fieldFor = ({ vocabulary, ...field }: FieldFacts): FieldFacts => ({
    ...field,
    ...(words && vocabulary && { vocabulary }),
  });
  return {
    ...known,
    ...(fields && { fields: fields.map(fieldFor) }),
    ...(words && vocabulary && { vocabulary }),
    ...(takes('uses') && uses && { uses }),
  };
}

/** Whether ids have texts. */
export const hasVocabulary = ({ vocabulary, fields = [] }: DataFacts): boolean =>
  vocabulary !== undefined || fields.some((field) => field.vocabulary !== undefined);

/**
 * The text of each id of a field; null: it is not known.
 * @param field its name; `inputs` and `targets` where there is one of these alone.
 */
export function vocabularyOfField(facts: DataFacts, field: string): readonly string[] | null {
  const known = facts.fields?.find(({ name }) => name === field);
  if (known) return known.vocabulary ?? null;
  if (field === 'inputs' && facts.vocabulary) return facts.vocabulary;
  const reading = facts.reading === undefined ? null : parseReading(facts.reading);
  // The target of a language model is a token too.
  const hasTokens = field === 'inputs' || (field === 'targets' && isNext(reading));
  return reading?.kind === 'text' && hasTokens ? (reading.vocabulary ?? null) : null;
}

const isNext = (reading: Reading | null) => reading?.kind === 'text' && reading.as === 'next';

/** As a payload: JSON in UTF-8, spaces up to a multiple of 4 bytes. @throws DownpourError DP_EXPERIMENT_INVALID: too long. */
export function encodeFacts(facts: DataFacts): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(facts));
  if (text.length > LIMITS.factsBytesMax) {
    const size = sizeOf(facts.inputs.shape);
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `what a run keeps about its data (standardisation, names of ${size} inputs and of classes) takes ${text.length} bytes, but at most ${LIMITS.factsBytesMax} are allowed: use standardise: 'global', or data without names`,
    );
  }
  const padded = new Uint8Array(4 * Math.ceil(text.length / 4)).fill(0x20);
  padded.set(text);
  return padded;
}

/** @throws DownpourError DP_FRAME_MALFORMED: it is something else. */
export function decodeFacts(payload: Uint8Array): DataFacts {
  const malformed = (what: string, cause?: unknown) =>
    new DownpourError('DP_FRAME_MALFORMED', `malformed frame: facts of the data ${what}`, {
      cause,
    });
  if (payload.length > LIMITS.factsBytesMax + 3) {
    throw malformed(`of ${payload.length} bytes; at most ${LIMITS.factsBytesMax} are allowed`);
  }
  if (bracketsOf(payload) > BRACKETS_MAX) throw malformed('hold more lists than there are');
  let facts: unknown;
  try {
    facts = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload));
  } catch (cause) {
    throw malformed('are no JSON', cause);
  }
  const valid: boolean = validator.Check(facts);
  if (!valid) {
    const [problem] = validator.Errors(facts);
    throw malformed(
      `are not valid:${problem?.instancePath.replaceAll('/', '.') ?? ''} ${problem?.message ?? ''}`,
    );
  }
  const checked = facts as DataFacts;
  const problem = contradiction(checked);
  if (problem) throw malformed(problem);
  return checked;
}

/** Facts have a dozen, and 7 for each field: of millions the parser would make objects that take far more room than the text. */
const BRACKETS_MAX = 100 + 7 * LIMITS.fieldsMax;

/** That open an object or a list, outside of texts. */
function bracketsOf(text: Uint8Array): number {
  let count = 0;
  let isText = false;
  for (let i = 0; i < text.length; i++) {
    const byte = text[i]!;
    if (byte === 0x22) isText = !isText;
    else if (isText && byte === 0x5c) i++;
    else if (!isText && (byte === 0x5b || byte === 0x7b)) count++;
  }
  return count;
}

function contradiction(facts: DataFacts): string | null {
  const size = sizeOf(facts.inputs.shape);
  const wrong = transformContradiction(facts.transform, facts.inputs.shape);
  if (wrong) return wrong;
  for (const { name, column, transform, classes, classCount, names } of facts.fields ?? []) {
    const own = transform && transformContradiction(transform, column.shape);
    if (own) return `have a field '${name}' whose facts ${own}`;
    const elements = sizeOf(column.shape);
    if (names && names.length !== elements) {
      return `have ${names.length} names of the field '${name}'; there are ${elements}`;
    }
    if (classes && classes.length !== classCount) {
      return `have ${classes.length} classes of the field '${name}'; there are ${classCount}`;
    }
  }
  const lists = [
    ['inputNames', size],
    ['targetNames', sizeOf(facts.targets.shape)],
    ['classes', facts.classCount],
  ] as const;
  for (const [name, wanted] of lists) {
    const length = facts[name]?.length;
    if (length !== undefined && wanted !== null && length !== wanted) {
      return `have ${length} ${name}; there are ${wanted}`;
    }
  }
  return null;
}

function transformContradiction(
  transform: DataFacts['transform'],
  shape: readonly number[],
): string | null {
  const { kind } = transform;
  const count = kind === 'none' ? 0 : kind === 'global' ? 1 : sizeOf(shape);
  for (const each of ['mean', 'deviation'] as const) {
    const values = unpackDoubles(transform[each]);
    if (values.length !== count) {
      return `have ${values.length} numbers as ${each}; '${kind}' of inputs of shape [${shape}] needs ${count}`;
    }
    if (!values.every((value) => Number.isFinite(value) && (each === 'mean' || value > 0))) {
      return `have a ${each} that is not ${each === 'mean' ? 'finite' : 'above 0'}`;
    }
  }
  return matrixContradiction(transform, count);
}

function matrixContradiction(
  { kind, matrix, epsilon }: DataFacts['transform'],
  size: number,
): string | null {
  if (kind !== 'zca') {
    return matrix === undefined && epsilon === undefined
      ? null
      : `have a matrix or an epsilon, which '${kind}' has not`;
  }
  if (size > LIMITS.whitenedInputsMax) {
    return `have a matrix for ${size} inputs; at most ${LIMITS.whitenedInputsMax} are whitened`;
  }
  if (!(epsilon !== undefined && epsilon > 0 && Number.isFinite(epsilon))) {
    return `have the epsilon ${epsilon}; 'zca' needs one above 0`;
  }
  const values = unpackDoubles(matrix ?? '');
  const wanted = (size * (size + 1)) / 2;
  if (values.length !== wanted) {
    return `have a matrix of ${values.length} numbers; 'zca' of ${size} inputs needs ${wanted}`;
  }
  return values.every(Number.isFinite) ? null : 'have a matrix that is not finite';
}

/** Numbers as base64 of little-endian float64. */
export const packDoubles = (values: ArrayLike<number>): string =>
  // −0 would come out of JSON as 0.
  base64Of(new Uint8Array(Float64Array.from(values, (value) => value + 0).buffer));

export function unpackDoubles(base64: string): Float64Array {
  const bytes = bytesOfBase64(base64);
  return new Float64Array(bytes.buffer, 0, Math.floor(bytes.length / 8));
}

/** @throws DownpourError DP_DATA_CORRUPT: the data have no finite mean, or a deviation of 0. */
export function packTransform(transform: Transform): DataFacts['transform'] {
  const { kind, scale, mean, deviation, epsilon, matrix } = transform;
  if (!mean.every(Number.isFinite) || !deviation.every((d) => Number.isFinite(d) && d > 0)) {
    throw new DownpourError(
      'DP_DATA_CORRUPT',
      'mean or deviation of the training inputs is not a finite number: the values are too large to be standardised; scale them in data()',
    );
  }
  return {
    ...{ kind, scale, mean: packDoubles(mean), deviation: packDoubles(deviation) },
    ...(epsilon === undefined ? {} : { epsilon }),
    ...(matrix === undefined ? {} : { matrix }),
  };
}

/** What `packTransform` packed. */
export function unpackTransform(packed: DataFacts['transform']): Transform {
  const { mean, deviation, ...others } = packed;
  return { ...others, mean: [...unpackDoubles(mean)], deviation: [...unpackDoubles(deviation)] };
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, d) => product * d, 1);
}

/** What differs between two, in words; null: nothing. The transform is compared by the data's fingerprint. */
function factsDifference(run: DataFacts, other: DataFacts): string | null {
  const columns = ['inputs', 'targets'] as const;
  for (const name of columns) {
    const [a, b] = [run[name], other[name]];
    if (a.kind !== b.kind || String(a.shape) !== String(b.shape)) {
      return `${b.kind} ${name} of shape [${b.shape}], but the run's are ${a.kind} of shape [${a.shape}]`;
    }
  }
  if (run.classCount !== other.classCount) {
    return `${other.classCount ?? 'no'} classes, but the run has ${run.classCount ?? 'none'}`;
  }
  if (areOtherTokens(run.reading, other.reading)) {
    return 'another vocabulary or tokenizer of the texts than the run';
  }
  if (areOtherWords(run.vocabulary, other.vocabulary)) {
    return 'another vocabulary of the inputs than the run';
  }
  const [own, others] = [run.fields ?? [], other.fields ?? []];
  for (let i = 0; i < Math.max(own.length, others.length); i++) {
    const [a, b] = [own[i], others[i]].map((field) => field && describeField(field));
    if (a !== b) return `${b ? `${b} as a field` : 'fewer fields'}, but the run has ${a ?? 'none'}`;
    if (areOtherWords(own[i]?.vocabulary, others[i]?.vocabulary)) {
      return `another vocabulary of the field '${own[i]!.name}' than the run`;
    }
  }
  for (const name of ['classes', 'inputNames', 'targetNames'] as const) {
    const [a, b] = [run[name], other[name]];
    if (a === null || b === null) {
      if (a !== b) return `${b ? '' : 'no '}${LISTS[name]}, but the run has ${a ? 'some' : 'none'}`;
      continue;
    }
    const at = a.findIndex((value, i) => value !== b[i]);
    if (at >= 0) {
      return `${JSON.stringify(b[at])} as number ${at} of the ${LISTS[name]}, but the run has ${JSON.stringify(a[at])}`;
    }
  }
  return null;
}

/** Whether texts were divided into other tokens: the same numbers then mean something else. */
function areOtherTokens(run: string | undefined, other: string | undefined): boolean {
  if (run === undefined || other === undefined || run === other) return false;
  const [a, b] = [run, other].map(tokensOfReading);
  return a !== undefined && b !== undefined && a !== b;
}

/** Whether ids mean other texts, as far as both are known. */
function areOtherWords(run: FieldFacts['vocabulary'], other: FieldFacts['vocabulary']): boolean {
  if (run === undefined || other === undefined) return false;
  return run.length !== other.length || run.some((word, id) => word !== other[id]);
}

/** Without the place of a tokenizer's file, which is another one on each machine. */
function tokensOfReading(text: string): string | undefined {
  let reading: Reading;
  try {
    reading = parseReading(text);
  } catch {
    // A newer release reads in ways that are not known here.
    return undefined;
  }
  if (reading.kind !== 'text') return undefined;
  const { tokens, lowerCase, size, vocabulary, unknown, tokenizer } = reading;
  return JSON.stringify([tokens, lowerCase, size, vocabulary, unknown, tokenizer?.sha256]);
}

const describeField = ({ name, role, column, classes, classCount }: FieldFacts) =>
  `'${name}' (${role}, ${column.kind} of shape [${column.shape}]${classCount === null ? '' : `, ${classes?.join(', ') ?? `${classCount} classes`}`})`;

const LISTS = {
  classes: 'names of classes',
  inputNames: 'names of inputs',
  targetNames: 'names of targets',
} as const;

/** What is known about data; null: not known. */
export interface ToldData {
  readonly data: DataSummary | null;
  readonly facts: DataFacts | null;
}

/** How data differ from those of a run, in words; null: they are the same, as far as is known. */
export function dataDifference(run: ToldData, other: ToldData): string | null {
  const counts =
    run.data && other.data && !isSameData(run.data, other.data)
      ? describeDifference(run.data, other.data)
      : null;
  const facts = run.facts && other.facts && factsDifference(run.facts, other.facts);
  return counts && facts ? `${facts}; in all ${counts}` : (facts ?? counts);
}

/**
 * A warning for a fork whose examples are not split like those of the run that it started from; null: they are.
 * @param origin what that run was trained on.
 */
export function forkNote(
  fork: { readonly run: string; readonly data?: 'same' | 'other' } | undefined,
  origin: DataSummary | null,
  own: DataSummary | null,
): string | null {
  if (!fork || !origin || !own || isOfOlderRelease(origin, own)) return null;
  if (origin.fingerprint === own.fingerprint) return null;
  const what =
    fork.data === 'other'
      ? 'has other data or splits them differently'
      : 'splits the data differently';
  return `this run ${what} from run '${fork.run}', whose parameters it started with: its validation examples may include examples that these parameters were trained on`;
}

/**
 * Whether data are those of a run. Of a run of an older release, whose fingerprint was made otherwise, the counts
 * alone can be compared.
 */
function isSameData(run: DataSummary, other: DataSummary): boolean {
  const counts = (['trainCount', 'validationCount', 'testCount'] as const).every(
    (count) => run[count] === other[count],
  );
  return counts && (isOfOlderRelease(run, other) || run.fingerprint === other.fingerprint);
}

/** Whether a worker of a release without raw fingerprints told the run about its data. */
export function isOfOlderRelease(run: DataSummary, other: DataSummary): boolean {
  return run.rawFingerprint === undefined && other.rawFingerprint !== undefined;
}

/** Both, in words. */
function describeDifference(run: DataSummary, other: DataSummary): string {
  return `${describeData(other)}; the run has ${describeData(run)}`;
}

function describeData(data: DataSummary): string {
  return `${data.trainCount} training, ${data.validationCount} validation and ${data.testCount} test examples, fingerprint ${data.fingerprint.slice(0, 16)} (${data.source})`;
}
