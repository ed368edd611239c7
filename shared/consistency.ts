import Type, { type Static } from 'typebox';
import { choice, closed, count, orNone, share, steps } from './config-fields.ts';
import { LIMITS } from './limits.ts';

/** `consistency` of a run: when a push becomes an update. What fits together in it, and what does not, in words. */

export const ConsistencySchema = Type.Object(
  {
    mode: choice(
      ['async', 'bounded', 'synchronous', 'backup', 'buffered'],
      'when a push becomes an update. async: as soon as it is admitted. bounded: as in async, but a worker that is more than aheadMax minibatches ahead of the slowest worker waits (SSP). synchronous: an update is the mean of one push of each worker, and workers wait for it (BSP). backup: as in synchronous, but an update takes the first pushes only, and the minibatches of later pushes are computed again. buffered: an update is the mean of bufferSize pushes, and no worker waits (FedBuff)',
      'async',
    ),
    stalenessMax: orNone(
      Type.Integer({ minimum: 0 }),
      'maximum staleness of a push; a staler push is rejected; null: no limit; 0 with mode buffered is Rennala',
    ),
    damping: choice(
      ['none', 'inverse', 'root'],
      'inverse: the learning rate of a push is divided by its staleness if that is above 1; root: it is divided by √(1 + staleness), as in FedBuff; none: it is not',
      'none',
    ),
    // These are optional: workers are not told of them, since older ones know no such fields, and runs of older releases have none.
    correction: Type.Optional(
      choice(
        ['auto', 'none', 'inverse', 'delay', 'gap', 'compensated', 'lookahead'],
        'correction for staleness. lookahead: each worker has its own momentum, and the server sends parameters extrapolated over the updates that are still in progress (DANA). inverse: same as damping. delay: the learning rate of a push whose staleness is above the number of workers is multiplied by workers / staleness. gap: each gradient element is divided by 1 + the distance that its parameter has moved since the worker read it, in typical steps. compensated: each gradient element is corrected for that distance to first order (DC-ASGD). auto: lookahead with three or more workers, and with eight or more large gradients are also scaled down (unless clip is set); no correction if damping or stalenessMax is set, or if the mode combines several pushes into an update',
        'auto',
      ),
    ),
    velocity: Type.Optional(
      choice(
        ['server', 'worker'],
        'lookahead: where the momentum of each worker is kept. server: with the run, so it is in checkpoints and on the standby. worker: on the worker, so the server needs no memory for it, and a worker that ends loses its own (DANA-Slim); for the optimizers momentum and nesterov',
        'server',
      ),
    ),
    compensation: Type.Optional(
      Type.Object(
        {
          adaptive: Type.Boolean({
            default: true,
            description:
              'compensated: the correction is divided by the root of the running mean of squared gradients',
          }),
          lambda: orNone(
            Type.Number({ exclusiveMinimum: 0 }),
            'compensated: strength of the correction; null: 2, or 0.04 if adaptive is false',
          ),
          decay: share('compensated: decay of the running mean of squared gradients', 0.95),
        },
        { ...closed, default: {} },
      ),
    ),
    aheadMax: Type.Optional(
      count('bounded: minibatches that a worker may be ahead of the slowest worker', 3),
    ),
    quorum: Type.Optional(
      orNone(
        steps,
        'backup: pushes in an update (m-synchronous); null: as many as there are workers, less spares',
      ),
    ),
    spares: Type.Optional(
      Type.Integer({
        minimum: 1,
        default: 1,
        description: 'backup: workers that an update does not wait for, if quorum is null',
      }),
    ),
    graceMs: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: 3_600_000,
        default: 0,
        description: 'backup: how long an update that has its quorum waits for more pushes',
      }),
    ),
    bufferSize: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 10_000,
        default: 10,
        description: 'buffered: pushes in an update',
      }),
    ),
    aggregate: Type.Optional(
      choice(
        ['mean', 'median', 'trimmedMean', 'krum'],
        'how the pushes of an update are combined, in the modes synchronous, backup and buffered. median: the median of each element. trimmedMean: the mean of each element without its faultyMax largest and smallest values. krum: the one push that is nearest to the others',
        'mean',
      ),
    ),
    faultyMax: Type.Optional(
      Type.Integer({
        minimum: 1,
        default: 1,
        description: 'trimmedMean, krum: pushes in an update that may hold anything',
      }),
    ),
    depth: Type.Integer({
      minimum: 1,
      maximum: 8,
      default: 1,
      description:
        'minibatches that a worker may have in progress; with 2 it computes the next gradient while the last push is sent, and each push is one step staler',
    }),
  },
  { ...closed, default: {} },
);
export type Consistency = Static<typeof ConsistencySchema>;

/** A step is made of several pushes. */
export const collects = ({ mode }: Pick<Consistency, 'mode'>): boolean =>
  mode === 'synchronous' || mode === 'backup' || mode === 'buffered';

/** All pushes of a step are computed at the same parameters: none is ever stale. */
export const isInRounds = ({ mode }: Pick<Consistency, 'mode'>): boolean =>
  mode === 'synchronous' || mode === 'backup';

/** The parameters that a worker was sent are kept until its push. */
export const keepsSent = ({ correction }: Partial<Consistency>): boolean =>
  correction === 'gap' || correction === 'compensated';

