import { createHash } from 'node:crypto';
import { BUNDLE_HEADER } from '../../shared/bundle.ts';
import { RESIDUAL_DECAY_HEADER, type RunConfig, residualDecayOf } from '../../shared/config.ts';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';
import { GROUPS_HEADER, groupsOf } from '../../shared/groups.ts';
import { offeredProtocols } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  FRAGMENTS_HEADER,
  fragmentsOf,
  LOCAL_STEPS_HEADER,
  localOf,
  localText,
} from '../../shared/local-steps.ts';
import type { Hello } from '../../shared/protocol.ts';
import type { Bundle } from '../../shared/rest.ts';
import { ROW_SHARDS_HEADER, TABLES_HEADER, tablesOf } from '../../shared/tables.ts';
import { hashDifference } from '../core/agreement.ts';
import type { Run } from '../core/run.ts';

/** Which runs a worker can serve, by what its `hello` says. */

/** What tells a worker's pushes from all others': its name, its process, and whose token it has, if there are tokens. */
export function workerKey({ worker, incarnation }: Hello, holder: string | null): string {
  if (holder === null) return `${worker}/${incarnation}`;
  return `${worker}/${incarnation}/${createHash('sha256').update(holder).digest('hex').slice(0, 16)}`;
}

/** What an experiment of a `hello` takes beside its letters. */
const ENTRY_BYTES = 100;

/** What a `hello` takes in memory. */
export function helloBytes({ experiments }: Hello): number {
  let bytes = 0;
  for (const [name, hash] of Object.entries(experiments)) {
    bytes += name.length + hash.length + ENTRY_BYTES;
  }
  return bytes;
}

/** Whether the worker has the experiment: its files, or the bundle that they were sent as. */
export function hasExperiment({ experiments }: Hello, { options }: Run): boolean {
  const hash = experiments[options.experiment];
  return hash !== undefined && (hash === options.experimentHash || hash === options.bundle);
}

/**
 * A worker without the experiment may also be one that fetches it: it is told by `idle` what it misses.
 * @param wasSent the server has the bundle. @param fetches bundles.
 * @throws DownpourError DP_EXPERIMENT_UNKNOWN, DP_EXPERIMENT_MISMATCH.
 */
export function mustHaveExperiment(
  hello: Hello,
  run: Run,
  { wasSent, fetches }: { readonly wasSent: boolean; readonly fetches: boolean },
): void {
  if (hasExperiment(hello, run) || (wasSent && fetches)) return;
  const { experiment } = run.options;
  const hash = hello.experiments[experiment];
  const other = wasSent ? '; or start it with --accept-experiments: the experiment was sent' : '';
  if (hash === undefined) {
    throw new DownpourError(
      'DP_EXPERIMENT_UNKNOWN',
      `run '${run.id}' needs experiment '${experiment}', which this worker does not have: add its folder with --experiments${other}`,
    );
  }
  throw new DownpourError('DP_EXPERIMENT_MISMATCH', hashDifference(run.options, hash) + other);
}

/** What a worker says in its handshake that it can do. */
export interface Abilities {
  /** Whether it fetches experiments that were sent; null: it knows nothing of them. */
  readonly bundles: boolean | null;
  /** It takes several steps between two exchanges. */
  readonly localSteps: boolean;
  /** It knows groups of parameters. */
  readonly groups: boolean;
  /** It exchanges parameters by fragments. */
  readonly fragments: boolean;
  /** It lets its compression error fade. */
  readonly residualDecay: boolean;
  /** It knows tables of rows. */
  readonly tables: boolean;
  /** It knows how their rows are cut over shards. */
  readonly rowShards: boolean;
}

