import { type Command, InvalidArgumentError, Option } from 'commander';
import { addTableOptions } from '../data/table-options.ts';
import { examples, jsonOption } from '../options.ts';
import type { InitOptions } from './init.ts';

/** `init`: its name, options and help. */
export function registerInit(program: Command): void {
  const init = program
    .command('init')
    .description('write a new experiment, ready to run, from your data and a few answers')
    .argument('[file]', 'file to write (default: asks; suggests experiment.ts)')
    .option(
      '--data <what>',
      'a CSV or Parquet file, a folder of such files with the same columns, a text, a folder of texts or of images (one subfolder per class), or mnist',
    )
    .option(
      '--target <column>',
      'column of a table to predict (default: asks; suggests the last one)',
    )
    .addOption(
      new Option(
        '--task <task>',
        'kind of prediction (default: from the values of the column)',
      ).choices(['classification', 'regression']),
    )
    .option(
      '--text <column>',
      'column of a table to predict from, by its words (default: if no other column is of use)',
    )
    .option('--words', 'predict words instead of characters, for the language model of a text')
    .addOption(new Option('--model <model>', 'model for images').choices(['mlp', 'cnn']))
    .option(
      '--from <file>',
      'begin with a pretrained model: the model.json of a TensorFlow.js layers model; --data is a folder of images',
    )
    .option(
      '--until <layer>',
      'last layer of that model to use (default: the last one with features of places in the image)',
    )
    .option(
      '--size <pixels>',
      'height and width of the images for that model (default: its own)',
      side,
    )
    .option(
      '--pixels <black,white>',
      'values of black and white that it was trained with (default: 0,1; 0,255 if it divides bytes itself)',
      range,
    )
    .option('--frozen', 'train only the new last layer (default: later also the upper layers)')
    .option('--fresh', 'use the layers of the model, but not its parameters');
  addTableOptions(init)
    .option(
      '--test-fraction <share>',
      'share of the examples to hold out for `downpour test`; 0: none (default: 0.15 with 200 or more examples)',
      share,
    )
    .option('--force', 'overwrite an existing file')
    .option('-y, --yes', 'ask nothing and use the defaults')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
For a table, init looks at the cells of each column. Numbers become inputs. Text with few different values becomes one
0/1 input for each value. Dates become year, month, day and weekday. Longer texts that share words become inputs by hashing.
A missing value is replaced by the mean of its column. init leaves out a column that counts the rows, equals another column,
is constant, holds names or codes, is almost empty, is the target under another name, or has a mistyped number. For each it
gives the reason and the first bad line. It also leaves out rows without a target. Photos of different sizes are scaled and
cropped to one size. A target with two different values, or with few whole numbers that start at 0 or 1, is treated as
classes. Other numbers are treated as a quantity. --task overrides this.

For a text (.txt, .text, .md) or a folder of them, init writes a language model: which character follows, or with --words which
word. \`downpour sample\` writes texts by it. For a folder with one subfolder of texts per class, and for a table whose
only useful column has texts, the experiment learns from the words of a text. The vocabulary comes from the training part.

With --from, the experiment uses the layers of a pretrained model up to the last one with features, and gives them a new last
layer for the classes of the folder. The new layer is trained alone at first. Then the upper third of the layers is trained
with it, and later the second third, by a tenth of the learning rate. Batch normalisation keeps its averages. Nothing
is downloaded.
${examples(
  'downpour init',
  'downpour init cars.ts --data examples/data/auto-mpg.csv --target mpg',
  "downpour init sales.ts --data 'sales 2024.csv' --delimiter ';' --decimal , --encoding windows-1252",
  'downpour init book.ts --data book.txt --words',
  'downpour init reviews.ts --data reviews.csv --text review --target stars',
  'downpour init digits.ts --data mnist --model cnn',
  'downpour init photos.ts --from mobilenet/model.json --data photos/ --size 96',
)}`,
    )
    .action(async (file: string | undefined, options: InitOptions) => {
      const { initCommand } = await import('./init.ts');
      await initCommand(file, options);
    });
}

/** The side of an image that is read. */
const SIDE_MAX = 10_000;

function side(text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= SIDE_MAX) return value;
  throw new InvalidArgumentError(`Write a whole number of pixels from 1 to ${SIDE_MAX}, like 96.`);
}

function range(text: string): [number, number] {
  const [black, white, ...others] = text.split(',').map(Number);
  const isRange =
    Number.isFinite(black) && Number.isFinite(white) && black !== white && others.length === 0;
  if (isRange && text.split(',').every((part) => part.trim() !== '')) return [black!, white!];
  throw new InvalidArgumentError('Write two different numbers, like -1,1.');
}

function share(text: string): number {
  const value = Number(text);
  if (value >= 0 && value < 1 && text.trim() !== '') return value;
  throw new InvalidArgumentError('Write a share from 0 to below 1, like 0.15.');
}
