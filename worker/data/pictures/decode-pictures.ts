import type { MessagePort } from 'node:worker_threads';
import type { ErrorCode } from '../../../shared/errors.ts';
import { errorCode, errorText } from '../../../shared/errors.ts';
import { type Canvas, paint } from './paint.ts';
import { decodePicture, readPicture, type SizeOf } from './pictures.ts';

/** Pictures decoded in a thread of their own. */

export interface PictureTask {
  readonly id: number;
  /** The path of the file, or the name of the bytes. */
  readonly path: string;
  /** What it is decoded from; undefined: the file. */
  readonly bytes?: Uint8Array;
  readonly canvas: Canvas;
  /** Whose size it must have; null: any. */
  readonly like: SizeOf | null;
}

export type PictureAnswer =
  | { readonly id: number; readonly pixels: Uint8Array }
  | { readonly id: number; readonly code: ErrorCode; readonly message: string };

/** Answers each task with the pixels, shape [height, width, channels], or with why there are none. */
export function decodePictures(port: MessagePort): void {
  port.on('message', async ({ id, path, bytes, canvas, like }: PictureTask) => {
    try {
      const picture = bytes
        ? await decodePicture(Buffer.from(bytes.buffer as ArrayBuffer), path, like ?? undefined)
        : await readPicture(path, like ?? undefined);
      const pixels = new Uint8Array(canvas.height * canvas.width * canvas.channels);
      paint(picture, pixels, canvas);
      port.postMessage({ id, pixels } satisfies PictureAnswer, [pixels.buffer]);
    } catch (error) {
      const answer: PictureAnswer = { id, code: errorCode(error), message: errorText(error) };
      port.postMessage(answer);
    }
  });
}
