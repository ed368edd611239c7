import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { helpPage } from '../../cli/docs/main.ts';
import { createProgram } from '../../cli/main.ts';
import {
  clientOf,
  configOf,
  EXIT,
  exitCodeOf,
  newestTokenOf,
  parseSet,
  tokenOf,
  withToken,
} from '../../cli/options.ts';
import { resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { createRestClient, httpAddress, webSocketAddress } from '../../shared/rest-client.ts';
import { runHere } from '../support/command.ts';

function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}

const closers: (() => void)[] = [];
afterEach(() => {
  vi.unstubAllEnvs();
  for (const close of closers.splice(0)) close();
});

/** A server of ours for one test. */
async function listen(answer: RequestListener): Promise<string> {
  const server = createServer(answer);
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  closers.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test('packages that are loaded ahead are those of commands that there are, and can be loaded', async () => {
  const path = '../../bin/packages.js';
  const { SERVERS, WORKERS, packagesOf } = (await import(path)) as {
    readonly SERVERS: readonly string[];
    readonly WORKERS: readonly string[];
    packagesOf(command: string): string[];
  };
  const names = allCommands(await createProgram({ exitCode: 0 })).map((c) => c.name());
  expect(names).toEqual(expect.arrayContaining([...SERVERS, ...WORKERS]));
  const { resolve } = createRequire(import.meta.url);
  for (const command of [...SERVERS, ...WORKERS]) {
    for (const name of packagesOf(command)) expect(resolve(name), name).toContain('node_modules');
  }
});

describe('help', () => {
  test('of every command says what it does and has an example', async () => {
    const commands = allCommands(await createProgram({ exitCode: 0 }));
    expect(commands.map((c) => c.name())).toEqual(
      expect.arrayContaining(['serve', 'work', 'train', 'status', 'stop', 'resume', 'export']),
    );
    for (const command of commands) {
      let help = '';
      command.configureOutput({ writeOut: (text) => (help += text) });
      command.outputHelp();
      expect(command.description(), command.name()).not.toBe('');
      expect(help, command.name()).toMatch(/Examples?:\n {2}(\$ )?downpour/);
      for (const option of command.options) expect(option.description, option.flags).not.toBe('');
    }
  });

  test('shows presets that their own parser takes', async () => {
    const options = allCommands(await createProgram({ exitCode: 0 })).flatMap((c) => c.options);
    const preset = options.filter(({ presetArg }) => presetArg !== undefined);
    expect(preset.map(({ long }) => long)).toContain('--watch');
    for (const { long, presetArg, parseArg } of preset) {
      expect(() => parseArg?.(presetArg as string, undefined), long).not.toThrow();
    }
  });

  test('lists the exit codes, and asking for it is no failure', async () => {
    const { code, out } = await runHere('--help');
    expect(code).toBe(EXIT.ok);
    for (const value of Object.values(EXIT))
      expect(out).toMatch(new RegExp(`^ {2}${value}\\b`, 'm'));
  });

  test('is the same as docs/cli.md', async () => {
    const page = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');
    expect(page, 'write it anew with `npm run docs`').toBe(await helpPage());
  });
});

describe('a mistyped command line', () => {
  test.each([
    [['trian'], "unknown command 'trian' (Did you mean train?)"],
    [['serve', '--prot', '1'], "unknown option '--prot' (Did you mean --port?)"],
    [['stop'], "missing required argument 'run'"],
    [['serve', '--port', '70000'], 'It must be a whole number from 0 to 65535.'],
    [['train', 'x.ts', '--learning-rate', '-1'], 'It must be a number above 0.'],
    [['serve', '--lease-seconds', '3601'], 'It must be a number above 0 and at most 3600.'],
    [['train', 'x.ts', '--after-stop', 'rest'], 'Allowed choices are restore, retrain, continue.'],
    [['train', 'x.ts', '--set', 'learningRate'], 'Write it as key.path=value'],
    [['stop', 'run', 'another'], 'too many arguments'],
  ])('%j is told in one line and ends with 2', async (args, message) => {
    const { code, err } = await runHere(...args);
    expect(code).toBe(EXIT.usage);
    expect(err).toMatch(/^error DP_USAGE: .*\n$/);
    expect(err).toContain(message);
  });
});

describe('exit codes', () => {
  test.each([
    ['DP_USAGE', 2],
    ['DP_CONFIG_INVALID', 2],
    ['DP_EXPERIMENT_UNKNOWN', 2],
    ['DP_SERVER_UNREACHABLE', 3],
    ['DP_DIVERGED', 4],
    ['DP_RUN_FAILED', 4],
    ['DP_RUN_UNKNOWN', 1],
    ['DP_DISK', 1],
  ] as const)('%s ends with %i', (code, exitCode) => {
    expect(exitCodeOf(new DownpourError(code, ''))).toBe(exitCode);
  });

  test('a defect ends with 1 and shows its stack only when asked', async () => {
    const server = await listen((_, response) => response.end('{"runs": 1}'));
    const quiet = await runHere('status', '--server', server);
    expect(quiet.code).toBe(EXIT.failed);
    expect(quiet.err).toMatch(/^error DP_INTERNAL: .*\n$/);
    vi.stubEnv('DOWNPOUR_DEBUG', '1');
    expect((await runHere('status', '--server', server)).err).toContain('\n      at ');
  });

  test('no server ends with 3 and says what to do', async () => {
    // A port that was free a moment ago may be somebody else's by now.
    const server = 'http://127.0.0.1:9';
    const { code, err } = await runHere('stop', 'mnist', '--server', server);
    expect(code).toBe(EXIT.unreachable);
    expect(err).toContain(`no server at ${server}`);
    expect(err).toContain('downpour serve');
  });
});

describe('--set', () => {
  test('takes JSON, and text where it is no JSON, at any depth', () => {
    let config: Record<string, unknown> = {};
    for (const text of [
      'optimizer.kind=adam',
      'optimizer.beta1=0.8',
      'clip.norm=null',
      'hyperparameters.name="0.5"',
      'hyperparameters.equation=a=b',
      'momentumSchedule={"values":[0.5,0.9],"steps":[100]}',
    ]) {
      config = parseSet(text, config);
    }
    expect(config).toEqual({
      optimizer: { kind: 'adam', beta1: 0.8 },
      clip: { norm: null },
      hyperparameters: { name: '0.5', equation: 'a=b' },
      momentumSchedule: { values: [0.5, 0.9], steps: [100] },
    });
  });

  test.each(['', '=1', 'a', 'a..b=1', '.a=1', '__proto__.x=1', 'a.constructor=1'])(
    'refuses %j',
    (text) => {
      expect(() => parseSet(text)).toThrow();
      expect(({} as { x?: unknown }).x).toBeUndefined();
    },
  );

  test('and the short ways make a valid configuration, the short ways winning', () => {
    const part = configOf({
      set: parseSet('seed=3', parseSet('optimizer.kind=adam')),
      seed: 7,
      minibatchSize: 32,
      learningRate: 0.5,
      epochs: 2,
      patience: 3,
      afterStop: 'retrain',
    });
    const config = resolveConfig({ optimizer: { kind: 'momentum', momentum: 0.5 } }, part);
    expect(config).toMatchObject({
      seed: 7,
      minibatchSize: 32,
      learningRate: 0.5,
      epochsMax: 2,
      optimizer: { kind: 'adam', beta1: 0.9 },
      earlyStopping: { patience: 3, afterStop: 'retrain' },
    });
  });

  test('leaves a mistyped field to the configuration, which names the right one', () => {
    expect(() => resolveConfig(parseSet('learningrate=1'))).toThrow("did you mean 'learningRate'");
  });
});

describe('the environment', () => {
  test('gives server and token; an empty value is none', async () => {
    const seen: (string | undefined)[] = [];
    const server = await listen((request, response) => {
      seen.push(request.headers.authorization);
      response.statusCode = 404;
      response.end('{"code": "DP_RUN_UNKNOWN", "message": "no run"}');
    });
    vi.stubEnv('DOWNPOUR_SERVER', server.replace('http', 'ws'));
    vi.stubEnv('DOWNPOUR_TOKEN', 'secret');
    expect((await runHere('stop', 'x')).err).toBe('error DP_RUN_UNKNOWN: no run\n');
    vi.stubEnv('DOWNPOUR_TOKEN', '');
    await runHere('stop', 'x');
    expect(seen).toEqual(['Bearer secret', undefined]);
  });

  test('a command that asks again has the newest token of its file, and so have the workers that it starts', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'downpour-'));
    closers.push(() => rmSync(folder, { recursive: true }));
    const tokenFile = join(folder, 'token');
    writeFileSync(tokenFile, 'first\n');
    const seen: (string | undefined)[] = [];
    const server = await listen((request, response) => {
      seen.push(request.headers.authorization);
      response.end('{"runs": []}');
    });
    const client = clientOf({ server, tokenFile });
    await client.runs();
    writeFileSync(tokenFile, 'second\n');
    await client.runs();
    // While it is being replaced.
    rmSync(tokenFile);
    await client.runs();
    expect(seen).toEqual(['Bearer first', 'Bearer second', 'Bearer second']);
    expect(() => clientOf({ server, tokenFile })).toThrow('cannot be read');

    const old = { A: '1', DOWNPOUR_TOKEN: 'old', DOWNPOUR_TOKEN_FILE: 'old' };
    expect(withToken(old, { tokenFile })).toEqual({ A: '1', DOWNPOUR_TOKEN_FILE: tokenFile });
    expect(withToken(old, { token: 't', tokenFile })).toEqual({ A: '1', DOWNPOUR_TOKEN: 't' });
    expect(withToken(old, {})).toEqual({ A: '1' });
    expect(newestTokenOf({ token: 't', tokenFile })).toBe('t');
    const told: string[] = [];
    writeFileSync(tokenFile, 'third');
    const newest = newestTokenOf({ tokenFile }, (line) => told.push(line)) as () => string;
    writeFileSync(tokenFile, '\n');
    expect([newest(), newest()]).toEqual(['third', 'third']);
    expect(told).toEqual([expect.stringContaining('has an empty line 1')]);
  });

  test('a token file gives its first line; a missing or empty one is told', () => {
    const folder = mkdtempSync(join(tmpdir(), 'downpour-'));
    closers.push(() => rmSync(folder, { recursive: true }));
    const file = join(folder, 'token');
    writeFileSync(file, ' secret \nsecond line\n');
    expect(tokenOf({ tokenFile: file })).toBe('secret');
    expect(tokenOf({ token: 'other', tokenFile: file })).toBe('other');
    writeFileSync(file, '\n');
    expect(() => tokenOf({ tokenFile: file })).toThrow('empty');
    expect(() => tokenOf({ tokenFile: join(folder, 'none') })).toThrow('cannot be read');
  });
});

