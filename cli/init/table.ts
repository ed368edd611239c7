import { basename } from 'node:path';
import { DownpourError } from '../../shared/errors.ts';
import { shellCommand } from '../../shared/shell.ts';
import { nearest } from '../../shared/spelling.ts';
import { corrupt } from '../../worker/data/files.ts';
import { lookalikes } from '../../worker/data/tables/cells.ts';
import type { DateOrder } from '../../worker/data/tables/dates.ts';
import { tableFiles } from '../../worker/data/tables/table-files.ts';
import {
  type ColumnProfile,
  type ProfileOptions,
  profileTable,
  type TableProfile,
} from '../../worker/data/tables/table-profile.ts';
import { readRows } from '../../worker/data/tables/table-rows.ts';
import { withOptions } from '../data/table-options.ts';
import { groups } from '../output/progress.ts';
import type { Interview } from './ask.ts';
import {
  dateOrderOf,
  firstOdd,
  type Judged,
  judgeColumn,
  presentNumbers,
  quotedText,
  strayNumber,
} from './columns.ts';
import {
  CLASS_RULES,
  type Draft,
  LOGITS,
  minibatchSize,
  QUANTITY_RULES,
  quantityCode,
  SEARCH,
  testShare,
  VALIDATION_SHARE,
} from './draft.ts';
import { isNumeric, isSameColumn, targetInDisguise } from './relations.ts';
import { code, codeList, comment, key } from './source.ts';
import { surveyTexts, wholeTextsDraft } from './text.ts';

/** The experiment for a table: what to predict, from which columns, by which network. */

export type Task = 'classification' | 'regression';

export interface TableRequest {
  /** As the user named it. */
  readonly data: string;
  /** Source code that gives the path. */
  readonly place: string;
  readonly target?: string;
  readonly task?: Task;
  /** For the test part; default: where there are enough rows. */
  readonly testFraction?: number;
  /** Column of texts to predict from, and from nothing else. Default: if it is the only column that is of use. */
  readonly text?: string;
  /** How the file is written, where that is not found in it. */
  readonly reading?: ProfileOptions;
}

/** Whole numbers of at most so many kinds are classes rather than quantities. */
const CLASSES_FEW = 10;
/** A class name in a sentence: this many, then their count. */
const SHOWN_MAX = 8;

/** @throws DownpourError DP_USAGE, DP_DATA_MISSING, DP_DATA_CORRUPT */
export async function tableDraft(request: TableRequest, answers: Interview): Promise<Draft> {
  const { data } = request;
  const { table, reading, notes: readingNotes } = await readTable(request);
  if (table.count === 0)
    throw corrupt(data, 'it has a header but no rows, so there is nothing to learn from');
  if (table.count === 1) {
    throw corrupt(
      data,
      'it has only one row after the header; at least two are needed, one to train on and one to validate on',
    );
  }
  const names = table.columns.map(({ name }) => name);
  // A delimiter at the end of each line makes a last column without name or value.
  const last = table.columns.findLast(({ isUnnamed }) => !isUnnamed)?.name ?? names.at(-1);
  const target = await answers.answer(
    request.target,
    `Column to predict (${names.map(quotedText).join(', ')})?`,
    last!,
    (name) => findTarget(table, name, request),
  );
  const guessed = taskOf(target.profile);
  const task = await answers.answer(
    request.task ?? (isNumeric(target.profile) ? undefined : guessed),
    `Predict classes or a quantity (classification, regression)?`,
    guessed,
    (text) => checkTask(text, target, data),
  );
  const given = table.count - target.profile.missing;
  if (given < 2) {
    throw corrupt(
      data,
      `only ${given} of its rows has a value in column '${target.profile.name}', which is to be predicted; at least two are needed`,
    );
  }
  const text = request.text === undefined ? null : textColumn(table, target.profile, request);
  if (text) return textTableDraft({ request, reading, table, target: target.profile, task }, text);
  const { inputs, notes: inputNotes } = chooseInputs(table, target.profile, data);
  const [only] = inputs.texts;
  if (only && usedOf(inputs).length === 1 && !table.isParquet) {
    return textTableDraft({ request, reading, table, target: target.profile, task }, only);
  }
  const notes = [
    `${data}: ${groups(table.count)} examples; predicts ${target.profile.name} (${task})${taskNote(target.profile, task, request)}`,
    ...(task === 'classification' ? classNotes(target.profile, data) : []),
    ...readingNotes,
    ...targetGapNotes(target.profile),
    ...(task === 'regression' ? strayNotes(target.profile) : []),
    ...inputNotes,
    ...sizeNotes(table.count - target.profile.missing),
  ];
  return {
    source: tableSource({ request, reading, table, target: target.profile, task, inputs }),
    notes,
  };
}

