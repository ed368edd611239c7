import Type, { type Static } from 'typebox';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { Tag } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';
import { ErrorBodySchema } from '../../shared/rest.ts';
import type { ListEntry, RunFilter } from '../fleet/listing.ts';

/** What the routes of REST have in common. */

export const JSON_TYPE = 'application/json; charset=utf-8';
export const BYTES_TYPE = 'application/octet-stream';

export const Id = Type.Object({ id: Type.String({ pattern: NAME_PATTERN }) });
export type ById = { Params: { id: string } };
/** Which runs a list has. */
export const Which = Type.Object(
  {
    /** Text, since nothing of a request is converted in silence. */
    limit: Type.Optional(Type.String()),
    archived: Type.Optional(
      Type.Union([Type.Literal('true'), Type.Literal('false'), Type.Literal('all')]),
    ),
    tag: Type.Optional(Tag),
    study: Type.Optional(Type.String({ pattern: NAME_PATTERN })),
  },
  { additionalProperties: false },
);
export type WhichQuery = Static<typeof Which>;

export function wantedBy({ archived = 'false', tag, study }: WhichQuery): RunFilter {
  return {
    archived: archived === 'all' ? archived : archived === 'true',
    ...(tag !== undefined && { tag }),
    ...(study !== undefined && { study }),
  };
}

/** @param response by status; @param more of the request: `params`, `querystring`, `body`. */
export function schema(summary: string, response: object, more: object = {}) {
  return { schema: { summary, response, ...more } };
}

/** What a route answers, and how it fails, for OpenAPI. @param response absent: the answer is no JSON. */
export function withErrors({ response = NO_JSON }: { readonly response?: unknown }): object {
  return { ...(response as object), '4xx': ErrorBodySchema, '5xx': ErrorBodySchema };
}
const NO_JSON = { 200: { description: 'Default Response' } };

/** A JSON array of runs whose texts are ready. */
export function textOf(entries: readonly ListEntry[]): string {
  return `[${entries.map(({ text }) => text).join()}]`;
}

/** All that there can be, by default. @throws DownpourError DP_BODY_INVALID. */
export function limitWanted(text: string | undefined): number {
  return text === undefined
    ? LIMITS.runCountMax
    : queryNumber('limit', text, 1, LIMITS.runCountMax);
}

/** @throws DownpourError DP_BODY_INVALID. */
export function queryNumber(name: string, text: string, least: number, most: number): number {
  const value = /^\d{1,6}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new DownpourError(
    'DP_BODY_INVALID',
    `${name} is '${text.slice(0, 20)}'; it must be a whole number from ${least} to ${most}`,
  );
}

/** The function of an app that gives our interface as OpenAPI. */
export const OPENAPI = 'downpourOpenApi';
