import { Resolver } from 'node:dns/promises';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../containers/shell.ts';
import { ip } from '../support/addresses.ts';
import { type Program, startProgram } from '../support/program.ts';
import { type ApiServer, startApiServer } from './api-server.ts';
import { programAt } from './programs.ts';

// A cluster with one node: all that is Kubernetes, containerd and CoreDNS, in the namespaces of `inside.sh`, where the
// network, the processes, the mounts and /var are this cluster's own and go with it.

/** The address of the node in the network of this cluster; one of RFC 5737. */
export const NODE_ADDRESS = '198.51.100.10';
export const NODE = 'node-1';
const PODS = '10.244.0.0/24';
/** Where Debian puts the plugins of containernetworking-plugins. */
const CNI_PROGRAMS = '/usr/lib/cni';
export const PAUSE_IMAGE = 'downpour.invalid/pause:3.10';

export interface Cluster {
  readonly api: ApiServer;
  /** Loads the images of a file that `docker save` wrote. */
  load(file: string): Promise<void>;
  stop(): Promise<void>;
}

/** @param log gets a line for each part that is there. */
export async function startCluster(folder: string, log: (line: string) => void): Promise<Cluster> {
  prepareNetwork();
  const running: Pick<Program, 'stop'>[] = [];
  const stop = async () => {
    for (const each of running.reverse()) await each.stop();
  };
  try {
    return await startAll(folder, running, stop, log);
  } catch (error) {
    await stop();
    throw error;
  }
}

/** One address of the node, by which pods reach it, and a way out that leads nowhere. */
function prepareNetwork(): void {
  ip('link', 'set', 'lo', 'up');
  ip('link', 'add', 'node', 'type', 'bridge');
  ip('address', 'add', `${NODE_ADDRESS}/24`, 'dev', 'node');
  ip('link', 'set', 'node', 'up');
  ip('route', 'add', 'default', 'dev', 'node');
  writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
}

async function startAll(
  folder: string,
  running: Pick<Program, 'stop'>[],
  stop: () => Promise<void>,
  log: (line: string) => void,
): Promise<Cluster> {
  const began = performance.now();
  const tell = (what: string) =>
    log(`${what} after ${((performance.now() - began) / 1000).toFixed(1)} s`);
  const api = await startApiServer({
    folder,
    hosts: [NODE_ADDRESS],
    more: ({ ca, cert, key }) => [
      // Who may run programs in pods: the user by which the kubelet knows this certificate.
      ...['--kubelet-client-certificate', cert, '--kubelet-client-key', key],
      ...['--kubelet-certificate-authority', ca, '--allow-privileged'],
      // The name of a node is nothing that this machine could look up.
      ...['--kubelet-preferred-address-types', 'InternalIP'],
    ],
  });
  running.push(api);
  tell('the API server is ready');
  await api.apply(
    {
      apiVersion: 'rbac.authorization.k8s.io/v1',
      kind: 'ClusterRoleBinding',
      metadata: { name: 'api-server-to-kubelet' },
      roleRef: {
        apiGroup: 'rbac.authorization.k8s.io',
        kind: 'ClusterRole',
        name: 'system:kubelet-api-admin',
      },
      subjects: [{ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name: 'apiserver' }],
    },
    '',
  );
  const { kubeconfig } = api;
  const start = (name: Parameters<typeof programAt>[0], args: readonly string[]) => {
    const program = startProgram({ folder, name, file: programAt(name), args });
    running.push(program);
    return program;
  };
  const isReady = (url: string) => async () => (await fetch(url)).ok;

  const socket = join(folder, 'containerd.sock');
  const containerd = startProgram({
    ...{ folder, name: 'containerd', file: 'containerd' },
    args: ['--config', writeContainerd(folder, socket)],
  });
  running.push(containerd);
  const ctr = ['ctr', '--address', socket, '--namespace', 'k8s.io'];
  await containerd.until('answers', async () => (await run([...ctr, 'version'])) !== '');
  tell('containerd answers');

  start('kube-controller-manager', [
    ...['--kubeconfig', kubeconfig, '--leader-elect=false', '--bind-address', '127.0.0.1'],
    ...['--service-account-private-key-file', api.key, '--root-ca-file', api.ca],
  ]);
  start('kube-scheduler', [
    ...['--kubeconfig', kubeconfig, '--leader-elect=false', '--bind-address', '127.0.0.1'],
  ]);
  const dns = start('coredns', ['-conf', writeDns(folder, kubeconfig)]);
  const proxy = start('kube-proxy', [
    ...['--kubeconfig', kubeconfig, '--hostname-override', NODE, '--cluster-cidr', PODS],
    // What is the machine's, and not this network's, stays as it is.
    ...['--conntrack-max-per-core', '0', '--conntrack-tcp-timeout-established', '0'],
    ...['--conntrack-tcp-timeout-close-wait', '0', '--bind-address', '127.0.0.1'],
  ]);
  const kubelet = start('kubelet', [
    ...['--kubeconfig', kubeconfig, '--config', writeKubelet(folder, socket, api)],
    ...['--hostname-override', NODE, '--node-ip', NODE_ADDRESS],
  ]);
  await kubelet.until('is healthy', isReady('http://127.0.0.1:10248/healthz'));
  await kubelet.until('has a node that is ready', async () => {
    const { body } = await api.ask('GET', `/api/v1/nodes/${NODE}`);
    const { conditions } = body.status as { conditions: { type: string; status: string }[] };
    return conditions.some(({ type, status }) => type === 'Ready' && status === 'True');
  });
  tell('the node is ready');
  await proxy.until('is healthy', isReady('http://127.0.0.1:10256/healthz'));
  const resolver = new Resolver({ timeout: 2000 });
  resolver.setServers([NODE_ADDRESS]);
  await dns.until('knows the services', async () => {
    return (await resolver.resolve4('kubernetes.default.svc.cluster.local')).length > 0;
  });
  tell('names are known');
  return {
    api,
    async load(file) {
      await run([...ctr, 'images', 'import', '--no-unpack=false', file], { timeoutMs: 300_000 });
    },
    stop,
  };
}