function strayNotes(profile: ColumnProfile): string[] {
  const stray = strayNumber(profile);
  if (stray === null) return [];
  const { value, rows, low, high } = stray;
  return [
    `column ${quotedText(profile.name)} has ${value} in ${groups(rows)} rows, and other values from ${low} to ${high}: if ${value} means a missing value, add missing: 'mean', missingTexts: ['${value}']`,
  ];
}

function targetGapNotes({ name, missing }: ColumnProfile): string[] {
  if (missing === 0) return [];
  return [
    `leaves out ${missing === 1 ? '1 row' : `${groups(missing)} rows`} whose ${name} is missing`,
  ];
}

/** Finds out how the file is written, as far as that can be known. */
async function readTable({ data, reading = {} }: TableRequest) {
  const profile = (options: ProfileOptions) => withOptions(profileTable(data, options));
  const table = await profile(reading);
  const notes = table.notes.map((note) => `${data}: ${note}`);
  const { delimiter } = table;
  const pinned = { ...reading, ...(delimiter === ',' ? {} : { delimiter }) };
  if (reading.decimal !== undefined || delimiter === ',' || !hasDecimalCommas(table)) {
    return { table, reading: pinned, notes };
  }
  const withCommas = { ...pinned, decimal: ',' } as const;
  const said = `${data}: numbers are read with a decimal comma; if commas mean something else, use --decimal .`;
  return { table: await profile(withCommas), reading: withCommas, notes: [...notes, said] };
}

/** Numbers with a comma, and none with a point: as programs write them where a comma divides no cells. */
function hasDecimalCommas({ columns }: TableProfile): boolean {
  const commas = columns.some(({ forms }) => forms.has('decimalComma'));
  return commas && columns.every(({ pointCount }) => pointCount === 0);
}

// What is predicted.

function findTarget({ columns }: TableProfile, name: string, request: TableRequest): Judged {
  const { data, task } = request;
  const names = columns.map((column) => column.name);
  // Typed by hand, a name comes in another normal form than some programs write.
  const alike = (text: string) => text.normalize('NFC').trim();
  const profile =
    columns.find((column) => column.name === name) ??
    columns.find((column) => alike(column.name) === alike(name));
  if (!profile) {
    const near = nearest(name, names);
    throw new DownpourError(
      'DP_USAGE',
      `${data} has no column ${quotedText(name)}; ${near === null ? '' : `did you mean ${quotedText(near)}? `}It has ${names.map(quotedText).join(', ')}; give one of them as --target`,
    );
  }
  const target = judgeColumn(profile);
  const refuse = (why: string, next: string) => {
    throw new DownpourError(
      'DP_USAGE',
      `${data}: column ${quotedText(profile.name)} cannot be predicted: ${why}; ${next}`,
    );
  };
  const { kind, reason, remedy, mayBeKinds } = target;
  const other = 'predict another column (--target)';
  // Said by hand: so it is meant.
  const isMeant = request.target !== undefined && task !== undefined;
  if (kind === 'odd' && !(task === 'classification' && mayBeKinds)) {
    refuse(
      reason,
      `${remedy}${mayBeKinds ? ', or --task classification if these are classes' : ''}`,
    );
  }
  if (kind === 'sparse') refuse(reason, `${remedy}, or ${other}`);
  if (kind === 'date') refuse(reason, `${remedy}; or ${other}`);
  if (kind === 'constant') refuse(`${reason}, so there is nothing to learn`, other);
  if (profile.names?.names.length === 1) {
    refuse(`each row that has a value has ${quotedText(profile.names.names[0]!)}`, other);
  }
  if (kind === 'count' && !isMeant)
    refuse(reason, `${other}; if it is a quantity, give both --target and --task regression`);
  if (kind === 'empty' || kind === 'text' || kind === 'words') refuse(reason, other);
  if (kind === 'unnamed') refuse(reason, `${remedy}, or ${other}`);
  return target;
}