/** Each worker keeps its own momentum, and pushes the step that it makes (DANA-Slim). */
export const hasWorkerVelocity = ({ velocity }: Pick<Consistency, 'velocity'>): boolean =>
  velocity === 'worker';

/** Pushes are kept one by one until a step is made of them. */
export const keepsEach = (consistency: Consistency): boolean =>
  collects(consistency) && (consistency.aggregate ?? 'mean') !== 'mean';

/** The fewest pushes with which an aggregate bears `faulty` ones that hold anything. */
export function pushesMin(aggregate: NonNullable<Consistency['aggregate']>, faulty: number) {
  return { mean: 1, median: 1, trimmedMean: 2 * faulty + 1, krum: 2 * faulty + 3 }[aggregate];
}

/** Step sizes that grow with the gradient: what moved the parameters can be told in steps. */
const PROPORTIONAL = ['sgd', 'momentum', 'nesterov'];

/** @returns what is wrong, the value seen and what to do; null: all is well. */
export function consistencyProblem({
  consistency,
  optimizer,
}: {
  readonly consistency: Consistency;
  readonly optimizer: { readonly kind: string };
}): string | null {
  const { mode, correction = 'auto', damping, stalenessMax, depth } = consistency;
  const { quorum = null, graceMs = 0, bufferSize = 10 } = consistency;
  const { aggregate = 'mean', faultyMax = 1, aheadMax = 3 } = consistency;
  const at = (field: keyof Consistency) => `consistency.${field} is ${show(consistency[field])}`;
  if (isInRounds(consistency)) {
    const why = `in mode '${mode}' all pushes of a step are computed at the same parameters, so none is stale`;
    if (damping !== 'none') return `${at('damping')}; ${why}: set none`;
    if (stalenessMax !== null) return `${at('stalenessMax')}; ${why}: set null`;
    if (!['auto', 'none'].includes(correction)) return `${at('correction')}; ${why}: set none`;
    if (depth > 1) {
      return `${at('depth')}; in mode '${mode}' a worker waits for the next parameters after each push: set 1, or another mode`;
    }
  }
  if (mode === 'bounded' && depth - 1 > aheadMax) {
    return `${at('depth')} and ${at('aheadMax')}; pushes under way count as ahead: set aheadMax to ${depth - 1} or more, or lower depth`;
  }
  if (mode === 'buffered' && correction === 'lookahead') {
    return `${at('correction')}; in mode 'buffered' an update is of several workers, which have no momentum of their own: set none, inverse, delay, gap or compensated`;
  }
  if (correction === 'delay' && damping !== 'none') {
    return `${at('damping')} and ${at('correction')}; both lower the rate of a stale push: set one of them to none`;
  }
  if (keepsSent(consistency) && depth > 1) {
    return `${at('depth')}; correction '${correction}' compares with the parameters that the worker was sent last: set 1`;
  }
  if (correction === 'gap' && !PROPORTIONAL.includes(optimizer.kind)) {
    return `optimizer.kind is '${optimizer.kind}'; correction 'gap' measures in steps that grow with the gradient: use ${PROPORTIONAL.join(', ')}, or correction compensated`;
  }
  if (mode !== 'backup' && (quorum !== null || graceMs > 0)) {
    const field = quorum !== null ? 'quorum' : 'graceMs';
    return `${at(field)} in mode '${mode}'; it belongs to mode 'backup': set the mode, or leave it out`;
  }
  if (aggregate === 'mean') return null;
  if (!collects(consistency)) {
    return `${at('aggregate')} in mode '${mode}', where each push is an update of its own: use synchronous, backup or buffered`;
  }
  const pushes = mode === 'buffered' ? bufferSize : quorum;
  if (pushes === null) return null;
  const name = mode === 'buffered' ? 'bufferSize' : 'quorum';
  const least = pushesMin(aggregate, faultyMax);
  if (pushes < least) {
    return `${at(name)}; aggregate '${aggregate}' with faultyMax ${faultyMax} needs at least ${least} pushes: raise ${name}, or lower faultyMax`;
  }
  const { collectedCountMax: most } = LIMITS;
  if (pushes > most) {
    return `${at(name)}; aggregate '${aggregate}' keeps each push, at most ${most}: lower ${name}, or use mean`;
  }
  return null;
}

/** What is wrong for a run whose parameters are on several shards, of which none sees all of a gradient; null: nothing. */
export function shardsProblem({
  consistency,
  clip,
  local,
}: {
  readonly consistency: Consistency;
  readonly clip: { readonly norm: number | null };
  readonly local?: { readonly steps: number | null; readonly after: number } | undefined;
}): string | null {
  if (!collects(consistency)) return null;
  const { mode, aggregate } = consistency;
  if (aggregate === 'krum') {
    return `consistency.aggregate is 'krum', which compares whole gradients; a server with shards has parts of them: use median or trimmedMean, or a server without shards`;
  }
  // With local steps workers clip the gradients of theirs.
  const isLocal = local?.steps != null && local.after === 0;
  if (clip.norm !== null && !isLocal) {
    return `clip.norm is ${clip.norm} in mode '${mode}': on a server with shards the norm of a step's mean is not known: use clip.value, or a server without shards`;
  }
  return null;
}

const show = (value: unknown) => (typeof value === 'string' ? `'${value}'` : String(value));
