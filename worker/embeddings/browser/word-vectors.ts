import { DownpourError } from '../../../shared/errors.ts';

/** In the place of `../word-vectors.ts` in a page: the file lies on the machine of the experiment. */

type Original = typeof import('../word-vectors.ts');

export const VECTOR_ENDINGS = [] as unknown as Original['VECTOR_ENDINGS'];

/** @throws DownpourError DP_EXPERIMENT_INVALID always. */
export const readWordVectors: Original['readWordVectors'] = async () => {
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    'a table of the experiment begins with the word vectors of a file, which a page does not have: train it by workers of downpour work',
  );
};
