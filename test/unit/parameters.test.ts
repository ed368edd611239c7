import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Parameters } from '../../server/core/parameters.ts';
import type { Snapshot } from '../../server/core/snapshot.ts';
import type { StepOptions } from '../../server/core/step-options.ts';
import { bytesOf } from '../../shared/codec.ts';
import { encodeBf16, encodedBytes, encodeInt8 } from '../../shared/compression.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { random } from '../../shared/random.ts';

/** A push from where it landed or from a copy, in place or beside what is being sent: the same numbers, to the bit. */

/** Some blocks of `BLOCK_ELEMENTS`, and a rest that is no multiple of anything. */
const SIZES = [1, 5, 1_000, 8_192, 8_200, 20_011] as const;

/** @param vectors so many elements of `size` lie in a tensor of their own, which does not decay. */
function layoutOf(size: number, { statistics = 0, frozen = 0, vectors = 0 } = {}) {
  return createLayout([
    ...(vectors > 0 ? [{ name: 'b', shape: [vectors], role: 'trainable' } as const] : []),
    { name: 'w', shape: [1, size - vectors], role: 'trainable' },
    ...(statistics > 0
      ? [{ name: 'mean', shape: [statistics], role: 'statistics', momentum: 0.9 } as const]
      : []),
    ...(frozen > 0 ? [{ name: 'base', shape: [frozen], role: 'frozen' } as const] : []),
  ]);
}

/** Many times as fast as comparing them one by one. */
const isSame = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;
const isEqual = (a: Float32Array, b: Float32Array) => isSame(bytesOf(a), bytesOf(b));

function normal(n: number, seed: number): Float32Array {
  const draw = random(seed, 3);
  return Float32Array.from({ length: n }, () => draw.normal());
}

/** A push's payload. */
function payloadOf(
  encoding: 'f32' | 'bf16' | 'int8',
  size: number,
  statistics: number,
  seed: number,
) {
  const gradient = normal(size, seed);
  const bytes = new Uint8Array(encodedBytes(encoding, size) + 4 * statistics);
  const own = bytes.subarray(0, encodedBytes(encoding, size));
  if (encoding === 'f32') own.set(bytesOf(gradient));
  else if (encoding === 'bf16') encodeBf16(gradient, own);
  else encodeInt8(gradient, null, own);
  bytes.set(bytesOf(normal(statistics, seed + 1)), own.length);
  return bytes;
}

const optimizers = ['sgd', 'momentum', 'adam'] as const;
const averages = ['none', 'ema', 'polyak'] as const;

