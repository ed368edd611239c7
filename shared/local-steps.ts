import Type, { type Static } from 'typebox';
import { choice, closed, count, orNone, share } from './config-fields.ts';
import { type Consistency, collects, hasWorkerVelocity, isInRounds } from './consistency.ts';
import { LIMITS } from './limits.ts';
import { type OptimizerConfig, OptimizerSchema } from './optimizer-config.ts';

/**
 * `local` and `outer` of a run: workers that take several steps by themselves between two exchanges with the server, and
 * what the server makes of their results. Local SGD (Stich 2019, arXiv:1805.09767), DiLoCo (Douillard et al. 2023,
 * arXiv:2311.08105), EASGD (Zhang et al. 2015, arXiv:1412.6651).
 */

/**
 * A header of the handshake, `yes` from a worker that can take local steps. Others are not assigned to runs that need it:
 * they would push gradients.
 */
export const LOCAL_STEPS_HEADER = 'downpour-local-steps';
/** The same of a worker that can exchange its parameters by fragments. */
export const FRAGMENTS_HEADER = 'downpour-fragments';

export const LocalSchema = Type.Object(
  {
    steps: orNone(
      Type.Integer({ minimum: 1, maximum: LIMITS.localStepsMax }),
      'local steps: minibatches that a worker trains on between two exchanges with the server (H in the papers); a push is then the result of these steps instead of a gradient; null: no local steps, each push is the gradient of one minibatch',
    ),
    push: choice(
      ['delta', 'elastic'],
      'what a push holds after local steps. delta: the change of the parameters since the worker read them (local SGD, FedBuff, DiLoCo), which the outer optimizer applies. elastic: the parameters of the worker; the worker keeps its own parameters, and at each exchange they and those of the server move towards each other (EASGD; EAMSGD with a momentum optimizer)',
      'delta',
    ),
    optimizer: Type.Union([OptimizerSchema, Type.Null()], {
      default: null,
      description:
        'update rule of the local steps; its state stays on the worker between exchanges; null: same as `optimizer`',
    }),
    dynamic: Type.Boolean({
      default: false,
      description:
        'give slower workers fewer local steps, in proportion to their measured speed, so that all exchange equally often (DyLU); the fastest worker takes `steps`',
    }),
    after: count(
      'step of the server at which local steps begin; before that, pushes are gradients, which `optimizer` applies (post-local SGD)',
      0,
    ),
    movingRate: Type.Number({
      exclusiveMinimum: 0,
      exclusiveMaximum: 1,
      default: 0.9,
      description:
        'elastic: β; at each exchange the parameters of a worker and of the server move towards each other by β / workers of their difference',
    }),
    fragments: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: LIMITS.fragmentsMax,
        default: 1,
        description:
          'delta: cut the parameters into so many fragments, and exchange one fragment after each `steps` / `fragments` minibatches, by turns (streaming DiLoCo); each fragment is still exchanged once in `steps` minibatches, and an exchange has a part of the bytes; `steps` must be a multiple of it; 1: exchange all parameters together',
      }),
    ),
  },
  { ...closed, default: {} },
);

export const OuterSchema = Type.Object(
  {
    learningRate: orNone(
      Type.Number({ exclusiveMinimum: 0 }),
      'delta: factor of the changes that workers push, before they are added to the parameters; DiLoCo uses 0.7; null: 1, or 1 / workers in the modes async and bounded, where each push is an update of its own',
    ),
    momentum: share('delta: momentum of the outer optimizer; 0: none; DiLoCo uses 0.9', 0),
    nesterov: Type.Boolean({
      default: true,
      description: 'delta: Nesterov momentum, as in DiLoCo; false: plain momentum',
    }),
    delayed: orNone(
      Type.Integer({ minimum: 2, maximum: LIMITS.workerCountMax }),
      'delta: delayed Nesterov momentum for asynchronous workers: each push moves the parameters by learningRate / delayed of its change, and the momentum is updated and applied at every `delayed`-th push; set the number of workers; null: at each update',
    ),
  },
  { ...closed, default: {} },
);

/** What a push holds. */
export const PUSH_KINDS = ['gradient', 'delta', 'elastic'] as const;
export type PushKind = (typeof PUSH_KINDS)[number];

/** `local` of a run whose workers take local steps. */
export type Local = Static<typeof LocalSchema> & { readonly steps: number };
export type Outer = Static<typeof OuterSchema>;

/** Runs of older releases have none of `local`, `outer` and `velocity`. */
export interface LocalFields {
  readonly local?: Static<typeof LocalSchema> | undefined;
  readonly outer?: Outer | undefined;
  /** It says where velocities are. */
  readonly consistency: Pick<Consistency, 'velocity'>;
}

