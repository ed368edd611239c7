import { unicodeEscape } from '../../shared/clean.ts';

/** Text as a part of source code that is written. */

/** Characters that no editor shows, or that change how the rest of a line is shown. */
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]|[^\S ]/gu;

/** A string literal that means exactly this text, whatever it holds. */
export function code(text: string): string {
  const escaped = JSON.stringify(text).replace(UNSEEN, unicodeEscape);
  return text.includes("'") ? escaped : `'${escaped.slice(1, -1).replaceAll('\\"', '"')}'`;
}

/** A name or a reason as a part of a comment: in one line, and it cannot end the comment. */
export function comment(text: string, charactersMax = 60): string {
  const line = text
    .replace(/[\p{C}\p{Z}]+/gu, ' ')
    .replaceAll('*/', '* /')
    .trim();
  const characters = [...line];
  return characters.length > charactersMax
    ? `${characters.slice(0, charactersMax).join('')}…`
    : line;
}

/** A list of texts over as many lines as it needs. @param indent of the line it stands in */
export function codeList(texts: readonly string[], indent: string): string {
  const items = texts.map(code);
  const line = `[${items.join(', ')}]`;
  if (line.length <= 70) return line;
  return `[\n${items.map((item) => `${indent}  ${item},\n`).join('')}${indent}]`;
}

/** A property's name in an object literal. */
export function key(name: string): string {
  // Without brackets it would set the prototype.
  return name === '__proto__' ? `[${code(name)}]` : code(name);
}
