import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parse } from 'yaml';
import { freePort } from '../redis-server.ts';
import { createAuthority } from '../support/certificates.ts';
import { type Program, startProgram } from '../support/program.ts';
import { programAt } from './programs.ts';

// A real API server of Kubernetes with a real etcd, on free ports of this machine, in a folder of its own.

/** How long a program may take until it answers, on a slow, busy machine. */
const START_MS = 120_000;

/** Whatever the API server has or says; what a test reads of it. */
export interface KubeObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly resourceVersion?: string;
    readonly [more: string]: unknown;
  };
  readonly [more: string]: unknown;
}

export interface Answer {
  readonly status: number;
  /** What it answered: an object, or a `Status` with a message. */
  readonly body: KubeObject & { readonly message?: string };
  /** Each `Warning` header, such as Pod Security's and those of fields that go away. */
  readonly warnings: readonly string[];
}

export interface ApiServer extends Certificate {
  readonly url: string;
  readonly folder: string;
  /** Path of a kubeconfig with which kubectl is the administrator. */
  readonly kubeconfig: string;
  ask(method: string, path: string, body?: object, type?: string): Promise<Answer>;
  /** As `kubectl apply --server-side --validate=strict` does. @param query more of it, such as `dryRun=All` */
  apply(object: KubeObject, namespace: string, query?: string): Promise<Answer>;
  /** Makes a kind of an operator's known. @param file with its definition. @throws Error where it is refused */
  define(file: string): Promise<void>;
  stop(): Promise<void>;
}

/** Why no API server can be started here, beside Kubernetes itself; null: one can. */
export function etcdMissing(): string | null {
  const { error } = spawnSync('etcd', ['--version']);
  return error ? 'etcd is not installed (Debian: apt-get install etcd-server)' : null;
}

export interface ApiServerOptions {
  /** In which it works, and which stays; else one of its own, which does not. */
  readonly folder?: string;
  /** Others that its certificate is for. */
  readonly hosts?: readonly string[];
  /** More of its command line. */
  readonly more?: (files: Certificate) => readonly string[];
}

