import { columnName, rowSize } from '../data/columns.ts';
import type { Examples, PreparedData } from '../data/examples.ts';
import { roundedColumns, roundedText } from '../data/precision.ts';
import { exampleClasses } from './data.ts';
import { type Finding, finding, percent } from './finding.ts';

/** Can the targets be learnt from these inputs, and does each part ask for the same? */

/** A part may lack a class by chance; less likely than this it is no chance. */
const CHANCE = 0.01;
/** So many rows are equal to a target by chance in one column of 2 values: 2⁻²⁰ a column. */
const EQUAL_ROWS_MIN = 20;
const COLUMNS_MAX = 1000;

export function checkTargets(prepared: PreparedData): Finding[] {
  return [checkCopies(prepared), checkParts(prepared), checkRounding(prepared)].filter(
    (found) => found !== null,
  );
}

/** A target that never varies needs no model; one that is among the inputs neither. */
function checkCopies(prepared: PreparedData): Finding | null {
  const { inputs, targets, count } = prepared.train;
  const [width, size] = [rowSize(inputs), rowSize(targets)];
  if (count < 2) return null;
  const at = (values: ArrayLike<number>, row: number, columns: number, c: number) =>
    values[row * columns + c]!;
  const rows = Array.from({ length: count }, (_, row) => row);
  const constant = Array.from({ length: size }, (_, t) => t).filter((t) =>
    rows.every((row) => at(targets.values, row, size, t) === targets.values[t]),
  );
  // Where targets are classes, `classes` says it.
  if (constant.length === size && exampleClasses(prepared) === null) {
    return finding(
      'targets',
      'problem',
      `All ${count} training examples have the same target${size === 1 ? `, ${targets.values[0]}` : 's'}, so there is nothing to learn.`,
      'look at how the targets are read',
      { constant: constant.length },
    );
  }
  // What gives its inputs back, an autoencoder, has them as targets.
  const isTable =
    inputs.shape.length === 2 && width <= COLUMNS_MAX && !(size === width && size > 1);
  for (let t = 0; t < size && isTable && count >= EQUAL_ROWS_MIN; t++) {
    if (constant.includes(t)) continue;
    for (let c = 0; c < width; c++) {
      const copied = rows.every(
        (row) => at(inputs.values, row, width, c) === at(targets.values, row, size, t),
      );
      if (!copied) continue;
      return finding(
        'targets',
        'problem',
        `The inputs contain the target: ${columnName(inputs, c)} equals it in all ${count} training examples.`,
        'remove this column from the inputs: it is not known when the model is used',
        { input: c, target: t },
      );
    }
  }
  return null;
}

/** The classes of validation and test against those of training. */
function checkParts(prepared: PreparedData): Finding | null {
  const own = exampleClasses(prepared);
  if (own === null || prepared.classCount === null) return null;
  const name = (c: number) => `${c}${prepared.classes?.[c] ? ` ('${prepared.classes[c]}')` : ''}`;
  const counts = countsOf(own, prepared.classCount);
  const told: string[] = [];
  const numbers: Record<string, unknown> = {};
  for (const part of ['validation', 'test'] as const) {
    const examples: Examples | null = prepared[part];
    const classes = examples?.count && exampleClasses({ ...prepared, train: examples });
    if (!examples || !classes) continue;
    const there = countsOf(classes, prepared.classCount);
    const unknown = there.findIndex((_, c) => counts[c] === 0 && isNoChance(there, c, own.length));
    const missing = counts.flatMap((_, c) =>
      there[c] === 0 && isNoChance(counts, c, examples.count) ? [c] : [],
    );
    numbers[part] = { counts: there, missing };
    if (unknown >= 0) {
      told.push(
        `Class ${name(unknown)} has ${there[unknown]} ${part} examples but no training example.`,
      );
    }
    if (missing.length > 0) {
      const [first] = missing as [number];
      told.push(
        `Class ${name(first)}${missing.length > 1 ? ` (and ${missing.length - 1} more)` : ''} has ${percent(counts[first]! / own.length)} of the training examples but none of the ${examples.count} ${part} examples.`,
      );
    }
  }
  if (told.length === 0) return null;
  return finding(
    'parts',
    'advice',
    `${told.join(' ')} The error is then measured on other classes than those that are trained.`,
    'split the examples at random (let data() return no validation part), or use `downpour folds --stratified`',
    numbers,
  );
}

/** How likely none of n draws is of a class with the share p: (1 − p)ⁿ. The share is from a few draws too (Laplace). */
function isNoChance(counts: readonly number[], c: number, draws: number): boolean {
  const all = counts.reduce((sum, count) => sum + count, 0);
  return counts[c]! > 0 && (1 - (counts[c]! + 1) / (all + counts.length)) ** draws < CHANCE;
}

function countsOf(classes: Int32Array, classCount: number): number[] {
  const counts = new Array<number>(classCount).fill(0);
  for (const c of classes) counts[c]!++;
  return counts;
}

function checkRounding({ train }: PreparedData): Finding | null {
  const rounded = roundedColumns(train.inputs);
  if (rounded.length === 0) return null;
  return finding(
    'rounding',
    'advice',
    `${rounded
      .slice(0, 3)
      .map((column) => roundedText(column))
      .join(
        ' ',
      )}${rounded.length > 3 ? ` ${rounded.length - 3} more columns are rounded in the same way.` : ''}`,
    "use a Float64Array with standardise: 'feature': the columns are then centred before they become float32",
    { columns: rounded },
  );
}
