import { DownpourError, ERRORS, type ErrorCode, errorCode, errorText } from './errors.ts';
import { LIMITS } from './limits.ts';
import type {
  Bundle,
  CheckpointSummary,
  CreateRun,
  EditRun,
  ErrorBody,
  Health,
  Metrics,
  Observations,
  RunData,
  RunDetail,
  RunExamples,
  RunLogLines,
  RunPage,
  RunSummary,
  Status,
  StudyDetail,
  StudyReport,
  StudySummary,
  Timeline,
  WorkerSummary,
} from './rest.ts';

export type * from './rest.ts';

/**
 * The REST interface of a server as functions; for the command line, studies and the dashboard.
 * Every function throws a DownpourError: the server's own code, DP_SERVER_UNREACHABLE when it gives
 * no answer in time, DP_INTERNAL when the answer is not one of a Downpour server.
 */
export interface RestClient {
  /** The address of the server that is asked now, without a slash at the end. */
  readonly url: string;
  /** Its interface, as OpenAPI. */
  openapi(): Promise<OpenApi>;
  /** What it tells Prometheus. */
  prometheus(): Promise<string>;
  health(): Promise<Health>;
  /** @param limit at most so many runs: those at work, then the newest. */
  status(limit?: number, which?: WhichRuns & { readonly fold?: 'studies' }): Promise<Status>;
  timeline(): Promise<Timeline>;
  createRun(run: CreateRun): Promise<RunSummary>;
  /** All runs but archived ones, as the server orders them. */
  runs(which?: WhichRuns): Promise<RunSummary[]>;
  run(id: string): Promise<RunDetail>;
  /**
   * Resolves when the checkpoint is on disk. A large model on a slow disk takes its time: this, and all others that wait for
   * a disk, wait as long as the server answers that it is alive.
   */
  stop(id: string, waiting?: Waiting): Promise<RunSummary>;
  resume(id: string, waiting?: Waiting): Promise<RunSummary>;
  /** Names, tags, notes or archives a run. */
  editRun(id: string, edit: EditRun): Promise<RunSummary>;
  /** Removes a run with its files. @param force also one that is being trained. */
  removeRun(id: string, force?: boolean): Promise<void>;
  /** Resolves when a checkpoint of this moment is on disk. */
  checkpoint(id: string): Promise<RunSummary>;
  /** Begins the one look at the test part of a finished run. */
  test(id: string): Promise<RunSummary>;
  /** @param points at most so many of each curve. */
  metrics(id: string, points?: number): Promise<Metrics>;
  observations(id: string): Promise<Observations>;
  /** The latest examples with their predictions. */
  examples(id: string): Promise<RunExamples>;
  /** The last lines of the log about a run. */
  runLog(id: string, lines?: number): Promise<RunLogLines>;
  /** How inputs are standardised, names and classes. */
  runData(id: string): Promise<RunData>;
  workers(id: string): Promise<WorkerSummary[]>;
  checkpoints(id: string): Promise<CheckpointSummary[]>;
  /** The checkpoint's safetensors as they come; the time limit counts until the first byte. */
  checkpointFile(
    id: string,
    kind: CheckpointSummary['kind'] | 'model',
  ): Promise<ReadableStream<Uint8Array>>;
  /** Sends an experiment as one file of JavaScript, to be named by runs. */
  sendBundle(sha256: string, content: Uint8Array): Promise<Bundle>;
  /** The same, as it comes; the time limit counts until the first byte. */
  bundle(sha256: string): Promise<ReadableStream<Uint8Array>>;
  /** All studies, the one that was told of last first. */
  studies(): Promise<StudySummary[]>;
  study(name: string): Promise<StudyDetail>;
  /** What a study has found so far, in the place of what it told before. */
  tellStudy(name: string, report: StudyReport): Promise<StudySummary>;
  removeStudy(name: string): Promise<void>;
}

/** Called again and again while there is no answer. @param seconds since the request */
export type Waiting = (seconds: number) => void;

/** Which runs a list has; absent: all but archived ones. A server of an older release refuses these fields. */
export interface WhichRuns {
  readonly archived?: boolean | 'all';
  readonly tag?: string;
  /** Trials of this study. */
  readonly study?: string;
}

/** Runs in one page of a longer list: a server answers pushes between the pages. */
const RUNS_AT_ONCE = 500;

/** As far as everybody needs it. */
export interface OpenApi {
  readonly openapi: string;
  readonly info: { readonly title: string; readonly version: string };
  readonly paths: Readonly<Record<string, object>>;
}

export interface RestClientOptions {
  /**
   * http://host:port, or ws://host:port as workers write it. Of several, with commas between them, the one that
   * answers and is no standby is asked.
   */
  readonly server: string;
  /** A function: asked anew for each request, since it may change. */
  readonly token?: string | (() => string) | undefined;
  /** For a whole answer. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Instead of the one there is: over a TLS that it does not know. */
  readonly fetch?: typeof fetch;
}

