import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import type { RunDetail } from '../../shared/rest.ts';
import { enginesFolder } from '../../worker/engine-folder.ts';
import { ip, namespacesMissing } from '../support/addresses.ts';
import { ROOT } from '../support/deployment.ts';

// Three machines with a switch between them, as network namespaces of Linux: the commands of
// docs/cluster.md under real addresses, and a cable that is pulled. The addresses (RFC 5737) exist
// inside these namespaces only.

const PREFIX = `dp${process.pid}`;
const SWITCH = `${PREFIX}-switch`;
const HOSTS = ['server', 'worker-1', 'worker-2'] as const;
type Host = (typeof HOSTS)[number];
const SERVER = '192.0.2.1';
const TOKEN = 'a-secret-of-this-test';

const missing = namespacesMissing();
const inside = (name: string, ...args: string[]) => ['netns', 'exec', name, ...args];
const namespace = (host: Host) => `${PREFIX}-${host}`;

/** A namespace with a bridge, and one a host with a cable to it. */
function connectHosts(): void {
  ip('netns', 'add', SWITCH);
  ip('-n', SWITCH, 'link', 'add', 'bridge', 'type', 'bridge');
  ip('-n', SWITCH, 'link', 'set', 'bridge', 'up');
  for (const [i, host] of HOSTS.entries()) {
    const name = namespace(host);
    ip('netns', 'add', name);
    ip(
      '-n',
      SWITCH,
      'link',
      'add',
      `port${i}`,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      name,
    );
    ip('-n', SWITCH, 'link', 'set', `port${i}`, 'master', 'bridge', 'up');
    ip('-n', name, 'address', 'add', `192.0.2.${i + 1}/24`, 'dev', 'eth0');
    ip('-n', name, 'link', 'set', 'eth0', 'up');
    ip('-n', name, 'link', 'set', 'lo', 'up');
  }
}

const children = new Set<ChildProcess>();
let folder: string;

/** `downpour …` on one of the machines. */
function downpour(host: Host, ...args: string[]) {
  const command = [process.execPath, inject('program'), ...args];
  // `ip netns exec` becomes the command: its process is ours to signal.
  const child = spawn('ip', inside(namespace(host), ...command), {
    cwd: ROOT,
    env: {
      PATH: process.env.PATH,
      HOME: folder,
      DOWNPOUR_TOKEN: TOKEN,
      DOWNPOUR_DATA: join(folder, 'data'),
      DOWNPOUR_ENGINE_DIR: enginesFolder(),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.add(child);
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line);
      for (const look of waiting) look();
    });
  }
  const end = new Promise<number | null>((done) => {
    child.on('close', (code) => {
      children.delete(child);
      for (const look of waiting) look();
      done(code);
    });
  });
  const text = () => `${host}:\n${lines.slice(-40).join('\n')}`;
  /** The first line that is meant, as soon as it comes. */
  const line = (meant: (line: string) => boolean) =>
    new Promise<string>((done, fail) => {
      const look = () => {
        const found = lines.find(meant);
        if (found !== undefined) done(found);
        else if (child.exitCode !== null) fail(new Error(text()));
        else return;
        waiting.delete(look);
      };
      waiting.add(look);
      look();
    });
  return { child, end, text, line, lines };
}

