import { beforeEach, describe, expect, test } from 'vitest';
import { MemoryBudget } from '../../server/access/memory.ts';
import { LandingRoom } from '../../server/core/landing-rooms.ts';
import { Snapshot } from '../../server/core/snapshot.ts';
import { LandingDesk, LOOK_MS, WaitingLine } from '../../server/payloads/landings.ts';
import type { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Coming, Landing } from '../../wire/connection.ts';

/** Who gets a room, who loses it, and what connections may take, on a clock of our own. */

const ROOM_BYTES = 1000;
const PUSH = { roomBytes: ROOM_BYTES, bytesMax: 2 * ROOM_BYTES + 4, bytes: ROOM_BYTES };

let now = 0;
let rooms = 0;
let line: WaitingLine;

beforeEach(() => {
  now = 0;
  line = new WaitingLine(new MemoryBudget(() => now, 10 * ROOM_BYTES), () => now);
});

/** A run with so many rooms. */
function run(count: number) {
  rooms = count;
  return {
    run: 'run',
    take: (bytes: number): LandingRoom | null => {
      if (rooms === 0) return null;
      rooms--;
      const room = new LandingRoom(
        () => {},
        () => void rooms++,
      );
      room.bytes = new Uint8Array(bytes);
      return room;
    },
  };
}

/** A connection whose messages come as the test says. */
class Client {
  readonly desk: LandingDesk;
  landing: Landing | null = null;
  came = 0;
  errors: string[] = [];
  bufferedBytes = 0;
  leftBytes = 0;
  retried = 0;
  moves = true;
  #number = 0;
  #ask: (() => Landing | 'wait') | null = null;

  constructor(name: string | null = null) {
    this.desk = new LandingDesk(line, this, name, (error: DownpourError) =>
      this.errors.push(error.code),
    );
  }

  get coming(): Coming | null {
    if (!this.landing) return null;
    return { number: this.#number, bytes: this.came, of: ROOM_BYTES, landing: this.landing };
  }

  retry(): void {
    this.retried++;
    this.#again();
  }

  move(to: Landing): boolean {
    if (!this.moves) return false;
    this.landing!.release();
    this.landing = to;
    return true;
  }

  terminate(): void {}

  #again(): void {
    const got = this.#ask?.() ?? 'wait';
    if (got === 'wait') return;
    this.#ask = null;
    this.landing = got;
    this.came = 0;
    this.#number++;
  }

  /** Begins a push. */
  push(of: ReturnType<typeof run>, more: Partial<typeof PUSH> = {}): void {
    this.#ask = () => this.desk.land({ ...PUSH, ...of, ...more });
    this.#again();
  }

  /** Begins a join with facts. */
  facts(bytes: number): void {
    this.#ask = () => this.desk.landFacts(bytes, 2 ** 26 + 3);
    this.#again();
  }

  /** Begins another message. */
  own(bytes: number): void {
    this.#ask = () => this.desk.own(bytes, bytes);
    this.#again();
  }

  /** The push is whole, and dealt with. */
  end(): void {
    this.desk.arrived(this.landing);
    this.landing!.release();
    this.landing = null;
  }

  /** It is in the memory of its own, not in a room. */
  get isElsewhere(): boolean {
    return this.landing !== null && this.desk.comingInto === null;
  }
}

async function pass(ms: number): Promise<void> {
  for (const end = now + ms; now < end; ) {
    now += LOOK_MS;
    line.look();
    await new Promise((resolve) => queueMicrotask(() => resolve(null)));
  }
}

