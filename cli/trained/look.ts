import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileVersion, pictures } from '../../files/event-file.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { ExampleView } from '../../shared/example-view.ts';
import { secondsOf } from '../../shared/history.ts';
import { LIMITS } from '../../shared/limits.ts';
import { pngOf } from '../../study/figures.ts';
import { type LookSettings, lookReport } from '../../study/look.ts';
import { joinReports, lookLossesReport } from '../../study/look-losses.ts';
import { type LookedWords, withWords } from '../../study/look-words.ts';
import { observationsReport } from '../../study/observations.ts';
import { type Report, writeReport } from '../../study/report.ts';
import { lookName, toldReport } from '../../study/telling.ts';
import { measuredExamples } from '../../worker/answers.ts';
import { sizeOf } from '../../worker/data/columns.ts';
import { numbersView, viewerFor } from '../../worker/data/views.ts';
import { type ExperimentOutput, outputNamed, outputsOf } from '../../worker/outputs.ts';
import { seenMinibatch } from '../../worker/seen-minibatch.ts';
import { tell } from '../options.ts';
import { showReport } from '../output/report.ts';
import { Teller } from '../study/tell.ts';
import { openUsedServer } from '../used-server.ts';
import { type WordOptions, wordsOfAnswers, wordsOfExamples } from './look-words.ts';
import { answersOfPart, openTrained, type TrainedModel, type TrainedOptions } from './trained.ts';

export interface LookOptions extends WordOptions {
  readonly worst: number;
  readonly random: number;
  readonly sampleSeed: number;
  readonly out?: string;
  readonly tensorboard?: string;
  readonly json?: boolean;
}

/** `downpour look <experiment>` */
export async function lookCommand(file: string, options: LookOptions): Promise<void> {
  const trained = await openTrained(file, options);
  try {
    const { part } = options;
    const {
      report: own,
      show,
      words,
    } = trained.experiment.objective
      ? await lookAtLosses(trained, options)
      : await lookAtAnswers(trained, options);
    const report = withObserved(withCaution(withWords(own, words), trained, part), trained);
    if (options.tensorboard !== undefined) {
      await writePictures(resolve(options.tensorboard), report, show, trained.facts.step);
    }
    await tellReport('look', report, trained, {
      ...options,
      out: options.out ?? `looks/${trained.facts.run}`,
    });
  } finally {
    await trained.close();
  }
}

interface LookResult {
  readonly report: Report;
  readonly show: (row: number) => ExampleView;
  readonly words: LookedWords;
}

const settingsOf = (trained: TrainedModel, options: LookOptions): LookSettings => {
  const { part, worst, random, sampleSeed: seed } = options;
  return { name: trained.facts.run, part, worst, random, seed };
};

/** Which examples a report shows: only those are read from a source. */
function shownBy(report: (show: (row: number) => ExampleView) => unknown): readonly number[] {
  const shown: number[] = [];
  report((row) => {
    shown.push(row);
    return { kind: 'text', text: '' };
  });
  return shown;
}

/** The answers of each output, beside what would be right. */
async function lookAtAnswers(trained: TrainedModel, options: LookOptions): Promise<LookResult> {
  const settings = settingsOf(trained, options);
  const all = outputsOf(trained.experiment, trained.prepared);
  const asked = options.output === undefined ? all : [outputNamed(all, options.output)];
  const examplesMax = Math.min(...asked.map(examplesThatFit));
  const { each, rows } = await answersOfPart(trained, options.part, asked, examplesMax);
  const minibatch = await minibatchOf(trained);
  const report = (show: LookResult['show']) =>
    joinReports(
      Object.fromEntries(
        each.map(({ output, answers }) => {
          const { name, classes, targetNames } = output;
          // A minibatch is shown with its first target.
          const seen = name === all[0]!.name ? minibatch : [];
          const looked = { answers, rows, classes, targetNames, show, minibatch: seen };
          return [name, lookReport(settings, looked)];
        }),
      ),
    );
  const { prepared } = trained;
  const show = await viewerFor(prepared, options.part, shownBy(report));
  const [{ answers }] = each as [(typeof each)[number]];
  return {
    ...{ report: withSpread(report(show), rows.length, prepared[options.part].count), show },
    words: await wordsOfAnswers(trained, options, answers, rows),
  };
}

/** Examples whose answers fit into the memory that a look takes. */
export function examplesThatFit({
  classCount,
  targetSize,
}: Pick<ExperimentOutput, 'classCount' | 'targetSize'>): number {
  const isShares = classCount !== null && targetSize % classCount === 0;
  const numbers = classCount === null || isShares ? targetSize : classCount * targetSize;
  return Math.max(1, Math.floor(LIMITS.lookedNumbersMax / Math.max(1, numbers)));
}

function withSpread(report: Report, looked: number, count: number): Report {
  if (looked >= count) return report;
  const told = `The answers to all examples would take too much memory, so ${looked} of the ${count} examples were looked at, evenly spaced.`;
  return { ...report, advice: `${report.advice} ${told}` };
}

