import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createMode } from '../../server/core/modes/create.ts';
import { AWAY_MS } from '../../server/core/modes/crowd.ts';
import type { Mode } from '../../server/core/modes/mode.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';

/** The policies alone: who may go on, and when a step is made. */

function modeOf(consistency: PartialConfig['consistency'], workers: readonly string[] = []): Mode {
  const mode = createMode(resolveConfig({ consistency }).consistency)!;
  for (const worker of workers) mode.arrived(worker);
  return mode;
}

/** As a run does it, with numbers in the place of gradients. */
class Steps {
  readonly mode: Mode;
  collected = 0;
  steps = 0;
  constructor(mode: Mode) {
    this.mode = mode;
  }
  look(now = 0): void {
    if (this.collected === 0 || !this.mode.isComplete(this.collected, now)) return;
    this.collected = 0;
    this.steps++;
    this.mode.stepped();
  }
  push(worker: string, now = 0): void {
    expect(this.mode.refuse(worker, { staleness: 0, serverStep: this.steps })).toBeNull();
    this.mode.pushed(worker, ++this.collected, now);
    this.look(now);
  }
}

test('asynchronous runs have no mode', () => {
  expect(createMode(resolveConfig({}).consistency)).toBeNull();
});

describe('bounded', () => {
  test('a worker that is aheadMax ahead goes on, one more waits until the slowest has pushed', () => {
    const mode = modeOf({ mode: 'bounded', aheadMax: 2 }, ['fast', 'slow']);
    for (let i = 0; i < 2; i++) {
      expect(mode.mayPull('fast')).toBe(true);
      mode.pushed('fast', 0, 0);
    }
    expect(mode.mayPull('fast')).toBe(true);
    mode.pushed('fast', 0, 0);
    expect(mode.mayPull('fast')).toBe(false);
    expect(mode.refuse('fast', { staleness: 0, serverStep: 0 })).toContain('aheadMax is 2');
    expect(mode.takeOpened()).toBe(false);
    mode.pushed('slow', 0, 0);
    expect(mode.takeOpened()).toBe(true);
    expect(mode.takeOpened()).toBe(false);
    expect(mode.mayPull('fast')).toBe(true);
  });

  test('with several pushes under way those count as ahead', () => {
    const mode = modeOf({ mode: 'bounded', aheadMax: 2, depth: 2 }, ['fast', 'slow']);
    mode.pushed('fast', 0, 0);
    expect(mode.mayPull('fast')).toBe(true);
    mode.pushed('fast', 0, 0);
    expect(mode.mayPull('fast')).toBe(false);
  });

  test('a newcomer begins with the slowest, and nobody waits for what it has missed', () => {
    const mode = modeOf({ mode: 'bounded', aheadMax: 0 }, ['a']);
    for (let i = 0; i < 50; i++) mode.pushed('a', 0, 0);
    mode.arrived('b');
    expect(mode.mayPull('a')).toBe(true);
    mode.pushed('a', 0, 0);
    expect(mode.mayPull('a')).toBe(false);
    mode.pushed('b', 0, 0);
    expect(mode.mayPull('a')).toBe(true);
  });

  test.each([
    ['has left', (mode: Mode) => mode.left('slow')],
    ['has let its minibatch run out of time', (mode: Mode) => mode.late('slow')],
    ['evaluates, or finds no minibatch', (mode: Mode) => mode.idle('slow')],
    [
      'is away for long',
      (mode: Mode) => {
        mode.departed('slow', 0);
        mode.tick(AWAY_MS - 1);
        expect(mode.takeOpened()).toBe(false);
        mode.tick(AWAY_MS);
      },
    ],
  ])('one that %s holds nobody up', (_, go) => {
    const mode = modeOf({ mode: 'bounded', aheadMax: 0 }, ['fast', 'slow']);
    mode.pushed('fast', 0, 0);
    expect(mode.mayPull('fast')).toBe(false);
    go(mode);
    expect(mode.takeOpened()).toBe(true);
    expect(mode.mayPull('fast')).toBe(true);
  });

  test('one that comes back is waited for again, from where the others are', () => {
    const mode = modeOf({ mode: 'bounded', aheadMax: 1 }, ['a', 'b']);
    mode.idle('b');
    for (let i = 0; i < 10; i++) mode.pushed('a', 0, 0);
    mode.given('b');
    mode.pushed('a', 0, 0);
    expect(mode.mayPull('a')).toBe(true);
    mode.pushed('a', 0, 0);
    expect(mode.mayPull('a')).toBe(false);
  });

  test('clocks never part by more than the bound, whoever comes and goes, and somebody may always go on', () => {
    const events = fc.array(
      fc.record({
        what: fc.constantFrom('push', 'push', 'push', 'arrive', 'leave', 'late', 'idle', 'given'),
        who: fc.integer({ min: 0, max: 4 }),
      }),
      { maxLength: 200 },
    );
    fc.assert(
      fc.property(events, fc.integer({ min: 0, max: 3 }), (list, aheadMax) => {
        const mode = modeOf({ mode: 'bounded', aheadMax });
        for (const { what, who } of list) {
          const worker = `w${who}`;
          if (what === 'arrive') mode.arrived(worker);
          else if (what === 'leave') mode.left(worker);
          else if (what === 'late') mode.late(worker);
          else if (what === 'idle') mode.idle(worker);
          else if (what === 'given') mode.given(worker);
          else if (mode.mayPull(worker)) {
            mode.given(worker);
            mode.pushed(worker, 0, 0);
          }
          const ready = mode.state().members.filter(([, , standing]) => standing === 'ready');
          const clocks = ready.map(([, clock]) => clock);
          if (clocks.length === 0) continue;
          // A minibatch that was begun within the bound ends one further.
          expect(Math.max(...clocks) - Math.min(...clocks)).toBeLessThanOrEqual(aheadMax + 1);
          expect(ready.some(([name]) => mode.mayPull(name))).toBe(true);
        }
      }),
    );
  });
});

