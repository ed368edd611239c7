import { nameOf } from './cells.ts';

/** Words of texts, and where feature hashing puts them (Weinberger et al. 2009). */

/** The words of a text: runs of letters and digits, in lower case. */
export function wordsOf(text: string): string[] {
  return (
    nameOf(text)
      .toLowerCase()
      .match(/[\p{L}\p{N}]+/gu) ?? []
  );
}

/** FNV-1a over UTF-16 code units, 32 bits. */
function hashOf(word: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < word.length; i++) {
    hash = Math.imul(hash ^ word.charCodeAt(i), 0x01000193);
  }
  // The lowest bits of FNV are weak: all of them are mixed once more.
  hash ^= hash >>> 16;
  hash = Math.imul(hash, 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}

/** Which of `size` inputs a word adds to, and what. */
export function placeOfWord(word: string, size: number): { input: number; sign: 1 | -1 } {
  const hash = hashOf(word);
  return { input: (hash >>> 1) % size, sign: (hash & 1) === 0 ? 1 : -1 };
}