/** The losses of an objective, and what an autoencoder makes of its inputs. */
async function lookAtLosses(trained: TrainedModel, options: LookOptions): Promise<LookResult> {
  const { part, output } = options;
  if (output !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `--output is '${output}', but the experiment has an objective, which has one loss for all outputs: leave the option out`,
    );
  }
  const settings = settingsOf(trained, options);
  const { model, prepared } = trained;
  const examples = await measuredExamples(model, prepared, { part });
  const minibatch = await minibatchOf(trained);
  const outputOf = new Map(examples.map(({ row, output }) => [row, output]));
  const inputShape = prepared.train.inputs.shape.slice(1);
  const isCopy = examples.every(({ output }) => output?.length === sizeOf(inputShape));
  const showOutput = (row: number) =>
    numbersView(outputOf.get(row)!, inputShape, 0, prepared.inputNames);
  const looked = { examples, count: prepared[part].count, minibatch };
  const report = (show: LookResult['show']) =>
    lookLossesReport(settings, { ...looked, show, ...(isCopy && { showOutput }) });
  const show = await viewerFor(prepared, part, shownBy(report));
  const rows = Int32Array.from(examples, ({ row }) => row);
  const losses = examples.map(({ loss }) => loss);
  const words = await wordsOfExamples(trained, options, losses, rows);
  return { report: report(show), show, words };
}

/** Examples of one training minibatch that are shown: two rows of pictures. */
const SEEN = 16;

/** A minibatch as the model sees it; empty: the experiment changes none, and the examples themselves show it. */
async function minibatchOf({ experiment, model, prepared, config }: TrainedModel) {
  return experiment.batch ? seenMinibatch(model, prepared, config, SEEN) : [];
}

/** Lists of a report's facts. */
type ShownRows = Readonly<Record<'worst' | 'random', readonly { readonly row: number }[]>>;

/** The examples of a report as an event file, those that are pictures. */
async function writePictures(
  folder: string,
  { facts }: Report,
  show: (row: number) => ExampleView,
  step: number,
): Promise<void> {
  const wallTime = secondsOf(new Date().toISOString());
  const parts = [fileVersion(wallTime)];
  const outputs = Object.entries((facts.outputs as Record<string, ShownRows>) ?? { '': facts });
  for (const [name, own] of outputs) {
    for (const list of ['worst', 'random'] as const) {
      for (const [i, { row }] of (own as ShownRows)[list].entries()) {
        const shown = show(row);
        if (shown.kind !== 'image') continue;
        const { width, height } = shown;
        // Whatever it was of: the file has red, green, blue and how opaque it is.
        const picture = { width, height, channels: 4, png: pngOf(shown) } as const;
        const tag = `${name === '' ? '' : `${name}/`}${list}/${i}`;
        parts.push(pictures({ wallTime, step }, { [tag]: picture }));
      }
    }
  }
  await mkdir(folder, { recursive: true });
  const name = `events.out.tfevents.${Math.floor(wallTime)}.${process.pid}.look`;
  await writeFile(join(folder, name), Buffer.concat(parts));
}

/** The validation part is not always apart from what was learnt. */
function withCaution(
  report: Report,
  { facts, note, config }: TrainedModel,
  part: LookOptions['part'],
): Report {
  if (part !== 'validation') return report;
  const { afterStop } = config.earlyStopping;
  const cautions = [
    ...(facts.learntValidation
      ? [
          `The ${facts.kind} parameters were trained on these examples, too (earlyStopping.afterStop is '${afterStop}'): new examples will do worse. --kind best has those from before.`,
        ]
      : []),
    ...(note === null ? [] : [`Mind: ${note}.`]),
  ];
  return { ...report, advice: [...cautions, report.advice].join(' ') };
}

/** What was sampled while training, behind what the answers show. */
function withObserved(report: Report, { observed, sampledRun, facts }: TrainedModel): Report {
  const { run, kind, step } = facts;
  const more = observed ? observationsReport(observed, sampledRun ?? {}) : null;
  return {
    ...report,
    advice: more ? `${report.advice} ${more.advice}` : report.advice,
    plots: { ...report.plots, ...more?.plots },
    facts: { ...report.facts, run, kind, step, observations: more?.facts ?? null },
  };
}

export interface TellOptions extends TrainedOptions {
  readonly out: string;
  readonly json?: boolean;
}

/** Writes a report and says what it says, to the server that has the run as well. */
export async function tellReport(
  kind: string,
  report: Report,
  { facts: { run, experiment } }: TrainedModel,
  options: TellOptions,
): Promise<void> {
  const paths = await writeReport(resolve(options.out), report);
  // Nobody knows which run a file is of.
  if (options.checkpoint === undefined) {
    const usedServer = await openUsedServer({ ...options, run });
    try {
      const own = { kind, state: 'ended' as const, experiment, run, trials: null, runs: [run] };
      await new Teller(usedServer.client, lookName(kind, run), tell).last(toldReport(own, report));
    } finally {
      await usedServer.close();
    }
  }
  showReport(report, paths, options.json);
}
