import type { RunConfig } from '../../../shared/config.ts';
import type { DataFacts } from '../../../shared/data-facts.ts';
import { type Labels, NO_LABELS } from '../../../shared/labels.ts';
import type { TensorSpec } from '../../../shared/layout.ts';
import type { DataSummary, ErrorMeasure, LeasePart, Phase } from '../../../shared/protocol.ts';
import type { Evaluation, Rollback } from '../../../shared/rest.ts';
import { Correction } from '../correction.ts';
import { Curves } from '../curves.ts';
import { EarlyStopping } from '../early-stopping.ts';
import type { ParametersState } from '../kept-vectors.ts';
import { Leases } from '../leases.ts';
import { Collection } from '../modes/collection.ts';
import { createMode } from '../modes/create.ts';
import type { Mode } from '../modes/mode.ts';
import { RateWatch } from '../modes/rate-watch.ts';
import { Robust } from '../robust.ts';
import { createSchedule, type Schedule, type ScheduleState } from '../schedule.ts';
import { SentSlots } from '../sent-slots.ts';
import type { RunShards } from '../shard.ts';
import type { RunTablesState } from '../tables/run-tables.ts';
import type { Seen } from './calls.ts';
import { emptyTally, Roster } from './roster.ts';
import { type CapturesInUse, Vector } from './vector.ts';

/**
 * What a run is at one moment. Each field stands once, in the group that says what a checkpoint does with it; checkpoint,
 * restoring, replica and the types of all of them are derived. What decides by numbers of its own is a component, and
 * each component stands once in `COMPONENTS`.
 */

export interface RunOptions {
  readonly id: string;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly config: RunConfig;
  readonly createdAt: string;
  /** Whose parameters it began with. */
  readonly fork?: ForkOrigin;
  /** Whose trial it is. */
  readonly study?: string;
  /** SHA-256 of the bundle that its experiment was sent as. */
  readonly bundle?: string;
}

export interface ForkOrigin {
  readonly run: string;
  readonly step: number;
  /** The tensor file of the checkpoint. */
  readonly checkpoint: string;
  /** Absent: `same`. */
  readonly data?: 'same' | 'other';
}

/** What one worker alone is asked for: see handed.ts. */
export interface Handed {
  /** Who has it; null: nobody. */
  worker: string | null;
  /** When somebody else may have it; of what nobody can have, when it is given up; null: neither. */
  deadline: number | null;
  /** Who had it and was out of time. */
  late: readonly string[];
  /** Who has given what cannot be used, and why. */
  refused: readonly (readonly [worker: string, why: string])[];
}

export interface PendingEvaluation extends Handed {
  readonly id: number;
  readonly purpose: 'validation' | 'target' | 'test';
  readonly part: LeasePart;
  readonly step: number;
  readonly phaseStep: number;
  readonly epoch: number;
  readonly generation: number;
  /** Number of the captured parameters. */
  readonly capture: number;
}

export interface Best {
  readonly evaluation: Evaluation;
  /** i* of Algorithm 7.1, in updates since the phase began. */
  readonly phaseStep: number;
  readonly schedule: ScheduleState;
  /** Number of the captured parameters; in a checkpoint they have a name. */
  readonly capture: number;
}

// Fields.

/** Every checkpoint has them. */
const kept = () => ({
  phase: 'waiting' as Phase,
  resumePhase: 'waiting' as Phase,
  reason: 'waiting for a worker to create the parameters',
  data: null as DataSummary | null,
  step: 0,
  /** The step at which the present phase began: its own updates count from there. */
  phaseStart: 0,
  /** Added to the phase's updates for the schedule: `continue` goes on where the best was. */
  scheduleOffset: 0,
  generation: 1,
  /** How often fresh parameters were made: training, and `retrain`. */
  initialisations: 0,
  evaluationDue: false,
  /** In updates of the phase. */
  nextEvaluation: 0,
  evaluationsGiven: 0,
  /** Set: no more minibatches in this phase, and why. */
  ending: null as string | null,
  /** Training time up to `startedMs`, in a checkpoint up to its own moment. */
  seconds: 0,
  nonFiniteInRow: 0,
  stoppedAt: null as number | null,
  target: null as number | null,
  lastEvaluatedStep: -1,
  pushes: emptyTally(),
  best: null as Best | null,
  test: null as Evaluation | null,
});

