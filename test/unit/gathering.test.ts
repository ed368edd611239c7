import { describe, expect, test } from 'vitest';
import { partsMax, Shard } from '../../server/core/shard.ts';
import { Gathering } from '../../server/fleet/gathering.ts';
import { resolveConfig } from '../../shared/config.ts';
import { partition } from '../../shared/partition.ts';
import type { Push } from '../../shared/protocol.ts';
import { LAYOUT, TENSORS } from '../support/shards.ts';

const push = (sequence: number) => ({ type: 'push', sequence }) as Push;
const landed = (sequence: number) => ({ sequence, squares: 1, problem: null });
const NOTHING = new Uint8Array();
const NOWHERE = { landing: null, room: null };

describe('parts of one worker, at the server', () => {
  test('are a push when all are there, in any order', () => {
    const gathering = new Gathering('s');
    gathering.landed(2, landed(1), 4);
    gathering.push(push(1), NOTHING, NOWHERE, 4);
    expect(gathering.take(1, 3)).toBeNull();
    gathering.landed(1, landed(1), 4);
    expect(gathering.take(1, 3)).toMatchObject({ others: { session: 's', squares: 2 } });
    expect(gathering.look(0)).toBeNull();
    expect(gathering.look(0)).toBeNull();
  });

  test('wait for so many pushes and no more, whichever part comes first', () => {
    const gathering = new Gathering('s');
    gathering.push(push(1), NOTHING, NOWHERE, 2);
    gathering.landed(1, landed(2), 2);
    expect(() => gathering.push(push(3), NOTHING, NOWHERE, 2)).toThrow(/2 pushes .* at most 2 may/);
    expect(() => gathering.landed(1, landed(3), 2)).toThrow(/2 pushes .* at most 2 may/);
    // More parts of those that are known are no more pushes.
    gathering.landed(1, landed(1), 2);
    gathering.push(push(2), NOTHING, NOWHERE, 2);
  });

  test('grow older, and what has waited the longest is named', () => {
    const gathering = new Gathering('s');
    gathering.landed(1, landed(7), 4);
    expect(gathering.look(0)).toBeNull();
    gathering.push(push(8), NOTHING, NOWHERE, 4);
    // Within the window nobody is blamed.
    expect(gathering.look(1000)).toBeNull();
    expect(gathering.look(1000)?.message).toMatch(
      /^push 7 waits for the push itself for more than 1 s/,
    );
    gathering.push(push(7), NOTHING, NOWHERE, 4);
    expect(gathering.take(7, 2)).not.toBeNull();
    expect(gathering.look(1000)?.message).toMatch(/^push 8 waits for some of its parts/);
    gathering.clear();
    gathering.initialLanded(1, 3, null);
    expect(gathering.awaitsInitial).toBe(true);
    expect(gathering.look(0)).toBeNull();
    const problem = gathering.look(0);
    expect(problem?.code).toBe('DP_SLOW_SENDER');
    expect(problem?.message).toMatch(/^initial parameters wait for some of their parts/);
  });
});

describe('parts at a shard', () => {
  const config = resolveConfig({ minibatchSize: 4, epochsMax: 3 });
  const bytes = 4 * (partition(LAYOUT, 2)[1]!.end - partition(LAYOUT, 2)[1]!.start);
  const none = new Float32Array();
  function create() {
    const landed: string[] = [];
    const shard = new Shard(1, 2, {
      ...{ landed() {}, overflowed() {}, send() {} },
      initialLanded: ({ session }) => void landed.push(session),
      ...{ sendRows() {}, rowFacts() {} },
    });
    shard.execute({ kind: 'create', run: 'r', tensors: TENSORS, config }, none);
    const released: string[] = [];
    const part = (name: string) => ({
      payload: new Uint8Array(bytes),
      encoding: 'f32' as const,
      release: () => void released.push(name),
    });
    const initial = (session: string, grant: number) =>
      shard.initialPart('r', session, grant, part(`${session}${grant}`));
    return { shard, landed, released, part, initial };
  }

  test('of initial parameters are kept of who is asked for them, and of one other', () => {
    const { shard, released, initial } = create();
    shard.execute({ kind: 'grant', run: 'r', session: 'a', grant: 1 }, none);
    initial('a', 1);
    for (const stranger of ['x', 'y', 'z']) initial(stranger, 1);
    expect(released).toEqual(['x1', 'y1']);
    // Asked once more, and answered once more.
    shard.execute({ kind: 'grant', run: 'r', session: 'a', grant: 1 }, none);
    initial('a', 1);
    expect(released).toEqual(['x1', 'y1', 'a1']);
    shard.execute({ kind: 'initialise', run: 'r', session: 'a' }, none);
    expect(released).toEqual(['x1', 'y1', 'a1', 'a1']);
  });

  test('that come before it is told who is asked wait for that, and not for long', () => {
    const { shard, released, initial } = create();
    initial('a', 1);
    for (let i = 0; i < 10; i++) shard.look(10);
    shard.execute({ kind: 'grant', run: 'r', session: 'a', grant: 1 }, none);
    for (let i = 0; i < 20; i++) shard.look(10);
    expect(released).toEqual([]);
    shard.execute({ kind: 'initialise', run: 'r', session: 'a' }, none);
    expect(released).toEqual(['a1']);
    initial('b', 2);
    for (let i = 0; i < 10; i++) shard.look(10);
    expect(released).toEqual(['a1']);
    shard.look(10);
    expect(released).toEqual(['a1', 'b2']);
  });

  test('are not taken for there where those of another worker have taken their place', () => {
    const { shard, landed, released, initial } = create();
    const grant = () => shard.execute({ kind: 'grant', run: 'r', session: 'a', grant: 1 }, none);
    initial('a', 1);
    initial('x', 1);
    expect(released).toEqual(['a1']);
    grant();
    // The server would have the shard use what it does not have.
    expect(landed).toEqual([]);
    initial('a', 1);
    expect(landed).toEqual(['a']);
    shard.execute({ kind: 'initialise', run: 'r', session: 'a' }, none);
  });

  test('go when another worker is asked, when nobody is, and with their worker', () => {
    const { shard, released, initial } = create();
    const grant = (session: string, grant: number) =>
      shard.execute({ kind: 'grant', run: 'r', session, grant }, none);
    grant('a', 1);
    initial('a', 1);
    grant('b', 1);
    expect(released).toEqual(['a1']);
    initial('b', 1);
    shard.execute({ kind: 'revoke', run: 'r', session: 'a' }, none);
    expect(released).toEqual(['a1']);
    shard.execute({ kind: 'revoke', run: 'r', session: 'b' }, none);
    expect(released).toEqual(['a1', 'b1']);
    grant('c', 2);
    initial('c', 2);
    initial('d', 2);
    shard.leave('c');
    shard.leave('d');
    expect(released).toEqual(['a1', 'b1', 'c2', 'd2']);
    const used = () => shard.execute({ kind: 'initialise', run: 'r', session: 'c' }, none);
    expect(used).toThrow('that never came');
  });

  test("of pushes are as many as a worker may have under way, twice; one more stays its owner's", () => {
    const { shard, released, part } = create();
    const most = partsMax(config);
    expect(most).toBe(4);
    const of = (sequence: number) => ({ run: 'r', session: 's', sequence });
    for (let i = 1; i <= most; i++) shard.part(of(i), part(`p${i}`));
    expect(() => shard.part(of(most + 1), part('more'))).toThrow(/4 parts .* at most 4 may/);
    expect(released).toEqual([]);
    shard.leave('s');
    expect(released).toEqual(['p1', 'p2', 'p3', 'p4']);
  });
});
