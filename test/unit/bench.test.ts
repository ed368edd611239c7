import { describe, expect, test } from 'vitest';
import {
  formatBytes,
  formatCell,
  formatTable,
  judge,
  type Target,
  verdictTable,
  writeBetween,
} from '../../bench/report.ts';
import { medianOf, quantileOf } from '../../shared/quantile.ts';

describe('medians and quantiles', () => {
  test('order does not matter and the list stays as it is', () => {
    const values = [9, 1, 5, 100, 3];
    expect(medianOf(values)).toBe(5);
    expect(values).toEqual([9, 1, 5, 100, 3]);
  });

  test('the ends are the least and the largest value', () => {
    const values = Array.from({ length: 101 }, (_, i) => 100 - i);
    expect([0, 0.5, 0.99, 1].map((q) => quantileOf(values, q))).toEqual([0, 50, 99, 100]);
  });

  test('of nothing is no number', () => {
    expect(medianOf([])).toBeNaN();
  });
});

describe('verdicts', () => {
  const speed: Target = { what: 'speed', unit: 'GB/s', bound: 'atLeast', wanted: 2, seen: 3 };
  const cost: Target = { what: 'cost', unit: 's', bound: 'atMost', wanted: 0.35, seen: 0.7 };

  test('a ratio above 1 is better than wanted, whichever way the bound points', () => {
    expect(judge(speed)).toMatchObject({ ratio: 1.5, met: true });
    expect(judge(cost)).toMatchObject({ ratio: 0.5, met: false });
  });

  test('what equals the bound meets it', () => {
    expect(judge({ ...speed, seen: 2 }).met).toBe(true);
    expect(judge({ ...cost, seen: 0.35 }).met).toBe(true);
  });

  test('what was not measured is neither met nor missed', () => {
    for (const seen of [null, Number.NaN]) {
      expect(judge({ ...speed, seen })).toMatchObject({ seen: null, ratio: null, met: null });
    }
  });

  test('are told with both values, the ratio and a word', () => {
    const verdicts = [speed, cost, { ...speed, seen: null }].map(judge);
    expect(formatTable(verdictTable(verdicts))).toBe(
      [
        '| target | wanted      | seen      | ratio | verdict      |',
        '|--------|-------------|-----------|------:|--------------|',
        '| speed  | ≥ 2.00 GB/s | 3.00 GB/s |  1.50 | met          |',
        '| cost   | ≤ 0.350 s   | 0.700 s   |  0.50 | not met      |',
        '| speed  | ≥ 2.00 GB/s | –         |     – | not measured |',
      ].join('\n'),
    );
  });
});

describe('tables', () => {
  test('are Markdown with aligned columns, numbers to the right', () => {
    const table = {
      columns: [
        { key: 'name', title: 'name' },
        { key: 'rate', title: 'GB/s' },
      ],
      rows: [
        { name: 'a', rate: 12_345.6 },
        { name: 'longer', rate: null },
      ],
    };
    expect(formatTable(table)).toBe(
      [
        '| name   |   GB/s |',
        '|--------|-------:|',
        '| a      | 12,346 |',
        '| longer |      – |',
      ].join('\n'),
    );
  });

  test.each([
    [0, undefined, '0'],
    [0.00548, undefined, '0.00548'],
    [1.666, undefined, '1.67'],
    [99.96, undefined, '100.0'],
    [36_000, undefined, '36,000'],
    [1_234_567.891, 1, '1,234,567.9'],
    [-0.25, 2, '-0.25'],
    [Number.NaN, undefined, '–'],
    [null, undefined, '–'],
    ['text', undefined, 'text'],
  ])('%s with %s digits is %s', (value, digits, text) => {
    expect(formatCell(value, digits)).toBe(text);
  });

  test.each([
    [1_000, '1 KB'],
    [64_000, '64 KB'],
    [814_120, '814 KB'],
    [1_000_000, '1 MB'],
    [1_050_000, '1.05 MB'],
    [16_000_000, '16 MB'],
    [100_000_000, '100 MB'],
  ])('%i bytes are %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });
});

describe('the page', () => {
  const page = 'before\n<!-- a -->\n\nold\n\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n';

  test('only what stands between the marks is replaced, and twice is the same', () => {
    const once = writeBetween(page, 'a', 'costs $1 and $& more');
    expect(once).toBe(
      'before\n<!-- a -->\n\ncosts $1 and $& more\n\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->\n',
    );
    expect(writeBetween(once, 'a', 'costs $1 and $& more')).toBe(once);
  });

  test('without the marks nothing is written', () => {
    expect(() => writeBetween(page, 'c', 'text')).toThrow('<!-- c -->');
  });
});