/** @param headers of the handshake. */
export function abilitiesOf(
  headers: Readonly<Record<string, string | string[] | undefined>>,
): Abilities {
  const bundles = headers[BUNDLE_HEADER];
  // A page sends no headers of its own.
  const offered = offeredProtocols(String(headers['sec-websocket-protocol'] ?? ''));
  return {
    bundles: bundles === undefined ? null : bundles === 'yes',
    localSteps: headers[LOCAL_STEPS_HEADER] === 'yes',
    groups: headers[GROUPS_HEADER] === 'yes' || offered.includes(GROUPS_HEADER),
    fragments: headers[FRAGMENTS_HEADER] === 'yes',
    residualDecay: headers[RESIDUAL_DECAY_HEADER] === 'yes',
    tables: headers[TABLES_HEADER] === 'yes' || offered.includes(TABLES_HEADER),
    rowShards: headers[ROW_SHARDS_HEADER] === 'yes',
  };
}

/** What a worker cannot do that the run needs; null: it can do all. */
export function lackOf(
  { localSteps, fragments, residualDecay, groups: knowsGroups, ...able }: Abilities,
  { id, config, rowParts }: Pick<Run, 'id' | 'config'> & Partial<Pick<Run, 'rowParts'>>,
): DownpourError | null {
  const local = localOf(config);
  const groups = groupsOf(config);
  if (groups && !knowsGroups) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `run '${id}' has groups of parameters (${Object.keys(groups).join(', ')}), and this worker does not know them: it is of an older release or of another program; start \`downpour work\` of this release, load the page of a browser again, or create the run without groups`,
    );
  }
  const tables = tablesOf(config);
  if (tables && !able.tables) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `run '${id}' has tables of rows (${Object.keys(tables).join(', ')}), and this worker does not know them: it is of an older release or of another program; start \`downpour work\` of this release, load the page of a browser again, or create the run without tables`,
    );
  }
  if (rowParts && !able.rowShards) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `run '${id}' has tables of rows (${Object.keys(tables!).join(', ')}) on several shards, and this worker looks for all rows on the server: it is of an older release or of another program; start \`downpour work\` of this release, or a server without shards`,
    );
  }
  const decay = residualDecayOf(config.compression.push);
  if (decay < 1 && !residualDecay) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `run '${id}' has compression.push.residualDecay ${decay}, and this worker keeps all of its compression error: it is in a browser, of an older release or of another program; start \`downpour work\` of this release, or create the run with residualDecay 1`,
    );
  }
  if (!local) return null;
  const count = fragmentsOf(config);
  if (localSteps && !fragments && count > 1) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `run '${id}' has local.fragments ${count}, and this worker exchanges all parameters at once: it is of an older release or of another program; start \`downpour work\` of this release, or create the run with local.fragments 1`,
    );
  }
  if (localSteps) return null;
  return new DownpourError(
    'DP_PROTOCOL_VERSION',
    `in run '${id}' ${localText(config)}, and this worker cannot take steps by itself: it is in a browser, of an older release or of another program; start \`downpour work\` of this release, or create the run without this field`,
  );
}

/** Leases that a worker may hold: those under way, and the one whose examples it prepares. */
export function aheadOf(config: RunConfig): number {
  const { depth } = config.consistency;
  // One with local steps is long, and its first examples are there in no time.
  return localOf(config) ? depth : depth + 1;
}

/** What an `idle` says of runs that this worker could serve if it had their experiments. @param bundleOf what it may fetch. */
export function missingExperiments(
  hello: Hello,
  unfinished: readonly Run[],
  bundleOf: (run: Run) => Bundle | null,
) {
  return unfinished
    .filter((run) => (hello.run === null || hello.run === run.id) && !hasExperiment(hello, run))
    .slice(-LIMITS.missingToldMax)
    .map((run) => {
      const { experiment, experimentHash } = run.options;
      const bundle = bundleOf(run);
      return { run: run.id, experiment, experimentHash, ...(bundle && { bundle }) };
    });
}

/** What may be wrong between a worker and one run, while another run may have the worker's model and data. */
const DIFFERENT: readonly ErrorCode[] = ['DP_LAYOUT_MISMATCH', 'DP_DATA_MISMATCH'];

/** Whether a worker that could not join may still serve another run. */
export function mayServeOthers(error: unknown, hello: Hello): error is DownpourError {
  return error instanceof DownpourError && DIFFERENT.includes(error.code) && hello.run === null;
}
