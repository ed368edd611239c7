import { join } from 'node:path';
import { type Plot, pictureOf } from './plot.ts';
import { writeWhole } from './record.ts';

/** What a study ends in: a table, plots, and one paragraph of advice with its numbers. */
export interface Report {
  readonly title: string;
  readonly headings: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** One paragraph. */
  readonly advice: string;
  /** By file name of the SVG that is written. */
  readonly plots: Readonly<Record<string, Plot>>;
  /** All of it for programs. */
  readonly facts: Readonly<Record<string, unknown>>;
}

/** Writes `report.md`, `report.json` and the plots. @returns their paths, the report first. */
export async function writeReport(folder: string, report: Report): Promise<string[]> {
  const { title, headings, rows, advice, plots, facts } = report;
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  const text = [
    `# ${title}`,
    advice,
    [line(headings), line(headings.map(() => '---')), ...rows.map(line)].join('\n'),
    ...Object.keys(plots).map((name) => `![${name.replace(/\.svg$/, '')}](${name})`),
  ].join('\n\n');
  const pictures = Object.entries(plots).map(([name, plot]) => [name, pictureOf(plot)]);
  const files: Record<string, string> = {
    'report.md': `${text}\n`,
    'report.json': `${JSON.stringify({ title, advice, ...facts }, null, 2)}\n`,
    ...Object.fromEntries(pictures),
  };
  for (const [name, content] of Object.entries(files))
    await writeWhole(join(folder, name), content);
  return Object.keys(files).map((name) => join(folder, name));
}

/** A share as a percentage: `2.35 %`. */
export function percentText(share: number | null | undefined): string {
  return share == null || !Number.isFinite(share) ? '–' : `${(share * 100).toFixed(2)} %`;
}

/** Three significant digits. */
export function numberText(value: number | null | undefined): string {
  return value == null || !Number.isFinite(value) ? '–' : String(Number(value.toPrecision(3)));
}

/**
 * An error as people read it: a percentage where it is a share of wrong answers, else a number. Only
 * the experiment knows which it is; shares never exceed 1, so the values tell.
 */
export function errorFormat(
  values: readonly number[],
): (value: number | null | undefined) => string {
  const isShare = values.every((value) => !Number.isFinite(value) || (value >= 0 && value <= 1));
  return isShare ? percentText : numberText;
}

/** With its sign, as a difference is read: `+0.12 %`. */
export function signed(value: number, format: (value: number) => string): string {
  return `${value < 0 ? '−' : '+'}${format(Math.abs(value))}`;
}
