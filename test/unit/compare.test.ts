import { expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import type { ChartFigure } from '../../shared/figure.ts';
import { chartSvg, PAPER } from '../../shared/plot.ts';
import { type Compared, differences, runGroups } from '../../web/compare/groups.ts';
import { meanLine, spansDecades } from '../../web/lines.ts';
import { colorIn, lineDashesOf, styledColorOf } from '../../web/palette.ts';

/** What the dashboard's comparison computes; that pages show it is in test/system/dashboard.test.ts. */

function run(id: string, config: object, more: Partial<Compared> = {}): Compared {
  const detail = { config: resolveConfig(config), experimentHash: 'abc', data: null };
  return { id, experiment: 'digits', study: null, tags: [], detail, ...more };
}

test('runs that differ in their seed alone are one group', () => {
  const runs = [
    run('a', { learningRate: 0.1, seed: 1 }),
    run('b', { learningRate: 0.2, seed: 1 }),
    run('c', { learningRate: 0.1, seed: 2 }),
    run('d', { learningRate: 0.2, seed: 1 }, { detail: null }),
  ];
  expect(runGroups(runs, 'configuration')).toEqual([
    { label: 'learningRate 0.1', runs: ['a', 'c'] },
    { label: 'b', runs: ['b'] },
    // Not read yet.
    { label: 'd', runs: ['d'] },
  ]);
  expect(runGroups(runs, 'run').map(({ runs: [id] }) => id)).toEqual(['a', 'b', 'c', 'd']);
});

test('another version of the experiment is another configuration', () => {
  const [first, second] = [run('a', {}), run('b', {})];
  const other = { ...second, detail: { ...second.detail!, experimentHash: 'def' } };
  expect(runGroups([first, other], 'configuration')).toHaveLength(2);
  expect(runGroups([first, second], 'configuration')).toEqual([
    { label: 'a and 1 more', runs: ['a', 'b'] },
  ]);
});

test('groups by study, tag and experiment have the names of these', () => {
  const runs = [
    run('a', {}, { study: 'search-1', tags: ['wide', 'base'] }),
    run('b', {}, { tags: ['base', 'wide'], experiment: 'cars' }),
    run('c', {}),
  ];
  const labels = (by: Parameters<typeof runGroups>[1]) =>
    runGroups(runs, by).map(({ label, runs: ids }) => `${label}: ${ids.join()}`);
  expect(labels('study')).toEqual(['search-1: a', 'no study: b,c']);
  expect(labels('tag')).toEqual(['base wide: a,b', 'no tag: c']);
  expect(labels('experiment')).toEqual(['digits: a,c', 'cars: b']);
});

test('the table of differences names what differs, with seeds last, and nothing else', () => {
  const runs = [
    run('a', { learningRate: 0.1, seed: 1, hyperparameters: { units: 8 } }),
    run('b', { learningRate: 0.1, seed: 2, hyperparameters: { units: 8 } }),
    run('c', { learningRate: 0.3, seed: 1, hyperparameters: { depth: 2 } }),
  ];
  expect(differences([[runs[0]!, runs[1]!], [runs[2]!]])).toEqual([
    { field: 'learningRate', values: [['0.1'], ['0.3']] },
    { field: 'hyperparameters.units', values: [['8'], ['–']] },
    { field: 'hyperparameters.depth', values: [['–'], ['2']] },
    { field: 'seed', values: [['1', '2'], ['1']] },
  ]);
  expect(differences([[run('a', {})], [run('b', {})]])).toEqual([]);
});

test('a mean has one sample standard deviation around it, where two lines or more have a value', () => {
  const lines = [
    { x: [0, 2, 4], y: [1, 3, 5] },
    { x: [0, 2], y: [3, 5] },
    { x: [0, 4], y: [2, 4] },
  ];
  const { x, y, low, high } = meanLine(lines, 100);
  expect(x).toEqual([0, 2, 4]);
  // At 2 the third line is halfway between its points.
  expect(y).toEqual([2, 11 / 3, 4.5]);
  expect([low[0], high[0]]).toEqual([1, 3]);
  expect(high[2]! - y[2]!).toBeCloseTo(Math.SQRT1_2);
  const alone = meanLine([{ x: [1], y: [7] }], 100);
  expect(alone).toEqual({ x: [1], y: [7], low: [null], high: [null] });
});

test('a band of positive values stays above 0, for logarithmic axes', () => {
  const [low] = meanLine(
    [
      { x: [0], y: [0.01] },
      { x: [0], y: [10] },
    ],
    10,
  ).low;
  expect(low).toBe(0.01);
});

test('many places are thinned, with both ends kept', () => {
  const x = Array.from({ length: 1000 }, (_, i) => i);
  const { x: places, y } = meanLine(
    [
      { x, y: x },
      { x, y: x },
    ],
    11,
  );
  expect(places).toHaveLength(11);
  expect([places[0], places.at(-1)]).toEqual([0, 999]);
  expect(y[5]).toBeCloseTo(499.5);
});

test('an axis is logarithmic from two decades on, and never with 0 or less', () => {
  expect(spansDecades([0.01, null, 1])).toBe(true);
  expect(spansDecades([0.0101, 1])).toBe(false);
  expect(spansDecades([0, 1000])).toBe(false);
  expect(spansDecades([])).toBe(false);
});

test('no two of 400 curves look the same, on pages, in pictures and in files', () => {
  const indices = Array.from({ length: 400 }, (_, i) => i);
  const sheet = (name: string) =>
    name === '--text' ? '#14202b' : `#${'0123456789'[Number(name.at(-1))]}0c0f0`;
  const distinct = (of: (index: number) => string) => new Set(indices.map(of)).size;
  expect(distinct(styledColorOf)).toBe(400);
  expect(distinct((i) => `${colorIn(sheet, i)} ${lineDashesOf(i)}`)).toBe(400);
  expect(distinct((i) => `${PAPER.color(i)} ${PAPER.dashes(i)}`)).toBe(400);
  // Few curves have no dashes, and the palette's own colours.
  expect(styledColorOf(7)).toBe('var(--series-7)');
  expect(lineDashesOf(7)).toEqual([]);
});

test('more series than the palette has colours are drawn in different ways', () => {
  const figure: ChartFigure = {
    ...{ kind: 'chart', title: 'many', x: { label: 'x' }, y: { label: 'y' } },
    series: Array.from({ length: 30 }, (_, i) => ({
      ...{ name: `s${i}`, style: 'curve' as const },
      points: [
        { x: 0, y: i },
        { x: 1, y: i },
      ],
    })),
  };
  const lines = chartSvg(figure).match(/<polyline [^>]*>/g)!;
  expect(new Set(lines.map((line) => line.replace(/points="[^"]*"/, ''))).size).toBe(30);
});
