import { NAME_PATTERN } from './config.ts';
import { VERSION } from './version.ts';

/**
 * A bundle: one file of JavaScript that holds an experiment with all that it imports, but for Downpour and TensorFlow.js,
 * which are the worker's own. `train --send` makes it, the server keeps it by its SHA-256 and never looks into it, and
 * `work --accept-experiments` runs it.
 */

/** Hexadecimal SHA-256. */
export const BUNDLE_HASH = '^[0-9a-f]{64}$';

/**
 * A header of the handshake, from a worker that understands what the server tells of bundles; others are told nothing of
 * them. `yes`: it fetches them; `no`: it says that it does not.
 */
export const BUNDLE_HEADER = 'downpour-accepts-experiments';

/** What a bundle imports of Downpour and TensorFlow.js is written behind this, and found where Downpour lies. */
export const FROM_DOWNPOUR = 'downpour:';

/** What the first line of a bundle says. */
export interface BundleHead {
  readonly experiment: string;
  /** The hash of the experiment's files, as workers that have them compute it. */
  readonly experimentHash: string;
}

const MARK = '// Downpour experiment ';

export function bundleHead({ experiment, experimentHash }: BundleHead): string {
  return `${MARK}${JSON.stringify({ experiment, experimentHash, release: VERSION })}\n`;
}

/** @param text of a bundle, or its beginning. @returns null: it is none. */
export function readBundleHead(text: string): BundleHead | null {
  const [line = ''] = text.split('\n', 1);
  if (!line.startsWith(MARK)) return null;
  try {
    const { experiment, experimentHash } = JSON.parse(line.slice(MARK.length)) as BundleHead;
    const isName = typeof experiment === 'string' && new RegExp(NAME_PATTERN).test(experiment);
    return isName && typeof experimentHash === 'string' ? { experiment, experimentHash } : null;
  } catch {
    return null;
  }
}
