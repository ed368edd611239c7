import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { errorText } from '../../shared/errors.ts';
import { startProgram } from '../support/program.ts';
import { attempt, run } from './shell.ts';

/** A real Docker engine and real Compose, on a machine that has Debian's packages and no registry of images. */

// Debian has dockerd and iptables where only root's path leads.
process.env.PATH = `${process.env.PATH}:/usr/sbin:/sbin`;

/** Kept from run to run: Compose, base images, layers of the images. */
export const CACHE = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'downpour');
/** Where an engine that is started here keeps images and containers. */
const DATA = join(CACHE, 'docker');
/** The Docker client finds Compose and BuildKit here, as its plugins. */
const CLIENT_CONFIG = join(CACHE, 'docker-client');
const PLUGINS = ['compose', 'buildx'] as const;
/** Debian 12 has no Compose of today: the packages of Debian 13 run there. */
const PLUGIN_SUITE = 'trixie';
/** Debian's keys, for all its releases. */
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const PLUGIN_FOLDER = 'usr/libexec/docker/cli-plugins';

/** Holds the number of the process that runs an engine of its own. */
const LOCK = join(tmpdir(), 'downpour-docker.lock');
/** Longer than a whole run takes. */
const LOCK_MS = 25 * 60_000;
const START_MS = 60_000;
const STOP_MS = 60_000;
/** Base images, the image for processors and what its build keeps take 5 GB. */
const GIGABYTES_NEEDED = 8;

export interface ContainerEngine {
  /** For `docker` and `docker compose`. */
  readonly env: NodeJS.ProcessEnv;
  /** True: started here, with images of its own, which nobody else sees. */
  readonly own: boolean;
  /** Removes all containers, and ends an engine that was started here. */
  stop(): Promise<void>;
}

/**
 * The environment in which `docker compose` and `docker buildx` work; fetches them where the client lacks them.
 * @throws Error that says what is missing and which package brings it.
 */
export async function clientEnvironment(log: (line: string) => void): Promise<NodeJS.ProcessEnv> {
  const has = async (env: NodeJS.ProcessEnv, plugin: string) =>
    (await attempt(['docker', plugin, 'version'], { env, timeoutMs: 20_000 })).code === 0;
  const hasAll = async (env: NodeJS.ProcessEnv) =>
    (await has(env, 'compose')) && (await has(env, 'buildx'));
  if ((await attempt(['docker', '--version'])).code !== 0) {
    throw new Error('there is no docker here: apt-get install -y docker.io');
  }
  if (await hasAll(process.env)) return process.env;
  const env = { ...process.env, DOCKER_CONFIG: CLIENT_CONFIG };
  if (await hasAll(env)) return env;
  log('fetching Compose and BuildKit');
  await fetchPlugins();
  for (const plugin of PLUGINS) {
    if (!(await has(env, plugin))) throw new Error(`docker ${plugin} does not work here`);
  }
  return env;
}