test('an update gives the same whether parameters are sent meanwhile, copied or left alone', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...SIZES),
      fc.constantFrom(0, 3),
      fc.constantFrom('f32', 'bf16', 'int8'),
      fc.constantFrom(...optimizers),
      fc.constantFrom(...averages),
      fc.boolean(),
      fc.constantFrom(0, 0.1),
      fc.integer({ min: 0, max: 2 ** 31 }),
      (size, statistics, encoding, kind, averaging, clips, rate, seed) => {
        // So that a span of the vector begins anywhere.
        const layout = layoutOf(size, { statistics, vectors: Math.min(3, size - 1) });
        const create = (more: PartialConfig = {}) => {
          const parameters = new Parameters(
            layout,
            resolveConfig({
              ...{ optimizer: { kind }, averaging: { kind: averaging }, weightDecay: { rate } },
              ...more,
            }),
          );
          parameters.initialise(normal(layout.size, seed));
          return parameters;
        };
        // In the same place, from a copy; into another; all snapshots kept; sent in bf16.
        const alone = create();
        const lent = create();
        const kept = create();
        const halves = create({ compression: { pull: 'bf16' } });
        const snapshots: { snapshot: Snapshot; wanted: Uint8Array }[] = [];
        for (let step = 1; step <= 4; step++) {
          const options: StepOptions = { step, learningRate: 0.01 };
          const payload = payloadOf(encoding, size, statistics, seed + step);
          const clip = { limit: Infinity, factor: clips && step % 2 === 0 ? 0.5 : 1 };
          const norms = [alone, lent, kept, halves].map((parameters) => {
            if (parameters !== alone) {
              const snapshot = parameters.snapshot(parameters === halves ? 'bf16' : 'f32');
              if (parameters === kept || (parameters === halves && step % 2 === 0)) snapshot.hold();
              if (parameters === kept) {
                snapshots.push({ snapshot, wanted: snapshot.bytes.slice() });
              }
            }
            // It lands for all but one, in pieces of any size.
            const lands = parameters !== alone && parameters.land(payload.length, encoding);
            for (let came = 0, i = 0; lands && came < payload.length; i++) {
              const end = Math.min(payload.length, came + ((seed + 7919 * i) % 40_000));
              lands.bytes.set(payload.subarray(came, end), came);
              came = end;
              lands.came(came);
            }
            const push = parameters.stage(lands ? lands.bytes : payload, encoding, lands || null);
            const norm = parameters.squares(push, Infinity);
            expect(parameters.update(push, clip, options)).toBe(true);
            if (lands) lands.release();
            return norm;
          });
          expect(new Set(norms).size).toBe(1);
          const wanted = alone.exchanged();
          for (const other of [lent, kept, halves]) {
            expect(isEqual(other.exchanged(), wanted)).toBe(true);
          }
          const encoded = new Uint8Array(encodedBytes('bf16', wanted.length));
          encodeBf16(wanted, encoded);
          expect(isSame(halves.snapshot('bf16').bytes, encoded)).toBe(true);
          for (const other of [lent, kept, halves]) {
            for (const [i, { name, values }] of alone.kept.tensors().entries()) {
              expect(isEqual(other.kept.tensors()[i]!.values, values), name).toBe(true);
            }
            expect(other.kept.state()).toEqual(alone.kept.state());
          }
        }
        for (const { snapshot, wanted } of snapshots)
          expect(isSame(snapshot.bytes, wanted)).toBe(true);
      },
    ),
    { numRuns: 25 },
  );
});

test.each(['f32', 'bf16'] as const)(
  'what is sent in %s stays as it is, however many are under way',
  (pull) => {
    const size = 100;
    const parameters = new Parameters(layoutOf(size), resolveConfig({ compression: { pull } }));
    parameters.initialise(normal(size, 1));
    const sent: { snapshot: Snapshot; wanted: Uint8Array }[] = [];
    // More than there is room for, then none for a while, then as many again.
    for (const holding of [100, 0, 100]) {
      for (let step = 1; step <= 100; step++) {
        const snapshot = parameters.snapshot(pull);
        if (step <= holding) {
          snapshot.hold();
          sent.push({ snapshot, wanted: snapshot.bytes.slice() });
        }
        const options = { step, learningRate: 0.1 };
        const push = parameters.stage(payloadOf('f32', size, 0, step), 'f32');
        parameters.squares(push, Infinity);
        parameters.update(push, { limit: Infinity, factor: 1 }, options);
      }
      for (const { snapshot, wanted } of sent) {
        expect(isSame(snapshot.bytes, wanted)).toBe(true);
        snapshot.release();
      }
      sent.length = 0;
    }
  },
);

test('whatever replaces the parameters leaves alone what is being sent', () => {
  const size = 50;
  const other = normal(size, 2);
  const changes: ((parameters: Parameters) => void)[] = [
    (parameters) => parameters.initialise(other),
    (parameters) => parameters.replace(other),
    (parameters) => parameters.kept.write('@parameters', 0, other),
    (parameters) => parameters.kept.adopt(null, [{ name: 'w', shape: [size], values: other }]),
  ];
  for (const change of changes) {
    const parameters = new Parameters(layoutOf(size), resolveConfig({}));
    parameters.initialise(normal(size, 1));
    const snapshot = parameters.snapshot();
    snapshot.hold();
    const wanted = snapshot.bytes.slice();
    change(parameters);
    expect(parameters.exchanged()).toEqual(other);
    expect(isSame(snapshot.bytes, wanted)).toBe(true);
    expect(parameters.snapshot().bytes).toEqual(bytesOf(other));
  }
});

