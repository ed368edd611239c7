import type { RunConfig } from '../../shared/config.ts';

/**
 * Whether and how strongly a push is applied, from its staleness alone: the one place where the
 * consistency modes differ. Asynchronous: applied at once (Dean et al. 2012, Downpour SGD). A bound
 * rejects what is too stale (Ho et al. 2013, stale synchronous parallel, without its waiting).
 * Damping divides the learning rate by the staleness (Zhang et al. 2016, arXiv:1511.05950). What is done about
 * the number of workers is in correction.ts.
 */
export type Admission =
  | { readonly kind: 'apply' /** The learning rate is multiplied by it. */; readonly scale: number }
  | { readonly kind: 'reject'; readonly message: string };

/** @param staleness server step − step the worker read, from 0. */
export function admit(
  config: RunConfig['consistency'],
  push: { readonly staleness: number; readonly readStep: number; readonly serverStep: number },
): Admission {
  const { staleness, readStep, serverStep } = push;
  if (config.stalenessMax !== null && staleness > config.stalenessMax) {
    return {
      kind: 'reject',
      message: `push read step ${readStep}, server is at ${serverStep}; staleness ${staleness} > stalenessMax ${config.stalenessMax}: pull, then retry`,
    };
  }
  const damps = config.damping === 'inverse' || config.correction === 'inverse';
  const scale = damps && staleness > 1 ? 1 / staleness : 1;
  return { kind: 'apply', scale };
}
