import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { existsSync, readFileSync, statSync, unwatchFile, watchFile } from 'node:fs';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { DownpourError, ERRORS, type ErrorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import { isLoopback } from '../../wire/local-socket.ts';

/** Who may do what: tokens with roles, and how often each may ask. */

/**
 * `observer` reads, `worker` computes and reads nothing but the work it is given, `operator` does
 * everything.
 */
export const ROLES = ['observer', 'worker', 'operator'] as const;
export type AccessRole = (typeof ROLES)[number];

export interface TokenSources {
  /** The operators' token. */
  readonly token?: string;
  /** Its first line is an operators' token. */
  readonly tokenFile?: string;
  readonly workerToken?: string;
  readonly observerToken?: string;
  /**
   * Lines of role, token and, if wanted, a name for the log; `#` begins a comment. Or a folder, as secrets are mounted: a file
   * for each role, of its name, with a token in each line.
   */
  readonly tokensFile?: string;
}

/** Those among other options; they can be sent to a thread. */
export function tokenSources(options: TokenSources): TokenSources {
  const { token, tokenFile, workerToken, observerToken, tokensFile } = options;
  return {
    ...(token === undefined ? {} : { token }),
    ...(tokenFile === undefined ? {} : { tokenFile }),
    ...(workerToken === undefined ? {} : { workerToken }),
    ...(observerToken === undefined ? {} : { observerToken }),
    ...(tokensFile === undefined ? {} : { tokensFile }),
  };
}

export interface Grant {
  readonly role: AccessRole;
  /** Whose limits count: the token's name, or the beginning of its digest. */
  readonly holder: string;
}

interface KnownToken extends Grant {
  readonly digest: Buffer;
}

/** How often the files are looked at. */
const LOOK_MS = 500;
const EVERYBODY: Grant = { role: 'operator', holder: 'everybody' };

export function mayDo({ role }: Grant, needed: AccessRole): boolean {
  return role === 'operator' || role === needed;
}

/** The tokens of a server. Files are read again when they change; without any token it is open to all. */
export class Access {
  readonly #sources: TokenSources;
  readonly #log: Log;
  readonly #files: readonly string[];
  readonly #look = () => this.reload();
  #known: readonly KnownToken[];
  #own: string | null = null;
  /** Tokens have come or gone. */
  changed: () => void = () => {};
  #changeCount = 0;
  /** Files without a byte, as the last look found them. */
  #blank: readonly string[] = [];
  #again: NodeJS.Timeout | undefined;

  /** @throws DownpourError DP_USAGE: a file cannot be read or understood. */
  constructor(sources: TokenSources = {}, log: Log = () => {}) {
    this.#sources = sources;
    this.#log = log;
    const { tokenFile, tokensFile } = sources;
    this.#files = [
      ...(tokenFile === undefined ? [] : [tokenFile]),
      ...(tokensFile === undefined ? [] : [tokensFile]),
      // One that is not there yet may come.
      ...(isFolder(tokensFile) ? ROLES.map((role) => join(tokensFile!, role)) : []),
    ];
    this.#known = this.#read();
    this.#blank = this.#files.filter(isBlank);
    // By asking, since a mounted secret is replaced by moving a link, which no notification tells.
    for (const file of this.#files) {
      watchFile(file, { interval: LOOK_MS, persistent: false }, this.#look);
    }
  }

  /** Nobody has said who may come in. A file that has become empty lets nobody in. */
  get open(): boolean {
    return this.#known.length === 0 && this.#files.length === 0;
  }

  /** How often tokens have come or gone: while it stays, so does every grant but a login that is too old. */
  get changeCount(): number {
    return this.#changeCount;
  }

  /** A token of an operator, with which the server asks its own shards; null: there is none. */
  get own(): string | null {
    return this.#own;
  }

  /** Reads the files again. What cannot be read leaves all as it was. A file that is empty now is looked at twice. */
  reload(): void {
    const blank = this.#files.filter(isBlank);
    const mayBeCut = blank.some((file) => !this.#blank.includes(file));
    this.#blank = blank;
    if (mayBeCut) {
      // Most programs empty a file before they write it: between the two everybody would be sent away.
      this.#again = setTimeout(this.#look, LOOK_MS).unref();
      return;
    }
    try {
      const known = this.#read();
      const same =
        known.length === this.#known.length &&
        known.every(({ digest, role }, i) => {
          const old = this.#known[i]!;
          return digest.equals(old.digest) && role === old.role;
        });
      if (same) return;
      this.#known = known;
    } catch (error) {
      this.#log(`the tokens stay as they were: ${errorText(error)}`, { level: 'warn' });
      return;
    }
    this.#changeCount++;
    this.#log(`the tokens have changed: ${this.#known.length} are known now`);
    this.changed();
  }

  /**
   * Whose token this is, in a time that does not depend on which: digests of equal length are compared, all
   * of them.
   */
  grant(authorization: string | undefined): Grant | null {
    if (this.open) return EVERYBODY;
    const given = digestOf(authorization?.startsWith('Bearer ') ? authorization.slice(7) : '');
    let found: Grant | null = null;
    for (const known of this.#known) if (timingSafeEqual(given, known.digest)) found = known;
    return found;
  }

  /**
   * What a browser keeps in the place of a token: until when it is good, signed with the token's digest. So it
   * outlives a restart of the server, ends with its token, and does not tell it.
   * @param token that `grant` knows. @param now of the clock on the wall, ms.
   */
  login(token: string, now: number): string {
    const until = Math.floor(now / 1000) + LIMITS.loginSeconds;
    const promise = `${until}.${randomBytes(12).toString('base64url')}`;
    return `${promise}.${signed(promise, digestOf(token)).toString('base64url')}`;
  }

  /** Whose login this is; null: nobody's any more. All tokens are tried, in constant time. */
  loggedIn(login: string, now: number): Grant | null {
    const [until, salt, signature, ...more] = login.split('.');
    if (signature === undefined || more.length > 0) return null;
    const seconds = Number(until);
    const left = seconds - now / 1000;
    // More than was ever promised: the clock was set back, and nothing can be said of its age.
    if (!(left > 0 && left <= LIMITS.loginSeconds + 60)) return null;
    const given = Buffer.from(signature, 'base64url');
    let found: Grant | null = null;
    for (const known of this.#known) {
      const wanted = signed(`${until}.${salt}`, known.digest);
      if (given.length === wanted.length && timingSafeEqual(given, wanted)) found = known;
    }
    return found;
  }

  close(): void {
    clearTimeout(this.#again);
    for (const file of this.#files) unwatchFile(file, this.#look);
  }

  #read(): KnownToken[] {
    const { token, tokenFile, workerToken, observerToken, tokensFile } = this.#sources;
    const known: KnownToken[] = [];
    let own: string | null = null;
    const add = (role: AccessRole, text: string, name?: string) => {
      const digest = digestOf(text);
      known.push({ role, digest, holder: name ?? `${role}-${digest.toString('hex', 0, 4)}` });
      if (role === 'operator') own ??= text;
    };
    if (token !== undefined) add('operator', token);
    if (tokenFile !== undefined) add('operator', firstLine(tokenFile));
    if (workerToken !== undefined) add('worker', workerToken);
    if (observerToken !== undefined) add('observer', observerToken);
    if (tokensFile !== undefined) {
      const lines = isFolder(tokensFile)
        ? readFolder(tokensFile)
        : parseTokens(textOf(tokensFile), tokensFile);
      for (const [role, text, name] of lines) add(role, text, name);
    }
    this.#own = own;
    return known;
  }
}

const digestOf = (text: string) => createHash('sha256').update(text).digest();
const signed = (promise: string, digest: Buffer) =>
  createHmac('sha256', digest).update(`downpour login ${promise}`).digest();

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `the token file ${file} cannot be read: ${errorText(cause)}`,
      { cause },
    );
  }
}

function firstLine(file: string): string {
  const line = textOf(file).split('\n', 1)[0]!.trim();
  if (line === '')
    throw new DownpourError('DP_USAGE', `the token file ${file} has an empty line 1`);
  return line;
}

type TokenLine = readonly [role: AccessRole, token: string, name: string | undefined];

const isBlank = (file: string) => statSync(file, { throwIfNoEntry: false })?.size === 0;
const isFolder = (path: string | undefined) =>
  path !== undefined && statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;

/** @throws DownpourError DP_USAGE: it has the file of no role, or a line with more than a token. */
function readFolder(folder: string): TokenLine[] {
  const present = ROLES.filter((role) => existsSync(join(folder, role)));
  if (present.length === 0) {
    throw new DownpourError(
      'DP_USAGE',
      `${folder} has none of the files ${ROLES.join(', ')}: each holds tokens of its role, one a line`,
    );
  }
  return present.flatMap((role) => {
    const file = join(folder, role);
    const tokens = textOf(file).split('\n');
    const lines = tokens.flatMap((token) => (token.trim() ? [`${role} ${token}`] : ['']));
    return parseTokens(lines.join('\n'), file);
  });
}

/** @throws DownpourError DP_USAGE that names the line, and never shows what may be a token. */
export function parseTokens(text: string, file: string): TokenLine[] {
  const lines: TokenLine[] = [];
  for (const [i, line] of text.split('\n').entries()) {
    const words = line.trim().split(/\s+/);
    if (words[0] === '' || words[0]!.startsWith('#')) continue;
    const [role, token, name, ...more] = words;
    const at = `line ${i + 1} of ${file}`;
    if (!ROLES.includes(role as AccessRole)) {
      throw new DownpourError('DP_USAGE', `${at} begins with no role: ${ROLES.join(', ')}`);
    }
    if (token === undefined || more.length > 0) {
      throw new DownpourError('DP_USAGE', `${at} must be a role, a token and at most a name`);
    }
    lines.push([role as AccessRole, token, name]);
  }
  if (lines.length > LIMITS.tokenCountMax) {
    throw new DownpourError(
      'DP_USAGE',
      `${file} has ${lines.length} tokens; at most ${LIMITS.tokenCountMax} are allowed`,
    );
  }
  return lines;
}

/** @throws DownpourError DP_USAGE: open to the network without a token. */
export function mustBeGuarded(options: {
  readonly host: string;
  readonly insecure?: boolean | undefined;
  readonly access: Access;
}): void {
  const { host, insecure, access } = options;
  if (!access.open || insecure || isLoopback(host)) return;
  throw new DownpourError(
    'DP_USAGE',
    `refusing to listen on ${host} without a token: set DOWNPOUR_TOKEN, or listen on 127.0.0.1, or say --insecure`,
  );
}

/** Answers an upgrade in plain HTTP: no WebSocket exists yet. */
const REFUSAL_MS = 5_000;

/** What every port has: its server is made with these, and given its `Places`. */
export const portLimits = {
  maxHeaderSize: LIMITS.requestHeaderBytesMax,
  headersTimeout: LIMITS.requestHeaderMs,
  requestTimeout: LIMITS.requestMs,
  keepAliveTimeout: LIMITS.keepAliveMs,
  connectionsCheckingInterval: LIMITS.requestHeaderMs / 4,
  /** Time for the TLS handshake; by default Node waits two minutes. */
  handshakeTimeout: LIMITS.tlsHandshakeMs,
};

/** @param retryAfterSeconds null: it is not known when to come back, or of no use. */
export function refuse(
  socket: Duplex,
  code: ErrorCode,
  message: string,
  retryAfterSeconds: number | null = null,
): void {
  const body = JSON.stringify({ code, message });
  const { http } = ERRORS[code];
  const again = retryAfterSeconds === null ? '' : `retry-after: ${retryAfterSeconds}\r\n`;
  // Whoever is refused may not stay: a socket that is only half closed counts as one.
  socket.once('finish', () => socket.destroy());
  // Nor one that takes no answer.
  const timer = setTimeout(() => socket.destroy(), REFUSAL_MS);
  timer.unref();
  socket.once('close', () => clearTimeout(timer));
  socket.end(
    `HTTP/1.1 ${http} ${code}\r\nconnection: close\r\n${again}content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

export function unauthorized(): DownpourError {
  return new DownpourError(
    'DP_UNAUTHORIZED',
    'the token is missing or wrong: send it as `Authorization: Bearer …`; the commands read DOWNPOUR_TOKEN',
  );
}

/** Who is refused by it may ask again after a while. */
export class LimitError extends DownpourError {
  readonly retryAfterSeconds: number;

  constructor(message: string, retryAfterSeconds = 1) {
    super('DP_LIMIT', message);
    this.retryAfterSeconds = Math.max(1, Math.ceil(retryAfterSeconds));
  }
}

/** A holder's debt is paid off in so much time at the most. */
const DEBT_SECONDS = 10;

/**
 * So many a second for each holder, and a number at once after a pause (a token bucket). Holders beyond
 * the limit of memory push out those that have asked least recently.
 */
export class Rate {
  readonly #perSecond: number;
  readonly #atOnce: number;
  readonly #buckets = new Map<string, { left: number; at: number }>();

  /** @param atOnce after a pause; default: as many as in a second. */
  constructor(perSecond: number, atOnce = perSecond) {
    this.#perSecond = perSecond;
    this.#atOnce = atOnce;
  }

  /** @param now monotonic ms. @returns whether one more is allowed; if so it is counted. */
  take(holder: string, now: number): boolean {
    const bucket = this.#filled(holder, now);
    if (bucket.left < 1) return false;
    bucket.left--;
    return true;
  }

  /** Counts what has happened already: there may be a debt then, of some seconds. */
  charge(holder: string, count: number, now: number): void {
    const bucket = this.#filled(holder, now);
    bucket.left = Math.max(bucket.left - count, -DEBT_SECONDS * this.#perSecond);
  }

  /** Seconds until one more is allowed. */
  waitSeconds(holder: string, now: number): number {
    return Math.max(0, (1 - this.#filled(holder, now).left) / this.#perSecond);
  }

  #filled(holder: string, now: number): { left: number; at: number } {
    const bucket = this.#buckets.get(holder) ?? { left: this.#atOnce, at: now };
    const more = ((now - bucket.at) / 1000) * this.#perSecond;
    bucket.left = Math.min(this.#atOnce, bucket.left + more);
    bucket.at = now;
    this.#buckets.delete(holder);
    this.#buckets.set(holder, bucket);
    if (this.#buckets.size > LIMITS.holderCountMax) {
      this.#buckets.delete(this.#buckets.keys().next().value!);
    }
    return bucket;
  }
}
