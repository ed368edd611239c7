/**
 * What word vectors have learnt: neighbours, analogies, and similarities beside those that people see. All by the cosine of
 * vectors, as gensim computes them.
 */

export interface Neighbour {
  readonly word: string;
  /** From −1 to 1. */
  readonly cosine: number;
}

/** a is to b as c is to d, of one section of a list of questions. */
export interface AnalogyQuestion {
  readonly section: string;
  readonly words: readonly [a: string, b: string, c: string, d: string];
}

export interface AnalogySection {
  readonly section: string;
  readonly asked: number;
  readonly correct: number;
}

export interface AnalogyResult {
  readonly sections: readonly AnalogySection[];
  /** Questions of which all four words have a vector. */
  readonly asked: number;
  readonly correct: number;
  /** Questions with a word that has none. */
  readonly unknown: number;
}

/** Two words and how alike people find them. */
export interface WordPair {
  readonly words: readonly [string, string];
  readonly score: number;
}

export interface SimilarityResult {
  /** Spearman's rank correlation; NaN: fewer than three pairs, or all scores are equal. */
  readonly spearman: number;
  readonly pairs: number;
  /** Pairs with a word that has no vector. */
  readonly unknown: number;
}

/** Questions answered in one pass over the vectors, which then need not come from memory for each. */
const TOGETHER = 16;

export class WordSpace {
  readonly words: readonly string[];
  readonly width: number;
  /** Unit vectors, shape [words, width]; those of length 0 stay zeros. */
  readonly #units: Float32Array;
  readonly #places = new Map<string, number>();

