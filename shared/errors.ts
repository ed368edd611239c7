/**
 * Every failure that Downpour expects, in one table: what REST answers (`http`), with what code a
 * WebSocket is closed (`close`, null: it stays open), and what the caller may do (`retry`).
 * `docs/errors.md` explains each; a test compares the two.
 */
export const ERRORS = {
  // The wire.
  DP_FRAME_MALFORMED: { http: 400, close: 1007, retry: 'never' },
  DP_FRAME_TOO_LARGE: { http: 413, close: 1009, retry: 'never' },
  DP_PROTOCOL_VERSION: { http: 426, close: 1002, retry: 'never' },
  DP_PROTOCOL_ORDER: { http: 400, close: 1002, retry: 'never' },
  DP_SLOW_READER: { http: 408, close: 1013, retry: 'backoff' },
  DP_SLOW_SENDER: { http: 408, close: 1013, retry: 'backoff' },
  DP_NAME_TAKEN: { http: 409, close: 4409, retry: 'backoff' },
  DP_SESSION_REPLACED: { http: 409, close: 4409, retry: 'never' },
  // Who may talk.
  DP_UNAUTHORIZED: { http: 401, close: 4401, retry: 'never' },
  DP_FORBIDDEN: { http: 403, close: 4403, retry: 'never' },
  DP_HEADERS_TOO_LARGE: { http: 431, close: null, retry: 'never' },
  DP_REQUEST_TIMEOUT: { http: 408, close: null, retry: 'backoff' },
  DP_SERVER_STOPPING: { http: 503, close: 1012, retry: 'backoff' },
  DP_STANDBY: { http: 503, close: 1012, retry: 'backoff' },
  DP_SHARD_LOST: { http: 503, close: 1012, retry: 'backoff' },
  DP_LIMIT: { http: 429, close: 1013, retry: 'backoff' },
  // Agreement on run, experiment, model and data.
  DP_RUN_UNKNOWN: { http: 404, close: 4404, retry: 'never' },
  DP_RUN_EXISTS: { http: 409, close: null, retry: 'never' },
  DP_RUN_ENDED: { http: 409, close: null, retry: 'never' },
  DP_RUN_FAILED: { http: 409, close: null, retry: 'never' },
  DP_RUN_UNFINISHED: { http: 409, close: null, retry: 'never' },
  DP_TEST_SEEN: { http: 409, close: null, retry: 'never' },
  DP_EXPERIMENT_UNKNOWN: { http: 404, close: 4404, retry: 'never' },
  DP_EXPERIMENT_MISMATCH: { http: 409, close: 4409, retry: 'never' },
  DP_EXPERIMENT_INVALID: { http: 400, close: null, retry: 'never' },
  DP_LAYOUT_MISMATCH: { http: 409, close: 4409, retry: 'never' },
  DP_LAYOUT_INVALID: { http: 400, close: 1007, retry: 'never' },
  DP_DATA_MISMATCH: { http: 409, close: 4409, retry: 'never' },
  // A push.
  DP_TENSOR_SIZE: { http: 400, close: null, retry: 'never' },
  DP_ROWS_INVALID: { http: 400, close: null, retry: 'never' },
  DP_PUSH_STALE: { http: 409, close: null, retry: 'pull-first' },
  DP_PUSH_LEASE_LOST: { http: 409, close: null, retry: 'never' },
  DP_PUSH_PHASE: { http: 409, close: null, retry: 'pull-first' },
  DP_GRADIENT_NOT_FINITE: { http: 422, close: null, retry: 'pull-first' },
  DP_GRADIENT_TOO_LARGE: { http: 422, close: null, retry: 'pull-first' },
  DP_PUSH_SHARE: { http: 409, close: null, retry: 'pull-first' },
  DP_QUARANTINED: { http: 403, close: 4403, retry: 'never' },
  DP_DIVERGED: { http: 422, close: null, retry: 'never' },
  // Configuration and commands.
  DP_CONFIG_INVALID: { http: 400, close: null, retry: 'never' },
  DP_BODY_INVALID: { http: 400, close: null, retry: 'never' },
  DP_NOT_FOUND: { http: 404, close: null, retry: 'never' },
  DP_USAGE: { http: 400, close: null, retry: 'never' },
  DP_SERVER_UNREACHABLE: { http: 503, close: null, retry: 'backoff' },
  DP_INTERNAL: { http: 500, close: 1011, retry: 'backoff' },
  // Data on disk.
  DP_DATA_MISSING: { http: 404, close: null, retry: 'never' },
  DP_DATA_CORRUPT: { http: 422, close: null, retry: 'never' },
  DP_DATA_LABEL: { http: 422, close: null, retry: 'never' },
  DP_CHECKPOINT_CORRUPT: { http: 422, close: null, retry: 'never' },
  DP_CHECKPOINT_MISSING: { http: 404, close: null, retry: 'never' },
  DP_DISK: { http: 507, close: null, retry: 'backoff' },
  // The state store.
  DP_STATE_LOCKED: { http: 423, close: null, retry: 'backoff' },
  DP_STATE_CORRUPT: { http: 500, close: null, retry: 'never' },
  DP_STATE_FENCED: { http: 409, close: 1012, retry: 'never' },
  DP_REDIS_UNAVAILABLE: { http: 503, close: null, retry: 'backoff' },
  // Copies of checkpoints.
  DP_S3_UNAVAILABLE: { http: 503, close: null, retry: 'backoff' },
  // Engines.
  DP_ENGINE_UNAVAILABLE: { http: 501, close: null, retry: 'never' },
  DP_ENGINE_INSTALL: { http: 500, close: null, retry: 'never' },
  DP_ENGINE_KERNEL: { http: 501, close: null, retry: 'never' },
} as const satisfies Record<string, ErrorRow>;

interface ErrorRow {
  readonly http: number;
  readonly close: number | null;
  readonly retry: 'never' | 'backoff' | 'pull-first';
}

export type ErrorCode = keyof typeof ERRORS;

/**
 * An expected failure. The message says what was seen, what was allowed, and what to do next.
 * Anything else that is thrown is a defect.
 */
export class DownpourError extends Error {
  override readonly name = 'DownpourError';
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The code of an error: its own when expected, `DP_INTERNAL` for a defect. */
export function errorCode(error: unknown): ErrorCode {
  return error instanceof DownpourError ? error.code : 'DP_INTERNAL';
}

/** True for an error that the same call would meet again. */
export function isLasting(code: string): boolean {
  return code in ERRORS && ERRORS[code as ErrorCode].retry === 'never';
}

/** What a question to a server may meet for a while: nobody answers, all runs wait for a shard, or it is asked too much, and says so. */
export function isAway(error: unknown): error is DownpourError {
  return ['DP_SERVER_UNREACHABLE', 'DP_SHARD_LOST', 'DP_LIMIT'].includes(errorCode(error));
}

/** The text of anything that was thrown. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
