import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';

const PROGRAMS = ['chromium', 'chromium-browser', 'google-chrome'];

/** The name of an installed browser, or null. */
export function findBrowser(): string | null {
  return PROGRAMS.find((name) => spawnSync(name, ['--version']).status === 0) ?? null;
}

/**
 * Runs a TypeScript module in a page of a headless browser.
 * @param entry its path. It has `report(value)` in its global scope.
 * @param options what it finds in the global `options`.
 * @returns what it reported. Rejects when it failed, or after `timeoutMs`.
 */
export async function runInBrowser(
  entry: string,
  options: unknown,
  timeoutMs = 170_000,
): Promise<unknown> {
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    logLevel: 'silent',
  });
  const script = outputFiles[0]!.text;
  const page = `<!doctype html><script>
const tell = (path) => (value) => fetch(path, { method: 'POST', body: JSON.stringify(value) });
window.report = tell('/report');
window.onerror = (message) => tell('/failure')(String(message));
window.onunhandledrejection = ({ reason }) => tell('/failure')(String(reason?.stack ?? reason));
window.options = ${JSON.stringify(options)};
</script><script type="module" src="/script.js"></script>`;

  let settle: { resolve(value: unknown): void; reject(error: Error): void };
  const reported = new Promise<unknown>((resolve, reject) => {
    settle = { resolve, reject };
  });
  const server = createServer(async (request, response) => {
    if (request.method === 'POST') {
      let body = '';
      for await (const chunk of request) body += String(chunk);
      response.end();
      if (request.url === '/report') settle.resolve(JSON.parse(body));
      else settle.reject(new Error(`the page failed: ${body}`));
    } else if (request.url === '/script.js') {
      response.setHeader('content-type', 'text/javascript').end(script);
    } else response.setHeader('content-type', 'text/html').end(page);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const profile = await mkdtemp(join(tmpdir(), 'downpour-browser-'));
  const timer = setTimeout(
    () => settle.reject(new Error(`nothing was reported within ${timeoutMs / 1000} s`)),
    timeoutMs,
  );
  let browser: ChildProcess | null = null;
  try {
    const program = findBrowser();
    if (!program) throw new Error(`none of ${PROGRAMS.join(', ')} is installed`);
    const { port } = server.address() as AddressInfo;
    browser = spawn(program, [...flags(profile), `http://127.0.0.1:${port}/`], { stdio: 'ignore' });
    browser.on('error', (error) => settle.reject(error));
    return await reported;
  } finally {
    clearTimeout(timer);
    if (browser?.exitCode === null) {
      browser.kill();
      await once(browser, 'exit');
    }
    server.close();
    server.closeAllConnections();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

function flags(profile: string): string[] {
  return [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    `--user-data-dir=${profile}`,
  ];
}
