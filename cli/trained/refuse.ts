import { DownpourError } from '../../shared/errors.ts';
import { refuseReport } from '../../study/refuse.ts';
import { tellReport } from './look.ts';
import { answersOfPart, openTrained, type TrainedOptions } from './trained.ts';

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
    const { answers } = await answersOfPart(trained, 'validation');
    if (answers.kind === 'numbers') {
      throw new DownpourError(
        'DP_USAGE',
        'the answers of this experiment are numbers, which say nothing of how sure they are: refusing needs classes, or yes and no',
      );
    }
    if (answers.count / answers.perExample < 2) {
      throw new DownpourError(
        'DP_USAGE',
        'the validation part has one example, but thresholds are chosen on one half of it and measured on the other. At least two examples are needed, and some hundred for a useful result; raise validationFraction and train again',
      );
    }
    const { run } = trained.facts;
    const report = refuseReport(
      {
        ...{ name: run, part: 'validation', seed: options.halfSeed },
        ...{ accuracies: options.accuracy, coverages: options.coverage },
      },
      answers,
    );
    await tellReport('refuse', report, trained, {
      ...options,
      out: options.out ?? `refusals/${run}`,
    });
  } finally {
    trained.model.dispose();
  }
}