/** They came later. @param older a checkpoint that lacks some, to take these for them; null: a run begins. */
const later = (older: { readonly phaseStart: number } | null) => ({
  /** What the parameters must be used with; null: no worker has told. */
  facts: null as DataFacts | null,
  /** For a fork: what the run that it began with was trained on. */
  originData: null as DataSummary | null,
  errorMeasure: null as ErrorMeasure | null,
  /** When the test part was looked at, ISO 8601; null: not yet, or by an older release. */
  testedAt: null as string | null,
  /** Which life of the server it is, counted over all that have held the state. */
  life: 1,
  /** Lower generations belong to earlier lives. */
  firstGeneration: older ? 0 : 1,
  /** With lives before this one, in a checkpoint with all. */
  stepsLost: 0,
  rollbacks: [] as readonly Rollback[],
  /** Loss of the first minibatch, at the initial parameters. In a checkpoint of an older release: its best has been good enough so far. */
  initialLoss: (older ? Number.MAX_VALUE : null) as number | null,
  /** What divergence has left of the learning rate. */
  rateFactor: 1,
  /** The step at which the optimizer's state began. */
  optimizerStart: older?.phaseStart ?? 0,
  /** Epoch at which the run finished: a refit that is not evaluated has epochs too. */
  epochAtEnd: null as number | null,
  /** Diverged before there was a best: the same initial parameters are asked for again. */
  startingAnew: false,
  labels: NO_LABELS as Labels,
});

/** A checkpoint leaves them out; a replica has them. */
const passing = () => ({
  /** Who is asked for initial parameters. */
  grant: null as (Handed & { readonly id: number }) | null,
  grantsGiven: 0,
  evaluation: null as PendingEvaluation | null,
  captures: 0,
  /** What this life began with: the newest checkpoint. */
  restored: { step: 0, generation: 1, firstGeneration: 0 } as Seen & {
    readonly firstGeneration: number;
  },
  /** Steps after the checkpoint, by the life since then that applied them. */
  lost: [] as readonly (readonly [life: number, steps: number])[],
  /** Since when its time runs; null: it stands still. */
  startedMs: null as number | null,
  /** The latest that was told. */
  nowMs: 0,
});

type KeptFields = ReturnType<typeof kept>;
type LaterFields = ReturnType<typeof later>;
export type RunFields = KeptFields & LaterFields & ReturnType<typeof passing>;
const SAVED = Object.keys({ ...kept(), ...later(null) }) as (
  | keyof KeptFields
  | keyof LaterFields
)[];

export const newFields = (): RunFields => ({ ...kept(), ...later(null), ...passing() });

/** The value at its moment: those that are changed in place are copied. */
function copyOf<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value;
  return (Array.isArray(value) ? [...value] : { ...value }) as T;
}

function savedFields(fields: RunFields, now: number): SavedFields {
  const saved = Object.fromEntries(SAVED.map((name) => [name, copyOf(fields[name])]));
  const { best, evaluation } = fields;
  // A run that nobody has labelled has none.
  if (fields.labels.edits === 0) delete saved.labels;
  return {
    ...(saved as KeptFields & LaterFields),
    // An evaluation that is under way is asked for again.
    evaluationDue: fields.evaluationDue || evaluation?.purpose === 'validation',
    seconds: secondsOf(fields, now),
    stepsLost: stepsLost(fields),
    best: best && withoutCapture(best),
  };
}

function withoutCapture({ capture: _, ...best }: Best): Omit<Best, 'capture'> {
  return best;
}

/** Without the best, whose parameters come beside it. */
export function openFields(state: RunState): RunFields {
  const fields: RunFields = { ...kept(), ...later(state), ...passing() };
  for (const name of SAVED) {
    const value = state[name];
    if (value !== undefined) Object.assign(fields, { [name]: copyOf(value) });
  }
  fields.best = null;
  return fields;
}

/** Training time, over all processes that have held the run, while it was not over. */
export function secondsOf({ seconds, startedMs }: RunFields, now: number): number {
  return seconds + (startedMs === null ? 0 : (now - startedMs) / 1000);
}

