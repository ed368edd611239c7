import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type PodSpec, ROOT, whyNotRestricted } from '../support/deployment.ts';
import {
  type Built,
  builtFrom,
  builtOf,
  COMPONENTS,
  lacksKustomize,
} from '../support/kustomize.ts';
import { isLacking, python } from '../support/python.ts';

// The base, each component over it and the example, built by Kustomize; what comes of it, against the schemas of
// Kubernetes, in which every unknown field is an error, and as Pod Security level `restricted` wants it.

/** The oldest that still has support when this is written, and what most clusters run. */
const VERSIONS = ['1.33', '1.35'] as const;
/** Kinds of operators, which bring schemas of their own. */
const FOREIGN = ['ServiceMonitor', 'ScaledObject'];
const VERSION = (
  JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }
).version;

const temporary = mkdtempSync(join(tmpdir(), 'downpour-schemas-'));
afterAll(() => rmSync(temporary, { recursive: true }));

const find = (built: readonly Built[], kind: string, name: string) => {
  const found = built.find((each) => each.kind === kind && each.metadata.name === name);
  if (!found) throw new Error(`there is no ${kind} ${name}`);
  return found.spec as Record<string, unknown>;
};
const podOf = (built: readonly Built[], name: string, kind = 'Deployment') =>
  (find(built, kind, name).template as { spec: PodSpec }).spec;
const pods = (built: readonly Built[]) =>
  built.filter(({ kind }) => ['Deployment', 'StatefulSet'].includes(kind));
const variable = (pod: PodSpec, name: string) =>
  pod.containers[0].env.find((each) => each.name === name)?.value;

const hasSchemas = !isLacking(['kubernetes_validate']);

