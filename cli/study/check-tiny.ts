import { dirname, join, resolve } from 'node:path';
import type { RunConfig } from '../../shared/config.ts';
import { conductStudy } from '../../study/study.ts';
import {
  type TinyResult,
  type TinySettings,
  tinyPlan,
  tinyResults,
  tinyTrials,
} from '../../study/tiny.ts';
import { rowHashes, sampleOf } from '../../worker/check/data.ts';
import { type Finding, finding, percent, short, tooFew } from '../../worker/check/finding.ts';
import { constantLoss } from '../../worker/check/model.ts';
import { rowSize } from '../../worker/data/columns.ts';
import {
  type Examples,
  type ExperimentData,
  isPlain,
  type PreparedData,
} from '../../worker/data/examples.ts';
import { inMemorySample } from '../../worker/data/pieces.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import { type Experiment, experimentName, hashExperiment } from '../../worker/experiment.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { tell } from '../options.ts';
import { openScratch } from '../scratch.ts';
import { startOwnServer } from '../used-server.ts';
import { type LocalWorkersOptions, startLocalWorkers } from '../workers/local-workers.ts';
import type { Pool } from '../workers/pool.ts';

/** Whether a few examples can be learnt by heart, with everything that training has. */

const TINY_EXAMPLES = 32;
/** With fewer examples in all, too few would be left to learn. */
const TINY_MIN = 8;
const TINY_STEPS = 300;
/** The share of what the best constant answer costs, or of the loss before training where nobody knows that. */
const TINY_LOSS = 0.1;

interface TinyOptions {
  readonly file: string;
  readonly experiment: Experiment;
  readonly base: readonly unknown[];
  readonly config: RunConfig;
  readonly data: ExperimentData;
  readonly prepared: PreparedData;
  /** Before training; 0: not known. */
  readonly initialLoss: number;
  readonly options: LocalWorkersOptions['options'] & { readonly json?: boolean };
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
}

/** Runs on a server of its own, by REST, with worker processes: all that training has. */
export async function checkTiny(given: TinyOptions): Promise<Finding> {
  const { file, experiment, base, config, data, prepared, options, signal, log } = given;
  const available = data.train.count;
  if (available < TINY_MIN) {
    return tooFew('tiny', 'whether the model can memorise a few examples', available, TINY_MIN);
  }
  const examples = Math.min(TINY_EXAMPLES, Math.max(1, Math.floor(available / 2)));
  const { loss } = experiment;
  const byError =
    (loss === 'softmaxCrossEntropy' ||
      loss === 'sigmoidCrossEntropy' ||
      experiment.error === 'misclassification') &&
    typeof experiment.error !== 'function' &&
    experiment.error !== 'loss';
  const constant = constantLoss(loss, sampleOf(prepared, 'train', 512));
  if (!byError && constant === 0) {
    const text = 'All targets looked at are the same, so there is nothing to memorise.';
    return finding('tiny', 'ok', text, null, { constant });
  }
  const scale = constant ?? given.initialLoss;
  const plain: TinySettings = {
    ...{ examples, available, ownValidation: data.validation !== undefined, base },
    minibatchSize: Math.max(1, Math.min(config.minibatchSize, Math.floor(examples / 4))),
    steps: TINY_STEPS,
    workers: options.workers > 1 ? [1, options.workers] : [1],
    metric: byError ? 'trainingError' : 'trainingLoss',
    target: byError ? 0 : TINY_LOSS * Math.max(0, scale),
    certain: byError || constant !== null,
  };
  const [trial] = tinyTrials(plain);
  const few = await prepareAny(data, prepareOptions(experiment, trial!.config), { log, signal });
  const { train } = await inMemorySample(few, TINY_EXAMPLES, signal);
  const unlearnable = isPlain(train) ? contradictions(train, prepared.classCount) : 0;
  const settings: TinySettings = {
    ...{ ...plain, examples: train.count, unlearnable },
    ...(byError ? { target: unlearnable / train.count } : {}),
  };
  const { folder, remove } = await openScratch('check');
  let pool: Pool | null = null;
  const usedServer = await startOwnServer({ state: join(folder, 'state'), port: 0, log });
  let over = false;
  try {
    const note = options.json ? log : tell;
    pool = startLocalWorkers({
      ...{ run: null, options, usedServer, log, note, folders: [dirname(resolve(file))] },
      isOver: async () => over || signal.aborted,
    });
    const { trials, done } = await conductStudy({
      ...{ client: usedServer.client, name: 'check', folder, settings: 'tiny', signal },
      experiment: experimentName(file),
      experimentHash: await hashExperiment(file),
      plan: tinyPlan(settings),
      ...{ parallel: 1, lookahead: 0, keepCurves: true, onEvent: () => {} },
      failed: pool.failed,
    });
    if (!done) signal.throwIfAborted();
    return judgeTiny(tinyResults(trials, settings), settings);
  } finally {
    over = true;
    await pool?.stop();
    await usedServer.close();
    await remove();
  }
}

