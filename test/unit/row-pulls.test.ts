import { expect, test } from 'vitest';
import { PULLS_PER_LEASE, RowPulls } from '../../server/fleet/row-pulls.ts';
import type { Lease } from '../../shared/protocol.ts';

const lease = { id: 1, epoch: 0, start: 0, count: 4, part: 'train' } as Lease;
const evaluation = (id: number) => ({ id, part: 'validation' as const });
const allowed = (pulls: RowPulls, of: number | null) => {
  let count = 0;
  while (pulls.allow(of)) count++;
  return count;
};

test('a minibatch needs rows a few times, however long it takes, and the next one as often', () => {
  const pulls = new RowPulls();
  expect(pulls.allow(null)).toBe(false);
  for (let i = 0; i < 3; i++) {
    pulls.given({ leases: [lease], evaluation: null }, 0);
    expect(allowed(pulls, null)).toBe(PULLS_PER_LEASE);
  }
  pulls.given({ leases: [lease, lease], evaluation: null }, 0);
  expect(allowed(pulls, null)).toBe(2 * PULLS_PER_LEASE);
});

test('what was not asked for is not saved up', () => {
  const pulls = new RowPulls();
  for (let i = 0; i < 9; i++) pulls.given({ leases: [lease], evaluation: null }, 0);
  expect(allowed(pulls, null)).toBe(PULLS_PER_LEASE);
});

test('an evaluation needs those of each example once, whoever tells of it how often', () => {
  const pulls = new RowPulls();
  pulls.given({ leases: [], evaluation: evaluation(5) }, 10);
  expect(pulls.allow(4)).toBe(false);
  expect(allowed(pulls, 5)).toBe(10);
  pulls.given({ leases: [lease], evaluation: evaluation(5) }, 10);
  expect(pulls.allow(5)).toBe(false);
  pulls.given({ leases: [lease], evaluation: evaluation(6) }, 10);
  expect(allowed(pulls, 6)).toBe(10);
  expect(allowed(pulls, 5)).toBe(0);
});
