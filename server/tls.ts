import { readFileSync, unwatchFile, watchFile } from 'node:fs';
import { createSecureContext, type SecureContextOptions } from 'node:tls';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';

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

interface Secured {
  setSecureContext(options: SecureContextOptions): void;
}

/** The files, read anew when they change: certificates are renewed without a restart. */
export class TlsMaterial {
  readonly #files: TlsFiles;
  readonly #log: Log;
  readonly #look = () => this.reload();
  readonly #servers = new Set<Secured>();
  #options: Material;

  /** @throws DownpourError DP_USAGE: a file is missing, or is not what it should be. */
  constructor(files: TlsFiles, log: Log = () => {}) {
    this.#files = files;
    this.#log = log;
    this.#options = read(files);
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
  }

  /** A certificate whose key has not come yet is not taken: all stays as it was. */
  reload(): void {
    try {
      this.#options = read(this.#files);
    } catch (error) {
      this.#log(`the certificate stays as it was: ${errorText(error)}`, { level: 'warn' });
      return;
    }
    for (const server of this.#servers) server.setSecureContext(this.#options);
    this.#log(`the certificate ${this.#files.cert} has been read again`);
  }

  close(): void {
    for (const file of pathsOf(this.#files)) unwatchFile(file, this.#look);
  }
}

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

function contentOf(file: string, what: string): Buffer {
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new DownpourError('DP_USAGE', `${what} ${file} cannot be read: ${errorText(cause)}`, {
      cause,
    });
  }
}
