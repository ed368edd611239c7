import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { newestValidCheckpoint } from '../../files/checkpoint.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { bytesOf } from '../../shared/codec.ts';
import { createProblem, parametersOf, VirtualWorker } from '../support/regression.ts';

/**
 * A checkpoint that release 0.1.0 wrote in the middle of a training: four workers with velocities of their own, an
 * average, a best step, a rollback, a sample, minibatches that are out. `expected.json` is what that release itself
 * made of it: the vectors when it had opened it, its state after one worker had trained it to the end, and what it
 * took for the fields that a state of a still older one lacks (`older`).
 */
const FOLDER = join(import.meta.dirname, '../fixtures/checkpoint-0.1.0');
/** More generations and evaluations than a life of the server has; more leases than between two checkpoints. */
const [LIFE, LEASES] = [2 ** 20, 2 ** 24];

const expected = JSON.parse(readFileSync(join(FOLDER, 'expected.json'), 'utf8'));
const sha256 = (content: string | Uint8Array) => createHash('sha256').update(content).digest('hex');

async function open(life?: number): Promise<{ run: Run; state: RunState }> {
  const checkpoint = await newestValidCheckpoint(FOLDER);
  const state = checkpoint!.manifest.state as RunState;
  return { run: Run.restore(state, checkpoint!.tensors, null, life), state };
}

test('a checkpoint of release 0.1.0 is opened, and nothing of it is lost', async () => {
  const { run, state } = await open();
  const vectors = run.replicaVectors().map(([name, values]) => [name, sha256(bytesOf(values))]);
  expect(Object.fromEntries(vectors)).toEqual(expected.vectors);
  // Numbers of the life before are never taken for something of this one.
  expect(JSON.parse(JSON.stringify(run.state(0)))).toEqual({
    ...state,
    generation: state.generation + LIFE,
    firstGeneration: state.generation + LIFE,
    evaluationsGiven: state.evaluationsGiven + LIFE + (state.evaluationDue ? 1 : 0),
    leases: { ...state.leases!, nextId: state.leases!.nextId + LEASES },
    life: state.life! + 1,
  });
});

test('and trained to the end as release 0.1.0 did, to the bit', async () => {
  const { run } = await open(3);
  new VirtualWorker(run, createProblem(), 'e/1').train();
  const { observations, ...state } = run.state(0);
  expect(JSON.parse(JSON.stringify(state))).toEqual(expected.finished);
  // Points have the compute time of their gradient since.
  function known(this: object, field: string, value: unknown): unknown {
    return field === 'computeMs' && 'gradientNorm' in this ? undefined : value;
  }
  expect(sha256(JSON.stringify(observations, known))).toBe(expected.observations);
  expect(sha256(bytesOf(parametersOf(run)))).toBe(expected.parameters);
});

test('fields that came later stand at what they were taken for', async () => {
  const added = ['facts', 'originData', 'errorMeasure', 'testedAt', 'life', 'firstGeneration'];
  added.push('stepsLost', 'rollbacks', 'initialLoss', 'rateFactor', 'optimizerStart', 'epochAtEnd');
  added.push('startingAnew', 'correction');
  const checkpoint = await newestValidCheckpoint(FOLDER);
  const { workers, ...state } = checkpoint!.manifest.state as RunState;
  const kept = Object.entries(state).filter(([field]) => !added.includes(field));
  const older = Object.fromEntries(kept) as unknown as Omit<RunState, 'workers'>;
  // The last sequence of a worker was all that was kept of it.
  const alone = workers.map(([key, sequence]) => [key, sequence] as const);
  const run = Run.restore({ ...older, workers: alone }, checkpoint!.tensors);
  const { observations: _, ...opened } = run.state(0);
  expect(JSON.parse(JSON.stringify(opened))).toEqual(expected.older);
});
