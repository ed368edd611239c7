import type { Evaluation, Metrics, RunSummary } from '../../shared/rest.ts';
import { percent } from '../../shared/text.ts';
import { Chart, type ChartContent, type Curve, type Mark } from '../chart.ts';
import { compact, count, errorOf, roundPercent, short } from '../format.ts';
import { spansDecades } from '../lines.ts';
import { Toggle } from '../parts.ts';

/** The curves of one run. */
export class RunCharts {
  readonly loss = new Chart('Loss', {
    height: 280,
    empty: 'The first loss comes with the first update',
  });
  readonly error = new Chart('Validation error', {
    empty: 'The first evaluation is still to come',
  });
  /** Losses and metrics of the experiment, by name. */
  readonly metrics = new Chart('Losses and metrics');
  readonly rate = new Chart('Learning rate');
  readonly norm = new Chart('Gradient norm');
  readonly speed = new Chart('Throughput');
  readonly staleness = new Chart('Staleness');
  readonly logarithmic = new Toggle('Logarithmic', false, (on) => {
    this.#isLogarithmic = on;
    if (this.#last) this.show(...this.#last);
  });
  /** The loss over a logarithmic axis; null: where it spans two decades. */
  #isLogarithmic: boolean | null = null;
  #last: [RunSummary, Metrics] | null = null;

  show(run: RunSummary, metrics: Metrics): void {
    this.#last = [run, metrics];
    const { evaluations } = metrics;
    const validation = evaluations.filter(({ part }) => part === 'validation');
    const measured = evaluations.filter(({ part }) => part === 'train');
    this.#showLoss(run, metrics.training, validation, measured);
    this.#showError(run, validation, measured);
    this.#showMetrics(validation);
    this.#showRate(metrics.training);
    this.#showNorm(metrics.training);
    this.speed.show(throughputOf(metrics.training));
    this.staleness.show(stalenessOf(metrics.stalenessHistogram, run.staleness));
  }

  destroy(): void {
    const { loss, error, metrics, rate, norm, speed, staleness } = this;
    for (const chart of [loss, error, metrics, rate, norm, speed, staleness]) chart.destroy();
  }

  #showLoss(
    { best }: RunSummary,
    training: Metrics['training'],
    validation: readonly Evaluation[],
    measured: readonly Evaluation[],
  ): void {
    const marks: Mark[] = [];
    if (best?.loss != null) {
      marks.push({ x: best.step, y: best.loss, text: `best: step ${count(best.step)}` });
    }
    const losses = [training.loss, validation.map(({ loss }) => loss)].flat();
    const yLog = this.#isLogarithmic ?? spansDecades(losses);
    this.logarithmic.show(yLog);
    this.loss.show({
      ...STEPS,
      curves: [
        ...curvesOf(training, [
          { label: 'minibatch', color: 'muted', y: training.minibatchLoss, draw: 'faint' },
          { label: 'training, smoothed', color: 0, y: training.loss },
        ]),
        ...evaluationCurve('validation', 1, validation, 'loss'),
        ...evaluationCurve('training set', 3, measured, 'loss'),
      ],
      marks,
      yLabel: 'loss',
      yLog,
    });
  }

