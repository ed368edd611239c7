import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { createProgram } from '../../cli/main.ts';
import { sourceOf } from '../../scripts/engine-source.ts';
import { ENGINES } from '../../worker/engine.ts';
import {
  isIgnored,
  MANIFESTS,
  type Mount,
  type PodSpec,
  ROOT,
  readCompose,
  readDockerfile,
  readManifests,
  type Service,
  stepsOf,
  whyNotRestricted,
} from '../support/deployment.ts';

// What docker-compose.yml, the Dockerfile, the manifests and docs/cluster.md say, compared with what
// the program takes and with each other. The images' commands run in test/system/cluster.test.ts.

const program = createProgram({ exitCode: 0 });

/** @throws what the program would say of a command line, without running it. */
function check(words: readonly string[]): void {
  let command: Command = program;
  let rest = [...words];
  for (;;) {
    const next = command.commands.find((each) => each.name() === rest[0]);
    if (next === undefined) break;
    command = next;
    rest = rest.slice(1);
  }
  if (command.commands.length > 0) throw new Error(`unknown command: ${words.join(' ')}`);
  const options = createProgram({ exitCode: 0 });
  // Commander itself parses and counts; only the action is left out.
  let twin: Command = options;
  for (const name of words.slice(0, words.length - rest.length)) {
    twin = twin.commands.find((each) => each.name() === name)!;
  }
  twin
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
    .action(() => {});
  twin.parse([...rest], { from: 'user' });
}

/** Every variable that an option reads, and those that are read elsewhere. */
const variables = new Set([
  ...everyCommand(program).flatMap(({ options }) => options.flatMap(({ envVar }) => envVar ?? [])),
  'DOWNPOUR_ENGINE_DIR',
  'DOWNPOUR_ACCEPT_EXPERIMENTS',
  'DOWNPOUR_BUNDLE_DIR',
]);

function everyCommand(command: Command): Command[] {
  return [command, ...command.commands.flatMap(everyCommand)];
}

/** A program of Node, to its end. */
const run = (first: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) =>
  spawnSync(process.execPath, [first, ...args], { encoding: 'utf8', env, timeout: 60_000 });

/** What a source imports of the project, at once or later, or names by a place beside its own. */
function importsOf(file: string): string[] {
  const source = readFileSync(file, 'utf8').replaceAll(/^\s*(?:\/\/|\*).*$/gm, '');
  const named = /(?:^|\s)(?:from|import|import\(|new URL\()\s*'(\.[^']+)'/gm;
  return [...source.matchAll(named)].map(([, target]) => target!);
}

const ours = (names: readonly string[]) => names.filter((name) => name.startsWith('DOWNPOUR_'));

