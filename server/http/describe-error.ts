import type { FastifyError } from 'fastify';
import { DownpourError, type ErrorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';

/** What the answer to a request says of an error. */
export function describeError(
  error: FastifyError | DownpourError,
  bodyBytesMax: number = LIMITS.bodyBytesMax,
): { code: ErrorCode; message: string } {
  if (error instanceof DownpourError) return { code: error.code, message: error.message };
  if ('validation' in error && error.validation) {
    const lines = error.validation.map(({ instancePath, message, params }) => {
      const extra = (params as { additionalProperty?: string }).additionalProperty;
      return `${error.validationContext ?? 'body'}${instancePath.replaceAll('/', '.')} ${message}${extra ? `: '${extra}'` : ''}`;
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
