import { setImmediate as turn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { Budget } from '../../server/access/budget.ts';
import type { Keeper } from '../../server/checkpoints/keeper.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { WorkerSession } from '../../server/fleet/session.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { Connection } from '../../wire/connection.ts';
import { createProblem, EXCHANGED, FACTS, TENSORS } from '../support/regression.ts';

/** Workers stay connected for longer than the runs that they have worked for. */

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const NOTHING = new Uint8Array();

test('a run that was removed gives its memory back, though its worker stays', async () => {
  const keeper = {
    ...{ life: 1, register: async () => {}, remove: async () => {} },
    ...{ onStep() {}, onPhase() {}, isBeingRemoved: () => false },
  } as unknown as Keeper;
  const coordinator = new Coordinator({ keeper, now: () => 0, log: () => {} });
  const said: { type: string; grant?: number }[] = [];
  const connection = {
    ...{ transport: 'tcp', bytes: { received: 0, sent: 0 }, open: true, coming: null },
    ...{ bufferedBytes: 0, leftBytes: 0, waiting: false, holding: false },
    ...{ ping() {}, retry() {}, hold() {}, halt() {}, goOn() {}, close() {}, terminate() {} },
    send(message: { type: string }, _parts?: unknown, gone?: () => void) {
      said.push({ ...message });
      gone?.();
    },
  } as unknown as Connection;
  const budget = new Budget({ share: 1, burstMs: 1e9 }, () => 0);
  const session = new WorkerSession(connection, coordinator, '', null, budget);
  coordinator.workers.opened(session);
  const tell = (message: { readonly type: string }, payload: Uint8Array = NOTHING) =>
    session.events.message({ ...message }, payload, null);
  const train = async () => {
    const run = await coordinator.create({ id: 'r', experiment: 'e', experimentHash: 'h' });
    const hello = { incarnation: '0123456789abcdef', run: null, experiments: { e: 'h' } };
    tell({ type: 'hello', worker: 'w', ...hello, engine: 'none', device: 'none' } as never);
    const { summary: data } = createProblem();
    const join = { experimentHash: 'h', tensors: TENSORS, data, facts: 'json' };
    tell({ type: 'join', run: 'r', ...join } as never, FACTS);
    const { grant } = said.find(({ type }) => type === 'initialise')!;
    tell(
      { type: 'initialised', run: 'r', grant } as never,
      bytesOf(new Float32Array(EXCHANGED + 1)),
    );
    const work = said.find(({ type }) => type === 'work') as never as {
      leases: { id: number }[];
      step: number;
      generation: number;
    };
    const { leases, step, generation } = work;
    const push = { sequence: 1, lease: leases[0]!.id, step, generation, loss: 1, computeMs: 1 };
    tell(
      { type: 'push', run: 'r', ...push, encoding: 'f32' } as never,
      bytesOf(new Float32Array(EXCHANGED)),
    );
    expect(run.step).toBe(1);
    await coordinator.remove('r', true);
    return new WeakRef(run);
  };
  const removed = await train();
  expect(said.at(-1)).toMatchObject({ type: 'idle' });
  await turn();
  collect();
  expect(removed.deref()).toBeUndefined();
  expect(session.connected).toBe(true);
});
