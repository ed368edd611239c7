import type { MessagePort } from 'node:worker_threads';
import { errorCode, errorText } from '../../../shared/errors.ts';
import type { ThreadAnswer } from '../thread-pool.ts';
import { type Canvas, paint } from './paint.ts';
import { decodePicture, readPicture, type SizeOf } from './pictures.ts';

/** Pictures decoded in a thread of their own. */

export interface PictureTask {
  /** The path of the file, or the name of the bytes. */
  readonly path: string;
  /** What it is decoded from; undefined: the file. */
  readonly bytes?: Uint8Array;
  readonly canvas: Canvas;
  /** Whose size it must have; null: any. */
  readonly like: SizeOf | null;
}

/** Answers each task with the pixels, shape [height, width, channels], or with why there are none. */
export function decodePictures(port: MessagePort): void {
  port.on('message', async (asked: PictureTask & { readonly id: number }) => {
    const { id, path, bytes, canvas, like } = asked;
    try {
      const picture = bytes
        ? await decodePicture(Buffer.from(bytes.buffer as ArrayBuffer), path, like ?? undefined)
        : await readPicture(path, like ?? undefined);
      const result = new Uint8Array(canvas.height * canvas.width * canvas.channels);
      paint(picture, result, canvas);
      port.postMessage({ id, result } satisfies ThreadAnswer<Uint8Array>, [result.buffer]);
    } catch (error) {
      const [code, message] = [errorCode(error), errorText(error)];
      port.postMessage({ id, code, message } satisfies ThreadAnswer<Uint8Array>);
    }
  });
}