function writeContainerd(folder: string, socket: string): string {
  const cni = join(folder, 'cni');
  mkdirSync(cni);
  // Each pod has a wire to the node, so that what goes from pod to pod passes its rules as well.
  const network = {
    cniVersion: '1.0.0',
    name: 'pods',
    plugins: [
      {
        type: 'ptp',
        ipam: {
          type: 'host-local',
          dataDir: join(folder, 'addresses'),
          ranges: [[{ subnet: PODS }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
    ],
  };
  writeFileSync(join(cni, 'pods.conflist'), JSON.stringify(network));
  const file = join(folder, 'containerd.toml');
  const cri = '[plugins."io.containerd.grpc.v1.cri"';
  const lines = [
    'version = 2',
    `root = "${folder}/containerd"`,
    `state = "${folder}/containerd-state"`,
    '[grpc]',
    `address = "${socket}"`,
    `${cri}]`,
    `sandbox_image = "${PAUSE_IMAGE}"`,
    // Without the right to lower it, no container would start.
    'restrict_oom_score_adj = true',
    'netns_mounts_under_state_dir = true',
    `${cri}.cni]`,
    `bin_dir = "${CNI_PROGRAMS}"`,
    `conf_dir = "${cni}"`,
  ];
  writeFileSync(file, `${lines.join('\n')}\n`);
  return file;
}

function writeDns(folder: string, kubeconfig: string): string {
  const file = join(folder, 'Corefile');
  const lines = [
    'cluster.local:53 {',
    '  errors',
    '  kubernetes cluster.local {',
    `    kubeconfig ${kubeconfig}`,
    '  }',
    '}',
  ];
  writeFileSync(file, `${lines.join('\n')}\n`);
  return file;
}

function writeKubelet(folder: string, socket: string, { ca, cert, key }: ApiServer): string {
  const file = join(folder, 'kubelet.json');
  const resolv = join(folder, 'resolv.conf');
  writeFileSync(resolv, '');
  const configuration = {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    authentication: { x509: { clientCAFile: ca }, webhook: { enabled: true } },
    authorization: { mode: 'Webhook' },
    tlsCertFile: cert,
    tlsPrivateKeyFile: key,
    containerRuntimeEndpoint: `unix://${socket}`,
    cgroupDriver: 'cgroupfs',
    clusterDomain: 'cluster.local',
    clusterDNS: [NODE_ADDRESS],
    resolvConf: resolv,
    failSwapOn: false,
    // Without the right to lower it, the kubelet would not start.
    oomScoreAdj: 0,
    // This machine's disk is no other node's concern.
    evictionHard: {
      'memory.available': '100Mi',
      'nodefs.available': '1%',
      'imagefs.available': '1%',
    },
    imageGCHighThresholdPercent: 100,
    // Both sides are short of time in a run that others share this machine with.
    nodeStatusUpdateFrequency: '5s',
  };
  writeFileSync(file, JSON.stringify(configuration));
  return file;
}
