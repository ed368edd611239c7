import type { MessagePort } from 'node:worker_threads';
import type { ErrorCode } from '../../../shared/errors.ts';
import { errorCode, errorText } from '../../../shared/errors.ts';
import { type Canvas, paint } from './paint.ts';
import { readPicture, type SizeOf } from './pictures.ts';

/** Pictures decoded in a thread of their own. */

export interface PictureTask {
  readonly id: number;
  readonly path: string;
  readonly canvas: Canvas;
  /** Whose size it must have; null: any. */
  readonly like: SizeOf | null;
}

export type PictureAnswer =
  | { readonly id: number; readonly pixels: Uint8Array }
  | { readonly id: number; readonly code: ErrorCode; readonly message: string };

/** Answers each task with the pixels, shape [height, width, channels], or with why there are none. */
export function decodePictures(port: MessagePort): void {
  port.on('message', async ({ id, path, canvas, like }: PictureTask) => {
    try {
      const picture = await readPicture(path, like ?? undefined);
      const pixels = new Uint8Array(canvas.height * canvas.width * canvas.channels);
      paint(picture, pixels, canvas);
      port.postMessage({ id, pixels } satisfies PictureAnswer, [pixels.buffer]);
    } catch (error) {
      const answer: PictureAnswer = { id, code: errorCode(error), message: errorText(error) };
      port.postMessage(answer);
    }
  });
}