describe('the REST client', () => {
  test.each([
    ['127.0.0.1:7420', 'http://127.0.0.1:7420', 'ws://127.0.0.1:7420'],
    ['ws://host:1/', 'http://host:1', 'ws://host:1'],
    ['wss://host/downpour/', 'https://host/downpour', 'wss://host/downpour'],
    ['https://host', 'https://host', 'wss://host'],
    ['[::1]:80', 'http://[::1]', 'ws://[::1]'],
  ])('reads the address %s', (text, http, ws) => {
    expect(httpAddress(text)).toBe(http);
    expect(webSocketAddress(text)).toBe(ws);
  });

  test.each(['', 'ftp://host', 'http://', 'host:port'])('refuses the address %j', (text) => {
    expect(() => httpAddress(text)).toThrow(expect.objectContaining({ code: 'DP_USAGE' }));
  });

  test('gives up on a server that does not answer in time', async () => {
    const server = await listen(() => {});
    const client = createRestClient({ server, timeoutMs: 50 });
    for (const asked of [client.health(), client.checkpointFile('x', 'best')]) {
      await expect(asked).rejects.toThrow(
        expect.objectContaining({ code: 'DP_SERVER_UNREACHABLE' }),
      );
    }
  });

  test('keeps the code of the server, and one it does not know becomes DP_INTERNAL', async () => {
    const codes = ['DP_RUN_EXISTS', 'DP_FROM_THE_FUTURE'];
    const server = await listen((_, response) => {
      response.statusCode = 409;
      response.end(JSON.stringify({ code: codes.shift(), message: 'why' }));
    });
    const client = createRestClient({ server });
    const known = { code: 'DP_RUN_EXISTS', message: 'why' };
    await expect(client.health()).rejects.toThrow(expect.objectContaining(known));
    await expect(client.health()).rejects.toThrow(expect.objectContaining({ code: 'DP_INTERNAL' }));
  });

  test.each([
    [200, '<html>'],
    [502, 'Bad gateway'],
  ])('says of another kind of server that it is none of ours (%i)', async (status, text) => {
    const server = await listen((_, response) => {
      response.statusCode = status;
      response.end(text);
    });
    await expect(createRestClient({ server }).health()).rejects.toThrow('Downpour server?');
  });

  test('writes names of runs safely into the path, and posts JSON', async () => {
    const seen: string[] = [];
    const server = await listen((request, response) => {
      request.on('data', (chunk) => seen.push(String(chunk)));
      request.on('end', () => {
        seen.push(`${request.method} ${request.url} ${request.headers['content-type']}`);
        response.end('{}');
      });
    });
    const client = createRestClient({ server });
    await client.run('../a b');
    await client.createRun({ experiment: 'e', experimentHash: 'h' });
    expect(seen).toEqual([
      'GET /runs/..%2Fa%20b undefined',
      '{"experiment":"e","experimentHash":"h"}',
      'POST /runs application/json',
    ]);
  });
});

test('an option that was cut short is completed, and a misspelt one still corrected', async () => {
  expect((await runHere('serve', '--redis', 'x')).err).toContain('--redis-url');
  expect((await runHere('serve', '--prot', '1')).err).toContain('--port');
  const { code, err } = await runHere('serve', '--nothing-like-it');
  expect(code).toBe(EXIT.usage);
  expect(err).not.toContain('Did you mean');
});
