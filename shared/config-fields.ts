import Type, { type TSchema } from 'typebox';

/** Kinds of fields of a configuration, with their descriptions and defaults. */

export const closed = { additionalProperties: false } as const;
export const count = (description: string, fallback: number) =>
  Type.Integer({ minimum: 0, default: fallback, description });
export const positive = (description: string, fallback: number) =>
  Type.Number({ exclusiveMinimum: 0, default: fallback, description });
export const share = (description: string, fallback: number) =>
  Type.Number({ minimum: 0, exclusiveMaximum: 1, default: fallback, description });
export const orNone = <S extends TSchema>(schema: S, description: string) =>
  Type.Union([schema, Type.Null()], { default: null, description });
export const steps = Type.Integer({ minimum: 1 });
export const choice = <const L extends readonly string[]>(
  values: L,
  description: string,
  fallback: L[number],
) =>
  Type.Unsafe<L[number]>(
    Type.Union(
      values.map((value) => Type.Literal(value)),
      { default: fallback, description },
    ),
  );
export const epsilon = (fallback: number) =>
  positive('small constant added to the denominator', fallback);
/** What Adam and its kin have, beside their kind. */
export const adamFields = () => ({
  beta1: share('decay rate of the first moment estimate', 0.9),
  beta2: share('decay rate of the second moment estimate', 0.999),
  epsilon: epsilon(1e-8),
});
