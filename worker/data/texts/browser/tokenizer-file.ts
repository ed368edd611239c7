import { DownpourError } from '../../../../shared/errors.ts';

/** In the place of `../tokenizer-file.ts` in a page, which has no files. */

type Original = typeof import('../tokenizer-file.ts');

/** @throws DownpourError DP_DATA_MISSING */
export const tokenizerLike: Original['tokenizerLike'] = async ({ tokenizer }) => {
  throw new DownpourError('DP_DATA_MISSING', `a page cannot read ${tokenizer!.file}`);
};
