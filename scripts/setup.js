import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { nodeProblem } from '../bin/node-lines.js';

/** The project's folder. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

const problem = nodeProblem();
if (problem !== null) {
  console.error(problem);
  process.exit(2);
}

/** Longest wait for the packages. */
const INSTALL_MS = 15 * 60_000;

/**
 * Installs the packages of package-lock.json into node_modules, unless they are there. Changes
 * nothing outside the project.
 * @returns whether all is there now; false after it has printed why not.
 */
export async function setup() {
  const missing = whatIsMissing();
  if (missing === null) return true;
  console.log(`installing the packages of package-lock.json (${missing}) …`);
  const started = Date.now();
  const ticking = setInterval(() => {
    console.log(`  still installing, ${Math.round((Date.now() - started) / 1000)} s …`);
  }, 15_000);
  // Started by npm, we know where it is; started by node, the shell finds it.
  const npm = process.env.npm_execpath;
  const args = [
    'ci',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
    '--fetch-timeout=60000',
    '--fetch-retries=2',
    '--fetch-retry-maxtimeout=20000',
  ];
  const code = npm?.endsWith('.js')
    ? await run(process.execPath, [npm, ...args], { timeoutMs: INSTALL_MS })
    : await run('npm', args, { timeoutMs: INSTALL_MS, shell: process.platform === 'win32' });
  clearInterval(ticking);
  if (code === 0) {
    console.log(`installed in ${Math.round((Date.now() - started) / 1000)} s`);
    return true;
  }
  console.error(
    `The packages could not be installed: npm ci ended with ${code}, see above. Is the package registry reachable? \`npm config get registry\` shows its address, and \`npm ping\` asks it. Then try again. Without a network, \`npm ci --offline\` installs what npm has in its cache.`,
  );
  return false;
}

/** Why packages must be installed, or null: node_modules holds what package-lock.json says. */
function whatIsMissing() {
  const wanted = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')).packages;
  let present;
  try {
    present = JSON.parse(readFileSync(join(ROOT, 'node_modules/.package-lock.json'), 'utf8'));
  } catch {
    return 'none is there yet';
  }
  // Contents, not dates: a checkout may give any date to a file.
  for (const [path, { version, optional, link }] of Object.entries(wanted)) {
    if (path === '' || optional || link) continue;
    const there = present.packages[path]?.version;
    if (there !== version) {
      const name = path.replace(/^.*node_modules\//, '');
      return there === undefined ? `${name} is missing` : `${name} is ${there}, not ${version}`;
    }
  }
  return null;
}

/**
 * Runs a program with our terminal.
 * @returns its exit code; 127 when it cannot be started, 124 when it took too long, 130 by Ctrl-C.
 */
export function run(program, args, { timeoutMs, shell = false, env = process.env } = {}) {
  return new Promise((done) => {
    const child = spawn(program, args, { cwd: ROOT, stdio: 'inherit', shell, env });
    let timedOut = false;
    const timer =
      timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            timedOut = true;
            child.kill('SIGTERM');
            setTimeout(() => child.kill('SIGKILL'), 5_000).unref();
          }, timeoutMs);
    // A terminal sends Ctrl-C to the child as well, which ends in its own good order; a signal that
    // only we got is passed on.
    const interrupt = () => {
      if (!process.stdin.isTTY) child.kill('SIGINT');
    };
    const pass = () => child.kill('SIGTERM');
    process.on('SIGINT', interrupt);
    process.on('SIGTERM', pass);
    const finish = (code) => {
      clearTimeout(timer);
      process.off('SIGINT', interrupt);
      process.off('SIGTERM', pass);
      done(code);
    };
    child.on('error', (error) => {
      console.error(`${program}: ${error.message}`);
      finish(127);
    });
    child.on('close', (code, signal) => {
      finish(timedOut ? 124 : (code ?? (signal === 'SIGINT' ? 130 : 1)));
    });
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  process.exit((await setup()) ? 0 : 1);
}
