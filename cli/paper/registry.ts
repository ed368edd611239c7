import type { Result } from './result.ts';
import { manyWorkers } from './results/many-workers.ts';

/** All results that can be repeated, one file each: add yours here. */
export const RESULTS: readonly Result[] = [manyWorkers];