/**
 * A velocity on the worker is one local step by Nesterov's rule, of which the server adds up the results. With v on worker i,
 * v ← α v − ε g and θᵢ = φ + α v − ε g, so that Δ = φ − θᵢ, and φ ← φ − Δ: the update of look-ahead, φ ← φ + α v − ε g
 * (DANA-Slim, Hakimi et al. 2019, arXiv:1907.11612).
 */
const SLIM: Local = {
  ...{ steps: 1, push: 'delta', optimizer: null, dynamic: false, after: 0, movingRate: 0.9 },
};
const SLIM_OUTER: Outer = { learningRate: 1, momentum: 0, nesterov: true, delayed: null };

/** @returns null: each push is the gradient of one minibatch. */
export function localOf({ local, consistency }: LocalFields): Local | null {
  if (hasWorkerVelocity(consistency)) return SLIM;
  return local && local.steps !== null ? (local as Local) : null;
}

const NO_OUTER: Outer = { learningRate: null, momentum: 0, nesterov: true, delayed: null };
export const outerOf = ({ outer, consistency }: LocalFields): Outer =>
  hasWorkerVelocity(consistency) ? SLIM_OUTER : (outer ?? NO_OUTER);

/** Fragments that the parameters are exchanged in; 1: all together. */
export const fragmentsOf = (config: LocalFields): number => localOf(config)?.fragments ?? 1;

/** Minibatches between two exchanges. */
export const exchangeSteps = ({ steps, fragments = 1 }: Local): number => steps / fragments;

/** The update rule of the steps that workers take. */
export function localOptimizer(
  config: LocalFields & { readonly optimizer: OptimizerConfig },
): OptimizerConfig {
  const { optimizer, consistency } = config;
  if (hasWorkerVelocity(consistency)) {
    return { kind: 'nesterov', momentum: 'momentum' in optimizer ? optimizer.momentum : 0 };
  }
  return localOf(config)?.optimizer ?? optimizer;
}

/** What a worker is told of the steps that it takes by itself; null: it takes none. */
export function localForWorker(
  config: LocalFields & { readonly optimizer: OptimizerConfig },
): Local | null {
  const local = localOf(config);
  return local === SLIM ? { ...SLIM, optimizer: localOptimizer(config) } : local;
}

/** Which field makes workers take steps by themselves, with its value. */
export const localText = (config: LocalFields): string =>
  hasWorkerVelocity(config.consistency)
    ? `consistency.velocity is 'worker'`
    : `local.steps is ${config.local?.steps}`;

/** Corrections that need gradients, with the staleness that each parameter has seen. */
const FOR_GRADIENTS = ['lookahead', 'gap', 'compensated'];

/** @returns what does not fit together, the value seen and what to do; null: all is well. */
export function localProblem(
  config: LocalFields & {
    readonly consistency: Consistency;
    readonly compression: { readonly push: { readonly kind: string; readonly momentum?: number } };
    readonly optimizer: { readonly kind: string };
  },
): string | null {
  if (hasWorkerVelocity(config.consistency)) return workerVelocityProblem(config);
  const local = localOf(config);
  const outer = outerOf(config);
  const { consistency, compression } = config;
  const { mode, correction = 'auto', depth, aggregate = 'mean' } = consistency;
  const changed = (Object.keys(NO_OUTER) as (keyof Outer)[]).find((k) => outer[k] !== NO_OUTER[k]);
  if (!local) {
    const { push, dynamic, after, fragments = 1 } = config.local ?? {};
    const isSet = push === 'elastic' || dynamic || after || fragments > 1;
    const set = isSet ? 'local' : changed ? 'outer' : null;
    if (set === null) return null;
    return `local.steps is null, so the other fields of ${set} do nothing: set local.steps, the minibatches between two exchanges, or leave ${set} out`;
  }
  if (FOR_GRADIENTS.includes(correction)) {
    return `consistency.correction is '${correction}' and local.steps is ${local.steps}; '${correction}' corrects gradients, and with local steps a push is no gradient: set auto, none, inverse or delay`;
  }
  const { kind, momentum = 0 } = compression.push;
  if (momentum > 0) {
    return `compression.push.momentum is ${momentum} and local.steps is ${local.steps}; with local steps the momentum is that of local.optimizer: set 0`;
  }
  if (outer.delayed !== null) {
    const why = 'the delayed momentum counts pushes that are applied one by one';
    if (collects(consistency)) {
      return `outer.delayed is ${outer.delayed} in mode '${mode}'; ${why}: use mode async or bounded, or set null`;
    }
    if (outer.momentum === 0 || !outer.nesterov) {
      return `outer.delayed is ${outer.delayed} without Nesterov momentum, so there is nothing to delay: set outer.momentum, 0.9 as in DiLoCo, and outer.nesterov, or set outer.delayed to null`;
    }
  }
  const unfit = fragmentsOf(config) > 1 ? fragmentsUnfit(config, local) : null;
  if (unfit !== null || local.push === 'delta') return unfit;
  if (changed) {
    return `outer.${changed} is ${outer[changed]} with local.push 'elastic', which has no outer optimizer: use local.movingRate, or local.push delta`;
  }
  if (kind !== 'f32') {
    return `compression.push.kind is '${kind}' with local.push 'elastic', which sends whole parameters: set f32, or use local.push delta`;
  }
  if (depth > 1) {
    return `consistency.depth is ${depth} with local.push 'elastic', where a worker moves by the answer to its push: set 1, or use local.push delta`;
  }
  if (mode === 'buffered') {
    return `consistency.mode is 'buffered' with local.push 'elastic', where an exchange moves both sides at once: use async, bounded, synchronous or backup, or local.push delta`;
  }
  if (isInRounds(consistency) && aggregate !== 'mean') {
    return `consistency.aggregate is '${aggregate}' with local.push 'elastic', where the server moves by what all workers move: set mean, or use local.push delta`;
  }
  return null;
}

