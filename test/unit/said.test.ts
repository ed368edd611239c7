import { expect, test } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import { causeOf, onceEach, Said } from '../../shared/said.ts';

test('each line of a log is said once, with what stands beside it', () => {
  const lines: unknown[] = [];
  const log = onceEach((line, facts) => lines.push([line, facts]));
  for (let i = 0; i < 3; i++) {
    log('2 cells are empty', { level: 'warn' });
    log(`${i} of 2 pictures read`);
  }
  expect(lines).toEqual([
    ['2 cells are empty', { level: 'warn' }],
    ...[0, 1, 2].map((i) => [`${i} of 2 pictures read`, undefined]),
  ]);
});

test.each([
  ['push 12 was rejected: DP_X at step 7', 'push 13 was rejected: DP_X at step 9', true],
  ['cannot write step-001.tmp: ENOSPC', 'cannot write step-0022.tmp: ENOSPC', true],
  ['cannot write a.tmp: ENOSPC', 'cannot write a.tmp: EACCES', false],
])('one cause is one whatever its numbers: %s, %s', (a, b, isSame) => {
  expect(causeOf(a) === causeOf(b)).toBe(isSame);
});

test('so many causes are kept in mind; the one that came last the longest ago can be said again', () => {
  const said = new Said();
  for (let i = 0; i < LIMITS.logKindsMax; i++) expect(said.isNew(`${i}`)).toBe(true);
  // All are there, and the first is now the newest.
  expect(said.isNew('0')).toBe(false);
  expect(said.isNew('one more')).toBe(true);
  expect(said.isNew('0')).toBe(false);
  expect(said.isNew('1')).toBe(true);
  said.clear();
  expect(said.isNew('0')).toBe(true);
});
