import { join, resolve } from 'node:path';
import { csvLine } from '../../shared/csv.ts';
import { DownpourError } from '../../shared/errors.ts';
import { writeWhole } from '../../study/record.ts';
import { type Report, writeReport } from '../../study/report.ts';
import { EXIT, print, printJson, tell, untilInterrupted } from '../options.ts';
import { bar, colorsOf, createLiveLines, table } from '../output/progress.ts';
import { showReport } from '../output/report.ts';
import { RESULTS } from './registry.ts';
import type { Lab, PaperFinding, Result } from './result.ts';

export interface PaperOptions {
  readonly list?: boolean;
  readonly seeds?: number;
  readonly firstSeed: number;
  readonly quick?: boolean;
  readonly out?: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** `downpour paper [name]`. @returns the exit code. */
export async function paperCommand(
  name: string | undefined,
  options: PaperOptions,
): Promise<number> {
  if (options.list || name === undefined) {
    list(options.json === true);
    return EXIT.ok;
  }
  const result = RESULTS.find((each) => each.name === name);
  if (!result) {
    throw new DownpourError(
      'DP_USAGE',
      `there is no result '${name}'; there are: ${RESULTS.map((each) => each.name).join(', ')}`,
    );
  }
  const folder = resolve(options.out ?? join('papers', name));
  const interruption = untilInterrupted();
  const { signal } = interruption;
  const shown = showProgress(options.quiet === true || options.json === true);
  const count = options.seeds ?? result.seeds;
  const lab: Lab = {
    seeds: Array.from({ length: count }, (_, i) => options.firstSeed + i),
    quick: options.quick === true,
    ...{ signal, note: shown.note, progress: shown.progress },
  };
  try {
    const finding = await result.repeat(lab);
    shown.close();
    const report = reportOf(result, finding, lab);
    const paths = await writeReport(folder, report);
    const csv = join(folder, 'runs.csv');
    await writeWhole(csv, csvOf(finding.runs));
    showReport(report, [...paths, csv], options.json);
    return EXIT.ok;
  } catch (error) {
    if (!signal.aborted) throw error;
    tell('stopped; nothing was written');
    return EXIT.interrupted;
  } finally {
    shown.close();
    interruption.dispose();
  }
}

function list(json: boolean): void {
  if (json) {
    printJson(RESULTS.map(({ repeat: _, ...facts }) => facts));
    return;
  }
  const rows = RESULTS.map(({ name, title, minutes, seeds }) => [
    ...[name, title, `${minutes} min`, String(seeds)],
  ]);
  for (const line of table(['name', 'what it repeats', 'on 2 cores', 'seeds'], rows)) print(line);
}

/** Said of one that is too few to tell anything apart. */
const SEEDS_LEAST = 5;

function reportOf(result: Result, finding: PaperFinding, { seeds, quick }: Lab): Report {
  const { name, paper, claim, setting } = result;
  const { verdict, text, headings, rows, plots, runs } = finding;
  const verdicts = {
    holds: 'It holds here.',
    partly: 'It holds in part.',
    no: 'It does not hold here.',
    'not separated': 'Not separated: the intervals overlap, and more seeds would tell.',
  };
  const few =
    seeds.length < SEEDS_LEAST
      ? ` Only ${seeds.length} seed${seeds.length === 1 ? '' : 's'}: take at least ${SEEDS_LEAST} before you believe it.`
      : '';
  const small = quick ? ' This was the quick form, which is too small to judge by.' : '';
  const advice = `Claim (${paper}): ${claim} Here (${setting}; ${seeds.length} seed${seeds.length === 1 ? '' : 's'}, 95 % intervals): ${text} ${verdicts[verdict]}${few}${small}`;
  return {
    ...{ title: `Paper: ${name}`, headings, rows, advice, plots },
    facts: { name, paper, claim, setting, verdict, text, seeds, quick, headings, rows, runs },
  };
}

/** With the names of the columns first; empty for null. */
function csvOf(runs: PaperFinding['runs']): string {
  const columns = [...new Set(runs.flatMap((run) => Object.keys(run)))];
  const lines = [columns, ...runs.map((run) => columns.map((column) => run[column]))];
  return `${lines.map(csvLine).join('\n')}\n`;
}

/** Between two drawings, ms; between two lines where nothing is drawn. */
const REDRAW_MS = 100;
const PLAIN_MS = 15_000;

function showProgress(quiet: boolean) {
  const screen = process.stdout;
  const live = !quiet && screen.isTTY === true ? createLiveLines(screen) : null;
  const colors = colorsOf(screen);
  let drawnMs = performance.now() - PLAIN_MS;
  return {
    note(line: string) {
      live?.erase();
      if (!quiet) print(line);
    },
    progress(share: number, text: string) {
      const now = performance.now();
      if (quiet || now - drawnMs < (live ? REDRAW_MS : PLAIN_MS)) return;
      drawnMs = now;
      const line = `${bar(share)} ${Math.floor(100 * share)} %  ${text}`;
      if (live) live.draw([{ line, paint: colors.cyan }]);
      else print(line);
    },
    close: () => live?.erase(),
  };
}
