import Type, { type Static } from 'typebox';
import { LIMITS } from './limits.ts';
import { about, natural, oneOf, orNull, run } from './message-fields.ts';
import { ROW_ENCODINGS, type RowEncoding } from './rows.ts';

/** What messages say of rows of tables; `shared/rows.ts` has the bytes. */

const rowEncoding = (description: string) => oneOf<RowEncoding>(ROW_ENCODINGS, description);
const rowBytesOf = (description: string) =>
  Type.Integer({ minimum: 0, maximum: LIMITS.rowBytesMax, multipleOf: 4, description });

const rowPull = () =>
  Type.Optional(
    natural(
      'Each other [shard](protocol.md#shards) sends the rows that it has in a `rows` with this number. Absent: the server has all rows.',
    ),
  );

/** A push: what its payload ends with. */
export const pushRows = () =>
  Type.Optional(
    Type.Object(
      {
        step: natural(
          'The row step of the rows at which the gradient was computed: that of the `work` or `rows` that brought them, the smallest if several did.',
        ),
        encoding: rowEncoding('How the gradients of the rows are encoded.'),
        bytes: rowBytesOf('Length of the gradients of rows, behind the statistics in the payload.'),
        wanted: rowBytesOf(
          'Length of the keys of the rows that the worker wants with the answer, at the end of the payload; 0: none.',
        ),
      },
      about(
        'Only in runs with [tables](protocol.md#rows-of-tables): rows that the payload ends with.',
      ),
    ),
  );

/** A `work`: what its payload ends with. */
export const workRows = () =>
  Type.Optional(
    Type.Object(
      {
        step: natural('Row step: updates of rows before these rows were read.'),
        encoding: rowEncoding('How the rows are encoded: `f32` or `bf16`.'),
        bytes: rowBytesOf('Length of the rows at the end of the payload.'),
        pull: rowPull(),
      },
      about(
        'The rows that the last push wanted, behind the parameters in the payload. Absent: none were wanted, or the run has no [tables](protocol.md#rows-of-tables).',
      ),
    ),
  );

/** Rows that no answer to a push has brought: of the first minibatch, of one that is tried again, of an evaluation. */
export const PullRowsSchema = Type.Object(
  {
    type: Type.Literal('pullRows'),
    run: run(),
    request: natural('Number that the worker chooses, repeated in the answer.'),
    evaluation: orNull(
      natural('Id of the evaluation.'),
      'The evaluation that the rows are for: they are as they were when it began. Null: the rows as they are now.',
    ),
  },
  about(
    'Asks for [rows of tables](protocol.md#rows-of-tables). The server answers `rows`. Payload: the keys.',
  ),
);
export type PullRows = Static<typeof PullRowsSchema>;

/** Rows that begin with other values than those of the initializer, such as pretrained ones. */
export const InitialRowsSchema = Type.Object(
  {
    type: Type.Literal('initialRows'),
    run: run(),
    grant: natural('As in `initialise`.'),
  },
  about(
    'Initial values of some [rows of tables](protocol.md#rows-of-tables), any number of messages before `initialised`. Payload: rows in f32. The server does not answer.',
  ),
);
export type InitialRows = Static<typeof InitialRowsSchema>;

/** Answers `pullRows`. */
export const RowsSchema = Type.Object(
  {
    type: Type.Literal('rows'),
    run: run(),
    request: natural('As in `pullRows`.'),
    step: natural('Row step: updates of rows before these rows were read.'),
    generation: natural('The generation of the parameters that the rows belong to.'),
    encoding: rowEncoding('How the rows are encoded: `f32` or `bf16`. For an evaluation: `f32`.'),
    pull: rowPull(),
  },
  about('Rows of tables that `pullRows` asked for. Payload: the rows.'),
);
export type RowsMessage = Static<typeof RowsSchema>;

/** A shard's part of the rows of a `work` or `rows` with this `pull`. */
export const RowsPartSchema = Type.Object(
  {
    type: Type.Literal('rows'),
    run: run(),
    pull: natural('As `rows.pull` of `work`, or `pull` of `rows`.'),
    encoding: rowEncoding('As there.'),
  },
  about("A shard's part of the rows that a push or `pullRows` asked for. Payload: its rows."),
);
export type RowsPart = Static<typeof RowsPartSchema>;
