/**
 * Simulates many clusters with faults, each from a seed: test/support/simulator.ts.
 *
 *     npm run soak -- --seeds 10000
 *     npm run soak -- --seed 4711 --seeds 1      # one that failed, again
 */
import { parseArgs } from 'node:util';
import { simulate, Violation } from './support/simulator.ts';

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '1000' },
    seed: { type: 'string', default: '0' },
  },
});
const first = Number(values.seed);
const count = Number(values.seeds);
const began = performance.now();
const sums = {
  ...{ events: 0, steps: 0, crashes: 0, failovers: 0, cuts: 0, rowSteps: 0 },
  ...{ onShards: 0, shardsKilled: 0, overflows: 0 },
  ...{ withDisk: 0, written: 0, continuing: 0, spoilt: 0, back: 0, refusals: 0 },
};
const phases = new Map<string, number>();
const violations: Violation[] = [];
for (let seed = first; seed < first + count; seed++) {
  try {
    const summary = await simulate(seed);
    sums.events += summary.events;
    sums.steps += summary.steps;
    sums.crashes += summary.crashes;
    sums.failovers += summary.failovers;
    sums.cuts += summary.cuts;
    sums.rowSteps += summary.rowSteps;
    if (summary.shards > 1) sums.onShards++;
    sums.shardsKilled += summary.shardsKilled;
    sums.overflows += summary.overflows;
    if (summary.disk) {
      sums.withDisk++;
      for (const name of ['written', 'continuing', 'spoilt', 'back', 'refusals'] as const) {
        sums[name] += summary.disk[name];
      }
    }
    phases.set(summary.phase, (phases.get(summary.phase) ?? 0) + 1);
    if (count === 1) console.log(summary);
  } catch (error) {
    if (!(error instanceof Violation)) {
      console.error(`seed ${seed}`);
      throw error;
    }
    violations.push(error);
    console.error(`seed ${seed}: ${error.message}`);
  }
  const done = seed - first + 1;
  if (done % 500 === 0) {
    console.error(
      `${done} of ${count} seeds, ${((performance.now() - began) / 1000).toFixed(0)} s`,
    );
  }
}
console.log(
  `${count} seeds, ${sums.events} events, ${sums.steps} steps, ${sums.crashes} crashes of the server, ${sums.failovers} of them with a standby, ${sums.cuts} cut connections, ${sums.rowSteps} updates of rows, ${sums.onShards} clusters with shards, ${sums.shardsKilled} shards killed, ${sums.overflows} updates that overflowed on a shard, ${sums.withDisk} clusters with a disk, ${sums.written} checkpoints on it (${sums.continuing} of changed rows), ${sums.spoilt} files spoilt, ${sums.back} times an older checkpoint came back, ${sums.refusals} writes refused by a full disk: ${violations.length} violations (${[...phases].map(([phase, n]) => `${n} ${phase}`).join(', ')})`,
);
process.exit(violations.length > 0 ? 1 : 0);
