import type { Layout } from '../../shared/layout.ts';

/** Moving averages of the statistics of minibatches, such as those of batch normalisation (docs/architecture.md). */
export class MergedStatistics {
  /** Minibatches that are in the averages. */
  merges = 0;
  /** The momentum of each statistics tensor, with its place among the statistics. */
  readonly #ranges: readonly { start: number; end: number; momentum: number }[];

  constructor({ tensors, trainableSize }: Pick<Layout, 'tensors' | 'trainableSize'>) {
    this.#ranges = tensors
      .filter((tensor) => tensor.role === 'statistics')
      .map((tensor) => ({
        start: tensor.offset - trainableSize,
        end: tensor.offset - trainableSize + tensor.size,
        momentum: tensor.momentum!,
      }));
  }

  /**
   * M ← d·M + (1 − d)·b with the minibatch's statistics b, whatever the staleness of the push. While
   * few have been merged, d is smaller, so that the arbitrary first values are soon forgotten.
   * @param from M as it was. @param to M as it is next; all three have the shape [statisticsSize].
   */
  merge(minibatch: Float32Array, from: Float32Array, to: Float32Array): void {
    if (minibatch.length === 0) return;
    const merges = this.merges++;
    for (const { start, end, momentum } of this.#ranges) {
      const keep = Math.min(momentum, (1 + merges) / (10 + merges));
      for (let i = start; i < end; i++) to[i] = keep * from[i]! + (1 - keep) * minibatch[i]!;
    }
  }
}
