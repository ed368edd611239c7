import { join } from 'node:path';
import { errorFormat } from '../shared/text.ts';
import { type Plot, pictureOf } from './plot.ts';
import { writeWhole } from './record.ts';
import type { Trial } from './study.ts';

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

/** Three significant digits. */
export function numberText(value: number | null | undefined): string {
  return value == null || !Number.isFinite(value) ? '–' : String(Number(value.toPrecision(3)));
}

/** How the errors of these trials are told. */
export function errorFormatOf(trials: readonly Trial[]): ReturnType<typeof errorFormat> {
  return errorFormat(trials.find(({ errorMeasure }) => errorMeasure)?.errorMeasure, numberText);
}

/** With its sign, as a difference is read: `+0.12 %`. */
export function signed(value: number, format: (value: number) => string): string {
  return `${value < 0 ? '−' : '+'}${format(Math.abs(value))}`;
}
