import { type PartialConfig, type RunConfig, resolveConfig } from '../../shared/config.ts';
import { shardsProblem } from '../../shared/consistency.ts';
import { frozenAt, groupShardsProblem, groupsOf, layoutWhile } from '../../shared/groups.ts';
import { createLayout, type Layout } from '../../shared/layout.ts';
import { fragmentsOf } from '../../shared/local-steps.ts';
import { type Range, rangesOfRun } from '../../shared/partition.ts';
import type { Join } from '../../shared/protocol.ts';
import { type Random, random } from '../../shared/random.ts';
import { createProblem, EXCHANGED, TENSORS } from './regression.ts';
import { OVERFLOWING, TABLES } from './simulated-rows.ts';

/** What a cluster of the simulator is: its configuration, its model, its shards and its standby, all from a seed. */

export const problem = createProblem();
/** Fragments are of 256 elements at least: one more tensor, whose elements go where their index says. */
export const WIDE = 256;
const tensorsWith = (wide: number): Join['tensors'] => [
  ...TENSORS.slice(0, 2),
  { name: 'wide', shape: [wide], role: 'trainable' },
  ...TENSORS.slice(2),
];
const WIDE_TENSORS = tensorsWith(WIDE);
/** A shard has so many at least: see shared/partition.ts. */
const SHARD_ELEMENTS = 2 ** 14;
const [SMALL, LARGE] = [TENSORS, WIDE_TENSORS].map((tensors) => createLayout(tensors));
/** Elements of the problem itself, before those of `wide`. */
export const OWN = EXCHANGED - 1;
/** What clusters are of besides asynchronous ones, as many of which there are. */
const MODES: readonly NonNullable<PartialConfig['consistency']>[] = [
  { mode: 'bounded', aheadMax: 0 },
  { mode: 'bounded', aheadMax: 2, correction: 'lookahead' },
  { mode: 'synchronous' },
  { mode: 'synchronous', aggregate: 'trimmedMean' },
  { mode: 'backup' },
  { mode: 'backup', quorum: 2, graceMs: 400, aggregate: 'median' },
  { mode: 'buffered', bufferSize: 3, damping: 'root', correction: 'compensated' },
  { mode: 'buffered', bufferSize: 2, stalenessMax: 0 },
  { mode: 'async', correction: 'delay' },
  { mode: 'async', correction: 'compensated' },
  { mode: 'async', correction: 'lookahead', velocity: 'worker' },
];
const IN_ROUNDS = { stalenessMax: null, damping: 'none', correction: 'none', depth: 1 } as const;
/** Workers take local steps in a third of the simulations. */
const LOCAL: readonly PartialConfig[] = [
  { local: { steps: 3 }, outer: { momentum: 0.5 } },
  { local: { steps: 2, after: 4 } },
  { local: { steps: 2, push: 'elastic' } },
  { local: { steps: 2, fragments: 2 }, outer: { momentum: 0.5 } },
];
/** An elastic exchange moves both sides at once: the modes that it works in. */
const ELASTIC_MODES: readonly (string | undefined)[] = [
  undefined,
  'async',
  'bounded',
  'synchronous',
  'backup',
];

/** Parameters are in groups in a third of the simulations without local steps. */
const GROUPS: readonly NonNullable<PartialConfig['groups']>[] = [
  { weights: { pattern: 'weights', learningRate: 0.5, optimizer: { kind: 'adam' } } },
  {
    bias: { pattern: 'bias', everySteps: 3 },
    weights: { pattern: 'weights', weightDecay: { rate: 0.01 } },
  },
  {
    bias: {
      pattern: 'bias',
      optimizer: { kind: 'momentum' },
      schedule: { kind: 'cosine', steps: 40 },
    },
  },
  { weights: { pattern: 'weights', frozen: { untilStep: 6 } } },
  {
    bias: { pattern: 'bias', frozen: { untilStep: 9 }, optimizer: { kind: 'adam' } },
    weights: { pattern: 'weights', everySteps: 2, learningRate: 0.5 },
  },
  {
    bias: { pattern: 'bias', frozen: true },
    weights: { pattern: 'weights', optimizer: { kind: 'momentum' }, everySteps: 2 },
  },
];

