import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { each, type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { SMALL_DIGITS, trainSmall } from '../small-digits.ts';

export const topk: Result = {
  name: 'topk',
  title: 'Deep Gradient Compression: the largest 1 % of each gradient, with 4 workers',
  paper: 'Lin et al. 2018 (arXiv:1712.01887)',
  claim:
    'Sending 0.1 to 1 % of each gradient with momentum correction on the worker and a warm-up costs no accuracy; without momentum correction it does.',
  setting: `${SMALL_DIGITS}, four of them; the warm-up is one epoch, momentum 0.9 at rate 0.01, Γ(100) compute times; compressors are those of real workers`,
  minutes: 2,
  seeds: 5,
  repeat,
};

const RATE = 0.01;
const WORKERS = 4;
const SGD = { kind: 'sgd' } as const;
const server = { optimizer: { kind: 'momentum', momentum: 0.9 } } as const;

const ARMS: readonly { readonly name: string; readonly config: PartialConfig }[] = [
  { name: 'f32', config: server },
  { name: 'bf16', config: { ...server, compression: { push: { kind: 'bf16' } } } },
  { name: 'int8', config: { ...server, compression: { push: { kind: 'int8' } } } },
  {
    name: 'topk 1 %, momentum on the worker (DGC)',
    config: {
      optimizer: SGD,
      compression: { push: { kind: 'topk', density: 0.01, warmupEpochs: 1, momentum: 0.9 } },
    },
  },
  {
    name: 'topk 1 %, momentum on the server',
    config: {
      ...server,
      compression: { push: { kind: 'topk', density: 0.01, warmupEpochs: 1, momentum: 0 } },
    },
  },
  {
    name: 'topk 1 %, DGC without a warm-up',
    config: {
      optimizer: SGD,
      compression: { push: { kind: 'topk', density: 0.01, warmupEpochs: 0, momentum: 0.9 } },
    },
  },
];

async function repeat(lab: Lab): Promise<PaperFinding> {
  const arms = ARMS.flatMap((arm) => lab.seeds.map((seed) => ({ ...arm, seed })));
  const results = await each(
    lab,
    arms,
    ({ name, seed }) => `${name}, seed ${seed}`,
    async ({ name, seed, config }) => {
      const { accuracy, outcome } = await trainSmall(lab, {
        ...{ workers: WORKERS, seed, law: 'gamma:100' },
        config: { ...config, learningRate: RATE, consistency: { correction: 'none' } },
      });
      return { name, seed, accuracy, pushedBytes: outcome.pushedBytes };
    },
  );
  const of = (name: string) => results.filter((r) => r.name === name);
  const whole = of('f32');
  const gap = (name: string) => estimate(of(name).map((r, i) => r.accuracy - whole[i]!.accuracy));
  const ratio = (name: string) =>
    meanOf(whole.map((r) => r.pushedBytes)) / meanOf(of(name).map((r) => r.pushedBytes));
  const [, , , dgc, plain] = ARMS.map(({ name }) => name) as [
    string,
    string,
    string,
    string,
    string,
  ];
  const [own, without] = [gap(dgc), gap(plain)];
  const helps = estimate(of(dgc).map((r, i) => r.accuracy - of(plain)[i]!.accuracy));
  const keeps = separated(own) >= 0;
  const needs = separated(helps) > 0;
  return {
    verdict:
      keeps && needs
        ? 'holds'
        : separated(own) === 0 && separated(helps) === 0
          ? 'not separated'
          : keeps || needs
            ? 'partly'
            : 'no',
    text: `DGC differs from whole gradients by ${spread(own)} points${separated(own) === 0 ? ' (not separated)' : ''} with ${ratio(dgc).toFixed(0)} times fewer bytes; momentum on the server instead by ${spread(without)}. DGC against that: ${spread(helps)}${separated(helps) === 0 ? ' (not separated)' : ''}. The paper's 270 to 600 times need models of millions of parameters and are not shown by this.`,
    headings: ['pushes', 'test accuracy, %', 'against f32', 'bytes pushed, times fewer'],
    rows: ARMS.map(({ name }) => [
      name,
      spread(estimate(of(name).map(({ accuracy }) => accuracy))),
      name === 'f32' ? '' : spread(gap(name)),
      ratio(name).toFixed(1),
    ]),
    plots: {
      'accuracy.svg': chart({
        title: 'Accuracy against bytes pushed',
        x: { label: 'bytes pushed', log: true },
        y: { label: 'test accuracy, %' },
        series: ARMS.map(({ name }) => {
          const x = meanOf(of(name).map((r) => r.pushedBytes));
          return {
            ...{ name, style: 'scatter' as const },
            points: [pointOf(x, estimate(of(name).map((r) => r.accuracy)))],
          };
        }),
      }),
    },
    runs: results,
  };
}
