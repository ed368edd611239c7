import { type PartialConfig, type RunConfig, resolveConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import { bestEvaluation, type NewTrial, type StudyPlan, type Trial } from './study.ts';

/**
 * The runs of an ensemble. Its members differ by what is drawn at random (initial parameters, order of
 * examples; Deep Learning §7.11) or by their training examples; all are measured on one part that none of
 * them has seen.
 */

const MEMBER_KINDS = ['seeds', 'bagging', 'folds', 'snapshots'] as const;
export type MemberKind = (typeof MEMBER_KINDS)[number];

/** `seeds`: other initial parameters and orders. `bagging`: other resamples of the training part, too. */
export interface MemberSpec {
  readonly kind: MemberKind;
  readonly count: number;
}

export interface EnsembleSettings extends MemberSpec {
  /** Epochs of each snapshot after the first. */
  readonly cycleEpochs: number;
  /** Also the first member with its parameters averaged, exponentially and plainly, or not at all. */
  readonly averages: boolean;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

/** Members that an ensemble may have. */
const MEMBERS_MAX = 100;

/** `seeds:5`. @throws DownpourError DP_USAGE. */
export function parseMembers(text: string): MemberSpec {
  const [name, size = '5'] = text.split(':');
  const kind = MEMBER_KINDS.find((known) => known === name);
  const count = Number(size);
  if (kind && Number.isInteger(count) && count >= 2 && count <= MEMBERS_MAX) return { kind, count };
  throw new DownpourError(
    'DP_USAGE',
    `members are '${text}'; allowed: ${MEMBER_KINDS.join(', ')}, with a number from 2 to ${MEMBERS_MAX} after a colon, like seeds:5`,
  );
}

/** What member `index` has of its own. */
function differenceOf({ kind, count }: MemberSpec, index: number, own: RunConfig): PartialConfig {
  const seeds = { seed: own.seed + index, splitSeed: own.splitSeed ?? own.seed };
  if (kind === 'bagging') return { ...seeds, bootstrap: true };
  if (kind !== 'folds') return seeds;
  // One part more than members: the last one is held out of all of them.
  return { ...seeds, validation: { folds: count + 1, fold: index, apart: count } };
}

const AVERAGES: Readonly<Record<RunConfig['averaging']['kind'], string>> = {
  none: 'without an average',
  ema: 'exponential average',
  polyak: 'Polyak average of the second half',
};
type AverageKind = keyof typeof AVERAGES;

/**
 * Members, then the averages. A snapshot begins where the one before it ended, with the learning rate as
 * at the start, falling to 0 along half a cosine (Huang et al. 2017, arXiv:1704.00109); the first one is
 * trained as the experiment says.
 */
export function ensemblePlan(settings: EnsembleSettings): StudyPlan & { trialCount: number } {
  const { kind, count, averages, base } = settings;
  const own = resolveConfig(...base);
  // Those that the members are not: the first of them is what they are held against.
  const others = (Object.keys(AVERAGES) as AverageKind[]).filter(
    (kind) => kind !== own.averaging.kind,
  );
  const total = count + (averages ? others.length : 0);
  const trialAt = (i: number, trials: readonly Trial[]): NewTrial | null => {
    const [first] = trials;
    if (i >= count) return averageAt(i - count, first);
    const label = `${kind} ${i + 1} of ${count}`;
    const point = { member: i };
    if (kind !== 'snapshots') {
      const config = resolveConfig(...base, differenceOf(settings, i, own));
      return { key: `${kind}-${i}`, label, point, config };
    }
    const before = trials[i - 1];
    if (i === 0) return { key: 'snapshots-0', label, point, config: own };
    if (before?.end?.kind !== 'finished' || !first?.data) return null;
    const fork = { run: before.id, checkpoint: 'final' };
    const updates = Math.ceil(first.data.trainCount / own.minibatchSize) * settings.cycleEpochs;
    return { key: `snapshots-${i}`, label, point, fork, config: cycleOf(base, own, i, updates) };
  };
  const averageAt = (i: number, first: Trial | undefined): NewTrial | null => {
    const average = others[i]!;
    // A mean of all parameters since the first step would count the worst ones, too.
    const best = first?.end ? bestEvaluation(first) : null;
    if (!first?.end || !best) return null;
    return {
      key: average,
      label: `${first.label}, ${AVERAGES[average]}`,
      point: { average },
      config: resolveConfig(first.config, {
        averaging: { kind: average, startStep: Math.round(best.step / 2) },
      }),
    };
  };
  return {
    trialCount: total,
    decide(trials, room) {
      const start: NewTrial[] = [];
      for (let i = trials.length; i < total && start.length < room; i++) {
        const next = trialAt(i, [...trials]);
        if (next === null) break;
        start.push(next);
        // What follows may have to know of it.
        if (kind === 'snapshots') break;
      }
      // When the one that all wait for has failed, the rest cannot be.
      const stuck = trials.length > 0 && trials.every(({ end }) => end !== null);
      return { start, change: [], done: start.length === 0 && (stuck || trials.length >= total) };
    },
  };
}

function cycleOf(
  base: readonly unknown[],
  own: RunConfig,
  index: number,
  updates: number,
): RunConfig {
  return resolveConfig(...base, {
    ...{ seed: own.seed + index, splitSeed: own.splitSeed ?? own.seed },
    ...{ schedule: { kind: 'cosine', steps: updates }, warmupSteps: 0, momentumSchedule: null },
    ...{ epochsMax: null, stepsMax: updates, pauseAfter: [] },
    // The parameters at the end of the cycle are the snapshot, whatever was better on the way.
    ...{ evaluateEverySteps: updates, earlyStopping: { enabled: false } },
  });
}
