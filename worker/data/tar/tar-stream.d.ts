/** The part of tar-stream that reads headers; it has no types of its own. */
declare module 'tar-stream/headers.js' {
  interface TarHeader {
    readonly name: string;
    readonly size: number;
    /** Null: a kind that the library does not know. */
    readonly type: string | null;
    readonly linkname: string | null;
  }
  /** @returns null: the block is zero. @throws Error: the checksum is wrong. */
  export function decode(
    block: Uint8Array,
    encoding: string,
    allowUnknownFormat: boolean,
  ): TarHeader | null;
  export function decodePax(bytes: Uint8Array): Record<string, string>;
  export function decodeLongPath(bytes: Uint8Array, encoding: string): string;
}
