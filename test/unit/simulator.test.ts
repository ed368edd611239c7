import { readdir, rm } from 'node:fs/promises';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { Leases } from '../../server/core/leases.ts';
import { Bounded } from '../../server/core/modes/bounded.ts';
import { Crowd } from '../../server/core/modes/crowd.ts';
import { Rounds } from '../../server/core/modes/rounds.ts';
import { Parameters } from '../../server/core/parameters.ts';
import type { RunCall } from '../../server/core/run/calls.ts';
import { Roster } from '../../server/core/run/roster.ts';
import { Run } from '../../server/core/run.ts';
import { Shard } from '../../server/core/shard.ts';
import { ShardRows } from '../../server/core/shard-rows.ts';
import { Snapshot } from '../../server/core/snapshot.ts';
import { RowTable } from '../../server/core/tables/row-table.ts';
import { RowsOnDisk } from '../../server/core/tables/rows-on-disk.ts';
import { RunTables } from '../../server/core/tables/run-tables.ts';
import { VECTOR } from '../../server/core/vectors.ts';
import { Gathering } from '../../server/fleet/gathering.ts';
import { Replication } from '../../server/standby/replication.ts';
import { bytesOf } from '../../shared/codec.ts';
import { SimulatedDisk } from '../support/simulated-disk.ts';
import { type Sabotage, simulate, Violation } from '../support/simulator.ts';

/** A quick slice; `npm run soak -- --seeds 10000` is for nights. docs/reliability.md has the invariants. */
const SEEDS = 48;

test('clusters with faults keep all invariants', async () => {
  const sums = {
    ...{ crashes: 0, failovers: 0, cuts: 0, steps: 0, rowSteps: 0, finished: 0 },
    ...{ onShards: 0, shardsKilled: 0 },
    ...{ continuing: 0, spoilt: 0, back: 0, refusals: 0 },
  };
  for (let seed = 0; seed < SEEDS; seed++) {
    const summary = await simulate(seed);
    sums.crashes += summary.crashes;
    sums.failovers += summary.failovers;
    sums.cuts += summary.cuts;
    sums.steps += summary.steps;
    sums.rowSteps += summary.rowSteps;
    if (summary.shards > 1) sums.onShards++;
    sums.shardsKilled += summary.shardsKilled;
    sums.continuing += summary.disk?.continuing ?? 0;
    sums.spoilt += summary.disk?.spoilt ?? 0;
    sums.back += summary.disk?.back ?? 0;
    sums.refusals += summary.disk?.refusals ?? 0;
    if (summary.phase === 'finished') sums.finished++;
  }
  // Else it would show nothing.
  expect(sums.finished).toBe(SEEDS);
  expect(sums.crashes).toBeGreaterThan(SEEDS);
  expect(sums.failovers).toBeGreaterThan(SEEDS / 8);
  expect(sums.cuts).toBeGreaterThan(SEEDS);
  expect(sums.steps).toBeGreaterThan(20 * SEEDS);
  expect(sums.rowSteps).toBeGreaterThan(5 * SEEDS);
  expect(sums.onShards).toBeGreaterThan(SEEDS / 8);
  expect(sums.shardsKilled).toBeGreaterThan(SEEDS / 4);
  expect(sums.continuing).toBeGreaterThan(SEEDS);
  expect(sums.spoilt).toBeGreaterThan(SEEDS / 4);
  expect(sums.back).toBeGreaterThan(SEEDS / 8);
  expect(sums.refusals).toBeGreaterThan(SEEDS / 4);
}, 240_000);

test('the same seed is the same history', async () => {
  expect(await simulate(7)).toEqual(await simulate(7));
});

