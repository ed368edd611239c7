import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { roleFor } from '../../server/http/door.ts';
import { serve } from '../../server/main.ts';
import { RunConfigSchema } from '../../shared/config.ts';
import type { JsonSchema } from '../../shared/json-schema.ts';
import { DataSummarySchema } from '../../shared/protocol.ts';
import * as rest from '../../shared/rest.ts';

/** docs/rest.md: the routes of a real server, and what `shared/rest.ts` says of their bodies. */

export const REST_PAGE = new URL('../../docs/rest.md', import.meta.url);
const SOURCE = new URL('../../shared/rest.ts', import.meta.url);

/** The parts of OpenAPI that the interface uses. */
type MediaTypes = Readonly<Record<string, { readonly schema?: JsonSchema }>>;
interface ApiOperation {
  readonly summary?: string;
  readonly parameters?: readonly { readonly name: string; readonly in: string }[];
  readonly requestBody?: { readonly content: MediaTypes };
  readonly responses: Readonly<Record<string, { readonly content?: MediaTypes }>>;
}
interface OpenApiPaths {
  readonly paths: Readonly<Record<string, Readonly<Record<string, ApiOperation>>>>;
}

/** The exports `…Schema`: shapes that have a name. */
const SHAPES = Object.entries(rest)
  .filter(([name]) => name.endsWith('Schema'))
  .map(([name, schema]) => ({
    name: name.replace(/Schema$/, ''),
    schema: schema as JsonSchema,
  }));
const NAMED = [
  ...SHAPES,
  { name: 'RunConfig', schema: RunConfigSchema as JsonSchema },
  { name: 'DataSummary', schema: DataSummarySchema as JsonSchema },
];

export async function restPage(): Promise<string> {
  const { paths } = await openApi();
  const rows = Object.entries(paths)
    .flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => rowOf(path, method, operation)),
    )
    .sort();
  const source = readFileSync(SOURCE, 'utf8');
  const order = ({ name }: { name: string }) => source.indexOf(`export const ${name}Schema`);
  const shapes = [...SHAPES]
    .sort((a, b) => order(a) - order(b))
    .map(({ name, schema }) => {
      const comments = commentsOf(source, name);
      return `### ${name}\n\n\`\`\`ts\n${extended(schema, comments)}\n\`\`\``;
    });
  return `${[
    '# REST',
    'Programs read and control runs through this interface. Try it with a running server:',
    '    curl http://127.0.0.1:7420/status',
    'In TypeScript, `downpour/client` is a typed client ([export.md](export.md#programs-of-your-own)). Every server describes the interface as OpenAPI at `GET /openapi.json`.',
    'If the server has tokens, send one in the header `Authorization: Bearer …`. The column *role* has the lowest role that a route requires; an operator can use every route ([SECURITY.md](../SECURITY.md)). An error is `{ code, message }` with an HTTP status from [errors.md](errors.md). Unknown fields are refused. Times are in seconds, sizes in bytes, and shares from 0 to 1. `null` means unknown or absent.',
    '`npm run docs` writes this page from a server and from `shared/rest.ts`. To change it, change those.',
    '## Routes',
    [
      '| route | role | what it does | query | body | answer |',
      '|---|---|---|---|---|---|',
      ...rows.map((row) => `| ${row.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`),
    ].join('\n'),
    '## Shapes',
    'The shapes are TypeScript types. [configuration.md](configuration.md) describes `RunConfig`. `DataSummary` has the number of examples in each part of the data, the fingerprints and the source. [data.md](data.md#when-the-data-change) describes `DataFacts`.',
    ...shapes,
  ].join('\n\n')}\n`;
}

/** As a server without runs tells it. */
async function openApi(): Promise<OpenApiPaths> {
  const state = mkdtempSync(join(tmpdir(), 'downpour-docs-'));
  const stop = new AbortController();
  const log = () => {};
  const server = await serve({ host: '127.0.0.1', port: 0, state, signal: stop.signal, log });
  try {
    return (await (await fetch(`${server.url}/openapi.json`)).json()) as OpenApiPaths;
  } finally {
    stop.abort();
    await server.closed;
    rmSync(state, { recursive: true, force: true });
  }
}

function rowOf(path: string, method: string, operation: ApiOperation): string[] {
  const { summary = '', parameters = [], requestBody, responses } = operation;
  const query = parameters.filter((p) => p.in === 'query').map(({ name }) => `\`${name}\``);
  const ok = Object.entries(responses).find(([status]) => status.startsWith('2'));
  const body = requestBody && shapeOf(requestBody.content);
  const answer = ok?.[1].content && shapeOf(ok[1].content);
  const url = path.replace(/\{(\w+)\}/g, ':$1');
  const who = roleFor(method.toUpperCase(), url) ?? 'none';
  return [
    `\`${method.toUpperCase()} ${url}\``,
    who,
    summary,
    query.join(', '),
    body ?? '',
    answer ?? (ok?.[0] === '204' ? 'nothing' : ''),
  ];
}

