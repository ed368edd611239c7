import { createHash, webcrypto } from 'node:crypto';
import { open } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { AwsClient } from 'aws4fetch';
import { diskError, writeAll, writeFileAtomic } from '../../../files/atomic-file.ts';
import { DownpourError, errorText } from '../../../shared/errors.ts';

/**
 * A bucket of any server that speaks S3, with path-style addresses. Files go up and come down in parts of 8 MiB, one
 * at a time, so that a file of any size needs the memory of one part, and a cut connection costs one part.
 */

export interface S3Place {
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
  /** Empty, or ends with a slash. */
  readonly prefix: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

export interface S3Object {
  /** Without the place's prefix. */
  readonly key: string;
  readonly bytes: number;
}

export interface S3Limits {
  /** Size of a part; S3 allows no less than 5 MiB. */
  readonly partBytes: number;
  /** For one request. */
  readonly requestMs: number;
  /** Before the second try of a request; doubled after each. */
  readonly retryMs: number;
  readonly tries: number;
}

const LIMITS: S3Limits = { partBytes: 8 * 2 ** 20, requestMs: 120_000, retryMs: 500, tries: 4 };
/** S3 allows no more of one file. */
const PARTS_MAX = 10_000;
/** Hashed at once: half a millisecond of a core. */
const PIECE_BYTES = 256 * 1024;
/** Objects in a listing: far above what any retention leaves. */
const OBJECTS_MAX = 200_000;
const URL_PATTERN =
  /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9_][A-Za-z0-9._/-]*)?)?$/;

/**
 * What an address like `s3://bucket/prefix` and the environment say together.
 * @throws DownpourError DP_USAGE that names what is missing or wrong, never a secret.
 */
export function s3PlaceOf(url: string, env: NodeJS.ProcessEnv): S3Place {
  const [, bucket, path = ''] = URL_PATTERN.exec(url) ?? [];
  if (bucket === undefined || /\/\/|(^|\/)\.{1,2}(\/|$)/.test(path)) {
    throw new DownpourError(
      'DP_USAGE',
      `--checkpoint-copy ${JSON.stringify(withoutLogin(url))} is no place for copies: write s3://bucket or s3://bucket/prefix, with letters, digits, '.', '_', '-' and '/'`,
    );
  }
  const given = (name: string) => env[name] || undefined;
  const accessKeyId = given('AWS_ACCESS_KEY_ID');
  const secretAccessKey = given('AWS_SECRET_ACCESS_KEY');
  if (!accessKeyId || !secretAccessKey) {
    const missing = accessKeyId ? 'AWS_SECRET_ACCESS_KEY' : 'AWS_ACCESS_KEY_ID';
    throw new DownpourError(
      'DP_USAGE',
      `--checkpoint-copy needs credentials, and ${missing} is not set: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, where there is one) in the environment`,
    );
  }
  const region = given('AWS_REGION') ?? given('AWS_DEFAULT_REGION') ?? 'us-east-1';
  const source = ['DOWNPOUR_S3_ENDPOINT', 'AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'].find(given);
  const endpoint = source ? env[source]! : `https://s3.${region}.amazonaws.com`;
  const parsed = URL.canParse(endpoint) ? new URL(endpoint) : null;
  if (!parsed || !/^https?:$/.test(parsed.protocol) || parsed.username || parsed.password) {
    throw new DownpourError(
      'DP_USAGE',
      `${source} must be an address like https://minio.example:9000, without a user or a password`,
    );
  }
  const sessionToken = given('AWS_SESSION_TOKEN');
  return {
    endpoint: endpoint.replace(/\/+$/, ''),
    ...{ region, bucket, accessKeyId, secretAccessKey },
    prefix: path === '' ? '' : `${path.replace(/\/$/, '')}/`,
    ...(sessionToken === undefined ? {} : { sessionToken }),
  };
}

const withoutLogin = (url: string) => url.replace(/\/\/[^/@]*@/, '//…@');

