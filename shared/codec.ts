import { Packr } from 'msgpackr';
import { DownpourError } from './errors.ts';
import { LIMITS } from './limits.ts';
import { packInto } from './pack.ts';

/**
 * The frame: one binary WebSocket message.
 *
 * | bytes | what |
 * |---|---|
 * | 0–1 | `D` `P` |
 * | 2 | protocol version |
 * | 3 | 0, reserved |
 * | 4–7 | length h of the header, u32 little-endian |
 * | 8 … 8+h | header: a msgpack map with a string `type` |
 * | … | up to a multiple of 8: written as zeros, not looked at |
 * | to the end | payload: little-endian numbers, a multiple of 4 bytes, possibly none |
 *
 * Floats stay out of msgpack: packing 4 MB of them takes 65 ms, a header of scalars 0.4 µs.
 */
const PROTOCOL_VERSION = 1;
/** What comes before the header; the header's length is its last four bytes. */
export const PREFIX_BYTES = 8;

// Plain maps (no msgpackr records), so that any msgpack library reads them.
const packr = new Packr({
  useRecords: false,
  mapsAsObjects: true,
  variableMapSize: true,
  encodeUndefinedAsNil: false,
  // Other languages pack integers in 64 bits. Beyond 2^53 they are rounded, and above what any field allows.
  int64AsType: 'number',
});

/**
 * Writes the part of a frame before its payload to `out`, from `at` on; its length is a multiple of 8.
 * @returns where it ends; 0: it does not fit, or is not of the plain kind, and `encodeHeader` must do it.
 */
export function writeHeader(header: object, out: Uint8Array, at: number): number {
  const packed = packInto(header, out, at + PREFIX_BYTES);
  if (packed === 0) return 0;
  const length = packed - at - PREFIX_BYTES;
  const end = at + payloadStart(length);
  if (end > out.length) return 0;
  writePrefix(out, at, length);
  for (let i = packed; i < end; i++) out[i] = 0;
  return end;
}

/** The same in bytes of its own. */
export function encodeHeader(header: object): Uint8Array {
  const packed = packr.pack(header);
  const bytes = new Uint8Array(payloadStart(packed.length));
  writePrefix(bytes, 0, packed.length);
  bytes.set(packed, PREFIX_BYTES);
  return bytes;
}

function writePrefix(out: Uint8Array, at: number, length: number): void {
  out[at] = 0x44;
  out[at + 1] = 0x50;
  out[at + 2] = PROTOCOL_VERSION;
  out[at + 3] = 0;
  // Not by a DataView: the ArrayBuffer that it needs costs more than all the rest.
  for (let i = 0; i < 4; i++) out[at + 4 + i] = length >>> (8 * i);
}

/** A whole frame in one array: a copy of the payload, for where that does not matter. */
export function encodeFrame(header: object, payload?: Float32Array): Uint8Array {
  const head = encodeHeader(header);
  if (!payload || payload.length === 0) return head;
  const frame = new Uint8Array(head.length + payload.byteLength);
  frame.set(head);
  frame.set(bytesOf(payload), head.length);
  return frame;
}

export interface Frame {
  /** Not yet checked beyond being a map with a string `type`. */
  readonly header: { readonly type: string; readonly [key: string]: unknown };
  /** A view of the frame, at any offset; `floatsOf` reads it as f32. The frame's owner owns it. */
  readonly payload: Uint8Array;
}

/**
 * Reads a frame. Never allocates more than the frame's own size.
 * @throws DownpourError DP_FRAME_MALFORMED, DP_PROTOCOL_VERSION or DP_FRAME_TOO_LARGE.
 */
export function decodeFrame(frame: Uint8Array): Frame {
  if (frame.length > LIMITS.frameBytesMax) {
    throw new DownpourError(
      'DP_FRAME_TOO_LARGE',
      `frame of ${frame.length} bytes; at most ${LIMITS.frameBytesMax} are allowed`,
    );
  }
  if (frame.length < PREFIX_BYTES) throw tooShort(frame.length);
  const headerBytes = headerLength(frame);
  if (PREFIX_BYTES + headerBytes > frame.length) throw cutShort(headerBytes, frame.length);
  const header = decodeHeader(frame.subarray(PREFIX_BYTES, PREFIX_BYTES + headerBytes));
  const start = Math.min(payloadStart(headerBytes), frame.length);
  checkPayloadLength(frame.length - start);
  return { header, payload: frame.subarray(start) };
}

