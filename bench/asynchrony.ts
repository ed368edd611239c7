import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { gammaMs, simulateRun, type VirtualProblem } from '../cli/simulate/virtual-cluster.ts';
import type { PartialConfig } from '../shared/config.ts';
import { estimate, meanOf } from '../study/statistics.ts';
import { createDigits } from './asynchrony/digits.ts';

/**
 * `npm run asynchrony`: what many workers make of the network of examples/mnist-mlp.ts, in virtual time: the
 * production run with its kernels, real gradients, Γ(100) compute times, equal examples. Writes the table between
 * the markers of docs/asynchrony.md. About 40 minutes on 2 cores; fewer seeds or workers take less.
 */

const PAGE = join(import.meta.dirname, '../docs/asynchrony.md');
const MEAN_MS = 100;

const { values } = parseArgs({
  options: {
    workers: { type: 'string', default: '1,2,4,8,16,32,64,256' },
    seeds: { type: 'string', default: '5' },
    firstSeed: { type: 'string', default: '1' },
    /** Of the runs without any correction, which only show what they would come to. */
    plainSeeds: { type: 'string', default: '2' },
    optimizers: { type: 'string', default: 'momentum,adam' },
    /** Prints the tables only. */
    print: { type: 'boolean', default: false },
  },
});

const FLAGSHIP: PartialConfig = {
  minibatchSize: 64,
  averaging: { kind: 'ema', decay: 0.999 },
  schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
  earlyStopping: { patience: 3, minImprovement: 0.0005 },
};
const CONFIGS: Readonly<Record<string, PartialConfig>> = {
  momentum: {
    ...FLAGSHIP,
    ...{ learningRate: 0.02, optimizer: { kind: 'momentum', momentum: 0.9 }, epochsMax: 4 },
  },
  adam: {
    ...{ minibatchSize: 64, learningRate: 0.001, optimizer: { kind: 'adam' }, epochsMax: 3 },
  },
};

interface Result {
  readonly accuracy: number;
  readonly staleness: number;
  readonly useful: number;
  readonly minutes: number;
}

const problems = new Map<number, Promise<VirtualProblem>>();

async function train(config: PartialConfig, workers: number, seed: number): Promise<Result> {
  let problem = problems.get(seed);
  if (!problem) {
    problem = createDigits({ hidden: 256, dropout: 0.2, seed, minibatchMax: 64 });
    problems.clear();
    problems.set(seed, problem);
  }
  const { run, nowMs } = simulateRun({
    ...{ problem: await problem, workers, seed, computeMs: gammaMs(MEAN_MS) },
    // Two hundred minibatches without their backward pass.
    evaluationMs: 60 * MEAN_MS,
    config: { ...config, seed },
  });
  const { test, staleness, pushes, reason, phase } = run.summary(nowMs);
  if (phase !== 'finished') console.error(`  ${workers} workers: ${phase}, ${reason}`);
  const taken = pushes.applied + pushes.damped;
  return {
    accuracy: 100 * (1 - (test?.error ?? 0.9)),
    staleness: staleness?.p50 ?? 0,
    useful: taken / (taken + pushes.rejected),
    minutes: nowMs / 60_000,
  };
}

const counts = values.workers.split(',').map(Number);
const seeds = Number(values.seeds);
const firstSeed = Number(values.firstSeed);
const tables: string[] = [];
for (const kind of values.optimizers.split(',')) {
  const results = new Map<string, Result[]>();
  for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
    for (const workers of counts) {
      for (const correction of ['auto', 'none'] as const) {
        if (correction === 'none' && (workers < 3 || seed >= firstSeed + Number(values.plainSeeds)))
          continue;
        const began = performance.now();
        const config = { ...CONFIGS[kind], consistency: { correction } };
        const result = await train(config, workers, seed);
        const key = `${correction} ${workers}`;
        results.set(key, [...(results.get(key) ?? []), result]);
        const seconds = ((performance.now() - began) / 1000).toFixed(0);
        console.error(
          `  ${kind}, ${correction}, ${workers} workers, seed ${seed}: ${result.accuracy.toFixed(2)} % (${seconds} s)`,
        );
      }
    }
  }
  tables.push(tableOf(kind, results));
}

function tableOf(kind: string, results: ReadonlyMap<string, readonly Result[]>): string {
  const mean = (list: readonly Result[], of: keyof Result) =>
    meanOf(list.map((result) => result[of]));
  const told = (list: readonly Result[] | undefined) => {
    if (!list) return 'the same';
    if (list.length === 1) return list[0]!.accuracy.toFixed(2);
    const { mean: middle, low, high } = estimate(list.map(({ accuracy }) => accuracy));
    return `${middle.toFixed(2)} ± ${((high - low) / 2).toFixed(2)}`;
  };
  const first = results.get(`auto ${counts[0]}`)!;
  const rows = counts.map((workers) => {
    const auto = results.get(`auto ${workers}`)!;
    const gap = mean(auto, 'accuracy') - mean(first, 'accuracy');
    const cells = [
      String(workers),
      told(auto),
      workers === counts[0] ? '' : gap.toFixed(2),
      told(results.get(`none ${workers}`)),
      mean(auto, 'staleness').toFixed(0),
      `${(100 * mean(auto, 'useful')).toFixed(1)} %`,
      (mean(first, 'minutes') / mean(auto, 'minutes')).toFixed(1),
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return [
    `${kind}, test accuracy in % after equal examples:`,
    '',
    '| workers | `auto` | against one | `none` | staleness, median | updates used | times faster |',
    '|---|---|---|---|---|---|---|',
    ...rows,
  ].join('\n');
}

const text = [
  `${seeds} seed${seeds === 1 ? '' : 's'} (of \`none\`: ${Math.min(seeds, Number(values.plainSeeds))}), mean and 95 % interval.`,
  ...tables,
].join('\n\n');
console.log(text);
if (!values.print) {
  const page = readFileSync(PAGE, 'utf8');
  const [before, after] = ['<!-- asynchrony -->', '<!-- /asynchrony -->'];
  const from = page.indexOf(before) + before.length;
  const to = page.indexOf(after);
  if (from < before.length || to < 0) throw new Error(`${PAGE} has no markers`);
  writeFileSync(PAGE, `${page.slice(0, from)}\n\n${text}\n\n${page.slice(to)}`);
}