/** Few whole numbers from 0 or 1 on, or two of any kind, are classes; so is text. */
function taskOf(profile: ColumnProfile): Task {
  if (!isNumeric(profile)) return 'classification';
  const kinds = numberKinds(profile);
  if (kinds === null || 2 * kinds.length > profile.count) return 'regression';
  if (kinds.length === 2) return 'classification';
  const [least, most] = [Math.min(...kinds), Math.max(...kinds)];
  const isCounted =
    kinds.every(Number.isInteger) && (least === 0 || least === 1) && most < 2 * kinds.length;
  return kinds.length <= CLASSES_FEW && isCounted ? 'classification' : 'regression';
}

/** Different numbers, at most twice `CLASSES_FEW`; null: more. */
function numberKinds(profile: ColumnProfile): number[] | null {
  const kinds = new Set<number>();
  for (const value of presentNumbers(profile)) {
    kinds.add(value);
    if (kinds.size > 2 * CLASSES_FEW) return null;
  }
  return [...kinds].sort((a, b) => a - b);
}

function checkTask(text: string, { profile }: Judged, data: string): Task {
  const column = `${data}: column ${quotedText(profile.name)}`;
  if (text !== 'classification' && text !== 'regression') {
    throw new DownpourError(
      'DP_USAGE',
      `${quotedText(text)} is not a task; allowed: classification, regression`,
    );
  }
  if (text === 'regression' && !isNumeric(profile)) {
    const { line, text: cell } = firstOdd(profile);
    throw new DownpourError(
      'DP_USAGE',
      `${column} has text (line ${line}: ${quotedText(cell)}), not a quantity; use --task classification`,
    );
  }
  if (text === 'classification') {
    const classes = classCounts(profile);
    const single = classes === null ? 0 : [...classes.values()].filter((rows) => rows === 1).length;
    if (classes === null || 2 * single > classes.size) {
      const many = classes === null ? 'more than 1,000' : groups(classes.size);
      throw new DownpourError(
        'DP_USAGE',
        `${column} has ${many} different values${classes === null ? '' : `, ${groups(single)} of them in one row only`}: too many for classes; use --task regression, or another column as --target`,
      );
    }
  }
  return text;
}

/** Rows by class, as the reader names them. Null: too many. */
function classCounts({ kinds, names }: ColumnProfile): ReadonlyMap<string, number> | null {
  if (kinds === null || names === null) return null;
  const counts = new Map(names.names.map((name) => [name, 0]));
  for (const [text, rows] of kinds) {
    const name = names.names[names.indexOf(text)]!;
    counts.set(name, counts.get(name)! + rows);
  }
  return counts;
}

/** Where numbers might be the other task. */
function taskNote(profile: ColumnProfile, task: Task, request: TableRequest): string {
  const kinds = isNumeric(profile) && request.task === undefined ? numberKinds(profile) : null;
  const mayBeBoth = kinds !== null && kinds.length !== 2 && kinds.every(Number.isInteger);
  if (!mayBeBoth || 2 * kinds.length > profile.count) return '';
  const values = `its ${kinds.length} values ${kinds[0]} … ${kinds.at(-1)}`;
  return task === 'classification'
    ? `: ${values} are read as classes; --task regression reads them as a quantity`
    : `: ${values} are read as a quantity; --task classification reads them as classes`;
}

function classNotes(profile: ColumnProfile, data: string): string[] {
  const counts = classCounts(profile)!;
  const single = [...counts].filter(([, rows]) => rows === 1).map(([name]) => quotedText(name));
  const notes = [`classes: ${listed([...counts.keys()])}`, ...spellings(profile)];
  if (single.length > 0) {
    notes.push(
      `${data}: the ${single.length === 1 ? 'class' : 'classes'} ${single.slice(0, SHOWN_MAX).join(', ')} ${single.length === 1 ? 'has' : 'have'} only one row, which can be used for training or validation but not both: add rows, or remove the class`,
    );
  }
  return notes;
}

function listed(names: readonly string[]): string {
  const first = names.slice(0, SHOWN_MAX).map(quotedText).join(', ');
  return names.length > SHOWN_MAX ? `${first} … (${names.length})` : first;
}

/** Kinds that look like one: they differ in case, spaces or Unicode's normal form. */
function spellings({ name, names }: ColumnProfile): string[] {
  const alike = lookalikes(names!.names);
  if (alike === null) return [];
  return [
    `column ${quotedText(name)}: ${alike.map(quotedText).join(' and ')} are different categories; if they are the same, write them in the same way`,
  ];
}