/** Updates that were applied and are gone, with crashes of the server, as far as is known. */
export function stepsLost({ stepsLost, lost }: RunFields): number {
  let steps = stepsLost;
  for (const [, more] of lost) steps += more;
  return steps;
}

// Components.

/** What decides by numbers of its own. */
export class Components {
  schedule: Schedule;
  /** Null: there is nothing to give out. */
  leases: Leases | null = null;
  earlyStopping: EarlyStopping;
  observations = new Curves();
  readonly robust: Robust;
  readonly correction: Correction;
  /** Null: each push is applied the moment it is admitted. */
  readonly mode: Mode | null;
  /** Pushes that wait for their update. */
  readonly collection = new Collection();
  readonly rateWatch: RateWatch;
  readonly sent: SentSlots;
  readonly roster = new Roster();
  readonly vector: Vector;

  constructor({ id, config }: RunOptions, shards: RunShards | null) {
    this.schedule = createSchedule(config.schedule, config);
    this.earlyStopping = new EarlyStopping(config.earlyStopping);
    this.robust = new Robust(config);
    this.correction = new Correction(config);
    this.mode = createMode(config.consistency);
    this.rateWatch = new RateWatch(config);
    this.sent = new SentSlots(config.consistency);
    this.vector = new Vector(id, config, shards);
  }
}

/** How a component is written down and opened: in a checkpoint, and in a replica where that keeps more. */
interface ComponentKind<S, R> {
  readonly save: (components: Components) => S;
  /** @param lives of the server since it was saved. */
  readonly open: (components: Components, saved: S, lives: number) => void;
  readonly replica: (components: Components) => R;
  readonly replicate: (components: Components, replica: R) => void;
}
const kindOf = <S, R>(kind: ComponentKind<S, R>): ComponentKind<S, R> => kind;
const alike = <S>(
  save: ComponentKind<S, S>['save'],
  open: (components: Components, saved: S) => void,
): ComponentKind<S, S> => ({
  ...{ save, open },
  ...{ replica: save, replicate: open },
});

const COMPONENTS = {
  schedule: alike(
    ({ schedule }) => schedule.state(),
    ({ schedule }, saved) => schedule.restore(saved),
  ),
  leases: kindOf({
    save: ({ leases }) => leases?.state() ?? null,
    open: (components, saved, lives) => {
      components.leases = saved && Leases.restore(saved, lives);
    },
    replica: ({ leases }) => leases?.replica() ?? null,
    replicate: (components, replica) => {
      components.leases = replica && Leases.replicate(replica);
    },
  }),
  earlyStopping: alike(
    ({ earlyStopping }) => earlyStopping.state,
    ({ earlyStopping }, saved) => earlyStopping.restore(saved),
  ),
  observations: alike(
    ({ observations }) => observations.state(),
    (components, saved) => {
      components.observations = new Curves(saved);
    },
  ),
  workers: kindOf({
    save: ({ roster }) => roster.state(),
    open: ({ roster }, saved) => roster.restore(saved),
    replica: ({ roster }) => roster.replica(),
    replicate: ({ roster }, replica) => roster.replicate(replica),
  }),
  correction: kindOf({
    save: ({ correction }) => correction.state(),
    open: ({ correction }, saved) => correction.restore(saved),
    replica: ({ correction }) => correction.replica(),
    replicate: ({ correction }, replica) => correction.replicate(replica),
  }),
  mode: kindOf({
    save: ({ mode }) => mode?.state(),
    open: ({ mode }, saved) => {
      if (saved) mode?.restore(saved);
    },
    replica: ({ mode }) => mode?.replica() ?? null,
    replicate: ({ mode }, replica) => {
      if (replica) mode?.replicate(replica);
    },
  }),
  collected: alike(
    ({ collection }) => (collection.count > 0 ? collection.state() : undefined),
    ({ collection }, saved) => collection.restore(saved ?? []),
  ),
  sent: kindOf({
    save: ({ sent }) => (sent.isUsed ? sent.state() : undefined),
    open: ({ sent }, saved) => {
      if (saved) sent.restore(saved);
    },
    replica: ({ sent }) => sent.replica(),
    replicate: ({ sent }, replica) => sent.replicate(replica),
  }),
};
/** A checkpoint leaves it out. */
const PASSING_COMPONENTS = {
  robust: {
    replica: ({ robust }: Components) => robust.state(),
    replicate: ({ robust }: Components, replica: ReturnType<Robust['state']>) =>
      robust.restore(replica),
  },
};
const REPLICATED = { ...COMPONENTS, ...PASSING_COMPONENTS };

