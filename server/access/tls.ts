import { X509Certificate } from 'node:crypto';
import { readFileSync, unwatchFile, watchFile } from 'node:fs';
import { createSecureContext, type SecureContextOptions, type TLSSocket } from 'node:tls';
import { DownpourError, errorText } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';

/** The certificate that a server shows, and whose certificates it asks for. */

export interface TlsFiles {
  /** PEM: the certificate and, behind it, those of authorities in between. */
  readonly cert: string;
  /** PEM of its key. */
  readonly key: string;
  /** PEM of the authority that has signed the certificates of workers and clients; absent: none are asked for. */
  readonly ca?: string;
}

/** What was changed by moving files shows within so many ms. */
const LOOK_MS = 2_000;

export interface Material {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly minVersion: 'TLSv1.2';
  readonly ca?: Buffer;
  readonly requestCert?: boolean;
  readonly rejectUnauthorized?: boolean;
}

/** Validity of the certificate that ends first: ours, one of an authority between, or one of clients. */
export interface Validity {
  readonly file: string;
  /** ISO 8601. */
  readonly validFrom: string;
  readonly expiresAt: string;
}

interface Secured {
  setSecureContext(options: SecureContextOptions): void;
  on(
    event: 'tlsClientError',
    listener: (error: NodeJS.ErrnoException, socket: TLSSocket) => void,
  ): unknown;
}

/** The files, read anew when they change: certificates are renewed without a restart. */
export class TlsMaterial {
  readonly #files: TlsFiles;
  readonly #log: Log;
  readonly #look = () => this.reload();
  readonly #servers = new Set<Secured>();
  #options: Material;
  #validity: Validity | null;

  /** @throws DownpourError DP_USAGE: a file is missing, or is not what it should be. */
  constructor(files: TlsFiles, log: Log = () => {}) {
    this.#files = files;
    this.#log = log;
    this.#options = read(files);
    this.#validity = validityOf(this.#options, files);
    this.#warn();
    for (const file of pathsOf(files)) {
      watchFile(file, { interval: LOOK_MS, persistent: false }, this.#look);
    }
  }

  /** For the making of a server. */
  options(): Material {
    return this.#options;
  }

  /** Keeps a server's certificate new. */
  keep(server: Secured): void {
    this.#servers.add(server);
    server.on('tlsClientError', (error, socket) => this.#refused(error, socket));
  }

  /** The client is told at most that its certificate is not taken, so the reason stands here. */
  #refused(error: NodeJS.ErrnoException, { authorizationError, remoteAddress }: TLSSocket): void {
    // It is a code, whatever the types of Node.js say.
    const code = String(authorizationError ?? error.code);
    const why =
      REFUSALS[code] ?? (authorizationError && `its certificate is not accepted (${code})`);
    if (!why) return;
    const where = remoteAddress === undefined ? '' : ` at ${remoteAddress}`;
    this.#log(`a client${where} was refused: ${why}; ${this.#files.ca} must have signed it`, {
      level: 'warn',
      kind: `certificate ${code}`,
    });
  }

  /** A certificate whose key has not come yet is not taken: all stays as it was. */
  reload(): void {
    try {
      this.#options = read(this.#files);
      this.#validity = validityOf(this.#options, this.#files);
    } catch (error) {
      this.#log(`the certificate stays as it was: ${errorText(error)}`, { level: 'warn' });
      return;
    }
    for (const server of this.#servers) server.setSecureContext(this.#options);
    this.#log(`the certificate ${this.#files.cert} has been read again`);
    this.#warn();
  }

  /** Null: it cannot be told. */
  get validity(): Validity | null {
    return this.#validity;
  }

  #warn(): void {
    const problem = this.#validity && certificateProblem(this.#validity, Date.now());
    if (problem) this.#log(problem.text, { level: 'warn' });
  }

  close(): void {
    for (const file of pathsOf(this.#files)) unwatchFile(file, this.#look);
  }
}

const REFUSALS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet, by the clock of this machine',
  ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE: 'it showed no certificate',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is signed by itself',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is of another authority',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is of another authority',
};

const pathsOf = ({ cert, key, ca }: TlsFiles) => (ca === undefined ? [cert, key] : [cert, key, ca]);

function read({ cert, key, ca }: TlsFiles): Material {
  const options: Material = {
    cert: contentOf(cert, 'the certificate'),
    key: contentOf(key, 'its key'),
    minVersion: 'TLSv1.2',
    ...(ca === undefined
      ? {}
      : { ca: contentOf(ca, 'the authority'), requestCert: true, rejectUnauthorized: true }),
  };
  try {
    createSecureContext(options);
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `${cert} and ${key} are no certificate and its key, in PEM: ${errorText(cause)}`,
      { cause },
    );
  }
  return options;
}

const ONE_CERTIFICATE = /-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----[^-]*-----END \1-----/g;

function validityOf({ cert, ca }: Material, files: TlsFiles): Validity | null {
  const from = (content: Buffer | undefined, file: string | undefined) =>
    (content?.toString('latin1').match(ONE_CERTIFICATE) ?? []).map((pem) => {
      const { validFrom, validTo } = new X509Certificate(pem);
      return {
        file: file!,
        validFrom: new Date(validFrom).toISOString(),
        expiresAt: new Date(validTo).toISOString(),
      };
    });
  const all: Validity[] = [...from(cert, files.cert), ...from(ca, files.ca)];
  all.sort((a, b) => (a.expiresAt < b.expiresAt ? -1 : 1));
  return all[0] ?? null;
}

/** Renewed every 60 to 90 days as a rule, two to four weeks before the end: within the last week that has failed. */
const RENEWAL_DAYS = 7;
const DAY_MS = 86_400_000;

/** @param now of the clock on the wall, ms. @returns null: nobody need do anything yet. */
export function certificateProblem(
  { file, validFrom, expiresAt }: Validity,
  now: number,
): { readonly severity: 'critical' | 'warning'; readonly text: string } | null {
  const left = Date.parse(expiresAt) - now;
  const renew =
    'replace the files with a new certificate and its key; the server reads them without a restart';
  if (left <= 0) {
    return {
      severity: 'critical',
      text: `the certificate ${file} has expired on ${expiresAt}: workers and clients refuse it, ${renew}`,
    };
  }
  if (Date.parse(validFrom) > now) {
    return {
      severity: 'critical',
      text: `the certificate ${file} is valid from ${validFrom} only, and it is ${new Date(now).toISOString()} here: set the clock right, or ${renew}`,
    };
  }
  if (left > RENEWAL_DAYS * DAY_MS) return null;
  const days = Math.floor(left / DAY_MS);
  const when = days < 1 ? 'within a day' : days === 1 ? 'in 1 day' : `in ${days} days`;
  return {
    severity: 'warning',
    text: `the certificate ${file} expires ${when}, on ${expiresAt}: ${renew}`,
  };
}

function contentOf(file: string, what: string): Buffer {
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new DownpourError('DP_USAGE', `${what} ${file} cannot be read: ${errorText(cause)}`, {
      cause,
    });
  }
}
