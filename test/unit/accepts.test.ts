import { describe, expect, test } from 'vitest';
import { accepts } from '../../cli/workers/options.ts';

describe('work --accept-experiments', () => {
  const of = (said?: string) => accepts({}, { DOWNPOUR_ACCEPT_EXPERIMENTS: said });

  test('is off unless it is asked for, by the option or the environment', () => {
    expect(accepts({ acceptExperiments: true }, {})).toBe(true);
    expect(accepts({ acceptExperiments: true }, { DOWNPOUR_ACCEPT_EXPERIMENTS: '0' })).toBe(true);
    for (const on of ['1', 'true', 'Yes', ' on ']) expect(of(on), on).toBe(true);
    for (const off of [undefined, '', '0', 'false', 'No', 'off']) expect(of(off), off).toBe(false);
  });

  test('that may be meant either way is refused', () => {
    expect(() => of('maybe')).toThrow(/DOWNPOUR_ACCEPT_EXPERIMENTS is 'maybe'; it must be 1, or 0/);
  });
});
