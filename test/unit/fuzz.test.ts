import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeFrame, encodeFrame } from '../../shared/codec.ts';
import { ALLOCATION, fuzz } from '../fuzz/fuzz.ts';
import { openTargets, type Target } from '../fuzz/targets.ts';

// A slice of `npm run fuzz`: a crash, a refusal without a code or a large allocation fails, with the input
// shrunk and the seed.

const INPUTS = 300;
let targets: Target[];
beforeAll(async () => {
  targets = await openTargets();
});
afterAll(() => {
  for (const target of targets) target.close?.();
});

describe('damaged input is refused with a code, or read', () => {
  test.each([
    'frame and message',
    'WebSocket receiver',
    'gradient, applied',
    'facts of data',
    'safetensors header',
    'manifest of a checkpoint',
    'tensors of a checkpoint',
    'rows of tables',
    'npy',
    'IDX',
    'CSV',
  ])('%s', async (name) => {
    const target = targets.find((one) => one.name === name)!;
    const { accepted, rejected } = await fuzz(
      target,
      Math.ceil(INPUTS / (target.cost ?? 1)),
      Math.floor(Math.random() * 2 ** 31),
    );
    // The examples themselves are real: undamaged ones are taken, most damaged ones are not.
    if (!target.cost) expect(accepted).toBeGreaterThan(0);
    expect(Object.keys(rejected)).not.toEqual([]);
  });

  test('all readers are in the list', () => {
    expect(targets).toHaveLength(11);
  });
});

test('every example is taken whole', async () => {
  for (const target of targets) {
    for (const example of target.corpus) {
      if (target.name === 'WebSocket receiver') continue;
      await target.read(example, []);
    }
  }
});

test('the fuzzer finds what it is for', async () => {
  const corpus = [Uint8Array.of(1, 2, 3, 4)];
  const crashes = {
    name: 'crashes',
    corpus,
    read: (bytes: Uint8Array) => {
      if (bytes[0] !== 1) throw new TypeError('not expected');
    },
  };
  await expect(fuzz(crashes, 1000, 1)).rejects.toThrow(/not expected|Counterexample/);
  const kept: Uint8Array[] = [];
  const believes = {
    name: 'believes',
    corpus,
    read: (bytes: Uint8Array) => {
      if (bytes.length < 4) kept.push(new Uint8Array(2 * ALLOCATION.bytes));
    },
  };
  await expect(fuzz(believes, 1000, 1)).rejects.toThrow(/allocate|Counterexample/);
});

test('no message changes how others are read', () => {
  const frame = encodeFrame({ type: 'x', step: 64, list: [65, 66] });
  const before = decodeFrame(frame).header;
  // Definitions of msgpackr's records, which would make 64 stand for one of them.
  for (const packed of [
    [0xd4, 0x72, 0x40, 0x91, 0xa4, 0x74, 0x79, 0x70, 0x65, 0xa1, 0x79],
    [0xd5, 0x72, 0x40, 0x00, 0x91, 0xa4, 0x74, 0x79, 0x70, 0x65, 0xa1, 0x79],
  ]) {
    const bytes = new Uint8Array(8 * Math.ceil((8 + packed.length) / 8));
    bytes.set([0x44, 0x50, 1, 0, packed.length]);
    bytes.set(packed, 8);
    try {
      decodeFrame(bytes);
    } catch {
      // Refused is as good.
    }
    expect(decodeFrame(frame).header).toEqual(before);
  }
});
