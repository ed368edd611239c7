import type { Readable } from 'node:stream';
import { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { isFinal } from '../../shared/phases.ts';
import type { Bundle } from '../../shared/rest.ts';
import type { Run } from '../core/run.ts';
import type { Bundles } from './bundles.ts';

/** Experiments that were sent to this server as bundles, for the workers of its runs. */
export class SentExperiments {
  readonly #log: Log;
  readonly #runs: () => readonly Run[];
  readonly #bundlesToCome: () => readonly string[];
  /** Null: none can be sent. */
  #bundles: Bundles | null = null;

  /** @param options.runs all that the server has. @param options.bundlesToCome of those that are not read yet. */
  constructor(options: {
    readonly log: Log;
    readonly runs: () => readonly Run[];
    readonly bundlesToCome: () => readonly string[];
  }) {
    this.#log = options.log;
    this.#runs = options.runs;
    this.#bundlesToCome = options.bundlesToCome;
  }

  /** From now on bundles are kept there. */
  keepIn(bundles: Bundles): void {
    this.#bundles = bundles;
    for (const run of this.#runs()) this.sayMissing(run);
    // What a finished or failed run named is of use to nobody but a late `test`.
    bundles.needed = () => {
      const open = this.#runs().filter((run) => !isFinal(run.phase));
      const named = open.flatMap(({ options }) => options.bundle ?? []);
      return new Set([...named, ...this.#bundlesToCome()]);
    };
  }

  sayMissing({ id, over, options: { bundle } }: Run): void {
    if (over || bundle === undefined || !this.#bundles || this.#bundles.find(bundle)) return;
    this.#log(
      `run ${id}: its experiment was sent as bundle ${bundle}, which is not in the state folder: workers without its files wait until it is sent again, or copied to them`,
      { level: 'warn', run: id },
    );
  }

  /** @throws DownpourError of `Bundles.mustHave`, DP_USAGE. */
  mustHave(sha256: string): void {
    this.#mustKeep().mustHave(sha256);
  }

  /** @param holder of the token that it came with. @throws DownpourError of `Bundles.keep`, DP_USAGE. */
  async keep(sha256: string, content: Uint8Array, holder: string | null): Promise<Bundle> {
    const kept = await this.#mustKeep().keep(sha256, content);
    this.#log(
      `bundle ${sha256} of ${kept.bytes} bytes was sent by ${holder}: workers that accept experiments run it`,
    );
    return kept;
  }

  /**
   * What workers may fetch.
   * @throws DownpourError DP_NOT_FOUND: there is none, or no run that is not over has it; which of both is not told.
   */
  async read(sha256: string): Promise<{ readonly bytes: number; readonly content: Readable }> {
    const bundles = this.#mustKeep();
    const found = bundles.find(sha256);
    if (found && this.#runs().some(({ over, options }) => !over && options.bundle === sha256)) {
      return { bytes: found.bytes, content: await bundles.read(sha256) };
    }
    throw new DownpourError('DP_NOT_FOUND', `no run that needs workers has bundle ${sha256}`);
  }

  /** The bundle of a run, if it was sent and is there. */
  of({ options: { bundle } }: Run): Bundle | null {
    return bundle === undefined ? null : (this.#bundles?.find(bundle) ?? null);
  }

  #mustKeep(): Bundles {
    if (this.#bundles) return this.#bundles;
    throw new DownpourError('DP_USAGE', 'this server keeps no bundles');
  }
}
