import { Compile } from 'typebox/compile';
import { describe, expect, test } from 'vitest';
import { edited, LabelsSchema, NO_LABELS } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';
import { EditRunSchema } from '../../shared/rest.ts';
import { fakeRun, listingOf } from '../support/listing.ts';

const bodies = Compile(EditRunSchema);

describe('an edit of the labels of a run', () => {
  test('changes what it names, and counts', () => {
    const first = edited(NO_LABELS, { name: ' Best of May ', tags: ['a', 'b', 'a'] });
    expect(first).toEqual({
      ...{ name: 'Best of May', tags: ['a', 'b'], note: null, archived: false, edits: 1 },
    });
    const second = edited(first, { addTags: ['c', 'b'], removeTags: ['a'], note: 'two\nlines' });
    expect(second).toMatchObject({ name: 'Best of May', tags: ['b', 'c'], edits: 2 });
    expect(edited(second, { archived: true, name: null, note: '' })).toEqual({
      ...{ name: null, tags: ['b', 'c'], note: null, archived: true, edits: 3 },
    });
    expect(Compile(LabelsSchema).Check(second)).toBe(true);
  });

  test('that changes nothing is none', () => {
    const labels = edited(NO_LABELS, { tags: ['a'] });
    expect(edited(labels, { tags: ['a'], archived: false, note: '  ' })).toBe(labels);
    expect(edited(NO_LABELS, {})).toBe(NO_LABELS);
  });

  test('has limits', () => {
    const { labelNameLengthMax, labelNoteLengthMax, labelTagCountMax, labelTagLengthMax } = LIMITS;
    const tags = Array.from({ length: labelTagCountMax }, (_, i) => `t${i}`);
    const within = [
      { name: 'n'.repeat(labelNameLengthMax) },
      { note: 'n'.repeat(labelNoteLengthMax) },
      { tags },
      { addTags: ['t'.repeat(labelTagLengthMax)] },
      { tags: ['größe', 'v1.2/x:y'] },
    ];
    for (const body of within) expect(bodies.Check(body), JSON.stringify(body)).toBe(true);
    const beyond = [
      { name: 'n'.repeat(labelNameLengthMax + 1) },
      { note: 'n'.repeat(labelNoteLengthMax + 1) },
      { tags: [...tags, 'more'] },
      { addTags: ['t'.repeat(labelTagLengthMax + 1)] },
      { tags: ['two words'] },
      { tags: ['a,b'] },
      { tags: [''] },
      { tags: null },
      { archived: 'true' },
      { title: 'x' },
    ];
    for (const body of beyond) expect(bodies.Check(body), JSON.stringify(body)).toBe(false);
    const full = edited(NO_LABELS, { tags });
    expect(edited(full, { addTags: ['new'], removeTags: ['t0'] }).tags).toHaveLength(
      labelTagCountMax,
    );
    expect(() => edited(full, { addTags: ['new'] })).toThrow('a run would have 21 tags');
    expect(() => edited(NO_LABELS, { name: 'a\nb' })).toThrow('one line');
  });
});

describe('a listing with labels', () => {
  const labelled = (id: string, more: object) => Object.assign(fakeRun(id), more);
  const runs = () => [
    labelled('a', { tags: ['x'] }),
    labelled('b', { archived: true, over: true, phase: 'finished', tags: ['x', 'y'] }),
    labelled('c', { study: 's' }),
    labelled('d', { study: 's', tags: ['x'] }),
    labelled('e', { tags: ['y'] }),
  ];
  const ids = (entries: readonly { readonly run: { readonly id: string } }[]) =>
    entries.map(({ run }) => run.id);

  test('leaves archived runs out and finds them again', () => {
    const listing = listingOf(runs());
    listing.refresh();
    expect(listing.archivedCount).toBe(1);
    expect(ids(listing.page(null, 10)!.entries)).toEqual(['a', 'c', 'd', 'e']);
    expect(ids(listing.page(null, 10, { archived: true })!.entries)).toEqual(['b']);
    expect(ids(listing.page(null, 10, { archived: 'all', tag: 'x' })!.entries)).toEqual([
      ...['a', 'b', 'd'],
    ]);
    expect(ids(listing.page(null, 10, { study: 's' })!.entries)).toEqual(['c', 'd']);
    expect(ids(listing.newest(10))).toEqual(['e', 'd', 'c', 'a']);
    expect(ids(listing.newest(2, { noTrials: true }))).toEqual(['e', 'a']);
    expect(listing.page(null, 3)).toMatchObject({ next: 'd' });
    expect(listing.page(null, 4)).toMatchObject({ next: null });
    listing.remove('b');
    expect(listing.archivedCount).toBe(0);
  });

  test('folds the trials of a study, and looks again at those that have changed alone', () => {
    const trial = (i: number) =>
      labelled(`t${i}`, {
        ...{
          study: i < 600 ? 's' : 'other',
          createdAt: `2026-01-01T00:${10 + (i % 50)}`,
          over: true,
        },
        ...{ phase: i % 2 ? 'finished' : 'failed', experiment: 'e', examplesPerSecond: null },
        ...{ earlyStopping: { metric: 'error' }, best: { error: 1 / (i + 1), loss: null } },
        errorMeasure: 'misclassification',
      });
    const trials = Array.from({ length: 1_000 }, (_, i) => trial(i));
    const listing = listingOf(trials);
    listing.refresh();
    const [first, second] = listing.folds().sort((a, b) => b.runs - a.runs);
    expect(first).toMatchObject({
      ...{ study: 's', runs: 600, phases: { finished: 300, failed: 300 }, experiment: 'e' },
      best: { run: 't599', metric: 'error', value: 1 / 600 },
    });
    expect(second).toMatchObject({ study: 'other', runs: 400, best: { run: 't999' } });
    expect(listing.folded).toBe(1_000);
    for (let i = 0; i < 20; i++) listing.folds();
    expect(listing.folded).toBe(1_000);
    Object.assign(trials[999]!, { archived: true });
    listing.touch(trials[999]!);
    listing.refresh();
    expect(listing.folds().find(({ study }) => study === 'other')).toMatchObject({
      ...{ runs: 399, best: { run: 't998' } },
    });
    expect(listing.folded).toBe(1_399);
    for (const { id } of trials.slice(600)) listing.remove(id);
    expect(listing.folds().map(({ study }) => study)).toEqual(['s']);
  });
});
