import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { ROOT, run, setup } from './setup.js';

// npm test [-- file or vitest option …]: installs what is needed and runs all tests.
if (!(await setup())) process.exit(1);
await installRedis();

const folder = mkdtempSync(join(tmpdir(), 'downpour-test-'));
const report = join(folder, 'report.json');
let code = 1;
try {
  code = await run(process.execPath, [
    join(ROOT, 'node_modules/vitest/vitest.mjs'),
    'run',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${report}`,
    ...process.argv.slice(2),
  ]);
  if (existsSync(report)) {
    const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } =
      JSON.parse(readFileSync(report, 'utf8'));
    // A file that could not even be loaded has no tests to fail.
    const broken = testResults.filter(
      (file) => file.status === 'failed' && file.assertionResults.length === 0,
    ).length;
    const skipped = numPendingTests + (numTodoTests ?? 0);
    console.log(`${numPassedTests} passed, ${numFailedTests + broken} failed, ${skipped} skipped`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(code);

/** Some tests need a real Redis server: on Debian, as root, it is installed; else one line says so. */
async function installRedis() {
  if (isOnPath('redis-server')) return;
  const consequence = process.env.CI
    ? 'in CI the tests that need it fail'
    : 'tests that need it are skipped';
  if (!existsSync('/etc/debian_version') || process.getuid?.() !== 0) {
    console.log(`redis-server is not installed: ${consequence}`);
    return;
  }
  console.log('installing redis-server, which some tests need …');
  const options = ['-qq', '-o', 'Acquire::http::Timeout=20', '-o', 'Acquire::Retries=1'];
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = async (timeoutMs, ...args) =>
    (await run('apt-get', [...options, ...args], { timeoutMs, env })) === 0;
  const done =
    (await apt(120_000, 'update')) &&
    (await apt(180_000, 'install', '-y', '--no-install-recommends', 'redis-server'));
  if (!done || !isOnPath('redis-server')) {
    console.log(`redis-server could not be installed: ${consequence}`);
  }
}

function isOnPath(program) {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .some((directory) => directory !== '' && existsSync(join(directory, program)));
}
