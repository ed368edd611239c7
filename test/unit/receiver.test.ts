import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { encodeFrame, encodeHeader } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { ConnectionEvents } from '../../wire/connection.ts';
import { frameHeadLength, unmask, writeFrameHead } from '../../wire/frames.ts';
import { type Landing, Receiver } from '../../wire/receiver.ts';
import { acceptSilent } from '../support/silent-socket.ts';

/** The bytes of WebSocket frames, in all the ways that a socket may cut them: by the receiver, with `ws` behind it. */

const bytes = (hex: string) => Uint8Array.from(Buffer.from(hex.replace(/\s/g, ''), 'hex'));
const hex = (data: Uint8Array) => Buffer.from(data).toString('hex');
const join = (...parts: Uint8Array[]) => Uint8Array.from(Buffer.concat(parts));

interface FrameOptions {
  readonly opcode?: number;
  readonly final?: boolean;
  readonly mask?: number | null;
}
/** A frame, by hand. */
function frame(payload: Uint8Array, options: FrameOptions = {}): Uint8Array {
  const { opcode = 2, final = true, mask = 0 } = options;
  const out = new Uint8Array(14 + payload.length);
  const start = writeFrameHead(out, 14, { opcode, length: payload.length, masked: mask !== null });
  if (!final) out[start]! &= 0x7f;
  out.set(payload, 14);
  if (mask !== null) {
    new DataView(out.buffer).setUint32(10, mask, true);
    for (let i = 0; i < payload.length; i++) out[14 + i]! ^= out[10 + (i % 4)]!;
  }
  return out.subarray(start);
}

interface Reading {
  /** How the bytes arrive: chunk by chunk, or read into the place that the receiver names. */
  readonly way: 'straight' | 'copied';
  /** Bytes of each arrival. */
  readonly cuts: (left: number) => number;
  readonly frameBytesMax?: number;
  /** Where payloads go: a landing, the receiver's own memory, or a landing after having waited. */
  readonly land?: 'landing' | 'own' | 'wait';
}
const WHOLE = (left: number) => left;
const ONE = () => 1;

/** What came out of a server's end of a connection, receiver and `ws`, in words. */
async function receive(stream: Uint8Array, reading: Reading): Promise<string[]> {
  const { way, cuts, land = 'landing', frameBytesMax } = reading;
  const out: string[] = [];
  let landed = 0;
  let memory = 0;
  let waited = false;
  let broken: string | null = null;
  const { connection, socket } = acceptSilent(frameBytesMax === undefined ? {} : { frameBytesMax });
  let pings = 0;
  const closed = new Promise<void>((resolve) => {
    const events: ConnectionEvents = {
      land(_, payloadBytes) {
        if (land === 'own') return null;
        if (land === 'wait' && !waited) {
          waited = true;
          return 'wait';
        }
        waited = false;
        landed++;
        // Too small when the length is not known.
        return { bytes: new Uint8Array(payloadBytes ?? 8), release: () => landed-- };
      },
      memory: (change) => {
        memory += change;
      },
      message(header, payload, landing) {
        expect(broken, 'told after the protocol was broken').toBeNull();
        const shown = payload.length > 64 ? `${payload.length} bytes` : hex(payload);
        out.push(`message ${header.type} ${shown}`);
        landing?.release();
      },
      malformed: (error) => out.push(`malformed ${error.code}: ${error.message}`),
      control: () => out.push(`control ${++pings}`),
      broken: (error) => {
        broken = `${error.code}: ${error.message}`;
      },
      alive() {},
      closed: (code, reason) => {
        if (code !== 1006) out.push(`close ${code} ${reason}`.trim());
        resolve();
      },
    };
    connection.start(events, 'straight');
  });
  const { sink } = connection;
  for (let at = 0; at < stream.length; ) {
    while (connection.waiting) connection.retry();
    const target = sink.next();
    const wanted = Math.min(Math.max(1, cuts(stream.length - at)), stream.length - at);
    const count = way === 'straight' ? Math.min(wanted, target.length) : wanted;
    // A chunk is the receiver's to unmask in.
    const chunk = stream.slice(at, at + count);
    if (way === 'straight') {
      target.set(chunk);
      sink.filled(count);
    } else sink.feed(chunk);
    at += count;
  }
  while (connection.waiting) connection.retry();
  await new Promise(setImmediate);
  const answers = framesIn(socket.frames);
  connection.terminate();
  await closed;
  if (broken !== null) out.push(`broken ${answers.at(-1)!.code} ${broken}`);
  const pongs = answers.filter(({ opcode }) => opcode === 10).map(({ payload }) => payload);
  expect(landed, 'landings not released').toBe(0);
  expect(memory, 'memory not given back').toBe(0);
  return out.map((what) => {
    if (!what.startsWith('control')) return what;
    const payload = pongs[Number(what.slice(8)) - 1];
    return payload === undefined ? 'pong' : `ping ${payload}`;
  });
}

interface Answer {
  readonly opcode: number;
  readonly payload: string;
  /** The code of a closing frame. */
  readonly code: number;
}