// Alone it takes half a minute; a worker that holds the evaluation is missed after 30 s of silence.
describe.skipIf(missing)(`machines of their own${missing}`, { timeout: 400_000 }, () => {
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'downpour-network-'));
    mkdirSync(join(folder, 'data'));
    connectHosts();
  });
  afterAll(async () => {
    const gone = [...children].map((child) => new Promise((done) => child.on('close', done)));
    for (const child of children) child.kill('SIGKILL');
    await Promise.all(gone);
    for (const name of [...HOSTS.map(namespace), SWITCH]) {
      spawnSync('ip', ['netns', 'delete', name], { timeout: 20_000 });
    }
    rmSync(folder, { recursive: true, force: true });
  });

  test('a run finishes over the network, though the cable of a worker is pulled', async () => {
    const state = ['--state', join(folder, 'state')];
    const server = downpour('server', 'serve', '--host', '0.0.0.0', ...state);
    await server.line((line) => line.includes('Downpour listens'));
    const address = ['--server', `ws://${SERVER}:7420`, '--threads', '1'];
    const workers = (['worker-1', 'worker-2'] as const).map((host) => ({
      host,
      ...downpour(host, 'work', '--name', host, ...address),
    }));
    for (const { host } of workers) {
      await server.line((line) => line.includes(`worker ${host} connected`));
    }
    const training = downpour(
      ...(['worker-1', 'train', 'examples/mnist-mlp.ts', '--json', '--workers', '0'] as const),
      ...['--server', `http://${SERVER}:7420`, '--epochs', '2', '--minibatch-size', '16'],
      ...['--set', 'earlyStopping.enabled=false', '--set', 'leaseSeconds=2'],
    );
    const runOf = (line: string) => (JSON.parse(line) as { run?: RunDetail }).run;
    await training.line((line) => line.startsWith('{"event":"progress"') && runOf(line)!.step > 50);
    // No FIN, no RST: the server hears nothing more of it.
    ip('-n', SWITCH, 'link', 'set', 'port2', 'down');
    expect(await training.end, training.text()).toBe(0);
    const run = runOf(training.lines.at(-1)!)!;
    expect(run).toMatchObject({ phase: 'finished', reason: 'reached epochsMax 2' });
    expect(run.examples).toBe(2 * run.data!.trainCount);

    // Plugged in again it comes back by itself, and Ctrl-C ends all in good order.
    ip('-n', SWITCH, 'link', 'set', 'port2', 'up');
    const askStatus = async () => {
      const status = downpour('worker-2', 'status', '--server', `http://${SERVER}:7420`);
      return { code: await status.end, text: status.text() };
    };
    // For some seconds after that its kernel still takes the server for unreachable.
    await expect
      .poll(askStatus, { timeout: 60_000, interval: 1_000 })
      .toMatchObject({ code: 0, text: expect.stringContaining('finished') });
    for (const { child } of [...workers, server]) child.kill('SIGINT');
    expect(await Promise.all([...workers, server].map(({ end }) => end))).toEqual([0, 0, 0]);
  });

  test('a run outlives the cable of each of its shards: another one takes its place', async () => {
    const state = ['--state', join(folder, 'shared')];
    const shardOn = async (host: Host, address: string) => {
      const at = ['--host', '0.0.0.0', '--advertise', address, '--port', '7421'];
      const shard = downpour(host, 'shard', ...at, ...state);
      await shard.line((line) => line.includes(`${address}:7421`));
      return shard;
    };
    // The cable of each is its port of the switch.
    const first = await shardOn('worker-1', '192.0.2.2');
    const server = downpour(
      ...(['server', 'serve', '--host', '0.0.0.0', '--shards', '2', '--shards-elsewhere'] as const),
      ...state,
    );
    await server.line((line) => line.includes('Downpour listens'));
    const second = await shardOn('worker-2', '192.0.2.3');
    const local = ['--server', 'http://127.0.0.1:7420'];
    const worker = downpour('server', 'work', '--name', 'own', '--threads', '1', ...local);
    await server.line((line) => line.includes('worker own connected'));
    const training = downpour(
      ...(['server', 'train', 'examples/mnist-mlp.ts', '--json', '--workers', '0'] as const),
      ...local,
      ...['--epochs', '4', '--minibatch-size', '16', '--set', 'earlyStopping.enabled=false'],
      ...['--set', 'checkpoint.everySeconds=0.5'],
    );
    const runOf = (line: string) => (JSON.parse(line) as { run?: RunDetail }).run;
    const reached = (step: number) =>
      training.line((line) => line.startsWith('{"event":"progress"') && runOf(line)!.step > step);
    await reached(100);

    // No FIN, no RST, and by the shared folder the shard still says that it is there.
    const isSilent = (address: string) => (line: string) =>
      line.includes(`ws://${address}:7421 has gone (no message from it for 10 s)`);
    const isTaken = (address: string) => (line: string) =>
      line.includes(`2 shards: this server, ws://${address}:7421`);
    ip('-n', SWITCH, 'link', 'set', 'port1', 'down');
    await server.line(isSilent('192.0.2.2'));
    await server.line(isTaken('192.0.2.3'));
    await reached(Math.max(...training.lines.map((line) => runOf(line)?.step ?? 0)) + 50);

    // Now there is none, and the server says so, until the first one is plugged in again.
    ip('-n', SWITCH, 'link', 'set', 'port2', 'down');
    await server.line(isSilent('192.0.2.3'));
    const status = downpour('server', 'status', ...local);
    await status.end;
    expect(status.text()).toMatch(/shard 1 at ws:..192.0.2.3:7421 is lost.*all runs wait/);
    ip('-n', SWITCH, 'link', 'set', 'port1', 'up');
    await server.line((line) => {
      return isTaken('192.0.2.2')(line) && server.lines.filter(isTaken('192.0.2.2')).length === 2;
    });
    ip('-n', SWITCH, 'link', 'set', 'port2', 'up');

    expect(await training.end, training.text()).toBe(0);
    const run = runOf(training.lines.at(-1)!)!;
    expect(run).toMatchObject({ phase: 'finished', reason: 'reached epochsMax 4' });
    expect(run.examples).toBe(4 * run.data!.trainCount);
    const all = [worker, server, first, second];
    for (const { child } of all) child.kill('SIGINT');
    expect(await Promise.all(all.map(({ end }) => end))).toEqual([0, 0, 0, 0]);
    const said = all.flatMap(({ lines }) => lines);
    expect(said.filter((line) => line.includes('defect'))).toEqual([]);
  });
});
