import type { RunConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { DataSummary } from '../shared/protocol.ts';
import { canonical } from './record.ts';

/** Trials are compared with each other, so all are of the same data: also those of a study that goes on another day. */

interface OfData {
  readonly id: string;
  readonly config: RunConfig;
  readonly data: DataSummary | null;
}

/**
 * Looks only at trials whose data must be the same: `data()` may make others of another seed or of other
 * hyperparameters, where it looks at them.
 * @throws DownpourError DP_DATA_MISMATCH: they are not.
 */
export function mustShareData(trials: readonly OfData[]): void {
  const first = new Map<string, OfData>();
  for (const trial of trials) {
    // A worker of an older release tells nothing but what it trained on.
    if (trial.data?.rawFingerprint === undefined) continue;
    const key = canonical(settingsOf(trial.config, trial.data.depends ?? []));
    const known = first.get(key);
    if (!known) first.set(key, trial);
    else if (known.data!.rawFingerprint !== trial.data.rawFingerprint) {
      throw new DownpourError(
        'DP_DATA_MISMATCH',
        `the data have changed during the study: ${known.id} has ${told(known.data!)}, but ${trial.id} has ${told(trial.data)}. Their results cannot be compared: start a new study on the current data with another --name`,
      );
    }
  }
}

/** The values of what `data()` looked at. */
function settingsOf(
  { seed, splitSeed, hyperparameters }: RunConfig,
  depends: readonly string[],
): unknown {
  return depends.map((name) => [
    name,
    name === 'seed'
      ? (splitSeed ?? seed)
      : (hyperparameters[name.slice('hyperparameters.'.length)] ?? null),
  ]);
}

function told({ trainCount, validationCount, testCount, source }: DataSummary): string {
  return `${trainCount} training, ${validationCount} validation and ${testCount} test examples (${source})`;
}
