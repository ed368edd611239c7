import { random } from '../../shared/random.ts';
import { isFloat, rowSize } from '../data/columns.ts';
import type { Examples, PreparedData } from '../data/examples.ts';
import { gather } from '../data/gather.ts';
import { partCount } from '../evaluate.ts';
import type { Model } from '../model.ts';
import { type Finding, finding, mean, percent, short, tooFew } from './finding.ts';

/** What can be said of the data before any training. Plain numbers: no engine, no model. */

/** Rows that are looked at where all would take long. */
const ROWS = 2000;
/** Deep Learning §1.2.2: acceptable performance from about 5,000 a class, human from 10 million. */
const PER_CLASS = 5000;
const HUMAN = 10_000_000;
/** Below so many examples a hold-out part is small (§5.3.1). */
const HOLD_OUT = 100_000;

/**
 * @param embedding rows of the model's embedding; null: it has none.
 * @param isWeighed whether the loss weighs the classes; null: it cannot.
 */
export function checkData(
  prepared: PreparedData,
  embedding: number | null = null,
  counts: ExampleCounts = countsOf(prepared),
  isWeighed: boolean | null = null,
): Finding[] {
  const classes = exampleClasses(prepared);
  return [
    embedding === null ? checkScale(prepared) : checkIds(prepared, embedding),
    ...(classes ? [checkClasses(classes, prepared.classCount!, isWeighed)] : []),
    checkCount(counts, classes),
    checkDuplicates(prepared),
    ...(classes ? [checkLabels(prepared, classes, embedding !== null)] : []),
  ];
}

/** Rows of the largest embedding or table that a layers model has: its inputs then are ids, not sizes. */
export function embeddingRows({ layout, rows }: Pick<Model, 'layout' | 'rows'>): number | null {
  const embeddings = layout.tensors
    .filter(({ name, shape }) => /(^|\/)embeddings$/.test(name) && shape.length === 2)
    .map(({ shape }) => shape[0]!);
  const all = [...embeddings, ...(rows?.shapes ?? []).map(({ keysMax }) => keysMax)];
  return all.length === 0 ? null : Math.max(...all);
}

/** The class of each training example; null where there is not one an example. */
export function exampleClasses({ train, classCount }: PreparedData): Int32Array | null {
  if (classCount === null) return null;
  const { values } = train.targets;
  const size = rowSize(train.targets);
  if (size === 1) return Int32Array.from(values);
  if (size !== classCount || !isFloat(values)) return null;
  return Int32Array.from({ length: train.count }, (_, row) => {
    const shares = values.subarray(row * size, (row + 1) * size);
    return shares.indexOf(Math.max(...shares));
  });
}

const evenly = (count: number, rows: number): Int32Array =>
  Int32Array.from({ length: Math.min(count, rows) }, (_, i) =>
    Math.floor((i * count) / Math.min(count, rows)),
  );

/** Deep Learning §8.7.1 and §12.2.1: inputs of very different scales make a badly conditioned problem. */
function checkScale(prepared: PreparedData): Finding {
  const size = rowSize(prepared.train.inputs);
  const { inputs } = gather(prepared, 'train', evenly(prepared.train.count, ROWS));
  const rows = inputs.length / size;
  let [low, high, squares] = [Infinity, -Infinity, 0];
  for (const x of inputs) {
    if (x < low) low = x;
    if (x > high) high = x;
    squares += x * x;
  }
  const rms = Math.sqrt(squares / inputs.length);
  const sizes: number[] = [];
  let constant = 0;
  for (let f = 0; f < size; f++) {
    let [sum, sumOfSquares] = [0, 0];
    for (let i = f; i < inputs.length; i += size) {
      sum += inputs[i]!;
      sumOfSquares += inputs[i]! ** 2;
    }
    const deviation = Math.sqrt(Math.max(0, sumOfSquares / rows - (sum / rows) ** 2));
    if (deviation < 1e-6 * Math.max(1e-6, Math.abs(sum / rows))) constant++;
    else sizes.push(Math.sqrt(sumOfSquares / rows));
  }
  // Pixels at the border of an image are hardly ever set; of a table, each column should count.
  const isTable = prepared.train.inputs.shape.length === 2 && size <= 1000;
  const ratio = sizes.length > 1 ? Math.max(...sizes) / Math.min(...sizes) : 1;
  const numbers = { mean: mean(inputs), rootMeanSquare: rms, low, high, features: size, constant };
  const text = `Inputs are from ${short(low)} to ${short(high)}, mean ${short(numbers.mean)}, root mean square ${short(rms)}${constant > 0 && constant < size ? `; ${constant} of ${size} features never vary` : ''}.`;
  if (rows < 2) return tooFew('scale', 'how inputs vary', rows, 2);
  if (constant === size) {
    const next =
      'look at how the inputs are read: a model cannot learn from inputs that never vary';
    return finding('scale', 'problem', `${text} No feature ever varies.`, next, numbers);
  }
  const apart = isTable ? ratio : 1;
  // Standardised by each feature they are as near to 1 as they can be made.
  const isDone = ['feature', 'zca'].includes(prepared.transform.kind);
  const bad = rms > 10 || rms < 0.01 || apart > 1000;
  if (isDone || !(bad || rms > 3 || rms < 0.1 || apart > 30)) {
    return finding('scale', 'ok', text, null, numbers);
  }
  const why = apart > 1000 ? ` One feature is ${short(ratio)} times as large as another.` : '';
  if (prepared.train.inputs.values instanceof Int32Array) {
    return finding(
      'scale',
      'advice',
      `${text}${why} They are whole numbers. Sizes and counts should be near 1; ids of tokens or categories must stay as they are.`,
      "for sizes and counts, set standardise: 'feature'; for ids, keep 'none' and begin the model with an embedding",
      numbers,
    );
  }
  const next = "set standardise: 'feature' (columns) or 'global' (images) in the experiment";
  return bad
    ? finding('scale', 'problem', `${text}${why} They should be near 1.`, next, numbers)
    : finding('scale', 'advice', `${text} Nearer to 1 trains better.`, next, numbers);
}