const TYPES = { json: 'application/json', bytes: 'application/octet-stream' } as const;
const isBytes = (body: unknown): body is Uint8Array<ArrayBuffer> => body instanceof Uint8Array;

/** @throws DownpourError DP_USAGE when `server` is no address. */
export function createRestClient(options: RestClientOptions): RestClient {
  const requests = new Requests(options);
  const of = (id: string, rest = '') => `/runs/${encodeURIComponent(id)}${rest}`;
  return {
    get url() {
      return requests.url;
    },
    openapi: () => requests.json('GET', '/openapi.json'),
    prometheus: async () => (await requests.send('GET', '/metrics')).text(),
    health: () => requests.json('GET', '/health'),
    status: (limit, which = {}) => requests.json('GET', `/status${query({ limit, ...which })}`),
    timeline: () => requests.json('GET', '/timeline'),
    // A fork waits for a checkpoint of the other run.
    createRun: (run) => requests.json('POST', '/runs', run, { isLong: true }),
    async runs(which = {}) {
      const runs: RunSummary[] = [];
      for (let after: string | undefined; ; ) {
        const asked = query({ limit: RUNS_AT_ONCE, after, ...which });
        const page = await requests.json<RunPage>('GET', `/runs${asked}`);
        runs.push(...page.runs);
        if (page.next == null) return runs;
        after = page.next;
      }
    },
    run: (id) => requests.json('GET', of(id)),
    stop: (id, waiting) => requests.whenWritten(of(id, '/stop'), waiting),
    resume: (id, waiting) => requests.whenWritten(of(id, '/resume'), waiting),
    checkpoint: (id) => requests.whenWritten(of(id, '/checkpoint')),
    test: (id) => requests.json('POST', of(id, '/test')),
    metrics: (id, points) =>
      requests.json('GET', of(id, `/metrics${points === undefined ? '' : `?points=${points}`}`)),
    observations: (id) => requests.json('GET', of(id, '/observations')),
    examples: (id) => requests.json('GET', of(id, '/examples')),
    runLog: (id, lines) =>
      requests.json('GET', of(id, `/log${lines === undefined ? '' : `?lines=${lines}`}`)),
    runData: (id) => requests.json('GET', of(id, '/data')),
    workers: async (id) =>
      (await requests.json<{ workers: WorkerSummary[] }>('GET', of(id, '/workers'))).workers,
    checkpoints: async (id) =>
      (await requests.json<{ checkpoints: CheckpointSummary[] }>('GET', of(id, '/checkpoints')))
        .checkpoints,
    studies: async () =>
      (await requests.json<{ studies: StudySummary[] }>('GET', '/studies')).studies,
    study: (name) => requests.json('GET', `/studies/${encodeURIComponent(name)}`),
    tellStudy: (name, report) =>
      requests.json('PUT', `/studies/${encodeURIComponent(name)}`, report),
    editRun: (id, edit) => requests.json('PATCH', of(id), edit),
    async removeRun(id, force = false) {
      await requests.send('DELETE', of(id, force ? '?force=true' : ''), { isLong: true });
    },
    async removeStudy(name) {
      await requests.send('DELETE', `/studies/${encodeURIComponent(name)}`);
    },
    checkpointFile: (id, kind) =>
      requests.inTurn('GET', (url) => requests.file(url, of(id, `/checkpoints/${kind}/file`))),
    sendBundle: (sha256, content) => requests.json('PUT', `/bundles/${sha256}`, content),
    bundle: (sha256) => requests.inTurn('GET', (url) => requests.file(url, `/bundles/${sha256}`)),
  };
}

interface RequestHow {
  readonly body?: unknown;
  /** The answer waits for a disk. */
  readonly isLong?: boolean;
  readonly waiting?: Waiting | undefined;
}

type HttpMethod = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';

/** Requests to one of several servers: which of them, for how long, and what their failures mean. */
class Requests {
  readonly #urls: readonly string[];
  readonly #token: RestClientOptions['token'];
  readonly #timeoutMs: number;
  readonly #signal: AbortSignal | undefined;
  readonly #fetch: typeof fetch;
  /** The index of the server that answered last: the first one to be asked. */
  #at = 0;

  /** @throws DownpourError DP_USAGE when `server` is no address. */
  constructor(options: RestClientOptions) {
    const { token, timeoutMs = 10_000, signal, fetch = globalThis.fetch } = options;
    this.#urls = httpAddresses(options.server);
    this.#token = token;
    this.#timeoutMs = timeoutMs;
    this.#signal = signal;
    // Called as a method of another object, a browser's refuses.
    this.#fetch = (input, init) => fetch(input, init);
  }

