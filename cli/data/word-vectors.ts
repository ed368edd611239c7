import { DownpourError } from '../../shared/errors.ts';
import {
  type AnalogyResult,
  type Neighbour,
  parseAnalogies,
  parsePairs,
  type SimilarityResult,
  WordSpace,
} from '../../study/word-vectors.ts';
import { readDataFile } from '../../worker/data/files.ts';
import { readWordVectors, type VectorFacts } from '../../worker/embeddings/word-vectors.ts';
import { print, printJson, tell } from '../options.ts';

/** `downpour data vectors`: what the vectors of a file have learnt. */

export interface VectorsOptions {
  readonly top: number;
  readonly near?: string[];
  readonly neighbours: number;
  readonly analogies?: string;
  readonly similarity?: string;
  readonly json?: boolean;
}

interface VectorsReport extends VectorFacts {
  /** Words that were looked at: the most frequent ones. */
  readonly taken: number;
  readonly near: Readonly<Record<string, readonly Neighbour[]>>;
  readonly analogies: AnalogyResult | null;
  readonly similarity: SimilarityResult | null;
}

export async function vectorsCommand(path: string, options: VectorsOptions): Promise<void> {
  const report = await vectorsReport(path, options);
  if (options.json) printJson(report);
  else for (const line of vectorsText(report, path)) print(line);
}

/** @throws DownpourError as of `readWordVectors`; DP_USAGE: a word has no vector; DP_DATA_CORRUPT: a list of questions. */
async function vectorsReport(path: string, options: VectorsOptions): Promise<VectorsReport> {
  const { top, near = [], neighbours, analogies, similarity } = options;
  const questions =
    analogies === undefined ? null : await parsed(analogies, parseAnalogies, QUESTION);
  const pairs = similarity === undefined ? null : await parsed(similarity, parsePairs, PAIR);
  const { space, facts } = await spaceOf(path, top);
  const found: Record<string, readonly Neighbour[]> = {};
  for (const word of near) {
    const own = space.near(word, neighbours);
    if (own === null) {
      throw new DownpourError(
        'DP_USAGE',
        `--near is '${word}', which is not among the ${space.words.length} most frequent words of ${path}: choose another word, or raise --top`,
      );
    }
    found[word] = own;
  }
  return {
    ...{ ...facts, taken: space.words.length, near: found },
    analogies: questions && space.analogies(questions),
    similarity: pairs && space.similarity(pairs),
  };
}

/** The vectors of the most frequent words. */
async function spaceOf(
  path: string,
  ranksMax: number,
): Promise<{ space: WordSpace; facts: VectorFacts }> {
  const words: string[] = [];
  const ranks: number[] = [];
  const pieces: Float32Array[] = [];
  const facts = await readWordVectors(
    path,
    (batch) => {
      for (const word of batch.words) words.push(word);
      for (const rank of batch.ranks) ranks.push(rank);
      pieces.push(batch.values);
    },
    { ranksMax, log: tell },
  );
  const { width } = facts;
  const values = new Float32Array(words.length * width);
  let at = 0;
  for (const piece of pieces) {
    values.set(piece, at);
    at += piece.length;
  }
  return { space: new WordSpace(words, values, width), facts };
}

const QUESTION = "a line ': name of a section', or four words";
const PAIR = 'two words and a number with tabs between';

async function parsed<T extends readonly unknown[]>(
  path: string,
  parse: (text: string) => T | { readonly line: number },
  allowed: string,
): Promise<T> {
  const list = parse((await readDataFile(path)).toString('utf8'));
  if ('line' in list) {
    throw new DownpourError('DP_DATA_CORRUPT', `${path}, line ${list.line}: allowed is ${allowed}`);
  }
  if (list.length > 0) return list;
  throw new DownpourError('DP_DATA_CORRUPT', `${path} is empty: each line has ${allowed}`);
}

function* vectorsText(report: VectorsReport, path: string): Generator<string> {
  const { words, width, taken, near, analogies, similarity } = report;
  yield `${path}: ${words} words with ${width} numbers each; the ${taken} most frequent are used`;
  for (const [word, neighbours] of Object.entries(near)) {
    const list = neighbours.map((each) => `${each.word} ${each.cosine.toFixed(2)}`);
    yield `near '${word}': ${list.join(', ')}`;
  }
  if (analogies) {
    const { sections, asked, correct, unknown } = analogies;
    for (const each of sections) {
      yield `  ${each.section}: ${share(each.correct, each.asked)} of ${each.asked}`;
    }
    yield `analogies: ${share(correct, asked)} of ${asked} are right; ${unknown} have a word without a vector`;
  }
  if (similarity) {
    const { spearman, pairs, unknown } = similarity;
    yield `similarity: rank correlation ${spearman.toFixed(3)} over ${pairs} pairs; ${unknown} have a word without a vector`;
  }
}

const share = (part: number, all: number) => `${((100 * part) / Math.max(1, all)).toFixed(1)} %`;
