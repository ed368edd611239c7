import type { Series } from '../shared/figure.ts';
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

/** Of a tensor's weights, one update should move about so much: healthy from a tenth of it. */
const MARK = 0.01;

export interface ObservationsReport {
  readonly advice: string;
  readonly plots: Readonly<Record<string, Plot>>;
  readonly facts: Readonly<Record<string, unknown>>;
}

/** @param observed with at least one sample. */
export function observationsReport({
  samples,
  cost,
  everySteps,
}: Observations): ObservationsReport {
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
    gradientNormFirst: tensorAt(samples[0]!, tensor.name)?.gradientNorm ?? null,
    gradientNormLast: tensor.gradientNorm,
    updateRatio: median(samples.map((sample) => tensorAt(sample, tensor.name)?.updateRatio)),
  }));
  return {
    advice: adviceOf(tensors, last, cost),
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
        y: { label: 'ratio; about 0.01 is healthy', log: true },
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

interface TensorFacts {
  readonly name: string;
  readonly neverShare: number;
  readonly rareShare: number;
  readonly gradientNormFirst: number | null;
  readonly gradientNormLast: number;
  readonly updateRatio: number | null;
}

function adviceOf(
  tensors: readonly TensorFacts[],
  last: Observations['samples'][number],
  cost: Observations['cost'],
): string {
  const parts: string[] = [];
  const large = tensors.filter(({ updateRatio: r }) => r !== null && r > 10 * MARK);
  const small = tensors.filter(({ updateRatio: r }) => r !== null && r < MARK / 100);
  const told = tensors.map(({ name, updateRatio }) => `${name} ${percent(updateRatio)}`);
  parts.push(`One update moved (median) ${told.slice(0, 6).join(', ')} of its tensor.`);
  if (large.length > 0) {
    parts.push(
      `${large.map(({ name }) => name).join(', ')}: far above 1 %; lower learningRate (\`downpour lr-find\`).`,
    );
  }
  if (small.length > 0) {
    parts.push(
      `${small.map(({ name }) => name).join(', ')}: below 0.01 %, it hardly moves; a higher learningRate, or rarely updated elements (below).`,
    );
  }
  const growing = tensors.filter((t) => t.gradientNormLast >= (t.gradientNormFirst ?? Infinity));
  const most = growing.length * 2 > tensors.length;
  parts.push(
    most
      ? `The gradient norm has not shrunk in ${growing.length} of ${tensors.length} tensors: whatever slows training down, it is no local minimum or other critical point, where it would vanish (Deep Learning §8.2.2).`
      : `The gradient norm has shrunk in ${tensors.length - growing.length} of ${tensors.length} tensors; only where it becomes tiny can a local minimum be what holds training up (Deep Learning §8.2.2).`,
  );
  const rare = tensors.filter((t) => t.neverShare + t.rareShare > 0.01);
  if (rare.length > 0) {
    const list = rare.map(
      (t) => `${t.name} (${percent(t.neverShare)} never, ${percent(t.rareShare)} seldom)`,
    );
    parts.push(
      `Without a gradient in the samples: ${list.join(', ')}. Sparse inputs do that; Adagrad or Adam gives rare features larger steps, and histograms of such tensors mislead (Deep Learning §11.5).`,
    );
  }
  const bad = last.layers.filter((layer) => layer.dead > 0.2 || (layer.saturated ?? 0) > 0.2);
  if (bad.length > 0) {
    const list = bad.map(
      (l) => `${l.layer} (${percent(l.dead)} dead, ${percent(l.saturated)} saturated)`,
    );
    parts.push(
      `At the end: ${list.join(', ')}; look at initial values, learning rate and the scale of the inputs.`,
    );
  }
  parts.push(
    `${cost.samples} samples took ${numberText(cost.ms)} ms, ${percent(cost.share)} of the compute time.`,
  );
  return parts.join(' ');
}

function median(values: readonly (number | null | undefined)[]): number | null {
  const known = values.filter((value) => value != null).sort((a, b) => a - b);
  return known.length === 0 ? null : known[known.length >> 1]!;
}
