import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { MNIST_FILES } from '../../worker/data/mnist.ts';
import { ROOT } from './deployment.ts';

/** The commands of the documentation, and few digits to run them on. */

/** Run by other tests, or by nobody: what such a line begins with, and why. */
const ELSEWHERE: readonly (readonly [RegExp, string])[] = [
  [/^npm start/, 'test/system/newcomer.test.ts'],
  [/^npm test/, 'runs this'],
  [/^npm run bench/, 'test/system/bench.test.ts'],
  [/npx tsx bench\/sklearn\.ts$/, 'test/system/sklearn.test.ts, on two of the sets'],
  [/npx tsx bench\/gaps\.ts$/, 'test/system/sklearn.test.ts, on one of the sets'],
  [/--checkpoint-copy s3:/, 'needs a bucket: test/system/checkpoint-copy.test.ts'],
  [/^npx downpour data mnist/, 'asks the network: test/system/fetch-mnist.test.ts'],
  [/^tensorboard /, 'serves without end: test/system/tensorboard.test.ts reads what it would read'],
  [/^git pull/, 'asks the network'],
  [/^docker compose (?!.*--profile gpu)/, 'test/containers/compose.test.ts'],
  [/^docker build /, 'test/kubernetes/images.ts'],
  [/^docker push /, 'needs a registry'],
  [/^docker /, 'needs GPUs, or other machines: test/unit/deployment.test.ts'],
  [/^kubectl /, 'test/kubernetes/cluster.test.ts'],
];

/** Lines of its shell blocks that are to be run, in their order; continued ones are one. */
export interface Page {
  readonly page: string;
  readonly lines: readonly string[];
}

/** Their commands are studies. */
export const STUDY_PAGES: readonly string[] = ['docs/methodology.md', 'docs/results.md'];

export const PAGES: readonly Page[] = [
  'README.md',
  'SECURITY.md',
  ...readdirSync(join(ROOT, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
]
  // Walked through, without a network of its own, by newcomer.test.ts.
  .filter((page) => page !== 'docs/getting-started.md')
  .map((page) => ({ page, lines: linesOf(readFileSync(join(ROOT, page), 'utf8')) }))
  .filter(({ lines }) => lines.length > 0);

function linesOf(markdown: string): string[] {
  return [...markdown.matchAll(/```sh\n([\s\S]*?)```/g)]
    .flatMap(([, block]) => block!.replaceAll(/\\\n\s*/g, '').split('\n'))
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))
    .filter((line) => !ELSEWHERE.some(([start]) => start.test(line)));
}

/** The first digits of all. */
export function copyDigits(
  from: string,
  to: string,
  count: Record<'train' | 'test', number>,
): void {
  mkdirSync(join(to, 'mnist'), { recursive: true });
  for (const [kind, name] of Object.entries(MNIST_FILES)) {
    const file = join('mnist', `${name}.gz`);
    const all = gunzipSync(readFileSync(join(from, file)));
    const n = kind.startsWith('train') ? count.train : count.test;
    const [header, bytes] = kind.endsWith('Images') ? [16, 784] : [8, 1];
    const first = Buffer.from(all.subarray(0, header! + n * bytes!));
    first.writeUInt32BE(n, 4);
    writeFileSync(join(to, file), gzipSync(first));
  }
}
