import { Parameters } from '../../server/core/parameters.ts';
import { createRunTables } from '../../server/core/tables/run-tables.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { RunConfig } from '../../shared/config.ts';
import { groupsOf } from '../../shared/groups.ts';
import type { Layout } from '../../shared/layout.ts';
import type { Updater } from '../../worker/check/training.ts';
import { rowSourceOf, stageRows } from '../own-tables.ts';

/**
 * The server's own update rule without a server, at a constant learning rate, for the check of an
 * experiment. @param initial shape [layout.size].
 */
export function createUpdater(layout: Layout, config: RunConfig, initial: Float32Array): Updater {
  const tables = createRunTables(config);
  const parameters = new Parameters(layout, { ...config, averaging: NONE });
  parameters.initialise(initial);
  const { clip, learningRate } = config;
  const isGrouped = groupsOf(config) !== null;
  const limit = clip.value ?? Infinity;
  return {
    get parameters() {
      return parameters.exchanged();
    },
    rows: tables && rowSourceOf(tables),
    apply({ gradient, rows }, step) {
      const staged = parameters.stage(bytesOf(gradient), 'f32');
      if (tables && rows) stageRows(tables, rows);
      const norm = Math.sqrt(parameters.squares(staged, limit) + (tables?.squares(limit) ?? 0));
      if (!Number.isFinite(norm)) return false;
      const factor = clip.norm !== null && norm > clip.norm ? clip.norm / norm : 1;
      // Schedules of groups begin at the first update, as that of the run would.
      if (tables && !tables.apply(learningRate, { limit, factor }, () => 1)) return false;
      const groups = isGrouped ? { scheduleStep: step - 1, unscheduledRate: learningRate } : null;
      return parameters.update(
        staged,
        { limit, factor },
        { step, learningRate, ...(groups && { groups }) },
      );
    },
  };
}

const NONE = { kind: 'none', decay: 0, startStep: 0 } as const;
