import type { FastifyError } from 'fastify';
import { NAME_PATTERN } from '../../shared/config.ts';
import { DownpourError, type ErrorCode, errorText } from '../../shared/errors.ts';
import { TAG_PATTERN } from '../../shared/labels.ts';
import { LIMITS } from '../../shared/limits.ts';

/** What a text of a pattern is, for people who did not mean to write a pattern. */
const PATTERN_WORDS: Readonly<Record<string, string>> = {
  [NAME_PATTERN]: `1 to 64 lower-case letters, digits, '-' and '_', the first a letter or digit, such as 'my-run-2'`,
  [TAG_PATTERN]: 'a tag without spaces and commas: two tags are given one after the other',
};

/** What the answer to a request says of an error. */
export function describeError(
  error: FastifyError | DownpourError,
  bodyBytesMax: number = LIMITS.bodyBytesMax,
): { code: ErrorCode; message: string } {
  if (error instanceof DownpourError) return { code: error.code, message: error.message };
  if ('validation' in error && error.validation) {
    const lines = error.validation.map(({ instancePath, message, params }) => {
      const extra = (params as { additionalProperty?: string }).additionalProperty;
      const { pattern } = params as { pattern?: string };
      const words = pattern === undefined ? undefined : PATTERN_WORDS[pattern];
      const said = words === undefined ? message : `must be ${words}`;
      return `${error.validationContext ?? 'body'}${instancePath.replaceAll('/', '.')} ${said}${extra ? `: '${extra}'` : ''}`;
    });
    return { code: 'DP_BODY_INVALID', message: lines.join('; ') };
  }
  if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
    return {
      code: 'DP_FRAME_TOO_LARGE',
      message: `the body is too large; at most ${bodyBytesMax} bytes are allowed`,
    };
  }
  const { statusCode } = error;
  if (statusCode !== undefined && statusCode < 500) {
    return { code: 'DP_BODY_INVALID', message: errorText(error) };
  }
  return { code: 'DP_INTERNAL', message: 'internal error; see the server log' };
}

/** What the answer to a request says whose address cannot be decoded, such as `/%ff`. */
export const describeBadAddress = ({ message }: FastifyError) =>
  ({
    code: 'DP_BODY_INVALID',
    message: `${message.slice(0, 300)}: write each % of a path as %25`,
  }) as const;
