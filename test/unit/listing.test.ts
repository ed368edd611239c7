import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { waitsForWorker } from '../../server/watch/alerts.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { type FakeRun, fakeRun, listingOf } from '../support/listing.ts';

const many = (count: number) => Array.from({ length: count }, (_, i) => fakeRun(`run-${i}`));
const idsOf = (entries: readonly { readonly run: FakeRun }[]) => entries.map(({ run }) => run.id);

function end(run: FakeRun): void {
  Object.assign(run, { over: true, moving: false, phase: 'finished' });
}

describe('a listing', () => {
  test('reads no run twice that nothing has happened to', () => {
    const runs = many(10_000);
    const listing = listingOf(runs);
    listing.refresh();
    expect(listing.reads).toBe(10_000);
    listing.reads = 0;
    for (let i = 0; i < 50; i++) {
      listing.refresh();
      listing.page(null, 10_000);
      listing.newest(200);
    }
    expect(listing.reads).toBe(0);
    runs[3]!.step = 5;
    listing.touch(runs[3]!);
    runs[4]!.moving = true;
    listing.touch(runs[4]!);
    for (let i = 0; i < 10; i++) listing.refresh();
    expect(listing.reads).toBe(1 + 10);
    expect(listing.at(3)!.summary.step).toBe(5);
  });

  test('is read page by page, each run once, also while runs are made', () => {
    const listing = listingOf(many(25));
    const seen: string[] = [];
    for (let after: string | null = null; ; ) {
      listing.refresh();
      const page: NonNullable<ReturnType<typeof listing.page>> = listing.page(after, 10)!;
      seen.push(...idsOf(page.entries));
      if (seen.length === 20) listing.add(fakeRun('late'));
      if (page.next === null) break;
      after = page.next;
    }
    expect(seen).toEqual([...many(25).map(({ id }) => id), 'late']);
    expect(listing.page('nobody', 10)).toBeNull();
    expect(listing.page('late', 10)).toEqual({ entries: [], next: null });
  });

  test('is in the order of creation, whenever a run is read', () => {
    const ids = ['d', 'b', 'e', 'a', 'c'];
    const listing = listingOf([], ({ id }) => id);
    for (const id of ids) listing.add(fakeRun(id));
    listing.refresh();
    expect(idsOf(listing.page(null, 10)!.entries)).toEqual([...ids].sort());
    expect(ids.map((_, i) => listing.at(i)!.index)).toEqual([0, 1, 2, 3, 4]);
    listing.remove('c');
    listing.add(fakeRun('c'));
    listing.refresh();
    expect(idsOf(listing.page('b', 10)!.entries)).toEqual(['c', 'd', 'e']);
  });

  test('gives those at work first, then the newest', () => {
    const runs = many(300);
    for (const run of runs.slice(1)) end(run);
    const listing = listingOf(runs);
    listing.refresh();
    const ids = idsOf(listing.newest(200));
    expect(ids).toHaveLength(200);
    expect(ids.slice(0, 3)).toEqual(['run-0', 'run-299', 'run-298']);
    end(runs[0]!);
    Object.assign(runs[9]!, { over: false, phase: 'training' });
    for (const run of [runs[0]!, runs[9]!]) listing.touch(run);
    listing.refresh();
    expect(idsOf(listing.newest(2))).toEqual(['run-9', 'run-299']);
    expect(listing.newest(1_000)).toHaveLength(300);
  });

  test('tells all as it was while it is frozen', () => {
    const runs = many(2);
    runs[0]!.moving = true;
    const listing = listingOf(runs);
    listing.freeze();
    runs[0]!.step = 9;
    listing.touch(runs[0]!);
    listing.refresh();
    expect(listing.at(0)!.summary.step).toBe(0);
    listing.reset(runs);
    listing.refresh();
    expect(listing.at(0)!.summary.step).toBe(9);
  });

  test('has the same as if all were read at once, whatever happens to the runs', () => {
    const action = fc.record({
      what: fc.constantFrom('begin', 'step', 'end', 'alarm', 'add', 'remove', 'look'),
      which: fc.nat(30),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
        const runs = many(5);
        const listing = listingOf(runs);
        const watched = listing.watch();
        for (const { what, which } of actions) {
          const run = runs[which % Math.max(1, runs.length)];
          if (what === 'add') {
            const made = fakeRun(`made-${runs.length}-${which}`);
            if (runs.some(({ id }) => id === made.id)) continue;
            runs.push(made);
            listing.add(made);
          } else if (what === 'look') listing.refresh();
          else if (!run) continue;
          else if (what === 'remove') {
            runs.splice(runs.indexOf(run), 1);
            listing.remove(run.id);
            expect(watched.gone).toContain(run.id);
          } else {
            if (what === 'begin') {
              Object.assign(run, { over: false, moving: true, phase: 'training', workers: 1 });
            } else if (what === 'step') run.step++;
            else if (what === 'end') end(run);
            else run.reason = `alarm ${which}`;
            listing.touch(run);
          }
        }
        listing.refresh();
        expect(listing.size).toBe(runs.length);
        const { entries } = listing.page(null, 1_000)!;
        expect(entries.map(({ text }) => text)).toEqual(runs.map((run) => JSON.stringify(run)));
        expect(entries.map(({ index }) => index)).toEqual(runs.map((_, i) => i));
        const summaries = runs as unknown as RunSummary[];
        expect(listing.waiting.count).toBe(summaries.filter(waitsForWorker).length);
        const alarming = runs.filter(({ reason }) => reason.startsWith('alarm'));
        expect(listing.alarming.map(({ id }) => id)).toEqual(alarming.map(({ id }) => id));
        const phases = [...listing.phases].filter(([, count]) => count > 0);
        for (const [phase, count] of phases) {
          expect(count).toBe(runs.filter((run) => run.phase === phase).length);
        }
        expect(phases.reduce((sum, [, count]) => sum + count, 0)).toBe(runs.length);
      }),
    );
  });
});
