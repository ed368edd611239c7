import type { Observations, ObservedSample } from '../shared/rest.ts';
import { percent } from '../shared/text.ts';
import { Chart, type Curve } from './chart.ts';
import { type HistogramsAt, heatmap } from './figures.ts';
import { count, roundPercent, short } from './format.ts';
import { fill, fillNew, h } from './html.ts';
import { card, Select, tableElement } from './parts.ts';
import { saveButtons } from './save.ts';

/** What workers sampled of a run: the size of updates, units that are dead or saturated, histograms over time. */

/** The share of a tensor's size that one update should move (Deep Learning §11.5: about 1 %). */
const BAND = { low: 1e-3, high: 1e-2 } as const;

type What = 'weights' | 'gradients' | 'updates' | 'activations';
const WHATS: readonly (readonly [What, string])[] = [
  ['weights', 'Parameters'],
  ['gradients', 'Gradients'],
  ['updates', 'Updates'],
  ['activations', 'Activations'],
];

export interface ObservationsCards {
  readonly plots: readonly HTMLElement[];
  readonly tables: readonly HTMLElement[];
  show(observed: Observations): void;
  destroy(): void;
}

export function observationsCards(): ObservationsCards {
  const ratios = new Chart('Update size', {
    empty: 'It is known after two samples of one worker',
  });
  const units = new Chart('Dead and saturated', { empty: 'No layer was sampled' });
  const chooseWhat = h('span', {});
  const chooseWhich = h('span', {});
  const picture = h('div', {});
  const summary = h('div', {});
  const hint = h('p', { class: 'muted' });
  let what: What = 'weights';
  let which: string | null = null;
  let last: Observations | null = null;

  const frame = (chart: Chart) =>
    card(chart.title, h('div', { class: 'card-tools' }, saveButtons(chart)), chart.element);
  const histograms = card(
    'Histograms over time',
    h('div', { class: 'tools' }, chooseWhat, chooseWhich),
    picture,
    hint,
  );
  histograms.classList.add('full');
  const table = card('Last sample', summary);
  table.classList.add('full');
  const plots = [frame(ratios), frame(units)];
  const tables = [histograms, table];
  const elements = [...plots, ...tables];
  for (const element of elements) element.hidden = true;

  fill(
    chooseWhat,
    new Select('Of', WHATS, what, (value) => {
      what = value as What;
      which = null;
      draw();
    }).element,
  );

  function show(observed: Observations): void {
    last = observed;
    const { samples } = observed;
    for (const element of elements) element.hidden = samples.length === 0;
    if (samples.length === 0) return;
    const newest = samples.at(-1)!;
    ratios.show({
      curves: newest.tensors.map(({ name }, color) =>
        overSteps(name, color, samples, (sample) => tensorOf(sample, name)?.updateRatio),
      ),
      ...{ xLabel: 'step', yLabel: 'size of an update over that of the weights', yLog: true },
      band: { ...BAND, text: 'usual while it learns: 0.1 % to 1 %' },
      formatY: share,
      formatTick: roundPercent,
    });
    const saturating = newest.layers.filter(({ saturated }) => saturated !== null);
    units.show({
      curves: [
        ...newest.layers.map(({ layer }, color) =>
          overSteps(`${layer} dead`, color, samples, (sample) => layerOf(sample, layer)?.dead),
        ),
        ...saturating.map(({ layer }, color) => ({
          ...overSteps(
            `${layer} saturated`,
            color + newest.layers.length,
            samples,
            (sample) => layerOf(sample, layer)?.saturated,
          ),
          dashed: true,
        })),
      ],
      ...{ xLabel: 'step', yLabel: 'share', yFrom: 0 },
      formatY: percent,
      formatTick: roundPercent,
    });
    draw();
    fillNew(summary, newest, () => [summaryOf(newest)]);
    const { cost, everySteps } = observed;
    hint.textContent = `Sampled every ${count(everySteps ?? 0)} steps; ${count(cost.samples)} samples took ${percent(cost.share)} of the compute time. Each column is one sample, from its smallest value to its largest.`;
  }

  function draw(): void {
    if (!last) return;
    const { samples } = last;
    const newest = samples.at(-1)!;
    const names =
      what === 'activations'
        ? newest.layers.map(({ layer }) => layer)
        : newest.tensors.map(({ name }) => name);
    if (which === null || !names.includes(which)) which = names[0] ?? null;
    fillNew(chooseWhich, [what, names], () => [
      new Select(
        what === 'activations' ? 'Layer' : 'Tensor',
        names.map((name) => [name, name] as const),
        which ?? '',
        (value) => {
          which = value;
          draw();
        },
      ).element,
    ]);
    const shown = which === null ? [] : histogramsOf(samples, what, which);
    fillNew(picture, [what, which, shown.at(-1)?.step, shown.length], () => [
      shown.length === 0
        ? h('p', { class: 'empty-plot' }, 'Not known yet: it takes two samples of one worker.')
        : heatmap(shown, labelOf(what, which!, shown)),
    ]);
  }

  return {
    plots,
    tables,
    show,
    destroy() {
      ratios.destroy();
      units.destroy();
    },
  };
}

