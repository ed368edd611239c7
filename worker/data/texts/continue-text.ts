import { type Random, random, STREAMS } from '../../../shared/random.ts';
import type { TextReading } from '../../../shared/reading.ts';
import { nextTurn } from '../../turn.ts';
import type { Tokenizer } from './vocabulary.ts';

/** Texts of a language model, token by token. */

export interface DrawOptions {
  /** What logits are divided by. Below 1 the likely tokens become more likely; 0: the likeliest one always. */
  readonly temperature: number;
  /** Only so many of the likeliest tokens may be drawn; null: all. */
  readonly top: number | null;
}

export interface ContinueOptions extends DrawOptions {
  readonly prompt: string;
  /** Tokens to write. */
  readonly length: number;
  readonly seed: number;
  readonly signal: AbortSignal;
}

export interface LanguageModel {
  readonly reading: TextReading;
  readonly tokenizer: Tokenizer;
  /**
   * @param tokens at most as many as a window has, at least one
   * @returns logits of the token that follows them, one for each kind of token
   */
  next(tokens: Int32Array): Promise<Float32Array>;
}

interface TokenOutput {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/**
 * A model of windows as one that continues texts.
 * @param outputs of one window of token numbers, shape [1, length]
 * @param refuse the error if these outputs are not logits, shape [1, length, size]
 */
export function languageModel(
  reading: TextReading,
  tokenizer: Tokenizer,
  outputs: (window: Float32Array) => Promise<readonly TokenOutput[]>,
  refuse: (told: readonly TokenOutput[]) => Error,
): LanguageModel {
  const { length, size } = reading;
  return {
    ...{ reading, tokenizer },
    async next(tokens) {
      // What follows the tokens does not change what a model says of them, if it reads from left to right.
      const window = new Float32Array(length);
      window.set(tokens);
      const told = await outputs(window);
      const [only] = told;
      const isOne = told.length === 1 && String(only!.shape) === String([1, length, size]);
      if (!isOne) throw refuse(told);
      const at = (tokens.length - 1) * size;
      return only!.values.subarray(at, at + size);
    },
  };
}

/** Tokens before the ones that are shown, by which their decoder knows whether a space stands between them. */
const SHOWN_BEFORE = 8;
/** Bytes of one character in UTF-8, less one, that are waited for. */
const WAITING_MAX = 3;
const BROKEN = '\ufffd';

/**
 * Continues a prompt. Each token is drawn from what the model says of those before it, as many as a window has.
 * @yields pieces of the text, without the prompt
 */
export async function* continueText(
  model: LanguageModel,
  { prompt, length, seed, signal, ...how }: ContinueOptions,
): AsyncGenerator<string, void> {
  const { reading, tokenizer } = model;
  const draw = random(seed, STREAMS.minibatch);
  const banned = unspeakable(reading);
  const given = [...tokenizer.encode(prompt)];
  const tokens = given.length > 0 ? given : [firstToken(model)];
  let shown = tokens.length;
  for (let i = 0; i < length; i++) {
    // An engine may answer without waiting for anything; then nobody else, such as Ctrl-C, would have a turn.
    await nextTurn();
    if (signal.aborted) return;
    const window = Int32Array.from(tokens.slice(-reading.length));
    tokens.push(drawToken(await model.next(window), { ...how, banned }, draw));
    const from = Math.max(given.length > 0 ? 0 : 1, shown - SHOWN_BEFORE);
    const before = tokenizer.decode!(tokens.slice(from, shown));
    const after = tokenizer.decode!(tokens.slice(from));
    // The bytes of a character may be several tokens.
    const isHalf = after.endsWith(BROKEN) && tokens.length - shown <= WAITING_MAX;
    if (isHalf && i + 1 < length) continue;
    shown = tokens.length;
    const piece = after.startsWith(before) ? after.slice(before.length) : after;
    if (piece !== '') yield piece;
  }
}

/** How many tokens, from 0 on, have no text: padding, and what a vocabulary does not have. */
function unspeakable({ tokens, unknown = 0 }: TextReading): number {
  if (tokens === 'bytes') return 0;
  return unknown + 1;
}

/** What stands before a text that begins with nothing: a line break, if the model knows one. */
function firstToken({ tokenizer, reading }: LanguageModel): number {
  const first = unspeakable(reading);
  const known = [...tokenizer.encode('\n'), ...tokenizer.encode('.')];
  return known.find((token) => token >= first) ?? Math.min(first, reading.size - 1);
}

/**
 * One of the tokens by the softmax of logits / temperature.
 * @param banned tokens below this are never drawn
 */
export function drawToken(
  logits: Float32Array,
  { temperature, top, banned }: DrawOptions & { readonly banned: number },
  draw: Random,
): number {
  const allowed = Array.from({ length: logits.length - banned }, (_, i) => banned + i);
  // Equal ones in the order of their numbers, so that the same seed draws the same.
  const ranked =
    top === null && temperature > 0
      ? allowed
      : allowed.sort((a, b) => logits[b]! - logits[a]! || a - b).slice(0, top ?? 1);
  if (temperature === 0) return ranked[0]!;
  let most = Number.NEGATIVE_INFINITY;
  for (const token of ranked) most = Math.max(most, logits[token]!);
  const weights = ranked.map((token) => Math.exp((logits[token]! - most) / temperature));
  const sum = weights.reduce((a, b) => a + b, 0);
  let rest = draw.uniform() * sum;
  for (const [i, weight] of weights.entries()) {
    rest -= weight;
    if (rest < 0) return ranked[i]!;
  }
  return ranked.at(-1)!;
}
