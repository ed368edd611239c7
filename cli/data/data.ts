import { resolve } from 'node:path';
import type { Command } from 'commander';
import { LIMITS } from '../../shared/limits.ts';
import { type FetchProgress, fetchMnist } from '../../worker/data/fetch.ts';
import { mnistCacheFolder } from '../../worker/data/mnist.ts';
import {
  EXIT,
  examples,
  jsonOption,
  print,
  printJson,
  untilInterrupted,
  whole,
} from '../options.ts';
import type { Screen } from '../output/progress.ts';
import type { InspectOptions } from './inspect.ts';
import { addTableOptions } from './table-options.ts';
import type { VectorsOptions } from './word-vectors.ts';

/** `downpour data`: fetch MNIST, and look at what a data set holds before training on it. */

interface MnistCommandOptions {
  readonly to?: string;
  readonly mirror?: string[];
  readonly json?: boolean;
}

/** Adds `data mnist`, `data inspect` and `data vectors`. */
export function registerDataCommands(program: Command): void {
  const data = program
    .command('data')
    .description('download data sets, or inspect one')
    .addHelpText(
      'after',
      examples('downpour data mnist', 'downpour data inspect measurements.csv'),
    );
  data
    .command('mnist')
    .description(
      'download the 70,000 handwritten digits of MNIST (12 MB), or only the missing files',
    )
    .option('--to <folder>', 'folder for the four files (default: ~/.cache/downpour/data/mnist)')
    .option('--mirror <url...>', 'web folders that hold the files, tried in order')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      examples(
        'downpour data mnist',
        'downpour data mnist --to ./data/mnist --mirror https://example.org/mnist/',
      ),
    )
    .action(mnistCommand);
  const inspect = data
    .command('inspect')
    .description('print shapes, examples per class, mean, standard deviation, minimum and maximum')
    .argument(
      '[path]',
      'a CSV, Parquet, IDX or .npy file, or a folder with MNIST files or pictures',
    );
  addTableOptions(inspect)
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `\nWithout a path it inspects the MNIST digits that training would use.\n${examples(
        'downpour data inspect',
        'downpour data inspect examples/data/auto-mpg.csv',
        'downpour data inspect train-images-idx3-ubyte.gz --json',
      )}`,
    )
    .action(async (path: string | undefined, options: InspectOptions) => {
      const { inspectCommand } = await import('./inspect.ts');
      await inspectCommand(path, options);
    });
  registerVectors(data);
}

function registerVectors(data: Command): void {
  data
    .command('vectors')
    .description(
      'print what the word vectors of a file have learnt: nearest words, analogies, similarities',
    )
    .argument(
      '<file>',
      'word vectors of word2vec (.bin, .txt), GloVe (.txt), fastText (.vec) or wink-embeddings (.json)',
    )
    .option(
      '--top <words>',
      'number of the most frequent words that are used',
      whole(1, LIMITS.rowIdsMax),
      30_000,
    )
    .option('--near <word...>', 'words whose nearest words are printed')
    .option('--neighbours <number>', 'nearest words of each', whole(1, 1_000), 8)
    .option(
      '--analogies <file>',
      'questions as in questions-words.txt of word2vec: prints the share of right answers',
    )
    .option(
      '--similarity <file>',
      'pairs of words with a number, as in wordsim353.tsv: prints the rank correlation',
    )
    .addOption(jsonOption())
    .addHelpText(
      'after',
      examples(
        'downpour data vectors glove.6B.100d.txt --near king paris',
        'downpour data vectors vectors.bin --analogies questions-words.txt',
      ),
    )
    .action(async (path: string, options: VectorsOptions) => {
      const { vectorsCommand } = await import('./word-vectors.ts');
      await vectorsCommand(path, options);
    });
}

async function mnistCommand(options: MnistCommandOptions): Promise<void> {
  const folder = resolve(options.to ?? mnistCacheFolder());
  const show = downloadProgress(process.stderr, options.json === true);
  const interrupted = untilInterrupted();
  try {
    const files = await fetchMnist({
      folder,
      ...(options.mirror ? { mirrors: options.mirror } : {}),
      signal: interrupted.signal,
      onProgress: show,
    });
    if (options.json) printJson({ folder, files });
    else print(`MNIST is complete in ${folder}`);
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    process.stderr.write('\nstopped; the same command continues the download\n');
    process.exitCode = EXIT.interrupted;
  } finally {
    interrupted.dispose();
  }
}

const BAR_WIDTH = 30;
const REDRAW_MS = 100;

/**
 * Shows a download: a bar on a terminal, else one line a file.
 * @param now milliseconds, from any origin
 */
export function downloadProgress(
  screen: Screen,
  quiet: boolean,
  now: () => number = () => performance.now(),
): (progress: FetchProgress) => void {
  let drawnAt = Number.NEGATIVE_INFINITY;
  return ({ file, bytes, bytesTotal, state }) => {
    if (quiet) return;
    const clear = screen.isTTY ? '\r\x1b[K' : '';
    if (state !== 'fetching') {
      screen.write(
        `${clear}${file}: ${state === 'present' ? 'already there' : megabytes(bytes)}\n`,
      );
      return;
    }
    if (!screen.isTTY || now() - drawnAt < REDRAW_MS) return;
    drawnAt = now();
    if (bytesTotal === null) {
      screen.write(`${clear}${file}: ${megabytes(bytes)}`);
      return;
    }
    const filled = Math.min(BAR_WIDTH, Math.floor((BAR_WIDTH * bytes) / bytesTotal));
    const bar = '#'.repeat(filled).padEnd(BAR_WIDTH, '.');
    const line = `${file} [${bar}] ${megabytes(bytes)} of ${megabytes(bytesTotal)}`;
    screen.write(clear + line.slice(0, (screen.columns ?? 80) - 1));
  };
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(2)} MB`;
}
