import { Packr } from 'msgpackr';
import { LIMITS } from './config.ts';
import { DownpourError } from './errors.ts';

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
 * | … | zeros up to a multiple of 8 |
 * | to the end | payload: little-endian numbers, a multiple of 4 bytes, possibly none |
 *
 * Floats stay out of msgpack: packing 4 MB of them takes 65 ms, a header of scalars 0.4 µs.
 */
export const PROTOCOL_VERSION = 1;
const PREFIX_BYTES = 8;

// Plain maps (no msgpackr records), so that any msgpack library reads them.
const packr = new Packr({
  useRecords: false,
  mapsAsObjects: true,
  variableMapSize: true,
  encodeUndefinedAsNil: false,
});

/** The part of a frame before its payload; its length is a multiple of 8. */
export function encodeHeader(header: object): Uint8Array {
  const packed = packr.pack(header);
  const bytes = new Uint8Array(paddedLength(packed.length));
  bytes[0] = 0x44;
  bytes[1] = 0x50;
  bytes[2] = PROTOCOL_VERSION;
  new DataView(bytes.buffer).setUint32(4, packed.length, true);
  bytes.set(packed, PREFIX_BYTES);
  return bytes;
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
  const malformed = (what: string, cause?: unknown) =>
    new DownpourError('DP_FRAME_MALFORMED', `malformed frame: ${what}`, { cause });
  if (frame.length > LIMITS.frameBytesMax) {
    throw new DownpourError(
      'DP_FRAME_TOO_LARGE',
      `frame of ${frame.length} bytes; at most ${LIMITS.frameBytesMax} are allowed`,
    );
  }
  if (frame.length < PREFIX_BYTES) {
    throw malformed(`${frame.length} bytes; a frame has at least ${PREFIX_BYTES}`);
  }
  if (frame[0] !== 0x44 || frame[1] !== 0x50) throw malformed("it does not begin with 'DP'");
  if (frame[2] !== PROTOCOL_VERSION) {
    throw new DownpourError(
      'DP_PROTOCOL_VERSION',
      `frame of protocol version ${frame[2]}; this side speaks ${PROTOCOL_VERSION}: run the same release on servers and workers`,
    );
  }
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const headerBytes = view.getUint32(4, true);
  if (headerBytes > LIMITS.headerBytesMax || PREFIX_BYTES + headerBytes > frame.length) {
    throw malformed(`its header says ${headerBytes} bytes, the frame has ${frame.length}`);
  }
  let header: unknown;
  try {
    header = packr.unpack(frame.subarray(PREFIX_BYTES, PREFIX_BYTES + headerBytes));
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
  const start = Math.min(paddedLength(headerBytes), frame.length);
  const payloadBytes = frame.length - start;
  if (payloadBytes % 4 !== 0) {
    throw malformed(`its payload has ${payloadBytes} bytes, not a multiple of 4`);
  }
  return { header: header as Frame['header'], payload: frame.subarray(start) };
}

/** The bytes of floats, as a view. */
export function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function paddedLength(headerBytes: number): number {
  return Math.ceil((PREFIX_BYTES + headerBytes) / 8) * 8;
}

/** The f32 numbers of bytes: a view when aligned, else a copy. */
export function floatsOf(bytes: Uint8Array): Float32Array {
  // Not `slice`, which for Node's Buffer is a view as well.
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}