test('an overflow leaves the parameters as they were, with frozen ones and without', () => {
  for (const kind of optimizers) {
    for (const frozen of [0, 7]) {
      for (const lands of [true, false]) {
        const size = 9_000;
        const layout = layoutOf(size, { statistics: 3, frozen });
        const parameters = new Parameters(layout, resolveConfig({ optimizer: { kind } }));
        parameters.initialise(normal(layout.size, 1));
        const before = parameters.whole();
        parameters.snapshot().hold();
        const options = { step: 1, learningRate: 1e40 };
        const payload = payloadOf('f32', size, 3, 5);
        const room = lands ? parameters.land(payload.length, 'f32')! : null;
        room?.bytes.set(payload);
        const push = parameters.stage(room?.bytes ?? payload, 'f32', room);
        parameters.squares(push, Infinity);
        expect(parameters.update(push, { limit: Infinity, factor: 1 }, options)).toBe(false);
        room?.release();
        expect(isEqual(parameters.whole(), before)).toBe(true);
      }
    }
  }
});

test('what overflows is not averaged: a run may end with the average before it is told', () => {
  const size = 20_000;
  for (const averaging of [{ kind: 'ema' }, { kind: 'polyak' }] as const) {
    for (const pull of ['f32', 'bf16'] as const) {
      const config = resolveConfig({
        ...{ optimizer: { kind: 'sgd' }, averaging, compression: { pull } },
      });
      const parameters = new Parameters(layoutOf(size), config);
      parameters.initialise(normal(size, 1));
      // In the second block of three.
      const spoilt = normal(size, 3);
      spoilt[9_000] = 3e38;
      const apply = (gradient: Float32Array, step: number, learningRate: number) => {
        const push = parameters.stage(bytesOf(gradient), 'f32');
        parameters.squares(push, Infinity);
        return parameters.update(push, { limit: Infinity, factor: 1 }, { step, learningRate });
      };
      expect(apply(spoilt, 1, 100)).toBe(false);
      // Nothing was averaged yet.
      expect(isEqual(parameters.evaluated(), parameters.exchanged())).toBe(true);
      expect(apply(normal(size, 4), 1, 0.1)).toBe(true);
      const first = parameters.evaluated();
      expect(isEqual(first, parameters.exchanged())).toBe(true);
      expect(apply(spoilt, 2, 100)).toBe(false);
      const after = parameters.evaluated();
      expect(after.every(Number.isFinite)).toBe(true);
      expect(isEqual(after.subarray(2 ** 13), first.subarray(2 ** 13))).toBe(true);
    }
  }
});

test('a gradient that is measured and not applied changes nothing', () => {
  const size = 9_000;
  const parameters = new Parameters(layoutOf(size), resolveConfig({ optimizer: { kind: 'sgd' } }));
  parameters.initialise(normal(size, 1));
  const before = parameters.exchanged();
  const land = (seed: number) => {
    const payload = payloadOf('f32', size, 0, seed);
    const room = parameters.land(payload.length, 'f32')!;
    room.bytes.set(payload);
    room.came(payload.length);
    return room;
  };
  const bad = land(5);
  parameters.squares(parameters.stage(bad.bytes, 'f32', bad), Infinity);
  bad.release();
  expect(isEqual(parameters.exchanged(), before)).toBe(true);
  expect(isSame(parameters.snapshot().bytes, bytesOf(before))).toBe(true);
  // The next one, in the same room, is not mistaken for it.
  const good = land(6);
  const push = parameters.stage(good.bytes, 'f32', good);
  const gradient = normal(size, 6);
  const squares = gradient.reduce((sum, x) => sum + x * x, 0);
  expect(parameters.squares(push, Infinity) / squares).toBeCloseTo(1, 5);
  parameters.update(push, { limit: Infinity, factor: 1 }, { step: 1, learningRate: 0.1 });
  good.release();
  const seen = parameters.exchanged();
  for (const i of [0, 4_000, size - 1]) {
    expect(seen[i]).toBeCloseTo(before[i]! - 0.1 * gradient[i]!, 5);
  }
});

