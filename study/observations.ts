import type { Series } from '../shared/figure.ts';
import type { TensorObservation } from '../shared/observed.ts';
import { medianOf, quantileOf } from '../shared/quantile.ts';
import type { Observations } from '../shared/rest.ts';
import { percent } from '../shared/text.ts';
import { type HistogramAt, histogramsFigure } from './figures.ts';
import { chart, type Plot } from './plot.ts';
import { numberText } from './report.ts';

/**
 * What was sampled while a model was trained, in figures and words (Deep Learning §8.2.2, §8.4, §11.5): the
 * gradient norm of each tensor over time, the size of updates against the 1 % mark, saturated and dead
 * units, and parameters that are rarely updated.
 */

/** The share of a tensor's weights that one update should move, about; healthy from a tenth of it. */
const MARK = 0.01;
/** Fewer samples say nothing of how training went. */
const SAMPLES_MIN = 6;
/** A share of the highest learning rate: what is sampled at less, as when a schedule has ended, says nothing against it. */
const FULL_RATE = 0.5;
/** Below this share of its first gradient norm a tensor has arrived. */
const ARRIVED = 0.01;
/** Larger shares of elements, or of units, are worth a word. */
const FEW = 0.01;
const MANY_UNITS = 0.2;
/** Optimizers that give each element a step of its own. */
const ADAPTIVE: readonly string[] = ['adagrad', 'adam', 'adamw', 'rmsprop', 'adadelta'];

type SampleFacts = Observations['samples'][number];

export interface ObservationsReport {
  readonly advice: string;
  readonly plots: Readonly<Record<string, Plot>>;
  readonly facts: Readonly<Record<string, unknown>>;
}

/** What is known of the run besides; absent: not known. */
export interface SampledRun {
  /** The rates of its course, in the order of steps. */
  readonly rates?: readonly { readonly step: number; readonly learningRate: number }[];
  readonly optimizer?: string;
  /** The error of its best evaluation. */
  readonly error?: number | null;
}

/** @param observed with at least one sample. */
export function observationsReport(
  { samples, cost, everySteps }: Observations,
  run: SampledRun = {},
): ObservationsReport {
  const names = samples[0]!.tensors.map(({ name }) => name);
  const layers = samples[0]!.layers.map(({ layer }) => layer);
  const tensorAt = (sample: (typeof samples)[number], name: string) =>
    sample.tensors.find((tensor) => tensor.name === name);
  const lines = (
    list: readonly string[],
    value: (sample: (typeof samples)[number], name: string) => number | null | undefined,
  ): Series[] =>
    list.map((name) => ({
      name,
      style: 'curve',
      points: samples.map((sample) => ({ x: sample.step, y: value(sample, name) ?? Number.NaN })),
    }));
  const panels = (kind: 'weights' | 'gradients' | 'updates') =>
    names.map((name) => ({
      name: `${name}: ${kind}`,
      over: samples.flatMap((sample): HistogramAt[] => {
        const histogram = tensorAt(sample, name)?.[kind];
        return histogram ? [{ step: sample.step, ...histogram }] : [];
      }),
    }));
  const steps = { label: 'step' };
  const last = samples.at(-1)!;
  const layerAt = (sample: (typeof samples)[number], name: string) =>
    sample.layers.find(({ layer }) => layer === name);
  const saturated = lines(layers, (sample, name) => layerAt(sample, name)?.saturated);
  const dead = lines(layers, (sample, name) => layerAt(sample, name)?.dead);
  const tensors = last.tensors.map((tensor) => ({
    ...{ name: tensor.name, elements: tensor.elements },
    neverShare: tensor.never / tensor.elements,
    rareShare: tensor.rare / tensor.elements,
    ...courseOf(
      samples.map((sample) => tensorAt(sample, tensor.name)),
      samples.map(({ step }) => rateAt(run.rates ?? [], step)),
    ),
  }));
  return {
    advice: adviceOf(tensors, { samples, cost }, run),
    plots: {
      'gradient-norms.svg': chart({
        title: 'Gradient norm of each tensor over time',
        x: steps,
        y: { label: 'L2 norm', log: true },
        series: lines(names, (sample, name) => tensorAt(sample, name)?.gradientNorm),
      }),
      'update-ratios.svg': chart({
        title: 'Size of one update over the size of the weights',
        x: steps,
        y: { label: 'ratio; 0.001 to 0.01 is usual', log: true },
        series: lines(names, (sample, name) => tensorAt(sample, name)?.updateRatio),
      }),
      ...(layers.length > 0
        ? {
            'units.svg': chart({
              title: 'Dead units and saturated values',
              x: steps,
              y: { label: 'share' },
              series: [
                ...dead.map((line) => ({ ...line, name: `${line.name} dead` })),
                ...saturated
                  .filter(({ points }) => points.some(({ y }) => Number.isFinite(y)))
                  .map((line) => ({ ...line, name: `${line.name} saturated` })),
              ],
            }),
            'activations.svg': histogramsFigure(
              'Activations over time',
              layers.map((name) => ({
                name,
                over: samples.flatMap((sample): HistogramAt[] => {
                  const found = layerAt(sample, name);
                  return found ? [{ step: sample.step, ...found.values }] : [];
                }),
              })),
            ),
          }
        : {}),
      'weights.svg': histogramsFigure('Weights over time', panels('weights')),
      'gradients.svg': histogramsFigure('Gradients over time', panels('gradients')),
      'updates.svg': histogramsFigure('Updates over time', panels('updates')),
    },
    facts: { everySteps, cost, samples: samples.length, tensors, layers: last.layers },
  };
}

