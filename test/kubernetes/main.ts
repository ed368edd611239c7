import { endAll } from '../containers/shell.ts';
import { prepare } from './programs.ts';

// `npm run kubernetes -- prepare`: builds the API server of Kubernetes, which test/system/kubernetes-api.test.ts asks.

/** Of all that CI may take. */
const PREPARE_MS = 1_200_000;

const started = performance.now();
const log = (line: string) => {
  const seconds = ((performance.now() - started) / 1000).toFixed(0).padStart(3);
  console.log(`kubernetes ${seconds} s: ${line}`);
};

async function main(words: readonly string[]): Promise<void> {
  if (words.join(' ') !== 'prepare') {
    throw new Error(`no '${words.join(' ')}': npm run kubernetes -- prepare`);
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      endAll();
      process.exit(130);
    });
  }
  await prepare(['kube-apiserver'], log, PREPARE_MS);
}

main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