describe('a broken server is caught:', () => {
  afterEach(() => vi.restoreAllMocks());

  /** The first violation within some seeds. @param first seed that is tried. */
  async function caught(sabotage: Sabotage = {}, seeds = 200, first = 0): Promise<Violation> {
    for (let seed = first; seed < first + seeds; seed++) {
      try {
        await simulate(seed, { sabotage });
      } catch (error) {
        if (error instanceof Violation) return error;
        throw error;
      }
    }
    throw new Error('nothing was noticed');
  }

  test('1, it applies what is sent again', async () => {
    const real = Run.prototype.call;
    let fresh = 1_000_000;
    const lying = function (this: Run, call: RunCall, payload?: Uint8Array): unknown {
      if (call.call !== 'push') return Reflect.apply(real, this, [call, payload]);
      const push = { ...call.push, sequence: ++fresh };
      const acknowledgement = Reflect.apply(real, this, [{ ...call, push }, payload]);
      return { ...acknowledgement, sequence: call.push.sequence };
    };
    vi.spyOn(Run.prototype, 'call').mockImplementation(lying as never);
    vi.spyOn(Leases.prototype, 'find').mockImplementation(function (this: Leases, id) {
      return { id, epoch: 0, start: 0, count: 4, part: 'train' };
    });
    const violation = await caught();
    expect(violation.invariant).toBe(1);
    expect(violation.message).toMatch(/npm run soak -- --seed \d+ --seeds 1/);
  });

  test('2, it goes on from an old checkpoint', async () => {
    const violation = await caught({ restored: (_, all) => structuredClone(all[0]!) });
    expect(violation.invariant).toBe(2);
  });

  test('3, it moves another fragment than the one that was pushed', async () => {
    const real = Parameters.prototype.update;
    vi.spyOn(Parameters.prototype, 'update').mockImplementation(function (
      this: Parameters,
      ...all
    ) {
      const isOk = Reflect.apply(real, this, all);
      const { fragment } = all[2];
      if (fragment === undefined) return isOk;
      const values = this.exchanged();
      values[fragment === 0 ? 260 : 0]! += 1;
      this.replace(values);
      return isOk;
    });
    const violation = await caught();
    expect(violation.invariant).toBe(3);
    expect(violation.message).toMatch(/moved the fragments 0 and 1/);
  });

  test('3, it restores a flipped bit', async () => {
    const restored: Sabotage['restored'] = (saved) => {
      const [first] = saved.tensors;
      new Uint32Array(first!.values.buffer, first!.values.byteOffset, 1)[0]! ^= 1;
      return saved;
    };
    expect((await caught({ restored })).invariant).toBe(3);
  });

  test('3, it writes to parameters that are being sent', async () => {
    vi.spyOn(Snapshot.prototype, 'hold').mockImplementation(() => {});
    expect((await caught()).invariant).toBe(3);
  });

  test('4, it lets too stale pushes in', async () => {
    const violation = await caught({ config: { consistency: { stalenessMax: null } } });
    expect(violation.invariant).toBe(4);
  });

  test('4, it takes pushes into a step of which they are not', async () => {
    vi.spyOn(Rounds.prototype, 'refuse').mockReturnValue(null);
    expect((await caught()).invariant).toBe(4);
  });

  test('4, it lets workers run ahead of the slowest', async () => {
    vi.spyOn(Bounded.prototype, 'mayPull').mockReturnValue(true);
    vi.spyOn(Bounded.prototype, 'refuse').mockReturnValue(null);
    const violation = await caught();
    expect(violation.invariant).toBe(4);
    expect(violation.message).toContain('the clocks of workers are');
  }, 120_000);

  test('3, it applies the rows of a push twice', async () => {
    const real = RunTables.prototype.apply;
    vi.spyOn(RunTables.prototype, 'apply').mockImplementation(function (this: RunTables, ...all) {
      return Reflect.apply(real, this, all) && Reflect.apply(real, this, all);
    });
    const { message } = await caught();
    const [, now, ought] =
      message.match(/rows are at row step (\d+), and ought to be at (\d+)/) ?? [];
    expect(Number(now) - Number(ought), message).toBe(1);
  });

  test('3, it keeps rows for captures that nobody needs', async () => {
    vi.spyOn(RunTables.prototype, 'forget').mockImplementation(() => {});
    expect((await caught()).message).toMatch(/capture \d+ of rows is kept/);
  });

  test('3, it keeps the rows of a push whose parameters overflow', async () => {
    vi.spyOn(RunTables.prototype, 'undo').mockImplementation(() => {});
    // Seed 107.
    expect((await caught({}, 200, 100)).message).toContain('rows are at row step');
  }, 120_000);

  test('3, it forgets at a restart which rows are pretrained', async () => {
    const real = RowTable.prototype.restoreRows;
    vi.spyOn(RowTable.prototype, 'restoreRows').mockImplementation(function (this: RowTable, rows) {
      real.call(this, { ...rows, pretrained: new Float32Array() });
    });
    expect((await caught()).message).toContain("pretrained' was restored with other values");
  }, 120_000);

  test('4, it lets pushes with too stale rows in', async () => {
    vi.spyOn(RunTables.prototype, 'staleness').mockReturnValue(0);
    const violation = await caught();
    expect(violation.invariant).toBe(4);
    expect(violation.message).toMatch(/row \d+ of table \d was updated with a staleness of/);
  }, 120_000);

  test('4, it believes a worker that claims newer rows than it was sent', async () => {
    vi.spyOn(Roster.prototype, 'rowStepSent').mockReturnValue(Number.MAX_SAFE_INTEGER);
    const violation = await caught({}, 200, 17);
    expect(violation.invariant).toBe(4);
    expect(violation.message).toContain('claimed rows of row step');
  }, 120_000);

  test('9, its standby has other rows', async () => {
    const real = Run.replicate;
    vi.spyOn(Run, 'replicate').mockImplementation((replica, vectors) => {
      const [name, values] = [...vectors].find(([name]) => /\.values$/.test(name)) ?? [];
      if (!values || values.length === 0) return real(replica, vectors);
      return real(replica, new Map([...vectors, [name!, values.map((x) => x + 1e-6)]]));
    });
    // A standby must take over while there are rows: one cluster of 60.
    const violation = await caught({}, 200, 60);
    expect(violation.message).toContain('the rows of the standby at row step');
  }, 120_000);

  describe('with a disk,', () => {
    test('3, rows that change right after a checkpoint are not in the next one', async () => {
      const { begin } = RowsOnDisk.prototype;
      vi.spyOn(RowsOnDisk.prototype, 'begin').mockImplementation(function (
        this: RowsOnDisk,
        rowStep,
      ) {
        Reflect.apply(begin, this, [rowStep + 1]);
      });
      const violation = await caught({}, 60, 19);
      expect(violation.invariant).toBe(3);
      expect(violation.message).toContain('was restored with other values');
    }, 120_000);

    test('2, it does not force its checkpoints to the disk', async () => {
      vi.spyOn(SimulatedDisk.prototype, 'sync').mockResolvedValue();
      const violation = await caught({}, 60);
      expect(violation.invariant).toBe(2);
      expect(violation.message).toContain('is not on the disk any more');
    });

    test('2, it removes what its newest checkpoint continues', async () => {
      const prune: Sabotage['prune'] = async (folder) => {
        const newest = (name: string) => Number(/-(\d+)\.\w+$/.exec(name)?.[1] ?? 0);
        const names = (await readdir(folder)).filter((name) => /-last-\d+\.\w+$/.test(name));
        const most = Math.max(...names.map(newest));
        for (const name of names) if (newest(name) < most) await rm(`${folder}/${name}`);
        return [];
      };
      const violation = await caught({ prune }, 60, 19);
      expect(violation.invariant).toBe(2);
      expect(violation.message).toContain('is not on the disk any more');
    }, 120_000);
  });

  describe('with shards,', () => {
    /** Seeds of clusters with shards: with parameters, rows of tables, fragments, and gradients that overflow, on several. */
    const DENSE = 3;
    const ROWS = 16;
    const FRAGMENTS = 161;
    const OVERFLOWING = 158;
    /** A part of the parameters; the shard with which others are compared has all. */
    const isPart = (shard: Shard) => (shard.heldOf('r')?.layout.size ?? 0) < 2 ** 15;

    test('3, one of them is not told of some updates', async () => {
      const { execute } = Shard.prototype;
      let updates = 0;
      vi.spyOn(Shard.prototype, 'execute').mockImplementation(function (this: Shard, ...all) {
        const [{ kind }] = all;
        const isLost = (kind === 'apply' || kind === 'combine') && isPart(this);
        if (!isLost || ++updates % 7 > 0) Reflect.apply(execute, this, all);
      });
      const violation = await caught({}, 20, DENSE);
      expect(violation.invariant).toBe(3);
      expect(violation.message).toMatch(/parameters of shard \d are not those/);
    });

    test('3, one of them does not update rows that the others update', async () => {
      const { apply } = ShardRows.prototype;
      let updates = 0;
      vi.spyOn(ShardRows.prototype, 'apply').mockImplementation(function (this: ShardRows, ...all) {
        return ++updates % 7 === 0 ? true : Reflect.apply(apply, this, all);
      });
      const violation = await caught({}, 20, ROWS);
      expect(violation.invariant).toBe(3);
      expect(violation.message).toMatch(/the rows of shard \d are at row step/);
    });

    test('3, a checkpoint has parts of different steps', async () => {
      const { read } = Shard.prototype;
      vi.spyOn(Shard.prototype, 'read').mockImplementation(function (this: Shard, ...all) {
        const bytes = Reflect.apply(read, this, all);
        const [run, , name, start, count] = all;
        if (!bytes || name !== VECTOR) return bytes;
        const [[, now]] = this.heldOf(run)!.parameters.kept.vectors() as [[string, Float32Array]];
        return bytesOf(now.slice(start, start + count));
      });
      const violation = await caught({}, 20, DENSE);
      expect(violation.invariant).toBe(3);
      expect(violation.message).toMatch(/a checkpoint of step \d+ has other parameters/);
    });

    test('3, one of them misses updates of fragments', async () => {
      const { execute } = Shard.prototype;
      let updates = 0;
      vi.spyOn(Shard.prototype, 'execute').mockImplementation(function (this: Shard, ...all) {
        const [command] = all;
        const isUpdate = command.kind === 'apply' || command.kind === 'combine';
        const isLost = isUpdate && command.options.fragment !== undefined;
        if (!isLost || ++updates % 7 > 0) Reflect.apply(execute, this, all);
      });
      const violation = await caught({}, 20, FRAGMENTS);
      expect(violation.invariant).toBe(3);
      expect(violation.message).toContain('are not those of one shard with all of them');
    });

    test('7, it goes on when the parameters of one of them overflow', async () => {
      const real = Run.prototype.call;
      vi.spyOn(Run.prototype, 'call').mockImplementation(function (this: Run, ...all) {
        if (all[0].call === 'overflowed') return undefined as never;
        return Reflect.apply(real, this, all) as never;
      });
      const violation = await caught({}, 1, OVERFLOWING);
      expect(violation.invariant).toBe(7);
      expect(violation.message).toContain('the run did not go back');
    });

    test('6, it decides on a push before its last part has come', async () => {
      const { take } = Gathering.prototype;
      vi.spyOn(Gathering.prototype, 'take').mockImplementation(function (
        this: Gathering,
        sequence,
        parts,
      ) {
        return Reflect.apply(take, this, [sequence, parts - 1]);
      });
      expect((await caught({}, 20, DENSE)).invariant).toBe(6);
    });
  });

  test('5, it forgets the best over a restart', async () => {
    const violation = await caught({
      restored: (saved) =>
        saved.state.phase === 'training'
          ? { ...saved, state: { ...saved.state, best: null } }
          : saved,
    });
    expect(violation.invariant).toBe(5);
  });

  test('6, it drops answers to rejected pushes', async () => {
    const violation = await caught({
      outgoing: (message) =>
        message.type !== 'work' ||
        message.acknowledgements.every(({ outcome }) => outcome !== 'rejected'),
    });
    expect(violation.invariant).toBe(6);
  });

  test('7, it applies what is not finite', async () => {
    const { squares } = Parameters.prototype;
    const bad = new WeakSet<object>();
    vi.spyOn(Parameters.prototype, 'squares').mockImplementation(function (
      this: Parameters,
      staged,
      ...limit
    ) {
      if (!Number.isFinite(Reflect.apply(squares, this, [staged, ...limit]))) bad.add(staged);
      return 1;
    });
    vi.spyOn(Parameters.prototype, 'update').mockImplementation(function (
      this: Parameters,
      staged,
    ) {
      const gradient = bad.has(staged) ? Number.NaN : 0.1;
      this.kept.write(VECTOR, 0, Float32Array.of(gradient));
      return true;
    });
    // Clusters with shards differ from the one with which they are compared before that.
    expect((await caught({}, 200, 5)).invariant).toBe(7);
  });

  test('8, it gives minibatches out again that are done', async () => {
    vi.spyOn(Leases.prototype, 'complete').mockImplementation(() => {});
    expect((await caught()).invariant).toBe(8);
  });

  test('9, it answers before its standby has the push', async () => {
    vi.spyOn(Replication.prototype, 'whenSafe').mockImplementation((act) => act());
    // The server must die between its answer and its standby's hearing of the push: one cluster of 150, here seed 76.
    const violation = await caught({}, 1_500, 70);
    expect(violation.invariant).toBe(9);
    expect(violation.message).toContain('acknowledged pushes are lost');
  }, 120_000);

  test('8, it forgets the pushes of a step when it goes on from a checkpoint', async () => {
    const restored: Sabotage['restored'] = (saved) => {
      const { collected: _, ...state } = saved.state;
      const { collected: __, ...parameters } = state.parameters ?? { merges: 0, average: null };
      return { ...saved, state: { ...state, parameters } };
    };
    expect((await caught({ restored }, 1_000)).invariant).toBe(8);
  }, 120_000);

  test('8, it waits for workers that have gone', async () => {
    vi.spyOn(Crowd.prototype, 'left').mockImplementation(() => {});
    vi.spyOn(Crowd.prototype, 'tick').mockImplementation(() => {});
    expect((await caught()).invariant).toBe(8);
  }, 120_000);

  test('8, it waits for good for a worker whose minibatch ran out of time', async () => {
    vi.spyOn(Crowd.prototype, 'late').mockImplementation(() => {});
    // One cluster of 150 stands still.
    const violation = await caught({}, 500, 150);
    expect(violation.invariant).toBe(8);
    expect(violation.message).toContain('the run does not end');
  }, 120_000);

  test('8, it loses the minibatches of workers that go', async () => {
    vi.spyOn(Leases.prototype, 'release').mockReturnValue(0);
    vi.spyOn(Leases.prototype, 'expire').mockReturnValue(0);
    expect((await caught()).invariant).toBe(8);
  }, 120_000);
});
