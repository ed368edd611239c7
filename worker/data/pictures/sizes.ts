import { PassedOver } from './image-files.ts';
import { findImages } from './image-parts.ts';
import { pictureSize } from './pictures.ts';

/** Sizes of the pictures of a folder, before any is decoded. */

export interface PictureSizes {
  /** All have one size. */
  readonly isOne: boolean;
  /** The median of the shorter sides, in pixels. */
  readonly shorter: number;
}

/** @throws DownpourError of `loadImageFolder`. */
export async function pictureSizes(folder: string): Promise<PictureSizes> {
  const { parts } = await findImages(folder, undefined, new PassedOver());
  const sizes: (readonly [number, number])[] = [];
  for (const { path } of parts.flatMap(({ files }) => files)) sizes.push(await pictureSize(path));
  const shorter = sizes.map(([width, height]) => Math.min(width, height)).sort((a, b) => a - b);
  return {
    isOne: new Set(sizes.map(String)).size === 1,
    shorter: shorter[Math.floor(shorter.length / 2)]!,
  };
}
