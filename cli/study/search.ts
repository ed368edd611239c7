import { readFile } from 'node:fs/promises';
import { relative } from 'node:path';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { pathArgument, shellCommand } from '../../shared/shell.ts';
import { checkSpace, type Space } from '../../shared/space.ts';
import { createSearchPlan, ranked, type SearchSettings } from '../../study/search.ts';
import { searchReport } from '../../study/search-report.ts';
import { defaultSpace, parseDimension } from '../../study/space.ts';
import type { Metric, Trial } from '../../study/study.ts';
import { configOf, tell } from '../options.ts';
import { type StudyCommandOptions, studyCommand } from './study.ts';

export interface SearchOptions extends StudyCommandOptions {
  readonly trials: number;
  readonly method: SearchSettings['method'];
  readonly space?: readonly string[];
  readonly spaceFile?: string;
  readonly searchSeed: number;
  readonly metric: Metric;
  readonly rounds: number;
  readonly learningRateFirst?: boolean;
  readonly kill: SearchSettings['kill'];
  readonly eta: number;
  readonly first: number;
}

/** `downpour search <experiment>`. @returns the exit code. */
export async function searchCommand(file: string, options: SearchOptions): Promise<number> {
  const fromFile = options.spaceFile === undefined ? null : await readSpace(options.spaceFile);
  return studyCommand('search', file, options, ({ experiment, base, config }) => {
    const space = spaceOf(experiment.search, fromFile, options.space) ?? ownSpace(base);
    const { trials, method, metric, rounds, kill, eta, first } = options;
    const settings: SearchSettings = {
      ...{ space, method, trials, metric, rounds, kill, eta, first, base },
      seed: options.searchSeed,
      learningRateFirst: options.learningRateFirst === true,
    };
    const plan = createSearchPlan(settings);
    // More trials of a plain random or Sobol search are more of the same: raising --trials goes on.
    const isFixed = rounds > 1 || options.learningRateFirst === true || method === 'grid';
    const { base: _, trials: count, ...same } = settings;
    return {
      settings: { ...same, config, ...(isFixed ? { trials: count } : {}) },
      plan,
      trialCount: plan.trialCount,
      report: (name, done) =>
        searchReport(name, settings, done, finalCommand(file, options, done, metric)),
    };
  });
}

/** Trains the best trial once more, with a look at the test part at the end. */
function finalCommand(
  file: string,
  options: SearchOptions,
  trials: readonly Trial[],
  metric: Metric,
): string {
  const best = ranked(trials, metric)[0];
  const settings = { ...fieldsOf(configOf(options)), ...best?.point };
  const sets = Object.entries(settings).flatMap(([path, value]) => {
    const text = typeof value === 'number' ? Number(value.toPrecision(8)) : value;
    return ['--set', `${path}=${text}`];
  });
  const server = options.server === undefined ? [] : ['--server', options.server];
  return shellCommand(
    'downpour',
    'train',
    pathArgument(relative(process.cwd(), file)),
    ...sets,
    ...server,
  );
}

/** The fields of a part of a configuration, by path. */
function fieldsOf(config: Record<string, unknown>, above = ''): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(config).flatMap(([key, value]) =>
      typeof value === 'object' && value !== null && !Array.isArray(value)
        ? Object.entries(fieldsOf(value as Record<string, unknown>, `${above}${key}.`))
        : [[above + key, Array.isArray(value) ? JSON.stringify(value) : value]],
    ),
  );
}

/** Flags are stronger than a file, and that than the experiment. */
function spaceOf(
  own: Space | undefined,
  fromFile: Space | null,
  flags: readonly string[] | undefined,
): Space | null {
  const space: Record<string, unknown> = { ...(fromFile ?? (flags ? {} : own)) };
  for (const text of flags ?? []) {
    const { path, dimension } = parseDimension(text);
    space[path] = dimension;
  }
  const isGiven = own !== undefined || fromFile !== null || flags !== undefined;
  return isGiven ? checkSpace(space) : null;
}

/** For an experiment without a field `search`; the user is told what it is. */
function ownSpace(base: readonly unknown[]): Space {
  const space = defaultSpace(resolveConfig(...base));
  const ranges = Object.entries(space).map(([path, dimension]) =>
    dimension.kind === 'choice'
      ? `${path} among ${dimension.values.join(', ')}`
      : `${path} from ${dimension.low} to ${dimension.high}`,
  );
  tell(
    `the experiment has no field search, so it is searched over ${ranges.join('; ')}. --space names other ranges`,
  );
  return space;
}

async function readSpace(path: string): Promise<Space> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `the search space ${path} cannot be read: ${errorText(cause)}`,
      { cause },
    );
  }
  return checkSpace(value);
}
