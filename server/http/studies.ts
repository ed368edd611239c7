import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { diskError, makeFolder, namesIn, TEMPORARY, writeSealed } from '../../files/atomic-file.ts';
import { checkOf, damaged, readSealed } from '../../files/records.ts';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  type StudyDetail,
  StudyDetailSchema,
  type StudyReport,
  type StudySummary,
} from '../../shared/rest.ts';

/**
 * What studies and looks at models have told this server: a file each in its state folder, so that a dashboard shows them
 * after their commands have ended. No run depends on them.
 */

/** No run can have this name. */
const FOLDER = '.studies';
const NAME = new RegExp(NAME_PATTERN);
/** With the line breaks and spaces that make it readable. */
const STUDY_FILE_BYTES_MAX = 8 * LIMITS.studyBytesMax;
const checkStudy = checkOf<StudyDetail>(StudyDetailSchema);

export class Studies {
  readonly #folder: string;
  readonly #known: Map<string, StudySummary>;
  readonly #countMax: number;
  /** Changes of the folder, one after the other. */
  #queue: Promise<unknown> = Promise.resolve();
  #version = 0;

  private constructor(folder: string, known: Map<string, StudySummary>, countMax: number) {
    this.#folder = folder;
    this.#known = known;
    this.#countMax = countMax;
  }

  /** Reads what there is; what is damaged is passed over, and said in the log. @throws DownpourError DP_DISK. */
  static async open(
    state: string,
    log: (line: string) => void,
    countMax: number = LIMITS.studyCountMax,
  ): Promise<Studies> {
    const folder = join(state, FOLDER);
    const known = new Map<string, StudySummary>();
    for (const file of await namesIn(folder)) {
      const name = file.replace(/\.json$/, '');
      if (file.endsWith(TEMPORARY)) await rm(join(folder, file), { force: true });
      if (!file.endsWith('.json') || !NAME.test(name)) continue;
      try {
        known.set(name, summaryOf(await read(folder, name)));
      } catch (error) {
        log(`the study ${join(folder, file)} cannot be read: ${errorText(error)}; passed over`);
      }
    }
    return new Studies(folder, known, countMax);
  }

  /** Another number whenever something has changed. */
  get version(): number {
    return this.#version;
  }

  /** The one that was told of last comes first. */
  list(): readonly StudySummary[] {
    return [...this.#known.values()].sort((a, b) => (a.updatedAt < b.updatedAt ? 1 : -1));
  }

  find(name: string): StudySummary | null {
    return this.#known.get(name) ?? null;
  }

  /** @throws DownpourError DP_NOT_FOUND. */
  async read(name: string): Promise<StudyDetail> {
    this.#mustKnow(name);
    return read(this.#folder, name);
  }

  /**
   * Keeps a report in the place of the one before.
   * @param now as `Date.prototype.toISOString` writes it.
   * @throws DownpourError DP_LIMIT or DP_DISK.
   */
  tell(name: string, report: StudyReport, now: string): Promise<StudySummary> {
    return this.#after(async () => {
      const before = this.#known.get(name);
      if (!before && this.#known.size >= this.#countMax) {
        throw new DownpourError(
          'DP_LIMIT',
          `the server keeps ${this.#known.size} studies; at most ${this.#countMax}: remove some on the dashboard, or by DELETE /studies/:name`,
        );
      }
      const detail = { name, createdAt: before?.createdAt ?? now, updatedAt: now, ...report };
      await makeFolder(this.#folder);
      await writeSealed(this.#folder, `${name}.json`, detail);
      const summary = summaryOf(detail);
      this.#known.set(name, summary);
      this.#version++;
      return summary;
    });
  }

  /** @throws DownpourError DP_NOT_FOUND or DP_DISK. */
  remove(name: string): Promise<void> {
    return this.#after(async () => {
      this.#mustKnow(name);
      const path = join(this.#folder, `${name}.json`);
      try {
        await rm(path, { force: true });
      } catch (error) {
        throw diskError(error, path, 'remove');
      }
      this.#known.delete(name);
      this.#version++;
    });
  }

  #mustKnow(name: string): void {
    if (this.#known.has(name)) return;
    throw new DownpourError(
      'DP_NOT_FOUND',
      `this server has no study '${name.slice(0, 80)}'; GET /studies lists what there is`,
    );
  }

  #after<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(change);
    // A failure is its caller's; the next one goes on.
    this.#queue = done.catch(() => {});
    return done;
  }
}

async function read(folder: string, name: string): Promise<StudyDetail> {
  const path = join(folder, `${name}.json`);
  const value = await readSealed(path, STUDY_FILE_BYTES_MAX);
  if (value === undefined) {
    throw new DownpourError('DP_NOT_FOUND', `${path} no longer exists: it was removed`);
  }
  const study = checkStudy(path, value);
  if (study.name !== name) throw damaged(path, `it is of study '${study.name}'`);
  return study;
}

function summaryOf(study: StudyDetail): StudySummary {
  const { name, kind, state, experiment, run, title, trials, createdAt, updatedAt } = study;
  return { name, kind, state, experiment, run, title, trials, createdAt, updatedAt };
}
