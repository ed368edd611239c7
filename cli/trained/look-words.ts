import type { Answers } from '../../shared/answers.ts';
import { DownpourError } from '../../shared/errors.ts';
import { nearest } from '../../shared/spelling.ts';
import { type LookedWords, type WordLoss, wordLosses } from '../../study/look-words.ts';
import { WordSpace } from '../../study/word-vectors.ts';
import { vocabularyOf } from '../../worker/data/columns.ts';
import { exampleWords, modelWords } from '../../worker/words.ts';
import type { TrainedModel, TrainedOptions } from './trained.ts';

/** The words of a run for `downpour look`: of inputs whose ids have a vocabulary. */

export interface WordOptions extends TrainedOptions {
  readonly part: 'train' | 'validation';
  /** Words whose neighbours are wanted. */
  readonly near?: readonly string[];
}

/** @param rows of the part: the examples that the answers are of. @throws DownpourError DP_USAGE: `--near` is no word. */
export async function wordsOfAnswers(
  trained: TrainedModel,
  options: WordOptions,
  answers: Answers,
  rows: Int32Array,
): Promise<LookedWords> {
  const { inputs } = trained.prepared.train;
  const texts = vocabularyOf(inputs);
  const isNext = inputs.reading?.kind === 'text' && inputs.reading.as === 'next';
  const { losses, truths, perExample } = answers;
  if (isNext && texts && answers.kind === 'classes') {
    const words = wordLosses(texts, losses, (i) => [truths[i]!]);
    return lookedWords(trained, options, words, 'predictions of the word');
  }
  const ofExamples = Array.from({ length: rows.length }, (_, row) => {
    let sum = 0;
    for (let i = 0; i < perExample; i++) sum += losses[row * perExample + i]!;
    return sum / perExample;
  });
  return wordsOfExamples(trained, options, ofExamples, rows);
}

/** @param losses one for each of the rows. @throws as `wordsOfAnswers`. */
export async function wordsOfExamples(
  trained: TrainedModel,
  options: WordOptions,
  losses: readonly number[],
  rows: Int32Array,
): Promise<LookedWords> {
  const found = await exampleWords(trained.prepared[options.part], rows);
  const words = found && wordLosses(found.texts, losses, found.idsOf);
  return lookedWords(trained, options, words, 'examples with the word');
}

async function lookedWords(
  { model, prepared, rows, experiment, facts }: TrainedModel,
  { near = [] }: WordOptions,
  losses: readonly WordLoss[] | null,
  lossesOf: string,
): Promise<LookedWords> {
  const given = Object.entries(experiment.tables ?? {}).flatMap(([name, { pretrained }]) =>
    Array.isArray(pretrained?.words) ? [[name, pretrained.words as readonly string[]]] : [],
  );
  const all = await modelWords(model, prepared, rows, Object.fromEntries(given));
  const spaces = Object.fromEntries(
    all.map(({ name, words, values, width }) => [name, new WordSpace(words, values, width)]),
  );
  for (const word of near) {
    if (Object.values(spaces).some((space) => space.has(word))) continue;
    const known = Object.values(spaces).flatMap(({ words }) => words);
    const like = nearest(word, known);
    throw new DownpourError(
      'DP_USAGE',
      known.length === 0
        ? `--near is '${word}', but run ${facts.run} has no table and no embedding whose ids have a vocabulary: leave the option out`
        : `--near is '${word}', which is none of the ${known.length} words of run ${facts.run}; ${like ? `did you mean '${like}'?` : 'is it written as in the data?'}`,
    );
  }
  return { losses, lossesOf, spaces, asked: near };
}
