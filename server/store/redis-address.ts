import { readFileSync } from 'node:fs';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { newestContent, type TrustContent } from '../../wire/tls.ts';

/** Where Redis is and how to talk to it, from one address and the files of its certificates. */

/** Paths of PEM files. */
export interface RedisFiles {
  /** Certificate of the authority that signed Redis's; absent: the authorities that Node.js trusts. */
  readonly ca?: string;
  /** Ours, with its key, where Redis asks for one. */
  readonly cert?: string;
  readonly key?: string;
}

/** Without those that are not given, or empty as an environment has them. */
export function redisFilesOf(
  given: Readonly<Record<keyof RedisFiles, string | undefined>>,
): RedisFiles {
  return Object.fromEntries(Object.entries(given).filter(([, path]) => path));
}

export interface RedisAddress {
  /** For messages: without user and password. */
  readonly place: string;
  readonly username?: string;
  readonly password?: string;
  readonly db: number;
  /** Null: in the clear. Read again for each connection: certificates are renewed without a restart. */
  readonly tls: TrustContent | null;
  /** One server, or sentinels that know which one is it. */
  readonly server:
    | { readonly host: string; readonly port: number }
    | {
        readonly sentinels: readonly { readonly host: string; readonly port: number }[];
        readonly name: string;
        readonly sentinelUsername?: string;
        readonly sentinelPassword?: string;
      };
}

const SCHEME = /^(redis|rediss)(\+sentinel)?:\/\/(.*)$/s;
const FORMS =
  'redis://[user:password@]host[:port][/db], rediss:// for TLS, or redis+sentinel://[user:password@]host[:port][,host[:port]…]/name[/db] for sentinels';

/**
 * Takes an address apart.
 * @throws DownpourError DP_CONFIG_INVALID: it is none, or a file of a certificate cannot be read.
 */
export function parseRedisAddress(url: string, files: RedisFiles = {}): RedisAddress {
  const [, scheme, sentinel, rest] = SCHEME.exec(url) ?? [];
  if (scheme === undefined || rest === undefined) throw invalid('is not understood');
  const [beforeQuery, query = ''] = cut(rest, '?');
  const at = beforeQuery.lastIndexOf('@');
  const [username = '', password = ''] = cut(at < 0 ? '' : beforeQuery.slice(0, at), ':');
  const [hosts, ...path] = beforeQuery.slice(at + 1).split('/');
  const parameters = new URLSearchParams(query);
  const secure = scheme === 'rediss';
  const common = {
    place: `${scheme}${sentinel ?? ''}://${beforeQuery.slice(at + 1)}`,
    ...(username === '' ? {} : { username: decoded(username) }),
    ...(password === '' ? {} : { password: decoded(password) }),
    tls: secure ? newestContent(() => contentOf(files)) : null,
  };
  if (!secure && Object.values(files).some((file) => file !== undefined)) {
    throw invalid('is without TLS, and certificates are given');
  }
  if (sentinel === undefined) {
    refuseOthers(parameters, []);
    return { ...common, db: dbOf(path), server: hostOf(hosts!, 6379) };
  }
  const [name = '', ...db] = path;
  if (name === '') throw invalid('lacks the name that the sentinels have for the server');
  refuseOthers(parameters, ['sentinelUser', 'sentinelPassword']);
  const user = parameters.get('sentinelUser');
  const secret = parameters.get('sentinelPassword');
  return {
    ...common,
    db: dbOf(db),
    server: {
      sentinels: hosts!.split(',').map((host) => hostOf(host, 26_379)),
      name: decoded(name),
      ...(user === null ? {} : { sentinelUsername: user }),
      ...(secret === null ? {} : { sentinelPassword: secret }),
    },
  };
}

function cut(text: string, by: string): [string, string?] {
  const at = text.indexOf(by);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('holds a % that should be %25');
  }
}

function hostOf(text: string, defaultPort: number): { host: string; port: number } {
  const [, v6, name, port] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:,\s[\]]+))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const host = v6 ?? name;
  if (host === undefined || Number(port ?? 0) > 65_535) throw invalid('is not understood');
  return { host, port: port === undefined ? defaultPort : Number(port) };
}

function dbOf(path: readonly string[]): number {
  const [db = ''] = path;
  if (path.length > 1 || !/^\d{0,5}$/.test(db)) throw invalid('is not understood');
  return Number(db);
}

function refuseOthers(parameters: URLSearchParams, known: readonly string[]): void {
  for (const name of parameters.keys()) {
    if (!known.includes(name))
      throw invalid(`has '${name}' behind its ?, known is ${known.join(', ') || 'nothing'}`);
  }
}

function contentOf(files: RedisFiles): TrustContent {
  const read = (path: string) => {
    try {
      return readFileSync(path);
    } catch (cause) {
      throw new DownpourError(
        'DP_CONFIG_INVALID',
        `cannot read ${path}, a certificate or key for Redis: ${errorText(cause)}`,
        { cause },
      );
    }
  };
  return {
    ...(files.ca === undefined ? {} : { ca: read(files.ca) }),
    ...(files.cert === undefined ? {} : { cert: read(files.cert) }),
    ...(files.key === undefined ? {} : { key: read(files.key) }),
  };
}

/** It may hold a password, so it is not shown. */
function invalid(what: string): DownpourError {
  return new DownpourError(
    'DP_CONFIG_INVALID',
    `the address of Redis ${what}: it must look like ${FORMS}`,
  );
}
