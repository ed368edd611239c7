import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import type { Status } from '../../shared/rest.ts';
import { sharedData } from '../data-folder.ts';
import { createAuthority } from '../support/certificates.ts';
import { MANIFESTS, ROOT } from '../support/deployment.ts';
import type { KubeObject } from './api-server.ts';
import { type Cluster, NODE, startCluster } from './cluster.ts';
import {
  atStep,
  bash,
  deletePod,
  downpour,
  finished,
  goesOn,
  killIn,
  kubectl,
  LONG_MS,
  read,
  ready,
  runOf,
  SERVER,
  tell,
  until,
  workersThere,
  workIn,
} from './operator.ts';
import { DEFINITIONS, programAt } from './programs.ts';

// deploy/kubernetes/example on a real cluster with one node, by the commands of docs/cluster.md; `npm run kubernetes`.

const FOLDER = process.env.DOWNPOUR_KUBERNETES!;

/** What is otherwise than in the example: pods ask for less than this machine has, and there is no GPU. */
const CPU = '/spec/template/spec/containers/0/resources/requests/cpu';
const PATCHES = ['Deployment', 'StatefulSet'].map((kind) => ({
  target: { kind, labelSelector: 'app.kubernetes.io/name=downpour' },
  patch: JSON.stringify([{ op: 'replace', path: CPU, value: '50m' }]),
}));
const REPLICAS = [{ name: 'downpour-worker-gpu', count: 0 }];

let cluster: Cluster;
let work: string;
/** Lines of the documentation that have been run. */
const done = new Set<string>();

/** A line of the documentation, as bash runs it. @param more is put after it */
async function sh(line: string, more = ''): Promise<string> {
  const text = await bash(`${line}${more}`);
  done.add(line);
  return text;
}

/** As long as a test lasts, on any machine. */
const STEADY = [
  ...['--workers', '0', '--detach', '--epochs', '100000'],
  ...['--set', 'earlyStopping.enabled=false', '--set', 'checkpoint.everySeconds=1'],
];

