import type { Card, ChartFigure, Figure, Series } from '../figure.ts';
import { chartSvg, escapeXml, matrixSvg, PAPER, parallelSvg } from '../plot.ts';
import type { Evaluation, Metrics, RunDetail } from '../rest.ts';
import { bitmapUrl } from './bitmap.ts';

/** The figures of a report, as HTML text. All that comes from users and workers is escaped. */

export function figureHtml(figure: Figure): string {
  switch (figure.kind) {
    case 'chart':
      return chartSvg(figure, PAPER);
    case 'matrix':
      return matrixSvg(figure, PAPER);
    case 'parallel':
      return parallelSvg(figure, PAPER);
    case 'thresholds': {
      const { title, points, choices } = figure;
      const measured = points.map(({ coverage, accuracy }) => ({ x: coverage, y: accuracy }));
      return chartSvg(
        {
          ...{ kind: 'chart', title, x: { label: 'coverage' }, y: { label: 'accuracy' } },
          series: [{ name: 'measured', style: 'curve', points: measured }, choices],
        },
        PAPER,
      );
    }
    case 'gallery':
      return `<h3>${escapeXml(figure.title)}</h3>${galleryHtml(figure.cards)}`;
  }
}

export const galleryHtml = (cards: readonly Card[]): string =>
  `<ul class="gallery">${cards.map(cardHtml).join('')}</ul>`;

function cardHtml({ shown, caption, wrong }: Card): string {
  const lines = caption.map((line) => `<div>${escapeXml(line)}</div>`).join('');
  const url = shown.kind === 'image' ? bitmapUrl(shown) : null;
  const example =
    shown.kind === 'text'
      ? `<pre>${escapeXml(shown.text)}</pre>`
      : url === null
        ? '<pre>no picture</pre>'
        : `<img src="${url}" alt="" width="96">`;
  return `<li${wrong ? ' class="wrong"' : ''}>${example}${lines}</li>`;
}

/** Over so large a range equal factors read better than equal differences. */
const DECADES = 100;

function isWide(series: readonly Series[]): boolean {
  const values = series.flatMap(({ points }) => points.flatMap(({ y }) => y ?? []));
  const low = Math.min(...values);
  return values.length > 0 && low > 0 && Math.max(...values) >= DECADES * low;
}

/** The curves of a run: losses, error, learning rate, gradient norm, and the metrics of its experiment. */
export function curvesOf({ errorMeasure }: RunDetail, metrics: Metrics): ChartFigure[] {
  const { training, evaluations } = metrics;
  const validation = evaluations.filter(({ part }) => part === 'validation');
  // As the tables have it.
  const isShare = errorMeasure === 'misclassification';
  const factor = isShare ? 100 : 1;
  const over = (name: string, y: readonly (number | null)[], style: Series['style'] = 'curve') => ({
    ...{ name, style },
    points: training.step.map((step, i) => ({ x: step, y: y[i] ?? null })),
  });
  const of = (name: string, value: (evaluation: Evaluation) => number | null, color = 1) => ({
    ...{ name, color, style: 'line' as const },
    points: validation.map((each) => ({ x: each.step, y: value(each) })),
  });
  const chart = (title: string, unit: string, series: Series[], mayBeLog = false): ChartFigure => ({
    ...{ kind: 'chart', title, x: { label: 'step' } },
    y: { label: unit, ...(mayBeLog && isWide(series) ? { log: true } : {}) },
    series,
  });
  const names = new Set(validation.flatMap((each) => Object.keys(each.metrics)));
  const charts = [
    chart(
      'Loss',
      'loss',
      [over('training, smoothed', training.loss), of('validation', (e) => e.loss)],
      true,
    ),
    chart('Validation error', isShare ? 'error, %' : 'error', [
      of('', ({ error }) => (error === null ? null : factor * error), 0),
    ]),
    ...[...names].map((name) => chart(name, name, [of('', (e) => e.metrics[name] ?? null, 0)])),
    chart('Learning rate', 'learning rate', [over('', training.learningRate)]),
    chart('Gradient norm', 'gradient norm', [over('', training.gradientNorm)], true),
  ];
  return charts.filter(({ series }) =>
    series.some(({ points }) => points.some(({ y }) => y !== null)),
  );
}
