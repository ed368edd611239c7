import { expect, test } from 'vitest';
import type { RunSummary } from '../../shared/rest.ts';
import { COLUMNS, metricColumn, metricNamesOfRuns } from '../../web/runs/columns.ts';
import { listLines, type WantedRuns } from '../../web/runs/fold.ts';

/** What the table of runs shows; that pages show it is in test/system/dashboard.test.ts. */

const run = (id: string, more: Partial<RunSummary> = {}) =>
  ({
    ...{ id, experiment: 'digits', study: null, phase: 'finished', createdAt: id, step: 1 },
    ...{ trainingLoss: null, best: null, validation: null, examplesPerSecond: null, seconds: 1 },
    ...more,
  }) as RunSummary;
const measured = (metrics: Record<string, number>) => ({ metrics }) as RunSummary['best'];

const wanted = (more: Partial<WantedRuns> = {}): WantedRuns => ({
  ...{ show: 'all', filter: '', column: COLUMNS[0]!, descending: true, open: new Set() },
  isActive: ({ phase }) => phase === 'training',
  ...more,
});
const textsOf = (runs: readonly RunSummary[], more?: Partial<WantedRuns>) =>
  listLines(runs, wanted(more)).map((line) =>
    line.kind === 'run'
      ? `${line.isTrial ? '  ' : ''}${line.run.id}`
      : `${line.study} ×${line.runs.length}`,
  );

const RUNS = [
  run('a'),
  run('b1', { study: 'search', step: 5, trainingLoss: 0.3 }),
  run('b2', { study: 'search', step: 9, trainingLoss: 0.5, phase: 'training' }),
  run('c', { trainingLoss: 0.4, tags: ['paper'], name: 'The Baseline', note: 'with dropout' }),
  run('d', { study: 'folds' }),
  run('e', { archived: true }),
];

test('the trials of a study are one line, and archived runs are apart', () => {
  expect(textsOf(RUNS)).toEqual(['d', 'c', 'search ×2', 'a']);
  expect(textsOf(RUNS, { open: new Set(['search']) })).toEqual([
    ...['d', 'c', 'search ×2', '  b2', '  b1', 'a'],
  ]);
  expect(textsOf(RUNS, { show: 'archived' })).toEqual(['e']);
  // One trial alone is itself.
  expect(textsOf(RUNS, { show: 'active' })).toEqual(['b2']);
});

test('a study stands where its best, its newest or the sum of its trials does', () => {
  const by = (name: string) => ({
    column: COLUMNS.find((column) => column.name === name)!,
    descending: false,
  });
  expect(textsOf(RUNS, by('loss')).slice(0, 2)).toEqual(['search ×2', 'c']);
  expect(textsOf(RUNS, { ...by('time'), descending: true })[0]).toBe('search ×2');
  expect(textsOf(RUNS, { ...by('step'), descending: true })[0]).toBe('search ×2');
});

test('a filter finds names, tags, notes and studies, and lists the trials that match', () => {
  expect(textsOf(RUNS, { filter: 'baseline' })).toEqual(['c']);
  expect(textsOf(RUNS, { filter: 'paper' })).toEqual(['c']);
  expect(textsOf(RUNS, { filter: 'dropout' })).toEqual(['c']);
  expect(textsOf(RUNS, { filter: 'search' })).toEqual(['search ×2', '  b2', '  b1']);
  expect(textsOf(RUNS, { filter: 'b2' })).toEqual(['b2']);
});

test('metrics of experiments are columns, without those of the training part', () => {
  const runs = [
    run('a', { best: measured({ f1: 0.9, trainingLoss: 1, recall: 0.5 }) }),
    run('b', { validation: measured({ f1: 0.8, auc: 0.7 }) }),
    run('c'),
  ];
  expect(metricNamesOfRuns(runs)).toEqual(['auc', 'f1', 'recall']);
  const f1 = metricColumn('f1');
  expect(runs.map(f1.key)).toEqual([0.9, 0.8, null]);
  // What has none is at the end, whichever way.
  for (const descending of [true, false]) {
    expect(textsOf(runs, { column: f1, descending }).at(-1)).toBe('c');
  }
});
