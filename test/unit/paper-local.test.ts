import { expect, test } from 'vitest';
import { RESULTS } from '../../cli/paper/registry.ts';
import type { Lab } from '../../cli/paper/result.ts';

/** Results about local steps, in their quick form: what is large shows with one seed. */

const lab: Lab = {
  ...{ seeds: [1], quick: true, signal: new AbortController().signal },
  note: () => {},
  progress: () => {},
};
const repeat = (name: string) => RESULTS.find((result) => result.name === name)!.repeat(lab);

test('changes that are added up every tenth minibatch cost accuracy that elastic averaging keeps', async () => {
  const { runs } = await repeat('easgd');
  const at = (kind: string, period: number) =>
    Number(
      runs.find((r) => r.kind === kind && r.period === period && r.rate === 0.1 && r.seed === 1)!
        .accuracy,
    );
  // 75 against 56 % with two other seeds.
  expect(at('elastic', 10)).toBeGreaterThan(at('plain', 10) + 5);
  expect(at('plain', 1)).toBeGreaterThan(at('plain', 10));
});

test('asynchronous workers take the time of their mean, synchronous ones that of the slowest', async () => {
  const { rows } = await repeat('diloco');
  const time = (name: string) => Number(rows.find(([arm]) => arm === name)![2]);
  // 3.33 times the mean for the slowest, and 4.02 minibatches in the mean time for all: 533 / 4 · 3.33 and 533 / 4.02.
  expect(time('synchronous, outer momentum') / 444).toBeCloseTo(1, 0);
  expect(time('asynchronous, DN')).toBeLessThan(time('synchronous, outer momentum') / 2.5);
});

test('the largest 1/64 of each push is a thirtieth of the bytes, and outer momentum helps whole ones', async () => {
  const { runs } = await repeat('sparseloco');
  const of = (start: string) => runs.find(({ arm }) => String(arm).startsWith(start))!;
  const [diloco, means, fading] = [
    of('all, outer momentum'),
    of('all, no'),
    of('topk, the error f'),
  ];
  expect(Number(diloco.pushedBytes) / Number(fading.pushedBytes)).toBeCloseTo(32, 0);
  // 88.6 against 82.8 %, and 72 % with the rate of whole pushes.
  expect(Number(diloco.accuracy)).toBeGreaterThan(Number(means.accuracy) + 2);
  expect(Number(fading.accuracy)).toBeGreaterThan(50);
});