describe('Kubernetes', { timeout: 3 * LONG_MS }, () => {
  beforeAll(async () => {
    work = join(FOLDER, 'work');
    cpSync(MANIFESTS, join(work, 'deploy/kubernetes'), { recursive: true });
    const example = join(work, 'deploy/kubernetes/example/kustomization.yaml');
    const overlay = exampleOf() as { patches: object[] };
    const patches = [...overlay.patches, ...PATCHES];
    writeFileSync(example, JSON.stringify({ ...overlay, patches, replicas: REPLICAS }));
    mkdirSync(join(work, 'experiments'));
    cpSync(join(ROOT, 'examples/mnist-mlp.ts'), join(work, 'experiments/own-digits.ts'));

    cluster = await startCluster(FOLDER, tell);
    const path = `${join(programAt('kubectl'), '..')}:${process.env.PATH}`;
    workIn(work, { ...process.env, PATH: path, KUBECONFIG: cluster.api.kubeconfig });
    tell('loading the images');
    await cluster.load(join(FOLDER, 'images.tar'));
    tell('the images are loaded');
    for (const file of DEFINITIONS) await cluster.api.define(file);
  }, LONG_MS);
  afterAll(() => cluster?.stop());

  test('the example is applied as documented, and all its pods get ready', async () => {
    const lines = linesOf('docs/cluster.md').filter((line) => line.startsWith('kubectl '));
    const isBefore = (line: string) => /^kubectl (create|config) /.test(line);
    for (const line of lines.filter(isBefore)) await sh(line);
    await bringStorage();
    await bringCertificate();
    tell((await sh('kubectl apply -k deploy/kubernetes/example')).trim());
    for (const [component, count] of [
      ['redis', 1],
      ['server', 1],
      ['worker', 1],
    ] as const) {
      await ready(component, count);
      tell(`${component} is ready`);
    }
    await workersThere(1);
    expect(await sh(`kubectl exec ${SERVER} -- downpour status`)).toContain('state in redis');
  });

  test('a training goes to its end', async () => {
    const line = `kubectl exec ${SERVER} -- downpour train examples/mnist-mlp.ts --workers 0 --detach`;
    await sh(line, ' --run first --epochs 2');
    const detail = await finished('first');
    expect(detail).toMatchObject({ phase: 'finished' });
    expect(detail.examples).toBe(2 * detail.data!.trainCount);
    expect(detail.test!.error).toBeLessThan(0.1);
    tell(`first: 2 epochs of ${detail.data!.trainCount}, test error ${detail.test!.error}`);
  });

  test('workers come and go as they are scaled', async () => {
    await sh('kubectl scale deployment downpour-worker --replicas=8');
    await ready('worker', 8);
    await workersThere(8);
    tell('8 workers are there');
    await kubectl('scale', 'deployment', 'downpour-worker', '--replicas=2');
    await workersThere(2);
    tell('2 workers are there');
  });

  test('an own experiment goes on when the pods of server, workers and Redis are deleted', async () => {
    await downpour('train', 'experiments/own-digits.ts', '--run', 'digits', ...STEADY);
    const before = await atStep('digits', 200);
    tell(`digits trains, step ${before.step}`);

    // It writes a checkpoint first, and loses no step.
    const atEnd = await runOf('digits');
    await deletePod('server');
    expect((await goesOn('digits', 'the server was deleted', atEnd.step)).stepsLost).toBe(0);

    const { checkpoint } = await runOf('digits');
    await killIn('server');
    await goesOn('digits', 'the server was killed', checkpoint!.step);

    const { step: beforeWorker } = await runOf('digits');
    await deletePod('worker');
    await workersThere(2);
    await goesOn('digits', 'a worker was deleted', beforeWorker);

    const { step: beforeRedis } = await runOf('digits');
    await deletePod('redis');
    await goesOn('digits', 'Redis was deleted', beforeRedis);

    await until('it has learned', async () => (await runOf('digits')).best!.error! < 0.06);
    await downpour('stop', 'digits');
    const detail = await finished('digits');
    expect(detail.phase).toBe('stopped');
    tell(`digits: stopped at step ${detail.step}, best validation error ${detail.best!.error}`);
  });

  test('no pod was refused, and all that a pod needs was there', async () => {
    const words = ['get', 'events', '--field-selector', 'type=Warning', '--output', 'json'];
    const { items } = await read<{ items: { reason: string; message: string }[] }>(...words);
    for (const { reason, message } of items) tell(`event: ${reason}: ${message}`);
    const bad = ['Failed', 'FailedCreate', 'FailedMount', 'InspectFailed'];
    expect(items.filter(({ reason }) => bad.includes(reason))).toEqual([]);
  });

  test('standby: each server takes over from the other, and no step is lost', async () => {
    // There is no second node.
    const patch = '[{"op":"remove","path":"/spec/template/spec/affinity"}]';
    const target = { kind: 'Deployment', name: 'downpour-(server|standby)' };
    await bringInstead('standby', [{ target, patch }]);
    for (const each of ['redis', 'server', 'standby']) await ready(each, 1);
    await workersThere(2);
    await downpour('train', 'examples/mnist-mlp.ts', '--run', 'followed', ...STEADY);
    const followed = () =>
      until('the standby follows', async () => {
        const { standby } = JSON.parse(await downpour('status', '--json')) as Status;
        return standby?.state === 'following';
      });
    for (const each of ['server', 'standby', 'server']) {
      await atStep('followed', 200);
      await followed();
      const { step } = await runOf('followed');
      await killIn(each);
      const { stepsLost } = await goesOn('followed', `the pod ${each} was killed`, step);
      expect(stepsLost).toBe(0);
    }
  });

  test('shards: a run goes on when a shard is lost', async () => {
    await bringInstead('shards');
    await ready('redis', 1);
    await ready('shard', 2);
    await ready('server', 1);
    await workersThere(2);
    await downpour('train', 'examples/mnist-mlp.ts', '--run', 'shared', ...STEADY);
    await atStep('shared', 300);
    const { checkpoint } = await until('there is a checkpoint', async () => {
      const detail = await runOf('shared');
      return detail.checkpoint !== null && detail;
    });
    await deletePod('shard');
    await goesOn('shared', 'a shard was deleted', checkpoint!.step);
    await deletePod('server');
    await goesOn('shared', 'the server was deleted', checkpoint!.step);
  });

  test('every command of docs/cluster.md for it was run', () => {
    const lines = linesOf('docs/cluster.md').filter((line) => line.startsWith('kubectl '));
    expect(lines.filter((line) => !done.has(line))).toEqual([]);
    expect(done.size).toBeGreaterThan(6);
  });
});

/** The lines of a page's shell blocks; continued ones are one. */
function linesOf(page: string): string[] {
  const text = readFileSync(join(ROOT, page), 'utf8');
  return [...text.matchAll(/```sh\n([\s\S]*?)```/g)].flatMap(([, block]) =>
    block!.replaceAll(/\\\n\s*/g, '').split('\n'),
  );
}

