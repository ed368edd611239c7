import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import type { TSchema } from 'typebox';
import { expect, test } from 'vitest';
import { keepable, losslessJson } from '../../files/atomic-file.ts';
import { newestValidCheckpoint, writeCheckpoint } from '../../files/checkpoint.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import type { Run } from '../../server/core/run.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Observed } from '../../shared/observed.ts';
import * as protocol from '../../shared/protocol.ts';
import { SHARD_MESSAGES } from '../../shared/shard-messages.ts';
import { recover } from '../support/recover.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

const problem = createProblem();
const WORKER_SCHEMAS = { ...protocol.MESSAGES.fromWorker, ...SHARD_MESSAGES.toShard };

type Json = { readonly [key: string]: Json };

/** Numbers of a schema that have no end on a side, by their paths. */
function endless(schema: TSchema | Json, path: string): string[] {
  const node = schema as Json;
  if (node.const !== undefined) return [];
  const type: unknown = node.type;
  if (type === 'number' || type === 'integer') {
    const low = Number(node.minimum ?? node.exclusiveMinimum ?? -Infinity);
    const high = Number(node.maximum ?? node.exclusiveMaximum ?? Infinity);
    const { measuredMax } = LIMITS;
    return low >= -measuredMax && high <= measuredMax ? [] : [path];
  }
  const inner: [string, Json][] = [];
  for (const key of ['properties', 'patternProperties', 'anyOf']) {
    inner.push(...Object.entries<Json>(node[key] ?? {}));
  }
  if (node.items) inner.push(['[]', node.items]);
  return inner.flatMap(([key, each]) => endless(each, `${path}.${key}`));
}

test('every number that a worker sends has a range, and no sum of such numbers is infinite', () => {
  const found = Object.entries(WORKER_SCHEMAS).flatMap(([type, schema]) => endless(schema, type));
  // A minibatch has at most as many examples as its part, which `count` of the lease is compared with.
  expect(found).toEqual([]);
  expect(Number.isFinite(LIMITS.measuredMax * 2 ** 53)).toBe(true);
});

const huge = fc.constantFrom(1.7e308, 1e100, -1.7e308, -1e100, 3.4e38, 1e12, 1, 0);
const histogram = { low: -1, high: 1, counts: [1] };

test('whatever numbers a worker sends, the state of the run can be written', () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ loss: huge, ms: huge, cost: huge, norm: huge }), { maxLength: 30 }),
      (sent) => {
        const run = createRun({ observe: { everySteps: 1 }, epochsMax: 3, evaluateEverySteps: 2 });
        const worker = new HugeWorker(run, problem);
        for (const { loss, ms, cost, norm } of sent) {
          worker.told = { loss, computeMs: ms };
          if (run.over || !worker.pull()) break;
          worker.push();
          accept(() =>
            run.call({
              call: 'sampled',
              worker: worker.key,
              observed: checked({
                ...{ type: 'observed', run: run.id, step: run.step, updateSteps: 1, samples: 1 },
                costMs: cost,
                tensors: [
                  {
                    ...{ name: 'weights', weights: histogram, gradients: histogram, updates: null },
                    ...{ gradientNorm: norm, updateRatio: norm, elements: 1, never: 0, rare: 0 },
                  },
                ],
                layers: [],
              }) as Observed,
              now: 0,
            }),
          );
          expect(() => losslessJson(run.state(0))).not.toThrow();
          // Nor does REST tell what JSON cannot.
          expect(() => losslessJson([run.summary(0), run.metrics(), run.observed])).not.toThrow();
        }
      },
    ),
    { numRuns: 60 },
  );
});

const checked = (header: { type: string; [field: string]: unknown }) =>
  protocol.checkWorkerMessage(header);

function accept(action: () => void): void {
  try {
    action();
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
  }
}

/** A worker whose statistics are made up. */
class HugeWorker extends VirtualWorker {
  told = { loss: 0, computeMs: 0 };

  override tell(push: protocol.Push): protocol.Push | null {
    try {
      return checked({ ...push, ...this.told }) as protocol.Push;
    } catch {
      return null;
    }
  }
}

test('a number that JSON cannot keep is null in the checkpoint, which says so, and all else is there', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-'));
  try {
    const state = {
      sums: { cost: Infinity, list: [1, Number.NaN] },
      good: [1, { a: 2 }],
      text: 'x',
    };
    expect(keepable(state.good).value).toBe(state.good);
    await writeCheckpoint(folder, {
      ...{ run: 'r', step: 1, kind: 'last', layoutHash: 'h', tensors: [], now: new Date() },
      state,
    });
    const checkpoint = await newestValidCheckpoint(folder);
    const kept = { ...state, sums: { cost: null, list: [1, null] } };
    expect(checkpoint!.manifest.state).toEqual(kept);
    expect(checkpoint!.manifest.leftOut).toEqual(['sums.cost (Infinity)', 'sums.list.1 (NaN)']);
    expect(state.sums.cost).toBe(Infinity);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test('a statistic that overflowed in an older release blocks no checkpoint, and an alarm names it', async () => {
  const root = await mkdtemp(join(tmpdir(), 'downpour-'));
  const store = openFileStore({ folder: root });
  const { token } = await store.acquire('test', { ttlMs: 10_000 });
  const lines: string[] = [];
  const log = (line: string) => lines.push(line);
  const keeper = new Keeper({ root, store, token, now: () => 0, log, onFenced: () => {} });
  try {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    for (let i = 0; i < 4; i++) {
      worker.pull();
      worker.push();
    }
    const state = run.state.bind(run);
    const { smoothed } = run.state(0).observations;
    run.state = (now) => {
      const whole = state(now);
      return {
        ...whole,
        observations: { ...whole.observations, smoothed: { ...smoothed, sum: Infinity } },
      };
    };
    await keeper.register(run as Run);
    await keeper.checkpointNow(run);
    expect(keeper.latest(run.id)?.step).toBe(run.step);
    expect(keeper.problem(run.id)).toBeNull();
    expect(keeper.leftOut(run.id)).toEqual(['observations.smoothed.sum (Infinity)']);
    expect(lines.join()).toContain('written without observations.smoothed.sum (Infinity)');
    const [later] = await recover(
      new Keeper({ root, store, token, now: () => 0, log, onFenced: () => {} }),
    );
    expect(later!.step).toBe(run.step);
    new VirtualWorker(later!, problem, 'v/1').train(() => later!.step > run.step + 3);
    expect(later!.summary(0).trainingLoss).toBeGreaterThan(0);
  } finally {
    await store.close();
    await rm(root, { recursive: true, force: true });
  }
});