/** From so many updates between a gradient's pull and its push, on average, staleness can be blamed. */
const STALE = 0.3;

export function judgeTiny(results: readonly TinyResult[], settings: TinySettings): Finding {
  const { examples, metric, target, steps, unlearnable = 0, certain = true } = settings;
  const isError = metric === 'trainingError';
  const show = (value: number | null) =>
    value === null ? 'none' : isError ? percent(value) : short(value);
  const told = results.map(({ workers, value, step }) => {
    const who = workers === 1 ? '1 worker' : `${workers} workers`;
    return `${who}: ${isError ? 'error' : 'loss'} ${show(value)} after ${step} updates`;
  });
  const numbers = { examples, target, metric, unlearnable, results };
  const wanted = isError && target === 0 ? '' : ` (wanted: ${show(target)})`;
  const twins =
    unlearnable === 0
      ? ''
      : ` ${unlearnable} of them have the same inputs as another example but a different target, so no model can learn them.`;
  const text = `Can the model memorise ${examples} examples? ${told.join('; ')}${wanted}.${twins}`;
  const [alone, together] = results;
  const failed = results.find((result) => !result.learnt && result.failed);
  if (failed) {
    const who = failed.workers === 1 ? 'one worker' : `${failed.workers} workers`;
    return finding(
      'tiny',
      'problem',
      `${text} The training of ${who} failed: ${failed.reason}.`,
      failed.refused
        ? 'fix what the message names'
        : 'fix what the other checks found; if the loss overflows, lower learningRate (`downpour lr-find`)',
      numbers,
    );
  }
  if (!alone?.learnt) {
    if (alone?.falling) {
      return finding(
        'tiny',
        'advice',
        `${text} Not in ${steps} updates, but the training loss was still falling: it learns slowly.`,
        'raise learningRate (`downpour lr-find`), and check again',
        numbers,
      );
    }
    const isSure = certain && (isError || unlearnable === 0);
    return isSure
      ? finding(
          'tiny',
          'problem',
          `${text} It cannot in ${steps} updates. The cause is a defect or a wrong learning rate rather than underfitting (Deep Learning §11.5).`,
          'fix what the other checks found; then `downpour lr-find`; then fewer regularisers (dropout, noise) or a larger model',
          numbers,
        )
      : finding(
          'tiny',
          'advice',
          `${text} The minimum of this loss is not known, so it may already be reached.`,
          'compare it with the loss of perfect predictions; then `downpour lr-find`',
          numbers,
        );
  }
  if (together && !together.learnt) {
    if (!(together.staleness >= STALE)) {
      return finding(
        'tiny',
        'advice',
        `${text} The gradients of the ${together.workers} workers were hardly stale (${short(together.staleness)} updates on average), so staleness is not the reason.`,
        'try again: the order of examples and the noise differ each time; a lower learningRate makes both runs more stable',
        numbers,
      );
    }
    return finding(
      'tiny',
      'advice',
      `${text} One worker can. ${together.workers} workers, whose gradients were ${short(together.staleness)} updates stale on average, cannot. The cause is staleness, not the model.`,
      'lower learningRate or momentum, bound consistency.stalenessMax, or use fewer workers; `downpour lr-find --workers-per-trial` shows the limit',
      numbers,
    );
  }
  return finding('tiny', 'ok', text, null, numbers);
}

/** Examples whose inputs another one has too, with another target: all but the most frequent target of each. */
export function contradictions(train: Examples, classCount: number | null): number {
  const size = rowSize(train.targets);
  const isShares = classCount !== null && size === classCount;
  const inputs = rowHashes(train, train.inputs);
  const groups = new Map<string, Map<string, number>>();
  inputs.forEach((hash, row) => {
    const target = train.targets.values.slice(row * size, (row + 1) * size);
    const key = isShares ? String(target.indexOf(Math.max(...target))) : target.join(' ');
    const group = groups.get(hash) ?? new Map<string, number>();
    group.set(key, (group.get(key) ?? 0) + 1);
    groups.set(hash, group);
  });
  let count = 0;
  for (const group of groups.values()) {
    const each = [...group.values()];
    count += each.reduce((a, b) => a + b, 0) - Math.max(...each);
  }
  return count;
}