interface TensorFacts extends TensorCourse {
  readonly name: string;
  readonly neverShare: number;
  readonly rareShare: number;
}

interface TensorCourse {
  /** Medians of the first and of the last third of the samples; null: too few. */
  readonly gradientNormFirst: number | null;
  readonly gradientNormLast: number | null;
  /** Medians of all samples, and of the last third; null: not known. */
  readonly updateRatio: number | null;
  readonly updateRatioLast: number | null;
  /** That nine tenths of the samples at full rate lie below: in its largest updates it moved about so much. */
  readonly updateRatioMost: number | null;
}

/** @param rates at each sample; null: not known. */
function courseOf(
  tensors: readonly (TensorObservation | undefined)[],
  rates: readonly (number | null)[],
): TensorCourse {
  const enough = tensors.length >= SAMPLES_MIN;
  const third = Math.ceil(tensors.length / 3);
  const norms = tensors.map((tensor) => tensor?.gradientNorm);
  const ratios = tensors.map((tensor) => tensor?.updateRatio);
  const highest = Math.max(...rates.map((rate) => rate ?? 0));
  const atFullRate = ratios.filter((_, i) => (rates[i] ?? highest) >= FULL_RATE * highest);
  const known = atFullRate.filter((ratio) => ratio != null);
  return {
    gradientNormFirst: enough ? median(norms.slice(0, third)) : null,
    gradientNormLast: enough ? median(norms.slice(-third)) : null,
    updateRatio: median(ratios),
    updateRatioLast: enough ? median(ratios.slice(-third)) : null,
    updateRatioMost: known.length >= SAMPLES_MIN / 2 && enough ? quantileOf(known, 0.9) : null,
  };
}

/** The rate of the last point up to a step, else of the first one. */
function rateAt(rates: NonNullable<SampledRun['rates']>, step: number): number | null {
  return (rates.findLast((point) => point.step <= step) ?? rates[0])?.learningRate ?? null;
}

/** What is said, and when it is not: docs/advice.md. */
function adviceOf(
  tensors: readonly TensorFacts[],
  { samples, cost }: Pick<Observations, 'samples' | 'cost'>,
  run: SampledRun,
): string {
  const last = samples.at(-1)!;
  const isSolved = run.error === 0;
  const parts: string[] = [];
  const known = tensors.filter(({ updateRatio }) => updateRatio !== null);
  if (known.length > 0) {
    const told = known.slice(0, 6).map(({ name, updateRatio: r }) => `${name} ${percent(r)}`);
    parts.push(`One update moved (median) ${told.join(', ')} of its tensor.`);
  }
  if (samples.length < SAMPLES_MIN) {
    parts.push(`${samples.length} samples are too few to judge the course of training.`);
  } else {
    parts.push(...rateAdvice(tensors, isSolved), ...normAdvice(tensors));
    parts.push(...rareAdvice(tensors, last, run.optimizer));
    parts.push(...unitAdvice(last, isSolved));
  }
  parts.push(
    `${cost.samples} samples took ${numberText(cost.ms)} ms, ${percent(cost.share)} of the compute time.`,
  );
  return parts.join(' ');
}

