import type { ShownExamples } from '../../shared/asides.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Hello, Machine } from '../../shared/protocol.ts';
import type { Evaluation, MachineFacts, RunExamples } from '../../shared/rest.ts';
import { RunLog } from '../watch/run-log.ts';

/** What is told of runs and workers for people alone, in memory: training depends on none of it. */

/** The last that a worker has told of its machine. */
export class MachineReport {
  #last: { readonly facts: MachineFacts; readonly at: number } | null = null;

  get facts(): MachineFacts | null {
    return this.#last?.facts ?? null;
  }

  /** @param now monotonic, ms. @returns false: it came too soon after the last one, and is not taken. */
  take({ type: _, ...facts }: Machine, now: number): boolean {
    if (this.#last && now - this.#last.at < LIMITS.machineMsMin) return false;
    this.#last = { facts, at: now };
    return true;
  }
}

/** The log of each run, and the latest examples with predictions of those runs that were evaluated last. */
export class RunAsides {
  readonly log: RunLog;
  readonly #examples = new Map<string, RunExamples>();
  /** They came with an evaluation that is about to be followed up. */
  #offered: { readonly run: string; readonly examples: ShownExamples } | null = null;

  constructor(log: RunLog = new RunLog()) {
    this.log = log;
  }

  joined(run: string, { worker, engine, device }: Hello): void {
    const words = `worker ${worker} takes part: ${engine} on ${device}`;
    this.log.note(run, words, { worker, kind: `joined ${worker}` });
  }

  /** Examples of an evaluation that counts; `evaluated` follows. */
  offer(run: string, examples: ShownExamples | undefined): void {
    this.#offered = examples ? { run, examples } : null;
  }

  evaluated(run: string, { part, loss, error, step }: Evaluation): void {
    const [l, e] = [loss, error].map((n) => (n === null ? 'not finite' : Number(n.toPrecision(4))));
    const words = `${part}: loss ${l}, error ${e}`;
    this.log.note(run, words, { step, kind: `evaluated ${part}` });
    const offered = this.#offered;
    this.#offered = null;
    // The test part is looked at once, and shown to nobody.
    if (offered?.run !== run || part !== 'validation') return;
    this.#examples.delete(run);
    this.#examples.set(run, { step, at: new Date().toISOString(), examples: offered.examples });
    if (this.#examples.size <= LIMITS.shownRunsMax) return;
    this.#examples.delete(this.#examples.keys().next().value!);
  }

  examples(run: string): RunExamples {
    return this.#examples.get(run) ?? { step: null, at: null, examples: [] };
  }

  forget(run: string): void {
    this.log.forget(run);
    this.#examples.delete(run);
  }
}