/** Inputs of a model that looks ids up (`mustBeIds` has refused those that it has no row for). */
function checkIds({ train }: PreparedData, embedding: number): Finding {
  const { values } = train.inputs;
  let [low, high, whole] = [Infinity, -Infinity, true];
  for (let i = 0; i < values.length; i++) {
    const id = values[i]!;
    if (id < low) low = id;
    if (id > high) high = id;
    if (!Number.isInteger(id)) whole = false;
  }
  const text = whole
    ? `Inputs are whole numbers from ${low} to ${high}, ids for an embedding of ${embedding} rows. Their size has no meaning, so it is not checked.`
    : `Inputs are from ${short(low)} to ${short(high)}. The model has an embedding of ${embedding} rows, and not all inputs are whole numbers. It is not known which of them are ids, so their scale is not checked.`;
  return finding('scale', 'ok', text, null, { low, high, embedding, whole });
}

function checkClasses(classes: Int32Array, classCount: number, isWeighed: boolean | null): Finding {
  const counts = new Array<number>(classCount).fill(0);
  for (const c of classes) counts[c]!++;
  const [fewest, most] = [Math.min(...counts), Math.max(...counts)];
  const missing = counts.filter((count) => count === 0).length;
  const majority = most / classes.length;
  const numbers = { counts, fewest, most, majority };
  if (most === classes.length) {
    return finding(
      'classes',
      'problem',
      `All ${classes.length} training examples are of class ${counts.indexOf(most)} (classes are 0 to ${classCount - 1}), so there is nothing to learn.`,
      'look at how the labels are read; a model needs examples of at least two classes',
      numbers,
    );
  }
  const text = `${classCount} classes of ${fewest} to ${most} training examples; the largest is ${percent(majority)} of all.`;
  if (missing > 0) {
    return finding(
      'classes',
      missing > classCount / 2 ? 'problem' : 'advice',
      `${text} ${missing} ${missing === 1 ? 'class has' : 'classes have'} no training example.`,
      'correct classCount or the data, or add examples of these classes: a model cannot learn a class without examples',
      numbers,
    );
  }
  if (most > 10 * fewest) {
    return finding(
      'classes',
      'advice',
      `${text} The error alone then says little: look at each class, and at precision and recall (Deep Learning §11.1).`,
      `gather more of the rare classes; ${isWeighed === false ? "where an error on a rare class costs more, set classWeights: 'balanced'; " : ''}add metrics for each class; use stratified folds (\`downpour folds --stratified\`)`,
      numbers,
    );
  }
  return finding('classes', 'ok', text, null, numbers);
}

/** Examples of each part. */
export interface ExampleCounts {
  readonly train: number;
  readonly validation: number;
  readonly test: number;
}

export const countsOf = ({ train, validation, test }: PreparedData): ExampleCounts => ({
  ...{ train: train.count, validation: validation.count, test: test?.count ?? 0 },
});

