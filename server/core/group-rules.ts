import type { RunConfig } from '../../shared/config.ts';
import {
  type GroupFields,
  groupOf,
  groupsOf,
  type ParameterGroup,
  rulesOf,
  trainedFrom,
} from '../../shared/groups.ts';
import type { PlacedTensor } from '../../shared/layout.ts';
import { type Memory, regionBytes } from '../../shared/memory.ts';
import {
  type DecayRange,
  decayRanges,
  type VelocityUse,
  velocitySymbol,
} from '../../shared/optimizer.ts';
import type { OptimizerConfig } from '../../shared/optimizer-config.ts';
import {
  type Clip,
  createFusedOptimizer,
  type FusedOptimizer,
  type FusedRule,
  optimizerSymbols,
  type Staged,
  type Where,
} from './fused.ts';
import type { Kernels } from './kernels.ts';
import { gradientRule } from './outer.ts';
import { factorAt, warmUpAt } from './schedule.ts';
import type { GroupStep, StepOptions } from './step-options.ts';

/**
 * Groups of parameters: each has ranges of the vector, and an update is one pass over them with the rate and the rule of
 * each. All rules share their state: a vector for each symbol, of which a rule uses the ranges that are its own.
 */

type RuleConfig = Pick<
  RunConfig,
  'optimizer' | 'weightDecay' | 'groups' | 'local' | 'outer' | 'consistency'
>;

/** Symbols of the state that a checkpoint must keep, those of all groups. */
export function stateSymbols(config: Omit<RuleConfig, 'weightDecay'>): readonly string[] {
  if (!groupsOf(config)) return optimizerSymbols(gradientRule(config));
  return [...new Set(rulesOf(config).flatMap(optimizerSymbols))];
}

/** What `createRules` takes of the memory. @param n trainable parameters. @param velocities of workers. */
export const rulesBytes = (
  config: Omit<RuleConfig, 'weightDecay'>,
  n: number,
  velocities = 0,
): number => (stateSymbols(config).length + velocities) * regionBytes(4 * n);

/** An update rule has momentum. */
export const hasMomentum = (config: GroupFields & Pick<RuleConfig, 'optimizer'>): boolean =>
  rulesOf(config).some(({ kind }) => velocitySymbol(kind) !== null);

interface Room {
  readonly memory: Memory;
  readonly kernels: Kernels;
  /** Address of the parameters. */
  readonly theta: number;
}

/** How gradients move the parameters of a layout. @param velocities of workers: slots from 1 to so many may be used. */
export function createRules(
  config: RuleConfig,
  {
    trainableSize: n,
    tensors,
  }: { readonly trainableSize: number; readonly tensors: readonly PlacedTensor[] },
  room: Room,
  velocities: number,
): FusedOptimizer {
  if (groupsOf(config)) return new GroupRules(config, n, tensors, room, velocities);
  const decay = decayRanges(config.weightDecay, tensors);
  return createFusedOptimizer(gradientRule(config), n, decay, room, velocities);
}

interface GroupUpdate {
  step: number;
  learningRate: number;
  momentum: number | undefined;
  velocity: VelocityUse | undefined;
}

/** The ranges of one group, and how they are updated. */
interface GroupPart {
  /** Null: tensors without a group. */
  readonly group: ParameterGroup | null;
  readonly spans: readonly DecayRange[];
  readonly rule: FusedRule;
  /** The update that is made: one object for all updates. */
  readonly options: GroupUpdate;
  isDue: boolean;
}

class GroupRules implements FusedOptimizer {
  readonly slots: Readonly<Record<string, Float32Array>>;
  readonly velocities = new Map<number, Float32Array>();
  readonly #n: number;
  readonly #room: Room;
  readonly #addresses: readonly number[];
  readonly #parts: readonly GroupPart[];
  readonly #bytes: Uint8Array;
  readonly #whole: Where;