describe('synchronous', () => {
  test('a step is made with the push of the last worker, and who has pushed waits for it', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b', 'c']);
    const run = new Steps(mode);
    run.push('a');
    expect(mode.mayPull('a')).toBe(false);
    expect(mode.mayPull('b')).toBe(true);
    run.push('b');
    expect(run.steps).toBe(0);
    expect(mode.takeOpened()).toBe(false);
    run.push('c');
    expect(run.steps).toBe(1);
    expect(mode.takeOpened()).toBe(true);
    expect(mode.takeOpened()).toBe(false);
    for (const worker of ['a', 'b', 'c']) expect(mode.mayPull(worker)).toBe(true);
  });

  test('a second push of a worker for a step is refused, and one of an earlier step', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b']);
    const run = new Steps(mode);
    run.push('a');
    expect(mode.refuse('a', { staleness: 0, serverStep: 0 })).toContain('is there already');
    expect(mode.refuse('b', { staleness: 2, serverStep: 9 })).toContain('which is of step 7');
  });

  test('one that evaluates, has left or is out of time is not waited for, and takes part again', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b', 'c', 'd']);
    const run = new Steps(mode);
    mode.idle('b');
    mode.left('c');
    run.push('a');
    expect(run.steps).toBe(0);
    mode.late('d');
    run.look();
    expect(run.steps).toBe(1);
    mode.given('b');
    run.push('a');
    expect(run.steps).toBe(1);
    run.push('b');
    expect(run.steps).toBe(2);
    // It was only slow.
    run.push('d');
    expect(run.steps).toBe(2);
    run.push('a');
    run.push('b');
    expect(run.steps).toBe(3);
  });

  test('one whose connection is lost is waited for a while', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b']);
    const run = new Steps(mode);
    mode.departed('b', 100);
    run.push('a', 200);
    mode.tick(100 + AWAY_MS - 1);
    run.look(100 + AWAY_MS - 1);
    expect(run.steps).toBe(0);
    mode.tick(100 + AWAY_MS);
    run.look(100 + AWAY_MS);
    expect(run.steps).toBe(1);
  });

  test('time in which the server stood still does not count', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b']);
    const run = new Steps(mode);
    mode.departed('b', 0);
    run.push('a');
    mode.postpone(60_000);
    mode.tick(60_000 + AWAY_MS - 1);
    run.look(60_000);
    expect(run.steps).toBe(0);
  });

  test('where there is room for fewer pushes than workers, so many make a step', () => {
    const mode = modeOf({ mode: 'synchronous' }, ['a', 'b', 'c']);
    mode.place(2);
    const run = new Steps(mode);
    run.push('a');
    run.push('b');
    expect(run.steps).toBe(1);
  });
});

