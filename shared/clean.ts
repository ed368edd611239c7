/**
 * Text from others as it may stand on a terminal, in a line of a log, and in JSON for programs. Names, errors and
 * addresses come from workers and clients: a line break in one of them would make a line that nobody has written, and
 * an escape code would change what a terminal shows.
 */

/** Control characters (ESC and DEL among them), line separators, what shows nothing or turns the direction, half pairs. */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;
const SHORT: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

/** The text in one line, with nothing that a terminal obeys: `\n`, `\u001b`. */
export function clean(text: string): string {
  return text.replace(UNSAFE, (character) => SHORT[character] ?? unicodeEscape(character));
}

/** The same in as many lines as it has; those after the first are indented, so that none of them looks like one of ours. */
export function cleanLines(text: string): string {
  return text.split('\n').map(clean).join('\n  ');
}

/** JSON that is as safe to show, and reads back as the same value. */
export function cleanJson(value: unknown, indent = 0): string {
  return cleanJsonText(JSON.stringify(value, null, indent));
}

/** Whatever is unsafe in JSON stands in its strings, but for the line breaks between them. */
export function cleanJsonText(json: string): string {
  return json.replace(UNSAFE, (character) =>
    character === '\n' ? character : unicodeEscape(character),
  );
}

/** `\u202e`; two of them for a character beyond 16 bits. */
export function unicodeEscape(character: string): string {
  return Array.from({ length: character.length }, (_, i) => {
    const unit = character.charCodeAt(i).toString(16).padStart(4, '0');
    return `\\u${unit}`;
  }).join('');
}