export class Bucket {
  /** `s3://bucket/prefix`, without a slash at its end. */
  readonly name: string;
  readonly #place: S3Place;
  readonly #limits: S3Limits;
  readonly #client: AwsClient;

  constructor(place: S3Place, limits: Partial<S3Limits> = {}) {
    const { accessKeyId, secretAccessKey, sessionToken, region, bucket, prefix } = place;
    this.#place = place;
    this.#limits = { ...LIMITS, ...limits };
    this.name = `s3://${bucket}/${prefix}`.replace(/\/$/, '');
    const session = sessionToken === undefined ? {} : { sessionToken };
    const keys = { accessKeyId, secretAccessKey, ...session };
    this.#client = new AwsClient({ ...keys, region, service: 's3', retries: 0 });
  }

  /**
   * Uploads a file and makes sure that it arrived: each part with its SHA-256 and MD5, which the server checks; then
   * its size and its ETag, where that is made of MD5.
   * @param sha256 hexadecimal, of the whole file, when it is known: what the disk gives must have it.
   * @throws DownpourError DP_S3_UNAVAILABLE, DP_DISK, DP_CHECKPOINT_CORRUPT (the file has another SHA-256);
   *   what `open` throws when the file is not there.
   */
  async put(
    key: string,
    path: string,
    sha256: string | null,
    signal?: AbortSignal,
  ): Promise<number> {
    const handle = await open(path, 'r');
    try {
      return await this.putOpen(key, handle, path, sha256, signal);
    } finally {
      await handle.close();
    }
  }