function checkCount(
  { train, validation, test }: ExampleCounts,
  classes: Int32Array | null,
): Finding {
  const all = train + validation;
  const classCount = classes ? new Set(classes).size : 0;
  const perClass = classes ? Math.round(train / classCount) : null;
  const parts: string[] = [`${train} training, ${validation} validation, ${test} test examples`];
  if (perClass !== null) {
    const mark =
      perClass < PER_CLASS
        ? `below the ${PER_CLASS} a class from which results are acceptable as a rule`
        : perClass < HUMAN
          ? `above the ${PER_CLASS} a class of acceptable results, below the 10 million of human ones`
          : 'above the 10 million a class of human results';
    parts.push(`${perClass} a class, ${mark} (Deep Learning §1.2.2)`);
  }
  const numbers = { train, validation, test, perClass };
  if (all >= HOLD_OUT) return finding('count', 'ok', `${parts.join('; ')}.`, null, numbers);
  return finding(
    'count',
    'advice',
    `${parts.join('; ')}. Below ${HOLD_OUT} examples one hold-out part is small (§5.3.1).`,
    'compare settings by k-fold: `downpour folds`; ask `downpour curve` whether more data would help',
    numbers,
  );
}

/** FNV-1a over the bytes of a row, twice with different seeds: 64 bits. */
export function rowHashes({ count }: Examples, { values }: Examples['inputs']): string[] {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const size = bytes.length / count;
  return Array.from({ length: count }, (_, row) => {
    let [a, b] = [0x811c9dc5, 0x01234567];
    for (let i = row * size; i < (row + 1) * size; i++) {
      a = Math.imul(a ^ bytes[i]!, 0x01000193);
      b = Math.imul(b ^ bytes[i]!, 0x5bd1e995) ^ (b >>> 15);
    }
    return `${a >>> 0} ${b >>> 0}`;
  });
}

/** A share of a part that the training part has too, from which its error says little. */
const LEAK = 0.01;
/** Two flowers of iris are equal, and 1 of 30 is 3 %: fewer than so many need be no mistake. */
const LEAKS_MIN = 3;

/** Above so many examples for each distinct input, meeting one again is no sign of a leak. */
const TIMES_SEEN = 3;

/** Deep Learning §5.3: no example of the test part may be used to learn, not even to choose. */
function checkDuplicates({ train, validation, test }: PreparedData): Finding {
  const hashes = rowHashes(train, train.inputs);
  const known = new Set(hashes);
  const within = train.count - known.size;
  const leakOf = (part: Examples | null) =>
    part === null ? 0 : rowHashes(part, part.inputs).filter((hash) => known.has(hash)).length;
  const parts = [
    { name: 'validation', count: validation.count, leak: leakOf(validation) },
    { name: 'test', count: test?.count ?? 0, leak: leakOf(test) },
  ].filter(({ count }) => count > 0);
  const leakIn = (name: string) => parts.find((part) => part.name === name)?.leak ?? 0;
  const numbers = {
    ...{ within, distinct: known.size },
    ...{ validation: leakIn('validation'), test: leakIn('test') },
  };
  const told = parts.map(({ name, count, leak }) => `${leak} of ${count} ${name} examples`);
  const text = `The inputs of ${told.join(' and ')} are also in the training part; ${within} training examples repeat the inputs of another.`;
  const next =
    'remove duplicates before splitting, or split by their source (person, day, document)';
  const some = parts.some(({ leak }) => leak > 0) || within > 0.05 * train.count;
  if (!parts.some(({ count, leak }) => leak >= LEAKS_MIN && leak / count > LEAK)) {
    return finding('duplicates', some ? 'advice' : 'ok', text, next, numbers);
  }
  if (train.count > TIMES_SEEN * known.size) {
    return finding(
      'duplicates',
      'advice',
      `${text} There are only ${known.size} distinct inputs, each seen ${short(train.count / known.size)} times on average. The parts must share them, so the error says nothing about other inputs.`,
      'do nothing if no other inputs exist; else remove duplicates before splitting',
      numbers,
    );
  }
  return finding(
    'duplicates',
    'problem',
    `${text} An error measured on examples that were trained on is too good to be true (Deep Learning §5.3).`,
    next,
    numbers,
  );
}

/** Numbers that all distances together may look at, five times over: about a second. */
const DISTANCE_NUMBERS = 3.2e9;
/** Neighbours that vote. */
const NEIGHBOURS = 5;
/** A quarter is asked, the rest are neighbours: of fewer there is nobody to ask. */
const LABELS_MIN = 8;

/**
 * Do labels follow the inputs at all? Nearest neighbours and class means, which need no training,
 * against the largest class's share, on examples that neither has seen.
 */
