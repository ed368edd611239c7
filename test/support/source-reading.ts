import type { ExampleSource, SourceRows } from '../../worker/data/source.ts';

/** What tests of sources read with. */

const { signal } = new AbortController();

/** Examples of a source, in the order of the indices. */
export const readFrom = async (
  source: ExampleSource,
  indices: readonly number[],
): Promise<SourceRows> => source.read(Int32Array.from(indices), { signal });

/** What a call fails with; null: it does not. */
export const failureOf = async (call: Promise<unknown>): Promise<unknown> =>
  call.then(
    () => null,
    (error: unknown) => error,
  );