  /** The same of a file that is open, and may have lost its name. @param path for messages. */
  async putOpen(
    key: string,
    handle: UploadedFile,
    path: string,
    sha256: string | null,
    signal?: AbortSignal,
  ): Promise<number> {
    const { size } = await handle.stat();
    const partBytes = Math.max(this.#limits.partBytes, Math.ceil(size / PARTS_MAX));
    const file = new Parts(handle, path, size, partBytes, sha256);
    const etag =
      size <= partBytes
        ? await this.#putWhole(key, file, signal)
        : await this.#putParts(key, file, signal);
    await this.#mustHaveArrived(key, size, etag, signal);
    return size;
  }

  /** Writes an object into a file, atomically. @returns false: there is none. @throws as `put`. */
  async get(key: string, path: string, signal?: AbortSignal): Promise<boolean> {
    const head = await this.#ask('HEAD', key, { signal, absent: true });
    if (!head) return false;
    const size = Number(head.headers.get('content-length'));
    await writeFileAtomic(path, async (handle) => {
      for (let start = 0; start < size; start += this.#limits.partBytes) {
        const end = Math.min(size, start + this.#limits.partBytes);
        const bytes = await this.#getRange(key, start, end, signal);
        await writeAll(handle, bytes);
      }
    });
    return true;
  }

  /** Reads a small object. @throws as `put`. */
  async read(key: string, signal?: AbortSignal): Promise<Buffer> {
    return (await this.#ask('GET', key, { signal })).bytes;
  }

  /** All objects whose key begins so, in the order of their keys. */
  async list(under: string, signal?: AbortSignal): Promise<S3Object[]> {
    const { prefix } = this.#place;
    const found: S3Object[] = [];
    let token: string | undefined;
    do {
      const query = { 'list-type': '2', prefix: prefix + under };
      const more = token === undefined ? {} : { 'continuation-token': token };
      const page = await this.#text('GET', '', { query: { ...query, ...more }, signal });
      for (const [, entry] of page.matchAll(/<Contents>([\s\S]*?)<\/Contents>/g)) {
        const key = element(entry!, 'Key') ?? '';
        if (!key.startsWith(prefix)) continue;
        found.push({ key: key.slice(prefix.length), bytes: Number(element(entry!, 'Size')) });
      }
      token = element(page, 'NextContinuationToken') ?? undefined;
    } while (token !== undefined && found.length < OBJECTS_MAX);
    return found;
  }

  /** An object that is not there is removed already. */
  async remove(key: string, signal?: AbortSignal): Promise<void> {
    await this.#ask('DELETE', key, { signal, absent: true });
  }

  /** Uploads in parts that somebody began and never ended: S3 keeps, and bills, their parts. */
  async removeUnfinished(under: string, signal?: AbortSignal): Promise<void> {
    const prefix = this.#place.prefix + under;
    const page = await this.#text('GET', '', { query: { uploads: '', prefix }, signal });
    for (const [, entry] of page.matchAll(/<Upload>([\s\S]*?)<\/Upload>/g)) {
      const [key, uploadId] = [element(entry!, 'Key'), element(entry!, 'UploadId')];
      if (!key?.startsWith(prefix) || !uploadId) continue;
      const ours = key.slice(this.#place.prefix.length);
      await this.#ask('DELETE', ours, { query: { uploadId }, signal, absent: true });
    }
  }

  async #putWhole(key: string, file: Parts, signal?: AbortSignal): Promise<string> {
    const part = await file.read(0);
    const response = await this.#ask('PUT', key, { part, signal });
    return matching(response, part.md5.toString('hex'), key);
  }

  async #putParts(key: string, file: Parts, signal?: AbortSignal): Promise<string> {
    const begun = await this.#text('POST', key, { query: { uploads: '' }, signal });
    const uploadId = element(begun, 'UploadId');
    if (!uploadId) throw unavailable(`${this.name} began no upload of ${key}`);
    try {
      const etags: string[] = [];
      const all = createHash('md5');
      for (let index = 0; index < file.count; index++) {
        const part = await file.read(index);
        all.update(part.md5);
        const query = { partNumber: String(index + 1), uploadId };
        const response = await this.#ask('PUT', key, { query, part, signal });
        matching(response, part.md5.toString('hex'), key);
        etags.push(response.headers.get('etag') ?? '');
      }
      const list = etags.map(
        (etag, i) => `<Part><PartNumber>${i + 1}</PartNumber><ETag>${etag}</ETag></Part>`,
      );
      const xml = `<CompleteMultipartUpload>${list.join('')}</CompleteMultipartUpload>`;
      const text = Buffer.from(xml);
      const answer = await this.#text('POST', key, { query: { uploadId }, text, signal });
      // It may say 200 first and fail afterwards.
      if (answer.includes('<Error>')) throw unavailable(this.#refusal(200, answer, null));
      return `${all.digest('hex')}-${etags.length}`;
    } catch (error) {
      const query = { uploadId };
      await this.#ask('DELETE', key, { query, absent: true, tries: 1 }).catch(() => {});
      throw error;
    }
  }

  async #mustHaveArrived(key: string, size: number, etag: string, signal?: AbortSignal) {
    const head = await this.#ask('HEAD', key, { signal, absent: true });
    const has = Number(head?.headers.get('content-length') ?? -1);
    if (!head || has !== size) {
      const what = head ? `has ${has} bytes of ${key} instead of ${size}` : `does not have ${key}`;
      throw unavailable(`${this.name} took an upload and ${what}`);
    }
    matching(head, etag, key);
  }

  async #getRange(key: string, start: number, end: number, signal?: AbortSignal) {
    const headers = { range: `bytes=${start}-${end - 1}` };
    const response = await this.#ask('GET', key, { headers, signal, bytes: end - start });
    return response.bytes;
  }

  async #text(method: string, key: string, more: Asked): Promise<string> {
    return (await this.#ask(method, key, more)).bytes.toString('utf8');
  }

  /** One request, tried again where that may help. */
  #ask(method: string, key: string, asked: Asked & { absent: true }): Promise<S3Response | null>;
  #ask(method: string, key: string, asked: Asked): Promise<S3Response>;
  async #ask(method: string, key: string, asked: Asked): Promise<S3Response | null> {
    const { tries = this.#limits.tries, signal } = asked;
    for (let attempt = 1; ; attempt++) {
      let failure: DownpourError;
      try {
        const answer = await this.#once(method, key, asked);
        const { status } = answer;
        if (status >= 200 && status < 300) return answer;
        if (status === 404 && asked.absent && !isWithoutBucket(answer)) return null;
        const text = answer.bytes.toString('utf8');
        failure = unavailable(this.#refusal(status, text, answer.headers));
        if (status < 500 && status !== 429 && status !== 408) throw failure;
      } catch (error) {
        if (error instanceof DownpourError) throw error;
        signal?.throwIfAborted();
        failure = unavailable(this.#unreached(error));
      }
      if (attempt >= tries) throw failure;
      await delay(this.#limits.retryMs * 2 ** (attempt - 1), null, signal ? { signal } : {});
    }
  }

  async #once(method: string, key: string, asked: Asked): Promise<S3Response> {
    const { query = {}, part, text, signal } = asked;
    const { endpoint, bucket, prefix } = this.#place;
    // Without a key, the bucket itself is asked.
    const path = key === '' ? '' : prefix + key;
    const search = new URLSearchParams(query).toString();
    const url = `${endpoint}/${bucket}${path === '' ? '' : `/${path}`}${search ? `?${search}` : ''}`;
    const body = part?.bytes ?? text;
    const sha256 =
      part?.sha256 ??
      createHash('sha256')
        .update(body ?? '')
        .digest('hex');
    const headers = {
      ...asked.headers,
      'x-amz-content-sha256': sha256,
      ...(part ? { 'content-md5': part.md5.toString('base64') } : {}),
    };
    const timeout = AbortSignal.timeout(this.#limits.requestMs);
    const request = await this.#client.sign(url, {
      ...{ method, headers, redirect: 'manual' as const },
      ...(body ? { body: body as Uint8Array<ArrayBuffer> } : {}),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    const response = await fetch(request);
    // A body that is left unread would hold its connection.
    const bytes = Buffer.from(await response.arrayBuffer());
    if (asked.bytes !== undefined && response.status < 300 && bytes.length !== asked.bytes) {
      throw new Error(`${bytes.length} bytes came instead of ${asked.bytes}`);
    }
    return { status: response.status, headers: response.headers, bytes };
  }

  #refusal(status: number, text: string, headers: Headers | null): string {
    const code = element(text, 'Code');
    const region = headers?.get('x-amz-bucket-region') ?? element(text, 'Region');
    const said = [code, element(text, 'Message')].filter(Boolean).join(': ');
    const { endpoint, region: ours, bucket } = this.#place;
    const next =
      region && region !== ours
        ? `; the bucket is in ${region}: set AWS_REGION`
        : code === 'NoSuchBucket' || status === 404
          ? `; create the bucket '${bucket}' first`
          : status === 401 || status === 403
            ? `; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they allow`
            : '';
    return this.#safe(`${this.name} at ${endpoint} answered ${status} ${said}`.trim()) + next;
  }

  #unreached(error: unknown): string {
    const { name } = error as Error;
    const cause = (error as Error).cause ?? error;
    const why =
      name === 'TimeoutError'
        ? `no answer within ${this.#limits.requestMs / 1000} s`
        : (cause as NodeJS.ErrnoException).code || errorText(cause);
    return this.#safe(`${this.name} at ${this.#place.endpoint} cannot be reached: ${why}`);
  }

  /** A server may answer with what it was sent. */
  #safe(text: string): string {
    const { secretAccessKey, sessionToken, accessKeyId } = this.#place;
    return [secretAccessKey, sessionToken, accessKeyId]
      .filter((secret) => secret !== undefined)
      .reduce((left, secret) => left.replaceAll(secret, '…'), text);
  }
}

/** What is uploaded: a file that is open, or what acts as one. It is read once, from its begin to its end. */
export interface UploadedFile {
  stat(): Promise<{ readonly size: number }>;
  read(
    into: Uint8Array,
    offset: number,
    length: number,
    position: number,
  ): Promise<{ readonly bytesRead: number }>;
}

interface Asked {
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly part?: UploadPart;
  readonly text?: Buffer;
  /** 404 is an answer: null. */
  readonly absent?: boolean;
  /** That the answer must have. */
  readonly bytes?: number;
  readonly tries?: number;
  readonly signal?: AbortSignal | undefined;
}

interface S3Response {
  readonly status: number;
  readonly headers: Headers;
  readonly bytes: Buffer;
}

interface UploadPart {
  readonly bytes: Uint8Array;
  /** Hexadecimal. */
  readonly sha256: string;
  readonly md5: Buffer;
}

/** A file in parts, read one after the other into the same memory. */
class Parts {
  readonly count: number;
  readonly #handle: UploadedFile;
  readonly #path: string;
  readonly #size: number;
  readonly #partBytes: number;
  readonly #expected: string | null;
  readonly #whole = createHash('sha256');

