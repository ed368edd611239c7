import Type, { type Static } from 'typebox';
import Value from 'typebox/value';
import { adamFields, closed, epsilon, orNone, positive } from './config-fields.ts';
import type { Consistency } from './consistency.ts';
import { LIMITS } from './limits.ts';
import { type LocalFields, localOf, localText } from './local-steps.ts';
import type { RowEncoding, RowShape } from './rows.ts';

/** `tables` of a run: large tables. A minibatch touches a few rows of them. Only these rows travel and are updated. */

/** A header of the handshake, `yes` from a worker that knows tables. Others are not assigned to runs with tables. */
export const TABLES_HEADER = 'downpour-tables';

/** `yes` from a worker that knows how rows are cut over shards. On a server with shards, others get no run with tables. */
export const ROW_SHARDS_HEADER = 'downpour-row-shards';

const TableOptimizerSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('sgd') }, closed),
    Type.Object(
      {
        kind: Type.Literal('adagrad'),
        initialAccumulator: Type.Number({
          minimum: 0,
          default: 0.1,
          description:
            'initial value of the mean squared gradient of a row, summed over its updates',
        }),
        epsilon: epsilon(1e-7),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adam'),
        ...adamFields(),
      },
      closed,
    ),
  ],
  {
    default: { kind: 'adagrad' },
    description:
      'update rule of the rows. adagrad keeps one number for each row; adam keeps two for each element, and its moments fade by the updates that a row was not in',
  },
);
export type TableOptimizer = Static<typeof TableOptimizerSchema>;

const InitializerSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('zeros') }, closed),
    Type.Object(
      {
        kind: Type.Literal('uniform'),
        limit: positive('values lie between −limit and limit', 0.05),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('normal'),
        deviation: positive('standard deviation of the values', 0.05),
      },
      closed,
    ),
  ],
  {
    default: { kind: 'uniform' },
    description:
      'values of a row before its first update; they depend on the seed, the table and the id alone, so a row takes no memory before',
  },
);
export type TableInitializer = Static<typeof InitializerSchema>;

const TableSchema = Type.Object(
  {
    rows: Type.Union(
      [Type.Integer({ minimum: 1, maximum: LIMITS.rowIdsMax }), Type.Literal('hash')],
      {
        description:
          'number of rows: ids are 0 to rows − 1; hash: ids are any whole numbers below 2³¹, and the table grows by the ids that appear',
      },
    ),
    width: Type.Integer({
      minimum: 1,
      maximum: LIMITS.rowWidthMax,
      description: 'numbers in a row',
    }),
    rowsMax: Type.Integer({
      minimum: 1,
      maximum: LIMITS.rowIdsMax,
      default: 2 ** 20,
      description:
        'hash: maximum number of rows that the server keeps; an id beyond them keeps its initial values until others expire',
    }),
    initializer: InitializerSchema,
    optimizer: TableOptimizerSchema,
    learningRate: Type.Number({
      minimum: 0,
      default: 1,
      description: 'factor of the learning rate of the run; 0: the rows are never changed',
    }),
    pretrainedRate: Type.Number({
      minimum: 0,
      default: 1,
      description:
        'additional factor of the learning rate for rows that began with the values of a file of word vectors; 0: these rows are never changed, and no gradient of them is pushed',
    }),
    weightDecay: Type.Number({
      minimum: 0,
      default: 0,
      description:
        'decay of all rows: each update of the table multiplies them by 1 − learning rate · weightDecay; it is applied to a row when that row is read',
    }),
    maxNorm: orNone(
      Type.Number({ exclusiveMinimum: 0 }),
      'maximum L2 norm of a row, enforced after each of its updates; null: no limit',
    ),
    admitAfter: Type.Integer({
      minimum: 1,
      default: 1,
      description:
        'hash: number of pushes that have a new id before it gets a row; until then its gradients are dropped and counted',
    }),
    expireAfter: orNone(
      Type.Integer({ minimum: 1 }),
      'hash: updates of the table after which a row is forgotten if no push had its id; null: never',
    ),
  },
  closed,
);
export type TableConfig = Static<typeof TableSchema>;

export const TablesSchema = Type.Record(
  Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_]{0,63}$' }),
  TableSchema,
  {
    maxProperties: LIMITS.tableCountMax,
    default: {},
    description:
      'tables of rows by name, such as embeddings; a minibatch uses a few rows of a table, and workers pull and push these rows alone',
  },
);
export type Tables = Static<typeof TablesSchema>;

