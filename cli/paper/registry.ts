import type { Result } from './result.ts';
import { backup } from './results/backup.ts';
import { dana } from './results/dana.ts';
import { diloco } from './results/diloco.ts';
import { easgd } from './results/easgd.ts';
import { laws } from './results/laws.ts';
import { manyWorkers } from './results/many-workers.ts';
import { momentum } from './results/momentum.ts';
import { ringmaster } from './results/ringmaster.ts';
import { sparseloco } from './results/sparseloco.ts';
import { ssp } from './results/ssp.ts';
import { stability } from './results/stability.ts';
import { staleness } from './results/staleness.ts';
import { topk } from './results/topk.ts';

/** All results that can be repeated, one file each: add yours here. */
export const RESULTS: readonly Result[] = [
  staleness,
  momentum,
  stability,
  dana,
  topk,
  laws,
  easgd,
  diloco,
  sparseloco,
  ssp,
  backup,
  ringmaster,
  manyWorkers,
];
