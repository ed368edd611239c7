import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  addTokenOptions,
  dataOption,
  engineOption,
  examples,
  experimentsOption,
  isStateGiven,
  jsonOption,
  serverOption,
  stateOption,
  whole,
} from '../options.ts';
import type { ExportOptions } from './export.ts';
import type { LookOptions } from './look.ts';
import type { PredictOptions } from './predict.ts';
import type { RefuseOptions } from './refuse.ts';
import type { ServeModelOptions } from './serve-model.ts';

/** Names, options and help of the commands that read a trained model. */

/** `look`, `refuse`. */
export function registerLookCommands(program: Command): void {
  registerLook(program);
  registerRefuse(program);
}

/** `export`. */
export function registerExport(program: Command): void {
  const command = program
    .command('export')
    .description('write trained parameters, or the course of a run, for other programs')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .requiredOption('--to <folder>', 'to write to; made when it is missing')
    .addOption(
      new Option(
        '--format <format>',
        'parameters as safetensors, or as tfjs: model.json and weights.bin; the course as tensorboard: an event file, or as jsonl: a line a step, like those of Weights & Biases',
      )
        .choices(['safetensors', 'tfjs', 'tensorboard', 'jsonl'])
        .default('safetensors'),
    )
    .addOption(
      new Option(
        '--kind <kind>',
        'which checkpoint of the run, for its parameters (default: final if it has finished, else best)',
      ).choices(['best', 'last', 'final']),
    )
    .addOption(experimentsOption())
    .addOption(dataOption())
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      examples(
        'downpour export mnist-mlp-1 --to exported --format tfjs',
        'downpour export mnist-mlp-1 --to logs/mnist-mlp-1 --format tensorboard',
        'downpour export .downpour/mnist-mlp-1/checkpoints/step-000001234-best-0007.safetensors --to exported',
      ),
    )
    .action(async (what: string, options: ExportOptions) => {
      const { exportCommand } = await import('./export.ts');
      await exportCommand(what, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** `predict`. */
export function registerPredict(program: Command): void {
  const command = program
    .command('predict')
    .description(
      'answer to new data: a table like the one of the training, a picture, a folder of pictures',
    )
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .argument(
      '<data>',
      'a file or folder like those that the run was trained on; targets need not be there',
    )
    .option('--out <file>', 'CSV file to write (default: print)')
    .addOption(
      new Option(
        '--kind <kind>',
        'which checkpoint of the run (default: final if it has finished, else best)',
      ).choices(['best', 'last', 'final']),
    )
    .addOption(experimentsOption())
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(engineOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      `
The run knows how its data were read (columns, categories, dates, missing values, sizes of pictures) and how its
inputs were standardised. New data are read in the same way; a cell that does not fit is an error with its line and column.
Each row has the line or the file, the answer, and for classes the confidence and the probability of each class.
With --json each row is a JSON object on a line of its own.
${examples('downpour predict penguins-3f2a1c new-penguins.csv --out answers.csv', 'downpour predict birds-9c01de photos/')}`,
    )
    .action(async (what: string, data: string, options: PredictOptions) => {
      const { predictCommand } = await import('./predict.ts');
      await predictCommand(what, data, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** `serve-model`. */
export function registerServeModel(program: Command): void {
  const command = program
    .command('serve-model')
    .description('answer to examples over HTTP: POST /predict')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .option('--host <host>', 'address to listen on', '127.0.0.1')
    .option('--port <port>', 'port to listen on; 0 takes a free one', whole(0, 65_535), 7430)
    .addOption(
      new Option(
        '--kind <kind>',
        'which checkpoint of the run (default: final if it has finished, else best)',
      ).choices(['best', 'last', 'final']),
    )
    .addOption(experimentsOption())
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(engineOption());
  addTokenOptions(command)
    .addHelpText(
      'after',
      `
POST /predict takes { "examples": […] }: rows of a table as objects by column, pictures as { "picture": "<base64 of a file>" }.
It answers with a prediction for each, and for classes with confidence and probabilities. Requests that come at the same
time are computed together. GET / tells what the model is, GET /openapi.json describes the interface. There are no tokens and
no TLS: beyond this machine, put a proxy before it that has them.
${examples('downpour serve-model penguins-3f2a1c', 'downpour serve-model model/checkpoints/step-000001190-final-0011.safetensors --port 8080')}`,
    )
    .action(async (what: string, options: ServeModelOptions) => {
      const { serveModelCommand } = await import('./serve-model.ts');
      await serveModelCommand(what, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** Which parameters are looked at, on which examples. */
function addTrainedOptions(command: Command): Command {
  return addTokenOptions(
    command
      .option(
        '--run <run>',
        'run whose parameters to use (default: the newest run of the experiment, without trials of studies)',
      )
      .addOption(
        new Option(
          '--kind <kind>',
          'which of its checkpoints (default: final if it has finished, else best)',
        ).choices(['best', 'last', 'final']),
      )
      .option('--checkpoint <file>', 'a checkpoint file instead of a run')
      .option('--out <folder>', 'for report and figures')
      .addOption(serverOption())
      .addOption(stateOption())
      .addOption(dataOption())
      .addOption(engineOption())
      .addOption(jsonOption()),
  );
}

function registerLook(program: Command): void {
  const command = program
    .command('look')
    .description(
      'look at a trained model: worst errors, a random sample, which classes it confuses',
    )
    .argument('<experiment>', 'file of the experiment')
    .addOption(
      new Option('--part <part>', 'which examples; the test part is for `downpour test`')
        .choices(['train', 'validation'])
        .default('validation'),
    )
    .option('--worst <n>', 'examples of the highest loss', whole(1, 1000), 40)
    .option('--random <n>', 'examples at random', whole(1, 1000), 40)
    .option('--sample-seed <n>', 'of these', whole(0, Number.MAX_SAFE_INTEGER), 1)
    .option('--tensorboard <folder>', 'write the examples there too, for its tab of images');
  addTrainedOptions(command)
    .addHelpText(
      'after',
      `
Writes report.md, report.json and figures to --out (default: ./looks/<run>): contact sheets of the examples with
the highest loss and of a random sample, the confusion matrix, how much of the loss the worst examples have. Of a
run that was trained with --set observe.everySteps=100 also histograms of weights, gradients, updates and
activations over time, gradient norms, and update ratios. The server that has the run shows it on its dashboard.
${examples('downpour look examples/mnist-mlp.ts', 'downpour look my.ts --run my-3f2a1c --part train --worst 100')}`,
    )
    .action(async (file: string, options: LookOptions) => {
      const { lookCommand } = await import('./look.ts');
      await lookCommand(file, { ...options, stateGiven: isStateGiven(command) });
    });
}

function registerRefuse(program: Command): void {
  const command = program
    .command('refuse')
    .description('from which confidence to answer: coverage against accuracy, calibration')
    .argument('<experiment>', 'file of the experiment; of classes, or of yes and no')
    .option('--accuracy <list>', 'of the answers given, with commas', shares, [0.99])
    .option('--coverage <list>', 'shares of the examples to answer', shares, [0.9, 0.95])
    .option('--half-seed <n>', 'of the halves', whole(0, Number.MAX_SAFE_INTEGER), 1);
  addTrainedOptions(command)
    .addHelpText(
      'after',
      `
A model that leaves the examples it is unsure of to somebody else answers the others better (Deep Learning,
section 11.1). Fits a temperature on the validation part, and chooses thresholds of confidence there: all
numbers are of examples that the temperature and the threshold were not chosen on. Writes to --out (default:
./refusals/<run>) the curve of accuracy over coverage, and confidence against accuracy before and after; the
server that has the run shows them on its dashboard.
${examples('downpour refuse examples/mnist-mlp.ts --accuracy 0.99,0.999', 'downpour refuse my.ts --run my-3f2a1c --coverage 0.8')}`,
    )
    .action(async (file: string, options: RefuseOptions) => {
      const { refuseCommand } = await import('./refuse.ts');
      await refuseCommand(file, { ...options, stateGiven: isStateGiven(command) });
    });
}

function shares(text: string): number[] {
  const values = text.split(',').map(Number);
  if (values.every((value) => value > 0 && value <= 1)) return values;
  throw new InvalidArgumentError('Write shares above 0, at most 1, like 0.9,0.99.');
}