type Saved<P> = {
  readonly [K in keyof P]: P[K] extends { save: (components: Components) => infer S } ? S : never;
};
type Replicated<P> = {
  readonly [K in keyof P]: P[K] extends { replica: (components: Components) => infer R }
    ? R
    : never;
};

function writtenBy<K extends string>(
  kinds: Readonly<
    Record<string, Readonly<Partial<Record<K, (components: Components) => unknown>>>>
  >,
  how: K,
  components: Components,
): unknown {
  return Object.fromEntries(
    Object.entries(kinds).map(([name, kind]) => [name, kind[how]!(components)]),
  );
}

/** Absent components stay as they are: an older release had none. */
export function openComponents(components: Components, state: RunState, lives: number): void {
  for (const [name, { open }] of Object.entries(COMPONENTS) as [
    keyof typeof COMPONENTS,
    ComponentKind<unknown, unknown>,
  ][]) {
    if (state[name] !== undefined) open(components, state[name], lives);
  }
}

// Checkpoint and replica.

type SavedFields = Omit<KeptFields, 'best'> & { best: Omit<Best, 'capture'> | null } & LaterFields;

/** The JSON half of a checkpoint; the other half are the tensors. */
export type RunState = {
  readonly version: 1;
  readonly options: RunOptions;
  readonly tensors: readonly TensorSpec[] | null;
  readonly parameters: ParametersState | null;
  /** Absent: the run has no tables. */
  readonly tables?: RunTablesState;
} & Readonly<Omit<SavedFields, keyof LaterFields>> &
  Readonly<Partial<LaterFields>> &
  Omit<Saved<typeof COMPONENTS>, LaterComponent> &
  Partial<Pick<Saved<typeof COMPONENTS>, LaterComponent>>;
/** Checkpoints of older releases lack them. */
type LaterComponent = 'correction' | 'mode' | 'collected' | 'sent';

/** All that a run is, with what a checkpoint leaves out; the vectors come beside it. */
export interface RunReplica {
  readonly options: RunOptions;
  readonly fields: RunFields;
  /** The components, under the name that standbys of all releases read. */
  readonly parts: Replicated<typeof REPLICATED>;
  readonly tensors: readonly TensorSpec[] | null;
  readonly parameters: ParametersState | null;
  /** Absent: the run has no tables. */
  readonly tables?: RunTablesState;
}

/** A run, as those see it who decide nothing by themselves. */
export interface RunInternals {
  readonly options: RunOptions;
  readonly fields: RunFields;
  readonly components: Components;
}

/** @param inUse captures that are kept. */
const ofVector = ({ specs, parameters, tables }: Vector, { best, evaluated }: CapturesInUse) => ({
  tensors: specs,
  parameters: parameters?.kept.state() ?? null,
  ...(tables && { tables: tables.state(best, evaluated) }),
});

export function runStateOf({ options, fields, components }: RunInternals, now: number): RunState {
  return {
    version: 1,
    options,
    ...savedFields(fields, now),
    ...ofVector(components.vector, { best: fields.best?.capture ?? null, evaluated: null }),
    ...(writtenBy(COMPONENTS, 'save', components) as Saved<typeof COMPONENTS>),
  };
}

/** What a worker's payloads and numbers are made of is not copied. */
export function replicaOf({ options, fields, components }: RunInternals): RunReplica {
  const replicas = writtenBy(REPLICATED, 'replica', components) as RunReplica['parts'];
  const inUse = {
    best: fields.best?.capture ?? null,
    evaluated: fields.evaluation?.capture ?? null,
  };
  return { options, fields: { ...fields }, parts: replicas, ...ofVector(components.vector, inUse) };
}

export function replicateComponents(components: Components, replica: RunReplica): void {
  for (const [name, kind] of Object.entries(REPLICATED)) {
    const { replicate } = kind as Pick<ComponentKind<unknown, unknown>, 'replicate'>;
    replicate(components, replica.parts[name as keyof RunReplica['parts']]);
  }
}