/** Small frames that were written. */
function framesIn(written: Buffer): Answer[] {
  const answers: Answer[] = [];
  for (let at = 0; at < written.length; at += 2 + written[at + 1]!) {
    const payload = written.subarray(at + 2, at + 2 + written[at + 1]!);
    const code = payload.length < 2 ? 1005 : payload.readUInt16BE(0);
    answers.push({ opcode: written[at]! & 0x0f, payload: hex(payload), code });
  }
  return answers;
}

/** Every way of reading must give the same. */
async function expectAll(stream: Uint8Array, expected: string[]): Promise<void> {
  for (const way of ['straight', 'copied'] as const) {
    for (const land of ['landing', 'own', 'wait'] as const) {
      const reading = { way, land };
      expect(await receive(stream, { ...reading, cuts: WHOLE })).toEqual(expected);
      expect(await receive(stream, { ...reading, cuts: ONE })).toEqual(expected);
      // One cut, at every place.
      const cutAt = async (cut: number) => {
        let first = true;
        const cuts = (left: number) => {
          const count = first ? cut : left;
          first = false;
          return count;
        };
        expect(await receive(stream, { ...reading, cuts }), `cut at ${cut}`).toEqual(expected);
      };
      await Promise.all(Array.from({ length: stream.length - 1 }, (_, i) => cutAt(i + 1)));
    }
  }
}

const IDLE = encodeFrame({ type: 'idle' });
const PUSH = encodeFrame({ type: 'push' }, Float32Array.of(1, 2));
const IDLE_IN = 'message idle ';
const PUSH_IN = 'message push 0000803f00000040';
const broken = (what: string, code = 1002) =>
  `broken ${code} DP_FRAME_MALFORMED: malformed frame: ${what}`;
const TEXT_IN = 'malformed DP_FRAME_MALFORMED: malformed frame: a text message; frames are binary';
const text = (content: string | Uint8Array, options: FrameOptions = {}) =>
  frame(typeof content === 'string' ? Buffer.from(content) : content, { opcode: 1, ...options });
const close = (hexPayload: string) => frame(bytes(hexPayload), { opcode: 8 });

