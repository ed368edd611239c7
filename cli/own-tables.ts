import type { RunTables } from '../server/core/tables/run-tables.ts';
import { decodeRows, encodeRows, type TableRows } from '../shared/rows.ts';
import type { RowSource } from '../worker/rows/model-rows.ts';

/** The tables of a run for a model in the same process, without messages between them. */

export const rowSourceOf =
  (tables: RunTables): RowSource =>
  async (keys) =>
    decodeRows(tables.shapes, tables.read(keys, 'f32', null), 'f32');

/** Stages gradients of rows as a push has them. */
export function stageRows(tables: RunTables, gradients: readonly TableRows[]): void {
  const payload = encodeRows(tables.shapes, gradients, 'f32');
  const facts = {
    step: tables.rowStep,
    encoding: 'f32',
    bytes: payload.length,
    wanted: 0,
  } as const;
  tables.stage(payload, facts);
}
