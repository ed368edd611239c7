/** How a text is divided into tokens, and how tokens become a text again. It needs nothing of Node, so that it runs in browsers. */

export type TextUnit = 'characters' | 'words' | 'spaces';

/**
 * Spaces; a word: letters, marks and digits, with apostrophes between them; or any other character. Marks that follow a
 * letter belong to it, as accents that are written apart do.
 */
const WORDS = /\s+|[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}\p{N}]+)*|\S/gu;
/** A line break as a token of its own. */
const LINE_BREAK = '\n';

/**
 * The tokens of a text. `characters`: each Unicode character. `words`: each word, each other character that is no space, and
 * each row of line breaks, as one `\n`. `spaces`: what stands between spaces.
 */
export function unitsOf(text: string, unit: TextUnit, lowerCase = false): string[] {
  const own = lowerCase ? text.toLowerCase() : text;
  if (unit === 'characters') return Array.from(own);
  // The same word however its accents are written.
  const composed = own.normalize('NFC');
  if (unit === 'spaces') return composed.match(/\S+/g) ?? [];
  const units: string[] = [];
  for (const found of composed.match(WORDS) ?? []) {
    if (found.trim() !== '') units.push(found);
    else if (/[\n\r\u2028\u2029]/.test(found)) units.push(LINE_BREAK);
  }
  return units;
}

/** No space stands before these, and none after those. */
const BEFORE = /^[.,;:!?)\]}%’”»…]/u;
const AFTER = /[([{“«¿¡\n]$/u;

/** A text of these tokens. Where spaces stood is not known of words: they are put where a typist would. */
export function joinUnits(units: readonly string[], unit: TextUnit): string {
  if (unit === 'characters') return units.join('');
  let text = '';
  for (const each of units) text += gapBefore(text, each, unit) + each;
  return text;
}

/** What stands between a text and the token that follows it. @param text may be only its end. */
function gapBefore(text: string, next: string, unit: TextUnit): '' | ' ' {
  if (unit === 'characters' || text === '' || next === '') return '';
  if (unit === 'spaces') return ' ';
  return next === LINE_BREAK || BEFORE.test(next) || AFTER.test(text) ? '' : ' ';
}