describe('docker-compose.yml', () => {
  const compose = readCompose({ DOWNPOUR_TOKEN: 'secret' });
  const { redis, server, worker, 'worker-gpu': gpu } = compose.services as Record<string, Service>;
  const downpour = [server!, worker!, gpu!];

  test('without a token it says what to do', () => {
    expect(() => readCompose({})).toThrow(/DOWNPOUR_TOKEN.*set it to a secret/);
    expect(() => readCompose({ DOWNPOUR_TOKEN: '' })).toThrow(/openssl rand/);
  });

  test('its commands and variables are those that the program has', () => {
    for (const { command, environment } of downpour) {
      expect(() => check(command)).not.toThrow();
      for (const name of ours(Object.keys(environment!))) expect(variables).toContain(name);
      expect(environment!.DOWNPOUR_TOKEN).toBe('secret');
    }
    expect(ENGINES).toContain(gpu!.environment!.DOWNPOUR_ENGINE);
    expect(variables).toContain('DOWNPOUR_REDIS_URL');
    expect(() => check(['serve', '--colour'])).toThrow(/unknown option/);
  });

  test('workers have their own token where there is one, and the others are the server’s', () => {
    const tokens = { DOWNPOUR_WORKER_TOKEN: 'w', DOWNPOUR_OBSERVER_TOKEN: 'o' };
    const { services } = readCompose({ DOWNPOUR_TOKEN: 'secret', ...tokens });
    expect(services.server!.environment).toMatchObject({ DOWNPOUR_TOKEN: 'secret', ...tokens });
    for (const name of ['worker', 'worker-gpu']) {
      expect(services[name]!.environment!.DOWNPOUR_TOKEN).toBe('w');
      expect(JSON.stringify(services[name])).not.toContain('secret');
    }
  });

  test('services wait for those that they need to be healthy', () => {
    for (const service of Object.values(compose.services)) {
      for (const [name, { condition }] of Object.entries(service.depends_on ?? {})) {
        expect(condition).toBe('service_healthy');
        expect(compose.services[name]!.healthcheck).toBeDefined();
      }
      expect(service.restart).toBe('unless-stopped');
      expect(service.stop_grace_period).toMatch(/^\d+[sm]$/);
      expect(service.logging!.options).toHaveProperty('max-size');
    }
    expect(Object.keys(server!.depends_on!)).toEqual(['redis']);
    expect(Object.keys(worker!.depends_on!)).toEqual(['server']);
  });

  test('addresses name services and the ports that they listen on', () => {
    expect(new URL(server!.environment!.DOWNPOUR_REDIS_URL!).hostname in compose.services).toBe(
      true,
    );
    const { hostname, port } = new URL(worker!.environment!.DOWNPOUR_SERVER!);
    expect([hostname, port]).toEqual(['server', server!.environment!.DOWNPOUR_PORT]);
    expect(server!.ports).toEqual([`127.0.0.1:7420:${port}`]);
    expect(server!.healthcheck!.test.join(' ')).toContain(`127.0.0.1:${port}/health`);
  });

  test('workers can be many: nothing of them is fixed to one container', () => {
    for (const service of [worker!, gpu!]) {
      for (const key of ['container_name', 'hostname', 'ports', 'network_mode']) {
        expect(service).not.toHaveProperty(key);
      }
      expect(service.command).not.toContain('--name');
    }
  });

  test('Redis is reached by the server alone, and what must survive lies in volumes', () => {
    expect(compose.networks.state!.internal).toBe(true);
    expect(redis!.networks).toEqual(['state']);
    expect(server!.networks).toContain('state');
    expect(worker!.networks ?? []).not.toContain('state');
    expect(redis!.ports).toBeUndefined();
    expect(redis!.volumes).toContain('redis:/data');
    expect(server!.volumes).toContain(`state:${server!.environment!.DOWNPOUR_STATE}`);
    for (const { volumes } of downpour) {
      const folders = volumes!.filter((volume): volume is Mount => typeof volume !== 'string');
      expect(folders.map(({ target }) => target)).toEqual(['/data', '/app/experiments']);
      expect(folders.every((folder) => folder.read_only)).toBe(true);
    }
    const elsewhere = readCompose({ DOWNPOUR_TOKEN: 's', DOWNPOUR_DATA: '/srv/data' });
    expect(elsewhere.services.worker!.volumes![0]).toMatchObject({ source: '/srv/data' });
  });

  test('the GPU worker is in its own profile, on its own image, with a device reserved', () => {
    expect(gpu!.profiles).toEqual(['gpu']);
    expect(gpu!.build!.target).toBe('gpu');
    expect(gpu).toMatchObject({
      command: ['work', '--gpus', 'all'],
      deploy: {
        resources: { reservations: { devices: [{ count: 'all', capabilities: ['gpu'] }] } },
      },
    });
    for (const { build, image } of downpour) {
      expect(existsSync(join(ROOT, build!.dockerfile))).toBe(true);
      expect(image).toBe(`downpour:${build!.target}`);
      expect(readDockerfile().map(({ name }) => name)).toContain(build!.target);
    }
  });
});