// Named after the sections of the Autobahn test suite. The protocol has no text messages: one that is
// right is refused in our own words, one that is wrong breaks the connection.
describe('frames, each cut at every byte', () => {
  test.each<[string, Uint8Array, string[]]>([
    // 1 Framing.
    ['1.1.1 an empty text', text(''), [TEXT_IN]],
    ['1.1.2 a text of 125 bytes', text('*'.repeat(125)), [TEXT_IN]],
    ['1.1.3 a text of 126 bytes', text('*'.repeat(126)), [TEXT_IN]],
    [
      '1.2.1 an empty binary message',
      frame(bytes('')),
      ['malformed DP_FRAME_MALFORMED: malformed frame: 0 bytes; a frame has at least 8'],
    ],
    ['1.2.2 a frame without payload', frame(IDLE), [IDLE_IN]],
    ['1.2.3 a frame with a payload', frame(PUSH), [PUSH_IN]],
    ['1.2.4 two frames at once', join(frame(PUSH), frame(IDLE)), [PUSH_IN, IDLE_IN]],
    [
      '1.2.5 a length written longer than it need be',
      join(bytes('82fe0020 00000000'), PUSH),
      [PUSH_IN],
    ],
    ['1.2.6 and longer still', join(bytes('82ff0000000000000020 00000000'), PUSH), [PUSH_IN]],
    // 2 Ping and pong.
    ['2.1 an empty ping', bytes('8980 00000000'), ['ping ']],
    [
      '2.2 a ping with a payload',
      frame(bytes('00ff'), { opcode: 9, mask: 0x11223344 }),
      ['ping 00ff'],
    ],
    [
      '2.4 a ping of 125 bytes',
      frame(new Uint8Array(125), { opcode: 9 }),
      [`ping ${'00'.repeat(125)}`],
    ],
    [
      '2.5 a ping of 126 bytes',
      frame(new Uint8Array(126), { opcode: 9 }),
      [broken('invalid payload length 126')],
    ],
    ['2.7 a pong nobody asked for', frame(bytes('07'), { opcode: 10 }), ['pong']],
    [
      '2.10 ten pings',
      join(...Array.from({ length: 10 }, () => bytes('8980 00000000'))),
      Array(10).fill('ping '),
    ],
    // 3 Reserved bits.
    ['3.1 reserved bit 3', frame(PUSH).with(0, 0x92), [broken('RSV2 and RSV3 must be clear')]],
    ['3.2 reserved bit 2', frame(PUSH).with(0, 0xa2), [broken('RSV2 and RSV3 must be clear')]],
    [
      '3.3 the bit of permessage-deflate',
      join(frame(IDLE), frame(PUSH).with(0, 0xc2)),
      [IDLE_IN, broken('RSV1 must be clear')],
    ],
    ['3.5 a reserved bit on a ping', bytes('c980 00000000'), [broken('RSV1 must be clear')]],
    // 4 Opcodes.
    ...[3, 4, 5, 6, 7, 11, 12, 13, 14, 15].map((opcode): [string, Uint8Array, string[]] => [
      `4 opcode ${opcode}`,
      join(frame(IDLE), frame(bytes(''), { opcode })),
      [IDLE_IN, broken(`invalid opcode ${opcode}`)],
    ]),
    // 5 Fragmentation.
    [
      '5.1 a ping in fragments',
      frame(bytes(''), { opcode: 9, final: false }),
      [broken('FIN must be set')],
    ],
    [
      '5.2 a close in fragments',
      frame(bytes('03e8'), { opcode: 8, final: false }),
      [broken('FIN must be set')],
    ],
    [
      '5.3 header and payload in two fragments',
      join(frame(PUSH.subarray(0, 16), { final: false }), frame(PUSH.subarray(16), { opcode: 0 })),
      [PUSH_IN],
    ],
    [
      '5.4 one byte a fragment',
      join(
        ...[...PUSH].map((_, i) =>
          frame(PUSH.subarray(i, i + 1), {
            opcode: i === 0 ? 2 : 0,
            final: i === PUSH.length - 1,
            mask: 0x01020304 + i,
          }),
        ),
      ),
      [PUSH_IN],
    ],
    [
      '5.5 empty fragments before, between and behind',
      join(
        frame(bytes(''), { final: false }),
        frame(PUSH.subarray(0, 16), { opcode: 0, final: false }),
        frame(bytes(''), { opcode: 0, final: false }),
        frame(PUSH.subarray(16), { opcode: 0, final: false }),
        frame(bytes(''), { opcode: 0 }),
      ),
      [PUSH_IN],
    ],
    [
      '5.6 pings between fragments',
      join(
        frame(PUSH.subarray(0, 5), { final: false }),
        frame(bytes('01'), { opcode: 9, mask: 0x55667788 }),
        frame(PUSH.subarray(5, 16), { opcode: 0, final: false }),
        frame(bytes('02'), { opcode: 9 }),
        frame(PUSH.subarray(16, 19), { opcode: 0, final: false }),
        frame(bytes('03'), { opcode: 9 }),
        frame(PUSH.subarray(19), { opcode: 0, mask: 0x55667788 }),
      ),
      ['ping 01', 'ping 02', 'ping 03', PUSH_IN],
    ],
    ['5.9 a continuation of nothing', frame(PUSH, { opcode: 0 }), [broken('invalid opcode 0')]],
    [
      '5.12 a continuation after a whole message',
      join(frame(IDLE), frame(PUSH, { opcode: 0, final: false })),
      [IDLE_IN, broken('invalid opcode 0')],
    ],
    [
      '5.18 a second message within one',
      join(frame(PUSH.subarray(0, 16), { final: false }), frame(PUSH.subarray(16))),
      [broken('invalid opcode 2')],
    ],
    // 6 UTF-8.
    [
      '6.2 text in fragments, cut within a letter',
      join(text(bytes('c3'), { final: false }), text(bytes('a4'), { opcode: 0 })),
      [TEXT_IN],
    ],
    [
      '6.3 text that is not UTF-8',
      text(bytes('cebae1bdb9cf83cebcceb5eda080656469746564')),
      [broken('invalid UTF-8 sequence', 1007)],
    ],
    [
      '6.4 the same in fragments',
      join(
        text(bytes('cebae1bdb9cf83cebcceb5'), { final: false }),
        text(bytes('f4908080'), { opcode: 0 }),
      ),
      [broken('invalid UTF-8 sequence', 1007)],
    ],
    [
      '6.6 a letter that is cut off',
      text(bytes('ceba e1bd')),
      [broken('invalid UTF-8 sequence', 1007)],
    ],
    ['6.11 the largest code point', text(bytes('f48fbfbf')), [TEXT_IN]],
    ['6.12 beyond it', text(bytes('f5808080')), [broken('invalid UTF-8 sequence', 1007)]],
    ['6.20 a lone surrogate', text(bytes('eda080')), [broken('invalid UTF-8 sequence', 1007)]],
    ['6.22 a noncharacter', text(bytes('efbfbf')), [TEXT_IN]],
    // 7 Closing.
    ['7.1.1 close without a code', bytes('8880 00000000'), ['close 1005']],
    [
      '7.1.2 nothing is heard after a close',
      join(close('03e8'), frame(IDLE), bytes('ffff')),
      ['close 1000'],
    ],
    [
      '7.1.5 close within a message',
      join(frame(PUSH.subarray(0, 20), { final: false }), close('03e8')),
      ['close 1000'],
    ],
    ['7.3.2 close with one byte', close('03'), [broken('invalid payload length 1')]],
    ['7.3.4 close with a reason', close('03e8 68616c6c6f'), ['close 1000 hallo']],
    [
      '7.3.5 a reason of 123 bytes',
      close(`03e8${'2a'.repeat(123)}`),
      [`close 1000 ${'*'.repeat(123)}`],
    ],
    [
      '7.3.6 a reason of 124 bytes',
      close(`03e8${'2a'.repeat(124)}`),
      [broken('invalid payload length 126')],
    ],
    [
      '7.5.1 a reason that is not UTF-8',
      close('03e8 cebae1bdb9eda080'),
      [broken('invalid UTF-8 sequence', 1007)],
    ],
    ...[
      1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
      4409, 4999,
    ].map((code): [string, Uint8Array, string[]] => [
      `7.7 close code ${code}`,
      close(code.toString(16).padStart(4, '0')),
      [`close ${code}`],
    ]),
    ...[0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535].map(
      (code): [string, Uint8Array, string[]] => [
        `7.9 close code ${code}`,
        close(code.toString(16).padStart(4, '0')),
        [broken(`invalid status code ${code}`)],
      ],
    ),
    // Masks.
    ['a random mask', frame(PUSH, { mask: 0x5ca1ab1e }), [PUSH_IN]],
    ['a frame without a mask', frame(PUSH, { mask: null }), [broken('MASK must be set')]],
    // Downpour's frames.
    [
      'a foreign message, and one of ours',
      join(frame(bytes('0102030405060708')), frame(PUSH)),
      ["malformed DP_FRAME_MALFORMED: malformed frame: it does not begin with 'DP'", PUSH_IN],
    ],
    [
      'another version',
      frame(PUSH.with(2, 9)),
      [
        'malformed DP_PROTOCOL_VERSION: frame of protocol version 9; this side speaks 1: run the same release on servers and workers',
      ],
    ],
    [
      'a header that is cut off',
      frame(PUSH.subarray(0, 13)),
      ['malformed DP_FRAME_MALFORMED: malformed frame: its header says 11 bytes, the frame has 13'],
    ],
    [
      'a message of three bytes',
      frame(PUSH.subarray(0, 3)),
      ['malformed DP_FRAME_MALFORMED: malformed frame: 3 bytes; a frame has at least 8'],
    ],
    [
      'padding that is not there',
      frame(encodeFrame({ type: 'ab' }).subarray(0, 17)),
      ['message ab '],
    ],
    [
      'a payload of seven bytes',
      join(frame(PUSH.subarray(0, 31)), frame(IDLE)),
      [
        'malformed DP_FRAME_MALFORMED: malformed frame: its payload has 7 bytes, not a multiple of 4',
        IDLE_IN,
      ],
    ],
    [
      'a payload of seven bytes in fragments',
      join(
        frame(PUSH.subarray(0, 25), { final: false }),
        frame(PUSH.subarray(25, 31), { opcode: 0 }),
        frame(IDLE),
      ),
      [
        'malformed DP_FRAME_MALFORMED: malformed frame: its payload has 7 bytes, not a multiple of 4',
        IDLE_IN,
      ],
    ],
    [
      'a header that is not msgpack',
      frame(encodeFrame({ type: 'push' }).with(8, 0xc1)),
      ['malformed DP_FRAME_MALFORMED: malformed frame: its header is not msgpack'],
    ],
  ])('%s', async (_, stream, expected) => {
    await expectAll(stream, expected);
  });

  test('9 a message of the largest size passes, one byte more does not', async () => {
    const whole = encodeFrame({ type: 'push' }, new Float32Array(20_000));
    const frameBytesMax = whole.length;
    const inTwo = (message: Uint8Array) =>
      join(
        frame(message.subarray(0, 30_000), { final: false }),
        frame(message.subarray(30_000), { opcode: 0, mask: 0x01020304 }),
        frame(IDLE),
      );
    const larger = join(whole, bytes('00'));
    const passed = ['message push 80000 bytes', IDLE_IN];
    const refused = `DP_FRAME_TOO_LARGE: a message of ${larger.length} bytes; at most ${whole.length} are allowed`;
    for (const way of ['straight', 'copied'] as const) {
      for (const land of ['landing', 'own', 'wait'] as const) {
        for (const cuts of [WHOLE, () => 4_097, () => 7]) {
          const read = (stream: Uint8Array) => receive(stream, { way, land, cuts, frameBytesMax });
          expect(await read(join(frame(whole), frame(IDLE)))).toEqual(passed);
          expect(await read(inTwo(whole))).toEqual(passed);
          expect(await read(join(frame(larger), frame(IDLE)))).toEqual([`broken 1009 ${refused}`]);
          expect(await read(inTwo(larger))).toEqual([`malformed ${refused}`, IDLE_IN]);
        }
      }
    }
  });

  test.each(['8000000000000000', 'ffffffffffffffff', '0000000080000000'])(
    '9 a frame that says it has 0x%s bytes is refused at its head',
    async (length) => {
      for (const cuts of [ONE, WHOLE]) {
        const [refused] = await receive(bytes(`82ff${length}00000000`), { way: 'straight', cuts });
        expect(refused).toMatch(/^broken 1009 DP_FRAME_TOO_LARGE: a message of .* bytes; at most/);
      }
    },
  );

  test('a text is not collected beyond its limit', async () => {
    for (const cuts of [WHOLE, () => 1_000]) {
      const read = (stream: Uint8Array) => receive(stream, { way: 'copied', cuts });
      expect(await read(text('x'.repeat(65_536)))).toEqual([TEXT_IN]);
      const [refused] = await read(join(text('x'.repeat(65_537)), frame(PUSH)));
      expect(refused).toBe(
        'broken 1009 DP_FRAME_TOO_LARGE: a message of 65537 bytes; at most 65536 are allowed',
      );
      const [inFragments] = await read(
        join(
          text('x'.repeat(40_000), { final: false }),
          text('x'.repeat(40_000), { opcode: 0 }),
          frame(PUSH),
        ),
      );
      expect(inFragments).toContain('a message of 80000 bytes; at most 65536');
    }
  });

  test('a text in very many pieces is not collected either', async () => {
    const pieces = Array.from({ length: 300 }, (_, i) =>
      text('x', { opcode: i === 0 ? 1 : 0, final: false }),
    );
    const inFrames = await receive(join(...pieces), { way: 'copied', cuts: WHOLE });
    expect(inFrames).toEqual([broken('Too many message fragments', 1008)]);
    const inChunks = await receive(text('x'.repeat(2_000)), { way: 'copied', cuts: ONE });
    expect(inChunks).toEqual([broken('Too many buffered chunks', 1008)]);
  });

  test('what is behind a broken frame is not told', async () => {
    for (const wrong of [text(bytes('ff')), frame(PUSH).with(0, 0xc2), bytes('8383 00000000')]) {
      const [first, second] = await receive(join(frame(IDLE), wrong, frame(PUSH)), {
        ...{ way: 'copied', cuts: WHOLE },
      });
      expect(first).toBe(IDLE_IN);
      expect(second).toMatch(/^broken 100[27] DP_FRAME_MALFORMED/);
    }
  });

  test('a header larger than its limit is refused at its prefix', async () => {
    const prefix = encodeHeader({ type: 'x' }).slice(0, 8);
    new DataView(prefix.buffer).setUint32(4, LIMITS.headerBytesMax + 1, true);
    const [refused] = await receive(bytes(`82ff0000000000200000 00000000${hex(prefix)}`), {
      way: 'straight',
      cuts: ONE,
    });
    expect(refused).toContain(`at most ${LIMITS.headerBytesMax} are allowed`);
  });
});