function rateAdvice(tensors: readonly TensorFacts[], isSolved: boolean): string[] {
  const parts: string[] = [];
  // What begins at 0, as a bias does, is small beside its updates for a while: it is judged by how it ends.
  const large = tensors.filter(
    ({ updateRatio, updateRatioLast }) =>
      (updateRatio ?? 0) > 10 * MARK && (updateRatioLast ?? 0) > 10 * MARK,
  );
  if (large.length > 0) {
    const told = large.map(({ name, updateRatioLast: r }) => `${name} ${percent(r)}`);
    parts.push(
      `At the end one update still moves ${told.join(', ')}, far above 1 %; lower learningRate (\`downpour lr-find\`).`,
    );
  }
  const small = tensors.filter((tensor) => {
    const { updateRatioMost, gradientNormFirst, gradientNormLast, neverShare, rareShare } = tensor;
    const hasArrived = (gradientNormLast ?? 0) < ARRIVED * (gradientNormFirst ?? 0);
    if (updateRatioMost === null || updateRatioMost >= MARK / 100) return false;
    return !isSolved && !hasArrived && neverShare + rareShare <= FEW && gradientNormFirst! > 0;
  });
  if (small.length > 0) {
    parts.push(
      `${small.map(({ name }) => name).join(', ')}: at the highest learning rates, nine of ten updates moved less than 0.01 %. It hardly moves; try a higher learningRate (\`downpour lr-find\`).`,
    );
  }
  const still = tensors.filter((t) => t.gradientNormFirst === 0 && t.gradientNormLast === 0);
  if (still.length > 0) {
    parts.push(
      `${still.map(({ name }) => name).join(', ')}: no gradient reaches it; look for dead units after it, and check that the loss depends on it.`,
    );
  }
  return parts;
}

function normAdvice(tensors: readonly TensorFacts[]): string[] {
  const known = tensors.filter(({ gradientNormFirst: first }) => first !== null && first > 0);
  if (known.length === 0) return [];
  const shrunk = known.filter((t) => t.gradientNormLast! < t.gradientNormFirst!);
  const tiny = known.filter((t) => t.gradientNormLast! < ARRIVED * t.gradientNormFirst!);
  const told = `From the first third of the samples to the last the gradient norm has shrunk in ${shrunk.length} of ${known.length} tensors`;
  return [
    tiny.length > 0
      ? `${told}, below 1 % of what it was in ${tiny.length}: only there can a local minimum be the reason that training ends (Deep Learning §8.2.2).`
      : `${told}, and nowhere below 1 % of what it was: no critical point is near, since the gradient would vanish there (Deep Learning §8.2.2).`,
  ];
}

function rareAdvice(
  tensors: readonly TensorFacts[],
  last: SampleFacts,
  optimizer: string | undefined,
): string[] {
  const parts: string[] = [];
  const never = tensors.filter(({ neverShare }) => neverShare > FEW && neverShare < 1);
  if (never.length > 0) {
    const told = never.map((t) => `${t.name} (${percent(t.neverShare)})`);
    parts.push(
      `Without a gradient in any sample: ${told.join(', ')} of the elements; causes are inputs that are always 0, categories that do not occur, or dead units.`,
    );
  }
  // Each element of a tensor is rare in fewer than one of 20 samples: with fewer none can be.
  const rare = tensors.filter(({ rareShare }) => rareShare > FEW);
  if (rare.length > 0 && last.samples > 20) {
    const told = rare.map((t) => `${t.name} (${percent(t.rareShare)})`);
    const isAdaptive = optimizer !== undefined && ADAPTIVE.includes(optimizer);
    const next = isAdaptive
      ? ''
      : ' Sparse inputs cause this; Adagrad or Adam gives rare features larger steps.';
    parts.push(
      `With a gradient in fewer than one of 20 samples: ${told.join(', ')} of the elements.${next} Histograms of such tensors mislead (Deep Learning §11.5).`,
    );
  }
  return parts;
}

/** The last layer may well be saturated: so it says what it is sure of. */
function unitAdvice({ layers }: SampleFacts, isSolved: boolean): string[] {
  const bad = layers.flatMap(({ layer, dead, saturated }, i) => {
    const flat = i === layers.length - 1 ? null : saturated;
    if (dead <= MANY_UNITS && (flat ?? 0) <= MANY_UNITS) return [];
    const told = [
      `${percent(dead)} dead`,
      ...(flat === null ? [] : [`${percent(flat)} saturated`]),
    ];
    return [`${layer} (${told.join(', ')})`];
  });
  if (bad.length === 0) return [];
  const next = isSolved
    ? '.'
    : '; look at initial values, learning rate and the scale of the inputs.';
  return [`At the end: ${bad.join(', ')}${next}`];
}

function median(values: readonly (number | null | undefined)[]): number | null {
  const known = values.filter((value) => value != null);
  return known.length === 0 ? null : medianOf(known);
}