describe('rooms', () => {
  test('who waits gets the room of a push that has stopped, and that one goes on elsewhere', async () => {
    const of = run(2);
    const [slow, stopped, waiting] = [new Client(), new Client(), new Client()];
    waiting.push(of);
    waiting.end();
    slow.push(of);
    stopped.push(of);
    waiting.push(of);
    expect(waiting.landing).toBe(null);
    await pass(2 * LOOK_MS);
    expect(waiting.desk.comingInto).toBe('run');
    expect([slow.isElsewhere, stopped.isElsewhere]).toEqual([true, true]);
    expect(line.moved).toBe(2);
    expect([slow.errors, stopped.errors]).toEqual([[], []]);
  });

  test('one that comes quickly keeps it, and who waits does without', async () => {
    const of = run(1);
    const [quick, waiting] = [new Client(), new Client()];
    quick.push(of);
    waiting.push(of);
    for (let i = 0; i < 3; i++) {
      quick.came += 200_000;
      await pass(LOOK_MS);
    }
    expect(quick.desk.comingInto).toBe('run');
    expect(waiting.isElsewhere).toBe(true);
    expect(line.moved).toBe(0);
  });

  test('nobody is taken a room that nobody waits for', async () => {
    const of = run(2);
    const slow = new Client();
    slow.push(of);
    await pass(20 * LOOK_MS);
    expect(slow.desk.comingInto).toBe('run');
  });

  test('under pressure rooms are for those who have shown that they are quick', async () => {
    const of = run(1);
    const [honest, slow] = [new Client(), new Client()];
    honest.push(of);
    honest.end();
    slow.push(of);
    honest.push(of);
    await pass(3 * LOOK_MS);
    expect(honest.desk.comingInto).toBe('run');
    honest.end();
    const newcomer = new Client();
    newcomer.push(of);
    expect(newcomer.isElsewhere).toBe(true);
    honest.push(of);
    expect(honest.desk.comingInto).toBe('run');
    // The pressure is over some time after the last wait.
    newcomer.end();
    honest.end();
    await pass(11_000);
    const later = new Client();
    later.push(of);
    expect(later.desk.comingInto).toBe('run');
  });

  test('a room that is free is for the holder with the fewest', async () => {
    const of = run(3);
    const many = ['a', 'a', 'a', 'a', 'a'].map((name) => new Client(name));
    for (const client of many) client.push(of);
    const one = new Client('b');
    one.push(of);
    expect(many.filter(({ landing }) => landing).length).toBe(3);
    many[0]!.end();
    await Promise.resolve();
    await Promise.resolve();
    expect(one.desk.comingInto).toBe('run');
  });

  test('a holder keeps no more than its share while another one waits', async () => {
    const of = run(4);
    const many = ['a', 'a', 'a', 'a'].map((name) => new Client(name));
    for (const client of many) client.push(of);
    const others = [new Client('b'), new Client('c')];
    for (const client of others) client.push(of);
    for (let i = 0; i < 2; i++) {
      for (const client of many) client.came += 200_000;
      await pass(LOOK_MS);
    }
    expect(others.map(({ desk }) => desk.comingInto)).toEqual(['run', 'run']);
    // Four rooms, three holders.
    expect(many.filter(({ desk }) => desk.comingInto === 'run').length).toBe(2);
  });
});

describe('how slowly a payload may come', () => {
  const WINDOW_MS = 30_000;
  const least = LIMITS.payloadBytesPerSecondMin;

  /** @param bytesPerSecond of its payload. @returns after how many seconds it is closed; null: not within the time. */
  function closedAfter(bytesPerSecond: number, seconds: number): number | null {
    const client = new Client();
    client.push(run(1));
    for (let i = 0; i < seconds; i++) {
      if (client.desk.problem(now, WINDOW_MS)) return i;
      client.came += bytesPerSecond;
      now += 1000;
    }
    return null;
  }

  test('at the least rate it may go on, below it is closed', () => {
    expect(closedAfter(least, 31)).toBe(null);
    expect(closedAfter(least - 1, 60)).toBe(30);
    expect(closedAfter(0, 60)).toBe(30);
  });

  test('it has a deadline, however many bytes it brings', () => {
    // The window, and what 1,000 bytes take.
    expect(closedAfter(least, 60)).toBe(31);
  });

  test('one that waits for a place is not to blame', () => {
    const of = run(0);
    const client = new Client();
    client.push(of);
    now += 10 * WINDOW_MS;
    expect(client.desk.problem(now, WINDOW_MS)).toBe(null);
  });
});

describe('how slowly answers may be read', () => {
  const WINDOW_MS = 30_000;

  test('until something has left, as long as it would take a slow network', () => {
    // The server has run for long when it comes.
    now = 10 * WINDOW_MS;
    const client = new Client();
    client.bufferedBytes = 10 * LIMITS.payloadBytesPerSecondMin;
    expect(client.desk.problem(now, WINDOW_MS)).toBe(null);
    now += WINDOW_MS + 10_000;
    expect(client.desk.problem(now, WINDOW_MS)).toBe(null);
    now += 1;
    expect(client.desk.problem(now, WINDOW_MS)).toMatchObject({
      code: 'DP_SLOW_READER',
      message: expect.stringContaining('655360 bytes wait for this worker'),
    });
    client.leftBytes = 1;
    expect(client.desk.problem(now, WINDOW_MS)).toBe(null);
  });
});

