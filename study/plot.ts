import type {
  ChartFigure,
  MatrixFigure,
  ParallelFigure,
  ThresholdsFigure,
} from '../shared/figure.ts';
import { chartSvg, matrixSvg, parallelSvg } from '../shared/plot.ts';
import {
  type Gallery,
  galleryPicture,
  type Histograms,
  histogramsPicture,
  thresholdsChart,
} from './figures.ts';
import type { Estimate } from './statistics.ts';

/** What reports are illustrated with: figures as data, which become files here and travel to servers. */

export type Plot =
  | ChartFigure
  | ParallelFigure
  | MatrixFigure
  | ThresholdsFigure
  | Gallery
  | Histograms;

export type ChartOptions = Omit<ChartFigure, 'kind'>;

/** Lines, points, bars, error bars and bands over two axes, each linear or logarithmic. */
export const chart = (options: ChartOptions): ChartFigure => ({ kind: 'chart', ...options });

/** The mean at `x`, with its interval where that is known. */
export const pointOf = (x: number, { mean, low, high, distinct }: Estimate) => ({
  ...{ x, y: mean },
  ...(distinct > 1 ? { low, high } : {}),
});

/** @returns SVG. */
export function plotSvg(plot: Plot): string {
  switch (plot.kind) {
    case 'chart':
      return chartSvg(plot);
    case 'parallel':
      return parallelSvg(plot);
    case 'matrix':
      return matrixSvg(plot);
    case 'thresholds':
      return chartSvg(thresholdsChart(plot));
    case 'gallery':
      return galleryPicture(plot);
    case 'histograms':
      return histogramsPicture(plot);
  }
}
