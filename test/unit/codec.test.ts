import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  decodeFrame,
  decodeHeader,
  encodeFrame,
  encodeHeader,
  floatsOf,
  PREFIX_BYTES,
  payloadStart,
} from '../../shared/codec.ts';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';
import { createLayout } from '../../shared/layout.ts';
import { checkWorkerMessage } from '../../shared/protocol.ts';

const push = {
  type: 'push',
  run: 'r1',
  sequence: 1,
  lease: 0,
  step: 0,
  generation: 1,
  loss: 0.5,
  computeMs: 3,
  encoding: 'f32',
};

function codeOf(action: () => unknown): ErrorCode {
  try {
    action();
  } catch (error) {
    if (error instanceof DownpourError) return error.code;
    throw error;
  }
  throw new Error('nothing was thrown');
}

test('a frame survives the round trip at any alignment', () => {
  fc.assert(
    fc.property(
      fc.float32Array({ maxLength: 50 }),
      fc.nat(7),
      fc.string(),
      (payload, shift, text) => {
        const frame = encodeFrame({ type: 'push', text }, payload);
        const shifted = new Uint8Array(frame.length + shift).subarray(shift);
        shifted.set(frame);
        // What sockets give is a Buffer, some methods of which differ.
        for (const bytes of [shifted, Buffer.from(shifted.buffer, shift)]) {
          const decoded = decodeFrame(bytes);
          expect(decoded.header).toEqual({ type: 'push', text });
          expect(Array.from(floatsOf(decoded.payload))).toEqual(Array.from(payload));
        }
      },
    ),
  );
});

test('the payload begins at a multiple of 8, so that an aligned frame is not copied', () => {
  for (let length = 0; length < 20; length++) {
    const header = { type: 'x'.repeat(length + 1) };
    expect(encodeHeader(header).length % 8).toBe(0);
    const frame = encodeFrame(header, new Float32Array([1, 2]));
    expect(floatsOf(decodeFrame(frame).payload).buffer).toBe(frame.buffer);
  }
});

test('the bytes are those of the protocol reference', () => {
  const frame = encodeFrame({ type: 'leave', failure: null }, new Float32Array([1]));
  expect(Buffer.from(frame).toString('hex')).toBe(
    '44500100' + '15000000' + '82a474797065a56c65617665a76661696c757265c0' + '000000' + '0000803f',
  );
});

test.each<[string, Uint8Array, ErrorCode]>([
  ['empty', new Uint8Array(0), 'DP_FRAME_MALFORMED'],
  ['a text', new TextEncoder().encode('{"type":"push"}'), 'DP_FRAME_MALFORMED'],
  ['another version', encodeFrame({ type: 'x' }).with(2, 9), 'DP_PROTOCOL_VERSION'],
  ['a header longer than the frame', encodeFrame({ type: 'x' }).with(5, 9), 'DP_FRAME_MALFORMED'],
  ['broken msgpack', encodeFrame({ type: 'x' }).with(8, 0xc1), 'DP_FRAME_MALFORMED'],
  ['no type', encodeFrame({ tipe: 'x' }), 'DP_FRAME_MALFORMED'],
  ['a header that is a list', encodeFrame(['type']), 'DP_FRAME_MALFORMED'],
  [
    'a payload of 3 bytes',
    encodeFrame({ type: 'x' }, new Float32Array(1)).slice(0, -1),
    'DP_FRAME_MALFORMED',
  ],
])('%s is refused with a code', (_, frame, code) => {
  expect(codeOf(() => decodeFrame(frame))).toBe(code);
});

test('mutated frames are decoded or refused with a code, never anything else', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(200), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
      fc.nat(200),
      (changes, cut) => {
        const frame = encodeFrame(push, new Float32Array([1, 2, 3]));
        for (const [at, byte] of changes) frame[at % frame.length] = byte;
        try {
          checkWorkerMessage(decodeFrame(frame.subarray(0, cut)).header);
        } catch (error) {
          expect(error).toBeInstanceOf(DownpourError);
        }
      },
    ),
    { numRuns: 2000 },
  );
});

test('messages are checked field by field, and the wrong one is named', () => {
  expect(checkWorkerMessage(push)).toEqual(push);
  expect(checkWorkerMessage({ ...push, loss: null } as { type: string })).toBeTruthy();
  expect(() => checkWorkerMessage({ ...push, sequence: 0 } as typeof push)).toThrow(/sequence/);
  expect(() => checkWorkerMessage({ ...push, extra: 1 } as typeof push)).toThrow(/extra/);
  expect(() => checkWorkerMessage({ ...push, run: '../etc' } as typeof push)).toThrow(/run/);
  expect(() => checkWorkerMessage({ type: 'shove' })).toThrow(/unknown message type 'shove'/);
});