// Texts.

function textColumn(
  { columns, isParquet }: TableProfile,
  target: ColumnProfile,
  { text, data }: TableRequest,
): ColumnProfile {
  const names = columns.filter((column) => column !== target).map(({ name }) => name);
  const found = columns.find(({ name }) => name === text);
  if (found && found !== target && !isParquet) return found;
  const near = nearest(text!, names);
  throw new DownpourError(
    'DP_USAGE',
    isParquet
      ? `${data} is Parquet, and --text reads tables of text: write the column to a CSV file, or leave --text out`
      : found
        ? `${data}: --text and --target are both ${quotedText(text!)}: give two columns`
        : `${data} has no column ${quotedText(text!)} to read texts from; ${near === null ? '' : `did you mean ${quotedText(near)}? `}It has ${names.map(quotedText).join(', ')}`,
  );
}

/** The experiment that learns from the words of one column. */
async function textTableDraft(
  { request, reading, table, target, task }: Omit<TableParts, 'inputs'>,
  text: ColumnProfile,
): Promise<Draft> {
  const { data, place, testFraction } = request;
  const survey = surveyTexts(await cellsOf(data, reading, text.name));
  const others = table.columns.filter((column) => column !== target && column !== text);
  const left = others.map(({ name }) => quotedText(name));
  return wholeTextsDraft({
    ...{ survey, parts: [], testFraction, reader: 'loadTextTable' },
    call: `loadTextTable(${place}`,
    options: [
      `text: ${code(text.name)},`,
      `target: ${code(target.name)},`,
      ...(task === 'regression' ? [`task: 'regression',`] : []),
      ...Object.entries(reading).map(([option, value]) => `${option}: ${code(value)},`),
    ],
    title: `${comment(target.name)} from the words of ${comment(text.name)} in ${comment(basename(data))}.`,
    quantity: task === 'regression' ? quantityCode(target) : null,
    notes: [
      `${data}: ${groups(table.count)} examples; predicts ${target.name} (${task}) from the words of column ${quotedText(text.name)}${taskNote(target, task, request)}`,
      ...(task === 'classification' ? classNotes(target, data) : []),
      ...targetGapNotes(target),
      ...(left.length > 0
        ? [
            `leaves out ${left.length === 1 ? 'column' : 'columns'} ${left.slice(0, SHOWN_MAX).join(', ')}${left.length > SHOWN_MAX ? ` … (${left.length})` : ''}`,
          ]
        : []),
    ],
  });
}

async function cellsOf(data: string, reading: ProfileOptions, column: string): Promise<string[]> {
  const cells: string[] = [];
  for (const file of await tableFiles(data)) {
    await readRows(file, reading, (row, _, { names }) => cells.push(row[names.indexOf(column)]!));
  }
  return cells;
}

// What it is predicted from.

interface TableInputs {
  readonly numbers: readonly ColumnProfile[];
  readonly categories: readonly ColumnProfile[];
  readonly dates: readonly ColumnProfile[];
  readonly dateOrder: DateOrder | undefined;
  readonly texts: readonly ColumnProfile[];
  /** How many inputs each of `texts` becomes. */
  readonly hashSize: number;
  readonly ignored: readonly { readonly profile: ColumnProfile; readonly why: string }[];
}