describe('payloads', () => {
  /** A push of `floats` numbers. */
  const large = (floats: number) =>
    encodeFrame(
      { type: 'push' },
      Float32Array.from({ length: floats }, (_, i) => i),
    );

  test.each([0, 0x9e3779b9])('land where they are told to, unmasked, mask %i', (mask) => {
    const push = large(50_000);
    let landed: Uint8Array | null = null;
    const receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: (_, payloadBytes) => ({ bytes: new Uint8Array(payloadBytes!), release() {} }),
        message: (_, payload, landing) => {
          expect(payload.buffer).toBe(landing!.bytes.buffer);
          landed = payload;
        },
      },
    });
    const stream = frame(push, { mask });
    let straight = 0;
    for (let at = 0; at < stream.length; ) {
      const target = receiver.next();
      // What a socket happens to have.
      const count = Math.min(target.length, 33_333, stream.length - at);
      target.set(stream.subarray(at, at + count));
      if (target.byteOffset > 0 || target.length > 65_536) straight += count;
      receiver.filled(count);
      at += count;
    }
    expect(hex(landed!)).toBe(hex(push.subarray(24)));
    // All but what came with the head, and the rest.
    expect(straight).toBeGreaterThan(150_000);
  });

  test('never more is read than the payload has, so the next message is not lost', async () => {
    const push = large(50_000);
    const stream = join(frame(push), frame(IDLE), frame(push), frame(IDLE));
    const read = (cuts: (left: number) => number) => receive(stream, { way: 'straight', cuts });
    const expected = ['message push 200000 bytes', IDLE_IN, 'message push 200000 bytes', IDLE_IN];
    expect(await read(WHOLE)).toEqual(expected);
    expect(await read(() => 4_097)).toEqual(expected);
  });

  test('a paused receiver keeps the memory that its socket may still read into', () => {
    let free = false;
    const out: string[] = [];
    const receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: (_, n) => (free ? { bytes: new Uint8Array(n!), release() {} } : 'wait'),
        message: (_, payload) => out.push(`${payload.length}`),
      },
    });
    const stream = frame(large(50_000));
    receiver.next().set(stream.subarray(0, 100));
    receiver.filled(100);
    expect(receiver.waiting).toBe(true);
    // As Node does: the memory is asked for after each read, and used after the pause.
    const target = receiver.next();
    expect(receiver.retry()).toBe(false);
    free = true;
    expect(receiver.retry()).toBe(true);
    let at = 100;
    let next = target;
    while (at < stream.length) {
      const count = Math.min(next.length, stream.length - at);
      next.set(stream.subarray(at, at + count));
      receiver.filled(count);
      at += count;
      next = receiver.next();
    }
    expect(out).toEqual(['200000']);
  });

  test('a landing is given back when the connection ends in its middle, and not before', () => {
    let released = 0;
    const receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: (_, n): Landing => ({ bytes: new Uint8Array(n!), release: () => released++ }),
      },
    });
    receiver.feed(frame(large(50_000)).slice(0, 70_000));
    receiver.deaf = true;
    // The socket may be reading into it right now.
    expect(released).toBe(0);
    receiver.end();
    expect(released).toBe(1);
  });

  test('a deaf receiver drops messages, and asks for no landing', () => {
    const out: string[] = [];
    const receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: () => {
          throw new Error('asked for a landing');
        },
        message: () => out.push('message'),
        pass: (passed) => out.push(hex(passed)),
      },
    });
    receiver.deaf = true;
    receiver.feed(join(frame(PUSH), text('x'), frame(bytes('0102')), frame(PUSH), close('03e8')));
    expect(out).toEqual([hex(close('03e8'))]);
  });

  test('memory for a payload grows with what has come, not with what was announced', () => {
    const receiver = new Receiver({ fromClient: true, events: { ...silent, land: () => null } });
    receiver.feed(bytes('82ff0000000040000000 00000000'));
    receiver.feed(PUSH.slice());
    const before = process.memoryUsage().arrayBuffers;
    receiver.next();
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2 ** 20);
  });
});

