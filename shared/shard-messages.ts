import Type, { type Static } from 'typebox';
import { check, compile } from './message-check.ts';
import {
  about,
  encoding,
  fragment,
  natural,
  pushKind,
  run,
  sequence,
  session,
} from './message-fields.ts';
import { type ErrorMessage, ErrorSchema } from './protocol.ts';
import { pushRows, type RowsPart, RowsPartSchema } from './row-messages.ts';

/** What a worker and a shard say to each other: the parts of what worker and server say. */

/** The worker's first message to a shard, with the session that the server gave it. */
export const AttachSchema = Type.Object(
  { type: Type.Literal('attach'), session: session('As in `assign`.') },
  about('The first message to a shard.'),
);
export type Attach = Static<typeof AttachSchema>;

/** A shard's part of a push: as in `push`, of this shard's range alone. */
export const PartMessageSchema = Type.Object(
  {
    type: Type.Literal('part'),
    run: run(),
    sequence: sequence('As in `push`.'),
    encoding: encoding('As in `push`.'),
    kind: pushKind(),
    fragment: fragment('As in `push`.'),
    rows: pushRows(),
  },
  about(
    "A shard's part of a push. Payload: the gradient in its range, then the statistics there, then its rows and keys of rows.",
  ),
);
export type PartMessage = Static<typeof PartMessageSchema>;

/** A shard's part of `initialised`. */
export const InitialPartSchema = Type.Object(
  { type: Type.Literal('initialPart'), run: run(), grant: natural('As in `initialise`.') },
  about("A shard's part of `initialised`. Payload: the flat vector in its range, in f32."),
);
export type InitialPart = Static<typeof InitialPartSchema>;

export type ToShard = Attach | PartMessage | InitialPart;

/** The shard knows the worker: it may join. */
export const AttachedSchema = Type.Object(
  { type: Type.Literal('attached') },
  about('The shard knows the worker. When all shards have said so, the worker may `join`.'),
);

/** A shard's part of what a `work` with this `pull` brings. */
export const ParametersSchema = Type.Object(
  {
    type: Type.Literal('parameters'),
    run: run(),
    pull: natural('As in `work`.'),
    encoding: encoding('As in `work`.'),
    fragment: fragment('As in `work`.'),
  },
  about("A shard's part of the parameters of a `work`. Payload: as there, in its range."),
);
export type ParametersMessage = Static<typeof ParametersSchema>;

export type FromShard = Static<typeof AttachedSchema> | ParametersMessage | RowsPart | ErrorMessage;

/** Every message between a worker and a shard, by who sends it. */
export const SHARD_MESSAGES = {
  toShard: { attach: AttachSchema, part: PartMessageSchema, initialPart: InitialPartSchema },
  fromShard: {
    ...{ attached: AttachedSchema, parameters: ParametersSchema, rows: RowsPartSchema },
    error: ErrorSchema,
  },
} as const;

const toShard = compile(SHARD_MESSAGES.toShard);
const fromShard = compile(SHARD_MESSAGES.fromShard);

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkToShard(header: { readonly type: string }): ToShard {
  return check(toShard, header) as ToShard;
}

/** @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong. */
export function checkFromShard(header: { readonly type: string }): FromShard {
  return check(fromShard, header) as FromShard;
}
