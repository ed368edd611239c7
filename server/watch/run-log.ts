import { LIMITS } from '../../shared/limits.ts';
import type { Log, LogFacts } from '../../shared/log.ts';
import type { LogLine } from '../../shared/rest.ts';

/** The last lines of the log about each run, for its page; they are kept in memory alone, and are gone with the process. */

interface KeptLine extends LogLine {
  /** Lines of one kind that follow one another are one. */
  readonly kind: string;
}

interface RunLines {
  lines: KeptLine[];
  characters: number;
  /** Lines that gave way to newer ones. */
  dropped: number;
}

export class RunLog {
  /** The run that a line was written about last comes last. */
  readonly #runs = new Map<string, RunLines>();
  #characters = 0;

  /** @returns a log that writes to another one, and keeps what concerns a run. */
  beside(write: Log): Log {
    return (line, facts) => {
      if (facts?.run !== undefined) this.#keep(facts.run, line, facts);
      write(line, facts);
    };
  }

  /** @param limit the most lines, the newest ones. Oldest first. */
  of(run: string, limit: number = LIMITS.runLogLinesMax): { lines: LogLine[]; dropped: number } {
    const found = this.#runs.get(run);
    if (!found) return { lines: [], dropped: 0 };
    const lines = found.lines.slice(-limit).map(({ kind: _, ...line }) => line);
    return { lines, dropped: found.dropped + found.lines.length - lines.length };
  }

  /** A line for the page of a run alone. */
  note(run: string, line: string, facts: Omit<LogFacts, 'run'> = {}): void {
    this.#keep(run, line, facts);
  }

  forget(run: string): void {
    this.#characters -= this.#runs.get(run)?.characters ?? 0;
    this.#runs.delete(run);
  }

  #keep(run: string, line: string, facts: LogFacts): void {
    const text = line.slice(0, LIMITS.runLogCharactersMax);
    const own = this.#runs.get(run) ?? { lines: [], characters: 0, dropped: 0 };
    this.#runs.delete(run);
    this.#runs.set(run, own);
    const { level = 'info', worker = null, code = null, step = null, repeated = 0 } = facts;
    const kind = `${level} ${facts.kind ?? text}`;
    const at = new Date().toISOString();
    const last = own.lines.at(-1);
    const isSame = last?.kind === kind;
    if (isSame) this.#drop(own, own.lines.length - 1);
    const before = isSame ? last.repeated + 1 : 0;
    const entry: KeptLine = {
      ...{ at, level, text, worker, code, step, kind },
      repeated: before + repeated,
    };
    own.lines.push(entry);
    this.#count(own, text.length);
    while (own.lines.length > LIMITS.runLogLinesMax) {
      this.#drop(own, 0);
      own.dropped++;
    }
    for (const id of this.#runs.keys()) {
      if (this.#characters <= LIMITS.runLogsCharactersMax || id === run) break;
      this.forget(id);
    }
  }

  #drop(own: RunLines, index: number): void {
    const [gone] = own.lines.splice(index, 1);
    this.#count(own, -gone!.text.length);
  }

  #count(own: RunLines, characters: number): void {
    own.characters += characters;
    this.#characters += characters;
  }
}
