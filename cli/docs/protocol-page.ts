import { DataFactsSchema } from '../../shared/data-facts.ts';
import type { JsonSchema } from '../../shared/json-schema.ts';
import { ShardAddressSchema, TensorSpecSchema } from '../../shared/message-fields.ts';
import {
  HistogramSchema,
  LayerObservationSchema,
  TensorObservationSchema,
} from '../../shared/observed.ts';
import {
  AcknowledgementSchema,
  DataSummarySchema,
  IdleSchema,
  LeaseSchema,
  MESSAGES,
} from '../../shared/protocol.ts';
import { SHARD_MESSAGES } from '../../shared/shard-messages.ts';

/** docs/protocol-messages.md: the fields of every message, from the schemas that check them. */

export const MESSAGES_PAGE = new URL('../../docs/protocol-messages.md', import.meta.url);

/** Shapes that have a table of their own. */
const SHAPES = [
  { title: 'Tensor', schema: TensorSpecSchema },
  { title: 'Data', schema: DataSummarySchema },
  { title: 'Facts of the data', schema: DataFactsSchema },
  { title: 'Lease', schema: LeaseSchema },
  { title: 'Acknowledgement', schema: AcknowledgementSchema },
  { title: 'Missing experiment', schema: IdleSchema.properties.missing.items },
  { title: 'Address', schema: ShardAddressSchema },
  { title: 'Histogram', schema: HistogramSchema },
  { title: 'Tensor observation', schema: TensorObservationSchema },
  { title: 'Layer observation', schema: LayerObservationSchema },
] as const;

const DIRECTIONS = {
  fromWorker: 'From a worker to the server',
  fromServer: 'From the server to a worker',
  toShard: 'From a worker to a shard',
  fromShard: 'From a shard to a worker',
} as const;

export function messagesPage(): string {
  const all = { ...MESSAGES, ...SHARD_MESSAGES };
  const groups = Object.entries(DIRECTIONS).flatMap(([direction, title]) => {
    const schemas = Object.entries(all[direction as keyof typeof all]);
    // The same as the server's.
    const own = schemas.filter(([type]) => direction === 'fromServer' || type !== 'error');
    return [`## ${title}`, ...own.flatMap(([type, schema]) => section(type, schema as JsonSchema))];
  });
  const shapes = SHAPES.flatMap(({ title, schema }) => section(title, schema as JsonSchema));
  return `${[
    '# Messages of the protocol',
    'This page lists the fields of every message. [protocol.md](protocol.md) says when each message is sent and what to do with it. A worker begins with a `hello` such as this, as a msgpack map:',
    '    { type: "hello", worker: "my-worker", incarnation: "0123456789abcdef", run: null, … }',
    '`npm run docs` writes this page from the schemas in `shared/protocol.ts`, `shared/shard-messages.ts`, `shared/observed.ts` and `shared/data-facts.ts`. To change it, change the schemas.',
    'Every header has the field `type`, with the name of the message. Every message is checked: a field that is missing, unknown, of another type or out of range is `DP_FRAME_MALFORMED`, and the error names the field. A field may be left out only where the table says *optional*. Lengths of text are in UTF-16 code units.',
    ...groups,
    '## Shapes within messages',
    ...shapes,
  ].join('\n\n')}\n`;
}

function section(title: string, schema: JsonSchema): string[] {
  const rows = rowsOf(schema, '');
  const table = ['| field | type | range | what |', '|---|---|---|---|', ...rows].join('\n');
  return [
    `### ${title}`,
    schema.description ?? '',
    rows.length > 0 ? table : 'It has no other field.',
  ];
}