const silent = {
  land: () => null,
  message() {},
  malformed() {},
  pass() {},
};

describe('properties', () => {
  const message = fc.record({
    header: fc.record({ type: fc.string({ maxLength: 20 }), n: fc.nat() }),
    payload: fc.array(fc.float(), { maxLength: 60 }),
    fragments: fc.array(fc.nat({ max: 400 }), { maxLength: 5 }),
    masks: fc.infiniteStream(fc.integer()),
    pings: fc.infiniteStream(fc.boolean()),
  });

  test('messages come out as they went in, whatever their fragments and cuts', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(message, { maxLength: 6 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 200 })),
        fc.constantFrom('straight' as const, 'copied' as const),
        fc.constantFrom('landing' as const, 'own' as const, 'wait' as const),
        async (messages, sizes, way, land) => {
          const stream: Uint8Array[] = [];
          const expected: string[] = [];
          for (const { header, payload, fragments, masks, pings } of messages) {
            const whole = encodeFrame(header, Float32Array.from(payload));
            const at = [...fragments.map((n) => n % (whole.length + 1)), whole.length];
            at.sort((a, b) => a - b);
            let from = 0;
            for (const [i, to] of at.entries()) {
              const opcode = i === 0 ? 2 : 0;
              const final = i === at.length - 1;
              stream.push(
                frame(whole.subarray(from, to), { opcode, final, mask: masks.next().value! }),
              );
              if (pings.next().value) {
                stream.push(frame(bytes('aa'), { opcode: 9, mask: masks.next().value! }));
                expected.push(final ? 'later' : 'ping aa');
              }
              from = to;
            }
            const late = expected.at(-1) === 'later';
            if (late) expected.pop();
            const data = whole.subarray(whole.length - 4 * payload.length);
            const shown = data.length > 64 ? `${data.length} bytes` : hex(data);
            expected.push(`message ${header.type} ${shown}`);
            if (late) expected.push('ping aa');
          }
          const cuts = () => sizes.next().value!;
          expect(await receive(join(...stream), { way, cuts, land })).toEqual(expected);
        },
      ),
      { numRuns: 400 },
    );
  });

  test('garbage is refused with a code, and never costs more memory than the limit', async () => {
    const start = fc.constantFrom(
      '',
      '82',
      '8280',
      '82fe',
      '02ff',
      '81',
      '89',
      '88',
      '82a0000000004450',
    );
    await fc.assert(
      fc.asyncProperty(start, fc.uint8Array({ maxLength: 300 }), async (begin, rest) => {
        const stream = join(bytes(begin), rest);
        const before = process.memoryUsage().arrayBuffers;
        const straight = await receive(stream, {
          way: 'straight',
          cuts: WHOLE,
          frameBytesMax: 2 ** 16,
          land: 'own',
        });
        const copied = await receive(stream, {
          way: 'copied',
          cuts: ONE,
          frameBytesMax: 2 ** 16,
          land: 'own',
        });
        expect(straight).toEqual(copied);
        expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2 ** 20);
      }),
      { numRuns: 2_000 },
    );
  });

  test('a mask is undone in place, from any address and position', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 40 }),
        fc.integer(),
        fc.nat({ max: 9 }),
        fc.nat({ max: 1000 }),
        (data, mask, offset, position) => {
          const memory = new Uint8Array(offset + data.length + 5);
          const target = memory.subarray(offset, offset + data.length);
          target.set(data);
          unmask(target, mask, position);
          const expected = data.map((value, i) => value ^ (mask >>> (8 * ((position + i) % 4))));
          expect(hex(target)).toBe(hex(expected));
          expect(memory.subarray(offset + data.length).every((value) => value === 0)).toBe(true);
        },
      ),
    );
  });

  test.each([0, 125, 126, 65_535, 65_536, 2 ** 32, 2 ** 53 - 1])(
    'the head of a frame of %i bytes says so',
    (length) => {
      for (const masked of [true, false]) {
        const out = new Uint8Array(14);
        const start = writeFrameHead(out, 14, { opcode: 2, length, masked });
        expect(frameHeadLength(out[start + 1]!)).toBe(14 - start);
        const view = new DataView(out.buffer, start);
        const short = view.getUint8(1) & 0x7f;
        const said =
          short < 126 ? short : short === 126 ? view.getUint16(2) : Number(view.getBigUint64(2));
        expect(said).toBe(length);
      }
    },
  );
});