test('a layout places trainable, statistics and frozen tensors in that order', () => {
  const layout = createLayout([
    { name: 'a', shape: [2, 3], role: 'trainable' },
    { name: 'mean', shape: [3], role: 'statistics', momentum: 0.9 },
    { name: 'fixed', shape: [], role: 'frozen' },
    { name: 'b', shape: [3], role: 'trainable' },
  ]);
  expect(layout.tensors.map((t) => [t.name, t.offset, t.size])).toEqual([
    ['a', 0, 6],
    ['b', 6, 3],
    ['mean', 9, 3],
    ['fixed', 12, 1],
  ]);
  expect([layout.trainableSize, layout.exchangedSize, layout.size]).toEqual([9, 12, 13]);
});

test('layouts differ in hash when names, shapes, roles or order differ', () => {
  const base = [
    { name: 'a', shape: [2, 3], role: 'trainable' as const },
    { name: 'b', shape: [3], role: 'trainable' as const },
  ];
  const variants = [
    base,
    [base[1]!, base[0]!],
    [{ ...base[0]!, shape: [3, 2] }, base[1]!],
    [{ ...base[0]!, name: 'c' }, base[1]!],
    [base[0]!, { ...base[1]!, role: 'frozen' as const }],
  ];
  const hashes = variants.map((specs) => createLayout(specs).hash);
  expect(new Set(hashes).size).toBe(variants.length);
  expect(createLayout(base).hash).toBe(hashes[0]);
});

test.each([
  [
    [
      { name: 'a', shape: [1], role: 'trainable' as const },
      { name: 'a', shape: [1], role: 'trainable' as const },
    ],
    /two tensors/,
  ],
  [[{ name: 'a', shape: [-1], role: 'trainable' as const }], /shape \[-1\]/],
  [[{ name: '@best', shape: [1], role: 'trainable' as const }], /kept for the server/],
  [[{ name: 'm', shape: [1], role: 'statistics' as const }], /momentum undefined/],
  [[{ name: 'a', shape: [2 ** 20, 2 ** 20], role: 'trainable' as const }], /at most/],
])('a bad layout is refused', (specs, message) => {
  expect(() => createLayout(specs)).toThrow(message);
});

/** A map as msgpack, whose integers are all in 64 bits, as C++ and Go libraries may pack them. */
function packWide(map: Record<string, string | number | bigint>): Buffer {
  const text = (value: string) =>
    Buffer.concat([Buffer.from([0xd9, value.length]), Buffer.from(value)]);
  const number = (value: number | bigint) => {
    const bytes = Buffer.alloc(9);
    if (typeof value === 'number' && !Number.isInteger(value)) {
      bytes[0] = 0xcb;
      bytes.writeDoubleBE(value, 1);
    } else {
      bytes[0] = 0xcf;
      bytes.writeBigUInt64BE(BigInt(value), 1);
    }
    return bytes;
  };
  const entries = Object.entries(map).map(([key, value]) =>
    Buffer.concat([text(key), typeof value === 'string' ? text(value) : number(value)]),
  );
  return Buffer.concat([Buffer.from([0x80 | entries.length]), ...entries]);
}

test('integers of 64 bits are numbers like others, up to the largest that a field allows', () => {
  const largest = { ...push, step: Number.MAX_SAFE_INTEGER };
  for (const header of [push, largest]) {
    expect(checkWorkerMessage(decodeHeader(packWide(header)))).toEqual(header);
  }
  for (const step of [2n ** 53n, 2n ** 53n + 1n, 2n ** 64n - 1n]) {
    const header = decodeHeader(packWide({ ...push, step }));
    expect(codeOf(() => checkWorkerMessage(header))).toBe('DP_FRAME_MALFORMED');
  }
  // Signed ones, and below zero.
  const signed = packWide(push);
  const at = signed.indexOf(Buffer.from('lease')) + 5;
  signed[at] = 0xd3;
  expect(checkWorkerMessage(decodeHeader(signed))).toEqual(push);
  signed.writeBigInt64BE(-1n, at + 1);
  expect(codeOf(() => checkWorkerMessage(decodeHeader(signed)))).toBe('DP_FRAME_MALFORMED');
});

test('the reserved byte is 0, and what fills up the header is free', () => {
  const frame = encodeFrame(push, new Float32Array([1]));
  for (const value of [1, 128, 255]) {
    const wrong = Uint8Array.from(frame);
    wrong[3] = value;
    expect(codeOf(() => decodeFrame(wrong))).toBe('DP_FRAME_MALFORMED');
  }
  const end = PREFIX_BYTES + frame[4]! + 256 * frame[5]!;
  const filled = Uint8Array.from(frame).fill(7, end, payloadStart(end - PREFIX_BYTES));
  expect(decodeFrame(filled).header).toEqual(push);
});
