import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { basesWanted, makeBases } from '../containers/bases.ts';
import { startEngine } from '../containers/engine.ts';
import { buildImage } from '../containers/image.ts';
import { run } from '../containers/shell.ts';
import { ROOT } from '../support/deployment.ts';
import { PAUSE_IMAGE } from './cluster.ts';
import { PAUSE_SOURCE } from './programs.ts';

/**
 * Writes the images of all pods to a file, under the names that the example gives.
 * @param whenEnding is told what ends the engine, should we be ended meanwhile
 */
export async function saveImages(
  file: string,
  log: (line: string) => void,
  whenEnding: (stop: () => Promise<void>) => void,
): Promise<void> {
  const engine = await startEngine(log);
  let stopped = false;
  const stop = async () => {
    if (!stopped) await engine.stop();
    stopped = true;
  };
  whenEnding(stop);
  const { env } = engine;
  await makeBases(engine, log);
  await buildImage(env, 'cpu', log);
  await buildPause(env);
  // As documented; all its layers are there.
  const ours = await buildAsDocumented(env);
  const redis = basesWanted().find(({ stage }) => stage === 'redis')!;
  await run(['docker', 'save', '--output', file, ours, redis.name, PAUSE_IMAGE], {
    env,
    timeoutMs: 300_000,
  });
  await run(['docker', 'rmi', ours], { env });
  log('saved the images');
  // Its memory is for the cluster.
  await stop();
}

/** What holds the namespaces of a pod, from its one file of C. */
async function buildPause(env: NodeJS.ProcessEnv): Promise<void> {
  const context = mkdtempSync(join(tmpdir(), 'downpour-pause-'));
  try {
    const words = ['gcc', '-Os', '-static', '-DVERSION=3.10', '-o', join(context, 'pause')];
    await run([...words, PAUSE_SOURCE]);
    writeFileSync(
      join(context, 'Dockerfile'),
      'FROM scratch\nCOPY pause /\nENTRYPOINT ["/pause"]\n',
    );
    await run(['docker', 'build', '--quiet', '--tag', PAUSE_IMAGE, context], { env });
  } finally {
    rmSync(context, { recursive: true });
  }
}

/** @returns the name of the image, which is the example's. */
async function buildAsDocumented(env: NodeJS.ProcessEnv): Promise<string> {
  const text = readFileSync(join(ROOT, 'docs/cluster.md'), 'utf8');
  const [line, name] = /^docker build .*--target cpu --tag (\S+) \.$/m.exec(text)!;
  const words = ['bash', '-c', line!];
  await run(words, { cwd: ROOT, env: { ...env, DOCKER_BUILDKIT: '1' }, timeoutMs: 600_000 });
  return name!;
}
