import type { ShownExamples } from '../shared/asides.ts';
import type { PreparedData } from './data/examples.ts';
import { collect } from './data/stored.ts';
import { continueText, type LanguageModel, languageModel } from './data/texts/continue-text.ts';
import { tokenizerLike } from './data/texts/tokenizer-file.ts';
import { tokenizerOf } from './data/texts/vocabulary.ts';
import type { Model } from './model.ts';

/** Share of the time of a training that texts may take; the first one takes `FIRST_MS`. */
const TIME_SHARE = 0.02;
const FIRST_MS = 300;
const MOST_MS = 1_000;
/** A text of less time says little. */
const LEAST_MS = 100;
const TOKENS_MAX = 200;
/** Tokens of the validation part that the text begins with. */
const PROMPT_TOKENS_MAX = 32;
const TEMPERATURE = 0.8;

/**
 * What a language model writes while it trains: the beginning of the validation part, and how the model continues it. A text
 * takes time from the training, so it is as long as a small share of this time allows.
 */
export class ShownText {
  readonly #model: Model;
  readonly #prepared: PreparedData;
  readonly #now: () => number;
  #writer: Promise<LanguageModel | null> | null = null;
  #last: ShownExamples = [];
  #endedAt: number | null = null;

  /** @param now ms */
  constructor(model: Model, prepared: PreparedData, now = () => performance.now()) {
    this.#model = model;
    this.#prepared = prepared;
    this.#now = now;
  }

  /** @returns one card, the one before if there is no time for another; none: this is no language model of texts. */
  async card(): Promise<ShownExamples> {
    this.#writer ??= this.#open();
    const writer = await this.#writer;
    if (!writer) return [];
    const begun = this.#now();
    const free = this.#endedAt === null ? FIRST_MS : TIME_SHARE * (begun - this.#endedAt);
    if (free < LEAST_MS) return this.#last;
    const ends = begun + Math.min(free, MOST_MS);
    const prompt = await this.#prompt(writer);
    const stopping = new AbortController();
    let text = '';
    const options = { prompt, length: TOKENS_MAX, temperature: TEMPERATURE, top: null, seed: 1 };
    for await (const piece of continueText(writer, { ...options, signal: stopping.signal })) {
      text += piece;
      if (this.#now() > ends) stopping.abort();
    }
    this.#endedAt = this.#now();
    const shown = { kind: 'text', text: prompt.slice(-TEXT_MAX) } as const;
    this.#last = [{ shown, caption: [`continued: ${text}`.slice(0, TEXT_MAX)], wrong: false }];
    return this.#last;
  }

  async #open(): Promise<LanguageModel | null> {
    const { reading } = this.#prepared.train.inputs;
    if (reading?.kind !== 'text' || reading.as === 'padded' || !this.#model.predicts) return null;
    const tokenizer = tokenizerOf(reading) ?? (await tokenizerLike(reading));
    const outputs = (window: Float32Array) =>
      this.#model.outputs({
        ...{ inputs: window, inputShape: [reading.length] },
        ...{ targets: new Int32Array(reading.length), targetShape: [reading.length] },
      });
    const writer = languageModel(reading, tokenizer, outputs, () => new NotLogits());
    try {
      await writer.next(Int32Array.of(0));
      return writer;
    } catch (error) {
      if (error instanceof NotLogits) return null;
      throw error;
    }
  }

  /** The first half of a window, so that the model has something to go on. */
  async #prompt({ reading, tokenizer }: LanguageModel): Promise<string> {
    const { inputs } = await collect(this.#prepared, 'validation', [0]);
    const count = Math.max(1, Math.min(PROMPT_TOKENS_MAX, Math.floor(reading.length / 2)));
    return tokenizer.decode!(Int32Array.from(inputs.subarray(0, count)));
  }
}

const TEXT_MAX = 500;

/** The model says something else of a window than what follows each token. */
class NotLogits extends Error {}
