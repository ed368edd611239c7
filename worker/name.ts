import { hostname } from 'node:os';

/** The name of this worker, made of the host and the process. Fits `NAME_PATTERN`. */
export function defaultName(): string {
  const host = hostname()
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '');
  return `${host.slice(0, 40) || 'worker'}-${process.pid}`;
}
