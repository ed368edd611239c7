import { createHash } from 'node:crypto';
import { DownpourError } from '../../shared/errors.ts';
import { filePieces } from '../data/files.ts';
import { ReadProgress } from '../data/sources/read-progress.ts';
import { BinaryVectors } from './vector-binary.ts';
import { JsonVectors } from './vector-json.ts';
import {
  damaged,
  type ParserOptions,
  type VectorBatch,
  type VectorParser,
} from './vector-parser.ts';
import { TextVectors } from './vector-text.ts';

/**
 * Files of word vectors, read once from the beginning to the end in pieces, so that a file of any size takes a few MB. The
 * end of the name says the format, with or without `.gz`.
 */

/** Ends of names, and what such files are. */
export const VECTOR_ENDINGS = ['.txt', '.vec', '.bin', '.json'] as const;

export interface ReadVectorOptions extends Omit<ParserOptions, 'path'> {
  /** Hash that the file must have; null or absent: any. */
  readonly sha256?: string | null | undefined;
  readonly log?: ((line: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What was read. */
export interface VectorFacts {
  /** Numbers of a vector. */
  readonly width: number;
  /** Words of the file. */
  readonly words: number;
  /** The hash of the file as it lies on the disk. */
  readonly sha256: string;
}

/**
 * @param path with one of `VECTOR_ENDINGS`: `.bin` is word2vec's binary format, `.json` that of the npm packages
 *   `wink-embeddings-*`, all others are text of word2vec, GloVe or fastText.
 * @param take is given the vectors of wanted words. They are its own. The next ones are read when it has resolved.
 * @throws DownpourError DP_DATA_MISSING; DP_DATA_CORRUPT with the place; DP_DATA_MISMATCH: the file has another hash;
 *   DP_USAGE: the end of its name is unknown. @throws what `signal` was aborted with.
 */
export async function readWordVectors(
  path: string,
  take: (batch: VectorBatch) => void | Promise<void>,
  { wants, ranksMax, sha256 = null, log, signal }: ReadVectorOptions = {},
): Promise<VectorFacts> {
  const parser = parserOf({ path, wants, ranksMax });
  const hash = createHash('sha256');
  const progress = new ReadProgress(log, path, 'words', null);
  for await (const piece of filePieces(path, { raw: (bytes) => hash.update(bytes) })) {
    signal?.throwIfAborted();
    const batch = parser.feed(piece);
    if (batch.words.length > 0) await take(batch);
    progress.tell(parser.count);
  }
  const last = parser.end();
  if (last.words.length > 0) await take(last);
  const { width, count: words } = parser;
  if (words === 0) throw damaged(path, 'it has no words');
  const seen = hash.digest('hex');
  if (sha256 !== null && sha256 !== seen) throw otherHash(path, seen, sha256);
  return { width, words, sha256: seen };
}

function parserOf(options: ParserOptions): VectorParser {
  const name = options.path.toLowerCase().replace(/\.gz$/, '');
  const ending = VECTOR_ENDINGS.find((each) => name.endsWith(each));
  if (ending === '.bin') return new BinaryVectors(options);
  if (ending === '.json') return new JsonVectors(options);
  if (ending) return new TextVectors(options);
  throw new DownpourError(
    'DP_USAGE',
    `${options.path} is no known file of word vectors; allowed ends of its name: ${VECTOR_ENDINGS.join(', ')}, each also with .gz`,
  );
}

function otherHash(path: string, seen: string, wanted: string): DownpourError {
  const isHash = /^[0-9a-f]{64}$/.test(wanted);
  return new DownpourError(
    isHash ? 'DP_DATA_MISMATCH' : 'DP_EXPERIMENT_INVALID',
    isHash
      ? `${path} has the SHA-256 ${seen}, and ${wanted} is expected: use that file, or write the new hash into the experiment and start a new run`
      : `the hash of the word vectors is ${JSON.stringify(wanted.slice(0, 80))}; allowed: 64 digits and letters from a to f. If ${path} is the file that you mean, write sha256: '${seen}'`,
  );
}
