import { LIMITS } from '../../shared/limits.ts';
import type { RowShape } from '../../shared/rows.ts';
import { type Column, elementAt } from '../data/columns.ts';
import { DATA_PARTS, type DataPart, type PreparedData } from '../data/examples.ts';
import { isWhole } from '../data/fields.ts';
import type { NumberRange } from '../data/source.ts';
import { invalid } from '../model/data-shape.ts';
import { noId, type RowBinding } from './places.ts';

/** Ids of rows in all parts of the data, before training: one wrong id would else end a training that has run for hours. */

/** @throws DownpourError DP_EXPERIMENT_INVALID with part, row and value: a number is no id of its table. */
export function mustBeKeys(
  bindings: readonly RowBinding[],
  shapes: readonly RowShape[],
  prepared: PreparedData,
): void {
  for (const { table, field } of bindings) {
    const own = fieldOf(prepared, 'train', field);
    if (!own) continue;
    const { kind, scale } = own.transform ?? { kind: 'none', scale: 1 };
    if (scale !== 1) {
      throw invalid(
        `field '${field}' has bytes (pixels, divided by 255), but table '${table}' takes ids: give an Int32Array`,
      );
    }
    if (kind !== 'none') {
      throw invalid(
        `field '${field}' has ids of table '${table}', but standardise: '${kind}' would turn them into fractions: leave the field out of standardise`,
      );
    }
    const { keysMax } = shapes.find(({ name }) => name === table)!;
    const most = own.isWhole ? keysMax : Math.min(keysMax, LIMITS.floatIdsMax);
    for (const part of DATA_PARTS) {
      const column = fieldOf(prepared, part, field)?.column;
      if (!column) continue;
      const range = prepared[part]?.stored?.ranges?.[field];
      const bad = range ? badOf(range, most) : firstBad(column, most);
      if (!bad) continue;
      const where = `field '${field}', ${part} part, ${bad.at},`;
      throw noId(bad.id, where, { idsMax: keysMax, isWhole: own.isWhole, tables: [table] });
    }
  }
}

interface IdField {
  readonly column: Column;
  readonly transform: PreparedData['transform'] | undefined;
  /** The model gets whole numbers; else float32. */
  readonly isWhole: boolean;
}

function fieldOf(prepared: PreparedData, part: DataPart, name: string): IdField | null {
  const { fields, inputs, targets } = prepared[part] ?? {};
  const field = fields?.[name];
  if (field) {
    const transform = prepared.transforms?.[name];
    return { column: field, transform, isWhole: isWhole(field, transform) };
  }
  if (name === 'inputs' && inputs) {
    return { column: inputs, transform: prepared.transform, isWhole: false };
  }
  const isWholeTarget = targets?.values instanceof Int32Array;
  return name === 'targets' && targets
    ? { column: targets, transform: undefined, isWhole: isWholeTarget }
    : null;
}

interface BadId {
  /** Null: some number that is not whole. */
  readonly id: number | null;
  readonly at: string;
}

function badOf({ max, maxRow, fractionRow }: NumberRange, most: number): BadId | null {
  if (max >= most) return { id: max, at: `example ${maxRow} of the source` };
  return fractionRow === null ? null : { id: null, at: `example ${fractionRow} of the source` };
}

function firstBad(column: Column, most: number): BadId | null {
  const { values } = column;
  for (let i = 0; i < values.length; i++) {
    const id = values[i]!;
    if (id < most && Number.isInteger(id)) continue;
    return { id, at: elementAt(column, i) };
  }
  return null;
}