/** What the cluster's storage would make for a claim: a folder of this node. */
async function bringVolume(
  namespace: string,
  claim: string,
  spec: { storage: string; accessMode?: string; storageClassName?: string },
): Promise<string> {
  const name = `${namespace}-${claim}`;
  const path = join(FOLDER, 'volumes', name);
  mkdirSync(path, { recursive: true });
  const term = { key: 'kubernetes.io/hostname', operator: 'In', values: [NODE] };
  const { storage, accessMode = 'ReadWriteOnce', storageClassName = '' } = spec;
  await apply({
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name },
    spec: {
      capacity: { storage },
      accessModes: [accessMode],
      storageClassName,
      claimRef: { namespace, name: claim },
      local: { path },
      nodeAffinity: { required: { nodeSelectorTerms: [{ matchExpressions: [term] }] } },
    },
  });
  return path;
}

async function apply(object: KubeObject, namespace = ''): Promise<void> {
  const { status, body } = await cluster.api.apply(object, namespace);
  expect(status, body.message).toBe(201);
}

/** What the example expects of its cluster: a class of storage, and data in a claim of the user's. */
async function bringStorage(): Promise<void> {
  await apply({
    apiVersion: 'storage.k8s.io/v1',
    kind: 'StorageClass',
    metadata: { name: 'fast' },
    provisioner: 'kubernetes.io/no-provisioner',
  });
  await bringVolume('downpour', 'downpour-state', { storage: '100Gi', storageClassName: 'fast' });
  await bringVolume('downpour', 'redis-downpour-redis-0', { storage: '1Gi' });
  const accessMode = 'ReadOnlyMany';
  const data = await bringVolume('downpour', 'downpour-data', { storage: '1Gi', accessMode });
  const mnist = sharedData();
  // Without MNIST, the digits that the image brings.
  if (mnist) cpSync(join(mnist, 'mnist'), join(data, 'mnist'), { recursive: true });
  const claim = {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'downpour-data' },
    spec: {
      accessModes: [accessMode],
      storageClassName: '',
      resources: { requests: { storage: '1Gi' } },
    },
  };
  await apply(claim, 'downpour');
}

/** The base with one component, in a namespace of its own, in place of what was there before. */
async function bringInstead(component: string, patches: readonly object[] = []): Promise<void> {
  await kubectl('delete', 'deployment,statefulset', '--all', '--timeout=180s');
  const name = `with-${component}`;
  const folder = join(work, 'deploy/kubernetes', name);
  mkdirSync(folder);
  const { images } = exampleOf() as { images: object[] };
  const overlay = {
    apiVersion: 'kustomize.config.k8s.io/v1beta1',
    kind: 'Kustomization',
    ...{ namespace: name, resources: ['../base'], components: [`../${component}`], images },
    patches: [...PATCHES, ...patches],
  };
  writeFileSync(join(folder, 'kustomization.yaml'), JSON.stringify(overlay));
  await kubectl('create', 'namespace', name);
  const level = 'pod-security.kubernetes.io/enforce=restricted';
  await kubectl('label', 'namespace', name, level);
  await kubectl('config', 'set-context', '--current', `--namespace=${name}`);
  const roles = ['operator', 'worker', 'observer', 'redis-password'];
  const secrets = roles.map((role) => `--from-literal=${role}=the-secret-${role}`);
  await kubectl('create', 'secret', 'generic', 'downpour', ...secrets);
  await bringVolume(name, 'downpour-state', { storage: '20Gi' });
  await bringVolume(name, 'downpour-standby-state', { storage: '20Gi' });
  await bringVolume(name, 'redis-downpour-redis-0', { storage: '1Gi' });
  await kubectl('apply', '-k', folder);
}

const exampleOf = (): object =>
  parse(readFileSync(join(MANIFESTS, 'example/kustomization.yaml'), 'utf8'));

/** As cert-manager makes it. */
async function bringCertificate(): Promise<void> {
  const folder = join(FOLDER, 'tls');
  mkdirSync(folder);
  const { ca, issue } = createAuthority(folder, 'authority', ['downpour-server']);
  const { cert, key } = issue('downpour-server');
  const files = [`tls.crt=${cert}`, `tls.key=${key}`, `ca.crt=${ca}`];
  const from = files.map((file) => `--from-file=${file}`);
  await kubectl('create', 'secret', 'generic', 'downpour-tls', ...from);
}
