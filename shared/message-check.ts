import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { DownpourError } from './errors.ts';

/** Messages and their checks, for every two processes that talk to each other. */

interface Validator {
  Check(value: unknown): boolean;
  Errors(value: unknown): { readonly instancePath: string; readonly message: string }[];
}

/** Validators of messages, by their types. */
export const compile = (schemas: Record<string, TSchema>): ReadonlyMap<string, Validator> =>
  new Map(Object.entries(schemas).map(([type, schema]) => [type, validatorOf(schema)]));

/**
 * A closed object with optional fields is checked by TypeBox with a regular expression for each of its names: most
 * of the time that the check of a push takes. Here the fields are checked, then counted.
 */
function validatorOf(schema: TSchema): Validator {
  const closed = Compile(schema);
  const { additionalProperties, ...open } = schema as {
    readonly additionalProperties?: unknown;
    readonly properties?: object;
    readonly required?: readonly string[];
  };
  const { properties, required = [] } = open;
  const optional = Object.keys(properties ?? {}).filter((name) => !required.includes(name));
  if (additionalProperties !== false || optional.length === 0) return closed;
  const fields = Compile(open as TSchema);
  return {
    Check(value) {
      if (!fields.Check(value)) return false;
      let known = required.length;
      for (const name of optional) if (Object.hasOwn(value as object, name)) known++;
      return Object.keys(value as object).length === known;
    },
    Errors: (value) => closed.Errors(value),
  };
}

/**
 * @param known the validators, by what stands in `key`. @param of in which message the value is, for the error.
 * @throws DownpourError DP_FRAME_MALFORMED naming the field that is wrong.
 */
export function check<K extends string = 'type'>(
  known: ReturnType<typeof compile>,
  value: { readonly [key in K]: string },
  key: K = 'type' as K,
  of = '',
): unknown {
  const kind = value[key];
  const validator = known.get(kind);
  if (!validator) {
    throw new DownpourError(
      'DP_FRAME_MALFORMED',
      `malformed frame: unknown ${of}${of === '' ? 'message ' : ' '}${key} '${kind.slice(0, 40)}'; known: ${[...known.keys()].join(', ')}`,
    );
  }
  const valid: boolean = validator.Check(value);
  if (valid) return value;
  const [problem] = validator.Errors(value);
  throw new DownpourError(
    'DP_FRAME_MALFORMED',
    `malformed frame: ${of}${of && ' '}${kind}${problem?.instancePath.replaceAll('/', '.') ?? ''} ${problem?.message ?? 'is not valid'}`,
  );
}
