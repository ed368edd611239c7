import type { ExampleSource } from '../source.ts';
import { heldOutRows } from '../split.ts';

/** Parts of a data set that are sources. */

/** What `loadCsv` and its like give, with sources instead of arrays. */
export interface SourceData {
  readonly train: ExampleSource;
  readonly validation?: ExampleSource;
  readonly test?: ExampleSource;
  readonly classCount?: number;
  readonly classes?: readonly string[] | null;
  /** One line that describes the data. */
  readonly source: string;
}

/** Some rows of a source as a source. @param rows each below its count */
function someRows(source: ExampleSource, rows: Int32Array): ExampleSource {
  return {
    ...source,
    count: rows.length,
    read: (indices, options) =>
      source.read(
        Int32Array.from(indices, (i) => rows[i]!),
        options,
      ),
  };
}

/** As `holdOut` does with arrays: the same rows. */
export function holdOutRows(
  source: ExampleSource,
  fraction: number | undefined,
): { readonly train: ExampleSource; readonly test: ExampleSource | null } {
  const rows = heldOutRows(source.count, fraction);
  if (rows === null) return { train: source, test: null };
  // What is kept of a pass over all examples is of these rows alone.
  const keyed = (part: string) =>
    source.key === undefined ? {} : { key: `${source.key}; ${part} of testFraction ${fraction}` };
  return {
    train: { ...someRows(source, rows.train), ...keyed('train') },
    test: { ...someRows(source, rows.test), ...keyed('test') },
  };
}
