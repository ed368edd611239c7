import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type ApiServer,
  etcdMissing,
  type KubeObject,
  startApiServer,
} from '../kubernetes/api-server.ts';
import { apiServerMissing, DEFINITIONS, VERSION } from '../kubernetes/programs.ts';
import { builtFrom, builtOf, COMPONENTS, lacksKustomize } from '../support/kustomize.ts';

// The manifests, built by Kustomize, given to a real API server of Kubernetes: it refuses every field that it does not
// know and every pod that Pod Security level `restricted` forbids, and defaults and checks the values of the rest.

/** What may be together in one cluster, beside each component alone. */
const TOGETHER = [
  ['gpu', 'monitoring', 'autoscale', 'standby', 'data'],
  ['gpu', 'monitoring', 'autoscale', 'shards', 'data', 'tls'],
] as const;
const WITH_PODS = ['Deployment', 'StatefulSet'];

/** The first pod of a Deployment or a StatefulSet, as their controllers make it. */
function podOf({ metadata, spec }: KubeObject): KubeObject {
  const { template, volumeClaimTemplates = [] } = spec as {
    template: { metadata: object; spec: { volumes?: object[] } };
    volumeClaimTemplates?: { metadata: { name: string } }[];
  };
  const { name, namespace } = metadata;
  const claimed = volumeClaimTemplates.map((each) => ({
    name: each.metadata.name,
    persistentVolumeClaim: { claimName: `${each.metadata.name}-${name}-0` },
  }));
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { ...template.metadata, name, ...(namespace && { namespace }) },
    spec: { ...template.spec, volumes: [...(template.spec.volumes ?? []), ...claimed] },
  };
}

const missing = lacksKustomize ? 'no Kustomize' : (apiServerMissing() ?? etcdMissing());

describe.skipIf(missing !== null && !process.env.CI)(
  `the API server of Kubernetes ${VERSION}${missing ? `: ${missing}` : ''}`,
  () => {
    let api: ApiServer;
    let count = 0;

    beforeAll(async () => {
      if (missing) throw new Error(missing);
      api = await startApiServer();
      for (const file of DEFINITIONS) await api.define(file);
    }, 300_000);
    afterAll(() => api?.stop());

    /** What the API server has against these objects, and then against their pods, each with its object's name. */
    async function faultsOf(objects: readonly KubeObject[], namespace: string): Promise<string[]> {
      const faults: string[] = [];
      const apply = async (object: KubeObject, query?: string) => {
        const { status, body, warnings } = await api.apply(object, namespace, query);
        const name = `${object.kind} ${object.metadata.name}`;
        if (status > 201) faults.push(`${name}: ${status} ${body.message}`);
        for (const warning of warnings) faults.push(`${name}: ${warning}`);
        return body;
      };
      for (const object of objects) {
        const { metadata } = await apply(object);
        if (object.kind === 'Namespace') await makeAccount(object.metadata.name);
        // What was applied once is as it was written: another apply finds nothing to change.
        const again = await apply(object, 'dryRun=All');
        const version = again.metadata?.resourceVersion;
        if (version !== metadata?.resourceVersion) faults.push(`${object.kind}: changes again`);
      }
      for (const object of objects.filter(({ kind }) => WITH_PODS.includes(kind))) {
        await apply(podOf(object), 'dryRun=All');
      }
      return faults;
    }

    /** A new namespace that takes what is `restricted` alone, and warns of all else. */
    async function namespace(): Promise<string> {
      const name = `namespace-${++count}`;
      const level = (mode: string) => [`pod-security.kubernetes.io/${mode}`, 'restricted'];
      const labels = Object.fromEntries(['enforce', 'warn', 'audit'].map(level));
      const metadata = { name, labels };
      expect(await faultsOf([{ apiVersion: 'v1', kind: 'Namespace', metadata }], '')).toEqual([]);
      return name;
    }

    /** As the controller does that is not here. */
    async function makeAccount(name: string): Promise<void> {
      const account = { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'default' } };
      expect((await api.apply(account, name)).status).toBeLessThan(202);
    }

    test('takes the base', async () => {
      const objects = builtFrom('base');
      expect(objects.length).toBeGreaterThan(8);
      expect(await faultsOf(objects, await namespace())).toEqual([]);
    });

    test('takes the example, with the namespace that it brings', async () => {
      const objects = builtFrom('example');
      expect(objects.map(({ kind }) => kind)).toEqual(
        expect.arrayContaining(['Namespace', 'ServiceMonitor', 'ScaledObject']),
      );
      expect(await faultsOf(objects, 'none')).toEqual([]);
    });

    test.each(COMPONENTS)('takes the component %s over the base that is there', async (name) => {
      const at = await namespace();
      expect(await faultsOf(builtFrom('base'), at)).toEqual([]);
      expect(await faultsOf(builtOf(name), at)).toEqual([]);
    });

    test.each(TOGETHER.map((names) => [names.join(', '), names] as const))(
      'takes %s together',
      async (_, names) => {
        expect(await faultsOf(builtOf(...names), await namespace())).toEqual([]);
      },
    );

    test('what is together covers every component', () => {
      expect([...new Set(TOGETHER.flat())].sort()).toEqual([...COMPONENTS].sort());
    });

    describe('refuses', () => {
      const objects = () => builtOf('monitoring', 'autoscale');
      /** The objects with one text of them changed. */
      const spoilt = (kind: string, from: string, to: string) =>
        objects()
          .filter((object) => object.kind === kind)
          .map((object) => {
            const text = JSON.stringify(object);
            expect(text).toContain(from);
            return JSON.parse(text.replace(from, to)) as KubeObject;
          });

      test.each([
        ['Deployment', '"runAsNonRoot"', '"runAsNonRot"', /runAsNonRot: field not declared/],
        ['Service', '"targetPort"', '"target"', /target: field not declared/],
        ['StatefulSet', '"1Gi"', '"1Gigs"', /quantities must match/],
        ['NetworkPolicy', '"Ingress"', '"Inwards"', /policyTypes.*Unsupported value/],
        ['PodDisruptionBudget', '"50%"', '"half"', /maxUnavailable/],
        ['ServiceMonitor', '"interval"', '"intervall"', /intervall: field not declared/],
        ['ScaledObject', '"triggers"', '"trigger"', /trigger: field not declared/],
      ])('%s with %s written %s', async (kind, from, to, why) => {
        const at = await namespace();
        expect((await faultsOf(spoilt(kind, from, to), at)).join('\n')).toMatch(why);
      });

      test.each([
        ['"runAsUser":1000', '"runAsUser":0', /runAsUser=0/],
        ['"runAsNonRoot":true,', '', /runAsNonRoot != true/],
        ['"RuntimeDefault"', '"Unconfined"', /seccompProfile/],
        [
          '"allowPrivilegeEscalation":false',
          '"allowPrivilegeEscalation":true',
          /allowPrivilegeEscalation/,
        ],
        ['"drop":["ALL"]', '"add":["NET_ADMIN"]', /unrestricted capabilities/],
        ['"emptyDir":{}', '"hostPath":{"path":"/"}', /restricted volume types/],
      ])('pods with %s as %s', async (from, to, why) => {
        const at = await namespace();
        const faults = await faultsOf(spoilt('Deployment', from, to), at);
        // The Deployment is taken with a warning; its pod would never be there.
        expect(faults).toContainEqual(expect.stringMatching(/^Pod .*: 403 .*violates PodSecurity/));
        expect(faults.join('\n')).toMatch(why);
      });
    });
  },
);
