import type { RunConfig } from '../../shared/config.ts';

/**
 * Whether and how strongly a push counts, from its staleness alone. A bound rejects what is too stale (Ringmaster ASGD
 * without stopping calculations, arXiv:2501.16168; Rennala, arXiv:2305.12387, where it is 0 and several pushes make a
 * step). `inverse` divides the learning rate by the staleness (Zhang et al. 2016, arXiv:1511.05950), `root` by
 * √(1 + staleness) (FedBuff, arXiv:2106.06639), `delay` multiplies it by M / max(M, staleness) with M workers (Mishchenko
 * et al. 2022, arXiv:2206.07638). When a push becomes an update is decided in modes/; what is done about the number of
 * workers, in correction.ts.
 */
export type Admission =
  | { readonly kind: 'apply' /** The learning rate is multiplied by it. */; readonly scale: number }
  | { readonly kind: 'reject'; readonly message: string };

/**
 * @param staleness server step − step the worker read, from 0.
 * @param workers that take part.
 */
export function admit(
  config: RunConfig['consistency'],
  push: {
    readonly staleness: number;
    readonly readStep: number;
    readonly serverStep: number;
    readonly workers: number;
  },
): Admission {
  const { staleness, readStep, serverStep } = push;
  if (config.stalenessMax !== null && staleness > config.stalenessMax) {
    return {
      kind: 'reject',
      message: `push read step ${readStep}, server is at ${serverStep}; staleness ${staleness} > stalenessMax ${config.stalenessMax}: pull, then retry`,
    };
  }
  return { kind: 'apply', scale: scaleOf(config, staleness, push.workers) };
}

/** The factor of the learning rate of what is so stale. @param workers that take part. */
export function scaleOf(
  { damping, correction }: RunConfig['consistency'],
  staleness: number,
  workers: number,
): number {
  if (damping === 'inverse' || correction === 'inverse') return 1 / Math.max(1, staleness);
  if (damping === 'root') return 1 / Math.sqrt(1 + staleness);
  if (correction === 'delay') return Math.min(1, Math.max(1, workers) / Math.max(1, staleness));
  return 1;
}