  #showError(
    run: RunSummary,
    validation: readonly Evaluation[],
    measured: readonly Evaluation[],
  ): void {
    const { best } = run;
    const toldError = errorOf(run);
    const withError = (evaluations: readonly Evaluation[]) =>
      evaluations.filter(({ error }) => error !== null);
    this.error.show({
      ...STEPS,
      curves: [
        ...evaluationCurve('validation', 1, withError(validation), 'error'),
        ...evaluationCurve('training set', 3, withError(measured), 'error'),
      ],
      marks:
        best?.error != null
          ? [{ x: best.step, y: best.error, text: `best: ${toldError(best.error)}` }]
          : [],
      yLabel: 'error',
      formatY: toldError,
      ...(toldError === percent ? { formatTick: roundPercent } : {}),
      yFrom: 0,
    });
  }

  /** Several losses of an objective are among the metrics of its evaluations, each under its name. */
  #showMetrics(validation: readonly Evaluation[]): void {
    const names = namesOfMetrics(validation);
    const valuesOf = (name: string) => validation.map(({ metrics }) => metrics[name] ?? null);
    const all = names.flatMap(valuesOf);
    this.metrics.show({
      ...STEPS,
      curves: names.map((name, color) => ({
        ...{ label: name, color, y: valuesOf(name) },
        x: validation.map(({ step }) => step),
        draw: validation.length > 60 ? 'line' : 'points',
      })),
      yLabel: 'on the validation part',
      formatY: short,
      yLog: spansDecades(all) && all.every((value) => value === null || value > 0),
    });
  }

  #showRate(training: Metrics['training']): void {
    const hasMomentum = training.momentum.some((value) => value !== null);
    this.rate.show({
      ...STEPS,
      curves: curvesOf(training, [
        { label: 'learning rate', color: 0, y: training.learningRate, draw: 'steps' },
        ...(hasMomentum
          ? [
              {
                ...{ label: 'momentum', color: 2, y: training.momentum },
                ...{ draw: 'steps' as const, dashed: true },
              },
            ]
          : []),
      ]),
      yLabel: 'learning rate',
      formatY: short,
      yFrom: 0,
    });
  }

  #showNorm(training: Metrics['training']): void {
    this.norm.show({
      ...STEPS,
      curves: curvesOf(training, [{ label: 'gradient norm', color: 0, y: training.gradientNorm }]),
      yLabel: 'gradient norm',
      yLog: training.gradientNorm.every((value) => value === null || value > 0),
    });
  }
}

/** Those of all evaluations, in the order of their first one. */
export const namesOfMetrics = (evaluations: readonly Evaluation[]) => [
  ...new Set(evaluations.flatMap(({ metrics }) => Object.keys(metrics))),
];

const STEPS = { xLabel: 'step', formatX: compact };

/** Curves over the steps of training; none before its first point. */
const curvesOf = ({ step }: Metrics['training'], curves: readonly Omit<Curve, 'x'>[]): Curve[] =>
  step.length === 0 ? [] : curves.map((curve) => ({ ...curve, x: step }));

function evaluationCurve(
  label: string,
  color: number,
  evaluations: readonly Evaluation[],
  what: 'loss' | 'error',
): Curve[] {
  if (evaluations.length === 0) return [];
  return [
    {
      label,
      color,
      x: evaluations.map(({ step }) => step),
      y: evaluations.map((evaluation) => evaluation[what]),
      draw: evaluations.length > 60 ? 'line' : 'points',
    },
  ];
}

/** Examples a second between points that are far enough apart to tell. */
function throughputOf({ step, seconds, examples }: Metrics['training']): ChartContent {
  const x: number[] = [];
  const y: number[] = [];
  const whole = (seconds.at(-1) ?? 0) - (seconds[0] ?? 0);
  const span = Math.max(Math.min(1, whole / 6), whole / 80);
  let last = 0;
  for (let i = 1; i < step.length; i++) {
    const [before, now] = [examples[last], examples[i]];
    const took = seconds[i]! - seconds[last]!;
    if (took < span || before == null || now == null) continue;
    x.push(step[i]!);
    y.push((now - before) / took);
    last = i;
  }
  return {
    curves: x.length === 0 ? [] : [{ label: 'examples a second', color: 0, x, y }],
    xLabel: 'step',
    yLabel: 'examples a second',
    yFrom: 0,
  };
}

/** Counts of pushes by staleness, as far as there are any. */
function stalenessOf(
  histogram: readonly number[],
  staleness: RunSummary['staleness'],
): ChartContent {
  const last = histogram.findLastIndex((n) => n > 0);
  const counts = last < 0 ? [] : histogram.slice(0, Math.max(last + 1, 5));
  return {
    curves:
      counts.length === 0
        ? []
        : [
            {
              label: staleness
                ? `applied pushes; median ${staleness.p50}, p95 ${staleness.p95}, most ${staleness.max}`
                : 'applied pushes',
              color: 0,
              x: counts.map((_, i) => i),
              y: counts,
              draw: 'bars',
            },
          ],
    xLabel: 'staleness, steps',
    yLabel: 'applied pushes',
    yFrom: 0,
  };
}
