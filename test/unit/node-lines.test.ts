import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { engineNote, NODE_LINES_TEXT, nodeProblem } from '../../bin/node-lines.js';

test('a Node.js that is too old is told which ones are supported, and no other is', () => {
  for (const old of ['12.22.0', '18.20.4', '20.10.0']) {
    expect(nodeProblem(old)).toBe(
      `Downpour needs Node.js 20.11 or newer; this is ${old}. Supported are the lines 20, 22 and 24. Get one of them, then try again.`,
    );
  }
  for (const able of ['20.11.0', '22.0.0', '24.1.0', '25.0.0'])
    expect(nodeProblem(able)).toBeNull();
});

test('an engine says which Node.js it is for, and whether that line is tested', () => {
  expect(engineNote('22.1.0')).toMatch(/^the engine is for Node.js 22; each other line/);
  expect(engineNote('22.1.0')).not.toContain('not tested');
  expect(engineNote('23.1.0')).toMatch(/Node.js 23 is not tested: .* 20, 22 and 24$/);
});

test('package.json, the documentation and what CI runs name the same lines', () => {
  const text = (file: string) => readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');
  const lines = NODE_LINES_TEXT.split(/, | and /);
  expect(JSON.parse(text('package.json')).engines.node).toBe('^20.11 || ^22 || >=24');
  expect(lines).toEqual(['20', '22', '24']);
  expect(text('.ci/run')).toContain(`for line in ${lines.join(' ')}; do`);
  for (const page of ['README.md', 'docs/getting-started.md']) {
    expect(text(page), page).toContain(`Node.js ${lines.join(', ').replace(', 24', ' or 24')}`);
  }
});
