import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Leases, type LeasesOptions } from '../../server/core/leases.ts';
import type { Lease } from '../../shared/protocol.ts';

const options: LeasesOptions = {
  part: 'train',
  exampleCount: 10,
  minibatchSize: 4,
  epochStart: 0,
  epochs: 2,
  leaseMs: 1000,
  idStart: 1,
};

test('an epoch is cut into minibatches, the last one smaller, and the next follows without a pause', () => {
  const leases = new Leases(options);
  expect(leases.perEpoch).toBe(3);
  const granted = leases.grant('a', 9, 0);
  expect(granted.map(({ epoch, start, count }) => [epoch, start, count])).toEqual([
    [0, 0, 4],
    [0, 4, 4],
    [0, 8, 2],
    [1, 0, 4],
    [1, 4, 4],
    [1, 8, 2],
  ]);
  expect(leases.exhausted).toBe(false);
  for (const lease of granted) leases.complete(lease);
  expect(leases.exhausted).toBe(true);
  expect(leases.grant('a', 1, 0)).toEqual([]);
});

test('a lease that is out of time goes to another worker, and is lost to the first', () => {
  const leases = new Leases(options);
  const [lease] = leases.grant('slow', 1, 0);
  expect(leases.expire(999)).toBe(0);
  expect(leases.expire(1000)).toBe(1);
  expect(leases.find(lease!.id, 'slow')).toEqual(lease);
  expect(leases.grant('quick', 1, 1001)).toEqual([lease]);
  expect(leases.find(lease!.id, 'slow')).toBeNull();
  expect(leases.find(lease!.id, 'quick')).toEqual(lease);
});

test('a late push of a lease that nobody has taken meanwhile still counts, once', () => {
  const leases = new Leases(options);
  const [lease] = leases.grant('slow', 1, 0);
  leases.expire(5000);
  leases.complete(lease!);
  expect(leases.find(lease!.id, 'slow')).toBeNull();
  expect(leases.grant('quick', 1, 5001)[0]?.start).toBe(4);
});

test('a worker that is away has until the given time, and its full time again when it is back', () => {
  const leases = new Leases(options);
  leases.grant('a', 1, 0);
  leases.hasten('a', 100);
  leases.extend('a', 90);
  expect(leases.expire(500)).toBe(0);
  leases.hasten('a', 600);
  expect(leases.expire(600)).toBe(1);
});

test('restored leases give out what was under way first, in the old order, with new ids for new ones', () => {
  const leases = new Leases(options);
  const [first] = leases.grant('a', 1, 0);
  const [second] = leases.grant('b', 1, 0);
  const restored = Leases.restore(JSON.parse(JSON.stringify(leases.state())));
  const granted = restored.grant('c', 3, 0);
  expect(granted.slice(0, 2)).toEqual([first, second]);
  expect(granted[2]?.start).toBe(8);
  expect(granted[2]?.id).toBeGreaterThan(1000);
});

/** Invariant 8, under whatever order of grants, completions, losses, expiries and restarts. */
describe('every example is used exactly once an epoch', () => {
  const action = fc.oneof(
    fc.record({
      kind: fc.constant('grant' as const),
      worker: fc.nat(3),
      count: fc.integer({ min: 1, max: 4 }),
    }),
    fc.record({ kind: fc.constant('complete' as const), worker: fc.nat(3), pick: fc.nat(7) }),
    fc.record({ kind: fc.constant('release' as const), worker: fc.nat(3) }),
    fc.record({ kind: fc.constant('time' as const), ms: fc.nat(1500) }),
    fc.record({ kind: fc.constant('restart' as const) }),
  );

  test('whatever joins, leaves, lags or restarts', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 12 }),
        fc.array(action, { maxLength: 200 }),
        (exampleCount, minibatchSize, actions) => {
          let leases = new Leases({ ...options, exampleCount, minibatchSize, epochs: 3 });
          let now = 0;
          const uses = new Map<string, number>();
          /** What each worker believes to hold; it may be wrong. */
          const beliefs: Lease[][] = [[], [], [], []];
          const complete = (worker: number, lease: Lease): void => {
            if (!leases.find(lease.id, `w${worker}`)) return;
            leases.complete(lease);
            for (let i = lease.start; i < lease.start + lease.count; i++) {
              const key = `${lease.epoch}:${i}`;
              uses.set(key, (uses.get(key) ?? 0) + 1);
            }
          };
          for (const step of actions) {
            if (step.kind === 'grant') {
              const granted = leases.grant(`w${step.worker}`, step.count, now);
              beliefs[step.worker]!.push(...granted);
            } else if (step.kind === 'complete') {
              const belief = beliefs[step.worker]!;
              const lease = belief[step.pick % Math.max(1, belief.length)];
              if (lease) complete(step.worker, lease);
            } else if (step.kind === 'release') leases.release(`w${step.worker}`);
            else if (step.kind === 'time') {
              now += step.ms;
              leases.expire(now);
            } else leases = Leases.restore(JSON.parse(JSON.stringify(leases.state())));
          }
          // One worker that never fails brings the epochs to their end.
          for (let w = 0; w < 4; w++) leases.release(`w${w}`);
          for (;;) {
            const [lease] = leases.grant('w0', 1, now);
            if (!lease) break;
            complete(0, lease);
          }
          expect(leases.exhausted).toBe(true);
          expect(uses.size).toBe(3 * exampleCount);
          expect([...uses.values()].every((count) => count === 1)).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });
});
