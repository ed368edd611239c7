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

function digest(): Digest {
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

/**
 * A 128-bit digest for data sets: a GB and more each second, pure and synchronous as `digest`. It is MurmurHash3
 * (x86, 128 bits) with the length of each piece taken in before it. All its steps can be undone, so that two inputs
 * which differ in one 32-bit word never have the same digest; others do by chance, 2⁻¹²⁸. Not cryptographic.
 */
export interface DataDigest {
  /** Takes in more elements, in the byte order of the machine: little-endian on all that engines run on. */
  update(values: ArrayBufferView): DataDigest;
  /** 32 hex digits of all that was taken in. */
  hex(): string;
}

export function dataDigest(): DataDigest {
  let state: DigestState = [0x2b7e1516, 0x28aed2a6, 0xabf71588, 0x09cf4f3c];
  let bytesBefore = 0;
  return {
    update({ buffer, byteOffset, byteLength }) {
      const whole = byteLength - (byteLength % 16);
      const aligned = byteOffset % 4 === 0;
      const head = aligned
        ? new Uint32Array(buffer, byteOffset, whole / 4)
        : new Uint32Array(buffer.slice(byteOffset, byteOffset + whole));
      const rest = new Uint8Array(16);
      rest.set(new Uint8Array(buffer, byteOffset + whole, byteLength - whole));
      const length = Uint32Array.of(byteLength, byteLength / 2 ** 32, 0, 0);
      for (const words of [length, head, new Uint32Array(rest.buffer)]) state = mix(state, words);
      bytesBefore += byteLength;
      return this;
    },
    hex() {
      let [a, b, c, d] = state.map((h) => h ^ bytesBefore) as unknown as DigestState;
      a = (a + b + c + d) | 0;
      [b, c, d] = [(b + a) | 0, (c + a) | 0, (d + a) | 0];
      [a, b, c, d] = [finalise(a, 0), finalise(b, 0), finalise(c, 0), finalise(d, 0)];
      a = (a + b + c + d) | 0;
      const parts = [a, b + a, c + a, d + a];
      return parts.map((h) => (h >>> 0).toString(16).padStart(8, '0')).join('');
    },
  };
}

type DigestState = readonly [number, number, number, number];

/** @param words a multiple of 4 of them. */
function mix(state: DigestState, words: Uint32Array): DigestState {
  let [a, b, c, d] = state;
  for (let i = 0; i < words.length; i += 4) {
    a ^= scramble(words[i]!, 0x239b961b, 15, 0xab0e9789);
    a = (Math.imul(((a << 19) | (a >>> 13)) + b, 5) + 0x561ccd1b) | 0;
    b ^= scramble(words[i + 1]!, 0xab0e9789, 16, 0x38b34ae5);
    b = (Math.imul(((b << 17) | (b >>> 15)) + c, 5) + 0x0bcaa747) | 0;
    c ^= scramble(words[i + 2]!, 0x38b34ae5, 17, 0xa1e38b93);
    c = (Math.imul(((c << 15) | (c >>> 17)) + d, 5) + 0x96cd1c35) | 0;
    d ^= scramble(words[i + 3]!, 0xa1e38b93, 18, 0x239b961b);
    d = (Math.imul(((d << 13) | (d >>> 19)) + a, 5) + 0x32ac3b17) | 0;
  }
  return [a, b, c, d];
}

function scramble(word: number, before: number, rotation: number, after: number): number {
  const k = Math.imul(word, before);
  return Math.imul((k << rotation) | (k >>> (32 - rotation)), after);
}
