/**
 * Texts for experiments:
 *
 *     import { buildVocabulary, textWindows } from 'downpour/text';
 *
 * docs/data.md describes windows for language models, and docs/text.md all of it.
 */

export type { TextReading } from '../shared/reading.ts';
export {
  type TextWindows,
  type TextWindowsOptions,
  textWindows,
} from './data/sources/text.ts';
export type { TextData, TextExampleOptions } from './data/texts/text-examples.ts';
export { loadTextFolder, type TextFolderOptions } from './data/texts/text-folder.ts';
export { loadTextTable, type TextTableOptions } from './data/texts/text-table.ts';
export { tokenizerFile } from './data/texts/tokenizer-file.ts';
export type { TextUnit } from './data/texts/units.ts';
export {
  buildVocabulary,
  type Tokenizer,
  Vocabulary,
  type VocabularyOptions,
} from './data/texts/vocabulary.ts';