const OVERFLOWING_GROUPS: NonNullable<PartialConfig['groups']> = {
  bias: { pattern: 'bias', learningRate: OVERFLOWING, optimizer: { kind: 'sgd' } },
};
const OVERFLOWING_WIDE: NonNullable<PartialConfig['groups']> = {
  wide: { pattern: 'wide', learningRate: OVERFLOWING, optimizer: { kind: 'sgd' } },
};

/** What a standby follows with; a lag that a test of seconds reaches. */
export type Follow = { readonly mode: 'sync' | 'async'; readonly lagMax: number };

export class Cluster {
  readonly seed: number;
  readonly draw: Random;
  readonly config: PartialConfig;
  readonly resolved: RunConfig;
  readonly consistency: RunConfig['consistency'];
  /** The largest gradients that there are make the parameters overflow. */
  readonly overflows: boolean;
  /** The same on other shards than the server. */
  readonly overflowsOnShards: boolean;
  /** Parts that the parameters are exchanged in. */
  readonly fragments: number;
  readonly tensors: Join['tensors'];
  /** The layout of the model, as if nothing were frozen. */
  readonly own: Layout;
  /** As the shards have it: frozen groups are behind all others. */
  readonly layout: Layout;
  /** Elements of the tensor that is there for fragments and shards; 0: there is none. */
  readonly wide: number;
  /** Shards that a run lies on, the server among them. */
  readonly shardCount: number;
  /** Where the parameters lie on them. */
  readonly ranges: readonly Range[];
  /** Processes of shards that are not needed. */
  readonly spareShards: number;
  /** Null: there is no standby. */
  readonly follow: Follow | null;
  /** Checkpoints are on a disk that has faults. */
  readonly hasDisk: boolean;

