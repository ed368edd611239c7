import { expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { bytesOf } from '../../shared/codec.ts';
import { type Encoding, encodedBytes } from '../../shared/compression.ts';
import { resolveConfig } from '../../shared/config.ts';
import type { Push } from '../../shared/protocol.ts';

const SIZE = 100_000;
const PUSHES = 3_000;
/** One payload kept in each hundredth push would be 12 MB. */
const GROWTH_BYTES = 4e6;

test.each([
  ['f32', 'f32'],
  ['bf16', 'bf16'],
  ['int8', 'bf16'],
] as const)('pushes in %s and pulls in %s allocate nothing in proportion to them', (push, pull) => {
  const config = resolveConfig({
    optimizer: { kind: 'adam' },
    averaging: { kind: 'ema' },
    compression: { push: { kind: push }, pull },
    earlyStopping: { enabled: false },
    stepsMax: 2 * PUSHES,
    evaluateEverySteps: 10 * PUSHES,
  });
  const options = { id: 'r', experiment: 'e', experimentHash: 'h', createdAt: '', config };
  const run = new Run(options);
  const tensors = [{ name: 'w', shape: [SIZE], role: 'trainable' as const }];
  const counts = { trainCount: 64 * PUSHES, validationCount: 1, testCount: 0 };
  run.call({
    call: 'join',
    worker: 'a/1',
    join: { experimentHash: 'h', tensors, data: { ...counts, fingerprint: 'f', source: '' } },
    now: 0,
  });
  const granted = run.call({ call: 'assign', worker: 'a/1', ahead: 2, now: 0 });
  if (granted.kind !== 'initialise') throw new Error(granted.kind);
  run.call(
    { call: 'initialised', worker: 'a/1', grant: granted.grant, now: 0 },
    bytesOf(new Float32Array(SIZE)),
  );

  let sequence = 0;
  const work = (count: number) => {
    for (let i = 0; i < count; i++) {
      const assignment = run.call({ call: 'assign', worker: 'a/1', ahead: 2, now: 0 });
      if (assignment.kind !== 'work') throw new Error(assignment.kind);
      const { payload, step, leases } = assignment;
      payload!.hold();
      const landing = run.land(encodedBytes(push as Encoding, SIZE), push as Encoding)!;
      const message: Push = {
        ...{ type: 'push', run: 'r', sequence: ++sequence, lease: leases[0]!.id, step },
        ...{ generation: run.generation, loss: 1, computeMs: 1, encoding: push },
      };
      expect(
        run.call(
          { call: 'push', worker: 'a/1', push: message, now: 0, room: landing },
          landing.bytes,
        ).outcome,
      ).toBe('applied');
      landing.release();
      payload!.release();
      run.takeEvents();
    }
  };
  work(100);
  const before = process.memoryUsage().arrayBuffers;
  work(PUSHES);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(GROWTH_BYTES);
});