  /** The server that is asked now. */
  get url(): string {
    return this.#urls[this.#at]!;
  }

  /** Each server at most once. Several requests may do so at the same time, so each counts for itself. */
  async inTurn<T>(method: HttpMethod, ask: (url: string) => Promise<T>): Promise<T> {
    for (let asked = 1, own = this.#at; ; asked++, own = (own + 1) % this.#urls.length) {
      try {
        const answer = await ask(this.#urls[own]!);
        this.#at = own;
        return answer;
      } catch (error) {
        const isLast = asked >= this.#urls.length;
        if (!isLast && isForAnother(error, method)) continue;
        this.#at = own;
        throw error;
      }
    }
  }

  send(method: HttpMethod, path: string, how: RequestHow = {}): Promise<Response> {
    return this.inTurn(method, (url) => this.#ask(url, method, path, how));
  }

  /**
   * A request that is answered when a checkpoint is on disk. It does the same when it is repeated, so it is: Node.js gives
   * up any request after five minutes.
   */
  async whenWritten<T>(path: string, waiting?: Waiting): Promise<T> {
    const since = performance.now();
    const told = waiting && (() => waiting(Math.round((performance.now() - since) / 1000)));
    for (;;) {
      try {
        return await this.json<T>('POST', path, undefined, { isLong: true, waiting: told });
      } catch (error) {
        if (!isGivenUp(error)) throw error;
      }
    }
  }

  async #ask(
    url: string,
    method: HttpMethod,
    path: string,
    { body, isLong = false, waiting }: RequestHow,
  ): Promise<Response> {
    // A large body may take as long as the server waits for it.
    const answerMs = isBytes(body) ? Math.max(this.#timeoutMs, LIMITS.requestMs) : this.#timeoutMs;
    const asked: RequestInit = {
      method,
      redirect: 'error',
      headers: {
        ...this.#authorization(),
        ...(body === undefined ? {} : { 'content-type': TYPES[isBytes(body) ? 'bytes' : 'json'] }),
      },
      ...(body === undefined ? {} : { body: isBytes(body) ? body : JSON.stringify(body) }),
    };
    let response: Response;
    try {
      response = await this.#patiently(async () => {
        const silence = isLong ? this.#whileAlive(url, waiting) : null;
        const stopped = [silence?.signal ?? AbortSignal.timeout(answerMs)];
        if (this.#signal) stopped.push(this.#signal);
        try {
          return await this.#fetch(url + path, { ...asked, signal: AbortSignal.any(stopped) });
        } finally {
          silence?.end();
        }
      });
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw this.#unreachable(url, error);
    }
    if (response.ok) return response;
    throw await failure(response, method, path);
  }

  /** Asks a server again and again whether it is there. @returns a signal that is aborted when it is not. */
  #whileAlive(url: string, waiting: Waiting | undefined): { signal: AbortSignal; end(): void } {
    const silence = new AbortController();
    let isOver = false;
    let waitedMs = 0;
    const look = async () => {
      waitedMs += this.#timeoutMs;
      try {
        const signal = AbortSignal.timeout(this.#timeoutMs);
        const answer = await this.#fetch(`${url}/health`, { redirect: 'error', signal });
        await answer.body?.cancel();
      } catch {
        silence.abort(new DOMException('', 'TimeoutError'));
        return;
      }
      if (isOver) return;
      waiting?.(waitedMs / 1000);
      timer = setTimeout(() => void look(), this.#timeoutMs);
    };
    let timer = setTimeout(() => void look(), this.#timeoutMs);
    const end = () => {
      isOver = true;
      clearTimeout(timer);
    };
    return { signal: silence.signal, end };
  }

  /** A server that is asked too much says when to ask again; it has done nothing meanwhile. */
  async #patiently(ask: () => Promise<Response>): Promise<Response> {
    for (let waitedMs = 0; ; ) {
      const response = await ask();
      const seconds = response.status === 429 ? Number(response.headers.get('retry-after')) : 0;
      waitedMs += 1000 * seconds;
      if (!(seconds > 0) || waitedMs > this.#timeoutMs) return response;
      await response.body?.cancel();
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      this.#signal?.throwIfAborted();
    }
  }

  #authorization(): { authorization?: string } {
    const token = typeof this.#token === 'function' ? this.#token() : this.#token;
    return token === undefined ? {} : { authorization: `Bearer ${token}` };
  }

  #unreachable(url: string, error: unknown): DownpourError {
    const timedOut = error instanceof Error && error.name === 'TimeoutError';
    const why = timedOut ? `no answer within ${this.#timeoutMs / 1000} s` : reasonOf(error);
    return new DownpourError(
      'DP_SERVER_UNREACHABLE',
      `no server at ${url}: ${why}; start one with \`downpour serve\`, or give its address by --server or DOWNPOUR_SERVER`,
      { cause: error },
    );
  }

  async json<T>(
    method: HttpMethod,
    path: string,
    body?: unknown,
    how: RequestHow = {},
  ): Promise<T> {
    const response = await this.send(method, path, { ...how, body });
    let text: string;
    try {
      text = await response.text();
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw this.#unreachable(this.url, error);
    }
    try {
      return JSON.parse(text) as T;
    } catch (error) {
      throw new DownpourError(
        'DP_INTERNAL',
        `${method} ${this.url}${path} answered ${JSON.stringify(text.slice(0, 60))}, which is not JSON; is this a Downpour server?`,
        { cause: error },
      );
    }
  }

  /**
   * The signal of a fetch also ends its body, and a large file on a slow line takes its time:
   * so this request has a time limit of its own that ends with the first byte.
   */
  async file(url: string, path: string): Promise<ReadableStream<Uint8Array>> {
    const started = new AbortController();
    const timer = setTimeout(
      () => started.abort(new DOMException('', 'TimeoutError')),
      this.#timeoutMs,
    );
    try {
      const response = await this.#fetch(url + path, {
        redirect: 'error',
        signal: this.#signal ? AbortSignal.any([started.signal, this.#signal]) : started.signal,
        headers: this.#authorization(),
      });
      if (!response.ok) throw await failure(response, 'GET', path);
      if (!response.body) throw new DownpourError('DP_INTERNAL', `GET ${path} has no body`);
      return response.body;
    } catch (error) {
      if (error instanceof DownpourError) throw error;
      this.#signal?.throwIfAborted();
      throw this.#unreachable(url, error);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** With what is defined; empty: nothing is. */
function query(fields: Readonly<Record<string, string | number | boolean | undefined>>): string {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  if (given.length === 0) return '';
  return `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}

/** Nothing has been done yet, or it can be asked twice. */
/** Node.js waits for no answer longer than five minutes, whatever the signal says. */
function isGivenUp(error: unknown): boolean {
  let cause: unknown = error;
  while (cause instanceof Error) {
    if ((cause as { code?: unknown }).code === 'UND_ERR_HEADERS_TIMEOUT') return true;
    cause = cause.cause;
  }
  return false;
}

function isForAnother(error: unknown, method: string): boolean {
  const code = errorCode(error);
  if (code === 'DP_STANDBY') return true;
  if (code !== 'DP_SERVER_UNREACHABLE') return false;
  return method === 'GET' || /ECONNREFUSED/.test(errorText(error));
}

/** The address of each server of a list with commas. @throws DownpourError DP_USAGE. */
export function httpAddresses(servers: string): string[] {
  return servers.split(',').map((server) => httpAddress(server.trim()));
}

/** `http:` and no slash at the end, from what a user or a worker writes. */
export function httpAddress(server: string): string {
  const text = /^[a-z]+:\/\//i.test(server) ? server : `http://${server}`;
  let url: URL;
  try {
    url = new URL(text);
  } catch (error) {
    throw new DownpourError(
      'DP_USAGE',
      `'${server}' is no address of a server; write it like http://127.0.0.1:7420`,
      { cause: error },
    );
  }
  const protocols: Record<string, string> = {
    'http:': 'http:',
    'https:': 'https:',
    'ws:': 'http:',
    'wss:': 'https:',
  };
  const protocol = protocols[url.protocol];
  if (protocol === undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `'${server}' starts with ${url.protocol}//; a server's address starts with http://, https://, ws:// or wss://`,
    );
  }
  return `${protocol}//${url.host}${url.pathname.replace(/\/+$/, '')}`;
}

/** The addresses that workers connect to: `ws:` for `http:`, `wss:` for `https:`. */
export function webSocketAddress(servers: string): string {
  return httpAddresses(servers)
    .map((url) => url.replace(/^http/, 'ws'))
    .join(',');
}

async function failure(response: Response, method: string, path: string): Promise<DownpourError> {
  const text = await response.text().catch(() => '');
  try {
    const body = JSON.parse(text) as Partial<ErrorBody>;
    if (typeof body.code === 'string' && typeof body.message === 'string') {
      // A newer server may have codes that this release does not know.
      const code = body.code in ERRORS ? (body.code as ErrorCode) : 'DP_INTERNAL';
      return new DownpourError(code, body.message);
    }
  } catch {
    // Not JSON: not one of ours; told below.
  }
  return new DownpourError(
    'DP_INTERNAL',
    `${method} ${path} answered ${response.status} ${JSON.stringify(text.slice(0, 60))}; is this a Downpour server?`,
  );
}

/** What lies under fetch's "fetch failed". */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  if (cause instanceof Error) {
    const code = (cause as { code?: unknown }).code;
    return cause.message || String(code ?? cause.name);
  }
  return errorText(error);
}
