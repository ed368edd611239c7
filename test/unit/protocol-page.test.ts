import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { MESSAGES_PAGE, messagesPage } from '../../cli/docs/protocol-page.ts';

test('docs/protocol-messages.md is what the schemas say; `npm run docs` writes it anew', () => {
  expect(readFileSync(MESSAGES_PAGE, 'utf8')).toBe(messagesPage());
});

test('every field of every message says its type and what it is', () => {
  const rows = messagesPage()
    .split('\n')
    .filter((line) => line.startsWith('| `'));
  expect(rows.length).toBeGreaterThan(100);
  for (const row of rows) {
    const [, field, type, , what] = row.split(/(?<!\\)\|/).map((cell) => cell.trim());
    expect(what, field).not.toBe('');
    expect(type, field).toMatch(/^(whole number|number|text|map|list of|`|\[)/);
  }
  expect(messagesPage()).not.toContain('undefined');
});
