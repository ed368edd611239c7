import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';
import { createFusedOptimizer, optimizerBytes } from '../server/core/fused.ts';
import { createKernels, type Decoding } from '../server/core/kernels.ts';
import { BLOCK } from '../shared/compression.ts';
import { resolveConfig } from '../shared/config.ts';
import { Memory, regionBytes } from '../shared/memory.ts';
import { createOptimizer } from '../shared/optimizer.ts';
import type { OptimizerConfig } from '../shared/optimizer-config.ts';
import { medianOf } from '../shared/quantile.ts';

/**
 * What an update costs, per optimizer and encoding of the gradient: ms, and GB/s of the memory that
 * the rule must read and write at the least, beside a WASM SIMD triad in the same minute.
 */
export interface UpdateRow {
  readonly optimizer: string;
  readonly encoding: Decoding | 'twin';
  readonly ms: number;
  /** The bytes of parameters and state, read and written, and the gradient, read. */
  readonly gigabytesPerSecond: number;
  /** The share of what the triad reached in the same turn. */
  readonly share: number;
}

const GRADIENT_BYTES = { f32: 4, bf16: 2, int8: 1 + 4 / BLOCK, twin: 4 } as const;

/** @param n parameters. */
export function benchUpdates({
  n = 25_000_000,
  kinds = ['sgd', 'momentum', 'rmsprop', 'adam'] as OptimizerConfig['kind'][],
  repetitions = 9,
  twin = true,
} = {}): UpdateRow[] {
  const rows: UpdateRow[] = [];
  for (const kind of kinds) {
    const config = resolveConfig({ optimizer: { kind } }).optimizer;
    const region = regionBytes(4 * n);
    const memory = new Memory(2 * region + optimizerBytes(config, n) + 3 * region);
    const kernels = createKernels(memory.memory);
    const theta = memory.take(4 * n);
    const fused = createFusedOptimizer(config, n, [], { memory, kernels, theta });
    const address = memory.take(4 * n);
    const triad = [0, 1, 2].map(() => memory.take(4 * n)) as [number, number, number];
    const state = Object.keys(fused.slots).length;
    const options = { step: 10, learningRate: 1e-6 };
    const clip = { limit: Infinity, factor: 1 };
    const cases: [UpdateRow['encoding'], () => void][] = (['f32', 'bf16', 'int8'] as const).map(
      (decoding) => {
        const scales = address + (decoding === 'int8' ? n : 0);
        return [decoding, () => void fused.apply({ decoding, address, scales }, clip, options)];
      },
    );
    if (twin) {
      const slow = createOptimizer(config, n);
      const [parameters, gradient] = [memory.floats(theta, n), memory.floats(address, n)];
      cases.push(['twin', () => slow.apply(parameters, gradient, options)]);
    }
    const limit: number[] = [];
    const times = new Map(cases.map(([name]) => [name, [] as number[]]));
    for (let round = 0; round < repetitions + 1; round++) {
      const limitMs = timed(() => kernels.triad(...triad, n, 0.5));
      if (round > 0) limit.push(limitMs);
      for (const [name, run] of cases) {
        const ms = timed(run);
        if (round > 0) times.get(name)!.push(ms);
      }
    }
    const triadSpeed = (12 * n) / medianOf(limit) / 1e6;
    for (const [encoding, all] of times) {
      const bytes = n * (8 * (1 + state) + GRADIENT_BYTES[encoding]);
      const ms = medianOf(all);
      const gigabytesPerSecond = bytes / ms / 1e6;
      const share = gigabytesPerSecond / triadSpeed;
      rows.push({ optimizer: kind, encoding, ms, gigabytesPerSecond, share });
    }
  }
  return rows;
}

function timed(run: () => void): number {
  const start = performance.now();
  run();
  return performance.now() - start;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) console.table(benchUpdates());
