import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** A Redis of the test's own, on a free port of this machine. */
export interface TestRedis {
  readonly url: string;
  readonly pid: number;
  /** Ends it and removes its files. */
  stop(): Promise<void>;
  /** Ends it as a crash would; its files stay. */
  kill(): Promise<void>;
  /** Starts it again after `kill`, on the same port and files. */
  restart(): Promise<void>;
}

/** Why there is no Redis here, or null. In CI a missing one is a failure, not a skip. */
export function redisMissing(): string | null {
  if (spawnSync('redis-server', ['--version']).status === 0) return null;
  const missing = 'redis-server is not installed (Debian: apt-get install redis-server)';
  if (process.env.CI) throw new Error(missing);
  return missing;
}

/**
 * Starts a Redis and waits until it answers.
 *
 * @param options.persist whether it remembers its data over `kill` and `restart`.
 * @param options.args more of its command line, such as `--requirepass secret`.
 */
export async function startRedis(
  options: { readonly persist?: boolean; readonly args?: readonly string[] } = {},
): Promise<TestRedis> {
  const { persist = true, args = [] } = options;
  const folder = await mkdtemp(join(tmpdir(), 'downpour-redis-'));
  let port = 0;
  let child: ChildProcess | null = null;

  async function start(): Promise<void> {
    const started = spawn(
      'redis-server',
      [
        ...['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', ''],
        ...['--appendonly', persist ? 'yes' : 'no', '--appendfsync', 'always', ...args],
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    child = started;
    const lines: string[] = [];
    for await (const line of createInterface({ input: started.stdout! })) {
      lines.push(line);
      if (line.includes('Ready to accept connections')) {
        started.stdout!.resume();
        return;
      }
    }
    throw new Error(`redis-server ended:\n${lines.join('\n')}`);
  }
  async function end(signal: NodeJS.Signals): Promise<void> {
    const ending = child;
    child = null;
    if (ending === null || ending.exitCode !== null || ending.signalCode !== null) return;
    const gone = once(ending, 'exit');
    ending.kill(signal);
    await gone;
  }

  // Another process may take the port between our look and the start.
  for (let attempt = 1; ; attempt++) {
    port = await freePort();
    try {
      await start();
      break;
    } catch (error) {
      if (attempt === 5) throw error;
    }
  }
  return {
    url: `redis://127.0.0.1:${port}`,
    get pid() {
      return child?.pid ?? 0;
    },
    async stop() {
      await end('SIGTERM');
      await rm(folder, { recursive: true, force: true });
    },
    kill: () => end('SIGKILL'),
    restart: start,
  };
}

/** Why there is no sentinel here, or null; as `redisMissing`. */
export function sentinelMissing(): string | null {
  if (spawnSync('redis-sentinel', ['--version']).status === 0) return null;
  const missing = 'redis-sentinel is not installed (Debian: apt-get install redis-sentinel)';
  if (process.env.CI) throw new Error(missing);
  return missing;
}

/** Starts a sentinel that alone decides about the master `name`. @returns its port, and its end. */
export async function startSentinel(
  name: string,
  master: TestRedis,
): Promise<{ readonly port: number; stop(): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'downpour-sentinel-'));
  const port = await freePort();
  const config = join(folder, 'sentinel.conf');
  const lines = [
    ...[`port ${port}`, 'bind 127.0.0.1', `dir ${folder}`],
    `sentinel monitor ${name} 127.0.0.1 ${new URL(master.url).port} 1`,
    `sentinel down-after-milliseconds ${name} 3000`,
    `sentinel failover-timeout ${name} 5000`,
  ];
  await writeFile(config, `${lines.join('\n')}\n`);
  const child = spawn('redis-sentinel', [config], { stdio: ['ignore', 'pipe', 'inherit'] });
  // Its first look at the master tells it of the replicas.
  for await (const line of createInterface({ input: child.stdout! })) {
    if (line.includes('+slave ')) break;
  }
  child.stdout!.resume();
  return {
    port,
    async stop() {
      const gone = once(child, 'exit');
      child.kill('SIGKILL');
      await gone;
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Certificates of an own authority for 127.0.0.1, as PEM files in a folder. */
export function makeCertificates(folder: string): {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
} {
  const openssl = (...args: string[]) => {
    const { status, stderr } = spawnSync('openssl', args, { cwd: folder, encoding: 'utf8' });
    if (status !== 0) throw new Error(`openssl ${args[0]}: ${stderr}`);
  };
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const authority = ['-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=test authority'];
  openssl('req', '-x509', '-days', '2', ...curve, ...authority);
  openssl('req', ...curve, '-keyout', 'key.pem', '-out', 'request.pem', '-subj', '/CN=redis');
  writeFileSync(join(folder, 'names'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\n');
  const signed = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'names'];
  openssl('x509', '-req', '-days', '2', '-in', 'request.pem', '-out', 'cert.pem', ...signed);
  const file = (name: string) => join(folder, name);
  return { ca: file('ca.pem'), cert: file('cert.pem'), key: file('key.pem') };
}

/** Below those that the system gives to whoever asks for any port: a connection of somebody else takes none of them meanwhile. */
const PORTS = { from: 20_000, to: 32_000 } as const;

/** A port of 127.0.0.1 that is free now, for those that need it before they listen, or again. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(PORTS.from, PORTS.to);
    const server = createServer();
    const isFree = await new Promise<boolean>((done) => {
      server.once('error', () => done(false));
      server.listen(port, '127.0.0.1', () => done(true));
    });
    if (!isFree) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
}
