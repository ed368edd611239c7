import type { CheckpointTensor } from '../../files/checkpoint.ts';
import { createRunTables } from '../../server/core/tables/run-tables.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { tablesOf } from '../../shared/tables.ts';
import type { Model } from '../../worker/model.ts';
import { rowSourceOf } from '../own-tables.ts';

/** Rows of tables for a model that is used without the server of its run. */

/**
 * Gives a model the rows of a checkpoint. Rows that no push has changed have their initial values.
 * @param tensors of the checkpoint. A model without tables is left alone.
 * @throws DownpourError DP_USAGE: it is a checkpoint to continue from, whose rows are not those of one moment.
 */
export function giveRows(
  model: Pick<Model, 'rows'>,
  config: RunConfig,
  tensors: readonly CheckpointTensor[],
): void {
  const tables = createRunTables(config);
  if (!tables || !model.rows) return;
  if (!tensors.some(({ name }) => name.endsWith('.model.moment'))) {
    throw new DownpourError(
      'DP_USAGE',
      `the run has tables (${Object.keys(tablesOf(config)!).join(', ')}), and this checkpoint is one to continue from: use its best or final parameters`,
    );
  }
  tables.adopt({ rowStep: 0, seed: config.seed, tables: {}, captures: {} }, tensors);
  model.rows.from(rowSourceOf(tables));
}