function chooseInputs(
  table: TableProfile,
  target: ColumnProfile,
  data: string,
): { inputs: TableInputs; notes: string[] } {
  const numbers: ColumnProfile[] = [];
  const categories: ColumnProfile[] = [];
  const dates: ColumnProfile[] = [];
  let dateOrder: DateOrder | undefined;
  const texts: ColumnProfile[] = [];
  /** `more` goes on after the reason in a note, `fix` where there is no file that could be changed. */
  const ignored: {
    profile: ColumnProfile;
    why: string;
    more: string;
    fix: string;
    isSoft: boolean;
  }[] = [];
  for (const profile of table.columns) {
    if (profile === target) continue;
    const { kind, reason, remedy, mayBeKinds } = judgeColumn(profile);
    const leave = (why: string, more = '', isSoft = false, fix = '') => {
      ignored.push({ profile, why, more, fix, isSoft });
    };
    if (!USABLE.has(kind)) {
      const asKinds = mayBeKinds
        ? '; if these are categories, move the column from `ignore` to `categorical`'
        : '';
      const fix = remedy === '' ? '' : `; ${remedy}`;
      leave(reason, fix === '' ? '' : `${fix}${asKinds}`, false, fix);
      continue;
    }
    const disguise = targetInDisguise(profile, target);
    const twin = [...numbers, ...categories, ...dates, ...texts].find((other) =>
      isSameColumn(other, profile),
    );
    const keep = '; if its values are known when the model is used, remove it from `ignore`';
    if (disguise !== null)
      leave(disguise, keep, isNumeric(profile) && !isSameColumn(profile, target));
    else if (kind === 'count')
      leave(reason, '; if it means more than that, remove it from `ignore`', true);
    else if (twin) leave(`it equals column ${quotedText(twin.name)}`);
    else if (kind === 'numbers') numbers.push(profile);
    else if (kind === 'words') texts.push(profile);
    else if (kind === 'date') {
      const order = dateOrderOf(profile) ?? undefined;
      if (order !== undefined && dateOrder !== undefined && order !== dateOrder) {
        leave('its dates have day and month in another order than those of another column');
      } else dates.push(profile);
      dateOrder ??= order;
    } else categories.push(profile);
  }
  const notes: string[] = [];
  if (numbers.length + categories.length + dates.length + texts.length === 0) {
    // Nothing better is there: a line y = 2x + 1 may be learnt.
    const kept = ignored.findIndex(({ isSoft }) => isSoft);
    const left = ignored
      .map(({ profile, why, fix }) => `${quotedText(profile.name)} (${why}${fix})`)
      .join(', ');
    if (kept < 0) {
      throw new DownpourError(
        'DP_USAGE',
        `${data}: no column is left to predict ${quotedText(target.name)} from${left === '' ? ': the file has only one column' : `: ${left}`}`,
      );
    }
    const [only] = ignored.splice(kept, 1);
    notes.push(
      `keeps column ${quotedText(only!.profile.name)}, the only one left, although ${only!.why}`,
    );
    numbers.push(only!.profile);
  }
  for (const { profile, why, more } of ignored) {
    notes.push(`leaves out column ${quotedText(profile.name)}: ${why}${more}`);
  }
  for (const profile of categories) {
    notes.push(
      `column ${quotedText(profile.name)} has ${profile.names!.names.length} categories, which become one 0/1 input each: ${listed(profile.names!.names)}`,
    );
    notes.push(...spellings(profile));
  }
  for (const { name, unit } of numbers) {
    if (unit !== null) notes.push(`column ${quotedText(name)} has numbers in ${unit}`);
  }
  notes.push(...numbers.flatMap(strayNotes));
  const hashSize = hashSizeOf(table.count);
  for (const { name } of dates) {
    notes.push(`column ${quotedText(name)} has dates, which become year, month, day and weekday`);
  }
  for (const { name } of texts) {
    notes.push(
      `column ${quotedText(name)} has texts, whose words are hashed to ${hashSize} inputs; if they say nothing, move it to \`ignore\`. ${shellCommand('--text', name)} learns from its words alone`,
    );
  }
  const inputs = { numbers, categories, dates, dateOrder, texts, hashSize, ignored };
  return { inputs, notes: [...notes, ...gapNotes(inputs, table.count)] };
}

/** Kinds of columns that a model can be given. */
const USABLE: ReadonlySet<string> = new Set(['numbers', 'category', 'count', 'date', 'words']);

/** Inputs for the words of a column: a tenth of the rows, rounded down to a power of two, from 16 to 256. */
function hashSizeOf(rows: number): number {
  return Math.max(16, Math.min(256, 2 ** Math.floor(Math.log2(rows / 10))));
}

const usedOf = ({ numbers, categories, dates, texts }: TableInputs) => [
  ...numbers,
  ...categories,
  ...dates,
  ...texts,
];

/** From fewer rows nothing can be learnt about what it means that a value is missing. */
const MARKED = { share: 0.05, rows: 10 } as const;

const markGapsFrom = (count: number): number =>
  Math.max(MARKED.rows, Math.ceil(MARKED.share * count));

function gapNotes(inputs: TableInputs, count: number): string[] {
  return usedOf(inputs)
    .filter(({ missing }) => missing > 0)
    .map(
      ({ name, missing }) =>
        `column ${quotedText(name)} lacks ${groups(missing)} of ${groups(count)} values: the mean replaces them${missing >= markGapsFrom(count) ? ', and an additional input marks them' : ''}`,
    );
}

// What is written.