function rowsOf(schema: JsonSchema, path: string): string[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    if (name === 'type' && path === '') return [];
    const full = path === '' ? name : `${path}.${name}`;
    const optional = schema.required?.includes(name) ? '' : ', optional';
    const cells = [
      `\`${full}\``,
      `${typeOf(field)}${optional}`,
      rangeOf(field),
      field.description ?? '',
    ];
    const row = `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
    const inner = notNull(field);
    const spread = inner.properties && !titleOf(inner) && !isConfig(inner);
    return spread ? [row, ...rowsOf(inner, full)] : [row];
  });
}

/** The other branch of a schema that may be null. */
function notNull(schema: JsonSchema): JsonSchema {
  const others = schema.anyOf?.filter(({ type }) => type !== 'null');
  return others?.length === 1 ? others[0]! : schema;
}

const mayBeNull = ({ anyOf }: JsonSchema) => anyOf?.some(({ type }) => type === 'null') ?? false;

function titleOf(schema: JsonSchema): string | undefined {
  const key = JSON.stringify(schema);
  return SHAPES.find((shape) => JSON.stringify(shape.schema) === key)?.title;
}

/** Whether this is the configuration of a run, which has a page. */
const isConfig = ({ properties }: JsonSchema) => properties?.minibatchSize !== undefined;

function typeOf(schema: JsonSchema, many = false): string {
  const inner = notNull(schema);
  const or = mayBeNull(schema) ? ' or null' : '';
  const s = many ? 's' : '';
  const title = titleOf(inner);
  if (title) return `[${title.toLowerCase()}](#${title.toLowerCase().replaceAll(' ', '-')})${or}`;
  if (isConfig(inner)) return `[configuration](configuration.md)${or}`;
  if (inner.anyOf) return `${inner.anyOf.map(literal).join(', ')}${or}`;
  if ('const' in inner) return `${literal(inner)}${or}`;
  if (inner.items) return `list of ${typeOf(inner.items, true)}${or}`;
  if (inner.patternProperties) {
    const [value] = Object.values(inner.patternProperties);
    return `map of names to ${typeOf(value!, true)}${or}`;
  }
  const named = { integer: 'whole number', number: 'number', string: 'text', object: 'map' };
  const base = named[inner.type as keyof typeof named];
  return `${base}${inner.type === 'object' ? '' : s}${or}`;
}

const literal = ({ const: value }: JsonSchema) => `\`${String(value)}\``;

function rangeOf(schema: JsonSchema): string {
  const inner = notNull(schema);
  if (inner.items) {
    const { minItems = 0, maxItems } = inner;
    const entries = maxItems === undefined ? [] : [`${minItems} to ${maxItems} entries`];
    return [...entries, ...each(inner.items)].join('; ');
  }
  if (inner.patternProperties) {
    const [[pattern, value]] = Object.entries(inner.patternProperties) as [[string, JsonSchema]];
    const entries =
      inner.maxProperties === undefined ? [] : [`0 to ${inner.maxProperties} entries`];
    return [...entries, `names \`${pattern}\``, ...each(value)].join('; ');
  }
  if (inner.pattern !== undefined) return `\`${inner.pattern}\``;
  if (inner.type === 'string') {
    const { minLength = 0, maxLength } = inner;
    return maxLength === undefined ? '' : `${minLength} to ${maxLength} characters`;
  }
  const { minimum, maximum, exclusiveMaximum } = inner;
  if (minimum === undefined) return '';
  if (exclusiveMaximum !== undefined) return `from ${minimum}, below ${exclusiveMaximum}`;
  return maximum === undefined
    ? `from ${minimum}`
    : `${numberText(minimum)} to ${numberText(maximum)}`;
}

function each(schema: JsonSchema): string[] {
  const range = titleOf(schema) ? '' : rangeOf(schema);
  return range === '' ? [] : [`each ${range}`];
}

/** Limits as people read them. */
function numberText(value: number): string {
  if (value === Number.MAX_SAFE_INTEGER) return '2⁵³ − 1';
  if (value === 2 ** 31 - 1) return '2³¹ − 1';
  const power = Math.log10(Math.abs(value));
  if (power < 6) return String(value);
  const digits = [...String(Math.round(power))].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(digit)]);
  return `${value < 0 ? '−' : ''}10${digits.join('')}`;
}
