import type { ColumnProfile } from '../../worker/data/tables/table-profile.ts';

/** Columns that say the same as another one. */

/** The share of its variance that a straight line may leave unexplained where two columns are the same quantity. */
const LINE_REST = 1e-6;
/** Different values that must lie on the line before it is one. */
const LINE_POINTS = 5;
/** That a column agrees with another by chance has a probability of 2 to the minus this, or less. */
const CHANCE_BITS = 20;

/** How a column is the target in other clothes; null: it is not. */
export function targetInDisguise(column: ColumnProfile, target: ColumnProfile): string | null {
  if (isSameColumn(column, target)) return 'it equals the target';
  if (isLine(column, target)) return 'the target is a linear function of it alone';
  return isRecoding(column, target) ? 'it is the target under other names, value for value' : null;
}

/** The same value in every row: as numbers where both are, else as text. */
export function isSameColumn(a: ColumnProfile, b: ColumnProfile): boolean {
  if (a.missing !== b.missing) return false;
  if (isNumeric(a) && isNumeric(b))
    return a.values.every((value, i) => Object.is(value, b.values[i]));
  if (a.codes === null || b.codes === null) return false;
  const [aTexts, bTexts] = [[...a.kinds!.keys()], [...b.kinds!.keys()]];
  return a.codes.every((code, i) => aTexts[code] === bTexts[b.codes![i]!]);
}

/** Each value that is there is a number. */
export const isNumeric = ({ numberCount, missing, count }: ColumnProfile) =>
  numberCount > 0 && numberCount + missing === count;

/** Whether y is a + b·x where both are there, as far as rounding lets one see: 1 − r² at most `LINE_REST`. */
function isLine(column: ColumnProfile, target: ColumnProfile): boolean {
  if (!isNumeric(column) || !isNumeric(target)) return false;
  const isThere = (_: number, i: number) =>
    !Number.isNaN(column.values[i]) && !Number.isNaN(target.values[i]);
  const [x, y] = [column.values.filter(isThere), target.values.filter(isThere)];
  const count = x.length;
  if (new Set(x.subarray(0, 10_000)).size < LINE_POINTS) return false;
  const mean = (values: Float64Array) => values.reduce((sum, value) => sum + value / count, 0);
  const [mx, my] = [mean(x), mean(y)];
  let [xx, xy, yy] = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    const [dx, dy] = [x[i]! - mx, y[i]! - my];
    xx += dx * dx;
    xy += dx * dy;
    yy += dy * dy;
  }
  return xx > 0 && yy > 0 && 1 - (xy * xy) / (xx * yy) <= LINE_REST;
}

/** Whether each kind of one goes with one kind of the other, in too many rows for chance. */
function isRecoding(a: ColumnProfile, b: ColumnProfile): boolean {
  const { codes, kinds, count } = a;
  if (codes === null || b.codes === null) return false;
  if (kinds!.size !== b.kinds!.size || kinds!.size < 2 || 2 * kinds!.size > count) return false;
  const toB = new Int32Array(kinds!.size).fill(-1);
  for (let i = 0; i < count; i++) {
    const code = codes[i]!;
    if (code < 0 || b.codes[i]! < 0) continue;
    if (toB[code] === -1) toB[code] = b.codes[i]!;
    else if (toB[code] !== b.codes[i]) return false;
  }
  const isOneForOne = !toB.includes(-1) && new Set(toB).size === toB.length;
  return isOneForOne && entropyBits([...kinds!.values()], count) * count >= CHANCE_BITS;
}

/** Shannon's, of one row. */
function entropyBits(counts: readonly number[], total: number): number {
  return counts.reduce((sum, cells) => sum - (cells / total) * Math.log2(cells / total), 0);
}