const share = (value: number) => `${short(100 * value)} %`;

const tensorOf = (sample: ObservedSample, name: string) =>
  sample.tensors.find((tensor) => tensor.name === name);
const layerOf = (sample: ObservedSample, name: string) =>
  sample.layers.find(({ layer }) => layer === name);

function overSteps(
  label: string,
  color: number,
  samples: readonly ObservedSample[],
  value: (sample: ObservedSample) => number | null | undefined,
): Curve {
  const known = samples.filter((sample) => value(sample) != null);
  return {
    ...{ label, color },
    x: known.map(({ step }) => step),
    y: known.map((sample) => value(sample)!),
  };
}

function histogramsOf(
  samples: readonly ObservedSample[],
  what: What,
  which: string,
): HistogramsAt[] {
  return samples.flatMap((sample) => {
    const found =
      what === 'activations' ? layerOf(sample, which)?.values : tensorOf(sample, which)?.[what];
    return found ? [{ step: sample.step, ...found }] : [];
  });
}

function labelOf(what: What, which: string, shown: readonly HistogramsAt[]): string {
  const { step, low, high, counts } = shown.at(-1)!;
  const values = counts.reduce((sum, n) => sum + n, 0);
  const name = WHATS.find(([value]) => value === what)![1].toLowerCase();
  return `${name} of ${which} in ${shown.length} samples; at step ${step} ${values} values from ${short(low)} to ${short(high)}`;
}

const verdictOf = (ratio: number | null) =>
  ratio === null
    ? '–'
    : ratio < BAND.low
      ? 'below the band'
      : ratio > BAND.high
        ? 'above the band'
        : 'within the band';

/** What the curves end in, for whoever reads rather than looks. */
function summaryOf({ step, tensors, layers }: ObservedSample): HTMLElement {
  const row = (...cells: string[]) =>
    h('tr', {}, ...cells.map((text, i) => h('td', { class: i === 0 ? '' : 'number' }, text)));
  const numeric = ['', 'number', 'number', 'number'];
  return h(
    'div',
    {},
    h('p', { class: 'muted' }, `At step ${count(step)}.`),
    tableElement(
      'Tensors of the last sample',
      ['Tensor', 'Gradient norm', 'Update over weights', '0.1 % to 1 %', 'Never a gradient'],
      tensors.map((tensor) =>
        row(
          tensor.name,
          short(tensor.gradientNorm),
          tensor.updateRatio === null ? '–' : share(tensor.updateRatio),
          verdictOf(tensor.updateRatio),
          percent(tensor.never / tensor.elements),
        ),
      ),
      [...numeric, 'number'],
    ),
    layers.length > 0 &&
      tableElement(
        'Layers of the last sample',
        ['Layer', 'Activation', 'Saturated values', 'Dead units'],
        layers.map((layer) =>
          row(layer.layer, layer.activation ?? '–', percent(layer.saturated), percent(layer.dead)),
        ),
        numeric,
      ),
  );
}
