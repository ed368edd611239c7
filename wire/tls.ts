import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { Readable } from 'node:stream';
import { type ConnectionOptions, createSecureContext } from 'node:tls';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { Said } from '../shared/said.ts';

/** The other side of a server's TLS: whom workers and REST clients trust, and who they say they are. */

export interface TrustFiles {
  /** PEM of the authority that has signed the server's certificate; absent: those that Node.js trusts. */
  readonly ca?: string;
  /** PEM of our own certificate, where the server asks for one. */
  readonly cert?: string;
  /** PEM of its key. */
  readonly key?: string;
}

/** What the files hold. */
export interface TrustContent {
  readonly ca?: Buffer;
  readonly cert?: Buffer;
  readonly key?: Buffer;
}

/**
 * Whom to trust, by files that are read again when they have changed: each connection that is made of these options has the
 * certificate of that moment, if the options are spread for it.
 * @throws DownpourError DP_USAGE: a file is missing, or is not what it should be, or one of certificate and key is missing.
 */
export function trustOf({ ca, cert, key }: TrustFiles, options: NewestOptions = {}): TrustContent {
  if ((cert === undefined) !== (key === undefined)) {
    throw new DownpourError(
      'DP_USAGE',
      `a certificate and its key go together: --tls-${cert === undefined ? 'cert' : 'key'} is missing`,
    );
  }
  const read = () => ({
    ...(ca === undefined ? {} : { ca: contentOf(ca, '--tls-ca') }),
    ...(cert === undefined ? {} : { cert: contentOf(cert, '--tls-cert') }),
    ...(key === undefined ? {} : { key: contentOf(key, '--tls-key') }),
  });
  return newestContent(read, options);
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

/** Fields that are read one after the other are of one reading. */
const READ_AGAIN_MS = 1_000;

export interface NewestOptions {
  /** Is told of files that cannot be used. */
  readonly log?: Log;
  readonly now?: () => number;
}

/**
 * The content of files as `read` finds it when a field is asked for. A certificate whose key has not come yet is not taken: all
 * stays as it was.
 * @throws DownpourError what `read` throws the first time; DP_USAGE: certificate and key do not go together.
 */
export function newestContent(
  read: () => TrustContent,
  { log = () => {}, now = () => performance.now() }: NewestOptions = {},
): TrustContent {
  let newest = checked(read());
  let readAt = now();
  const said = new Said();
  const field = (name: keyof TrustContent) => ({
    enumerable: true,
    get() {
      if (now() - readAt < READ_AGAIN_MS) return newest[name];
      readAt = now();
      try {
        const next = read();
        if (!isSame(next, newest)) newest = checked(next);
        said.clear();
      } catch (error) {
        const line = `the certificate stays as it was: ${errorText(error)}`;
        if (said.isNew(line)) log(line, { level: 'warn' });
      }
      return newest[name];
    },
  });
  const fields = Object.keys(newest) as (keyof TrustContent)[];
  return Object.defineProperties(
    {},
    Object.fromEntries(fields.map((name) => [name, field(name)])),
  ) as TrustContent;
}

const isSame = (a: TrustContent, b: TrustContent) =>
  (['ca', 'cert', 'key'] as const).every((name) => a[name]?.equals(b[name]!) ?? true);

function checked(content: TrustContent): TrustContent {
  try {
    createSecureContext(content);
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `the files are no certificate and its key, in PEM: ${errorText(cause)}`,
      { cause },
    );
  }
  return content;
}

/**
 * Why a server may have ended a connection over TLS, as far as our own certificate tells: a server that does not take it gives
 * no reason. Empty: it is not the certificate.
 * @param now of the clock on the wall, ms.
 */
function certificateWords(
  tls: Pick<ConnectionOptions, 'cert'>,
  error: Error,
  now = Date.now(),
): string {
  const { cert } = tls;
  const isAlert = /alert/.test(error.message);
  const { code = '' } = error as NodeJS.ErrnoException;
  if (!isAlert && !(cert && ['ECONNRESET', 'EPIPE'].includes(code))) return '';
  if (cert === undefined) {
    return '; if the server asks for certificates of its clients, give one by --tls-cert and --tls-key';
  }
  if (typeof cert !== 'string' && !Buffer.isBuffer(cert)) return '';
  const { subject, issuer, validFrom, validTo } = new X509Certificate(cert);
  const name = `our certificate (${subject?.replaceAll('\n', ', ')})`;
  const [from, to] = [validFrom, validTo].map((date) => new Date(date).toISOString());
  if (Date.parse(validTo) <= now) {
    return `; ${name} has expired on ${to}: put a new one and its key into the files, which are read again`;
  }
  if (Date.parse(validFrom) > now) {
    return `; ${name} is valid from ${from} only, and it is ${new Date(now).toISOString()} here: set the clock right`;
  }
  return `; perhaps the server does not take ${name}, signed by ${issuer.replaceAll('\n', ', ')}: it must be signed by the authority of the server's --tls-ca`;
}

/** Codes of Node.js for a certificate that no authority which is known here has signed. */
const UNTRUSTED = new Set([
  ...['UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY'],
  ...['SELF_SIGNED_CERT_IN_CHAIN', 'DEPTH_ZERO_SELF_SIGNED_CERT'],
]);

/** What is to be done about the certificate of the server, after the words of OpenSSL; empty: nothing. */
function serverWords({ code = '' }: NodeJS.ErrnoException): string {
  if (UNTRUSTED.has(code)) {
    return '; if an authority of your own has signed the certificate of that server, name its file by --tls-ca, or by NODE_EXTRA_CA_CERTS for a server that reaches shards or a primary';
  }
  if (code === 'CERT_HAS_EXPIRED') return '; it is that of the server, which needs a new one';
  if (code === 'CERT_NOT_YET_VALID') {
    return '; it is that of the server: set the clock of this machine right, or that of the server';
  }
  return '';
}

/** The same error, with what the certificates of both sides have to do with it. */
export function withCertificate(error: Error, tls: Pick<ConnectionOptions, 'cert'>): Error {
  const words = serverWords(error) || certificateWords(tls, error);
  if (words === '') return error;
  return Object.assign(new Error(error.message + words), {
    code: (error as NodeJS.ErrnoException).code,
  });
}

const EMPTY_BODY = new Set([204, 205, 304]);

/**
 * As much of `fetch` as the REST client uses, over TLS that trusts whom we say: the one of Node.js takes no
 * certificates. Redirections are not followed.
 */
export function fetchOver(tls: ConnectionOptions): typeof fetch {
  const agent = new Agent({ keepAlive: true });
  return (input, init = {}) =>
    new Promise((resolve, reject) => {
      const { method = 'GET', headers, body, signal } = init;
      const asked = request(String(input), {
        // Connections with another certificate than the newest are not used again.
        ...tls,
        agent,
        method,
        headers: Object.fromEntries(new Headers(headers)),
        ...(signal ? { signal } : {}),
      });
      // The reason says whether somebody stopped it or time ran out.
      asked.on('error', (error) =>
        reject(signal?.aborted ? signal.reason : withCertificate(error, tls)),
      );
      asked.on('response', (response) => {
        const { statusCode: status = 500 } = response;
        const content = EMPTY_BODY.has(status) ? null : Readable.toWeb(response);
        resolve(new Response(content as ReadableStream<Uint8Array> | null, { status }));
      });
      asked.end(typeof body === 'string' || body instanceof Uint8Array ? body : undefined);
    });
}