  constructor(seed: number) {
    this.seed = seed;
    this.draw = random(seed, 1);
    const stalenessMax = this.pick([null, null, 0, 2, 5]);
    const modes = random(seed, 6);
    const mode = MODES[modes.below(2 * MODES.length)] ?? null;
    const inRounds = mode?.mode === 'synchronous' || mode?.mode === 'backup';
    const local = LOCAL[random(seed, 7).below(3 * LOCAL.length)];
    // What is kept of gradients has no meaning for the results of local steps.
    const isElastic = local?.local?.push === 'elastic';
    const isMean = mode?.aggregate === undefined;
    const isByFragments = local?.local?.fragments !== undefined;
    const fits =
      (!isElastic || (ELASTIC_MODES.includes(mode?.mode) && isMean)) &&
      (!isByFragments || mode?.mode !== 'buffered');
    const isLocal =
      local !== undefined &&
      fits &&
      !['lookahead', 'compensated', 'gap'].includes(mode?.correction ?? '');
    const sharding = random(seed, 12);
    const count = sharding.below(4) === 0 ? 2 + sharding.below(2) : 1;
    const groups = GROUPS[random(seed, 9).below(3 * GROUPS.length)];
    const given = TABLES[random(seed, 10).below(2 * TABLES.length)];
    // Rows have no average, and no other push can outvote theirs.
    const tables = isLocal || mode?.velocity !== undefined || !isMean ? undefined : given;
    // A push may make the parameters overflow when its rows are updated already.
    const overflowsHere = tables !== undefined && mode === null && random(seed, 11).below(3) === 0;
    // Or on one of several shards alone.
    const mayOverflow = count > 1 && tables === undefined && mode === null && !isLocal;
    this.overflowsOnShards = mayOverflow && random(seed, 14).below(2) === 0;
    this.overflows = overflowsHere || this.overflowsOnShards;
    const average =
      random(seed, 16).below(3) === 0
        ? ({ kind: 'polyak', startStep: 4 } as const)
        : ({ kind: 'ema', decay: 0.9 } as const);
    const disks = random(seed, 13);
    this.hasDisk = disks.below(tables ? 2 : 6) === 0;
    const config: PartialConfig = {
      minibatchSize: 4,
      ...(this.hasDisk && {
        checkpoint: { everySeconds: 1.5, everySteps: null, keepLast: 1 + disks.below(3) },
      }),
      ...(isLocal && local),
      ...(!isLocal && mode?.velocity === undefined && groups && { groups }),
      ...(overflowsHere && { groups: OVERFLOWING_GROUPS }),
      ...(this.overflowsOnShards && { groups: { ...OVERFLOWING_GROUPS, ...OVERFLOWING_WIDE } }),
      // Such a push takes the run back as often as there is one, and it learns as before.
      ...((tables || this.overflowsOnShards) && { divergence: { rollbacksMax: 100, factor: 1 } }),
      learningRate: 0.03,
      epochsMax: this.pick([2, 6, 20]),
      leaseSeconds: this.pick([3, 10, 60]),
      evaluateEverySteps: this.pick([3, 5, 11]),
      optimizer: { kind: this.pick(['sgd', 'momentum', 'adam'] as const) },
      ...(mode?.velocity && { optimizer: { kind: 'momentum' } }),
      averaging: this.pick([{ kind: 'none' }, average] as const),
      ...(tables && { tables, averaging: { kind: 'none' } }),
      consistency: {
        stalenessMax,
        damping: this.pick(['none', 'inverse']),
        correction: random(seed, 5).below(2) === 0 ? 'auto' : 'none',
        depth: random(seed, 4).below(3) === 0 ? 2 : 1,
        ...(mode && { damping: 'none', depth: 1 }),
        ...(inRounds && IN_ROUNDS),
        ...mode,
        ...(isLocal && (isElastic || isByFragments) && { depth: 1 }),
        ...(this.overflows && { damping: 'none', correction: 'none' }),
      },
      nonFiniteMax: 1_000,
      earlyStopping: {
        patience: this.pick([1, 3, 100]),
        afterStop: this.pick(['restore', 'retrain', 'continue'] as const),
        continueStepsMax: 20,
      },
    };
    this.config = config;
    const resolved = resolveConfig(config);
    this.resolved = resolved;
    this.consistency = resolved.consistency;
    this.fragments = fragmentsOf(resolved);
    const mayShard = !overflowsHere && shardsProblem(resolved) === null;
    this.shardCount = mayShard && groupShardsProblem(resolved) === null ? count : 1;
    const isCut = this.shardCount > 1 && (tables === undefined || sharding.below(2) === 0);
    if (isCut) {
      this.wide = SHARD_ELEMENTS * this.shardCount;
      this.tensors = tensorsWith(this.wide);
      this.own = createLayout(this.tensors);
    } else {
      this.wide = this.fragments > 1 ? WIDE : 0;
      this.tensors = this.fragments > 1 ? WIDE_TENSORS : TENSORS;
      this.own = this.fragments > 1 ? LARGE! : SMALL!;
    }
    const placedIn = groupsOf(resolved);
    // What is frozen on shards stays so.
    this.layout =
      this.shardCount > 1
        ? layoutWhile(this.tensors, placedIn, frozenAt(placedIn, 0), tables !== undefined)
        : this.own;
    const follows = [{ mode: 'sync', lagMax: 0 } as const, { mode: 'async', lagMax: 2 } as const];
    this.ranges = rangesOfRun(this.layout, this.shardCount, tables !== undefined);
    // A server with shards has no standby; one with a disk is started again.
    const isAlone = this.shardCount > 1 || this.hasDisk;
    this.follow = isAlone ? null : (follows[random(seed, 2).below(6)] ?? null);
    this.spareShards = this.shardCount > 1 ? sharding.below(2) : 0;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.draw.below(values.length)]!;
  }
}
