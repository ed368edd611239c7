import { Readable } from 'node:stream';
import { openWhole } from '../../files/whole-checkpoint.ts';
import { LIMITS } from '../../shared/limits.ts';
import { LimitError } from '../access/access.ts';

/** When one that was too many may be asked for again. */
const RETRY_SECONDS = 5;

/**
 * Downloads of checkpoints whose rows are in several files. The keys of all rows are in memory as long as one is sent, and ten
 * times as much while it is put together: they are put together one after the other, and few are sent at once.
 */
export class JoinedDownloads {
  #count = 0;
  #turn: Promise<unknown> = Promise.resolve();

  /** @throws LimitError: too many are being sent. @throws DownpourError of `openWhole`. */
  async begin(folder: string, file: string): Promise<{ bytes: number; content: Readable }> {
    const most = LIMITS.joinedDownloadsMax;
    if (this.#count >= most) {
      const text = `${this.#count} checkpoints with changed rows are being downloaded; at most ${most} may be at once: try again later`;
      throw new LimitError(text, RETRY_SECONDS);
    }
    this.#count++;
    try {
      const opening = this.#turn.then(() => openWhole(folder, file));
      this.#turn = opening.catch(() => {});
      const whole = await opening;
      const content = Readable.from(whole.stream(), { objectMode: false });
      content.once('close', () => {
        this.#count--;
        void whole.close();
      });
      return { bytes: whole.bytes, content };
    } catch (error) {
      this.#count--;
      throw error;
    }
  }
}
