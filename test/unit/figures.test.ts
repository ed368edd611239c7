import { expect, test } from 'vitest';
import type { MatrixFigure } from '../../shared/figure.ts';
import { chartSvg, matrixSvg } from '../../shared/plot.ts';
import { contactSheet, galleryPicture } from '../../study/figures.ts';

const LONG = 'Nova Scotia Duck Tolling Retriever';

test('captions of tiles have lines that fit into them', () => {
  const caption = [`is ${LONG}, said ${'x'.repeat(50)}`, 'loss 3'];
  const card = { shown: { kind: 'text' as const, text: 'x' }, caption, wrong: true };
  const lines = galleryPicture(contactSheet('tiles', [card])).match(/font-size="11">[^<]*/g)!;
  expect(lines.length).toBeGreaterThan(4);
  for (const line of lines) expect(line.replace(/^[^>]*>/, '').length).toBeLessThanOrEqual(18);
  // The frame is as tall as its lines.
  const svg = galleryPicture(contactSheet('tiles', [card]));
  const [, top, height] = /<rect x="10" y="(\d+)" [^>]*height="(\d+)"/.exec(svg)!.map(Number);
  const last = Math.max(
    ...[...svg.matchAll(/y="(\d+)" font-size="11"/g)].map(([, y]) => Number(y)),
  );
  expect(last).toBeLessThanOrEqual(top! + height!);
});

test('long names of classes stand within a matrix, upright above its columns', () => {
  const figure: MatrixFigure = {
    ...{ kind: 'matrix', title: 'm', names: [LONG, 'cat', 'dog'] },
    counts: [
      [3, 0, 1],
      [0, 4, 0],
      [1, 0, 2],
    ],
  };
  const svg = matrixSvg(figure);
  expect(svg).toContain('Nova Scotia Duck To…</text>');
  // Letters take 6.8 pixels at most.
  for (const [, x, name] of svg.matchAll(
    /<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)/g,
  )) {
    expect(Number(x) - 6.8 * name!.length).toBeGreaterThanOrEqual(24);
  }
  for (const [, y, name] of svg.matchAll(
    /rotate\(-90 [\d.]+ ([\d.]+)\)" x="[\d.]+" y="[\d.]+">([^<]*)/g,
  )) {
    expect(Number(y) - 6.8 * name!.length).toBeGreaterThanOrEqual(44);
  }
  // The hints have the whole names.
  expect(svg).toContain(`is ${LONG}, said cat`);
  const short = matrixSvg({ ...figure, names: ['a', 'b', 'c'] });
  expect(short).toContain('text-anchor="middle" x=');
});

test('an axis of shares has the unit of the tables', () => {
  const points = [
    { x: 0, y: 0.05 },
    { x: 1, y: 0.25 },
  ];
  const series = [{ name: '', style: 'curve' as const, points }];
  const y = { label: 'validation error', percent: true };
  const figure = { ...{ kind: 'chart' as const, title: 't', x: { label: 'x' } }, y, series };
  expect(chartSvg(figure)).toContain('>20 %</text>');
  expect(chartSvg({ ...figure, y: { label: 'loss' } })).toContain('>0.2</text>');
});

test('a legend hides no line: it takes a free corner, and stands above the plot where there is none', () => {
  const flat = (name: string, from: number, to: number) => ({
    name,
    points: [
      { x: 0, y: from },
      { x: 10, y: to },
    ],
  });
  const chart = { kind: 'chart' as const, title: 't', x: { label: 'x' }, y: { label: 'y' } };
  const falling = chartSvg({ ...chart, series: [flat('one', 9, 0), flat('two', 10, 1)] });
  // Only two points of each line are given, and they lie at its ends.
  const box = /<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" [^>]*opacity/;
  const [, left, top] = box.exec(falling)!.map(Number);
  expect(left).toBeGreaterThan(400);
  expect(top).toBeLessThan(60);
  const everywhere = [
    flat('one', 10, 10),
    flat('two', 9.5, 0),
    flat('three', 0, 9.5),
    flat('four', 0, 0),
  ];
  const full = chartSvg({ ...chart, series: everywhere });
  expect(full).not.toMatch(box);
  const named = [...full.matchAll(/<text x="[\d.]+" y="([\d.]+)">(?:one|two|three|four)/g)];
  const lines = [...full.matchAll(/points="([^"]*)"/g)].flatMap(([, points]) =>
    points!.split(' ').map((point) => Number(point.split(',')[1])),
  );
  expect(named).toHaveLength(4);
  expect(Math.max(...named.map(([, y]) => Number(y)))).toBeLessThan(Math.min(...lines));
  // Twenty names would leave no room for the plot.
  const many = Array.from({ length: 20 }, (_, i) =>
    flat(`a configuration, number ${i}`, i, 20 - i),
  );
  expect(chartSvg({ ...chart, series: many })).toMatch(box);
});