describe('backup', () => {
  test('a step is of all workers but the spares, and never of none', () => {
    const mode = modeOf({ mode: 'backup', spares: 2 }, ['a', 'b', 'c', 'd']);
    const run = new Steps(mode);
    run.push('a');
    expect(run.steps).toBe(0);
    run.push('b');
    expect(run.steps).toBe(1);
    mode.left('a');
    mode.left('b');
    run.push('c');
    expect(run.steps).toBe(2);
  });

  test('with a quorum it is of the first so many, or of all where there are fewer', () => {
    const mode = modeOf({ mode: 'backup', quorum: 3 }, ['a', 'b', 'c', 'd']);
    const run = new Steps(mode);
    run.push('d');
    run.push('b');
    expect(run.steps).toBe(0);
    run.push('a');
    expect(run.steps).toBe(1);
    mode.left('c');
    mode.left('d');
    run.push('a');
    run.push('b');
    expect(run.steps).toBe(2);
  });

  test('a quorum waits its time for more, and ends at once when all are there', () => {
    const mode = modeOf({ mode: 'backup', quorum: 2, graceMs: 50 }, ['a', 'b', 'c']);
    const run = new Steps(mode);
    run.push('a', 10);
    expect(mode.deadline).toBeNull();
    run.push('b', 20);
    expect(mode.deadline).toBe(70);
    run.look(69);
    expect(run.steps).toBe(0);
    run.look(70);
    expect(run.steps).toBe(1);
    expect(mode.deadline).toBeNull();
    run.push('a', 80);
    run.push('b', 90);
    run.push('c', 91);
    expect(run.steps).toBe(2);
  });
});

describe('buffered', () => {
  test('so many pushes make a step, and nobody waits', () => {
    const mode = modeOf({ mode: 'buffered', bufferSize: 3 }, ['a']);
    const run = new Steps(mode);
    for (let i = 0; i < 7; i++) {
      expect(mode.mayPull('a')).toBe(true);
      run.push('a');
    }
    expect(run.steps).toBe(2);
    expect(run.collected).toBe(1);
  });
});

describe.each([
  [{ mode: 'bounded', aheadMax: 1 }],
  [{ mode: 'synchronous' }],
  [{ mode: 'backup', quorum: 2, graceMs: 20 }],
] as const)('a replica of %j', (consistency) => {
  const events = fc.array(
    fc.record({
      what: fc.constantFrom('push', 'push', 'arrive', 'leave', 'depart', 'late', 'idle', 'tick'),
      who: fc.integer({ min: 0, max: 3 }),
    }),
    { maxLength: 60 },
  );
  /** What a run would do, and what it sees. */
  function act(run: Steps, what: string, worker: string, now: number): unknown {
    const { mode } = run;
    if (what === 'arrive') mode.arrived(worker);
    else if (what === 'leave') mode.left(worker);
    else if (what === 'depart') mode.departed(worker, now);
    else if (what === 'late') mode.late(worker);
    else if (what === 'idle') mode.idle(worker);
    else if (what === 'tick') mode.tick(now);
    else if (mode.mayPull(worker)) {
      mode.given(worker);
      if (mode.collects) run.push(worker, now);
      else mode.pushed(worker, 0, now);
    }
    run.look(now);
    return [mode.takeOpened(), mode.deadline, run.steps, mode.replica()];
  }

  test('goes on as its original, whenever it is made', () => {
    fc.assert(
      fc.property(events, fc.nat(60), (list, cut) => {
        const original = new Steps(modeOf(consistency));
        const at = (i: number) => 1_000 * i;
        for (const [i, { what, who }] of list.slice(0, cut).entries()) {
          act(original, what, `w${who}`, at(i));
        }
        const replica = new Steps(modeOf(consistency));
        replica.mode.replicate(JSON.parse(JSON.stringify(original.mode.replica())));
        replica.collected = original.collected;
        replica.steps = original.steps;
        for (const [i, { what, who }] of list.slice(cut).entries()) {
          const now = at(cut + i);
          expect(act(replica, what, `w${who}`, now)).toEqual(act(original, what, `w${who}`, now));
        }
      }),
    );
  });
});

describe('after a restart', () => {
  test('those that were there are waited for as long as for any that is away', () => {
    const before = modeOf({ mode: 'synchronous' }, ['a', 'b', 'c']);
    before.pushed('a', 1, 0);
    const mode = modeOf({ mode: 'synchronous' });
    mode.restore(JSON.parse(JSON.stringify(before.state())));
    const run = new Steps(mode);
    run.collected = 1;
    mode.arrived('a');
    mode.arrived('b');
    expect(mode.mayPull('a')).toBe(false);
    run.push('b', 5_000);
    expect(run.steps).toBe(0);
    mode.tick(6_000);
    mode.tick(6_000 + AWAY_MS);
    run.look(6_000 + AWAY_MS);
    expect(run.steps).toBe(1);
  });
});
