import fc from 'fast-check';
import { DownpourError, ERRORS } from '../../shared/errors.ts';
import type { Target } from './targets.ts';

/** Feeds damaged input to what reads it. fast-check draws the damage, and shrinks what does harm. */

/** What may happen to the bytes of a real example. Places are shares of its length. */
type Damage =
  | { readonly kind: 'flip'; readonly at: number; readonly bit: number }
  | { readonly kind: 'set'; readonly at: number; readonly bytes: Uint8Array }
  | { readonly kind: 'cut'; readonly at: number }
  | { readonly kind: 'remove'; readonly at: number; readonly length: number }
  | { readonly kind: 'insert'; readonly at: number; readonly bytes: Uint8Array }
  | {
      readonly kind: 'repeat';
      readonly at: number;
      readonly length: number;
      readonly times: number;
    }
  | { readonly kind: 'number'; readonly at: number; readonly value: number; readonly big: boolean };

const place = fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true });
/** Lengths and offsets that make a reader stumble. */
const EDGES = [
  0,
  1,
  0x7f,
  0x80,
  0xff,
  0x7fff,
  0xffff,
  2 ** 20,
  2 ** 24,
  2 ** 30,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
];
/** Beginnings of msgpack values that announce much, or nest, or are extensions. */
const WORDS = [
  [0xdd, 0xff, 0xff, 0xff, 0xff],
  [0xdf, 0x01, 0x00, 0x00, 0x00],
  [0xdb, 0x7f, 0xff, 0xff, 0xff],
  [0xc6, 0x7f, 0xff, 0xff, 0xff],
  [0xdc, 0xff, 0xff],
  [0xd4, 0x72, 0x40],
  [0xd6, 0x69, 0, 0, 0, 1],
  [0xd6, 0x70, 0, 0, 0, 1],
  [0xc7, 0x04, 0x74, 1, 2, 3, 4],
  [0xc7, 0x00, 0x78],
  [0xd6, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xca, 0x7f, 0xc0, 0, 0],
  [0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0],
  [0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
  [0xc1],
  [...Buffer.from('__proto__')],
  [...Buffer.from('{"a":[[[[')],
  [...Buffer.from(',,"\n"')],
  [...Buffer.from('1e999')],
  [...Buffer.from('../../../etc/passwd')],
].map((bytes) => Uint8Array.from(bytes));
const bytes = fc.oneof(fc.constantFrom(...WORDS), fc.uint8Array({ minLength: 1, maxLength: 24 }));

const damage: fc.Arbitrary<Damage> = fc.oneof(
  fc.record({ kind: fc.constant('flip' as const), at: place, bit: fc.nat(7) }),
  fc.record({ kind: fc.constant('set' as const), at: place, bytes }),
  fc.record({ kind: fc.constant('cut' as const), at: place }),
  fc.record({
    kind: fc.constant('remove' as const),
    at: place,
    length: fc.integer({ min: 1, max: 16 }),
  }),
  fc.record({ kind: fc.constant('insert' as const), at: place, bytes }),
  fc.record({
    kind: fc.constant('repeat' as const),
    at: place,
    length: fc.integer({ min: 1, max: 32 }),
    times: fc.constantFrom(1, 2, 50, 2000),
  }),
  fc.record({
    kind: fc.constant('number' as const),
    at: place,
    value: fc.constantFrom(...EDGES),
    big: fc.boolean(),
  }),
);

function apply(input: Uint8Array, what: Damage): Uint8Array {
  const at = Math.floor(what.at * (input.length + 1));
  const rest = (from: number) => input.subarray(Math.min(from, input.length));
  if (what.kind === 'cut') return input.slice(0, at);
  if (what.kind === 'remove') return Buffer.concat([input.subarray(0, at), rest(at + what.length)]);
  if (what.kind === 'insert') return Buffer.concat([input.subarray(0, at), what.bytes, rest(at)]);
  if (what.kind === 'repeat') {
    const piece = input.subarray(at, at + what.length);
    return Buffer.concat([input.subarray(0, at), ...Array(what.times).fill(piece), rest(at)]);
  }
  const output = Uint8Array.from(input);
  if (what.kind === 'flip') {
    if (at < output.length) output[at]! ^= 1 << what.bit;
  } else if (what.kind === 'set') output.set(what.bytes.subarray(0, output.length - at), at);
  else if (at + 4 <= output.length) {
    new DataView(output.buffer).setUint32(at, what.value, !what.big);
  }
  return output;
}

/** A real example with up to six damages, or bytes of pure chance. */
function inputsOf(corpus: readonly Uint8Array[]): fc.Arbitrary<Uint8Array> {
  const damaged = fc
    .tuple(fc.constantFrom(...corpus), fc.array(damage, { maxLength: 6 }))
    .map(([example, all]) => all.reduce(apply, example));
  return fc.oneof(
    { arbitrary: damaged, weight: 19 },
    { arbitrary: fc.uint8Array({ maxLength: 200 }), weight: 1 },
  );
}

/**
 * What one input may allocate: so much, and so many times its own size. Some of it is the garbage of
 * whatever ran before; a reader that believes a length of 2³⁰ is far above.
 */
export const ALLOCATION = { bytes: 32 * 2 ** 20, perByte: 64 } as const;

export interface Fuzzed {
  readonly target: string;
  readonly inputs: number;
  readonly accepted: number;
  /** By code. */
  readonly rejected: Readonly<Record<string, number>>;
  readonly allocatedBytesMax: number;
  readonly slowestMs: number;
}

/**
 * @throws Error with the input that was shrunk, the seed and the path to it: a crash, a refusal without a
 *   code of the table, or an allocation above `ALLOCATION`.
 */
export async function fuzz(target: Target, inputs: number, seed: number): Promise<Fuzzed> {
  let accepted = 0;
  let allocatedBytesMax = 0;
  let slowestMs = 0;
  const rejected: Record<string, number> = {};
  const pieces = fc.array(place, { maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(inputsOf(target.corpus), pieces, async (input, cuts) => {
      const before = memory();
      const started = performance.now();
      try {
        const reading = target.read(input, cuts);
        if (reading) await reading;
        accepted++;
      } catch (error) {
        if (!(error instanceof DownpourError) || !(error.code in ERRORS)) throw error;
        if (error.code === 'DP_INTERNAL') throw error;
        rejected[error.code] = (rejected[error.code] ?? 0) + 1;
      }
      slowestMs = Math.max(slowestMs, performance.now() - started);
      const allocated = memory() - before;
      allocatedBytesMax = Math.max(allocatedBytesMax, allocated);
      const most = ALLOCATION.bytes + ALLOCATION.perByte * input.length;
      if (allocated > most) {
        throw new Error(`${input.length} bytes made it allocate ${allocated}; at most ${most}`);
      }
    }),
    { numRuns: inputs, seed },
  );
  return { target: target.name, inputs, accepted, rejected, allocatedBytesMax, slowestMs };
}

function memory(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
