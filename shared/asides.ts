import Type, { type Static, type TSchema } from 'typebox';
import { CardSchema } from './figure.ts';
import { LIMITS } from './limits.ts';

/**
 * What a worker tells beside its work, for people who look: how busy its machine is, a few examples with their
 * predictions, the texts of ids, and what the model can be used for. Training depends on none of it.
 */

/**
 * A header of the server's answer to the handshake of a worker: the asides that it takes, with spaces between. Workers
 * send nothing of the kind to a server that does not name it.
 */
export const TAKES_HEADER = 'downpour-takes';
/** What `join` may have: fields of the facts of data, and a model without any trainable tensor. */
export const JOIN_ASIDES = ['vocabulary', 'uses', 'rowsAlone'] as const;
export const ASIDES = ['machine', 'examples', ...JOIN_ASIDES] as const;
export type Aside = (typeof ASIDES)[number];

/** @param header as it came; absent: an older server. */
export function asidesOf(header: string | undefined): ReadonlySet<Aside> {
  const named = new Set(header?.split(' '));
  return new Set(ASIDES.filter((aside) => named.has(aside)));
}

const { measuredMax } = LIMITS;
const known = (
  description: string,
  schema: TSchema = Type.Number({ minimum: 0, maximum: measuredMax }),
) =>
  Type.Unsafe<number | null>(
    Type.Union([schema, Type.Null()], { description: `${description} Null: unknown.` }),
  );

export const machineFields = {
  cores: known('Processor cores that the process may use.'),
  cpuCores: known(
    'Processor cores that the process has kept busy since the last report: 1.5 is one and a half.',
  ),
  memoryBytes: known('Memory of the process.'),
  memoryBytesMax: known('Memory that the process may take: of its container, or of its machine.'),
  tensorBytes: known('Memory of the tensors of TensorFlow.js, in main memory or on a GPU.'),
  gpuShare: known(
    "Share of the time that the GPU was busy, in the driver's last period.",
    Type.Number({ minimum: 0, maximum: 1 }),
  ),
  gpuMemoryBytes: known('Memory of the GPU that is in use, by all processes.'),
  gpuMemoryBytesMax: known('Memory of the GPU.'),
};

/** Predictions for examples of the validation part, at the parameters of an evaluation. */
export const ShownExamplesSchema = Type.Array(CardSchema, {
  maxItems: LIMITS.shownExamplesMax,
  description: 'Examples of the validation part with their predictions, for people.',
});
export type ShownExamples = Static<typeof ShownExamplesSchema>;
