import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { parse, parseAllDocuments } from 'yaml';

// docker-compose.yml, deploy/Dockerfile and deploy/kubernetes, read as their tools read them as far as
// a test needs it that has no engine of containers.

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));

export interface Mount {
  readonly type: string;
  readonly source: string;
  readonly target: string;
  readonly read_only?: boolean;
}

export interface Service {
  readonly image: string;
  readonly build?: {
    readonly context: string;
    readonly dockerfile: string;
    readonly target: string;
  };
  readonly command: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly volumes?: readonly (string | Mount)[];
  readonly ports?: readonly string[];
  readonly networks?: readonly string[];
  readonly profiles?: readonly string[];
  readonly restart?: string;
  readonly stop_grace_period?: string;
  readonly logging?: { readonly options: Readonly<Record<string, string>> };
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly healthcheck?: { readonly test: readonly string[] };
  readonly [more: string]: unknown;
}

export interface Compose {
  readonly services: Readonly<Record<string, Service>>;
  readonly volumes: Readonly<Record<string, unknown>>;
  readonly networks: Readonly<Record<string, { readonly internal?: boolean }>>;
}

/**
 * A file of Compose with its variables filled in.
 * @throws Error with the file's own message where a required variable is missing.
 */
export function readCompose(
  env: Readonly<Record<string, string>>,
  name = 'docker-compose.yml',
): Compose {
  const text = readFileSync(join(ROOT, name), 'utf8');
  return fill(parse(text, { merge: true }), env) as Compose;
}

/** `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$` in all texts of a value. */
function fill(value: unknown, env: Readonly<Record<string, string>>): unknown {
  if (typeof value === 'string') {
    return value.replaceAll(
      /\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})/g,
      (_, dollar: string, name: string, kind: string, rest: string) => {
        if (dollar) return '$';
        const given = env[name] ?? '';
        if (given !== '') return given;
        if (kind === '?') throw new Error(`required variable ${name} is missing a value: ${rest}`);
        // A default may name another variable.
        return (rest ?? '').replace(/^\$(\w+)$/, (_all, other: string) => env[other] ?? '');
      },
    );
  }
  if (Array.isArray(value)) return value.map((each) => fill(each, env));
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, fill(each, env)]));
}

export interface Stage {
  readonly name: string;
  readonly base: string;
  /** Instructions in order: the word in capitals, and the rest of its line. */
  readonly steps: readonly { readonly word: string; readonly rest: string }[];
}

