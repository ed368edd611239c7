import { DownpourError } from '../../shared/errors.ts';
import { type Column, isFloat, rowSize } from './columns.ts';

/** Do targets mean what the experiment takes them for? */

/**
 * Checks class labels: whole numbers 0 … classCount − 1, shape [n] (or [n, …]), or, as floats of shape
 * [n, classCount], shares of each class that add up to 1.
 * @param where named in the message, e.g. a file or a part
 * @throws DownpourError DP_DATA_LABEL with the row (0-based), the value and what is allowed.
 */
export function checkLabels(column: Column, classCount: number, where = 'data'): void {
  const { values, shape } = column;
  const size = rowSize(column);
  if (isFloat(values) && shape.length > 1 && shape.at(-1) === classCount) {
    for (let i = 0; i < values.length; i += classCount) {
      let sum = 0;
      for (let c = 0; c < classCount; c++) {
        const share = values[i + c]!;
        if (!(share >= 0 && share <= 1)) {
          throw labelError(where, Math.floor(i / size), `share ${share}`, '0 … 1');
        }
        sum += share;
      }
      if (!(Math.abs(sum - 1) <= 1e-3)) {
        throw labelError(where, Math.floor(i / size), `shares with the sum ${sum}`, 'a sum of 1');
      }
    }
    return;
  }
  for (let i = 0; i < values.length; i++) {
    const label = values[i]!;
    if (!(label >= 0 && label < classCount && Number.isInteger(label))) {
      const allowed = `whole numbers 0 … ${classCount - 1} (${classCount} classes)`;
      throw labelError(where, Math.floor(i / size), `label ${label}`, allowed);
    }
  }
}

function labelError(where: string, row: number, seen: string, allowed: string): DownpourError {
  return new DownpourError(
    'DP_DATA_LABEL',
    `${where}, row ${row}: ${seen}; allowed: ${allowed}. Correct the data or the experiment's classCount`,
  );
}
