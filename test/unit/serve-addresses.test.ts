import type { NetworkInterfaceInfo } from 'node:os';
import { expect, test } from 'vitest';
import { addressesFor } from '../../cli/serve/addresses.ts';

const address = (text: string, internal = false) =>
  ({
    address: text,
    family: text.includes(':') ? 'IPv6' : 'IPv4',
    internal,
  }) as NetworkInterfaceInfo;

test('a server on all addresses says those that other machines reach, and no other does', () => {
  const interfaces = {
    lo: [address('127.0.0.1', true), address('::1', true)],
    eth0: [address('10.0.0.5'), address('fe80::1')],
    eth1: [address('192.168.1.7')],
    down: undefined,
  };
  const both = (scheme: string) => [`${scheme}://10.0.0.5:7420`, `${scheme}://192.168.1.7:7420`];
  expect(addressesFor('http://0.0.0.0:7420', interfaces)).toEqual(both('http'));
  expect(addressesFor('https://[::]:7420', interfaces)).toEqual(both('https'));
  expect(addressesFor('http://10.0.0.5:7420', interfaces)).toEqual([]);
  expect(addressesFor('http://0.0.0.0:7420', { lo: interfaces.lo })).toEqual([]);
});
