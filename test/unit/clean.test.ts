import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bounded } from '../../cli/output/log.ts';
import { createLiveLines, createProgress, table, workerLine } from '../../cli/output/progress.ts';
import { clean, cleanJson, cleanLines } from '../../shared/clean.ts';
import { LIMITS } from '../../shared/limits.ts';
import { kindOfDefect, type LogFacts } from '../../shared/log.ts';
import type { WorkerSummary } from '../../shared/rest.ts';

/** Text from others on terminals and in logs. */

/** C0, DEL, C1, line separators, overrides of the direction, half pairs, a byte-order mark. */
const HARM = ['\0', '\x07', '\b', '\n', '\r', '\x1b[2J', '\x7f', '\x9b31m', '\u2028', '\u2029'];
HARM.push('\u202e', '\u2066', '\u200b', '\u061c', '\ufeff', '\ud800', '\udc00', '\u{e0001}');
const harmful = fc
  .array(fc.oneof(fc.constantFrom(...HARM), fc.string({ unit: 'binary' })), { maxLength: 12 })
  .map((parts) => parts.join(''));
const UNSAFE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u;

describe('text from others', () => {
  test('stands in one line without control characters, whatever it is', () => {
    fc.assert(fc.property(harmful, (text) => !UNSAFE.test(clean(text))));
    expect(clean('a\nb\x1b[31m\u202e')).toBe('a\\nb\\u001b[31m\\u202e');
  });

  test('stays as it is where it is harmless', () => {
    const texts = ['run r-1: naïve 数字 Ω', "C:\\data\\new, 'quoted'", '😀 – … →'];
    expect(texts.map(clean)).toEqual(texts);
  });

  test('is JSON that reads back as the same value, in one line or with line breaks of its own alone', () => {
    const value = fc.dictionary(harmful, fc.array(harmful));
    fc.assert(
      fc.property(value, fc.constantFrom(0, 2), (object, indent) => {
        const json = cleanJson(object, indent);
        expect(indent === 0 ? json : json.replaceAll('\n', '')).not.toMatch(UNSAFE);
        expect(JSON.parse(json)).toEqual(JSON.parse(JSON.stringify(object)));
      }),
    );
  });

  test('cannot begin a line of an error that is told in several', () => {
    expect(cleanLines('pip said:\nerror DP_DISK: no\x1b[0m')).toBe(
      'pip said:\n  error DP_DISK: no\\u001b[0m',
    );
  });

  test('moves nothing on a terminal: live lines, notes, rows', () => {
    fc.assert(
      fc.property(harmful, (text) => {
        let shown = '';
        const screen = { write: (part: string) => (shown += part), isTTY: true, columns: 500 };
        const paint = (line: string) => line;
        const own = createLiveLines(screen);
        own.draw([{ line: text, paint }]);
        expect(shown.slice(0, -1)).not.toMatch(UNSAFE);
        shown = '';
        const now = () => 0;
        createProgress({ screen: { write: screen.write }, mode: 'lines', now }).note(text);
        expect(shown.slice(0, -1)).not.toMatch(UNSAFE);
        shown = '';
        createProgress({ screen: { write: screen.write }, mode: 'json', now }).note(text);
        expect(shown.slice(0, -1)).not.toMatch(UNSAFE);
        expect(JSON.parse(shown).text).toBe(JSON.parse(JSON.stringify(text)));
      }),
    );
  });
});

