import { DownpourError, ERRORS, type ErrorCode } from '../shared/errors.ts';

/** Why a server refuses a worker, where it says so only by a status or a close code. */

/** What the answer to the handshake says; null: try again. */
export function refusalOfStatus(status: number | null, url: string): DownpourError | null {
  if (status === 401 || status === 403) {
    return new DownpourError(
      'DP_UNAUTHORIZED',
      `the server at ${url} refuses this worker's token: set DOWNPOUR_TOKEN or --token as on the server`,
    );
  }
  if (status === 426 || status === 400) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `the server at ${url} answers HTTP status ${status}: is it a Downpour server of this release?`,
    );
  }
  return null;
}

/** What a close code says when no error message came before it; null: try again. */
export function refusalOf(close: number, reason: string): DownpourError | null {
  if (reason in ERRORS) {
    return new DownpourError(reason as ErrorCode, `the server closed the connection: ${reason}`);
  }
  if (close === 4401) {
    return new DownpourError('DP_UNAUTHORIZED', "the server refuses this worker's token");
  }
  if (close === 1009) {
    return new DownpourError('DP_FRAME_TOO_LARGE', `the server closed the connection: ${reason}`);
  }
  return null;
}