/** Runs without tables have none. */
export interface TableFields {
  readonly tables?: Tables | undefined;
}

/** Fills in the defaults of each table, which those of the whole schema do not reach. @param config that is changed. */
export function withTableDefaults(config: unknown): unknown {
  const { tables } = config as { tables?: unknown };
  if (typeof tables === 'object' && tables !== null) {
    for (const [name, table] of Object.entries(tables)) {
      (tables as Record<string, unknown>)[name] = Value.Default(TableSchema, table);
    }
  }
  return config;
}

/** @returns null: the run has none. */
export function tablesOf({ tables }: TableFields): Tables | null {
  return tables && Object.keys(tables).length > 0 ? tables : null;
}

/** Some rows are trained: those of a table whose rate is 0 stay as they are. */
export const trainsRows = ({ tables = {} }: TableFields): boolean =>
  Object.values(tables).some(({ learningRate }) => learningRate > 0);

/** Tables with their shapes, in the order in which messages have them: by their names. */
export function rowShapes(fields: TableFields): readonly RowShape[] {
  return Object.entries(fields.tables ?? {})
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, { rows, width }]) => ({
      name,
      width,
      keysMax: rows === 'hash' ? LIMITS.rowIdsMax : rows,
    }));
}

/** How gradients of rows are written in pushes. */
export function rowPushEncoding(push: { readonly kind: string }): RowEncoding {
  return push.kind === 'bf16' || push.kind === 'int8' ? push.kind : 'f32';
}

/** @returns what does not fit together, the value seen and what to do; null: all is well. */
export function tablesProblem(
  config: TableFields &
    LocalFields & {
      readonly consistency: Consistency;
      readonly averaging: { readonly kind: string };
    },
): string | null {
  const tables = tablesOf(config);
  if (!tables) return null;
  const names = Object.keys(tables).join(', ');
  if (localOf(config)) {
    return `${localText(config)} with tables (${names}); then workers keep parameters or momentum of their own, and rows have one place, the server: leave out this field or tables`;
  }
  const { aggregate = 'mean' } = config.consistency;
  if (aggregate !== 'mean') {
    return `consistency.aggregate is '${aggregate}' with tables (${names}); rows of each push are applied at once, so no other push can outvote them: use mean, or leave out tables`;
  }
  if (config.averaging.kind !== 'none') {
    return `averaging.kind is '${config.averaging.kind}' with tables (${names}); rows have no average yet: use none, or leave out tables`;
  }
  for (const [name, table] of Object.entries(tables)) {
    const { rows, admitAfter, expireAfter, pretrainedRate, weightDecay } = table;
    if (pretrainedRate !== 1 && weightDecay > 0) {
      return `tables.${name}.pretrainedRate is ${pretrainedRate} with weightDecay ${weightDecay}; all rows of a table decay alike: set weightDecay 0 or pretrainedRate 1`;
    }
    if (rows === 'hash') continue;
    if (admitAfter > 1 || expireAfter !== null) {
      const field =
        admitAfter > 1 ? `admitAfter is ${admitAfter}` : `expireAfter is ${expireAfter}`;
      return `tables.${name}.${field} with rows ${rows}; only a table that grows admits and forgets ids: set rows 'hash', or leave the field out`;
    }
  }
  return null;
}

/**
 * @param other what the run was made of that a fork begins with.
 * @returns why its rows are not those that the fork would have, the value seen and what to do; null: they are.
 */
export function forkTablesProblem(
  { tables = {} }: TableFields,
  { tables: other = {} }: TableFields,
): string | null {
  for (const [name, { width, rows, initializer }] of Object.entries(tables)) {
    const from = Object.hasOwn(other, name) ? other[name] : undefined;
    if (!from) continue;
    const told = (field: string, own: unknown, its: unknown, why: string) =>
      `tables.${name}.${field} is ${JSON.stringify(own)}, and ${JSON.stringify(its)} in the run whose rows this one begins with; ${why}`;
    const rename = 'or give the table another name to begin with fresh rows';
    if (width !== from.width) return told('width', width, from.width, `set that, ${rename}`);
    if (rows !== 'hash' && (from.rows === 'hash' || from.rows > rows)) {
      return told('rows', rows, from.rows, `set that or more, or 'hash', ${rename}`);
    }
    if (!Value.Equal(initializer, from.initializer)) {
      const why = `rows that no push has changed follow from it: set that, ${rename}`;
      return told('initializer', initializer, from.initializer, why);
    }
  }
  return null;
}
