import type { SimulatedShard } from './simulated-shards.ts';
import type { SimulatedState } from './simulated-state.ts';
import type { Simulation } from './simulator.ts';

/** What befalls a simulated cluster, until it is left alone. */

export function disturb(simulation: Simulation, untilMs: number): void {
  const { server, workers, shards, state } = simulation;
  const faults: (() => void)[] = [
    () => simulation.pick(workers).die(simulation.delayMs(5_000)),
    () => simulation.pick(workers).halt(simulation.delayMs(8_000)),
    () => server.crash(simulation.delayMs(3_000)),
    () => server.halt(simulation.delayMs(4_000)),
    () => cutOne(simulation),
    () => cutOne(simulation),
    () => cutOne(simulation),
  ];
  if (simulation.follow) faults.push(() => server.standby?.die(simulation.delayMs(500)));
  if (shards.length > 0) faults.push(...faultsOfShards(simulation, shards));
  if (state) faults.push(...faultsOfDisk(simulation, state));
  simulation.at(untilMs, () => {
    simulation.calm = true;
    server.standby?.die(0);
    state?.disk.clear();
  });
  // How bad a time it is, by seed.
  const everyMs = simulation.pick([300, 2_000, 10_000]);
  const next = () => {
    simulation.at(simulation.draw.uniform() * 2 * everyMs, () => {
      if (simulation.calm || simulation.now > untilMs) return;
      simulation.pick(faults)();
      next();
    });
  };
  next();
}

function faultsOfShards(simulation: Simulation, shards: readonly SimulatedShard[]) {
  const cutShard = () =>
    simulation
      .pick(shards)
      .someEnd((count) => simulation.draw.below(count))
      ?.link.cut();
  return [
    () => {
      simulation.shardsKilled++;
      simulation.pick(shards).kill(simulation.delayMs(3_000));
    },
    () => simulation.pick(shards).halt(simulation.delayMs(4_000)),
    cutShard,
    cutShard,
  ];
}

function faultsOfDisk(simulation: Simulation, state: SimulatedState) {
  return [
    () => {
      state.fill();
      simulation.at(simulation.delayMs(6_000), () => state.disk.clear());
    },
    () => {
      // Nobody spoils what is being read.
      if (!simulation.server.isReading) state.spoil();
    },
  ];
}

function cutOne(simulation: Simulation): void {
  const open = [...simulation.connections];
  if (open.length === 0) return;
  simulation.cuts++;
  simulation.pick(open).cut();
}
