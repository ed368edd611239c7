import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { Readable } from 'node:stream';
import type { ConnectionOptions } from 'node:tls';
import { DownpourError, errorText } from '../shared/errors.ts';

/** The other side of a server's TLS: whom workers and REST clients trust, and who they say they are. */

export interface TrustFiles {
  /** PEM of the authority that has signed the server's certificate; absent: those that Node.js trusts. */
  readonly ca?: string;
  /** PEM of our own certificate, where the server asks for one. */
  readonly cert?: string;
  /** PEM of its key. */
  readonly key?: string;
}

/** @throws DownpourError DP_USAGE: a file is missing, or one of certificate and key is. */
export function trustOf({ ca, cert, key }: TrustFiles): ConnectionOptions {
  if ((cert === undefined) !== (key === undefined)) {
    throw new DownpourError(
      'DP_USAGE',
      `a certificate and its key go together: --tls-${cert === undefined ? 'cert' : 'key'} is missing`,
    );
  }
  return {
    ...(ca === undefined ? {} : { ca: contentOf(ca, '--tls-ca') }),
    ...(cert === undefined ? {} : { cert: contentOf(cert, '--tls-cert') }),
    ...(key === undefined ? {} : { key: contentOf(key, '--tls-key') }),
  };
}

function contentOf(file: string, option: string): Buffer {
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new DownpourError('DP_USAGE', `${option} ${file} cannot be read: ${errorText(cause)}`, {
      cause,
    });
  }
}

const EMPTY_BODY = new Set([204, 205, 304]);

/**
 * As much of `fetch` as the REST client uses, over TLS that trusts whom we say: the one of Node.js takes no
 * certificates. Redirections are not followed.
 */
export function fetchOver(tls: ConnectionOptions): typeof fetch {
  const agent = new Agent({ ...tls, keepAlive: true });
  return (input, init = {}) =>
    new Promise((resolve, reject) => {
      const { method = 'GET', headers, body, signal } = init;
      const asked = request(String(input), {
        agent,
        method,
        headers: Object.fromEntries(new Headers(headers)),
        ...(signal ? { signal } : {}),
      });
      // The reason says whether somebody stopped it or time ran out.
      asked.on('error', (error) => reject(signal?.aborted ? signal.reason : error));
      asked.on('response', (response) => {
        const { statusCode: status = 500 } = response;
        const content = EMPTY_BODY.has(status) ? null : Readable.toWeb(response);
        resolve(new Response(content as ReadableStream<Uint8Array> | null, { status }));
      });
      asked.end(typeof body === 'string' || body instanceof Uint8Array ? body : undefined);
    });
}