  constructor(
    handle: UploadedFile,
    path: string,
    size: number,
    partBytes: number,
    expected: string | null,
  ) {
    this.#handle = handle;
    this.#path = path;
    this.#size = size;
    this.#partBytes = partBytes;
    this.#expected = expected;
    this.count = Math.max(1, Math.ceil(size / partBytes));
  }

  /** In their order. @throws DownpourError DP_CHECKPOINT_CORRUPT at the last one, DP_DISK. */
  async read(index: number): Promise<UploadPart> {
    const start = index * this.#partBytes;
    const bytes = new Uint8Array(Math.min(this.#partBytes, this.#size - start));
    const md5 = createHash('md5');
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(PIECE_BYTES, bytes.length - at);
      const { bytesRead } = await this.#handle
        .read(bytes, at, length, start + at)
        .catch((error: unknown) => {
          throw diskError(error, this.#path, 'read');
        });
      if (bytesRead === 0) throw this.#damaged('it became shorter while it was read');
      const piece = bytes.subarray(at, at + bytesRead);
      md5.update(piece);
      this.#whole.update(piece);
      at += bytesRead;
    }
    if (index === this.count - 1 && this.#expected !== null) {
      const sha256 = this.#whole.digest('hex');
      if (sha256 !== this.#expected) {
        throw this.#damaged(`its SHA-256 is ${sha256}, the manifest says ${this.#expected}`);
      }
    }
    const digest = await webcrypto.subtle.digest('SHA-256', bytes);
    return { bytes, md5: md5.digest(), sha256: Buffer.from(digest).toString('hex') };
  }

  #damaged(what: string): DownpourError {
    const text = `${this.#path} is damaged and was not copied: ${what}`;
    return new DownpourError('DP_CHECKPOINT_CORRUPT', text);
  }
}

/** @returns what was expected. @throws DownpourError where the ETag is made of MD5, and of another file's. */
function matching({ headers }: S3Response, expected: string, key: string): string {
  const etag = headers.get('etag')?.replaceAll('"', '') ?? '';
  // Where an object is encrypted with a key of KMS or of the customer, its ETag is made of something else.
  const encryption = headers.get('x-amz-server-side-encryption') ?? '';
  const customer = headers.has('x-amz-server-side-encryption-customer-algorithm');
  const isMd5 = /^[0-9a-f]{32}(-\d+)?$/.test(etag) && !/kms/.test(encryption) && !customer;
  if (isMd5 && etag !== expected) {
    throw unavailable(`${key} arrived with ETag ${etag} instead of ${expected}`);
  }
  return expected;
}

/** A missing object and a missing bucket are both 404. */
const isWithoutBucket = ({ bytes }: S3Response) =>
  element(bytes.toString('utf8'), 'Code') === 'NoSuchBucket';

const unavailable = (text: string) => new DownpourError('DP_S3_UNAVAILABLE', text);

/** The text of the first element of that name; keys and codes have no characters that XML must escape. */
function element(xml: string, name: string): string | null {
  const text = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1] ?? null;
  return text?.replace(/&(quot|amp|lt|gt|apos|#34|#39);/g, (_, e: string) => ENTITIES[e]!) ?? null;
}

const ENTITIES: Readonly<Record<string, string>> = {
  ...{ quot: '"', amp: '&', lt: '<', gt: '>', apos: "'", '#34': '"', '#39': "'" },
};