  constructor(
    config: RuleConfig,
    n: number,
    tensors: readonly PlacedTensor[],
    room: Room,
    velocities: number,
  ) {
    const { memory, kernels, theta } = room;
    this.#n = n;
    this.#room = room;
    this.#bytes = new Uint8Array(memory.memory.buffer);
    this.#whole = { from: theta, to: theta, start: 0, end: n };
    const addresses = new Map(stateSymbols(config).map((symbol) => [symbol, memory.take(4 * n)]));
    this.slots = Object.fromEntries(
      [...addresses].map(([symbol, address]) => [symbol, memory.floats(address, n)]),
    );
    this.#addresses = Array.from({ length: velocities }, () => memory.take(4 * n));
    const state = {
      addressOf: (symbol: string) => addresses.get(symbol)!,
      velocities: this.#addresses,
      used: this.velocities,
    };
    this.#parts = partsOf(config, tensors).map(({ group, optimizer, spans }) => ({
      ...{ group, spans },
      rule: createFusedOptimizer(optimizer, n, [], { memory, kernels, theta }, 0, { spans, state }),
      options: { step: 0, learningRate: 0, momentum: undefined, velocity: undefined },
      isDue: true,
    }));
  }

  velocity(slot: number): Float32Array {
    const values = this.#room.memory.floats(this.#addresses[slot - 1]!, this.#n);
    this.velocities.set(slot, values);
    return values;
  }

  apply(gradient: Staged, clip: Clip, options: StepOptions, where = this.#whole): boolean {
    if (where.start === 0) this.#begin(options);
    let finite = true;
    for (const { rule, spans, options: own, isDue } of this.#parts) {
      if (isDue) {
        if (!rule.apply(gradient, clip, own as StepOptions, where)) finite = false;
        continue;
      }
      this.#leave(spans, where);
      if (options.velocity) rule.skip(options.velocity, where);
    }
    return finite;
  }

  /** Parameters that this step does not change come to where the others are written. */
  #leave(spans: readonly DecayRange[], { from, to, start, end }: Where): void {
    if (from === to) return;
    for (const span of spans) {
      const first = Math.max(start, span.start);
      const last = Math.min(end, span.end);
      if (first < last) this.#bytes.copyWithin(to + 4 * first, from + 4 * first, from + 4 * last);
    }
  }

  #begin(options: StepOptions): void {
    const step = options.groups;
    if (!step) throw new Error('an update of groups needs the step of their schedules');
    if (options.velocity) this.#use(options.velocity);
    for (const part of this.#parts) {
      const { group, options: own } = part;
      const due = group ? updatesOf(group, step.scheduleStep, options.step) : options.step;
      part.isDue = due !== null;
      if (due === null) continue;
      const rate = group ? groupRateOf(group, step, options.learningRate) : options.learningRate;
      own.step = due;
      own.learningRate = rate;
      own.momentum = options.momentum;
      own.velocity = options.velocity;
    }
  }

  /** All shards keep the velocities that one keeps, also those that have none of the parameters with momentum. */
  #use({ slot, freed = [] }: VelocityUse): void {
    for (const other of freed) this.velocities.delete(other);
    if (slot > 0 && !this.velocities.has(slot)) this.velocity(slot);
  }

  reset(): void {
    for (const { rule } of this.#parts) rule.reset();
    this.velocities.clear();
  }
}

/**
 * The number of a group's update, from 1, since its state began; null: this step does not update it.
 * @param scheduleStep updates that schedules have counted before. @param step of the run's optimizer, from 1.
 */
function updatesOf(group: ParameterGroup, scheduleStep: number, step: number): number | null {
  const { everySteps } = group;
  const from = trainedFrom(group);
  const since = scheduleStep - from;
  if (since < 0 || (since + 1) % everySteps !== 0) return null;
  // Before the state of the optimizer began anew.
  const before = Math.max(0, scheduleStep + 1 - step - from);
  return (since + 1) / everySteps - Math.floor(before / everySteps);
}

/** The learning rate of a group. @param learningRate of the run at this step, with its schedule. */
export function groupRateOf(
  group: ParameterGroup,
  { scheduleStep, unscheduledRate }: GroupStep,
  learningRate: number,
): number {
  const { schedule, learningRate: factor } = group;
  if (!schedule) return factor * learningRate;
  const since = Math.max(0, scheduleStep - trainedFrom(group));
  return factor * unscheduledRate * factorAt(schedule, since, 1);
}

/** The rate that a group's own schedule begins with. */
export const unscheduledRateOf = (
  { learningRate, warmupSteps }: Pick<RunConfig, 'learningRate' | 'warmupSteps'>,
  scheduleStep: number,
): number => learningRate * warmUpAt(scheduleStep, warmupSteps);

/** Which ranges are whose. Frozen tensors are behind them. */
function partsOf(
  config: RuleConfig,
  tensors: readonly PlacedTensor[],
): readonly {
  readonly group: ParameterGroup | null;
  readonly optimizer: OptimizerConfig;
  readonly spans: readonly DecayRange[];
}[] {
  const groups = groupsOf(config)!;
  const trainable = tensors.filter(({ role }) => role === 'trainable');
  return [null, ...Object.keys(groups)].flatMap((name) => {
    const group = name === null ? null : groups[name]!;
    const own = trainable.filter((tensor) => groupOf(tensor.name, groups) === name);
    if (own.length === 0) return [];
    const decay = group?.weightDecay;
    const weightDecay = decay ? { ...config.weightDecay, ...decay } : config.weightDecay;
    const spans = spansWithin(own, decayRanges(weightDecay, own));
    return [{ group, optimizer: group?.optimizer ?? config.optimizer, spans }];
  });
}

/** All elements of some tensors, those side by side as one range where they decay alike. */
function spansWithin(tensors: readonly PlacedTensor[], decay: readonly DecayRange[]): DecayRange[] {
  const spans: DecayRange[] = [];
  for (const { offset, size } of tensors) {
    if (size === 0) continue;
    const own = decay.find(({ start }) => start === offset);
    const last = spans.at(-1);
    const { rate = 0, l1 = 0 } = own ?? {};
    if (last?.end === offset && last.rate === rate && (last.l1 ?? 0) === l1) {
      spans[spans.length - 1] = { ...last, end: offset + size };
    } else spans.push({ start: offset, end: offset + size, rate, ...(l1 > 0 ? { l1 } : {}) });
  }
  return spans;
}
