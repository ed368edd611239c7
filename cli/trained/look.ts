import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileVersion, pictures } from '../../files/event-file.ts';
import type { ExampleView } from '../../shared/example-view.ts';
import { secondsOf } from '../../shared/history.ts';
import { pngOf } from '../../study/figures.ts';
import { lookReport } from '../../study/look.ts';
import { observationsReport } from '../../study/observations.ts';
import { type Report, writeReport } from '../../study/report.ts';
import { lookName, toldReport } from '../../study/telling.ts';
import { viewerFor } from '../../worker/data/views.ts';
import { seenMinibatch } from '../../worker/seen-minibatch.ts';
import { tell } from '../options.ts';
import { showReport } from '../output/report.ts';
import { Teller } from '../study/tell.ts';
import { openUsedServer } from '../used-server.ts';
import { answersOfPart, openTrained, type TrainedModel, type TrainedOptions } from './trained.ts';

export interface LookOptions extends TrainedOptions {
  readonly part: 'train' | 'validation';
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
    const { part, worst, random, sampleSeed: seed } = options;
    const { answers, rows } = await answersOfPart(trained, part);
    const settings = { name: trained.facts.run, part, worst, random, seed };
    const { classes, targetNames } = trained.prepared;
    const known = { answers, rows, classes, targetNames };
    // Which examples it shows is known when it is made: only those are read from a source.
    const shown: number[] = [];
    lookReport(settings, {
      ...known,
      show: (row) => {
        shown.push(row);
        return { kind: 'text', text: '' };
      },
    });
    const show = await viewerFor(trained.prepared, part, shown);
    const minibatch = await minibatchOf(trained);
    const report = withObserved(
      withCaution(lookReport(settings, { ...known, show, minibatch }), trained, part),
      trained,
    );
    if (options.tensorboard !== undefined) {
      await writePictures(resolve(options.tensorboard), report, show, trained.facts.step);
    }
    await tellReport('look', report, trained, {
      ...options,
      out: options.out ?? `looks/${trained.facts.run}`,
    });
  } finally {
    trained.model.dispose();
  }
}

/** Examples of one training minibatch that are shown: two rows of pictures. */
const SEEN = 16;

/** A minibatch as the model sees it; empty: the experiment changes none, and the examples themselves show it. */
async function minibatchOf({ experiment, model, prepared, config }: TrainedModel) {
  return experiment.batch ? seenMinibatch(model, prepared, config, SEEN) : [];
}

/** The examples of a report as an event file, those that are pictures. */
async function writePictures(
  folder: string,
  { facts }: Report,
  show: (row: number) => ExampleView,
  step: number,
): Promise<void> {
  const wallTime = secondsOf(new Date().toISOString());
  const parts = [fileVersion(wallTime)];
  for (const list of ['worst', 'random'] as const) {
    for (const [i, { row }] of (facts[list] as { row: number }[]).entries()) {
      const shown = show(row);
      if (shown.kind !== 'image') continue;
      const { width, height } = shown;
      // Whatever it was of: the file has red, green, blue and how opaque it is.
      const picture = { width, height, channels: 4, png: pngOf(shown) } as const;
      parts.push(pictures({ wallTime, step }, { [`${list}/${i}`]: picture }));
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
