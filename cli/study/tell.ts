import { type DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import type { StudyReport } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';

/** Tells a server what a study has found, for its dashboard. The study does not depend on it. */

/** Between two tellings of a study that runs. */
const TELL_MS = 3_000;

export class Teller {
  readonly #client: RestClient;
  readonly #name: string;
  readonly #note: (line: string) => void;
  #telling: Promise<void> | null = null;
  #toldAt = Number.NEGATIVE_INFINITY;
  #given = false;

  /** @param note says once why nothing can be told. */
  constructor(client: RestClient, name: string, note: (line: string) => void) {
    this.#client = client;
    this.#name = name;
    this.#note = note;
  }

  /** Tells in passing, unless the last time was just now or has not been answered yet. */
  inPassing(make: () => StudyReport): void {
    const now = performance.now();
    if (this.#given || this.#telling || now - this.#toldAt < TELL_MS) return;
    this.#toldAt = now;
    this.#telling = this.#tell(make()).finally(() => {
      this.#telling = null;
    });
  }

  /** Tells once more, after all else. */
  async last(report: StudyReport): Promise<void> {
    await this.#telling;
    if (!this.#given) await this.#tell(report);
  }

  async #tell(report: StudyReport): Promise<void> {
    try {
      await this.#client.tellStudy(this.#name, report);
    } catch (error) {
      // A server that is away for a moment is told the next time.
      if (errorCode(error) === 'DP_SERVER_UNREACHABLE') return;
      this.#given = true;
      this.#note(`the dashboard does not show this study: ${reasonOf(error)}`);
    }
  }
}

function reasonOf(error: unknown): string {
  const isOlder = errorCode(error) === 'DP_NOT_FOUND';
  return isOlder ? 'the server is of an older release' : errorText(error as DownpourError);
}
