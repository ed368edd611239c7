import { DownpourError } from '../../../shared/errors.ts';
import { nearest } from '../../../shared/spelling.ts';
import { givenNames, nameOf, shown } from './cells.ts';
import type { CsvOptions } from './csv-options.ts';
import { DateColumn } from './date-column.ts';
import { HashedColumn } from './hashed-column.ts';
import {
  CategoryColumn,
  type CellOptions,
  type InputColumn,
  NumberColumn,
} from './table-columns.ts';
import type { TableHeader } from './table-rows.ts';

/** Which columns of a table are inputs and targets, by the options of `loadCsv`, and what they hold. */

/** The most names in a message. */
const SHOWN_MAX = 30;

/** Options with names of columns as a header has them. */
export interface NamedOptions extends Omit<CsvOptions, 'missing'>, CellOptions {
  readonly gaps: 'refuse' | 'drop' | 'mean';
}

export type TargetColumn = NumberColumn | CategoryColumn;

export function named({ missing, ...options }: CsvOptions): NamedOptions {
  const { targets, inputs, ignore, categorical, categories, dates, hashed, units } = options;
  const texts = options.missingTexts ?? (typeof missing === 'string' ? undefined : missing);
  const gaps = typeof missing === 'string' ? missing : 'refuse';
  return {
    ...options,
    gaps,
    hasGaps: gaps === 'mean',
    ...(texts ? { missingTexts: texts } : {}),
    targets: targets.map(nameOf),
    ...(inputs ? { inputs: inputs.map(nameOf) } : {}),
    ...(ignore ? { ignore: ignore.map(nameOf) } : {}),
    ...(categorical ? { categorical: categorical.map(nameOf) } : {}),
    ...(dates ? { dates: dates.map(nameOf) } : {}),
    ...(categories ? { categories: byName(categories) } : {}),
    ...(hashed ? { hashed: byName(hashed) } : {}),
    ...(units ? { units: byName(units) } : {}),
  };
}

const byName = <T>(columns: Readonly<Record<string, T>>): Record<string, T> =>
  Object.fromEntries(Object.entries(columns).map(([name, value]) => [nameOf(name), value]));

export function lacks(
  file: string,
  column: string,
  has: readonly string[],
  as = '',
): DownpourError {
  // Each name of one or two letters is near to any other.
  const same = has.find((name) => name.toLowerCase() === column.toLowerCase());
  const near = same ?? (column.length > 3 ? nearest(column, has) : null);
  const allNumbers = has.every((name) => name !== '' && Number.isFinite(Number(name)));
  const hint = allNumbers
    ? '. These are numbers: a header line with names must come first'
    : has.length === 1 && /[\s,;|:]/.test(has[0]!)
      ? '. If this is more than one column, set the option `delimiter`'
      : near
        ? `. Did you mean '${near}'?`
        : '';
  return new DownpourError(
    'DP_EXPERIMENT_INVALID',
    `${file} has no column '${column}'${as}; it has ${shownNames(has)}${hint}`,
  );
}

