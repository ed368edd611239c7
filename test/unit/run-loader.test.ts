import { expect, test } from 'vitest';
import { readingProgress } from '../../server/checkpoints/recovery.ts';
import { Run } from '../../server/core/run.ts';
import { RunLoader, type UnreadRun } from '../../server/fleet/run-loader.ts';
import { resolveConfig } from '../../shared/config.ts';

/** Which run is read when, and who hears of it. */

const runOf = (id: string) =>
  new Run({
    ...{ id, experiment: 'e', experimentHash: 'h', createdAt: '2026-01-01T00:00:00.000Z' },
    config: resolveConfig({}),
  });

/** Reading ends when the test says so. */
function open(known: readonly (readonly [id: string, isOver: boolean])[], atOnce = 1) {
  const begun: string[] = [];
  const ends = new Map<string, (run: Run | null) => void>();
  const adopted: string[] = [];
  const loader = new RunLoader({
    known: known.map(([id, isOver]): UnreadRun => ({ id, isOver, bundle: `bundle of ${id}` })),
    read: ({ id }) => {
      begun.push(id);
      return new Promise((resolve) => ends.set(id, resolve));
    },
    adopt: ({ id }) => adopted.push(id),
    atOnce,
  });
  const end = async (id: string, isGood = true) => {
    ends.get(id)!(isGood ? runOf(id) : null);
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { loader, begun, adopted, end };
}

const KNOWN = [
  ['old', false],
  ['over', true],
  ['newer', true],
  ['new', false],
] as const;

test('those that need workers are read first, then those that are over, the newest first', async () => {
  const { loader, begun, adopted, end } = open(KNOWN);
  let unfinished = false;
  void loader.unfinished!.then(() => {
    unfinished = true;
  });
  expect(loader.facts).toEqual({ done: 0, of: 4 });
  await end('new');
  expect(unfinished).toBe(false);
  await end('old');
  expect(unfinished).toBe(true);
  expect(loader.unfinished).toBe(null);
  await end('newer');
  expect(loader.facts).toEqual({ done: 3, of: 4 });
  expect([loader.has('over'), loader.has('newer'), loader.left]).toEqual([true, false, 1]);
  expect(loader.bundles).toEqual(['bundle of over']);
  await end('over');
  await loader.done;
  expect(begun).toEqual(['new', 'old', 'newer', 'over']);
  expect(adopted).toEqual(begun);
  expect(loader.facts).toBe(null);
});

test('one that is asked for is read next, and told when it is here, or cannot be', async () => {
  const { loader, begun, end } = open(KNOWN);
  const told: string[] = [];
  void loader.want('over')!.then(() => told.push('over'));
  void loader.want('over')!.then(() => told.push('over again'));
  void loader.want('new')!.then(() => told.push('new'));
  expect(loader.want('nobodys')).toBe(null);
  await end('new');
  expect(begun).toEqual(['new', 'over']);
  await end('over', false);
  expect(told).toEqual(['new', 'over', 'over again']);
  expect(loader.want('over')).toBe(null);
  for (const id of ['old', 'newer']) await end(id);
  await loader.done;
  expect(begun).toEqual(['new', 'over', 'old', 'newer']);
});

test('after a stop nothing is begun or taken, and nobody waits', async () => {
  const { loader, begun, adopted, end } = open(KNOWN, 2);
  const told = Promise.all([loader.want('over'), loader.want('new'), loader.unfinished]);
  const stopped = loader.stop();
  await end('new');
  await end('old');
  await Promise.all([stopped, told]);
  expect(begun).toEqual(['new', 'old']);
  expect(adopted).toEqual([]);
  expect(loader.left).toBeGreaterThan(0);
});

test('of nothing it is done at once', async () => {
  const { loader } = open([]);
  expect([loader.facts, loader.unfinished, loader.left]).toEqual([null, null, 0]);
  await loader.done;
});

test('a start that takes long says how far it is, every two seconds', () => {
  const lines: string[] = [];
  let now = 0;
  const tell = readingProgress(60, { now: () => now, log: (line) => lines.push(line) });
  for (let done = 0; done < 60; done++) {
    tell(done);
    now += 100;
  }
  expect(lines).toEqual(
    [20, 40].map((done) => `${done} of 60 runs are read from their checkpoints`),
  );
});
