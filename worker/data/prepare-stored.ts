import { dataDigest } from '../../shared/digest.ts';
import { errorText } from '../../shared/errors.ts';
import { addClassCounts } from '../class-weights.ts';
import { keepResult, recallResult } from '../kept.ts';
import { isFloat, rowSize } from './columns.ts';
import type { Examples, ExperimentData, PreparedData, PrepareOptions } from './examples.ts';
import { viewOf } from './fields.ts';
import { Measured, type MeasuredInputs, type ReadingOptions } from './measured.ts';
import { partsOf } from './parts.ts';
import { allStored, columnNamed, headsOf, mustHaveOneType, readPieces } from './pieces.ts';
import { checkedData, prepareData, preparedFrom } from './prepare-data.ts';
import type { ExampleSource } from './source.ts';
import { ReadProgress } from './sources/read-progress.ts';
import { split, stratifiedClasses } from './split.ts';
import { mustVaryAsSeen, type Survey, survey, surveyed, type Target, targetsOf } from './survey.ts';

/** The same as `prepareData`, of data that are read piece by piece: to the bit, but for the fingerprint. */

/**
 * Prepares data of arrays or of sources.
 * @throws DownpourError as `prepareData` and `readSourceRows`; the reason of the signal.
 */
export async function prepareAny(
  given: ExperimentData,
  options: PrepareOptions,
  reading: ReadingOptions,
): Promise<PreparedData> {
  const isRead = partsOf(given).some(([, { stored }]) => stored);
  return isRead ? prepareStored(given, options, reading) : prepareData(given, options);
}

async function prepareStored(
  given: ExperimentData,
  options: PrepareOptions,
  reading: ReadingOptions,
): Promise<PreparedData> {
  const { log, signal } = reading;
  const all = allStored(given);
  mustHaveOneType(all);
  // Most mistakes show in the first examples: they are told before all of them are read.
  checkedData(await headsOf(all, signal), options);
  const like = checkedData(all, options);
  const targets = targetsOf(like, options);
  const { folds = null, stratified = false } = options.validation ?? {};
  // Stratified folds need the classes before the split; then the parts are measured by a pass of their own.
  const classes = folds !== null && stratified ? new Float64Array(like.train.count) : null;
  const measured = new Measured(like, options, reading);
  const surveyKey = keyOf(like, ['survey', targets]);
  let seen = classes ? null : recalled<Survey>(surveyKey);
  let isMeasured = false;
  if (!seen) {
    const early = classes ? null : split(like, options);
    const feeder = early && measured.feeder(like, { ...early, test: like.test ?? null });
    const total = partsOf(like).reduce((sum, [, { count }]) => sum + count, 0);
    const progress = new ReadProgress(log, 'checking the data', 'examples', total);
    let done = 0;
    seen = await survey(like, targets, signal, (part, piece) => {
      feeder?.add(part, piece);
      if (classes && part === 'train') addClasses(classes, like, piece);
      done += piece.count;
      progress.tell(done);
    });
    isMeasured = feeder !== null;
    kept(surveyKey, seen, log);
  }
  const data = surveyed(like, seen);
  mustVaryAsSeen(data, targets, seen, (name) => viewOf(data, name));
  // Targets that are no classes are refused here.
  if (classes) stratifiedClasses({ ...data, train: { ...data.train, count: 0 } });
  const { train, validation, rows } = split(data, options, classes ?? undefined);
  const parts = { train, validation, test: data.test ?? null };
  const { facts = null, ...how } = options;
  const measuresKey = keyOf(like, ['measures', seen.fingerprint, how, digestOf(facts)]);
  let measures = recalled<MeasuredInputs>(measuresKey);
  if (!measures) {
    measures = await measured.finish(parts, seen, isMeasured);
    kept(measuresKey, measures, log);
  }
  const prepared = preparedFrom(data, {
    ...{ ...parts, rows, raw: seen.fingerprint },
    ...measured.transforms(measures),
  });
  if (!options.countClasses) return prepared;
  const countsKey = keyOf(like, ['class counts', seen.fingerprint, how]);
  let classCounts = recalled<ClassCounts>(countsKey);
  if (!classCounts) {
    classCounts = await countClasses(train, targets, signal);
    kept(countsKey, classCounts, log);
  }
  return { ...prepared, classCounts };
}

type ClassCounts = NonNullable<PreparedData['classCounts']>;

/** How often each class is in a part, of all targets that have classes. */
async function countClasses(
  part: Examples,
  targets: readonly Target[],
  signal: AbortSignal | undefined,
): Promise<ClassCounts> {
  const counted = targets.flatMap(({ name, loss, classCount }) => {
    const classes = loss === 'sigmoidCrossEntropy' ? 2 : classCount;
    return classes ? [{ name, loss, counts: new Array<number>(classes).fill(0) }] : [];
  });
  for await (const piece of readPieces(part, signal)) {
    for (const { name, loss, counts } of counted) {
      addClassCounts(counts, columnNamed(piece, name), loss);
    }
  }
  return Object.fromEntries(counted.map(({ name, counts }) => [name, counts]));
}

const digestOf = (value: unknown) =>
  dataDigest()
    .update(new TextEncoder().encode(JSON.stringify(value)))
    .hex();

function addClasses(classes: Float64Array, data: ExperimentData, piece: Examples): void {
  const { targets } = piece;
  const isRows = rowSize(targets) > 1 && !isFloat(targets.values);
  // Whole numbers for each class are shares, if they are anything.
  const values = isRows ? Float32Array.from(targets.values) : targets.values;
  const own = stratifiedClasses({ ...data, train: { ...piece, targets: { ...targets, values } } });
  classes.set(own, targets.firstRow ?? 0);
}

/** Results that this process has found, by their keys: the newest. */
const found = new Map<string, unknown>();
const FOUND_MAX = 64;

/** Sources that say nothing of their contents, by the order in which this process has met them. */
const unnamed = new WeakMap<ExampleSource, number>();
let unnamedCount = 0;

/** What a result depends on; and whether it may be known in another process. */
function keyOf(data: ExperimentData, more: unknown): FoundKey {
  let isKnown = true;
  const parts = partsOf(data).map(([part, { stored }]) => {
    const { source } = stored!;
    const { key, count, fields } = source;
    isKnown &&= key !== undefined;
    if (key === undefined && !unnamed.has(source)) unnamed.set(source, ++unnamedCount);
    return [part, key ?? unnamed.get(source), count, fields];
  });
  const text = JSON.stringify([FOUND_VERSION, parts, data.classes, data.classCount, more]);
  return { text, isKnown };
}

interface FoundKey {
  readonly text: string;
  readonly isKnown: boolean;
}

/** Changes when a check is added. */
const FOUND_VERSION = 1;

function recalled<T>({ text, isKnown }: FoundKey): T | null {
  return (found.get(text) ?? (isKnown ? recallResult(text) : null)) as T | null;
}

function kept({ text, isKnown }: FoundKey, value: unknown, log: (line: string) => void): void {
  found.set(text, value);
  if (found.size > FOUND_MAX) found.delete(found.keys().next().value!);
  if (!isKnown) return;
  try {
    keepResult(text, value);
  } catch (error) {
    log(`what was found in the data is not kept for the next start: ${errorText(error)}`);
  }
}
