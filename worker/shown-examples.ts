import { answerLines, captionOf } from '../shared/answer-lines.ts';
import type { ShownExamples } from '../shared/asides.ts';
import { toldView } from '../shared/example-view.ts';
import { answersOfEach, measuredExamples } from './answers.ts';
import type { PreparedData } from './data/examples.ts';
import { viewerFor } from './data/views.ts';
import type { Experiment } from './experiment.ts';
import type { Model } from './model.ts';
import type { ShownText } from './shown-text.ts';

/**
 * A few examples of the validation part, always the same, with what the model says of them. The first one of a language
 * model is a text that it continues.
 * @param model holds the parameters that are asked.
 * @param examplesMax 0: none.
 */
export async function shownExamples(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  examplesMax: number,
  text?: ShownText,
): Promise<ShownExamples> {
  if (examplesMax === 0) return [];
  const written = (await text?.card()) ?? [];
  const examples = await answeredExamples(model, experiment, prepared, examplesMax);
  return [...written, ...examples].slice(0, examplesMax);
}

async function answeredExamples(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  examplesMax: number,
): Promise<ShownExamples> {
  const options = { part: 'validation', examplesMax } as const;
  if (experiment.objective) return measuredCards(model, prepared, options);
  const { each, rows } = await answersOfEach(model, experiment, prepared, options);
  const all = each.map(({ output, answers }) => ({
    name: output.name,
    // A sequence has many answers: the first one stands for it.
    lines: answerLines(answers, rows, output, numberText).filter(
      ({ index }) => index % answers.perExample === 0,
    ),
  }));
  const show = await viewerFor(prepared, 'validation', [...rows]);
  return Array.from(rows, (row, i) => ({
    shown: toldView(show(row)),
    caption: all
      .flatMap(({ name, lines }) => {
        const [answer = '', ...more] = captionOf(lines[i]!, numberText);
        return name === '' ? [answer, ...more] : [`${name} ${answer}`];
      })
      .slice(0, CAPTION_LINES)
      .map((text) => text.slice(0, 500)),
    wrong: all.some(({ lines }) => lines[i]!.wrong),
  }));
}

/** With an objective there is no answer to compare: the loss of each example is told. */
async function measuredCards(
  model: Model,
  prepared: PreparedData,
  options: { readonly part: 'validation'; readonly examplesMax: number },
): Promise<ShownExamples> {
  const measured = await measuredExamples(model, prepared, options);
  const rows = measured.map(({ row }) => row);
  const show = await viewerFor(prepared, 'validation', rows);
  return measured.map(({ row, loss, error }) => ({
    shown: toldView(show(row)),
    caption: [
      `loss ${numberText(loss)}`,
      ...(error === loss ? [] : [`error ${numberText(error)}`]),
    ],
    wrong: false,
  }));
}

/** Lines below an example. */
const CAPTION_LINES = 6;

const numberText = (value: number | undefined) =>
  value === undefined || !Number.isFinite(value) ? '–' : String(Number(value.toPrecision(3)));
