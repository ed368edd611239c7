import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { CONFIG_PAGE, configPage } from '../../cli/docs/config-page.ts';

test('docs/configuration.md is what the schema says; `npm run docs` writes it anew', () => {
  expect(readFileSync(CONFIG_PAGE, 'utf8')).toBe(configPage());
});

test('every field says what it does', () => {
  const silent = configPage()
    .split('\n')
    .filter((line) => /^\| `.*\|\s*\|$/.test(line) || /\|\s+\(`\w+`\) \|$/.test(line));
  expect(silent).toEqual([]);
});