/** Paths of an authority's certificate, and of one that it signed for the user `apiserver`. */
interface Certificate {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export async function startApiServer(options: ApiServerOptions = {}): Promise<ApiServer> {
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'downpour-api-'));
  const running: Program[] = [];
  const stop = async () => {
    for (const each of running.reverse()) await each.stop();
    if (options.folder === undefined) rmSync(folder, { recursive: true, force: true });
  };
  try {
    const etcd = await startEtcd(folder, running);
    const token = randomBytes(16).toString('hex');
    const { ca, issue } = createAuthority(folder, 'kubernetes', options.hosts);
    const files = { ca, ...issue('apiserver') };
    const more = options.more?.(files) ?? [];
    const url = await startServer(folder, running, etcd, token, files, more);
    const agent = new Agent({ ca: readFileSync(ca), keepAlive: true });
    const ask: ApiServer['ask'] = (method, path, body, type = 'application/json') =>
      askOnce(agent, new URL(path, url), token, method, body, type);
    const kubeconfig = join(folder, 'kubeconfig');
    const named = (name: string, what: object) => [{ name: 'downpour', [name]: what }];
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      'current-context': 'downpour',
      clusters: named('cluster', { server: url, 'certificate-authority': ca }),
      users: named('user', { token }),
      contexts: named('context', { cluster: 'downpour', user: 'downpour' }),
    };
    writeFileSync(kubeconfig, JSON.stringify(config), { mode: 0o600 });
    const pathOf = createPaths(ask);
    const apply: ApiServer['apply'] = async (object, namespace, query = '') => {
      const path = await pathOf(object, object.metadata.namespace ?? namespace);
      const words = `fieldManager=downpour-test&fieldValidation=Strict&${query}`;
      // JSON is YAML.
      return ask('PATCH', `${path}?${words}`, object, 'application/apply-patch+yaml');
    };
    return {
      ...{ url, folder, kubeconfig, ...files, ask, apply },
      define: (file) => define(apply, file),
      async stop() {
        agent.destroy();
        await stop();
      },
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function startEtcd(folder: string, running: Program[]): Promise<string> {
  const [own, peer] = [await freePort(), await freePort()].map(
    (port) => `http://127.0.0.1:${port}`,
  );
  const program = startProgram({
    folder,
    name: 'etcd',
    file: 'etcd',
    args: [
      ...['--data-dir', join(folder, 'etcd'), '--log-level', 'warn'],
      ...['--listen-client-urls', own!, '--advertise-client-urls', own!],
      ...['--listen-peer-urls', peer!, '--initial-advertise-peer-urls', peer!],
      ...['--initial-cluster', `default=${peer}`],
    ],
  });
  running.push(program);
  await program.until('answers', async () => (await fetch(`${own}/health`)).ok);
  return own!;
}

async function startServer(
  folder: string,
  running: Program[],
  etcd: string,
  token: string,
  { ca, cert, key }: Certificate,
  more: readonly string[],
): Promise<string> {
  const tokens = join(folder, 'tokens.csv');
  writeFileSync(tokens, `${token},admin,admin,system:masters\n`, { mode: 0o600 });
  const port = await freePort();
  const url = `https://127.0.0.1:${port}`;
  const program = startProgram({
    folder,
    name: 'kube-apiserver',
    file: programAt('kube-apiserver'),
    args: [
      ...['--etcd-servers', etcd, '--bind-address', '127.0.0.1', '--secure-port', String(port)],
      // Nobody asks for it by that address: the service `kubernetes` has no endpoint.
      ...['--advertise-address', '127.0.0.1', '--endpoint-reconciler-type', 'none'],
      ...['--tls-cert-file', cert, '--tls-private-key-file', key, '--token-auth-file', tokens],
      ...['--service-account-issuer', 'https://kubernetes.default.svc'],
      ...['--service-account-key-file', cert, '--service-account-signing-key-file', key],
      ...['--service-cluster-ip-range', '10.96.0.0/16', '--authorization-mode', 'Node,RBAC'],
      ...more,
    ],
  });
  running.push(program);
  const agent = new Agent({ ca: readFileSync(ca) });
  await program.until(
    'is ready',
    async () => (await askOnce(agent, new URL('/readyz', url), token, 'GET')).status === 200,
  );
  agent.destroy();
  return url;
}

function askOnce(
  agent: Agent,
  url: URL,
  token: string,
  method: string,
  body?: object,
  type?: string,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${token}`, ...(body && { 'content-type': type }) };
    const asked = request(url, { agent, method, headers, timeout: 60_000 }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('error', reject);
      response.on('end', () => {
        const { rawHeaders } = response;
        const warnings = rawHeaders.filter(
          (_, i) => i % 2 === 1 && rawHeaders[i - 1]!.toLowerCase() === 'warning',
        );
        const isJson = response.headers['content-type']?.includes('json');
        const answer = isJson ? JSON.parse(text) : { message: text };
        resolve({ status: response.statusCode!, body: answer, warnings });
      });
    });
    asked.on('error', reject);
    asked.on('timeout', () => asked.destroy(new Error(`${method} ${url}: no answer in 60 s`)));
    asked.end(body && JSON.stringify(body));
  });
}

/** Where objects are, by what the API server says of their kinds. */
function createPaths(ask: ApiServer['ask']) {
  const known = new Map<string, { kind: string; name: string; namespaced: boolean }[]>();
  return async ({ apiVersion, kind, metadata }: KubeObject, namespace: string) => {
    const group = `/${apiVersion.includes('/') ? 'apis' : 'api'}/${apiVersion}`;
    let resources = known.get(group);
    if (!resources) {
      const { status, body } = await ask('GET', group);
      if (status !== 200)
        throw new Error(`${apiVersion} is not known to the API server: ${status}`);
      resources = (body as unknown as { resources: NonNullable<typeof resources> }).resources;
      known.set(group, resources);
    }
    const found = resources.find((each) => each.kind === kind && !each.name.includes('/'));
    if (!found) throw new Error(`${apiVersion} has no kind ${kind}`);
    const within = found.namespaced ? `/namespaces/${namespace}` : '';
    return `${group}${within}/${found.name}/${metadata.name}`;
  };
}

async function define(apply: ApiServer['apply'], file: string): Promise<void> {
  const definition = parse(readFileSync(file, 'utf8')) as KubeObject;
  const start = performance.now();
  for (;;) {
    const { status, body } = await apply(definition, '');
    if (status > 201) throw new Error(`${file}: ${status} ${body.message}`);
    const { conditions } = body.status as { conditions?: { type: string; status: string }[] };
    const established = conditions?.find(({ type }) => type === 'Established');
    if (established?.status === 'True') return;
    if (performance.now() - start > START_MS) throw new Error(`${file}: ${JSON.stringify(body)}`);
    await wait(100);
  }
}
