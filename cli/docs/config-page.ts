import { RunConfigSchema } from '../../shared/config.ts';
import type { JsonSchema } from '../../shared/json-schema.ts';

/** docs/configuration.md, from the schema that checks and completes every configuration. */

export const CONFIG_PAGE = new URL('../../docs/configuration.md', import.meta.url);

export function configPage(): string {
  const lines = [
    '# Configuration of a run',
    '',
    'This page lists every setting of a run, such as the learning rate, the optimizer and early stopping. Set a field on the command line:',
    '',
    '    npx downpour train examples/mnist-mlp.ts --set optimizer.kind=adam --set earlyStopping.patience=8',
    '',
    'You can also set it in the `config` of an experiment, or in the body of `POST /runs`. An unknown field is refused.',
    '',
    'In a field with `<name>`, write the name of your group or table: `--set tables.word.width=16`.',
    '',
    '`npm run docs` writes this page from the schema in `shared/config.ts`. To change it, change the schema.',
    '',
    '| field | allowed | default | what it does |',
    '|---|---|---|---|',
    ...rowsOf(RunConfigSchema as unknown as JsonSchema, ''),
  ];
  return `${lines.join('\n')}\n`;
}

function rowsOf(schema: JsonSchema, path: string): string[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const full = path === '' ? name : `${path}.${name}`;
    const kinds = (field.anyOf ?? []).filter((branch) => branch.properties?.kind);
    if (kinds.length > 0) return kindRows(field, kinds, full);
    if (field.properties && field.type === 'object') return rowsOf(field, full);
    const row = [`\`${full}\``, allowed(field), standard(field), field.description ?? ''];
    const line = `| ${row.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
    // Entries by names of the user, such as tables: each has the same fields.
    const [entry = {}] = Object.values(field.patternProperties ?? {});
    return [line, ...rowsOf(entry, `${full}.<name>`)];
  });
}

/** A choice of `kind`, then the fields of each. */
function kindRows(field: JsonSchema, kinds: readonly JsonSchema[], path: string): string[] {
  const names = kinds.map((kind) => `\`${kind.properties?.kind?.const}\``).join(', ');
  const preset = (field.default as { kind?: string } | undefined)?.kind;
  const head = `| \`${path}.kind\` | ${names} | \`${preset}\` | ${field.description ?? ''} |`;
  const rest = kinds.flatMap((kind) => {
    const { kind: _, ...properties } = kind.properties!;
    const name = String(kind.properties?.kind?.const);
    return rowsOf({ properties }, path).map((row) => row.replace(/ \|$/, ` (\`${name}\`) |`));
  });
  return [head, ...rest];
}

function allowed(schema: JsonSchema): string {
  if (schema.anyOf) return schema.anyOf.map(allowed).join(', ');
  if ('const' in schema) return `\`${JSON.stringify(schema.const)}\``;
  if (schema.type === 'array') return `list of ${allowed(schema.items ?? {})}`;
  if (schema.type === 'object' && schema.properties) {
    const { kind, ...others } = schema.properties;
    if (kind?.const === undefined) return `{ ${Object.keys(schema.properties).join(', ')} }`;
    const more = Object.keys(others).length > 0 ? ', …' : '';
    return `\`{ kind: ${JSON.stringify(kind.const)}${more} }\``;
  }
  const type = { integer: 'whole number', object: 'names and values' }[schema.type ?? ''];
  const limits = [
    schema.minimum === undefined ? '' : `≥ ${schema.minimum}`,
    schema.exclusiveMinimum === undefined ? '' : `> ${schema.exclusiveMinimum}`,
    schema.maximum === undefined || schema.maximum === Number.MAX_SAFE_INTEGER
      ? ''
      : `≤ ${schema.maximum}`,
    schema.exclusiveMaximum === undefined ? '' : `< ${schema.exclusiveMaximum}`,
  ].filter((limit) => limit !== '');
  return [type ?? schema.type ?? 'anything', ...limits].join(' ');
}

function standard(schema: JsonSchema): string {
  return schema.default === undefined ? 'required' : `\`${JSON.stringify(schema.default)}\``;
}
