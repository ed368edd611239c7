import { expect, test, vi } from 'vitest';
import { Feed } from '../../server/http/feed.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { FeedUpdate, ServerFacts, WorkerSummary } from '../../shared/rest.ts';
import { type FakeRun, fakeRun, listingOf } from '../support/listing.ts';

class Reader {
  readonly texts: string[] = [];
  waiting = 0;
  ended = false;
  mayLook = true;
  write(text: string): void {
    this.texts.push(text);
  }
  end(): void {
    this.ended = true;
  }
  readonly allowed = () => this.mayLook;

  get updates(): FeedUpdate[] {
    const events = this.texts.filter((text) => text.startsWith('data: '));
    return events.map((text) => JSON.parse(text.slice(6)) as FeedUpdate);
  }
}

/** A server whose facts a test changes, on a clock that it sets. */
function start(runCount = 3) {
  const runs: FakeRun[] = Array.from({ length: runCount }, (_, i) => fakeRun(`run-${i}`));
  const workers = [{ worker: 'ada', incarnation: '1', state: 'training' }];
  const clock = { ms: 0, reads: 0 };
  const listing = listingOf(runs);
  const feed = new Feed(
    {
      listing,
      server: () => {
        clock.reads++;
        return { version: '1' } as ServerFacts;
      },
      workers: () => workers as unknown as WorkerSummary[],
    },
    () => clock.ms,
  );
  const tick = () => {
    clock.ms += 1000;
    feed.tick();
  };
  return { feed, runs, listing, workers, clock, tick };
}

test('a reader is sent all at first, then what has changed', () => {
  const { feed, runs, listing, workers, tick } = start();
  const reader = new Reader();
  feed.open(reader);
  expect(reader.updates[0]!.runs.map(({ id }) => id)).toEqual(['run-0', 'run-1', 'run-2']);
  runs[1]!.step = 7;
  listing.touch(runs[1]!);
  workers.pop();
  tick();
  expect(reader.updates[1]!.runs).toMatchObject([{ id: 'run-1', step: 7 }]);
  expect(reader.updates[1]!.gone).toEqual({ runs: [], workers: ['ada/1'] });
  tick();
  expect(reader.updates[2]).toMatchObject({ runs: [], workers: [], gone: { workers: [] } });
});

test('nothing is read while nobody looks', () => {
  const { feed, clock, tick } = start();
  tick();
  expect(clock.reads).toBe(0);
  const leave = feed.open(new Reader());
  tick();
  expect(clock.reads).toBe(2);
  leave();
  tick();
  expect(clock.reads).toBe(2);
});

test('however much there is to tell, a reader is sent no more than the limit on average', () => {
  const { feed, runs, listing, clock, tick } = start(400);
  for (const run of runs) run.reason = 'x'.repeat(1000);
  const reader = new Reader();
  feed.open(reader);
  const first = reader.texts.join('').length;
  for (let s = 0; s < 120; s++) {
    for (const run of runs) {
      run.step++;
      listing.touch(run);
    }
    tick();
  }
  const sent = reader.texts.join('').length - first;
  expect(sent / (clock.ms / 1000)).toBeLessThanOrEqual(LIMITS.feedBytesPerSecondMax);
  expect(sent).toBeGreaterThan(0);
  // What it gets late is the newest.
  expect(reader.updates.at(-1)!.runs[0]!.step).toBeGreaterThan(100);
});

test('one that takes nothing is waited for, then closed; so is one that may not look any more', () => {
  const { feed, tick } = start();
  const [slow, refused, good] = [new Reader(), new Reader(), new Reader()];
  for (const reader of [slow, refused, good]) feed.open(reader);
  slow.waiting = 1;
  refused.mayLook = false;
  tick();
  expect(refused.ended).toBe(true);
  for (let s = 0; s < 29; s++) tick();
  expect(slow.ended).toBe(false);
  expect(slow.updates).toHaveLength(1);
  tick();
  tick();
  expect(slow.ended).toBe(true);
  expect(good.ended).toBe(false);
});

test('there is room for so many dashboards', () => {
  const { feed } = start();
  for (let i = 0; i < LIMITS.feedCountMax; i++) {
    feed.mustHaveRoom();
    feed.open(new Reader());
  }
  expect(() => feed.mustHaveRoom()).toThrow(/at most 64/);
});

test('of many runs the newest and those at work come at once, the others little by little, and never again', () => {
  const { feed, runs, listing, tick } = start(5_000);
  runs[7]!.moving = true;
  listing.touch(runs[7]!);
  listing.refresh();
  const reader = new Reader();
  feed.open(reader);
  const first = reader.updates[0]!;
  expect(first.runs.length).toBeLessThan(300);
  expect(first.runs[0]!.id).toBe('run-7');
  expect(first.runs.at(-1)!.id).toBe('run-4999');
  expect(first.rest).toBe(5_000 - first.runs.length + 1);
  runs[7]!.moving = false;
  listing.touch(runs[7]!);
  for (let s = 0; s < 2_000 && reader.updates.at(-1)!.rest! > 0; s++) tick();
  const seen = reader.updates.flatMap((update) => update.runs.map(({ id }) => id));
  expect(new Set(seen).size).toBe(5_000);
  expect(seen.length).toBeLessThanOrEqual(5_002);
});

test('a second of a dashboard costs what has changed, not how many runs there are', () => {
  const { feed, runs, listing, tick } = start(10_000);
  feed.open(new Reader());
  listing.reads = 0;
  for (let s = 0; s < 100; s++) {
    runs[5]!.step++;
    listing.touch(runs[5]!);
    tick();
  }
  expect(listing.reads).toBe(100);
});

test('all readers begin anew when the runs were read anew', () => {
  const { feed, runs, listing, tick } = start();
  const reader = new Reader();
  feed.open(reader);
  listing.reset(runs.slice(1));
  tick();
  expect(reader.ended).toBe(true);
  const again = new Reader();
  feed.open(again);
  expect(again.updates[0]!.runs.map(({ id }) => id)).toEqual(['run-1', 'run-2']);
});

test('a run that could not be kept is gone again', () => {
  const { feed, listing, tick } = start();
  const reader = new Reader();
  feed.open(reader);
  listing.add(fakeRun('fourth'));
  tick();
  expect(reader.updates.at(-1)!.runs.map(({ id }) => id)).toEqual(['fourth']);
  listing.remove('fourth');
  tick();
  expect(reader.updates.at(-1)!.gone.runs).toEqual(['fourth']);
});

test('nothing is kept for readers that may come, however many runs come and go', () => {
  const runs = [fakeRun('a'), fakeRun('b')];
  const listing = listingOf(runs);
  const watch = vi.spyOn(listing, 'watch');
  const facts = { server: () => ({ version: '1' }) as ServerFacts, workers: () => [] };
  const feed = new Feed({ listing, ...facts }, () => 0);
  const changes = watch.mock.results[0]!.value as ReturnType<typeof listing.watch>;
  for (let i = 0; i < 3; i++) {
    listing.add(fakeRun(`run-${i}`));
    listing.refresh();
    listing.remove(`run-${i}`);
    feed.tick();
    expect([changes.changed.size, changes.gone.size]).toEqual([0, 0]);
  }
  const reader = new Reader();
  feed.open(reader);
  expect(reader.updates[0]!.runs.map(({ id }) => id)).toEqual(['a', 'b']);
  expect(reader.updates[0]!.gone.runs).toEqual([]);
});
