import { DownpourError } from '../../shared/errors.ts';

/** In the place of `../text.ts` in a page: vocabularies, and readers of files that say that a page has none. */

export { buildVocabulary, Vocabulary } from '../data/texts/vocabulary.ts';

type Original = typeof import('../text.ts');

const noFiles = (name: string) => (): never => {
  throw new DownpourError(
    'DP_DATA_MISSING',
    `${name} reads files, and a page has none: call it in data() alone`,
  );
};
export const textWindows: Original['textWindows'] = noFiles('textWindows');
export const loadTextFolder: Original['loadTextFolder'] = noFiles('loadTextFolder');
export const loadTextTable: Original['loadTextTable'] = noFiles('loadTextTable');
export const tokenizerFile: Original['tokenizerFile'] = noFiles('tokenizerFile');
