import type { Orientation } from './exif.ts';

/** A picture whose header has been read, as it is stored. */
export interface StoredPicture {
  readonly width: number;
  readonly height: number;
  /** How it is to be turned to be upright. */
  readonly orientation: Orientation;
  readonly frames: number;
  /** The file must have at least as many to hold the pixels. */
  readonly bytesMin: number;
  /** RGBA, row by row. */
  decode(): Uint8Array | Promise<Uint8Array>;
}
