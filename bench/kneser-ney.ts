/** The language models of counts that the LSTM of examples/words.ts is compared with. */

/** The probability of tokens[at] after the tokens before it. Only those that `order` allows are looked at. */
export type NextToken = (tokens: ArrayLike<number>, at: number) => number;

/**
 * Interpolated Kneser-Ney smoothing (Chen and Goodman 1999) with one discount for each order. Order 1 is the frequency of words, 2 a bigram, 3 a trigram.
 * @param tokens to learn from, from 0, below `kinds`
 */
export function kneserNey(tokens: ArrayLike<number>, kinds: number, order: 1 | 2 | 3): NextToken {
  const levels = Array.from({ length: order }, (_, i) => levelOf(tokens, kinds, i + 1, order));
  return (given, at) => {
    let probability = 1 / kinds;
    for (const [i, { counts, contexts, discount }] of levels.entries()) {
      if (at < i) break;
      const key = keyOf(given, at, i + 1, kinds);
      const context = contexts.get(Math.floor(key / kinds));
      if (context === undefined) break;
      const kept = Math.max((counts.get(key) ?? 0) - discount, 0);
      probability = (kept + discount * context.followers * probability) / context.total;
    }
    return probability;
  };
}

/** e to the mean of −log p over the tokens from the third on, so that all orders are asked the same. */
export function perplexityOf(next: NextToken, tokens: ArrayLike<number>): number {
  let sum = 0;
  for (let at = 2; at < tokens.length; at++) sum -= Math.log(next(tokens, at));
  return Math.exp(sum / (tokens.length - 2));
}

/** The `length` tokens that end at `at`, as one whole number. */
function keyOf(tokens: ArrayLike<number>, at: number, length: number, kinds: number): number {
  let key = 0;
  for (let i = at - length + 1; i <= at; i++) key = key * kinds + tokens[i]!;
  return key;
}

function countsOf(tokens: ArrayLike<number>, kinds: number, length: number): Map<number, number> {
  const counts = new Map<number, number>();
  for (let at = length - 1; at < tokens.length; at++) {
    const key = keyOf(tokens, at, length, kinds);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

/** A row of tokens below the highest order counts by how many different tokens come before it. */
function levelOf(tokens: ArrayLike<number>, kinds: number, length: number, order: number) {
  let counts = countsOf(tokens, kinds, length);
  if (length < order) {
    const before = new Map<number, number>();
    for (const key of countsOf(tokens, kinds, length + 1).keys()) {
      const rest = key % kinds ** length;
      before.set(rest, (before.get(rest) ?? 0) + 1);
    }
    counts = before;
  }
  const contexts = new Map<number, { total: number; followers: number }>();
  let [once, twice] = [0, 0];
  for (const [key, count] of counts) {
    const at = Math.floor(key / kinds);
    const context = contexts.get(at) ?? { total: 0, followers: 0 };
    contexts.set(at, { total: context.total + count, followers: context.followers + 1 });
    if (count === 1) once++;
    if (count === 2) twice++;
  }
  // Without a token that comes once or twice, half a count is as good as any.
  const discount = once + twice > 0 ? once / (once + 2 * twice) : 0.5;
  return { counts, contexts, discount };
}
