import { describe, expect, test } from 'vitest';
import { admit } from '../../server/core/consistency.ts';
import { EarlyStopping } from '../../server/core/early-stopping.ts';
import { resolveConfig } from '../../shared/config.ts';

const config = (change: object) => resolveConfig({ earlyStopping: change }).earlyStopping;

/** The verdicts for a sequence of validation values, as + (improved), . (not) and ! (stop). */
function verdicts(change: object, values: readonly number[]): string {
  const stopping = new EarlyStopping(config(change));
  return values
    .map((value, i) => {
      const { improved, stop } = stopping.observe(value, i);
      return stop ? '!' : improved ? '+' : '.';
    })
    .join('');
}

describe('Algorithm 7.1', () => {
  test.each<[string, object, number[], string]>([
    [
      'stops after p evaluations without a better one',
      { patience: 3 },
      [5, 4, 4.5, 4.1, 4.2],
      '++..!',
    ],
    ['a better one begins the count anew', { patience: 2 }, [5, 6, 4, 5, 5], '+.+.!'],
    ['an equal value is no improvement', { patience: 2 }, [3, 3, 3], '+.!'],
    [
      'an improvement of just minImprovement is none',
      { patience: 2, minImprovement: 0.5 },
      [3, 2.5, 2.4],
      '+.+',
    ],
    [
      'small ones add up against the best',
      { patience: 3, minImprovement: 0.5 },
      [3, 2.8, 2.6, 2.4],
      '+..+',
    ],
    ['NaN and infinity never improve', { patience: 2 }, [Number.NaN, -Infinity], '.!'],
    [
      'a first value that is not finite may be followed by one that is',
      { patience: 3 },
      [Number.NaN, 9],
      '.+',
    ],
    [
      'switched off it never stops, and knows the best all the same',
      { enabled: false, patience: 1 },
      [1, 2, 3],
      '+..',
    ],
  ])('%s', (_, change, values, expected) => {
    const full = 'enabled' in change ? { ...change } : change;
    const stopping = () => verdicts(full, values);
    if ('enabled' in change) {
      const { earlyStopping } = resolveConfig({ earlyStopping: full, epochsMax: 1 });
      const off = new EarlyStopping(earlyStopping);
      expect(values.map((value, i) => off.observe(value, i).stop)).toEqual([false, false, false]);
      expect(off.state.best).toEqual({ value: 1, step: 0 });
    } else expect(stopping()).toBe(expected);
  });

  test('goes on from its state as if nothing had happened', () => {
    const values = [5, 4, 6, 3, 7, 8, 9];
    for (let cut = 0; cut < values.length; cut++) {
      const first = new EarlyStopping(config({ patience: 3 }));
      for (const [i, value] of values.slice(0, cut).entries()) first.observe(value, i);
      const state = JSON.parse(JSON.stringify(first.state));
      const second = new EarlyStopping(config({ patience: 3 }));
      second.restore(state);
      let stop = false;
      for (const [i, value] of values.slice(cut).entries())
        stop = second.observe(value, cut + i).stop;
      expect(stop).toBe(true);
      expect(second.state).toEqual({ sinceBest: 3, best: { value: 3, step: 3 }, evaluations: 7 });
      expect(second.patienceLeft).toBe(0);
    }
  });
});

describe('admission of a push', () => {
  const at = (staleness: number, change: object, workers = 1) =>
    admit(resolveConfig({ consistency: change }).consistency, {
      staleness,
      readStep: 100 - staleness,
      serverStep: 100,
      workers,
    });

  test('without a bound everything is applied in full', () => {
    expect(at(0, {})).toEqual({ kind: 'apply', scale: 1 });
    expect(at(99, {})).toEqual({ kind: 'apply', scale: 1 });
  });

  test('the bound itself is allowed, one more is not', () => {
    expect(at(4, { stalenessMax: 4 }).kind).toBe('apply');
    expect(at(5, { stalenessMax: 4 })).toMatchObject({ kind: 'reject' });
    expect(at(1, { stalenessMax: 0 }).kind).toBe('reject');
  });

  test('damping divides by the staleness from 2 on', () => {
    const scales = [0, 1, 2, 4, 10].map((staleness) => at(staleness, { damping: 'inverse' }));
    expect(scales.map((a) => a.kind === 'apply' && a.scale)).toEqual([1, 1, 0.5, 0.25, 0.1]);
  });

  test('root divides by √(1 + staleness)', () => {
    const scales = [0, 3, 8].map((staleness) => at(staleness, { damping: 'root' }));
    expect(scales.map((a) => a.kind === 'apply' && a.scale)).toEqual([1, 1 / 2, 1 / 3]);
  });

  test('delay lowers the rate of what is staler than there are workers: M / max(M, τ)', () => {
    const scales = [0, 1, 4, 5, 16].map((staleness) => at(staleness, { correction: 'delay' }, 4));
    expect(scales.map((a) => a.kind === 'apply' && a.scale)).toEqual([1, 1, 1, 4 / 5, 1 / 4]);
  });
});
