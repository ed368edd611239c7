import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { Budget, Budgets, Meter } from '../../server/access/budget.ts';

/** On a clock that a test sets: what takes time says so. */
const now = () => performance.now();
const TERMS = { share: 0.1, burstMs: 100 };

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** Nothing else happens meanwhile. */
const takes = (ms: number) => vi.advanceTimersByTime(ms);

describe('a budget', () => {
  test('lasts for its burst, then for its share of the time', () => {
    const budget = new Budget(TERMS, now);
    budget.charge(99);
    expect(budget.hasTime).toBe(true);
    budget.charge(21);
    expect(budget.hasTime).toBe(false);
    // 20 ms are owed, and one is wanted before somebody goes on.
    expect(budget.waitMs).toBeCloseTo(210);
    takes(190);
    expect(budget.hasTime).toBe(false);
    takes(20);
    expect(budget.hasTime).toBe(true);
  });

  test('does not pay for a process that stood still', () => {
    const budget = new Budget(TERMS, now);
    budget.charge(3_600_000);
    expect(budget.waitMs).toBeLessThanOrEqual(10_000);
  });

  test('is never more than its burst, however long nothing is taken', () => {
    const budget = new Budget(TERMS, now);
    takes(3_600_000);
    budget.charge(100);
    expect(budget.hasTime).toBe(false);
  });

  test('lets those who wait go on by turns, as far as the time goes', () => {
    const budget = new Budget(TERMS, now);
    budget.charge(100);
    const went: string[] = [];
    const waiter = (name: string) => {
      const turn = () => {
        went.push(name);
        budget.charge(5);
        budget.await(turn);
      };
      return turn;
    };
    for (const name of ['a', 'b', 'c']) budget.await(waiter(name));
    takes(10);
    expect(went).toEqual(['a']);
    takes(200);
    expect(went.join('')).toBe('abcabc'.slice(0, went.length));
    expect(went.length).toBeGreaterThanOrEqual(4);
    // 0.1 of 210 ms and the last one's debt.
    expect(5 * went.length).toBeLessThanOrEqual(21 + 5);
  });

  test('forgets who has gone', () => {
    const budget = new Budget(TERMS, now);
    budget.charge(200);
    const turn = vi.fn();
    budget.await(turn);
    budget.leave(turn);
    expect(vi.getTimerCount()).toBe(0);
    takes(10_000);
    expect(turn).not.toHaveBeenCalled();
  });

  test('belongs to one holder; of more than the limit the oldest is forgotten', () => {
    const budgets = new Budgets(TERMS, now, 2);
    budgets.of('ada').charge(1_000);
    expect(budgets.of('ada').hasTime).toBe(false);
    expect(budgets.of('eve').hasTime).toBe(true);
    budgets.of('ada');
    budgets.of('bob');
    expect(budgets.of('ada').hasTime).toBe(false);
    budgets.of('eve');
    budgets.of('bob');
    expect(budgets.of('ada').hasTime).toBe(true);
  });
});

describe('a meter', () => {
  function metered(budget = new Budget(TERMS, now)) {
    const connection = { halt: vi.fn(), goOn: vi.fn() };
    const halted = vi.fn();
    return { budget, connection, halted, meter: new Meter({ budget, connection, now, halted }) };
  }

  test('charges nothing for work that was asked for, however much there is', () => {
    const { meter, budget, connection } = metered();
    for (let i = 0; i < 1_000; i++) {
      meter.begin();
      takes(1);
      meter.begun();
      meter.begin();
      takes(10);
      meter.forgive();
    }
    expect(connection.halt).not.toHaveBeenCalled();
    budget.charge(99);
    expect(budget.hasTime).toBe(true);
  });

  test('stands still after a message too many, until its turn comes', () => {
    const { meter, connection, halted } = metered();
    meter.begin();
    takes(60);
    meter.charge();
    expect(meter.stands).toBe(false);
    takes(60);
    meter.charge();
    expect(connection.halt).toHaveBeenCalledTimes(1);
    expect(halted).toHaveBeenCalledTimes(1);
    expect(meter.stands).toBe(true);
    takes(500);
    expect(connection.goOn).toHaveBeenCalledTimes(1);
    expect(meter.stands).toBe(false);
  });

  test('charges what never becomes a message', () => {
    const { meter, connection } = metered();
    for (let i = 0; i < 70; i++) {
      meter.begin();
      takes(2);
      meter.begun();
    }
    expect(connection.halt).toHaveBeenCalledTimes(1);
  });

  test('of the connections of one holder those that only do what was asked go on', () => {
    const { budget, meter, connection } = metered();
    const other = metered(budget);
    meter.begin();
    takes(300);
    meter.charge();
    expect(connection.halt).toHaveBeenCalled();
    for (let i = 0; i < 50; i++) {
      other.meter.begin();
      takes(1);
      other.meter.forgive();
    }
    expect(other.connection.halt).not.toHaveBeenCalled();
  });

  test('waits no more when its connection is gone', () => {
    const { meter, connection } = metered();
    meter.begin();
    takes(300);
    meter.charge();
    meter.leave();
    takes(10_000);
    expect(connection.goOn).not.toHaveBeenCalled();
  });
});
