/**
 * The bytes of WebSocket frames (RFC 6455, section 5.2), without any state: what is needed to find binary messages in
 * a stream, and to write one. The rest of the protocol is `ws`'s.
 *
 *     fin · 3 reserved · 4 opcode | masked · 7 length | length of 16 or 64 bits | 4 mask | payload
 */

export const OPCODES = {
  continuation: 0,
  text: 1,
  binary: 2,
  close: 8,
  ping: 9,
  pong: 10,
} as const;

/** Two bytes, eight of length, four of mask. */
export const FRAME_HEAD_MAX = 14;
/** RFC 6455, section 5.5. */
export const CONTROL_BYTES_MAX = 125;

/** How many bytes the head of a frame has, from its second byte. */
export function frameHeadLength(second: number): number {
  const length = second & 0x7f;
  return 2 + (length === 126 ? 2 : length === 127 ? 8 : 0) + (second & 0x80 ? 4 : 0);
}

/** The length of the payload that a whole head announces, in bytes; Infinity from 2⁵³ on. */
export function frameLength(head: Uint8Array, at: number): number {
  const length = head[at + 1]! & 0x7f;
  if (length < 126) return length;
  const bytes = length === 126 ? 2 : 8;
  let value = 0;
  for (let i = 0; i < bytes; i++) value = value * 256 + head[at + 2 + i]!;
  return value < 2 ** 53 ? value : Number.POSITIVE_INFINITY;
}

/** The mask at the end of a whole head, as a little-endian number; 0 when there is none. */
export function frameMask(head: Uint8Array, at: number): number {
  if (!(head[at + 1]! & 0x80)) return 0;
  const end = at + frameHeadLength(head[at + 1]!);
  return head[end - 4]! | (head[end - 3]! << 8) | (head[end - 2]! << 16) | (head[end - 1]! << 24);
}

/**
 * Writes the head of a final, unfragmented frame so that it ends at `end`.
 * @param masked with a mask of zeros. A mask protects proxies from what browsers are made to send; it
 *   costs 0.4 to 0.8 CPU seconds a gigabyte at each end. One of zeros is valid and can be skipped.
 * @returns where the head begins.
 */
export function writeFrameHead(
  out: Uint8Array,
  end: number,
  frame: { opcode: number; length: number; masked: boolean },
): number {
  const { opcode, length, masked } = frame;
  const wide = length < 126 ? 0 : length < 2 ** 16 ? 2 : 8;
  const start = end - 2 - wide - (masked ? 4 : 0);
  out[start] = 0x80 | opcode;
  out[start + 1] = (masked ? 0x80 : 0) | (wide === 0 ? length : wide === 2 ? 126 : 127);
  let rest = length;
  for (let i = wide; i > 0; i--) {
    out[start + 1 + i] = rest % 256;
    rest = Math.floor(rest / 256);
  }
  if (masked) out.fill(0, end - 4, end);
  return start;
}

/**
 * Undoes a mask in place, by words.
 * @param mask as `frameMask` gives it. @param position of the first byte in its frame.
 */
export function unmask(bytes: Uint8Array, mask: number, position: number): void {
  if (mask === 0) return;
  const { length } = bytes;
  const byte = (i: number) => {
    bytes[i] = bytes[i]! ^ (mask >>> (8 * ((position + i) & 3)));
  };
  const start = Math.min(length, -bytes.byteOffset & 3);
  for (let i = 0; i < start; i++) byte(i);
  const count = (length - start) >>> 2;
  if (count > 0) {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset + start, count);
    const shift = 8 * ((position + start) & 3);
    const rotated = shift === 0 ? mask : (mask >>> shift) | (mask << (32 - shift));
    for (let i = 0; i < count; i++) words[i]! ^= rotated;
  }
  for (let i = start + 4 * count; i < length; i++) byte(i);
}
