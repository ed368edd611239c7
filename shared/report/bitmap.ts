import { base64Of, bytesOfBase64 } from '../base64.ts';
import type { Card } from '../figure.ts';

const HEAD_BYTES = 54;

/**
 * A picture as a URL that holds all of it: a bitmap of 24 bits a pixel, which needs no library to write.
 * @returns null: the picture has not as many bytes as its size says.
 */
export function bitmapUrl(image: Extract<Card['shown'], { kind: 'image' }>): string | null {
  const { width, height, channels } = image;
  const pixels = bytesOfBase64(image.pixels);
  if (pixels.length !== width * height * channels) return null;
  // Each row is filled up to a multiple of four bytes.
  const rowBytes = 4 * Math.ceil((3 * width) / 4);
  const bytes = new Uint8Array(HEAD_BYTES + rowBytes * height);
  const view = new DataView(bytes.buffer);
  bytes.set([0x42, 0x4d]);
  view.setUint32(2, bytes.length, true);
  view.setUint32(10, HEAD_BYTES, true);
  view.setUint32(14, 40, true);
  view.setInt32(18, width, true);
  // Below 0: the first row is the upper one.
  view.setInt32(22, -height, true);
  view.setUint16(26, 1, true);
  view.setUint16(28, 24, true);
  view.setUint32(34, rowBytes * height, true);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = HEAD_BYTES + y * rowBytes + 3 * x;
      const from = (y * width + x) * channels;
      // Blue comes first.
      for (let c = 0; c < 3; c++) bytes[at + c] = pixels[from + (channels === 1 ? 0 : 2 - c)]!;
    }
  }
  return `data:image/bmp;base64,${base64Of(bytes)}`;
}
