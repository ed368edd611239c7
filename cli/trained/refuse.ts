import { DownpourError } from '../../shared/errors.ts';
import { refuseReport } from '../../study/refuse.ts';
import { outputNamed, outputsOf } from '../../worker/outputs.ts';
import { tellReport } from './look.ts';
import { answersOfPart, openTrained, type TrainedModel, type TrainedOptions } from './trained.ts';

export interface RefuseOptions extends TrainedOptions {
  readonly accuracy: readonly number[];
  readonly coverage: readonly number[];
  readonly halfSeed: number;
  readonly out?: string;
  readonly json?: boolean;
}

/** `downpour refuse <experiment>` */
export async function refuseCommand(file: string, options: RefuseOptions): Promise<void> {
  const trained = await openTrained(file, options);
  try {
    if (trained.facts.learntValidation) {
      throw new DownpourError(
        'DP_USAGE',
        `the ${trained.facts.kind} parameters of run ${trained.facts.run} were trained on its validation part, too (earlyStopping.afterStop is '${trained.config.earlyStopping.afterStop}'): how sure they are there says nothing of new examples; name those from before by --kind best`,
      );
    }
    const { name, answers } = await classesOf(trained, options.output);
    if (answers.count / answers.perExample < 2) {
      throw new DownpourError(
        'DP_USAGE',
        'the validation part has one example, but thresholds are chosen on one half of it and measured on the other. At least two examples are needed, and some hundred for a useful result; raise validationFraction and train again',
      );
    }
    const { run } = trained.facts;
    const report = refuseReport(
      {
        ...{
          name: name === '' ? run : `${run}, output ${name}`,
          part: 'validation',
          seed: options.halfSeed,
        },
        ...{ accuracies: options.accuracy, coverages: options.coverage },
      },
      answers,
    );
    await tellReport('refuse', report, trained, {
      ...options,
      out: options.out ?? `refusals/${run}`,
    });
  } finally {
    await trained.close();
  }
}

/** The answers of the output that chooses among classes, or says yes or no. */
async function classesOf(trained: TrainedModel, asked: string | undefined) {
  const all = outputsOf(trained.experiment, trained.prepared);
  const outputs = asked === undefined ? all : [outputNamed(all, asked)];
  const { each } = await answersOfPart(trained, 'validation', outputs);
  const able = each
    .filter(({ answers }) => answers.kind !== 'numbers')
    .map(({ output, answers }) => ({ name: output.name, answers }));
  if (able.length > 0) return outputNamed(able, asked);
  throw new DownpourError(
    'DP_USAGE',
    `the answers of ${asked === undefined ? 'this experiment' : `the output ${asked}`} are numbers, which say nothing of how sure they are: refusing needs classes, or yes and no`,
  );
}