/** The stages of deploy/Dockerfile, in order. */
export function readDockerfile(): readonly Stage[] {
  const text = readFileSync(join(ROOT, 'deploy/Dockerfile'), 'utf8');
  const lines = text
    .replaceAll(/^\s*#.*\n/gm, '')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n')
    .filter((line) => line.trim() !== '');
  const stages: { name: string; base: string; steps: { word: string; rest: string }[] }[] = [];
  for (const line of lines) {
    const [, word, rest] = /^(\w+)\s+(.*)$/.exec(line)!;
    const from = /^(\S+) AS (\S+)$/.exec(rest!);
    if (word === 'FROM') stages.push({ name: from![2]!, base: from![1]!, steps: [] });
    else stages.at(-1)!.steps.push({ word: word!, rest: rest! });
  }
  return stages;
}

/** The instructions of a stage after those of the stages that it is built on. */
export function stepsOf(target: string): Stage['steps'] {
  const stages = readDockerfile();
  const stage = stages.find(({ name }) => name === target);
  if (stage === undefined) throw new Error(`no stage ${target}`);
  const isOurs = stages.some(({ name }) => name === stage.base);
  return [...(isOurs ? stepsOf(stage.base) : []), ...stage.steps];
}

export interface Image {
  /** Stands for /app. */
  readonly app: string;
  readonly env: Readonly<Record<string, string>>;
  /** Program and arguments of the command, without tini. */
  readonly program: readonly string[];
}

/**
 * Makes the folder /app of an image as its COPY instructions do, and reads the rest. Packages are
 * links to those that `npm ci --omit=dev` would install; engines are this machine's.
 */
export function buildImage(target: string, app: string): Image {
  mkdirSync(app, { recursive: true });
  const env: Record<string, string> = {};
  let program: string[] = [];
  const links = new Map<string, string>();
  for (const { word, rest } of stepsOf(target)) {
    if (word === 'ENV') {
      for (const [, name, value] of rest.matchAll(/(\w+)=(\S+)/g)) env[name!] = value!;
    } else if (word === 'RUN') {
      for (const [, file, link] of rest.matchAll(/ln -s (\S+) (\S+)/g)) links.set(link!, file!);
    } else if (word === 'ENTRYPOINT') {
      program = JSON.parse(rest) as string[];
    } else if (word === 'COPY') {
      copy(rest, app);
    }
  }
  if (program.shift() !== 'tini' || program.shift() !== '--') throw new Error('no tini');
  const [name, ...more] = program;
  const file = links.get(`/usr/local/bin/${name}`);
  if (file === undefined) throw new Error(`${name} is not on the path`);
  program = [process.execPath, file.replace(/^\/app/, app), ...more];
  return { app, env, program };
}

function copy(rest: string, app: string): void {
  const [, from, words] = /^(?:--from=(\S+) )?(.*)$/.exec(rest)!;
  const sources = words!.split(' ');
  const to = sources.pop()!;
  if (from !== undefined) {
    if (from === 'packages') linkPackages(join(app, to));
    if (from === 'package') buildPackage(join(app, to));
    return;
  }
  for (const source of sources) {
    const entries = source === '.' ? readdirSync(ROOT) : [source];
    for (const entry of entries.filter((name) => !isIgnored(name))) {
      const target = to.startsWith('.') ? join(app, entry) : join(app, to);
      cpSync(join(ROOT, entry), target, { recursive: true });
    }
  }
}

/** Runs what the stage `package` runs, in this checkout. @param to stands for its folder /package. */
function buildPackage(to: string): void {
  const { steps } = readDockerfile().find(({ name }) => name === 'package')!;
  for (const { word, rest } of steps) {
    if (word !== 'RUN') continue;
    execFileSync('bash', ['-ec', rest.replaceAll('/package', to)], { cwd: ROOT });
  }
}

/** Whether .dockerignore keeps a name at the top level out of every image. */
export function isIgnored(name: string): boolean {
  return readFileSync(join(ROOT, '.dockerignore'), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .some((line) =>
      new RegExp(`^${line.replaceAll('.', '\\.').replaceAll('*', '[^/]*')}$`).test(name),
    );
}

function linkPackages(folder: string): void {
  const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; optional?: boolean }>;
  };
  for (const [path, { dev, optional }] of Object.entries(lock.packages)) {
    const name = /^node_modules\/((?:@[^/]+\/)?[^/]+)$/.exec(path)?.[1];
    if (name === undefined || dev || optional) continue;
    const link = join(folder, name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(join(ROOT, path), link);
  }
}

export interface Manifest {
  readonly file: string;
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly spec: Readonly<Record<string, unknown>>;
}

export interface Container {
  readonly name: string;
  readonly image: string;
  readonly args: readonly string[];
  readonly env: readonly {
    readonly name: string;
    readonly value?: string;
    readonly valueFrom?: { readonly secretKeyRef: { readonly name: string; readonly key: string } };
  }[];
  readonly ports?: readonly { readonly name: string; readonly containerPort: number }[];
  readonly resources: { readonly limits: Readonly<Record<string, string>> };
  readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
  readonly [more: string]: unknown;
}

export const MANIFESTS = join(ROOT, 'deploy/kubernetes');

/** The objects of the base and of the workers with GPUs, as they are written. */
export function readManifests(): readonly Manifest[] {
  return ['base', 'gpu'].flatMap((folder) =>
    readdirSync(join(MANIFESTS, folder))
      .filter((file) => file !== 'kustomization.yaml')
      .flatMap((file) =>
        readObjects(readFileSync(join(MANIFESTS, folder, file), 'utf8')).map((each) => ({
          ...each,
          file,
        })),
      ),
  );
}

/** The objects of a text. @throws what is wrong with its YAML. */
export function readObjects(text: string): Omit<Manifest, 'file'>[] {
  return parseAllDocuments(text).map((document) => {
    if (document.errors.length > 0) throw document.errors[0];
    return document.toJS() as Manifest;
  });
}

export interface PodSpec {
  readonly containers: readonly [Container];
  readonly volumes?: readonly { readonly name: string; readonly [source: string]: unknown }[];
  readonly securityContext: Readonly<Record<string, unknown>>;
  readonly [more: string]: unknown;
}

/** What the admission of a namespace with pod-security.kubernetes.io/enforce: restricted would refuse of a pod. */
export function whyNotRestricted(spec: PodSpec): string[] {
  const wrong: string[] = [];
  const { runAsNonRoot, seccompProfile, ...ids } = spec.securityContext ?? {};
  if (runAsNonRoot !== true) wrong.push('runAsNonRoot');
  if (!isDeepStrictEqual(seccompProfile, { type: 'RuntimeDefault' })) wrong.push('seccompProfile');
  for (const [key, value] of Object.entries(ids)) if (value === 0) wrong.push(key);
  for (const key of ['hostNetwork', 'hostPID', 'hostIPC', 'initContainers']) {
    if (key in spec) wrong.push(key);
  }
  const kinds = ['configMap', 'emptyDir', 'persistentVolumeClaim', 'projected', 'secret'];
  for (const { name, ...source } of spec.volumes ?? []) {
    if (!Object.keys(source).every((kind) => kinds.includes(kind))) wrong.push(`volume ${name}`);
  }
  const bare = {
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ['ALL'] },
  };
  for (const { name, securityContext, ports = [] } of spec.containers) {
    if (!isDeepStrictEqual(securityContext, bare)) wrong.push(`container ${name}`);
    if (ports.some((port) => 'hostPort' in port)) wrong.push('hostPort');
  }
  return wrong;
}
