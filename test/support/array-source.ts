import { kindOf, sizeOf } from '../../worker/data/columns.ts';
import type { Examples } from '../../worker/data/examples.ts';
import { dataOf, type GivenExamples } from '../../worker/data/given.ts';
import type { ExampleSource, SourceField, SourceRows } from '../../worker/data/source.ts';
import { takeExamples } from '../../worker/data/split.ts';

/** Arrays as a source, as a user would write one: asked for rows, it answers a little later. */
export function sourceOfArrays(given: GivenExamples): ExampleSource {
  const { train } = dataOf({ train: given });
  const columns = columnsOf(train);
  const fields = Object.entries(columns).map(([name, { values, shape, ...texts }]) => [
    name,
    { ...texts, shape: shape.slice(1), type: kindOf(values) } satisfies SourceField,
  ]);
  return {
    count: train.count,
    fields: Object.fromEntries(fields),
    async read(indices): Promise<SourceRows> {
      const rows = columnsOf(takeExamples(train, indices));
      await new Promise((resolve) => setImmediate(resolve));
      return Object.fromEntries(Object.entries(rows).map(([name, { values }]) => [name, values]));
    },
  };
}

const columnsOf = ({ inputs, targets, fields }: Examples): NonNullable<Examples['fields']> =>
  ({
    ...(sizeOf(inputs.shape) > 0 && { inputs }),
    ...(sizeOf(targets.shape) > 0 && { targets }),
    ...fields,
  }) as NonNullable<Examples['fields']>;
