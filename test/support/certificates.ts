import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';

/** Certificates made for one test, by openssl: an authority, and what it signs. */

export const hasOpenssl = (): boolean => spawnSync('openssl', ['version']).status === 0;

export interface Authority {
  /** PEM. */
  readonly ca: string;
  /** @param days that it is valid. @returns paths of the certificate and its key, both ends. */
  issue(name: string, days?: number): { readonly cert: string; readonly key: string };
}

/** @param hosts that its certificates are for, beside 127.0.0.1 and localhost */
export function createAuthority(
  folder: string,
  name: string,
  hosts: readonly string[] = [],
): Authority {
  const at = (file: string) => join(folder, file);
  const openssl = (...args: string[]) => {
    execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  };
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const [ca, caKey] = [at(`${name}.pem`), at(`${name}.key`)];
  openssl(
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    caKey,
    '-out',
    ca,
    '-days',
    '2',
    '-subj',
    `/CN=${name}`,
  );
  const extensions = at(`${name}.ext`);
  const names = ['127.0.0.1', 'localhost', ...hosts].map(
    (host) => `${isIP(host) ? 'IP' : 'DNS'}:${host}`,
  );
  writeFileSync(extensions, `subjectAltName=${names.join()}\n`);
  return {
    ca,
    issue(subject, days = 2) {
      const [cert, key, request] = ['pem', 'key', 'csr'].map((end) => at(`${subject}.${end}`));
      openssl('req', ...newKey, '-keyout', key!, '-out', request!, '-subj', `/CN=${subject}`);
      const signer = ['-CA', ca, '-CAkey', caKey, '-CAcreateserial', '-days', String(days)];
      openssl('x509', '-req', '-in', request!, ...signer, '-extfile', extensions, '-out', cert!);
      return { cert: cert!, key: key! };
    },
  };
}