function checkLabels(prepared: PreparedData, classes: Int32Array, areIds: boolean): Finding {
  if (areIds) {
    const text = 'Inputs are ids, so distances between them say nothing about the labels.';
    return finding('labels', 'ok', text, null, {});
  }
  if (prepared.train.count < LABELS_MIN) {
    return tooFew('labels', 'whether labels follow the inputs', prepared.train.count, LABELS_MIN);
  }
  const bounded = Math.floor(Math.sqrt(DISTANCE_NUMBERS / rowSize(prepared.train.inputs)));
  const rows = evenly(prepared.train.count, Math.max(100, Math.min(ROWS, bounded)));
  const order = Array.from(rows);
  const draw = random(1, 71);
  for (let i = order.length - 1; i > 0; i--) {
    const j = draw.below(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  const asked = order.slice(0, Math.floor(order.length / 4));
  const known = order.slice(asked.length);
  const size = rowSize(prepared.train.inputs);
  const x = gather(prepared, 'train', known).inputs.slice();
  const q = gather(prepared, 'train', asked).inputs;
  const labels = known.map((row) => classes[row]!);
  const count = new Map<number, number>();
  for (const label of labels) count.set(label, (count.get(label) ?? 0) + 1);
  const [largest] = [...count].sort((a, b) => b[1] - a[1])[0]!;
  const means = new Map([...count.keys()].map((label) => [label, new Float64Array(size)]));
  labels.forEach((label, i) => {
    const sum = means.get(label)!;
    for (let f = 0; f < size; f++) sum[f]! += x[i * size + f]! / count.get(label)!;
  });
  let [byNeighbours, byMeans, byChance] = [0, 0, 0];
  asked.forEach((row, i) => {
    const query = q.subarray(i * size, (i + 1) * size);
    const label = classes[row]!;
    if (label === largest) byChance++;
    let [near, nearest] = [-1, Infinity];
    for (const [candidate, at] of means) {
      const d = distance(query, at, 0, nearest);
      if (d < nearest) [near, nearest] = [candidate, d];
    }
    if (near === label) byMeans++;
    const best: { d: number; label: number }[] = [];
    for (let j = 0; j < labels.length; j++) {
      const limit = best.length < NEIGHBOURS ? Infinity : best.at(-1)!.d;
      const d = distance(query, x, j * size, limit);
      if (d >= limit) continue;
      best.push({ d, label: labels[j]! });
      best.sort((a, b) => a.d - b.d);
      if (best.length > NEIGHBOURS) best.pop();
    }
    const votes = new Map<number, number>();
    for (const { label: vote } of best) votes.set(vote, (votes.get(vote) ?? 0) + 1);
    const winner = [...votes].sort((a, b) => b[1] - a[1])[0]?.[0];
    if (winner === label) byNeighbours++;
  });
  const n = asked.length;
  const right = Math.max(byNeighbours, byMeans);
  // Three standard deviations of guessing.
  const chance = Math.max(byChance / n, 1 / count.size);
  const bar = chance + 3 * Math.sqrt((chance * (1 - chance)) / n);
  const numbers = { neighbours: byNeighbours / n, means: byMeans / n, chance, bar, asked: n };
  if (bar >= 1) {
    const why =
      count.size === 1
        ? 'the training examples looked at are all of one class'
        : `guessing gets ${percent(chance)} of ${n} right, so no result can differ from chance`;
    return finding(
      'labels',
      'ok',
      `It is not possible to say whether labels follow the inputs: ${why}.`,
      null,
      numbers,
    );
  }
  const text = `Of ${n} training examples, the ${NEIGHBOURS} nearest others get ${percent(byNeighbours / n)} right, class means ${percent(byMeans / n)}; guessing gets ${percent(chance)}.`;
  if (right / n > bar) return finding('labels', 'ok', text, null, numbers);
  return finding(
    'labels',
    n < 50 ? 'advice' : 'problem',
    `${text} The labels do not follow the inputs, or not in a way that distances show.`,
    'look at some examples with their labels (`downpour data inspect`): were inputs and labels shuffled apart, or read from files in another order?',
    numbers,
  );
}

/** Squared, of a row that begins at `start`; more than `limit` need not be exact. */
function distance(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  start: number,
  limit: number,
): number {
  let sum = 0;
  for (let i = 0; i < a.length; ) {
    const end = Math.min(a.length, i + 64);
    for (; i < end; i++) sum += (a[i]! - b[start + i]!) ** 2;
    if (sum > limit) return sum;
  }
  return sum;
}

/** Rows of a part, evenly spaced. */
export function sampleOf(prepared: PreparedData, part: 'train' | 'validation', rows: number) {
  return gather(prepared, part, evenly(partCount(prepared, part), rows));
}
