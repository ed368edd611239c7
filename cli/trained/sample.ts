import { DownpourError } from '../../shared/errors.ts';
import type { TextReading } from '../../shared/reading.ts';
import {
  continueText,
  type LanguageModel,
  languageModel,
} from '../../worker/data/texts/continue-text.ts';
import { tokenizerOf } from '../../worker/data/texts/vocabulary.ts';
import { EXIT, print, printJson, tell, untilInterrupted } from '../options.ts';
import { openPredictor, type Predictor, type PredictorOptions } from './predictor.ts';

/** `downpour sample <run>`: writes a text by a language model. */

export interface SampleOptions extends PredictorOptions {
  readonly prompt: string;
  readonly length: number;
  readonly temperature: number;
  readonly top?: number;
  readonly seed?: number;
  readonly json?: boolean;
}

export async function sampleCommand(what: string, options: SampleOptions): Promise<void> {
  const predictor = await openPredictor(what, options);
  // Before, Ctrl-C ends it at once.
  const interruption = untilInterrupted();
  try {
    const model = languageModelOf(predictor);
    const { prompt, length, temperature, top = null } = options;
    const seed = options.seed ?? Math.floor(Math.random() * 2 ** 31);
    tellUnknown(model, prompt);
    if (!options.json) {
      if (options.seed === undefined)
        tell(`seed ${seed}; --seed ${seed} writes the same text again`);
      process.stdout.write(prompt);
    }
    let text = '';
    const { signal } = interruption;
    for await (const piece of continueText(model, {
      ...{ prompt, length, temperature, top, seed, signal },
    })) {
      text += piece;
      if (!options.json) process.stdout.write(piece);
    }
    if (options.json) {
      const { run, step } = predictor.facts;
      printJson({ run, step, seed, prompt, text });
    } else print();
    if (signal.aborted) process.exitCode = EXIT.interrupted;
  } finally {
    predictor.close();
    interruption.dispose();
  }
}

/** @throws DownpourError DP_USAGE: the run is no language model, or keeps too little to write a text. */
function languageModelOf({ facts, reading, outputs, tokenizer }: Predictor): LanguageModel {
  const { run } = facts;
  const refused = (why: string) => new DownpourError('DP_USAGE', `run ${run} ${why}`);
  if (reading?.kind === 'text' && reading.as === 'padded') {
    throw refused('classifies whole texts, and does not continue them: use `downpour predict`');
  }
  if (reading?.kind !== 'text') {
    throw refused(
      'is no language model of texts: its inputs do not come from `textWindows`, or from one with a tokenizer function, of which a run keeps nothing (use tokenizerFile)',
    );
  }
  const own = tokenizer ?? tokenizerOf(reading)!;
  return languageModel(reading, own, outputs, (told) => refused(notLogits(told, reading)));
}

const notLogits = (
  told: readonly { readonly shape: readonly number[] }[],
  { length, size }: TextReading,
) =>
  `gives outputs of shape ${told.map(({ shape }) => `[${shape}]`).join(' and ')}; a language model gives [1,${length},${size}], one logit for each token at each place`;

/** Words of the prompt that the model has never seen. */
function tellUnknown({ tokenizer, reading }: LanguageModel, prompt: string): void {
  const { unknown } = reading;
  if (unknown === undefined) return;
  const tokens = [...tokenizer.encode(prompt)];
  const count = tokens.filter((token) => token === unknown).length;
  if (count === 0) return;
  tell(
    `${count} of the ${tokens.length} tokens of the prompt are not in the vocabulary of the run`,
  );
}