function shapeOf(content: MediaTypes): string {
  if ('application/octet-stream' in content) return 'bytes';
  const [schema] = Object.values(content).map((media) => media.schema);
  if (!schema) return '';
  const text = typeOf(schema, { comments: new Map(), root: false }).replace(/\s+/g, ' ');
  return text.replace(/\b[A-Z]\w+/g, (name) => `[${name}](#${name.toLowerCase()})`);
}

/** What the comments of the source say of the fields of a schema. */
function commentsOf(source: string, name: string): Map<string, string> {
  const start = source.indexOf(`export const ${name}Schema`);
  const text = source.slice(start, source.indexOf('\nexport ', start + 1));
  const found = [...text.matchAll(/\/\*\* ([^*]+) \*\/\s+(\w+):/g)];
  return new Map(found.map(([, comment, field]) => [field!, comment!.replace(/\s+/g, ' ')]));
}

/** A shape, as what it adds to the largest other one that it holds whole. */
function extended(schema: JsonSchema, comments: ReadonlyMap<string, string>): string {
  const own = schema.properties ?? {};
  const held = NAMED.filter(({ schema: other }) => {
    const fields = Object.entries(other.properties ?? {});
    return (
      fields.length > 2 &&
      fields.length < Object.keys(own).length &&
      fields.every(([name, field]) => own[name] && signatureOf(own[name]) === signatureOf(field))
    );
  });
  const sizeOf = ({ schema: { properties = {} } }: { schema: JsonSchema }) =>
    Object.keys(properties).length;
  const largest = held.sort((a, b) => sizeOf(b) - sizeOf(a))[0];
  const inherited = largest?.schema.properties ?? {};
  const rest = Object.fromEntries(Object.entries(own).filter(([name]) => !(name in inherited)));
  const text = typeOf({ ...schema, properties: rest }, { comments, root: true });
  return largest ? `${largest.name} & ${text}` : text;
}

interface ShapeOptions {
  readonly comments: ReadonlyMap<string, string>;
  /** The shape itself is written out, not named. */
  readonly root: boolean;
  readonly indent?: string;
}

/** A schema as a TypeScript type. */
function typeOf(schema: JsonSchema, { comments, root, indent = '' }: ShapeOptions): string {
  const inner = { comments, root: false, indent };
  if (schema.nullable && !isNull(schema)) {
    const { nullable: _, ...rest } = schema;
    return `${typeOf(rest, inner)} | null`;
  }
  if (isNull(schema)) return 'null';
  if (!root) {
    const key = signatureOf(schema);
    const known = NAMED.find((each) => signatureOf(each.schema) === key);
    if (known && schema.properties) return known.name;
  }
  if (schema.anyOf) {
    return [...new Set(schema.anyOf.map((each) => typeOf(each, inner)))].join(' | ');
  }
  if ('const' in schema) return JSON.stringify(schema.const).replaceAll('"', "'");
  if (schema.enum)
    return schema.enum.map((v) => JSON.stringify(v).replaceAll('"', "'")).join(' | ');
  if (schema.type === 'array') {
    const item = typeOf(schema.items ?? {}, inner);
    return item.includes('|') ? `(${item})[]` : `${item}[]`;
  }
  if (schema.properties) {
    const deeper = `${indent}  `;
    const lines = Object.entries(schema.properties).flatMap(([name, field]) => {
      const comment = comments.get(name);
      const optional = schema.required?.includes(name) ? '' : '?';
      const type = typeOf(field, { comments: new Map(), root: false, indent: deeper });
      return [
        ...(comment === undefined || indent !== '' ? [] : [`${deeper}/** ${comment} */`]),
        `${deeper}${name}${optional}: ${type};`,
      ];
    });
    return `{\n${lines.join('\n')}\n${indent}}`;
  }
  if (schema.patternProperties) {
    const [value] = Object.values(schema.patternProperties);
    return `Record<string, ${typeOf(value!, inner)}>`;
  }
  return (
    { integer: 'number', null: 'null', object: 'object' }[schema.type ?? ''] ??
    schema.type ??
    'unknown'
  );
}

/** OpenAPI has no type for it, and tells it of the others. */
const isNull = ({ type, enum: values }: JsonSchema) => type === 'null' || values?.[0] === null;

/** The same for a schema and for what OpenAPI makes of it: names of fields, and theirs. */
function signatureOf(schema: JsonSchema): string {
  const { properties, anyOf, items } = schema;
  if (properties) {
    return `{${Object.entries(properties)
      .map(([name, field]) => `${name}:${signatureOf(field)}`)
      .join()}}`;
  }
  if (anyOf) {
    const others = anyOf.filter((each) => !isNull(each)).map(signatureOf);
    return others.length === 1 ? others[0]! : `(${others.join()})`;
  }
  if (items) return `[${signatureOf(items)}]`;
  return '';
}
