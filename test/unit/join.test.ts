import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Tickets } from '../../server/access/tickets.ts';
import { ticketOf, ticketProtocols } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import { mustSuit, watch } from '../../worker/browser/needs.ts';
import type { Column } from '../../worker/data/columns.ts';
import type { ExperimentData } from '../../worker/data/examples.ts';
import { packData, unpackData } from '../../worker/data/packed.ts';

describe('a ticket', () => {
  const grant = { role: 'worker', holder: 'lab' } as const;
  const look = () => grant;

  test('is good once', () => {
    const tickets = new Tickets();
    const ticket = tickets.issue('lab', look, 0);
    expect(tickets.redeem('another', 1)).toBeNull();
    expect(tickets.redeem(ticket, 1)?.()).toBe(grant);
    expect(tickets.redeem(ticket, 1)).toBeNull();
  });

  test('is good for half a minute', () => {
    const tickets = new Tickets();
    const lastMs = 1000 * LIMITS.ticketSeconds - 1;
    expect(tickets.redeem(tickets.issue('lab', look, 0), lastMs)).not.toBeNull();
    expect(tickets.redeem(tickets.issue('lab', look, 0), lastMs + 1)).toBeNull();
  });

  test('is refused when too many wait, until the oldest are too old', () => {
    const tickets = new Tickets();
    for (let i = 0; i < LIMITS.ticketCountMax; i++) tickets.issue('lab', look, i);
    expect(() => tickets.issue('lab', look, 1)).toThrow(/wait 30 s/);
    expect(tickets.issue('lab', look, 1000 * LIMITS.ticketSeconds)).toHaveLength(22);
  });

  test('is there for each token, however many another one has taken', () => {
    const tickets = new Tickets();
    const taken = Array.from({ length: LIMITS.ticketCountMax }, (_, i) =>
      tickets.issue('lab', look, i),
    );
    const operators = tickets.issue('operator', look, 1);
    expect(tickets.redeem(taken[0]!, 1)).toBeNull();
    expect(tickets.redeem(taken[1]!, 1)).not.toBeNull();
    expect(tickets.redeem(operators, 1)).not.toBeNull();
    // Two places are free now. At the end both have as many, and neither takes from the other.
    tickets.issue('lab', look, 1);
    tickets.issue('lab', look, 1);
    for (let i = 0; i < LIMITS.ticketCountMax / 2; i++) tickets.issue('operator', look, 1);
    expect(() => tickets.issue('lab', look, 1)).toThrow('500 tickets of this token');
    expect(() => tickets.issue('operator', look, 1)).toThrow('500 tickets of this token');
  });

  test('travels as a subprotocol, beside the one that is agreed on', () => {
    expect(ticketOf(ticketProtocols('a-Ticket_1').join(', '))).toBe('a-Ticket_1');
    for (const offered of [undefined, '', 'chat', 'downpour.ticket', 'downpour.ticket.x']) {
      expect(ticketOf(offered), offered).toBeNull();
    }
  });
});

describe('data for pages', () => {
  const names = fc.array(fc.string({ unit: 'binary' }), { maxLength: 3 });
  const columns = (count: number) =>
    fc
      .record({
        size: fc.integer({ min: 1, max: 5 }),
        kind: fc.constantFrom(Float64Array, Float32Array, Int32Array, Uint8Array),
        offset: fc.constantFrom(0, 8),
        texts: fc.record({ names, classes: names }, { requiredKeys: [] }),
      })
      .map(({ size, kind, offset, texts }): Column => {
        // A view that does not begin where its memory does, as columns of larger data are.
        const values = new kind(
          new ArrayBuffer(offset + count * size * kind.BYTES_PER_ELEMENT),
          offset,
        );
        return { values: values.map((_, i) => (i * 37) % 251), shape: [count, size], ...texts };
      });
  const parts = fc
    .integer({ min: 1, max: 6 })
    .chain((count) =>
      fc.record({ count: fc.constant(count), inputs: columns(count), targets: columns(count) }),
    );
  const data: fc.Arbitrary<ExperimentData> = fc.record(
    {
      train: parts,
      validation: parts,
      test: parts,
      classCount: fc.integer({ min: 1, max: 1000 }),
      classes: names,
      source: fc.string({ unit: 'grapheme' }),
    },
    { requiredKeys: ['train', 'source'] },
  );

  test('are after the way what they were before', () => {
    fc.assert(
      fc.property(data, (given) => {
        const file = new Uint8Array(Buffer.concat(packData(given)));
        expect(unpackData(file)).toEqual(given);
      }),
      { numRuns: 200 },
    );
  });

  test('are refused when they are damaged, with a code', () => {
    const column = { values: Float32Array.of(1, 2), shape: [2, 1] };
    const whole = { train: { count: 2, inputs: column, targets: column }, source: '' };
    const file = new Uint8Array(Buffer.concat(packData(whole)));
    for (const broken of [
      file.subarray(0, 20),
      file.subarray(0, file.length - 1),
      new Uint8Array(),
    ]) {
      expect(() => unpackData(new Uint8Array(broken))).toThrow(
        expect.objectContaining({ code: 'DP_DATA_CORRUPT' }),
      );
    }
  });
});

describe('data that were made once suit a run', () => {
  const made = (look: (args: ReturnType<typeof given>) => unknown) => {
    const { args, needs } = watch(given());
    look(args);
    return needs();
  };
  const given = () => ({
    ...{ folder: '/data', seed: 1, log: () => {} },
    hyperparameters: { count: 750, kind: 'a' } as Record<string, string | number | boolean>,
  });
  const suits = (needs: ReturnType<typeof made>, seed: number, hyperparameters: object) => {
    try {
      mustSuit('x', needs, { seed, hyperparameters: hyperparameters as never });
      return true;
    } catch (error) {
      expect(error).toMatchObject({ code: 'DP_DATA_MISMATCH' });
      return false;
    }
  };

  test('always, where nothing was looked at', () => {
    const needs = made(({ folder, log }) => [folder, log]);
    expect(suits(needs, 2, { count: 1, other: 3 })).toBe(true);
  });

  test('of the same seed, where it was', () => {
    const needs = made(({ seed }) => seed);
    expect([suits(needs, 1, {}), suits(needs, 2, {})]).toEqual([true, false]);
  });

  test('of the same hyperparameters that were looked at, also in vain', () => {
    const needs = made(({ hyperparameters: { count, absent = 3 } }) => [count, absent]);
    expect(suits(needs, 9, { count: 750, kind: 'b' })).toBe(true);
    expect(suits(needs, 9, { count: 751 })).toBe(false);
    expect(suits(needs, 9, {})).toBe(false);
    expect(suits(needs, 9, { count: 750, absent: 4 })).toBe(false);
  });

  test('of no others, where all were looked at', () => {
    const needs = made(({ hyperparameters }) => ({ ...hyperparameters }));
    expect(suits(needs, 9, { count: 750, kind: 'a' })).toBe(true);
    expect(suits(needs, 9, { count: 750, kind: 'a', more: 1 })).toBe(false);
    expect(suits(needs, 9, { count: 750 })).toBe(false);
  });
});
