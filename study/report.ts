import { join } from 'node:path';
import type { ErrorCode } from '../shared/errors.ts';
import type { Evaluation } from '../shared/rest.ts';
import { errorFormat, type Format, percent } from '../shared/text.ts';
import { type Plot, plotSvg } from './plot.ts';
import { writeWhole } from './record.ts';
import type { Estimate } from './statistics.ts';
import type { Trial } from './study.ts';

/** What a study ends in: a table, plots, and one paragraph of advice with its numbers. */
export interface Report {
  readonly title: string;
  readonly headings: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Tables behind the first one. */
  readonly more?: readonly ReportTable[];
  /** One paragraph. */
  readonly advice: string;
  /** The plots, by the file name of the SVG that is written. */
  readonly plots: Readonly<Record<string, Plot>>;
  /** All of it for programs. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** Set: nothing was measured, and the command fails with this. */
  readonly failure?: StudyFailure | null;
}

/** One more table of a report, with a title of its own. */
export interface ReportTable extends Pick<Report, 'title' | 'headings' | 'rows'> {}

export interface StudyFailure {
  readonly code: ErrorCode;
  readonly message: string;
}

/** Writes `report.md`, `report.json` and the plots. @returns their paths, the report first. */
export async function writeReport(folder: string, report: Report): Promise<string[]> {
  const { title, headings, rows, more = [], advice, plots, facts } = report;
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  const tableOf = ({ headings, rows }: Pick<Report, 'headings' | 'rows'>) =>
    [line(headings), line(headings.map(() => '---')), ...rows.map(line)].join('\n');
  const text = [
    `# ${title}`,
    advice,
    tableOf({ headings, rows }),
    ...more.flatMap((table) => [`## ${table.title}`, tableOf(table)]),
    ...Object.keys(plots).map((name) => `![${name.replace(/\.svg$/, '')}](${name})`),
  ].join('\n\n');
  const pictures = Object.entries(plots).map(([name, plot]) => [name, plotSvg(plot)]);
  const files: Record<string, string> = {
    'report.md': `${text}\n`,
    'report.json': `${JSON.stringify({ title, advice, ...facts }, null, 2)}\n`,
    ...Object.fromEntries(pictures),
  };
  for (const [name, content] of Object.entries(files))
    await writeWhole(join(folder, name), content);
  return Object.keys(files).map((name) => join(folder, name));
}

/** Three significant digits. */
export function numberText(value: number | null | undefined): string {
  return value == null || !Number.isFinite(value) ? '–' : String(Number(value.toPrecision(3)));
}

/** How the errors of these trials are told: one way for all. */
export function errorFormatOf(trials: readonly Trial[]): Format {
  const measure = measureOf(trials);
  const isShare = ({ error }: Evaluation) => error === null || (error >= 0 && error <= 1);
  // Nobody has said what they are: where one is no share, none is.
  const isNumber =
    measure == null && !trials.every(({ evaluations }) => evaluations.every(isShare));
  return isNumber ? numberText : errorFormat(measure, numberText);
}

/** The axis of a figure, in the unit of the table. @param label of the error or the loss. */
export function errorAxis(
  label: string,
  metric: 'error' | 'loss',
  trials: readonly Trial[],
): { readonly label: string; readonly percent?: boolean } {
  return metric === 'error' ? axisBy(label, errorFormatOf(trials)) : { label };
}

/** The axis of a figure whose values the table tells by this format. */
export function axisBy(
  label: string,
  format: Format,
): { readonly label: string; readonly percent?: boolean } {
  return format(0.5) === percent(0.5) ? { label, percent: true } : { label };
}

/** What an error of these trials is, in words; null: nobody has said. */
export function errorName(trials: readonly Trial[]): string | null {
  const measure = measureOf(trials);
  if (measure == null) return null;
  return {
    misclassification: 'the share of wrong answers',
    loss: 'here the loss again',
    own: "the experiment's own, a number and no share",
  }[measure];
}

const measureOf = (trials: readonly Trial[]) =>
  trials.find(({ errorMeasure }) => errorMeasure)?.errorMeasure;

/** One more wrong answer of fewer changes the error by more than a twentieth. */
const FEW = 20;

/** What values that were measured on a few examples are worth; null: there are enough, or nobody knows. */
export function fewText(trials: readonly Trial[]): string | null {
  const count = trials.find(({ data }) => data)?.data?.validationCount;
  if (count === undefined || count >= FEW) return null;
  return `All this was measured on ${count} validation example${count === 1 ? '' : 's'}, which says almost nothing: \`downpour folds\` validates on every example once.`;
}

/** A mean with its standard error, where several different values give one: `2.31 % ± 0.12 %`. */
export function spreadText(value: Estimate | null, format: Format): string {
  if (value === null) return '–';
  if (value.count < 2) return format(value.mean);
  if (value.distinct < 2) return `${format(value.mean)} (${value.count} equal)`;
  return `${format(value.mean)} ± ${format(value.standardError)}`;
}

/** With its sign, as a difference is read: `+0.12 %`. */
export function signed(value: number, format: (value: number) => string): string {
  return `${value < 0 ? '−' : '+'}${format(Math.abs(value))}`;
}

/** `95 % confidence −0.2 % … +0.1 %`, or why there is no interval. */
export function intervalText(
  { low, high, count, distinct, level }: Estimate,
  format: (value: number) => string,
): string {
  if (count < 2) return 'one seed';
  if (distinct < 2) return `the same for all of ${count} seeds, so no interval`;
  return `${Math.round(100 * level)} % confidence ${format(low)} … ${format(high)}`;
}
