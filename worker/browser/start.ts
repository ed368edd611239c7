import { errorCode, errorText } from '../../shared/errors.ts';
import type {
  FromJoinWorker,
  JoinPageOptions,
  JoinPageProgress,
  ToJoinWorker,
} from '../../shared/join.ts';
import type { Acknowledgement } from '../../shared/protocol.ts';
import { runWorker } from '../main.ts';
import { defaultName } from '../name.ts';
import type { TrainerProgress } from '../trainer.ts';
import { openEngine } from './engine.ts';
import { type BundledExperiment, setBundle } from './experiment.ts';

/**
 * The worker of the page `/join`: the same as `downpour work`, in a thread of the browser, so that the page stays at
 * hand while it computes and goes on when nobody looks at it. The page says when, and is told what happens.
 */

/** This thread's end of the channel to the page. */
const page = globalThis as unknown as {
  onmessage: (event: { readonly data: ToJoinWorker }) => void;
  postMessage(message: FromJoinWorker): void;
};
const tell = (message: FromJoinWorker) => page.postMessage(message);

/** What the bundle begins with. */
export function begin(experiments: Readonly<Record<string, BundledExperiment>>): void {
  setBundle(experiments);
  const stopping = new AbortController();
  page.onmessage = ({ data: message }) => {
    if (message.type === 'stop') stopping.abort(new Error('stopped'));
    else void work(Object.keys(experiments), message, stopping.signal);
  };
}

async function work(
  names: readonly string[],
  { server, engine, softwareGpu }: JoinPageOptions,
  signal: AbortSignal,
): Promise<void> {
  const worker = defaultName();
  const teller = new ProgressTeller();
  try {
    tell({ type: 'experiments', names, worker });
    const opened = await openEngine({ engine, softwareGpu });
    const { name, device, notes } = opened;
    tell({ type: 'engine', name, device, notes });
    await runWorker({
      ...{ server, run: null, name: worker, engine: opened, folders: [], dataFolder: '' },
      ...{ signal, reachesShards: false, localSocket: false },
      log: (line) => {
        teller.flush();
        tell({ type: 'log', line });
      },
      onProgress: (progress) => teller.notePush(progress),
      onAcknowledged: (acknowledgement) => teller.noteAcknowledgement(acknowledgement),
    });
    teller.flush();
    tell({ type: 'stopped' });
  } catch (error) {
    tell({ type: 'failed', code: errorCode(error), message: errorText(error) });
  }
}

const TELL_MS = 250;
/** That the speed is an average of. */
const WINDOW_MS = 5_000;

/** Sums up what happened, a few times a second. */
class ProgressTeller {
  #newest: TrainerProgress | null = null;
  #times: number[] = [];
  #told = Number.NEGATIVE_INFINITY;
  readonly #sums = { pushes: 0, applied: 0, rejected: 0, examples: 0 };
  #staleness: number | null = null;

  notePush(progress: TrainerProgress): void {
    this.#newest = progress;
    this.#sums.pushes++;
    this.#sums.examples += progress.examples;
    const now = performance.now();
    this.#times.push(now);
    if (now - this.#told >= TELL_MS) this.flush();
  }

  noteAcknowledgement({ outcome, staleness }: Acknowledgement): void {
    this.#staleness = staleness;
    if (outcome === 'applied' || outcome === 'damped') this.#sums.applied++;
    else if (outcome === 'rejected') this.#sums.rejected++;
  }

  flush(): void {
    if (!this.#newest) return;
    const now = performance.now();
    this.#told = now;
    const from = this.#times.findIndex((time) => time > now - WINDOW_MS);
    this.#times = from < 0 ? [] : this.#times.slice(from);
    const { run, phase, step, loss } = this.#newest;
    const spanMs = now - (this.#times[0] ?? now);
    const minibatchesPerSecond =
      spanMs > 0 ? ((this.#times.length - 1) * 1000) / spanMs : this.#times.length;
    const progress: JoinPageProgress = {
      ...{ run, phase, step, loss, ...this.#sums },
      ...{ staleness: this.#staleness, minibatchesPerSecond },
    };
    tell({ type: 'progress', ...progress });
  }
}
