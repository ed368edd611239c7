import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { DownpourError } from '../../shared/errors.ts';
import { Queries } from '../../web/queries.ts';

/** What views of the dashboard read from the server: again until it has come. */

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

/** A view that wants `stamp`, and a server that answers as `answer` says. */
function viewOf(answer: () => Promise<string>) {
  const shown: string[] = [];
  const said: string[] = [];
  const view = { stamp: 'first', everyMs: 0, asked: 0, absent: 0, shown, said };
  const again = () => reading.want(view.stamp, view.everyMs);
  const queries = new Queries((text) => said.push(text), again);
  const reading = queries.of({
    what: 'the curves',
    read: () => {
      view.asked++;
      return answer();
    },
    show: (found) => shown.push(found),
    absent: () => {
      view.absent++;
    },
  });
  return Object.assign(view, { queries, reading });
}

describe('a view that reads from the server', () => {
  test('reads once for each stamp', async () => {
    const view = viewOf(async () => `answer ${view.asked}`);
    for (const stamp of ['a', 'a', 'b', 'b']) {
      view.reading.want(stamp);
      await vi.advanceTimersByTimeAsync(1);
    }
    expect(view.shown).toEqual(['answer 1', 'answer 2']);
  });

  test('says what could not be read, and reads it again though nothing else happens', async () => {
    const view = viewOf(async () => {
      if (view.asked < 3) throw new DownpourError('DP_INTERNAL', 'the disk is on fire');
      return 'at last';
    });
    view.reading.want('first');
    await vi.advanceTimersByTimeAsync(1);
    expect(view.said).toEqual(['Could not read the curves: the disk is on fire. Trying again.']);
    expect(view.shown).toEqual([]);
    // A view that is drawn meanwhile asks no sooner.
    view.reading.want('first');
    expect(view.asked).toBe(1);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(view.shown).toEqual(['at last']);
    expect(view.said.at(-1)).toBe('');
    expect(view.asked).toBe(3);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(view.asked).toBe(3);
  });

  test('names each that failed, and the reason of the first', async () => {
    const view = viewOf(async () => {
      throw new DownpourError('DP_SERVER_UNREACHABLE', 'no answer');
    });
    const log = view.queries.of({
      ...{ what: 'the log', show: () => {} },
      read: async () => {
        throw new DownpourError('DP_INTERNAL', 'another reason');
      },
    });
    view.reading.want('first');
    await vi.advanceTimersByTimeAsync(1);
    log.want('first');
    await vi.advanceTimersByTimeAsync(1);
    expect(view.said.at(-1)).toBe('Could not read the curves, the log: no answer. Trying again.');
  });

  test('names six of many that failed, and counts the others', async () => {
    const said: string[] = [];
    const queries = new Queries(
      (text) => said.push(text),
      () => {},
    );
    for (const name of 'abcdefgh') {
      const read = async () => {
        throw new DownpourError('DP_INTERNAL', 'no');
      };
      queries.of({ what: `run ${name}`, show: () => {}, read }).want('first');
    }
    await vi.advanceTimersByTimeAsync(1);
    expect(said.at(-1)).toBe(
      'Could not read run a, run b, run c, run d, run e, run f and 2 more: no. Trying again.',
    );
  });

  test('reads a few at a time, and all of them', async () => {
    const under: (() => void)[] = [];
    let most = 0;
    const shown: number[] = [];
    const queries = new Queries(
      () => {},
      () => {},
      2,
    );
    for (let i = 0; i < 7; i++) {
      const read = async () => {
        await new Promise<void>((resolve) => {
          most = Math.max(most, under.push(resolve));
        });
        // One that fails gives its turn to the next, too.
        if (i === 3) throw new DownpourError('DP_INTERNAL', 'no');
        return i;
      };
      queries.of({ what: `run ${i}`, read, show: (found) => shown.push(found) }).want('first');
    }
    for (let i = 0; i < 7; i++) {
      expect(queries.isReading).toBe(true);
      under.shift()!();
      await vi.advanceTimersByTimeAsync(1);
    }
    expect(shown).toEqual([0, 1, 2, 4, 5, 6]);
    expect(most).toBe(2);
    expect(queries.isReading).toBe(false);
  });

  test('does not read again what the server does not have', async () => {
    const view = viewOf(async () => {
      throw new DownpourError('DP_RUN_UNKNOWN', 'no run of this name');
    });
    view.reading.want('first');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(view).toMatchObject({ asked: 1, absent: 1, shown: [] });
    expect(view.said.at(-1)).toBe('');
  });

  test('keeps its distance, and then reads what is wanted last', async () => {
    const view = viewOf(async () => view.stamp);
    view.everyMs = 1_000;
    for (const stamp of ['a', 'b', 'c']) {
      view.stamp = stamp;
      view.reading.want(stamp, 1_000);
      await vi.advanceTimersByTimeAsync(10);
    }
    expect(view.shown).toEqual(['a']);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(view.shown).toEqual(['a', 'c']);
  });

  test('reads once more what became another while it was read', async () => {
    let answered = (_text: string) => {};
    const view = viewOf(
      () =>
        new Promise((resolve) => {
          answered = resolve;
        }),
    );
    view.reading.want('first');
    view.stamp = 'second';
    view.reading.want('second');
    answered('old');
    await vi.advanceTimersByTimeAsync(1);
    answered('new');
    await vi.advanceTimersByTimeAsync(1);
    expect(view.shown).toEqual(['old', 'new']);
  });

  test('ends with the view', async () => {
    const view = viewOf(async () => {
      throw new DownpourError('DP_INTERNAL', 'no');
    });
    view.reading.want('first');
    view.queries.end();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(view).toMatchObject({ asked: 1, said: [] });
  });
});