/** Takes them out of their packages: nothing is installed, and apt's own lists stay as they are. */
async function fetchPlugins(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-plugins-'));
  try {
    const format = '$(SITE) $(RELEASE) $(COMPONENT)';
    const targets = await run(['apt-get', 'indextargets', '--format', format]).catch(() => '');
    const site = /^(\S+\/debian) \S+ main$/m.exec(targets)?.[1];
    if (!site) {
      throw new Error(
        `docker has no plugins ${PLUGINS.join(' and ')} here, and only Debian's apt can bring them: install them`,
      );
    }
    const signed = existsSync(KEYRING) ? `[signed-by=${KEYRING}] ` : '';
    writeFileSync(join(folder, 'sources.list'), `deb ${signed}${site} ${PLUGIN_SUITE} main\n`);
    for (const each of ['lists/partial', 'cache/archives/partial']) {
      mkdirSync(join(folder, each), { recursive: true });
    }
    const apt = [
      ...['apt-get', '-qq', '-o', 'Acquire::http::Timeout=30', '-o', 'Acquire::Retries=2'],
      ...['-o', `Dir::Etc::sourcelist=${join(folder, 'sources.list')}`],
      ...['-o', 'Dir::Etc::sourceparts=-', '-o', `Dir::State::lists=${join(folder, 'lists')}`],
      ...['-o', `Dir::Cache=${join(folder, 'cache')}`, '-o', 'APT::Sandbox::User=root'],
    ];
    const options = { cwd: folder, timeoutMs: 180_000 };
    await run([...apt, 'update'], options);
    await run([...apt, 'download', ...PLUGINS.map((plugin) => `docker-${plugin}`)], options);
    mkdirSync(join(CLIENT_CONFIG, 'cli-plugins'), { recursive: true });
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.deb'))) {
      await run(['dpkg-deb', '-x', file, 'unpacked'], options);
    }
    for (const plugin of PLUGINS) {
      const name = `docker-${plugin}`;
      const from = join(folder, 'unpacked', PLUGIN_FOLDER, name);
      cpSync(from, join(CLIENT_CONFIG, 'cli-plugins', name));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * The engine that answers here, or one that is started: with its own socket and folders, and ended by its process.
 * @throws Error that says what is missing.
 */
export async function startEngine(log: (line: string) => void): Promise<ContainerEngine> {
  const client = await clientEnvironment(log);
  const { code } = await attempt(['docker', 'info'], { env: client, timeoutMs: 20_000 });
  if (code === 0) {
    log('a Docker engine is here');
    return { env: client, own: false, stop: async () => {} };
  }
  if (process.getuid?.() !== 0)
    throw new Error('no Docker engine answers, and only root starts one');
  const unlock = await lock(log);
  try {
    return await startOwn(client, unlock, log);
  } catch (error) {
    unlock();
    throw error;
  }
}

async function startOwn(
  client: NodeJS.ProcessEnv,
  unlock: () => void,
  log: (line: string) => void,
): Promise<ContainerEngine> {
  await endAbandoned(log);
  mkdirSync(DATA, { recursive: true });
  const { bavail, bsize } = statfsSync(DATA);
  const free = (bavail * bsize) / 1e9;
  if (free < GIGABYTES_NEEDED) {
    throw new Error(`${DATA} has ${free.toFixed(1)} GB free, ${GIGABYTES_NEEDED} are needed`);
  }
  const before = await readHost();
  const folder = mkdtempSync(join(tmpdir(), 'downpour-docker-'));
  const env = { ...client, DOCKER_HOST: `unix://${join(folder, 'socket')}` };
  const config = join(folder, 'daemon.json');
  const builder = { gc: { enabled: true, defaultKeepStorage: '8GB' } };
  writeFileSync(config, JSON.stringify({ builder, 'log-level': 'warn' }));
  const daemon = startProgram({
    ...{ folder, name: 'dockerd', file: 'dockerd', startMs: START_MS, stopMs: STOP_MS },
    args: [
      ...['--config-file', config, '--host', env.DOCKER_HOST, '--data-root', DATA],
      ...['--exec-root', join(folder, 'exec'), '--pidfile', join(folder, 'pid')],
    ],
    onKilled() {
      log(`the engine does not end: killed; its log is in ${folder}`);
      killQuietly(join(folder, 'exec/containerd/containerd.pid'));
    },
  });
  const stop = async () => {
    // Containers end before their engine.
    if (!daemon.hasEnded) await removeAll(env).catch((error: Error) => log(error.message));
    await daemon.stop();
    await restoreHost(before);
    rmSync(folder, { recursive: true, force: true });
    unlock();
  };
  const start = performance.now();
  try {
    const ask = () => attempt(['docker', 'info'], { env, timeoutMs: 20_000 });
    await daemon.until('answers', async () => (await ask()).code === 0);
  } catch (cause) {
    await stop();
    throw new Error(`no Docker engine can be started here: ${errorText(cause)}`, { cause });
  }
  log(`started a Docker engine in ${((performance.now() - start) / 1000).toFixed(1)} s`);
  // A run that was killed may have left some.
  await removeAll(env);
  return { env, own: true, stop };
}

/** Containers, networks and volumes; images stay. */
async function removeAll(env: NodeJS.ProcessEnv): Promise<void> {
  const containers = (await run(['docker', 'ps', '--all', '--quiet'], { env })).split('\n');
  const ids = containers.filter(Boolean);
  if (ids.length > 0) await run(['docker', 'rm', '--force', '--volumes', ...ids], { env });
  await run(['docker', 'network', 'prune', '--force'], { env });
  const volumes = (await run(['docker', 'volume', 'ls', '--quiet'], { env })).split('\n');
  const names = volumes.filter(Boolean);
  if (names.length > 0) await run(['docker', 'volume', 'rm', '--force', ...names], { env });
}

/** What an engine changes on its host, beside its folders. */
interface Host {
  readonly rules: string;
  readonly forwarding: string;
  readonly bridges: readonly string[];
}

const CHAINS = {
  filter: ['INPUT', 'FORWARD', 'OUTPUT'],
  nat: ['PREROUTING', 'INPUT', 'OUTPUT', 'POSTROUTING'],
};
const FORWARDING = '/proc/sys/net/ipv4/ip_forward';
const bridgesHere = () =>
  readdirSync('/sys/class/net').filter((name) => /^(docker0|br-[0-9a-f]{12})$/.test(name));

async function readHost(): Promise<Host> {
  return {
    rules: await run(['iptables-save']),
    forwarding: readFileSync(FORWARDING, 'utf8'),
    bridges: bridgesHere(),
  };
}

async function restoreHost({ rules, forwarding, bridges }: Host): Promise<void> {
  for (const name of bridgesHere().filter((bridge) => !bridges.includes(bridge))) {
    await attempt(['ip', 'link', 'delete', name]);
  }
  // A table that was not there had no rules.
  const empty = Object.entries(CHAINS).flatMap(([table, chains]) =>
    rules.includes(`*${table}\n`)
      ? []
      : [`*${table}`, ...chains.map((chain) => `:${chain} ACCEPT [0:0]`), 'COMMIT', ''],
  );
  await run(['iptables-restore'], { input: `${rules}${empty.join('\n')}` });
  if (readFileSync(FORWARDING, 'utf8') !== forwarding) writeFileSync(FORWARDING, forwarding);
}

function killQuietly(pidFile: string): void {
  try {
    process.kill(Number(readFileSync(pidFile, 'utf8')), 'SIGKILL');
  } catch {
    // It has ended.
  }
}

/**
 * One at a time has an engine of its own on this machine, whatever its folder: bridges and firewall rules are the
 * machine's, and are put back as they were. Waits for another one.
 * @returns what gives it up again.
 */
async function lock(log: (line: string) => void): Promise<() => void> {
  const start = performance.now();
  for (let told = false; ; ) {
    const holder = existsSync(LOCK) ? Number(readFileSync(LOCK, 'utf8')) : Number.NaN;
    // Another process may have got its number meanwhile.
    if (/test\/(containers|kubernetes)\/main\.ts/.test(commandOf(holder))) {
      if (performance.now() - start > LOCK_MS) {
        throw new Error(
          `process ${holder} runs an engine since more than ${LOCK_MS / 60_000} minutes`,
        );
      }
      if (!told) log(`waiting for process ${holder}, which runs an engine here`);
      told = true;
      await wait(500);
      continue;
    }
    rmSync(LOCK, { force: true });
    try {
      writeFileSync(LOCK, String(process.pid), { flag: 'wx' });
      // One that saw the same stale lock may remove ours for it.
      await wait(200);
      if (readFileSync(LOCK, 'utf8') === String(process.pid)) {
        return () => rmSync(LOCK, { force: true });
      }
    } catch {
      // Another one was quicker.
    }
  }
}

/** Ends the engine of a run that was killed, and could not do it. */
async function endAbandoned(log: (line: string) => void): Promise<void> {
  const isOurs = (pid: string) => {
    const words = commandOf(Number(pid)).split('\0');
    return words[0]!.endsWith('dockerd') && words.includes(DATA);
  };
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name) && isOurs(name))) {
    log(`ending the engine ${pid} of a run that was killed`);
    process.kill(Number(pid), 'SIGTERM');
    const start = performance.now();
    while (commandOf(Number(pid)) !== '' && performance.now() - start < STOP_MS) await wait(100);
  }
}

/** Its words, each with a zero byte behind it; empty: there is no such process. */
function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}
