/**
 * A 64-bit digest for telling things apart (layouts, data sets), pure and synchronous so that a
 * browser can compute it. Not cryptographic: checkpoints use SHA-256.
 */
export interface Digest {
  /** Takes in more bytes. */
  update(bytes: Uint8Array): Digest;
  /** 16 hex digits of all that was taken in. */
  hex(): string;
}

export function digest(): Digest {
  // Two FNV-1a lanes with different offsets and multipliers, and a finaliser that mixes both.
  let a = 0x811c9dc5;
  let b = 0x9747b28c;
  let length = 0;
  return {
    update(bytes) {
      for (let i = 0; i < bytes.length; i++) {
        a = Math.imul(a ^ bytes[i]!, 0x01000193);
        b = Math.imul(b ^ bytes[i]!, 0x5bd1e995);
        b ^= b >>> 15;
      }
      length += bytes.length;
      return this;
    },
    hex() {
      const high = finalise(a ^ Math.imul(length, 0x9e3779b1), b);
      const low = finalise(b, high);
      return high.toString(16).padStart(8, '0') + low.toString(16).padStart(8, '0');
    },
  };
}

function finalise(value: number, salt: number): number {
  let h = value ^ salt;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The digest of a text. */
export function digestText(text: string): string {
  return digest().update(new TextEncoder().encode(text)).hex();
}