describe('a log', () => {
  const opened = (windowMs?: number) => {
    const lines: (readonly [string, LogFacts])[] = [];
    const log = bounded((line, facts = {}) => lines.push([line, facts]), windowMs);
    return { ...log, lines, texts: () => lines.map(([line]) => line) };
  };

  test('counts what is said too often, and tells how often and the last of it', () => {
    const { log, flush, lines } = opened();
    for (let i = 1; i <= 1_244; i++)
      log(`worker w${i} has gone`, { worker: `w${i}`, kind: 'gone' });
    expect(lines).toHaveLength(LIMITS.logRepeatsMax);
    flush();
    expect(lines.at(-1)).toEqual([
      '… 1,234 more lines like this in the last 1 s; the last one is: worker w1244 has gone',
      { worker: 'w1244', repeated: 1_234 },
    ]);
    flush();
    expect(lines).toHaveLength(LIMITS.logRepeatsMax + 1);
  });

  test('writes all that is said as often as may be, and one more as it is', () => {
    const { log, flush, texts } = opened();
    for (let i = 0; i <= LIMITS.logRepeatsMax; i++) log(`run r: step ${i}`);
    flush();
    expect(texts()).toEqual(
      Array.from({ length: LIMITS.logRepeatsMax + 1 }, (_, i) => `run r: step ${i}`),
    );
  });

  test('begins anew after a window, and tells by itself what it has counted', async () => {
    const { log, texts } = opened(5);
    for (let i = 0; i < 20; i++) log('again');
    await expect.poll(() => texts().at(-1)).toMatch(/^… 10 more lines like this .*: again$/);
    log('again');
    expect(texts().at(-1)).toBe('again');
  });

  test('tells lines of different runs apart, and those of different workers not', () => {
    const { log, texts } = opened();
    for (let i = 0; i < 30; i++) log(`run r${i}: training → testing`, { run: `r${i}` });
    expect(texts()).toHaveLength(30);
    for (let i = 0; i < 30; i++)
      log(`worker ${'abcdefgh'[i % 8]!} slept`, { worker: 'abcdefgh'[i % 8]! });
    expect(texts()).toHaveLength(30 + LIMITS.logRepeatsMax);
  });

  test('is bounded when no two lines are alike, and says an error all the same', () => {
    const { log, flush, lines, texts } = opened();
    const words = 'ghijklmnopqrstuvwxyz';
    const word = (i: number) => [...String(i)].map((digit) => words[Number(digit)]).join('');
    for (let i = 0; i < 20_000; i++) log(`something else: ${word(i)}`);
    const most = LIMITS.logKindsMax + LIMITS.logRepeatsMax;
    expect(lines.length).toBe(most);
    log('run r: last not written, trying again: DP_DISK', { level: 'error', run: 'r' });
    expect(texts().at(-1)).toContain('DP_DISK');
    flush();
    expect(lines).toHaveLength(most + 2);
    expect(texts().at(-1)).toMatch(/^… 18,990 more lines of other kinds in/);
  });

  test('has at most so many lines of all kinds together in a window', () => {
    const { log, lines } = opened();
    for (let i = 0; i < 10 * LIMITS.logLinesMax; i++) {
      log(`kind ${i % 900}`, { kind: `kind ${i % 900}` });
    }
    expect(lines).toHaveLength(LIMITS.logLinesMax);
    // One of what nobody has heard of yet.
    log('new', { kind: 'new' });
    log('newer', { kind: 'newer' });
    expect(lines).toHaveLength(LIMITS.logLinesMax + 1);
  });

  test('cuts a line that is too long and leaves one of the longest that may be', () => {
    const { log, texts } = opened();
    const longest = 'a'.repeat(LIMITS.logLineCharactersMax);
    log(longest);
    log(`${longest}b`);
    expect(texts()[0]).toBe(longest);
    expect(texts()[1]!.length).toBeLessThanOrEqual(LIMITS.logLineCharactersMax);
    expect(texts()[1]).toMatch(/^a+ … 41 more characters$/);
  });

  test('knows a defect by its place, not by what it says', () => {
    const thrown = (text: string) => new Error(text);
    const kinds = ['one', 'two'].map((text) => kindOfDefect(thrown(text)));
    expect(kinds[0]).toBe(kinds[1]);
    expect(kinds[0]).toContain('clean.test');
  });
});

test('a worker whose last error has line breaks has one line of its own', () => {
  const worker = { worker: 'w', state: 'training', engine: 'e', pushes: {}, lastError: null };
  const lastError = { code: 'DP_X', message: 'a\nworkers: 99', at: '2024-05-01T12:00:00Z' };
  const line = workerLine({ ...worker, lastError } as unknown as WorkerSummary);
  expect(clean(table(['a'], [[line]]).at(-1)!)).toContain('a\\nworkers: 99');
});
