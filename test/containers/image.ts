import { ROOT } from '../support/deployment.ts';
import { run } from './shell.ts';

const BUILD_MS = 1_500_000;

/** Builds a stage of deploy/Dockerfile as `downpour:<target>`. */
export async function buildImage(
  env: NodeJS.ProcessEnv,
  target: 'cpu' | 'gpu',
  log: (line: string) => void,
): Promise<void> {
  const began = performance.now();
  const words = ['docker', 'buildx', 'build', '--progress=plain', '--load'];
  await run(
    [
      ...words,
      '--file',
      'deploy/Dockerfile',
      '--target',
      target,
      '--tag',
      `downpour:${target}`,
      '.',
    ],
    { cwd: ROOT, env, timeoutMs: BUILD_MS },
  );
  const size = ['docker', 'image', 'inspect', '--format', '{{ .Size }}', `downpour:${target}`];
  const megabytes = Number(await run(size, { env })) / 1e6;
  const seconds = (performance.now() - began) / 1000;
  log(`built downpour:${target}, ${megabytes.toFixed(0)} MB, in ${seconds.toFixed(0)} s`);
}