/** Below so many rows one hold-out fifth says little. */
const ROWS_FEW = 50;

function sizeNotes(count: number): string[] {
  if (count >= ROWS_FEW) return [];
  const validates = Math.max(1, Math.round(count * VALIDATION_SHARE));
  return [
    `${count} examples are few: ${validates === 1 ? '1 of them validates' : `${validates} of them validate`}, so the error is inaccurate; \`downpour folds\` uses each example for both training and validation`,
  ];
}

interface TableParts {
  readonly request: TableRequest;
  readonly reading: ProfileOptions;
  readonly table: TableProfile;
  readonly target: ColumnProfile;
  readonly task: Task;
  readonly inputs: TableInputs;
}

function tableSource(parts: TableParts): string {
  const { request, table, target, task } = parts;
  const name = comment(target.name);
  const quantity = task === 'regression' ? quantityCode(target) : null;
  const reader = table.isParquet ? 'parquetSource' : 'loadCsv';
  return `import { resolve } from 'node:path';
import { defineExperiment, ${reader} } from 'downpour';
import { layers } from 'downpour/layers';

/** ${name} from ${comment(basename(request.data))}, by a network with one hidden layer. */
export default defineExperiment({
  data: () =>
    ${reader}(${request.place}, {
${loadOptions(parts).join('\n')}
    }),
  // Each column gets mean 0 and deviation 1, computed from the training part only.
  standardise: 'feature',

  model: (args) =>
    args.tf.sequential({
      layers: [
        ...layers.hidden(args, { units: 64 }),
${quantity?.layers ?? LOGITS}
      ],
    }),
${quantity?.loss ?? `  loss: 'softmaxCrossEntropy',`}

  config: {
    minibatchSize: ${minibatchSize(trainableRows(table.count - target.missing, request))},
    learningRate: 0.005,
${quantity ? QUANTITY_RULES : CLASS_RULES}
    epochsMax: 200,
  },

${SEARCH}});
`;
}

const trainableRows = (rows: number, { testFraction }: TableRequest) =>
  rows - Math.round(rows * testShare(rows, testFraction));

function loadOptions({ request, reading, table, target, task, inputs }: TableParts): string[] {
  const names = (columns: readonly ColumnProfile[]) => columns.map(({ name }) => name);
  const lines = [`targets: [${code(target.name)}],`];
  if (task === 'classification') lines.push(`task: 'classification',`);
  if (inputs.categories.length > 0) {
    lines.push(`categorical: ${codeList(names(inputs.categories), '      ')},`);
  }
  const quantities = task === 'classification' ? [] : [target];
  const units = [...quantities, ...inputs.numbers].flatMap(({ name, unit }) =>
    unit === null ? [] : [`${key(name)}: ${code(unit)}`],
  );
  if (units.length > 0) lines.push(`units: { ${units.join(', ')} },`);
  if (inputs.dates.length > 0) lines.push(`dates: ${codeList(names(inputs.dates), '      ')},`);
  if (inputs.dateOrder) lines.push(`dateOrder: '${inputs.dateOrder}',`);
  if (inputs.texts.length > 0) {
    const sizes = names(inputs.texts).map((name) => `${key(name)}: ${inputs.hashSize}`);
    lines.push(`hashed: { ${sizes.join(', ')} },`);
  }
  if ([target, ...usedOf(inputs)].some(({ missing }) => missing > 0)) {
    lines.push('// The mean of the training part replaces a missing number.', "missing: 'mean',");
    const from = markGapsFrom(table.count);
    lines.push(
      '// An additional input marks the gaps of a column that has as many.',
      `markGapsFrom: ${from},`,
    );
  }
  const share = testShare(table.count - target.missing, request.testFraction);
  if (share > 0) {
    lines.push('// Held out for `downpour test`: the same rows in every run.');
    lines.push(`testFraction: ${share},`);
  }
  const ignores = [
    ...inputs.ignored.map(({ profile, why }) => ({ name: profile.name, why })),
    ...table.nested.map((name) => ({ name, why: 'It holds lists or structures.' })),
  ];
  if (ignores.length > 0) {
    const ignored = ignores.map(
      ({ name, why }) => `  // ${comment(why, 200)}\n        ${code(name)},`,
    );
    lines.push('ignore: [', ...ignored, '],');
  }
  for (const [option, value] of Object.entries(reading)) lines.push(`${option}: ${code(value)},`);
  return lines.map((line) => `      ${line}`);
}