describe('compose.worker.yml', () => {
  const env = { DOWNPOUR_TOKEN: 'secret', DOWNPOUR_SERVER: 'ws://192.0.2.10:7420' };
  const file = 'compose.worker.yml';

  test('without a server or a token it says what to do', () => {
    expect(() => readCompose({ ...env, DOWNPOUR_SERVER: '' }, file)).toThrow(/ws:\/\/192/);
    expect(() => readCompose({ ...env, DOWNPOUR_TOKEN: '' }, file)).toThrow(/or a worker's/);
  });

  test('its workers are those of docker-compose.yml, with a server elsewhere', () => {
    const there = readCompose(env).services;
    for (const [name, service] of Object.entries(readCompose(env, file).services)) {
      const { depends_on, ...same } = there[name]!;
      const environment = { ...same.environment, DOWNPOUR_SERVER: env.DOWNPOUR_SERVER };
      expect(service).toEqual({ ...same, environment });
    }
  });
});

describe('the images', () => {
  test.each(['cpu', 'gpu'])('%s: not root, signals passed on, its own engine', (target) => {
    const steps = stepsOf(target);
    const last = (word: string) => steps.findLast((step) => step.word === word)?.rest;
    expect(last('USER')).toBe('1000:1000');
    expect(last('ENTRYPOINT')).toBe('["tini", "--", "downpour"]');
    expect(steps).toContainEqual({
      word: 'COPY',
      rest: `--from=engine-${target} /opt/downpour/engines /opt/downpour/engines`,
    });
    const gpu = target === 'gpu' ? ' --gpu' : '';
    expect(stepsOf(`engine-${target}`).at(-1)!.rest).toBe(`node scripts/engine-install.js${gpu}`);
    for (const { rest } of steps.filter(({ word }) => word === 'ENV')) {
      const names = [...rest.matchAll(/(\w+)=/g)].map(([, name]) => name!);
      for (const name of ours(names)) expect(variables).toContain(name);
    }
  });

  test('a build without --target makes the image for processors', () => {
    expect(readDockerfile().at(-1)!.name).toBe('cpu');
  });

  test('an engine is built from all that its program imports, at once or later', () => {
    const copied = stepsOf('build').flatMap(({ word, rest }) => (word === 'COPY' ? [rest] : []));
    expect(copied).toContain('--from=engine-source /engine .');
    const [script, to] = stepsOf('engine-source').at(-1)!.rest.split(' ').slice(-2);
    expect(to).toBe('/engine');
    const folder = mkdtempSync(join(tmpdir(), 'downpour-engine-source-'));
    try {
      const { status, stderr } = run('--import', ['tsx', join(ROOT, script!), folder]);
      expect(status, stderr).toBe(0);
      const files = readdirSync(folder, { recursive: true, encoding: 'utf8' });
      const sources = files.filter((file) => /\.[jt]s$/.test(file));
      const targets = sources.flatMap((file) =>
        [...importsOf(join(ROOT, file))].map((target) => join(file, '..', target)),
      );
      // A folder's own address is no file: `new URL('../', …)`.
      const missing = targets.filter((target) => !target.endsWith('/') && !files.includes(target));
      expect(targets.length).toBeGreaterThan(20);
      expect(missing).toEqual([]);
      // Without any program on its path it loads all of itself, and says what it lacks.
      symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
      const install = run(join(folder, 'scripts/engine-install.js'), [], {
        PATH: '',
        HOME: folder,
      });
      expect(install.stderr).toMatch(
        /^error DP_ENGINE_INSTALL: .* needs python3, pip, g\+\+, make/,
      );
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test('all that the program imports, at once or later, is in the image', async () => {
    const files = await sourceOf('bin/downpour.js');
    expect(files).toEqual(
      expect.arrayContaining(['wire/tls.ts', 'cli/runs/train.ts', 'study/search.ts']),
    );
    expect(files.filter((file) => isIgnored(file.split('/')[0]!))).toEqual([]);
  });

  test('nothing secret, large or of this machine gets into an image', () => {
    const never = ['.env', 'secrets', 'certs', '.git', 'node_modules', 'data', '.downpour', 'test'];
    expect(never.filter((name) => !isIgnored(name))).toEqual([]);
    const needed = [
      'bin',
      'cli',
      'files',
      'server',
      'shared',
      'worker',
      'examples',
      'package.json',
    ];
    expect(needed.filter(isIgnored)).toEqual([]);
  });
});

describe('the manifests of Kubernetes', () => {
  const manifests = readManifests();
  const find = (kind: string, name: string) =>
    manifests.find((each) => each.kind === kind && each.metadata.name === name)!;
  const podOf = (name: string, kind = 'Deployment') => {
    const { template } = find(kind, name).spec as {
      template: {
        metadata: { labels: object };
        spec: PodSpec;
      };
    };
    return template;
  };
  const deployments = ['downpour-server', 'downpour-worker', 'downpour-worker-gpu'];

  test('go into any namespace, and every selector finds its pods', () => {
    for (const { metadata, spec } of manifests) {
      expect(metadata.namespace).toBeUndefined();
      const { selector, template } = spec as {
        selector?: { matchLabels: object };
        template?: { metadata: { labels: object } };
      };
      if (template) expect(template.metadata.labels).toEqual(selector!.matchLabels);
    }
    expect(find('Service', 'downpour-server').spec.selector).toEqual(
      podOf('downpour-server').metadata.labels,
    );
    expect(find('Service', 'downpour-redis').spec.selector).toEqual(
      podOf('downpour-redis', 'StatefulSet').metadata.labels,
    );
  });

  test.each(deployments)('%s: command, variables, volumes and image exist', (name) => {
    const { spec } = podOf(name);
    const [container] = spec.containers;
    expect(() => check(container.args)).not.toThrow();
    const names = container.env.map((variable) => variable.name);
    for (const variable of ours(names)) expect(variables).toContain(variable);
    const secret = container.volumeMounts.find((mount) => mount.name === 'secret')!.mountPath;
    const { secret: mounted } = spec.volumes!.find(
      (volume) => volume.name === 'secret',
    ) as unknown as {
      secret: { secretName: string; items: { key: string; path: string }[] };
    };
    expect(mounted.secretName).toBe('downpour');
    const roles = name === 'downpour-server' ? ['operator', 'worker', 'observer'] : ['worker'];
    expect(mounted.items).toEqual(roles.map((role) => ({ key: role, path: role })));
    const given = (variable: string) => container.env.find((each) => each.name === variable)?.value;
    expect(given('DOWNPOUR_TOKEN_FILE')).toBe(`${secret}/${roles[0]}`);
    expect(given('DOWNPOUR_TOKENS')).toBe(roles.length > 1 ? secret : undefined);
    expect(['downpour-cpu', 'downpour-gpu']).toContain(container.image);
    const volumes = spec.volumes!.map((volume) => volume.name);
    expect(container.volumeMounts.map((mount) => mount.name).sort()).toEqual(volumes.sort());
    expect(spec).toMatchObject({
      enableServiceLinks: false,
      automountServiceAccountToken: false,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
    });
    for (const { value, valueFrom } of container.env) {
      expect(value === undefined).toBe(valueFrom !== undefined);
      if (valueFrom) expect(valueFrom.secretKeyRef.name).toBe('downpour');
      const reference = /\$\((\w+)\)/.exec(value ?? '')?.[1];
      // Kubernetes fills in only what stands above.
      if (reference) expect(names.indexOf(reference)).toBeGreaterThanOrEqual(0);
    }
  });

  test.each([
    ...deployments.map((name) => [name, 'Deployment'] as const),
    ['downpour-redis', 'StatefulSet'] as const,
  ])('%s fits Pod Security level restricted', (name, kind) => {
    const { spec } = podOf(name, kind);
    expect(whyNotRestricted(spec)).toEqual([]);
    const root = { ...spec.securityContext, runAsUser: 0, runAsNonRoot: false };
    const volumes = [{ name: 'host', hostPath: { path: '/' } }];
    expect(whyNotRestricted({ ...spec, securityContext: root, volumes, hostPID: true })).toEqual([
      'runAsNonRoot',
      'runAsUser',
      'hostPID',
      'volume host',
    ]);
  });

  test('the server has the memory that docs/operations.md asks for', () => {
    const text = readFileSync(join(ROOT, 'docs/operations.md'), 'utf8');
    const [, base, factor] = /Plan\s(\d+)\sMB,\s[\s\S]*? or (\d+)\s\(Adam\swith\sEMA\)/.exec(text)!;
    const manifest = readFileSync(join(MANIFESTS, 'base/server.yaml'), 'utf8');
    const stated = /# (\d+) MB, and (\d+) times .* (\d+) million parameters in all runs/.exec(
      manifest,
    );
    const [, ownBase, ownFactor, millions] = stated!;
    expect([ownBase, ownFactor]).toEqual([base, factor]);
    const { memory } = podOf('downpour-server').spec.containers[0].resources.limits;
    const needed = Number(base) * 1e6 + Number(factor) * 4 * Number(millions) * 1e6;
    const bytes = Number(/^(\d+)Gi$/.exec(memory!)![1]) * 2 ** 30;
    expect(bytes).toBeGreaterThanOrEqual(needed);
    expect(bytes).toBeLessThan(1.05 * needed);
  });

  test('addresses name services and their ports', () => {
    const urls = deployments
      .flatMap((name) => podOf(name).spec.containers[0].env)
      .flatMap(({ value }) => (value?.includes('://downpour') || value?.includes('@') ? value : []))
      .map((value) => new URL(value.replace('$(REDIS_PASSWORD)', 'p')));
    expect(urls.length).toBe(3);
    for (const { hostname, port } of urls) {
      const { ports } = find('Service', hostname).spec as { ports: [{ port: number }] };
      expect(String(ports[0].port)).toBe(port);
    }
    const [container] = podOf('downpour-server').spec.containers;
    expect(container.ports![0]!.containerPort).toBe(7420);
    for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
      expect(container[probe]).toMatchObject({ httpGet: { path: '/health', port: 'http' } });
    }
  });

  test('Redis is reached by the server alone, the server by ours, and workers by nobody', () => {
    const labelsOf = (name: string, kind?: string) => podOf(name, kind).metadata.labels;
    const policy = (name: string) => find('NetworkPolicy', name).spec;
    const portOf = (name: string, kind?: string) =>
      podOf(name, kind).spec.containers[0].ports![0]!.name;
    const from = (matchLabels: object, port: string) => ({
      policyTypes: ['Ingress'],
      ingress: [{ from: [{ podSelector: { matchLabels } }], ports: [{ port }] }],
    });
    expect(policy('downpour-redis')).toEqual({
      podSelector: { matchLabels: labelsOf('downpour-redis', 'StatefulSet') },
      ...from(labelsOf('downpour-server'), portOf('downpour-redis', 'StatefulSet')),
    });
    expect(policy('downpour-server')).toEqual({
      podSelector: { matchLabels: labelsOf('downpour-server') },
      ...from({ 'app.kubernetes.io/name': 'downpour' }, portOf('downpour-server')),
    });
    const { podSelector, ...nobody } = policy('downpour-worker') as {
      podSelector: { matchExpressions: [{ values: string[] }] };
    };
    expect(nobody).toEqual({ policyTypes: ['Ingress'] });
    const components = ['downpour-worker', 'downpour-worker-gpu'].map(
      (name) => (labelsOf(name) as Record<string, string>)['app.kubernetes.io/component'],
    );
    expect(podSelector.matchExpressions[0].values).toEqual(components);
  });

  test('there is one server at a time, with its state in a claim', () => {
    const { spec } = find('Deployment', 'downpour-server');
    expect(spec).toMatchObject({ replicas: 1, strategy: { type: 'Recreate' } });
    expect(podOf('downpour-server').spec.volumes).toContainEqual({
      name: 'state',
      persistentVolumeClaim: { claimName: 'downpour-state' },
    });
    expect(find('PersistentVolumeClaim', 'downpour-state')).toBeDefined();
    expect(podOf('downpour-worker-gpu').spec.containers[0]).toMatchObject({
      resources: { limits: { 'nvidia.com/gpu': 1 } },
    });
  });

  test('server and workers have the same data and experiments', () => {
    const shared = (name: string) =>
      podOf(name).spec.volumes!.filter((volume) => ['data', 'experiments'].includes(volume.name));
    expect(shared('downpour-worker')).toEqual(shared('downpour-server'));
    expect(shared('downpour-worker-gpu')).toEqual(shared('downpour-server'));
  });
});

describe('docs/cluster.md', () => {
  const text = readFileSync(join(ROOT, 'docs/cluster.md'), 'utf8');
  const lines = [...text.matchAll(/```sh\n([\s\S]*?)```/g)]
    .flatMap(([, block]) => block!.replaceAll(/\\\n\s*/g, '').split('\n'))
    .map((line) => line.replace(/\s+#.*$/, '').trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  const all = { DOWNPOUR_TOKEN: 'secret', DOWNPOUR_SERVER: 'ws://server:7420' };
  const compose = readCompose(all);
  const names = new Set(readManifests().map(({ metadata }) => metadata.name));

  test('has commands of Downpour, of compose and of Kubernetes', () => {
    expect(lines.length).toBeGreaterThan(20);
  });

  test.each(lines)('%s', (line) => {
    const words = line
      .split(' ')
      .filter((_word, i, all) => !all.slice(0, i + 1).every((each) => /^\w+=/.test(each)));
    for (const [name] of line.matchAll(/DOWNPOUR_\w+/g)) {
      const known = ['DOWNPOUR_EXPERIMENTS', 'DOWNPOUR_PUBLISH', 'DOWNPOUR_THREADS'];
      expect([...variables, ...known]).toContain(name);
    }
    if (line.startsWith('export ')) return;
    const at = words.indexOf('downpour');
    const isProgram = at === 0 || ['npx', 'exec', '--', 'server'].includes(words[at - 1] ?? '');
    if (at >= 0 && isProgram) {
      const command = words.slice(at + 1);
      expect(() => check(command)).not.toThrow();
      const file = command.find((word) => word.startsWith('examples/'));
      if (file) expect(existsSync(join(ROOT, file))).toBe(true);
    }
    if (line.startsWith('docker compose')) {
      const file = /-f (\S+)/.exec(line)?.[1];
      if (file) words.splice(2, 2);
      const services = Object.keys((file ? readCompose(all, file) : compose).services);
      for (const [, service] of line.matchAll(/--scale ([\w-]+)=/g)) {
        expect(services).toContain(service);
      }
      if (words[2] === 'exec') expect(services).toContain(words[3]);
      if (words[2] === 'logs') expect(services).toContain(words.at(-1));
    } else if (words[0] === 'docker') {
      const target = /--target (\w+)/.exec(line)?.[1];
      if (target) expect(readDockerfile().map(({ name }) => name)).toContain(target);
    } else if (words[0] === 'kubectl') {
      for (const [, name] of line.matchAll(/(?:deploy(?:ment)?[/ ])([\w-]+)/g)) {
        if (!['kubernetes'].includes(name!)) expect(names).toContain(name);
      }
      const folder = /-k (\S+)/.exec(line)?.[1];
      if (folder) expect(existsSync(join(ROOT, folder, 'kustomization.yaml'))).toBe(true);
    } else {
      const known = ['downpour', 'npx', 'npm', 'git', 'rsync', 'curl', 'mkdir', 'openssl'];
      expect(known).toContain(words[0]);
    }
  });

  test('names every variable that the files of Compose read', () => {
    const source = readdirSync(ROOT)
      .filter((file) => /compose.*\.yml$/.test(file))
      .map((file) => readFileSync(join(ROOT, file), 'utf8'))
      .join('');
    const read = new Set([...source.matchAll(/\$\{(\w+)/g)].map(([, name]) => name!));
    expect([...read].filter((name) => !text.includes(`\`${name}\``))).toEqual([]);
    expect(readdirSync(MANIFESTS).filter((name) => !text.includes(`\`${name}\``))).toEqual([
      'example',
    ]);
  });
});
