import { join } from 'node:path';
import { ROOT } from '../support/deployment.ts';
import { basesWanted, makeBases } from './bases.ts';
import { startEngine } from './engine.ts';
import { buildImage } from './image.ts';
import { attempt, run, whenInterrupted } from './shell.ts';

// `npm run containers`: builds the image and runs docker-compose.yml with a real engine and real Compose; in CI with
// base images made here. `-- prepare` only builds what a later run will find, `-- gpu` builds the GPU image too.

const started = performance.now();
const log = (line: string) => {
  const seconds = ((performance.now() - started) / 1000).toFixed(0).padStart(3);
  console.log(`containers ${seconds} s: ${line}`);
};

const TESTS_MS = 900_000;

async function main(words: readonly string[]): Promise<void> {
  const unknown = words.find((word) => !['prepare', 'gpu'].includes(word));
  if (unknown !== undefined)
    throw new Error(`no '${unknown}': npm run containers [-- prepare | gpu]`);
  const engine = await startEngine(log);
  whenInterrupted(engine.stop);
  try {
    if (engine.own || process.env.CI) await makeBases(engine, log);
    else
      log(
        `the engine fetches ${basesWanted()
          .map(({ name }) => name)
          .join(', ')}`,
      );
    await buildImage(engine.env, 'cpu', log);
    if (words.includes('gpu')) await buildImage(engine.env, 'gpu', log);
    // Earlier builds of the same images.
    if (engine.own) await run(['docker', 'image', 'prune', '--force'], { env: engine.env });
    if (words.includes('prepare')) return;
    const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
    const { code } = await attempt(
      [process.execPath, vitest, 'run', '--project', 'containers', '--reporter=verbose'],
      {
        cwd: ROOT,
        env: { ...engine.env, DOWNPOUR_CONTAINERS: '1' },
        timeoutMs: TESTS_MS,
        show: true,
      },
    );
    if (code !== 0) process.exitCode = 1;
    log('done');
  } finally {
    await engine.stop();
  }
}

main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
