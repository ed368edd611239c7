import Type, { type Static } from 'typebox';
import Value from 'typebox/value';
import { resolveConfig } from './config.ts';
import { DownpourError, errorText } from './errors.ts';
import { nearest } from './spelling.ts';

/**
 * Where a search looks: for each field of the configuration that it varies, by its path
 * (`learningRate`, `optimizer.momentum`, `hyperparameters.units`), the values that it may take.
 */

const closed = { additionalProperties: false } as const;
const Scalar = Type.Union([Type.Number(), Type.String({ maxLength: 1000 }), Type.Boolean()]);
/** Another dimension's path and the value, or values, at which this one counts. */
const When = Type.Optional(Type.Record(Type.String(), Type.Union([Scalar, Type.Array(Scalar)])));
const range = <const K extends string>(kind: K) =>
  Type.Object(
    { kind: Type.Literal(kind), low: Type.Number(), high: Type.Number(), when: When },
    closed,
  );

const DimensionSchema = Type.Union([
  /** Any number from low to high, each as likely. */
  range('uniform'),
  /** The logarithm is uniform: for what matters by factors, like a learning rate. */
  range('log'),
  /** Whole numbers, low and high among them. */
  range('integer'),
  range('logInteger'),
  Type.Object(
    { kind: Type.Literal('choice'), values: Type.Array(Scalar, { minItems: 1 }), when: When },
    closed,
  ),
]);
export type Dimension = Static<typeof DimensionSchema>;
export type SpaceValue = Static<typeof Scalar>;

/** The dimensions by path, in an order that conditions follow: a dimension may depend on those before it. */
export type Space = Readonly<Record<string, Dimension>>;

/** One value for each dimension that counts at this point. */
export type Point = Readonly<Record<string, SpaceValue>>;

const KINDS = ['uniform', 'log', 'integer', 'logInteger', 'choice'] as const;

/**
 * Checks a space that a user wrote.
 * @throws DownpourError DP_CONFIG_INVALID with a line for each wrong dimension.
 */
export function checkSpace(value: unknown): Space {
  const problems: string[] = [];
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    problems.push('it is no object of dimensions by path');
  } else {
    const before: string[] = [];
    for (const [path, dimension] of Object.entries(value)) {
      const problem = problemOf(dimension, before);
      if (problem !== null) problems.push(`${path} ${problem}`);
      before.push(path);
    }
    if (before.length === 0) problems.push('it has no dimension');
  }
  if (problems.length > 0) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `the search space is not valid:\n${problems.map((p) => `  ${p}`).join('\n')}`,
    );
  }
  return value as Space;
}

function problemOf(value: unknown, before: readonly string[]): string | null {
  if (typeof value !== 'object' || value === null || !('kind' in value)) {
    return `is ${JSON.stringify(value)}; write it like { kind: 'log', low: 0.001, high: 1 }`;
  }
  if (!KINDS.some((kind) => kind === value.kind)) {
    return `has kind ${JSON.stringify(value.kind)}; allowed: ${KINDS.join(', ')}`;
  }
  if (!Value.Check(DimensionSchema, value)) {
    const needs = value.kind === 'choice' ? 'values (at least one)' : 'low and high';
    return `is ${JSON.stringify(value)}; a ${value.kind} needs ${needs}, and may have when`;
  }
  for (const parent of Object.keys(value.when ?? {})) {
    if (!before.includes(parent)) {
      const near = nearest(parent, before);
      return `depends on '${parent}', which is no dimension before it${near ? `; did you mean '${near}'?` : ''}`;
    }
  }
  if (value.kind === 'choice') return null;
  const { kind, low, high } = value;
  if (!(low < high)) return `has low ${low} and high ${high}; low must be below high`;
  if (kind.startsWith('log') && !(low > 0))
    return `has low ${low}; of a ${kind} it must be above 0`;
  if (kind.endsWith('nteger') && !(Number.isInteger(low) && Number.isInteger(high))) {
    return `has low ${low} and high ${high}; of a ${kind} they must be whole numbers`;
  }
  return null;
}

/** Whether a dimension counts, given the values of those before it. */
export function isActive({ when }: Dimension, point: Point): boolean {
  return Object.entries(when ?? {}).every(([path, allowed]) => {
    const value = point[path];
    return value !== undefined && [allowed].flat().includes(value);
  });
}

/** The part of a configuration that a point stands for. */
export function pointConfig(point: Point): Record<string, unknown> {
  const config: Record<string, unknown> = {};
  for (const [path, value] of Object.entries(point)) {
    const keys = path.split('.');
    let inner = config;
    for (const key of keys.slice(0, -1)) {
      inner[key] ??= {};
      inner = inner[key] as Record<string, unknown>;
    }
    inner[keys.at(-1)!] = value;
  }
  return config;
}

/**
 * Tries a point's configuration on what the run would have, so that a wrong path or an impossible
 * value is found before the first trial and not by it.
 * @throws DownpourError DP_CONFIG_INVALID.
 */
export function checkPoint(point: Point, ...layers: readonly unknown[]): void {
  try {
    resolveConfig(...layers, pointConfig(point));
  } catch (error) {
    throw new DownpourError(
      'DP_CONFIG_INVALID',
      `the search would try ${JSON.stringify(point)}: ${errorText(error)}`,
      { cause: error },
    );
  }
}
