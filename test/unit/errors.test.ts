import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { ERRORS } from '../../shared/errors.ts';

test('docs/errors.md has each code with its answers, a cause and what to do', () => {
  const page = readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8');
  const rows = page
    .split('\n')
    .filter((line) => line.startsWith('| `DP_'))
    .map((line) => line.split('|').map((cell) => cell.trim()));
  const written = rows.map(([, code, http, close, retry]) => [code, http, close, retry]);
  const known = Object.entries(ERRORS).map(([code, { http, close, retry }]) => [
    `\`${code}\``,
    String(http),
    close === null ? 'none' : String(close),
    retry,
  ]);
  expect(written).toEqual(known);
  for (const [, , , , , cause, advice] of rows) {
    expect(cause!.length).toBeGreaterThan(15);
    expect(advice!.length).toBeGreaterThan(5);
  }
});