test('a payload is used in its place only with the room that it came into', () => {
  const size = 9_000;
  const options = { step: 1, learningRate: 0.1 };
  const clip = { limit: Infinity, factor: 1 };
  const create = () => {
    const parameters = new Parameters(
      layoutOf(size),
      resolveConfig({ optimizer: { kind: 'sgd' } }),
    );
    parameters.initialise(normal(size, 1));
    return parameters;
  };
  const payload = payloadOf('f32', size, 0, 5);
  const landed = (parameters: Parameters) => {
    const room = parameters.land(payload.length, 'f32')!;
    room.bytes.set(payload);
    return room;
  };
  const wanted = create();
  wanted.update(wanted.stage(payload, 'f32'), clip, options);
  const other = create();
  const cases = [
    // The payload is in this memory, in a room of it: the next vector takes its place.
    (parameters: Parameters) => {
      const room = landed(parameters);
      return { room, bytes: room.bytes, isInPlace: true };
    },
    // Moved while it came.
    (parameters: Parameters) => ({ room: landed(parameters), bytes: payload, isInPlace: false }),
    // The payload is in other memory, at the same address.
    () => {
      const room = landed(other);
      return { room, bytes: room.bytes, isInPlace: false };
    },
    // Without its room.
    (parameters: Parameters) => ({
      ...{ room: null, bytes: landed(parameters).bytes },
      isInPlace: false,
    }),
  ];
  for (const each of cases) {
    const parameters = create();
    const { room, bytes, isInPlace } = each(parameters);
    const push = parameters.stage(bytes, 'f32', room);
    expect(push.room).toBe(isInPlace ? room : null);
    parameters.squares(push, Infinity);
    expect(parameters.update(push, clip, options)).toBe(true);
    expect(isEqual(parameters.exchanged(), wanted.exchanged())).toBe(true);
    expect(isSame(bytes, payload) || isInPlace).toBe(true);
    room?.release();
  }
});

test('as many pushes as there are rooms land at once, whatever is being sent', () => {
  const size = 1_000;
  const parameters = new Parameters(layoutOf(size), resolveConfig({ optimizer: { kind: 'sgd' } }));
  parameters.initialise(normal(size, 1));
  const options = { step: 1, learningRate: 0.1 };
  const clip = { limit: Infinity, factor: 1 };
  const rooms = () => {
    const taken = Array.from({ length: 1_000 }, () => parameters.land(4 * size, 'f32'));
    return taken.filter((room) => room !== null);
  };
  const before = rooms();
  for (const room of before) room.release();
  expect(before.length).toBeGreaterThan(3);
  const sent: { snapshot: Snapshot; wanted: Uint8Array }[] = [];
  for (let step = 1; step <= 200; step++) {
    const payload = payloadOf('f32', size, 0, step);
    const room = parameters.land(payload.length, 'f32')!;
    room.bytes.set(payload);
    parameters.update(parameters.stage(room.bytes, 'f32', room), clip, options);
    room.release();
    const snapshot = parameters.snapshot();
    snapshot.hold();
    sent.push({ snapshot, wanted: snapshot.bytes.slice() });
  }
  const during = rooms();
  expect(during.length).toBe(before.length);
  // All of them at once are in nobody's way.
  for (const room of during) room.bytes.fill(255);
  for (const { snapshot, wanted } of sent) expect(isSame(snapshot.bytes, wanted)).toBe(true);
  expect(isSame(parameters.snapshot().bytes, sent.at(-1)!.wanted)).toBe(true);
  for (const room of during) room.release();
  for (const { snapshot } of sent) snapshot.release();
  expect(rooms().length).toBe(before.length);
});
