import { digestText } from '../shared/digest.ts';
import { pickPoints } from '../shared/downsample.ts';
import { cut, toldView } from '../shared/example-view.ts';
import {
  type ChartFigure,
  FIGURE_LIMITS,
  type Figure,
  type GalleryFigure,
  type PlotPoint,
  type Series,
} from '../shared/figure.ts';
import { LIMITS } from '../shared/limits.ts';
import type { StudyReport, StudySummary } from '../shared/rest.ts';
import type { Plot } from './plot.ts';
import { numberText, type Report } from './report.ts';
import { bestEvaluation, type Trial } from './study.ts';

/** A report as it travels to a server: within the limits of the interface, and without what only files need. */

export interface TellingFacts extends Pick<StudySummary, 'kind' | 'state' | 'experiment' | 'run'> {
  /** Null: the study has none. */
  readonly trials: { readonly ended: number; readonly of: number } | null;
  /** Names of its runs on the server. */
  readonly runs: readonly string[];
}

/** The whole of a report, or as much of it as is allowed; what is left out is counted. */
export function toldReport(facts: TellingFacts, report: Report): StudyReport {
  const { rows, headings, advice, title } = report;
  const limits = StudyLimits;
  const figures: Figure[] = [];
  let omitted = Math.max(0, rows.length - limits.rows);
  for (const plot of Object.values(report.plots)) {
    const told = figureOf(plot);
    if (told === null) continue;
    figures.push(told.figure);
    omitted += told.omitted;
  }
  omitted += Math.max(0, figures.length - FIGURE_LIMITS.figures);
  const whole: StudyReport = {
    ...facts,
    title: cut(title, 500),
    headings: headings.slice(0, limits.columns).map((text) => cut(text)),
    rows: rows
      .slice(0, limits.rows)
      .map((row) => row.slice(0, limits.columns).map((text) => cut(text))),
    advice: cut(advice, limits.advice),
    figures: figures.slice(0, FIGURE_LIMITS.figures),
    runs: facts.runs.slice(0, LIMITS.runCountMax),
    omitted,
  };
  return fitted(whole);
}

const StudyLimits = { rows: 2_000, columns: 64, advice: 20_000 } as const;

/** Without its largest figures, as many as make it small enough. */
function fitted(report: StudyReport): StudyReport {
  const bytesOf = (value: unknown) => Buffer.byteLength(JSON.stringify(value));
  let { figures, omitted } = report;
  for (;;) {
    const told = { ...report, figures, omitted };
    if (figures.length === 0 || bytesOf(told) <= LIMITS.studyBytesMax) return told;
    const sizes = figures.map(bytesOf);
    const largest = sizes.indexOf(Math.max(...sizes));
    figures = figures.filter((_, i) => i !== largest);
    omitted++;
  }
}

/** Null: what a run shows by itself (histograms over time). */
function figureOf(plot: Plot): { figure: Figure; omitted: number } | null {
  switch (plot.kind) {
    case 'chart':
      return { figure: chartOf(plot), omitted: Math.max(0, plot.series.length - MANY.series) };
    case 'parallel': {
      const { lines, axes } = plot;
      const shown = lines.slice(0, MANY.lines).map(({ label, places, rank }) => ({
        label: cut(label, 500),
        places: places.slice(0, MANY.axes).map(tidy),
        rank,
      }));
      const omitted = Math.max(0, lines.length - MANY.lines);
      return { figure: { ...plot, axes: axes.slice(0, MANY.axes), lines: shown }, omitted };
    }
    case 'matrix':
      return plot.counts.length > MANY.classes ? null : { figure: plot, omitted: 0 };
    case 'thresholds': {
      const points = plot.points.map(({ threshold, coverage, accuracy }) => ({
        ...{ threshold, coverage, accuracy },
      }));
      return {
        figure: { ...plot, points: points.slice(0, MANY.points), choices: seriesOf(plot.choices) },
        omitted: Math.max(0, points.length - MANY.points),
      };
    }
    case 'gallery': {
      const cards = plot.cards.slice(0, MANY.cards).map(({ shown, caption, wrong }) => ({
        ...{ shown: toldView(shown), wrong },
        caption: caption.slice(0, 6).map((line) => cut(line, 500)),
      }));
      const figure: GalleryFigure = { kind: 'gallery', title: cut(plot.title, 500), cards };
      return { figure, omitted: Math.max(0, plot.cards.length - MANY.cards) };
    }
    case 'histograms':
      return null;
  }
}

const MANY = FIGURE_LIMITS;

const chartOf = (plot: ChartFigure): ChartFigure => ({
  ...plot,
  title: cut(plot.title, 500),
  series: plot.series.slice(0, MANY.series).map(seriesOf),
});

function seriesOf({ points, name, ...rest }: Series): Series {
  const known = points.filter(({ x }) => x !== null && Number.isFinite(x));
  const picked = pickPoints(
    known.map(({ x }) => x!),
    [known.map(({ y }) => tidy(y))],
    MANY.points,
  );
  return { ...rest, name: cut(name, 500), points: picked.map((i) => pointOf(known[i]!)) };
}

function pointOf({ x, y, low, high, label }: PlotPoint): PlotPoint {
  return {
    ...{ x: tidy(x), y: tidy(y) },
    ...(low === undefined ? {} : { low: tidy(low) }),
    ...(high === undefined ? {} : { high: tidy(high) }),
    ...(label === undefined ? {} : { label: cut(label, 500) }),
  };
}

/** As many digits as a picture shows; JSON knows no infinity. */
const tidy = (value: number | null | undefined) =>
  value == null || !Number.isFinite(value) ? null : Number(value.toPrecision(7));

/** What a study shows before it has a result: where each of its trials stands. */
export function trialsReport(title: string, trials: readonly Trial[]): Report {
  return {
    title,
    headings: ['run', 'trial', 'state', 'step', 'best loss', 'best error'],
    rows: trials.map((trial) => {
      const best = bestEvaluation(trial);
      return [
        trial.id,
        trial.label,
        trial.end?.kind ?? (trial.desire === 'pause' ? 'paused' : trial.phase),
        String(trial.step),
        numberText(best?.loss),
        numberText(best?.error),
      ];
    }),
    advice: '',
    plots: {},
    facts: {},
  };
}

/** What the look at a run is called on its server: a name that is allowed, another for each run. */
export function lookName(kind: string, run: string): string {
  const name = `${kind}-${run}`;
  return name.length <= 64 ? name : `${name.slice(0, 55)}-${digestText(run).slice(0, 8)}`;
}
