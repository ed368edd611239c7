import { type Command, InvalidArgumentError, Option } from 'commander';
import { addTableOptions } from '../data/table-options.ts';
import { examples, jsonOption } from '../options.ts';
import type { InitOptions } from './init.ts';

/** `init`: its name, options and help. */
export function registerInit(program: Command): void {
  const init = program
    .command('init')
    .description('write a new experiment that runs at once, from your data and a few answers')
    .argument('[file]', 'to write (default: asks; experiment.ts)')
    .option('--data <what>', 'a CSV file, a folder of images (one folder a class), or mnist')
    .option('--target <column>', 'of a CSV file: what to predict (default: asks; the last one)')
    .addOption(
      new Option('--task <task>', 'default: by what the column holds').choices([
        'classification',
        'regression',
      ]),
    )
    .addOption(new Option('--model <model>', 'of images').choices(['mlp', 'cnn']));
  addTableOptions(init)
    .option(
      '--test-fraction <share>',
      'share of the examples to set apart for `downpour test`; 0: none (default: 0.15 where there are 200 examples or more)',
      share,
    )
    .option('--force', 'write over a file that is there')
    .option('-y, --yes', 'ask nothing, take the defaults')
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
For a table, init looks at the cells of each column. Numbers become inputs. Text with few different values becomes one
0/1 input for each value. Dates become year, month, day and weekday. Texts that share words become inputs by hashing. Where
values are missing, the mean of the column stands in for them. init leaves out columns that count the rows, equal another
column, are constant, have names or codes, lack nearly all values, are the target under another name, or have a mistyped
number. It gives the reason for each, and the first bad line. Rows without a target are left out. Photos of
different sizes are scaled and cropped to one size. A target with few whole numbers from 0 or 1 on, or with two different values, is read as
classes; other numbers as a quantity. --task overrides this.
${examples(
  'downpour init',
  'downpour init cars.ts --data examples/data/auto-mpg.csv --target mpg',
  "downpour init sales.ts --data 'sales 2024.csv' --delimiter ';' --decimal , --encoding windows-1252",
  'downpour init digits.ts --data mnist --model cnn',
)}`,
    )
    .action(async (file: string | undefined, options: InitOptions) => {
      const { initCommand } = await import('./init.ts');
      await initCommand(file, options);
    });
}

function share(text: string): number {
  const value = Number(text);
  if (value >= 0 && value < 1 && text.trim() !== '') return value;
  throw new InvalidArgumentError('Write a share from 0 to below 1, like 0.15.');
}