describe('facts of data', () => {
  const MIB = 2 ** 20;
  const MAX = LIMITS.factsAtOnceBytesMax;
  beforeEach(() => {
    line = new WaitingLine(new MemoryBudget(() => now, 1e9), () => now);
  });

  test('of all connections take a memory of their own, and the smallest goes first', async () => {
    const [first, second, large, small] = [new Client(), new Client(), new Client(), new Client()];
    first.facts(MAX / 2);
    second.facts(MAX / 2);
    expect([first.landing?.bytes.length, second.landing?.bytes.length]).toEqual([MAX / 2, MAX / 2]);
    large.facts(40 * MIB);
    small.facts(MIB);
    expect([large.landing, small.landing]).toEqual([null, null]);
    expect(line.memory.bytes).toBe(MAX);
    // Other messages do not wait for them, nor do those that a receiver has memory for in any case.
    const [other, few] = [new Client(), new Client()];
    other.own(100 * MIB);
    few.facts(2 ** 16);
    expect([other.landing, few.landing]).not.toContain(null);
    first.end();
    await pass(LOOK_MS);
    expect(small.landing).not.toBe(null);
    expect(large.landing).toBe(null);
  });

  test('that have stopped give their memory to those that wait', async () => {
    const [stopped, honest, push] = [new Client(), new Client(), new Client()];
    stopped.facts(MAX);
    // Nothing is taken of what nobody waits for.
    push.push(run(0));
    await pass(4 * LOOK_MS);
    expect(push.isElsewhere).toBe(true);
    honest.facts(MIB);
    await pass(1_500);
    expect([stopped.errors, honest.errors, push.errors]).toEqual([['DP_SLOW_SENDER'], [], []]);
    stopped.landing!.release();
    await pass(LOOK_MS);
    expect(honest.landing).not.toBe(null);
  });

  test('wait for the memory of all connections too, and take nothing meanwhile', async () => {
    line = new WaitingLine(new MemoryBudget(() => now, 10 * MIB), () => now);
    const [push, facts, others] = [new Client(), new Client(), new Client()];
    push.push(run(0), { bytes: 9 * MIB, bytesMax: 9 * MIB });
    await pass(4 * LOOK_MS);
    facts.facts(2 * MIB);
    others.facts(2 * MIB);
    await pass(LOOK_MS);
    expect([facts.landing, others.landing]).toEqual([null, null]);
    expect(line.factsMemory.bytes).toBe(0);
    push.end();
    await pass(LOOK_MS);
    expect(line.factsMemory.bytes).toBe(4 * MIB);
    facts.end();
    others.end();
    now += 11_000;
    line.tick();
    expect([line.factsMemory.bytes, line.memory.bytes]).toEqual([0, 0]);
  });
});

