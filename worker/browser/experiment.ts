import { DownpourError } from '../../shared/errors.ts';
import { JOIN_PATHS } from '../../shared/join.ts';
import { unpackData } from '../data/packed.ts';
import type { DataArguments, Experiment, FoundExperiment } from '../experiment.ts';
import { type DataNeeds, mustSuit } from './needs.ts';

/**
 * In the place of `../experiment.ts` in a page: the experiments are those of the bundle that the page was sent, with
 * the hashes that their files had; and it is what they import as `downpour`.
 */

type Original = typeof import('../experiment.ts');

export interface BundledExperiment {
  readonly experiment: Experiment;
  /** The hash of its files, as every worker computes it. */
  readonly hash: string;
  /** Name of the file of its data. */
  readonly data: string;
  readonly needs: DataNeeds;
}

let bundle: Readonly<Record<string, BundledExperiment>> = {};

export function setBundle(given: Readonly<Record<string, BundledExperiment>>): void {
  bundle = given;
}

/** The experiments by name, which is also their path. */
export const findExperiments: Original['findExperiments'] = async () =>
  new Map(
    Object.entries(bundle).map(([name, { hash }]): [string, FoundExperiment] => [
      name,
      { path: name, hash },
    ]),
  );

export const hashExperiment: Original['hashExperiment'] = async (path) => bundled(path).hash;

/** A page is sent all at once: nothing of it changes. */
export const sourcesOf: Original['sourcesOf'] = async () => new Map();

/** Its `data` gives what the bundle has, or says that it was made for another configuration. */
export const loadExperiment: Original['loadExperiment'] = async (path) => {
  const { experiment, data: file, needs } = bundled(path);
  const data = async (args: DataArguments) => {
    mustSuit(path, needs, args);
    return unpackData(await download(file));
  };
  return { ...experiment, data };
};

function bundled(name: string): BundledExperiment {
  const found = bundle[name];
  if (found) return found;
  throw new DownpourError('DP_EXPERIMENT_UNKNOWN', `experiment '${name}' is not in this page`);
}

async function download(file: string): Promise<Uint8Array> {
  const answer = await fetch(new URL(JOIN_PATHS.files + file, location.origin));
  if (!answer.ok) {
    throw new DownpourError(
      'DP_DATA_MISSING',
      `the server answers ${answer.status} to a request for ${file}: reload the page`,
    );
  }
  return new Uint8Array(await answer.arrayBuffer());
}

// What experiments import.

export const defineExperiment: Original['defineExperiment'] = (experiment) => experiment;

const notHere = (name: string) => (): never => {
  throw new DownpourError(
    'DP_DATA_MISSING',
    `${name} reads files, and a page has none: call it in data() alone`,
  );
};
export const loadCsv: Original['loadCsv'] = notHere('loadCsv');
export const loadImageFolder: Original['loadImageFolder'] = notHere('loadImageFolder');
export const loadMnist: Original['loadMnist'] = notHere('loadMnist');
export const readIdx: Original['readIdx'] = notHere('readIdx');
export const readNpy: Original['readNpy'] = notHere('readNpy');