describe.skipIf(lacksKustomize && !process.env.CI)('Kustomize', () => {
  const all: Readonly<Record<string, readonly Built[]>> = lacksKustomize
    ? {}
    : {
        base: builtFrom('base'),
        example: builtFrom('example'),
        ...Object.fromEntries(COMPONENTS.map((name) => [name, builtOf(name)])),
      };

  test('is there', () => expect(lacksKustomize).toBe(false));

  test('all that comes of it fits the schemas of Kubernetes', async (context) => {
    if (!hasSchemas) context.skip('there is no kubernetes-validate');
    const files = Object.entries(all).flatMap(([name, built]) =>
      built
        .filter(({ kind }) => !FOREIGN.includes(kind))
        .map((each, i) => {
          const file = join(temporary, `${name}-${i}-${each.kind}.yaml`);
          writeFileSync(file, JSON.stringify(each));
          return file;
        }),
    );
    expect(files.length).toBeGreaterThan(60);
    for (const version of VERSIONS) {
      const words = ['-m', 'kubernetes_validate', '--strict', '--quiet', '-k', version];
      const { status, stdout, stderr } = await python([...words, ...files]);
      expect(status, stdout + stderr).toBe(0);
    }
    // It would find one.
    const file = join(temporary, 'misspelt.json');
    const text = JSON.stringify(all.base!.find(({ kind }) => kind === 'Deployment'));
    writeFileSync(file, text.replace('runAsNonRoot', 'runAsNonRot'));
    const { status, stdout, stderr } = await python([
      ...['-m', 'kubernetes_validate', '--strict', '-k', VERSIONS[0], file],
    ]);
    expect(status).not.toBe(0);
    expect(stdout + stderr).toContain('runAsNonRot');
  });

  test.each(['base', 'example', ...COMPONENTS])(
    '%s: pods fit restricted, images have a version',
    (name) => {
      const built = all[name]!;
      expect(pods(built).length).toBeGreaterThanOrEqual(3);
      for (const { kind, metadata } of pods(built)) {
        const pod = podOf(built, metadata.name, kind);
        expect(whyNotRestricted(pod), metadata.name).toEqual([]);
        const [container] = pod.containers;
        if (metadata.name === 'downpour-redis') continue;
        const [, image, tag] = /([^/]+):([^:]+)$/.exec(container.image)!;
        expect(['downpour-cpu', 'downpour-gpu']).toContain(image);
        expect(tag).toBe(VERSION);
      }
      // Policies and services find pods, or a component's are not there.
      for (const { kind, metadata, spec } of built) {
        if (kind !== 'Service') continue;
        const labels = pods(built).map((each) => {
          const { template } = each.spec as { template: { metadata: { labels: object } } };
          return JSON.stringify(template.metadata.labels);
        });
        expect(labels, metadata.name).toContain(JSON.stringify(spec.selector));
      }
    },
  );

  test('data: server and workers read the claim, and the empty folder is gone', () => {
    const built = builtOf('gpu', 'data');
    for (const name of ['downpour-server', 'downpour-worker', 'downpour-worker-gpu']) {
      expect(podOf(built, name).volumes!.find((volume) => volume.name === 'data')).toEqual({
        name: 'data',
        persistentVolumeClaim: { claimName: 'downpour-data', readOnly: true },
      });
    }
  });

  test('tls: nothing asks the server in the clear, and it does not ask workers for certificates', () => {
    const built = builtOf('gpu', 'monitoring', 'tls');
    const server = podOf(built, 'downpour-server');
    for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
      expect(server.containers[0][probe]).toMatchObject({
        httpGet: { scheme: 'HTTPS', path: '/health', port: 'http' },
        periodSeconds: expect.any(Number),
      });
    }
    for (const { kind, metadata } of pods(built)) {
      const pod = podOf(built, metadata.name, kind);
      if (metadata.name === 'downpour-redis') continue;
      expect(variable(pod, 'DOWNPOUR_SERVER')).toMatch(/^(https|wss):\/\/downpour-server:7420$/);
      const mounts = pod.containers[0].volumeMounts.map(({ name }) => name);
      expect(mounts.sort()).toEqual(pod.volumes!.map(({ name }) => name).sort());
    }
    expect(variable(server, 'DOWNPOUR_TLS_CA')).toBeUndefined();
    const worker = podOf(built, 'downpour-worker');
    expect(JSON.stringify(worker.volumes)).not.toContain('tls.key');
    expect(find(built, 'ServiceMonitor', 'downpour-server')).toMatchObject({
      endpoints: [{ scheme: 'https', tlsConfig: { serverName: 'downpour-server' } }],
    });
  });

  test('monitoring: Prometheus comes in, by the observer’s token', () => {
    const { endpoints, selector } = find(all.monitoring!, 'ServiceMonitor', 'downpour-server') as {
      endpoints: [{ port: string; path: string }];
      selector: { matchLabels: object };
    };
    expect(endpoints[0]).toMatchObject({
      path: '/metrics',
      authorization: { credentials: { name: 'downpour', key: 'observer' } },
    });
    const service = all.monitoring!.find(
      ({ kind, metadata }) => kind === 'Service' && metadata.name === 'downpour-server',
    )!;
    expect((service.metadata as { labels?: object }).labels).toEqual(selector.matchLabels);
    const ports = service.spec.ports as { name: string }[];
    expect(ports.map(({ name }) => name)).toContain(endpoints[0].port);
  });

  test('autoscale: the number is KEDA’s, from a series that the server has', () => {
    expect(find(all.autoscale!, 'Deployment', 'downpour-worker')).not.toHaveProperty('replicas');
    const { scaleTargetRef, triggers } = find(
      all.autoscale!,
      'ScaledObject',
      'downpour-worker',
    ) as {
      scaleTargetRef: { name: string };
      triggers: [{ metadata: { query: string } }];
    };
    expect(scaleTargetRef.name).toBe('downpour-worker');
    const documented = readFileSync(join(ROOT, 'docs/operations.md'), 'utf8');
    for (const [name] of triggers[0].metadata.query.matchAll(/downpour_\w+/g)) {
      expect(documented).toContain(`| \`${name}\` |`);
    }
  });

  test('standby: two servers that are alike, apart, each with its claim, and all know both', () => {
    const built = builtOf('gpu', 'monitoring', 'standby', 'data');
    const servers = ['downpour-server', 'downpour-standby'] as const;
    const [first, second] = servers.map((name) => podOf(built, name)) as [PodSpec, PodSpec];
    for (const [own, pod, peer] of [
      [servers[0], first, servers[1]],
      [servers[1], second, servers[0]],
    ] as const) {
      const { args } = pod.containers[0];
      const after = (option: string) => args[args.indexOf(option) + 1];
      expect(after('--peer')).toBe(`http://${peer}:7420`);
      expect(after('--advertise')).toBe(own);
      expect(find(built, 'Service', own).ports).toMatchObject([{ port: 7420 }]);
      const [{ topologyKey, labelSelector }] = (
        pod as unknown as {
          affinity: {
            podAntiAffinity: {
              requiredDuringSchedulingIgnoredDuringExecution: [
                { topologyKey: string; labelSelector: object },
              ];
            };
          };
        }
      ).affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution;
      expect(topologyKey).toBe('kubernetes.io/hostname');
      expect(labelSelector).toEqual(
        (find(built, 'Deployment', peer) as { selector: object }).selector,
      );
    }
    // Else they are the same.
    const same = (pod: PodSpec) => {
      // A patch puts what it changes to the front.
      const [{ env, ...container }] = pod.containers;
      const sorted = env.toSorted((one, other) => (one.name < other.name ? -1 : 1));
      const text = JSON.stringify({ ...pod, affinity: null, containers: [container, sorted] });
      return text
        .replaceAll(/downpour-(server|standby)(?=["-])/g, 'it')
        .replace('it-state', 'downpour-state')
        .replaceAll(/http:\/\/downpour-(server|standby):7420"(?=,"--advertise)/g, 'peer"');
    };
    expect(same(second)).toBe(same(first));
    for (const pod of [
      first,
      second,
      podOf(built, 'downpour-worker'),
      podOf(built, 'downpour-worker-gpu'),
    ]) {
      expect(variable(pod, 'DOWNPOUR_SERVER')).toMatch(
        /^(http|ws):\/\/downpour-server:7420,(http|ws):\/\/downpour-standby:7420$/,
      );
    }
    expect(JSON.stringify(find(built, 'NetworkPolicy', 'downpour-redis').ingress)).toContain(
      '"standby"',
    );
    for (const name of ['downpour-server', 'downpour-monitoring']) {
      expect(JSON.stringify(find(built, 'NetworkPolicy', name).podSelector)).toContain('"standby"');
    }
  });

  test('shards: the server waits for as many as there are, and they reach Redis', () => {
    const built = all.shards!;
    const { args } = podOf(built, 'downpour-server').containers[0];
    const { replicas } = find(built, 'Deployment', 'downpour-shard') as { replicas: number };
    expect(args).toEqual(['serve', '--shards', String(replicas + 1), '--shards-elsewhere']);
    expect(JSON.stringify(find(built, 'NetworkPolicy', 'downpour-redis').ingress)).toContain(
      '"shard"',
    );
  });
});