/** Why these settings do not go with velocities on the workers; null: they do. */
function workerVelocityProblem({
  consistency,
  optimizer,
  compression,
  ...config
}: Parameters<typeof localProblem>[0]): string | null {
  const seen = `consistency.velocity is 'worker'`;
  const { correction = 'auto' } = consistency;
  if (correction !== 'lookahead') {
    return `${seen} and consistency.correction is '${correction}'; only look-ahead has a velocity for each worker: set correction lookahead, or velocity server`;
  }
  const { kind } = optimizer;
  if (kind !== 'momentum' && kind !== 'nesterov') {
    return `${seen} and optimizer.kind is '${kind}'; a worker pushes the step of its momentum, and the server only adds it: use momentum or nesterov, or velocity server`;
  }
  const own = { ...config, consistency: {} };
  const outer = outerOf(own);
  const changed = (Object.keys(NO_OUTER) as (keyof Outer)[]).find((k) => outer[k] !== NO_OUTER[k]);
  if (localOf(own) || changed) {
    const field = changed
      ? `outer.${changed} is ${outer[changed]}`
      : `local.steps is ${localOf(own)!.steps}`;
    return `${seen} and ${field}; a worker with a velocity pushes after each minibatch, and the server adds its steps as they are: leave out local and outer, or set velocity server`;
  }
  const { momentum = 0 } = compression.push;
  if (momentum > 0) {
    return `${seen} and compression.push.momentum is ${momentum}; both are the momentum of the worker: set one of them to 0 or server`;
  }
  if (consistency.depth > 1) {
    return `${seen} and consistency.depth is ${consistency.depth}; a push that is rejected takes its gradient out of the velocity, before the next one is computed: set depth 1, or velocity server`;
  }
  return null;
}

/** Why these settings do not go with fragments; null: they do. */
function fragmentsUnfit(
  config: LocalFields & { readonly consistency: Consistency },
  { steps, fragments = 1, push }: Local,
): string | null {
  const { mode, depth } = config.consistency;
  const { delayed } = outerOf(config);
  const seen = `local.fragments is ${fragments}`;
  if (steps % fragments !== 0) {
    const below = steps - (steps % fragments);
    return `${seen} and local.steps is ${steps}; a fragment is exchanged after each steps / fragments minibatches: set local.steps to a multiple of ${fragments}, such as ${below || fragments}`;
  }
  if (push === 'elastic') {
    return `${seen} with local.push 'elastic', which moves all parameters at each exchange: use local.push delta, or set 1`;
  }
  if (mode === 'buffered') {
    return `${seen} in mode 'buffered', where an update would be of different fragments: use async, bounded, synchronous or backup, or set 1`;
  }
  if (delayed !== null) {
    return `${seen} and outer.delayed is ${delayed}; the delayed momentum counts pushes of all parameters: set outer.delayed to null, or local.fragments to 1`;
  }
  if (depth > 1) {
    return `${seen} and consistency.depth is ${depth}; a worker goes on from the fragment in the answer to its push: set depth 1, or fragments 1`;
  }
  return null;
}
