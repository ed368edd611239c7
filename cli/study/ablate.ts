import { readFile } from 'node:fs/promises';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { ablationPlan, ablationReport } from '../../study/ablate.ts';
import type { Metric } from '../../study/study.ts';
import {
  builtInVariants,
  checkVariants,
  ownVariants,
  VARIANT_SETS,
  type VariantSet,
} from '../../study/variants.ts';
import { type StudyCommandOptions, type StudyContext, studyCommand } from './study.ts';

export interface AblateOptions extends StudyCommandOptions {
  /** A built-in set, or a JSON file; absent: the experiment's own. */
  readonly variants?: string;
  readonly repeats: number;
  readonly metric: Metric;
}

/** `downpour ablate <experiment>`. @returns the exit code. */
export async function ablateCommand(file: string, options: AblateOptions): Promise<number> {
  const { variants, repeats, metric } = options;
  const fromFile =
    variants === undefined || VARIANT_SETS.includes(variants) ? null : await readVariants(variants);
  return studyCommand('ablate', file, options, (context) => {
    const { base } = context;
    const set = fromFile ?? setOf(variants, context);
    checkVariants(set, base);
    const settings = { set, repeats, metric, base };
    const plan = ablationPlan(settings);
    return {
      // The metric changes the report, not the runs. What a variant is belongs to the settings.
      settings: { repeats, variants: set.of(ANY, context.config) },
      plan,
      trialCount: plan.trialCount,
      report: (name, trials) => ablationReport(name, settings, trials),
    };
  });
}

const ANY = { parameters: 1, trainCount: 1 };

function setOf(
  variants: string | undefined,
  { experiment, config, file }: StudyContext,
): VariantSet {
  if (variants !== undefined) return builtInVariants(variants, config)!;
  if (experiment.ablate) return ownVariants(experiment.ablate, `the field ablate of ${file}`);
  throw new DownpourError(
    'DP_USAGE',
    `there is nothing to compare: give the experiment a field ablate, or name a set by --variants (${VARIANT_SETS.join(', ')}) or a JSON file`,
  );
}

async function readVariants(path: string): Promise<VariantSet> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `--variants ${path} is none of ${VARIANT_SETS.join(', ')}, and cannot be read as a JSON file: ${errorText(cause)}`,
      { cause },
    );
  }
  return ownVariants(value, path);
}
