import Type, { type Static, type TSchema } from 'typebox';
import { ENCODINGS, type Encoding as EncodingName } from './compression.ts';
import { NAME_PATTERN } from './config.ts';
import { LIMITS } from './limits.ts';
import { PUSH_KINDS } from './local-steps.ts';

/** Fields of messages: of what kind they are and how large they may be. Each message gives them its own description. */

export const closed = { additionalProperties: false } as const;
export const about = (description: string) => ({ ...closed, description }) as const;
export const orNull = <S extends TSchema>(schema: S, description?: string) =>
  Type.Union([schema, Type.Null()], description === undefined ? {} : { description });
export const oneOf = <L extends string>(names: readonly L[], description: string) =>
  Type.Unsafe<L>(
    Type.Union(
      names.map((name) => Type.Literal(name)),
      { description },
    ),
  );

// These are also in messages that are no part of the protocol of workers, and have no descriptions.
export const Name = Type.String({ pattern: NAME_PATTERN });
export const Natural = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
/** The number of a worker's push: counts up from 1 over the life of an incarnation. */
export const Sequence = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
export const Text = Type.String({ maxLength: 2000 });
/** Drawn by the server for each connection of a worker. */
export const SessionId = Type.String({ pattern: '^[0-9a-f]{16}$' });

export const name = (description: string) => Type.String({ ...Name, description });
export const hash = (description: string) =>
  Type.String({ minLength: 1, maxLength: 128, description });
export const natural = (description: string) => Type.Integer({ ...Natural, description });
export const sequence = (description: string) => Type.Integer({ ...Sequence, description });
export const text = (description: string) => Type.String({ ...Text, description });
const { measuredMax, durationMsMax } = LIMITS;
/** What a worker has measured. Bounded, so that no sum of such numbers is infinite: JSON could not keep it. */
export const measured = (description: string) =>
  Type.Number({ minimum: -measuredMax, maximum: measuredMax, description });
export const size = (description: string) =>
  Type.Number({ minimum: 0, maximum: measuredMax, description });
export const share = (description: string) => Type.Number({ minimum: 0, maximum: 1, description });
export const durationMs = (description: string) =>
  Type.Number({ minimum: 0, maximum: durationMsMax, description });
export const tensorName = (description: string) =>
  Type.String({ minLength: 1, maxLength: LIMITS.nameLengthMax, description });
export const run = () => name('The run that the message is about.');
export const session = (description: string) => Type.String({ ...SessionId, description });

/** How numbers of a payload are written; `shared/compression.ts` has the bytes of each. */
export const encoding = (description: string) => oneOf<EncodingName>(ENCODINGS, description);

/** Which fragment; see `shared/fragments.ts`. */
export const fragment = (description: string) =>
  Type.Optional(Type.Integer({ minimum: 0, maximum: LIMITS.fragmentsMax - 1, description }));

/** What a push holds. A worker that takes no local steps sends no such field. */
export const pushKind = () =>
  Type.Optional(
    oneOf(
      PUSH_KINDS,
      'What the payload holds. `gradient`, or absent: the gradient of one minibatch. `delta`: after [local steps](protocol.md#local-steps), the parameters that they began with minus those after them. `elastic`: the parameters of the worker after local steps.',
    ),
  );

export const TensorSpecSchema = Type.Object(
  {
    name: tensorName('Unique within the model; it does not begin with `@`.'),
    shape: Type.Array(natural('Elements along one axis.'), {
      maxItems: LIMITS.rankMax,
      description: 'Elements along each axis, row-major; `[]` is one number.',
    }),
    role: oneOf(
      ['trainable', 'statistics', 'frozen'],
      '`trainable`: the optimizer moves it. `statistics`: a moving average, such as those of batch normalisation. `frozen`: nothing changes it.',
    ),
    momentum: Type.Optional(
      Type.Number({
        minimum: 0,
        exclusiveMaximum: 1,
        description:
          'Statistics have one, other tensors have none: the share of the old value that an update keeps.',
      }),
    ),
  },
  about('One tensor of the model.'),
);

export const ShardAddressSchema = Type.Object(
  {
    host: orNull(
      Type.String({ minLength: 1, maxLength: 255 }),
      'Name or IP address. Null: the host at which the worker has reached the server.',
    ),
    port: Type.Integer({ minimum: 1, maximum: 65_535, description: 'TCP port.' }),
  },
  about('Where another process of the server listens.'),
);
export type ShardAddress = Static<typeof ShardAddressSchema>;
/** The address of a standby: the same, with the primary in the server's place. */
export type ServerAddress = ShardAddress;

/** A measurement as messages have it: null where it is not finite, or larger than any float32. */
export function measuredOf(value: number): number | null {
  return Math.abs(value) <= measuredMax ? value : null;
}