describe('memory', () => {
  test('what does not fit waits, and goes on when there is room again', async () => {
    const of = run(0);
    const clients = Array.from({ length: 11 }, () => new Client());
    for (const client of clients) client.push(of);
    await pass(4 * LOOK_MS);
    const got = () => clients.filter(({ landing }) => landing).length;
    expect(got()).toBe(10);
    expect(line.memory.bytes).toBe(10 * ROOM_BYTES);
    clients.find(({ landing }) => landing)!.end();
    await Promise.resolve();
    await Promise.resolve();
    expect(got()).toBe(10);
    expect(clients.every(({ errors }) => errors.length === 0)).toBe(true);
    for (const client of clients) if (client.landing) client.end();
    now += 11_000;
    line.tick();
    expect(line.memory.bytes).toBe(0);
  });

  test('one message may be larger than all that is allowed, alone', () => {
    const client = new Client();
    client.push(run(0), { bytes: 20 * ROOM_BYTES, bytesMax: 30 * ROOM_BYTES });
    expect(client.isElsewhere).toBe(true);
    const other = new Client();
    other.push(run(0), { bytes: 2 * ROOM_BYTES, bytesMax: 30 * ROOM_BYTES });
    expect(other.landing).toBe(null);
  });

  test('pushes of changing lengths, as those with rows are, use the same memory again', () => {
    line = new WaitingLine(new MemoryBudget(() => now, 1e9), () => now);
    const client = new Client();
    for (let i = 0; i < 500; i++) {
      const bytes = 100_000 + 400 * ((37 * i) % 200);
      client.push(run(0), { bytes, bytesMax: 200_000 });
      expect(client.landing!.bytes.length).toBe(bytes);
      client.end();
      now += LOOK_MS;
    }
    expect(line.memory.bytes).toBeLessThan(400_000);
    // Nor are those kept that are too large for what comes now.
    client.push(run(0), { bytes: 50_000_000, bytesMax: 5e7 });
    client.end();
    client.push(run(0), { bytes: 100_000, bytesMax: 5e7 });
    expect(client.landing!.bytes.buffer.byteLength).toBeLessThan(300_000);
  });

  test('rows that are sent are counted until they have left, and of too much the largest is closed', async () => {
    const [reader, deaf] = [new Client(), new Client()];
    for (let i = 0; i < 50; i++) reader.desk.answer(ROOM_BYTES).release();
    expect(line.memory.bytes).toBe(ROOM_BYTES);
    const answers = [4, 4, 4].map((n) => deaf.desk.answer(n * ROOM_BYTES));
    // Some of them are in its socket, the others wait for a standby.
    deaf.bufferedBytes = 8 * ROOM_BYTES;
    await Promise.resolve();
    expect([reader.errors, deaf.errors]).toEqual([[], ['DP_LIMIT']]);
    for (const { release } of answers) release();
    const gone = deaf.desk.counted(2 * ROOM_BYTES);
    expect(line.memory.bytes).toBe(10 * ROOM_BYTES);
    gone();
    now += 11_000;
    line.tick();
    expect(line.memory.bytes).toBe(0);
  });

  test('who waits for it gets that of payloads that have stopped', async () => {
    const of = run(0);
    const stopped = Array.from({ length: 10 }, () => new Client());
    for (const client of stopped) client.push(of);
    await pass(4 * LOOK_MS);
    const honest = new Client();
    honest.push(of);
    await pass(1_500);
    expect(stopped.map(({ errors }) => errors)).toEqual(stopped.map(() => ['DP_SLOW_SENDER']));
    for (const client of stopped) client.landing!.release();
    await pass(LOOK_MS);
    expect(honest.landing).not.toBe(null);
    expect(honest.errors).toEqual([]);
  });

  test('who waits in vain is told so', async () => {
    const of = run(0);
    const [large, waiting] = [new Client('a'), new Client('a')];
    large.push(of, { bytes: 10 * ROOM_BYTES, bytesMax: 10 * ROOM_BYTES });
    waiting.push(of);
    for (let i = 0; i < LIMITS.memoryWaitMs / LOOK_MS + 5; i++) {
      large.came += 1e6;
      await pass(LOOK_MS);
    }
    expect(large.errors).toEqual([]);
    expect(waiting.errors).toEqual(['DP_LIMIT']);
  });

  test('what has come already is counted, and of too much the largest is closed', async () => {
    const [small, large, other] = [new Client(), new Client(), new Client()];
    line.memory.change(small.desk.account, ROOM_BYTES);
    line.memory.change(large.desk.account, 5 * ROOM_BYTES);
    line.memory.change(other.desk.account, 4 * ROOM_BYTES);
    await Promise.resolve();
    expect([small, large, other].flatMap(({ errors }) => errors)).toEqual([]);
    line.memory.change(small.desk.account, 1);
    await Promise.resolve();
    expect([small, large, other].map(({ errors }) => errors)).toEqual([[], ['DP_LIMIT'], []]);
    expect(line.memory.closed).toBe(1);
  });

  test('one holder with many connections is larger than another with one', async () => {
    const many = Array.from({ length: 4 }, () => new Client('a'));
    const one = new Client('b');
    for (const client of many) line.memory.change(client.desk.account, 2 * ROOM_BYTES);
    line.memory.change(one.desk.account, 3 * ROOM_BYTES);
    await Promise.resolve();
    expect(one.errors).toEqual([]);
    expect(many.flatMap(({ errors }) => errors)).toEqual(['DP_LIMIT']);
  });

  test('a copy of the parameters is counted once, however many it is sent to', () => {
    const copy = new Snapshot(new Uint8Array(ROOM_BYTES), 'f32');
    line.memory.send(copy);
    line.memory.send(copy);
    expect(line.memory.bytes).toBe(ROOM_BYTES);
    line.memory.sent(copy);
    expect(line.memory.bytes).toBe(ROOM_BYTES);
    line.memory.sent(copy);
    expect(line.memory.bytes).toBe(0);
    const lent = new Snapshot(new Uint8Array(ROOM_BYTES), 'f32', null, true);
    line.memory.send(lent);
    expect(line.memory.bytes).toBe(0);
    line.memory.sent(lent);
    expect(line.memory.bytes).toBe(0);
  });
});
