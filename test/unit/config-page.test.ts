import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { CONFIG_PAGE, configPage } from '../../cli/docs/config-page.ts';
import { RunConfigSchema } from '../../shared/config.ts';
import type { JsonSchema } from '../../shared/json-schema.ts';

test('docs/configuration.md is what the schema says; `npm run docs` writes it anew', () => {
  expect(readFileSync(CONFIG_PAGE, 'utf8')).toBe(configPage());
});

test('every field says what it does', () => {
  const silent = configPage()
    .split('\n')
    .filter((line) => /^\| `.*\|\s*\|$/.test(line) || /\|\s+\(`\w+`\) \|$/.test(line));
  expect(silent).toEqual([]);
});

test('the fields of what users name, such as tables and groups, are listed', () => {
  const page = configPage();
  const { properties } = RunConfigSchema as unknown as JsonSchema;
  const named = Object.entries(properties!).flatMap(([name, { patternProperties = {} }]) =>
    Object.values(patternProperties).flatMap((entry) =>
      entry.properties ? [[name, Object.keys(entry.properties)] as const] : [],
    ),
  );
  expect(named.map(([name]) => name)).toEqual(['groups', 'tables']);
  for (const [name, fields] of named) {
    for (const field of fields) {
      expect(page).toMatch(new RegExp(`^\\| \`${name}\\.<name>\\.${field}[.\`]`, 'm'));
    }
  }
});