test('a landing is told of its bytes while they come, unmasked, no more than 256 KB at once', () => {
  const payload = Float32Array.from({ length: 300_000 }, (_, i) => i);
  const sent = encodeFrame({ type: 'push' }, payload);
  const wanted = new Uint8Array(payload.buffer);
  for (const fragments of [1, 3]) {
    const piece = Math.ceil(sent.length / fragments);
    const stream = Buffer.concat(
      Array.from({ length: fragments }, (_, i) =>
        frame(sent.subarray(i * piece, (i + 1) * piece), {
          ...{ opcode: i === 0 ? 2 : 0, final: i === fragments - 1, mask: 0x12345678 },
        }),
      ),
    );
    const told: number[] = [];
    let messages = 0;
    const never = () => expect.unreachable();
    const landing = { bytes: new Uint8Array(wanted.length), release() {} };
    const came = (bytes: number) => {
      expect(Buffer.compare(landing.bytes.subarray(0, bytes), wanted.subarray(0, bytes))).toBe(0);
      told.push(bytes);
    };
    const receiver = new Receiver({
      fromClient: true,
      events: {
        land: () => ({ ...landing, came }),
        message(_, whole) {
          messages++;
          expect(Buffer.compare(whole, wanted)).toBe(0);
        },
        ...{ malformed: never, pass: never },
      },
    });
    for (let at = 0; at < stream.length; ) {
      const target = receiver.next();
      const count = Math.min(target.length, stream.length - at);
      target.set(stream.subarray(at, at + count));
      receiver.filled(count);
      at += count;
    }
    expect(messages).toBe(1);
    expect(told.length).toBeGreaterThan(2);
    // Before the first comes what was read with the header; the last of a fragment is told with the next.
    const most = fragments === 1 ? 2 ** 18 + 2 ** 16 : wanted.length;
    told.forEach((bytes, i) => {
      const before = told[i - 1] ?? 0;
      expect(bytes).toBeGreaterThan(before);
      expect(bytes - before).toBeLessThanOrEqual(most);
    });
  }
});

