import type { Run } from '../../server/core/run.ts';
import { RunTables } from '../../server/core/tables/run-tables.ts';
import type { Coordinator } from '../../server/fleet/coordinator.ts';
import { bytesOf } from '../../shared/codec.ts';
import { errorCode } from '../../shared/errors.ts';
import type { CreateRun } from '../../shared/rest.ts';
import { KEYS } from './simulated-rows.ts';
import type { SimulatedState } from './simulated-state.ts';
import type { Simulation } from './simulator.ts';
import { areSameBytes, joinedBytes } from './virtual-network.ts';

/**
 * What a person does with a run that is over: archives it, makes a fork of it, and removes it. The server is killed after each of
 * these, and in the middle of the last one. What was answered must be so afterwards.
 */

type Kind = 'last' | 'best' | 'final';
const ALL = Uint32Array.from({ length: KEYS }, (_, key) => key);

/** Parameters and rows, as the run has them now or had them at its best. */
function modelOf(run: Run, kind: Kind): Uint8Array {
  const dense = run.withoutRows(kind === 'last' ? 'final' : kind, (values) => values.slice());
  // Where groups are frozen they lie elsewhere.
  const own = dense
    .filter(({ name }) => !name.startsWith('@'))
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ values }) => bytesOf(values));
  const { tables } = run;
  if (!tables) return joinedBytes(own);
  const keys = tables.shapes.map(() => ALL);
  // What workers are sent is read in another way, which is watched.
  const read = RunTables.prototype.read.bind(tables);
  return joinedBytes([...own, read(keys, 'f32', kind === 'best' ? bestOf(run) : null)]);
}

const bestOf = (run: Run) =>
  (run as unknown as { inside: { fields: { best: { capture: number } | null } } }).inside.fields
    .best!.capture;

export async function operate(simulation: Simulation, state: SimulatedState): Promise<void> {
  const { server } = simulation;
  simulation.calm = true;
  state.disk.clear();
  for (const worker of simulation.workers) worker.die(Infinity);
  const until = <T>(done: Promise<T>, what: string) => simulation.until(done, what);
  const restarted = async (): Promise<Coordinator> => {
    server.restart();
    const isThere = async () => {
      while (!server.coordinator) await new Promise((resolve) => setImmediate(resolve));
    };
    await until(isThere(), 'a restart');
    return server.coordinator!;
  };
  const mustBe = (isSo: boolean, what: string) => {
    if (!isSo) simulation.violate(2, what);
  };

  let coordinator = server.coordinator!;
  const run = server.run!;
  const { phase } = run;
  const kinds: Kind[] = ['last'];
  if (run.best && run.hasParameters) kinds.push('best');
  if (phase === 'finished') kinds.push('final');
  const kind = kinds[state.choose(kinds.length)]!;
  await until(coordinator.edit('r', { archived: true }), 'archiving');
  // What else of it was to be written.
  await until(
    coordinator.checkpoint('r').catch(() => {}),
    'a checkpoint',
  );
  // It may continue a file that somebody has spoilt.
  if (!state.isSafe) return;
  const model = modelOf(run, kind);

  coordinator = await restarted();
  const back = server.run!;
  mustBe(back.labels.archived, 'the run was archived, and is not any more');
  mustBe(back.phase === phase, `the run was in phase ${phase}, and is in phase ${back.phase}`);
  mustBe(areSameBytes(modelOf(back, kind), model), `the ${kind} parameters are others`);
  const resumed = await until(
    coordinator.resume('r').then(() => '', errorCode),
    'resuming',
  );
  mustBe(resumed === 'DP_RUN_ENDED', `an archived run was resumed: ${resumed}`);

  const body: CreateRun = {
    ...{ id: 'f', experiment: 'regression', experimentHash: 'hash', config: simulation.config },
    fork: { run: 'r', checkpoint: kind },
  };
  const made = coordinator.create(body).catch((error: unknown) => {
    const isDamaged = errorCode(error).startsWith('DP_CHECKPOINT_');
    // Somebody has spoilt the file of the best or the final parameters.
    if (isDamaged && kind !== 'last' && state.counts.spoilt > 0) return null;
    throw error;
  });
  const fork = await until(made, 'a fork');
  if (!fork) return;
  const isEqual = (it: Run | null) => it !== null && areSameBytes(modelOf(it, 'last'), model);
  mustBe(isEqual(fork), `a fork has other parameters than the ${kind} ones of its run`);

  coordinator = await restarted();
  mustBe(isEqual(coordinator.find('f')), 'a fork is not what it was before a restart');

  state.isRemoved = true;
  let isRemoved = false;
  const removing = coordinator.remove('r', false).then(
    () => {
      isRemoved = true;
    },
    // The server died.
    () => {},
  );
  if (state.choose(2) === 0) await until(removing, 'a removal');
  else await until(simulation.after(state.choose(40)), 'a pause');
  const wasRemoved = isRemoved;
  coordinator = await restarted();
  const found = coordinator.find('r');
  mustBe(!(wasRemoved && found), 'the run was removed, and is there again');
  mustBe(!found || areSameBytes(modelOf(found, kind), model), 'a run that stayed is another one');
  mustBe(isEqual(coordinator.find('f')), 'a fork is not what it was before its run was removed');
  const left = state.disk.filesIn('/r').length;
  mustBe(found !== null || left === 0, `the run is removed, and has ${left} files`);
}
