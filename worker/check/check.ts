import type { RunConfig } from '../../shared/config.ts';
import type { Layout } from '../../shared/layout.ts';
import { isPlain, type PreparedData } from '../data/examples.ts';
import type { Experiment } from '../experiment.ts';
import { canWeighClasses } from '../losses.ts';
import { buildModel } from '../model.ts';
import { checkData, type ExampleCounts, embeddingRows } from './data.ts';
import { type Finding, finding } from './finding.ts';
import { checkModel } from './model.ts';
import { checkTargets } from './targets.ts';
import { checkTraining, type Updater } from './training.ts';

export interface CheckOptions {
  readonly experiment: Experiment;
  readonly config: RunConfig;
  readonly prepared: PreparedData;
  /** Examples that there are, where `prepared` has only some of them. */
  readonly counts?: ExampleCounts;
  /** Updates of the trial. */
  readonly steps: number;
  /** The server's update rule from these parameters, shape [layout.size]. */
  readonly updater: (layout: Layout, initial: Float32Array) => Updater;
  readonly onFinding?: (finding: Finding) => void;
}

/**
 * All that one process can find out about an experiment before it is trained: data, model with initial
 * parameters, a short training (Deep Learning §11.5). An engine must be open.
 * @throws DownpourError of `buildModel`.
 */
export async function checkExperiment(options: CheckOptions): Promise<Finding[]> {
  const { experiment, config, prepared, counts, steps, updater, onFinding } = options;
  const findings: Finding[] = [];
  const tell = (found: readonly Finding[]) => {
    findings.push(...found);
    for (const each of found) onFinding?.(each);
  };
  const isWeighed = canWeighClasses(experiment) ? experiment.classWeights !== undefined : null;
  // Not recorded: single steps of many shapes, each once.
  const model = await buildModel(experiment, config, prepared, { record: false }).catch(
    (error: unknown) => {
      // What is wrong with the data may be why.
      tell(
        isPlain(prepared.train)
          ? [...checkData(prepared, null, counts, isWeighed), ...checkTargets(prepared)]
          : [],
      );
      throw error;
    },
  );
  try {
    const own = updater(model.layout, (await model.initialise(config.seed)).slice());
    model.rows?.from(own.rows);
    const embedding = embeddingRows(model);
    tell(
      isPlain(prepared.train)
        ? [...checkData(prepared, embedding, counts, isWeighed), ...checkTargets(prepared)]
        : [notPlain(prepared)],
    );
    tell(await checkModel({ experiment, prepared, config, rows: own.rows }, model));
    tell(
      await checkTraining({
        ...{ prepared, model, config, steps, updater: own },
      }),
    );
  } finally {
    model.dispose();
  }
  return findings;
}

/** What is not looked at is said. */
function notPlain({ train, validation, test }: PreparedData): Finding {
  const names = Object.entries(train.fields ?? {}).map(([name, { role }]) => `${name} (${role})`);
  return finding(
    'fields',
    'advice',
    `${train.count} training, ${validation.count} validation, ${test?.count ?? 0} test examples; fields: ${names.join(', ') || 'inputs'}. The checks of scale, classes, labels, duplicates and copied targets were not made: they look at data with one input and one target.`,
    'look at each field in data()',
    { fields: names },
  );
}
