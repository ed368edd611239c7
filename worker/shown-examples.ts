import { answerLines, captionOf } from '../shared/answer-lines.ts';
import type { ShownExamples } from '../shared/asides.ts';
import { toldView } from '../shared/example-view.ts';
import { answersOf } from './answers.ts';
import type { PreparedData } from './data/examples.ts';
import { viewerFor } from './data/views.ts';
import type { Experiment } from './experiment.ts';
import type { Model } from './model.ts';

/**
 * A few examples of the validation part, always the same, with what the model says of them.
 * @param model holds the parameters that are asked.
 * @param examplesMax 0: none.
 */
export async function shownExamples(
  model: Model,
  experiment: Experiment,
  prepared: PreparedData,
  examplesMax: number,
): Promise<ShownExamples> {
  if (examplesMax === 0) return [];
  const { answers, rows } = await answersOf(model, experiment, prepared, {
    part: 'validation',
    examplesMax,
  });
  // A sequence has many answers: the first one stands for it.
  const lines = answerLines(answers, rows, prepared, numberText).filter(
    ({ index }) => index % answers.perExample === 0,
  );
  const shown = lines.map(({ row }) => row);
  const show = await viewerFor(prepared, 'validation', shown);
  return lines.map((line) => ({
    shown: toldView(show(line.row)),
    caption: captionOf(line, numberText).map((text) => text.slice(0, 500)),
    wrong: line.wrong,
  }));
}

const numberText = (value: number | undefined) =>
  value === undefined || !Number.isFinite(value) ? '–' : String(Number(value.toPrecision(3)));