function shownNames(names: readonly string[]): string {
  const first = names.slice(0, SHOWN_MAX).map((name) => `'${shown(name)}'`);
  const more = names.length - first.length;
  return `${first.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}

/** @param alone no other file may have a column to ignore */
export function chooseColumns(
  header: TableHeader,
  file: string,
  options: NamedOptions,
  alone: boolean,
): { inputs: InputColumn[]; targets: TargetColumn[] } {
  const {
    targets,
    ignore = [],
    categorical = [],
    categories = {},
    dates = [],
    hashed = {},
    units = {},
    task,
    labels,
    classes,
  } = options;
  const { names } = header;
  const listed = Object.keys(categories);
  // Sets, since a table may have 100,000 columns.
  const has = new Set(names);
  const isTarget = new Set(targets);
  const isIgnored = new Set(ignore);
  const isCategorical = new Set(categorical);
  const isListed = new Set(listed);
  const isDate = new Set(dates);
  const isHashed = new Set(Object.keys(hashed));
  const isNamed = (name: string) =>
    [isCategorical, isListed, isDate, isHashed].some((set) => set.has(name));
  const inputs =
    options.inputs ??
    names.filter(
      (name, i) =>
        !isTarget.has(name) && !isIgnored.has(name) && (!header.unnamed.has(i) || isNamed(name)),
    );
  const needed = [
    ...targets,
    ...inputs,
    ...categorical,
    ...listed,
    ...dates,
    ...isHashed,
    ...Object.keys(units),
    ...(alone ? ignore : []),
  ];
  for (const column of needed) if (!has.has(column)) throw lacks(file, column, names);
  const invalid = (what: string) => new DownpourError('DP_EXPERIMENT_INVALID', `${file}: ${what}`);
  if (task === 'classification' ? targets.length !== 1 : targets.length === 0) {
    throw invalid(
      `${targets.length} target columns; a classification has 1, a regression at least 1`,
    );
  }
  if (labels === 'oneHot' && task !== 'classification') {
    throw invalid(`labels: 'oneHot' is only for task: 'classification'`);
  }
  if (classes && task !== 'classification') {
    throw invalid(`\`classes\` is only for task: 'classification'`);
  }
  if (inputs.length === 0) throw invalid('no column is left for inputs');
  for (const [what, list] of Object.entries({ inputs, targets })) {
    const twice = twiceIn(list);
    if (twice !== undefined) throw invalid(`column '${twice}' occurs twice in \`${what}\``);
  }
  const both = inputs.find((column) => isTarget.has(column));
  if (both !== undefined) throw invalid(`column '${both}' is both an input and a target`);
  for (const column of dates) {
    const other = isHashed.has(column) ? 'hashed' : isListed.has(column) ? 'categories' : null;
    const also = other ?? (isCategorical.has(column) ? 'categorical' : null);
    if (also) throw invalid(`column '${column}' is both in \`dates\` and in \`${also}\``);
  }
  for (const column of isHashed) {
    const also = isListed.has(column)
      ? 'categories'
      : isCategorical.has(column)
        ? 'categorical'
        : null;
    if (also) throw invalid(`column '${column}' is both in \`hashed\` and in \`${also}\``);
  }
  for (const column of Object.keys(units)) {
    const isClass = task === 'classification' && isTarget.has(column);
    if (!isNamed(column) && !isClass) continue;
    throw invalid(`column '${column}' has a unit in \`units\`, but it is not read as numbers`);
  }
  const lists: [string, readonly string[]][] = Object.entries(categories);
  for (const [what, list] of classes ? [...lists, [targets[0]!, classes] as const] : lists) {
    const wrong = wrongName(list);
    if (wrong) throw invalid(`in the list for column '${what}', ${wrong}`);
  }
  if (options.thousands !== undefined && options.thousands === (options.decimal ?? '.')) {
    throw invalid(`\`thousands\` and \`decimal\` are both '${options.thousands}'`);
  }
  const unitOf = (column: string) => (units[column] === undefined ? {} : { unit: units[column] });
  const input = (column: string): InputColumn => {
    if (isListed.has(column)) {
      return new CategoryColumn(column, options, 'input', categories[column]);
    }
    if (isCategorical.has(column)) return new CategoryColumn(column, options, 'input');
    if (isDate.has(column)) return new DateColumn(column, options, 'input', options.dateOrder);
    if (isHashed.has(column)) return new HashedColumn(column, options, 'input', hashed[column]!);
    return new NumberColumn(column, { ...options, ...unitOf(column) }, 'input');
  };
  // A row without a target is left out before.
  const whole = { ...options, hasGaps: false };
  const target = (column: string): TargetColumn =>
    task === 'classification'
      ? new CategoryColumn(column, whole, 'target', classes)
      : new NumberColumn(column, { ...whole, ...unitOf(column) }, 'target');
  return { inputs: inputs.map(input), targets: targets.map(target) };
}

function twiceIn(list: readonly string[]): string | undefined {
  const seen = new Set<string>();
  return list.find((name) => seen.size === seen.add(name).size);
}

function wrongName(list: readonly string[]): string | null {
  if (list.length === 0) return 'no name is given';
  if (list.some((name) => nameOf(name) === '')) return 'a name is empty';
  const { names, indexOf } = givenNames(list);
  const twice = names.findIndex((name, i) => indexOf(name) !== i);
  if (twice < 0) return null;
  const [a, b] = [names[twice]!, names[indexOf(names[twice]!)]!];
  return a === b ? `'${a}' occurs twice` : `'${a}' and '${b}' are the same`;
}
