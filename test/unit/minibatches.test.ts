import { describe, expect, it } from 'vitest';
import { dataOf } from '../../worker/data/given.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import { Minibatches } from '../../worker/minibatches.ts';

const COUNT = 60;
const SIZE = 8;

/** Examples whose numbers say which one it is, from a source that answers when it is let. */
async function read() {
  const waiting: (() => void)[] = [];
  let isSlow = false;
  const train = {
    count: COUNT,
    name: 'numbers',
    fields: {
      inputs: { shape: [SIZE], type: 'float32' },
      targets: { shape: [], type: 'int32', role: 'target', classCount: COUNT },
    },
    async read(indices: Int32Array) {
      if (isSlow) await new Promise<void>((resolve) => waiting.push(resolve));
      return {
        inputs: Float32Array.from(
          { length: SIZE * indices.length },
          (_, i) => indices[Math.floor(i / SIZE)]!,
        ),
        targets: Int32Array.from(indices),
      };
    },
  } as const;
  const options = {
    seed: 1,
    validationFraction: 0.1,
    standardise: 'none',
    loss: 'softmaxCrossEntropy',
  } as const;
  const prepared = await prepareAny(dataOf({ train }), options, { log: () => {} });
  return {
    minibatches: new Minibatches(3, prepared),
    slow: () => (isSlow = true),
    answer: () => waiting.shift()!(),
  };
}

const leaseOf = (id: number, count = 4) =>
  ({ id, part: 'train', epoch: 0, start: 4 * id, count }) as const;
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe('minibatches of a source', () => {
  it('keep their numbers until two more were taken; then their memory is used again', async () => {
    const { minibatches } = await read();
    const memory = new Set<ArrayBufferLike>();
    const kept: { inputs: Float32Array; copy: Float32Array }[] = [];
    for (let id = 0; id < 12; id++) {
      // The last minibatch of an epoch is smaller.
      const minibatch = await minibatches.take(leaseOf(id, id === 6 ? 2 : 4));
      const { inputs, targets } = minibatch;
      expect([...inputs]).toEqual([...targets].flatMap((each) => new Array(SIZE).fill(each)));
      memory.add(inputs.buffer);
      kept.push({ inputs, copy: inputs.slice() });
      minibatches.prepare(leaseOf(id + 1));
      minibatches.prepare(leaseOf(id + 2));
      await settled();
      for (const each of kept.slice(-2)) expect(each.inputs).toEqual(each.copy);
    }
    expect(memory.size).toBeLessThanOrEqual(5);
    minibatches.close();
  });

  it('of leases that went to another worker leave those that are used alone', async () => {
    const { minibatches, slow, answer } = await read();
    const first = await minibatches.take(leaseOf(0));
    const copy = first.inputs.slice();
    slow();
    for (let id = 1; id < 9; id++) minibatches.prepare(leaseOf(id));
    for (let id = 1; id < 7; id++) {
      answer();
      await settled();
      expect(first.inputs).toEqual(copy);
    }
    const taken = minibatches.take(leaseOf(8));
    answer();
    answer();
    const { inputs, targets } = await taken;
    expect([...inputs]).toEqual([...targets].flatMap((each) => new Array(SIZE).fill(each)));
    minibatches.close();
  });
});