describe('halting', () => {
  /** Messages whose names come out one at a time, whatever came together. */
  function haltingAfterEach(land?: (bytes: number) => Landing | null) {
    const told: string[] = [];
    const receiver: Receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: (_, payloadBytes) => land?.(payloadBytes!) ?? null,
        message: ({ type }, payload) => {
          told.push(`${type} ${payload.length}`);
          receiver.halt();
        },
        pass: (frame) => {
          if (frame[0] !== 0x89) return;
          told.push('ping');
          receiver.halt();
        },
      },
    });
    return { told, receiver };
  }

  const stream = (mask: number) =>
    join(
      frame(encodeFrame({ type: 'a' }, Float32Array.of(1, 2)), { mask }),
      frame(new Uint8Array(), { opcode: 9, mask }),
      frame(encodeFrame({ type: 'b' }), { mask }),
      frame(encodeFrame({ type: 'c' }, new Float32Array(3)), { mask }),
    );

  test.each([0, 0x9e3779b9])('tells one message at a time of all that came, mask %i', (mask) => {
    const { told, receiver } = haltingAfterEach();
    const chunk = stream(mask);
    receiver.feed(chunk);
    expect(told).toEqual(['a 8']);
    expect(receiver.standing).toBe(true);
    // The chunk is the socket's, which reads the next one there.
    chunk.fill(0xff);
    expect(receiver.goOn()).toBe(false);
    expect(told).toEqual(['a 8', 'ping']);
    receiver.goOn();
    receiver.goOn();
    expect(told).toEqual(['a 8', 'ping', 'b 0', 'c 12']);
    expect(receiver.goOn()).toBe(true);
    expect(receiver.standing).toBe(false);
    expect(receiver.between).toBe(true);
    receiver.feed(stream(mask).subarray(0, 1));
    expect(receiver.between).toBe(false);
  });

  test('and waiting for room go together', () => {
    let room: Landing | null = null;
    const told: string[] = [];
    const receiver: Receiver = new Receiver({
      fromClient: true,
      events: {
        ...silent,
        land: () => room ?? 'wait',
        message: ({ type }, payload) => {
          told.push(`${type} ${payload.length}`);
          receiver.halt();
        },
      },
    });
    receiver.feed(stream(7));
    expect(receiver.waiting).toBe(true);
    receiver.halt();
    expect(receiver.goOn()).toBe(false);
    room = { bytes: new Uint8Array(12), release() {} };
    expect(receiver.retry()).toBe(false);
    expect(told).toHaveLength(1);
    receiver.goOn();
    expect(told).toHaveLength(2);
    expect(receiver.goOn()).toBe(false);
    expect(told).toHaveLength(3);
    expect(receiver.goOn()).toBe(true);
  });

  test('what lands is counted, and nothing else is', () => {
    const { told, receiver } = haltingAfterEach((bytes) => ({
      ...{ bytes: new Uint8Array(bytes), release() {} },
    }));
    receiver.feed(stream(0));
    expect(receiver.landedBytes).toBe(8);
    for (let i = 0; i < 4; i++) receiver.goOn();
    expect(told).toHaveLength(4);
    expect(receiver.landedBytes).toBe(20);
    for (let i = 0; i < 100; i++) receiver.feed(frame(new Uint8Array(), { opcode: 10 }));
    expect(receiver.landedBytes).toBe(20);
  });
});

