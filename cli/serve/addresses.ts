import type { NetworkInterfaceInfo } from 'node:os';

/**
 * What others type to reach a server that listens on all addresses of its machine, whose own address says nothing to them.
 * @param url where it listens. @returns none: it listens on one address, which is that of the URL.
 */
export function addressesFor(
  url: string,
  interfaces: Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>,
): string[] {
  const { protocol, hostname, port } = new URL(url);
  if (hostname !== '0.0.0.0' && hostname !== '[::]') return [];
  const own = Object.values(interfaces).flatMap((all) => all ?? []);
  return own
    .filter(({ internal, family }) => !internal && family === 'IPv4')
    .map(({ address }) => `${protocol}//${address}:${port}`);
}
