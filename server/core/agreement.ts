import { DownpourError } from '../../shared/errors.ts';
import type { Layout, TensorSpec } from '../../shared/layout.ts';
import type { DataSummary } from '../../shared/protocol.ts';

/** What all workers of a run must have in common: the first one's experiment, model and data. */
export interface Agreement {
  readonly experiment: string;
  readonly experimentHash: string;
  readonly layout: Layout | null;
  readonly data: DataSummary | null;
}

/**
 * Compares a worker with the run it joins.
 * @throws DownpourError DP_EXPERIMENT_MISMATCH, DP_LAYOUT_MISMATCH or DP_DATA_MISMATCH that names the
 *   difference.
 */
export function checkAgreement(
  run: Agreement,
  worker: { readonly experimentHash: string; readonly layout: Layout; readonly data: DataSummary },
): void {
  if (worker.experimentHash !== run.experimentHash) {
    throw new DownpourError('DP_EXPERIMENT_MISMATCH', hashDifference(run, worker.experimentHash));
  }
  if (run.layout && worker.layout.hash !== run.layout.hash) {
    throw new DownpourError('DP_LAYOUT_MISMATCH', layoutDifference(run.layout, worker.layout));
  }
  if (run.data && !sameData(run.data, worker.data)) {
    throw new DownpourError(
      'DP_DATA_MISMATCH',
      `this worker's data differ from the run's: ${describeData(worker.data)}; the run has ${describeData(run.data)}`,
    );
  }
}

/** The text of DP_EXPERIMENT_MISMATCH. */
export function hashDifference(
  run: Pick<Agreement, 'experiment' | 'experimentHash'>,
  hash: string,
): string {
  return `experiment '${run.experiment}' of this worker has hash ${hash.slice(0, 12)}, the run's has ${run.experimentHash.slice(0, 12)}: copy the same files to all workers`;
}

function sameData(a: DataSummary, b: DataSummary): boolean {
  return (
    a.trainCount === b.trainCount &&
    a.validationCount === b.validationCount &&
    a.testCount === b.testCount &&
    a.fingerprint === b.fingerprint
  );
}

function describeData(data: DataSummary): string {
  return `${data.trainCount} training, ${data.validationCount} validation and ${data.testCount} test examples, fingerprint ${data.fingerprint.slice(0, 16)} (${data.source})`;
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
