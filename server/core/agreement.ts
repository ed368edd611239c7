import { type DataFacts, dataDifference } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Layout, TensorSpec } from '../../shared/layout.ts';
import type { DataSummary } from '../../shared/protocol.ts';

/** What all workers of a run must have in common: the first one's experiment, model and data. */
export interface Agreement {
  readonly experiment: string;
  readonly experimentHash: string;
  readonly layout: Layout | null;
  readonly data: DataSummary | null;
  readonly facts: DataFacts | null;
  /** For a fork: the run that it started from, and its data if they are known. */
  readonly origin: { readonly run: string; readonly data: DataSummary | null } | null;
  /** For a fork: its data may differ from those of that run. */
  readonly takesOtherData: boolean;
}

export interface Joining {
  readonly experimentHash: string;
  readonly layout: Layout;
  readonly data: DataSummary;
  /** Null: the worker is of an older release. */
  readonly facts: DataFacts | null;
}

/**
 * Compares a worker with the run it joins.
 * @throws DownpourError DP_EXPERIMENT_MISMATCH, DP_LAYOUT_MISMATCH or DP_DATA_MISMATCH that names the
 *   difference.
 */
export function checkAgreement(run: Agreement, worker: Joining): void {
  if (worker.experimentHash !== run.experimentHash) {
    throw new DownpourError('DP_EXPERIMENT_MISMATCH', hashDifference(run, worker.experimentHash));
  }
  if (run.layout && worker.layout.hash !== run.layout.hash) {
    throw new DownpourError('DP_LAYOUT_MISMATCH', layoutDifference(run.layout, worker.layout));
  }
  const difference = dataDifference(run, worker);
  if (difference) {
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `this worker's data differ from the run's: it has ${difference}; ${run.origin && !run.data ? `a fork needs the same names, classes and shapes as run '${run.origin.run}', which it started from` : 'restore the old data, give all workers the same data, or train a new run on these'}`,
    );
  }
  if (!run.data) checkOrigin(run, worker.data);
}

/** The first worker of a fork: its data are those that the parameters were trained on, unless others are wanted. */
function checkOrigin({ origin, takesOtherData }: Agreement, data: DataSummary): void {
  if (!origin?.data || takesOtherData) return;
  const [theirs, ours] = [origin.data.rawFingerprint, data.rawFingerprint];
  if (theirs === undefined || theirs === ours) return;
  const total = (of: DataSummary) =>
    `${of.trainCount + of.validationCount + of.testCount} examples (${of.source})`;
  const depends = origin.data.depends ?? [];
  const why =
    depends.length > 0
      ? `; data() depends on ${depends.join(', ')}: if that differs, give the fork the value of that run (for seed: set splitSeed)`
      : '';
  throw new DownpourError(
    'DP_DATA_MISMATCH',
    `a fork needs the data of run '${origin.run}', but this worker has different data: ${total(data)}; that run had ${total(origin.data)}${why}. To continue with other data on purpose, fork with data: 'other' (downpour lr-find --new-data)`,
  );
}

/** The text of DP_EXPERIMENT_MISMATCH. */
export function hashDifference(
  run: Pick<Agreement, 'experiment' | 'experimentHash'>,
  hash: string,
): string {
  return `experiment '${run.experiment}' of this worker has hash ${hash.slice(0, 12)}, the run's has ${run.experimentHash.slice(0, 12)}: copy the same files to all workers`;
}

function layoutDifference(run: Layout, worker: Layout): string {
  const describe = (t: TensorSpec | undefined) =>
    t ? `${t.role} '${t.name}' [${t.shape}]` : 'nothing';
  const count = Math.max(run.tensors.length, worker.tensors.length);
  for (let i = 0; i < count; i++) {
    const ours = describe(run.tensors[i]);
    const theirs = describe(worker.tensors[i]);
    if (ours !== theirs) {
      return `this worker's model differs from the run's at tensor ${i}: it has ${theirs}, the run ${ours}; use the same experiment and hyperparameters`;
    }
  }
  return "this worker's model differs from the run's in the momentum of its statistics";
}