// The same in pieces, for a receiver that has no whole frame yet.

/**
 * The length of the header, from the first `PREFIX_BYTES` of a frame that begins at `at`.
 * @throws DownpourError DP_FRAME_MALFORMED or DP_PROTOCOL_VERSION.
 */
export function headerLength(bytes: Uint8Array, at = 0): number {
  if (bytes[at] !== 0x44 || bytes[at + 1] !== 0x50) throw malformed("it does not begin with 'DP'");
  if (bytes[at + 2] !== PROTOCOL_VERSION) {
    throw new DownpourError(
      'DP_PROTOCOL_VERSION',
      `frame of protocol version ${bytes[at + 2]}; this side speaks ${PROTOCOL_VERSION}: run the same release on servers and workers`,
    );
  }
  if (bytes[at + 3] !== 0)
    throw malformed(`its fourth byte is ${bytes[at + 3]}; it is reserved, 0`);
  const low = bytes[at + 4]! | (bytes[at + 5]! << 8) | (bytes[at + 6]! << 16);
  const length = low + bytes[at + 7]! * 2 ** 24;
  if (length > LIMITS.headerBytesMax) {
    throw malformed(
      `its header says ${length} bytes; at most ${LIMITS.headerBytesMax} are allowed`,
    );
  }
  return length;
}

/** Where the payload begins in a frame with a header of so many bytes. */
export function payloadStart(headerBytes: number): number {
  return Math.ceil((PREFIX_BYTES + headerBytes) / 8) * 8;
}

/** @param packed without what pads it. @throws DownpourError DP_FRAME_MALFORMED. */
export function decodeHeader(packed: Uint8Array): Frame['header'] {
  let header: unknown;
  try {
    header = packr.unpack(packed);
  } catch (cause) {
    throw malformed('its header is not msgpack', cause);
  }
  if (
    typeof header !== 'object' ||
    header === null ||
    typeof (header as { type?: unknown }).type !== 'string'
  ) {
    throw malformed('its header is not a map with a string `type`');
  }
  return header as Frame['header'];
}

/** @throws DownpourError DP_FRAME_MALFORMED. */
export function checkPayloadLength(bytes: number): void {
  if (bytes % 4 !== 0) throw malformed(`its payload has ${bytes} bytes, not a multiple of 4`);
}

const malformed = (what: string, cause?: unknown) =>
  new DownpourError('DP_FRAME_MALFORMED', `malformed frame: ${what}`, { cause });

/** A frame of so many bytes, none of them a whole prefix. */
export const tooShort = (frameBytes: number) =>
  malformed(`${frameBytes} bytes; a frame has at least ${PREFIX_BYTES}`);

/** A frame that ends within its header. */
export const cutShort = (headerBytes: number, frameBytes: number) =>
  malformed(`its header says ${headerBytes} bytes, the frame has ${frameBytes}`);

/** Plain data as msgpack in a payload, filled up to a multiple of 4 bytes; unlike JSON it keeps NaN. */
export function packPayload(value: object): {
  readonly payload: Uint8Array;
  readonly bytes: number;
} {
  const packed = packr.pack(value);
  const payload = new Uint8Array(4 * Math.ceil(packed.length / 4));
  payload.set(packed);
  return { payload, bytes: packed.length };
}

/** @param bytes of it that count. @throws when it is no msgpack. */
export function unpackPayload(payload: Uint8Array, bytes: number): unknown {
  return packr.unpack(payload.subarray(0, bytes));
}

/** The bytes of floats, as a view. */
export function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** The f32 numbers of bytes: a view when aligned, else a copy. */
export function floatsOf(bytes: Uint8Array): Float32Array {
  // Not `slice`, which for Node's Buffer is a view as well.
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}

/** Numbers of several arrays, one array after the other. */
export function concatFloats(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