  /** @param values shape [words, width]; they are not changed. */
  constructor(words: readonly string[], values: Float32Array, width: number) {
    this.words = words;
    this.width = width;
    this.#units = values.slice();
    for (const [i, word] of words.entries()) {
      if (!this.#places.has(word)) this.#places.set(word, i);
      normalise(this.#units.subarray(i * width, (i + 1) * width));
    }
  }

  has(word: string): boolean {
    return this.#places.has(word);
  }

  /** @returns null: one of the words has no vector. */
  cosine(a: string, b: string): number | null {
    const [i, j] = [this.#places.get(a), this.#places.get(b)];
    if (i === undefined || j === undefined) return null;
    return this.#dot(i * this.width, this.#units.subarray(j * this.width, (j + 1) * this.width));
  }

  /** The words nearest to a word, without itself, the nearest first. @returns null: it has no vector. */
  near(word: string, count: number): readonly Neighbour[] | null {
    const place = this.#places.get(word);
    if (place === undefined) return null;
    const own = this.#units.subarray(place * this.width, (place + 1) * this.width);
    return this.words
      .map((other, i) => ({ word: other, cosine: this.#dot(i * this.width, own) }))
      .filter((_, i) => i !== place)
      .sort((a, b) => b.cosine - a.cosine)
      .slice(0, count);
  }

  /**
   * Answers each question by the word nearest to b − a + c, the three words themselves left out (3CosAdd). A question with a
   * word that has no vector is not asked.
   */
  analogies(questions: readonly AnalogyQuestion[]): AnalogyResult {
    const known: { question: AnalogyQuestion; places: readonly number[] }[] = [];
    for (const question of questions) {
      const places = question.words.map((word) => this.#places.get(word) ?? -1);
      if (!places.includes(-1)) known.push({ question, places });
    }
    const sections = new Map<string, { asked: number; correct: number }>();
    for (const { section } of questions) sections.set(section, { asked: 0, correct: 0 });
    for (let from = 0; from < known.length; from += TOGETHER) {
      const some = known.slice(from, from + TOGETHER);
      const answers = this.#answers(some.map(({ places }) => places));
      for (const [i, { question, places }] of some.entries()) {
        const own = sections.get(question.section)!;
        own.asked++;
        if (answers[i] === places[3]) own.correct++;
      }
    }
    const each = [...sections].map(([section, counts]) => ({ section, ...counts }));
    return {
      sections: each,
      asked: known.length,
      correct: each.reduce((sum, { correct }) => sum + correct, 0),
      unknown: questions.length - known.length,
    };
  }

  /** The place of the answer to each question. @param places of a, b and c. */
  #answers(places: readonly (readonly number[])[]): readonly number[] {
    const { width } = this;
    const targets = places.map(([a, b, c]) => {
      const target = new Float32Array(width);
      for (let k = 0; k < width; k++) {
        target[k] =
          this.#units[b! * width + k]! -
          this.#units[a! * width + k]! +
          this.#units[c! * width + k]!;
      }
      return target;
    });
    const best = places.map(() => -Infinity);
    const answers = places.map(() => -1);
    for (let i = 0; i < this.words.length; i++) {
      for (const [q, target] of targets.entries()) {
        const cosine = this.#dot(i * width, target);
        if (cosine <= best[q]!) continue;
        const [a, b, c] = places[q]!;
        if (i === a || i === b || i === c) continue;
        best[q] = cosine;
        answers[q] = i;
      }
    }
    return answers;
  }

  similarity(pairs: readonly WordPair[]): SimilarityResult {
    const own: number[] = [];
    const theirs: number[] = [];
    for (const { words, score } of pairs) {
      const cosine = this.cosine(...words);
      if (cosine === null) continue;
      own.push(cosine);
      theirs.push(score);
    }
    return {
      spearman: correlation(ranksOf(own), ranksOf(theirs)),
      ...{ pairs: own.length, unknown: pairs.length - own.length },
    };
  }

  /** @param start of a row. */
  #dot(start: number, vector: Float32Array): number {
    let sum = 0;
    for (let k = 0; k < vector.length; k++) sum += this.#units[start + k]! * vector[k]!;
    return sum;
  }
}

function normalise(vector: Float32Array): void {
  let squares = 0;
  for (const x of vector) squares += x * x;
  if (squares === 0) return;
  const factor = 1 / Math.sqrt(squares);
  for (let i = 0; i < vector.length; i++) vector[i] = vector[i]! * factor;
}

/** From 1; equal values share the mean of their ranks. */
function ranksOf(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => values[a]! - values[b]!);
  const ranks = new Array<number>(values.length);
  for (let from = 0; from < order.length; ) {
    let to = from;
    while (to + 1 < order.length && values[order[to + 1]!] === values[order[from]!]) to++;
    for (let i = from; i <= to; i++) ranks[order[i]!] = 1 + (from + to) / 2;
    from = to + 1;
  }
  return ranks;
}

/** Pearson's. */
function correlation(a: readonly number[], b: readonly number[]): number {
  if (a.length < 3) return Number.NaN;
  const mean = (values: readonly number[]) => values.reduce((sum, x) => sum + x, 0) / values.length;
  const [meanA, meanB] = [mean(a), mean(b)];
  let [ab, aa, bb] = [0, 0, 0];
  for (const [i, x] of a.entries()) {
    ab += (x - meanA) * (b[i]! - meanB);
    aa += (x - meanA) ** 2;
    bb += (b[i]! - meanB) ** 2;
  }
  return aa * bb === 0 ? Number.NaN : ab / Math.sqrt(aa * bb);
}

/**
 * Questions of the format of `questions-words.txt`: `: name of a section`, and lines of four words. In lower case.
 * @returns the number of a line that is neither, from 1: it is refused.
 */
export function parseAnalogies(
  text: string,
): readonly AnalogyQuestion[] | { readonly line: number } {
  const questions: AnalogyQuestion[] = [];
  let section = '';
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '') continue;
    if (line.startsWith(':')) {
      section = line.slice(1).trim();
      continue;
    }
    const words = line.trim().toLowerCase().split(/\s+/);
    if (words.length !== 4) return { line: i + 1 };
    questions.push({ section, words: words as unknown as AnalogyQuestion['words'] });
  }
  return questions;
}

/**
 * Pairs of the format of `wordsim353.tsv`: two words and a number with tabs between; `#` begins a comment. In lower case.
 * @returns the number of a line that is neither, from 1.
 */
export function parsePairs(text: string): readonly WordPair[] | { readonly line: number } {
  const pairs: WordPair[] = [];
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [a = '', b = '', told = ''] = line.toLowerCase().split('\t');
    const score = Number(told);
    if (a === '' || b === '' || told.trim() === '' || !Number.isFinite(score))
      return { line: i + 1 };
    pairs.push({ words: [a, b], score });
  }
  return pairs;
}