describe('an owner that says no', () => {
  type Events = ConstructorParameters<typeof Receiver>[0]['events'];
  const BIG = encodeFrame({ type: 'push' }, new Float32Array(500_000).fill(1));

  /** Feeds it in pieces of 10,000 bytes. */
  function read(stream: Uint8Array, events: Partial<Events>, look?: (r: Receiver) => void) {
    const out: string[] = [];
    let memory = 0;
    const receiver = new Receiver({
      fromClient: true,
      events: {
        land: () => null,
        memory: (change) => {
          memory += change;
        },
        message: (header, payload, landing) => {
          out.push(`message ${header.type} ${payload.length}`);
          landing?.release();
        },
        malformed: (error) => out.push(`malformed ${error.code}`),
        pass: (bytes) => out.push(`passed ${hex(bytes)}`),
        ...events,
      },
    });
    for (let at = 0; at < stream.length; at += 10_000) {
      receiver.feed(stream.slice(at, at + 10_000));
      look?.(receiver);
    }
    const most = memory;
    receiver.end();
    expect(memory, 'memory not given back').toBe(0);
    return { out, most };
  }

  test('of a payload that is to be nowhere nothing is kept, and its message is told', () => {
    let most = 0;
    const { out } = read(join(frame(BIG), frame(IDLE)), {
      land: () => 'nowhere',
      memory: (change) => (most = Math.max(most, change)),
    });
    expect(out).toEqual(['message push 0', 'message idle 0']);
    expect(most).toBeLessThan(1_000);
  });

  test('a message that is refused is read past, and the next one is told', () => {
    const land = () => {
      throw new DownpourError('DP_FRAME_TOO_LARGE', 'no');
    };
    const { out } = read(join(frame(BIG), frame(IDLE)), { land });
    expect(out).toEqual(['malformed DP_FRAME_TOO_LARGE', 'message idle 0']);
  });

  test.each([
    [2_000_000, ['message push 2000000', 'message idle 0']],
    [1_999_999, ['malformed DP_FRAME_TOO_LARGE', 'message idle 0']],
  ])('a payload in fragments may have %d bytes of 2,000,000', (bytesMax, expected) => {
    let released = 0;
    const land = () => ({ bytes: new Uint8Array(), bytesMax, release: () => released++ });
    const half = BIG.length / 2;
    const stream = join(
      frame(BIG.subarray(0, half), { final: false }),
      frame(BIG.subarray(half), { opcode: 0 }),
      frame(IDLE),
    );
    expect(read(stream, { land }).out).toEqual(expected);
    expect(released).toBe(1);
  });

  test('its own memory is told as it grows, and is not larger than the payload by much', () => {
    const { out, most } = read(frame(BIG).subarray(0, -8), {});
    expect(out).toEqual([]);
    expect(most).toBeGreaterThanOrEqual(BIG.length - 100);
    expect(most).toBeLessThan(BIG.length + 10_000);
  });

  test('a payload that moves goes on elsewhere, and leaves its first place as it was', () => {
    const first = new Uint8Array(2_000_000);
    const second = new Uint8Array(2_000_000);
    let released = 0;
    let moved = false;
    const values = new Float32Array(500_000).map((_, i) => i);
    read(
      frame(encodeFrame({ type: 'push' }, values), { mask: 0x1020304 }),
      {
        land: () => ({ bytes: first, release: () => released++ }),
        message: (_, payload, landing) => {
          expect(landing?.bytes).toBe(second);
          expect(Buffer.compare(payload, new Uint8Array(values.buffer))).toBe(0);
        },
      },
      (receiver) => {
        const { coming } = receiver;
        if (moved || !coming || coming.bytes < 1_000_000) return;
        moved = true;
        expect(coming).toMatchObject({ number: 1, of: 2_000_000 });
        receiver.move({ bytes: second, release() {} });
        expect(released).toBe(1);
        first.fill(7);
      },
    );
    expect(moved).toBe(true);
    expect(first.every((byte) => byte === 7)).toBe(true);
  });
});
