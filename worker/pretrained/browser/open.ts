import { DownpourError } from '../../../shared/errors.ts';

/** In the place of `../open.ts` in a page: the file lies on the machine of the experiment. */

type Original = typeof import('../open.ts');

const refuse = (): never => {
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    'the experiment has pretrained, whose file a page does not have: train it by workers of downpour work',
  );
};

/** @throws DownpourError DP_EXPERIMENT_INVALID always. */
export const openPretrained: Original['openPretrained'] = async () => refuse();
export const openArchitecture: Original['openArchitecture'] = async () => refuse();
export const packArchitecture: Original['packArchitecture'] = refuse;
