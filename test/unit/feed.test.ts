import { expect, test } from 'vitest';
import { Feed } from '../../server/feed.ts';
import { LIMITS } from '../../shared/config.ts';
import type { FeedUpdate, RunSummary, ServerFacts, WorkerSummary } from '../../shared/rest.ts';

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
  const runs = Array.from({ length: runCount }, (_, i) => ({ id: `run-${i}`, step: 0 }));
  const workers = [{ worker: 'ada', incarnation: '1', state: 'training' }];
  const clock = { ms: 0, reads: 0 };
  const feed = new Feed(
    {
      server: () => ({ version: '1' }) as ServerFacts,
      runs: () => {
        clock.reads++;
        return runs as unknown as RunSummary[];
      },
      workers: () => workers as unknown as WorkerSummary[],
    },
    () => clock.ms,
  );
  const tick = () => {
    clock.ms += 1000;
    feed.tick();
  };
  return { feed, runs, workers, clock, tick };
}

test('a reader is sent all at first, then what has changed', () => {
  const { feed, runs, workers, tick } = start();
  const reader = new Reader();
  feed.open(reader);
  expect(reader.updates[0]!.runs.map(({ id }) => id)).toEqual(['run-0', 'run-1', 'run-2']);
  runs[1]!.step = 7;
  workers.pop();
  tick();
  expect(reader.updates[1]!.runs).toEqual([{ id: 'run-1', step: 7 }]);
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
  const { feed, runs, clock, tick } = start(400);
  for (const run of runs) Object.assign(run, { reason: 'x'.repeat(1000) });
  const reader = new Reader();
  feed.open(reader);
  const first = reader.texts.join('').length;
  for (let s = 0; s < 120; s++) {
    for (const run of runs) run.step++;
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
