import { type Command, InvalidArgumentError, Option } from 'commander';
import { LIMITS } from '../../shared/limits.ts';
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
import type { ReportOptions } from './report.ts';
import type { SampleOptions } from './sample.ts';
import type { ServeModelOptions } from './serve-model.ts';
import { VECTOR_FORMATS } from './vector-formats.ts';

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
    .description('write trained parameters, or the training history, for other programs')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .requiredOption('--to <folder>', 'folder to write to; created if missing')
    .addOption(
      new Option(
        '--format <format>',
        'safetensors: parameters; tfjs: model.json and weights.bin; word2vec, glove: rows of tables as text with the word of each id; projector: the same for the projector of TensorBoard; tensorboard: training history as an event file; jsonl: training history with one line per step, as Weights & Biases has it',
      )
        .choices(['safetensors', 'tfjs', ...VECTOR_FORMATS, 'tensorboard', 'jsonl'])
        .default('safetensors'),
    )
    .addOption(
      new Option(
        '--kind <kind>',
        'checkpoint to take the parameters from (default: final if the run has finished, otherwise best)',
      ).choices(['best', 'last', 'final']),
    )
    .option('--table <name>', 'word2vec, glove, projector: only this table (default: all tables)')
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
        'downpour export mails-1 --to vectors --format word2vec --table word',
        'downpour export mnist-mlp-1 --to logs/mnist-mlp-1 --format tensorboard',
        'downpour export .downpour/mnist-mlp-1/checkpoints/step-000001234-best-0007.safetensors --to exported',
      ),
    )
    .action(async (what: string, options: ExportOptions) => {
      const { exportCommand } = await import('./export.ts');
      await exportCommand(what, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** `report`. */
export function registerReport(program: Command): void {
  const command = program
    .command('report')
    .description('write a report of a run as one HTML file to send: curves, results, configuration')
    .argument('<run>', 'name of a run')
    .option('--html <file>', 'file to write (default: the name of the run, ending in .html)')
    .addOption(serverOption())
    .addOption(stateOption())
    .addOption(jsonOption());
  addTokenOptions(command)
    .addHelpText('after', examples('downpour report mnist-mlp-1 --html mnist-mlp-1.html'))
    .action(async (run: string, options: ReportOptions) => {
      const { reportCommand } = await import('./report.ts');
      await reportCommand(run, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** Where the model of `predict`, `serve-model` and `sample` comes from. */
function addModelOptions(command: Command): Command {
  return addTokenOptions(
    command
      .addOption(
        new Option(
          '--kind <kind>',
          'checkpoint of the run (default: final if the run has finished, otherwise best)',
        ).choices(['best', 'last', 'final']),
      )
      .option(
        '--tokenizer <file>',
        'file of the tokenizer that the run was trained with (default: where it was then)',
      )
      .addOption(experimentsOption())
      .addOption(serverOption())
      .addOption(stateOption())
      .addOption(engineOption()),
  );
}

const unknownOption = () =>
  new Option(
    '--unknown <what>',
    'a category that the model has never seen: error, or none: it sets none of the inputs of its column',
  )
    .choices(['error', 'none'])
    .default('error');

/** `predict`. */
export function registerPredict(program: Command): void {
  const command = program
    .command('predict')
    .description(
      'predict for new data: tables with the training columns, pictures, or folders of either',
    )
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .argument(
      '<data...>',
      'files and folders of the same kind as the training data; targets are optional',
    )
    .option('--out <file>', 'CSV file to write (default: print the predictions)');
  addModelOptions(command.addOption(unknownOption()))
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
A run stores how its data were read (columns, categories, dates, missing values, picture sizes) and how its inputs were
standardised. predict reads new data in the same way. A cell that does not fit is an error that names its line and column.
Each output row has the input line or file and the prediction; for classes also the confidence and the probability of each
class. If the training data did not come from a table or pictures, a table has one column per number of each field, and a file
.jsonl has one object per line, with the fields by name. Several files, a folder of .csv and .tsv files, or a pattern such as '2026-*.csv' make one list with the file of each row. With --json each row is a JSON object on its own line.
${examples('downpour predict penguins-3f2a1c new-penguins.csv --out answers.csv', 'downpour predict birds-9c01de photos/')}`,
    )
    .action(async (what: string, data: string[], options: PredictOptions) => {
      const { predictCommand } = await import('./predict.ts');
      await predictCommand(what, data, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** `serve-model`. */
export function registerServeModel(program: Command): void {
  const command = program
    .command('serve-model')
    .description('serve predictions over HTTP: POST /predict')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .option('--host <host>', 'address to listen on', '127.0.0.1')
    .option('--port <port>', 'port to listen on; 0 takes a free one', whole(0, 65_535), 7430);
  addModelOptions(command.addOption(unknownOption()))
    .addHelpText(
      'after',
      `
POST /predict takes { "examples": […] }. A table row is an object with one field per column. A picture is
{ "picture": "<base64 of a file>" }. The answer has one prediction per example; for classes also confidence and probabilities.
Requests that arrive at the same time are computed together. GET / describes the model, and GET /openapi.json the interface.
There are no tokens and no TLS: for access from other machines, put a proxy with both in front of it.
${examples('downpour serve-model penguins-3f2a1c', 'downpour serve-model model/checkpoints/step-000001190-final-0011.safetensors --port 8080')}`,
    )
    .action(async (what: string, options: ServeModelOptions) => {
      const { serveModelCommand } = await import('./serve-model.ts');
      await serveModelCommand(what, { ...options, stateGiven: isStateGiven(command) });
    });
}

/** `sample`. */
export function registerSample(program: Command): void {
  const command = program
    .command('sample')
    .description('write a text by a language model: characters, words or tokens of a tokenizer')
    .argument('<run or file>', 'name of a run, or a checkpoint file')
    .option('--prompt <text>', 'beginning of the text', '')
    .option('--length <tokens>', 'tokens to write', whole(1, LIMITS.sampledTokensMax), 200)
    .option(
      '--temperature <t>',
      'what the logits are divided by: below 1, likely tokens become more likely; 0 always takes the most likely one',
      temperature,
      1,
    )
    .option(
      '--top <k>',
      'draw only from the k most likely tokens (default: from all)',
      whole(1, LIMITS.vocabularySizeMax),
    )
    .option(
      '--seed <n>',
      'seed of the random draws; the text is the same with the same seed (default: another seed each time)',
      whole(0, Number.MAX_SAFE_INTEGER),
    );
  addModelOptions(command)
    .addOption(jsonOption())
    .addHelpText(
      'after',
      `
The run must be a language model: its data come from \`textWindows\`, and it gives logits for the token after each token, as the
experiments of \`downpour init\` for a text do. It reads as many tokens as its windows have. The data are not needed. The text is
written while it is made; Ctrl-C ends it. The same seed gives the same text on the same engine.
${examples('downpour sample book-3f2a1c --prompt "The king" --length 500', 'downpour sample book-3f2a1c --temperature 0.7 --top 40 --seed 1')}`,
    )
    .action(async (what: string, options: SampleOptions) => {
      const { sampleCommand } = await import('./sample.ts');
      await sampleCommand(what, { ...options, stateGiven: isStateGiven(command) });
    });
}

function temperature(text: string): number {
  const value = Number(text);
  if (value >= 0 && value <= LIMITS.temperatureMax && text.trim() !== '') return value;
  throw new InvalidArgumentError(`Write a number from 0 to ${LIMITS.temperatureMax}, like 0.7.`);
}

/** Which parameters are looked at, on which examples. */
function addTrainedOptions(command: Command): Command {
  return addTokenOptions(
    command
      .option(
        '--run <run>',
        'run to take the parameters from (default: the newest run of the experiment that is not a trial of a study)',
      )
      .addOption(
        new Option(
          '--kind <kind>',
          'checkpoint of the run (default: final if the run has finished, otherwise best)',
        ).choices(['best', 'last', 'final']),
      )
      .option('--checkpoint <file>', 'use this checkpoint file instead of a run')
      .option(
        '--output <name>',
        'output of an experiment with several outputs (default: all that the command can use)',
      )
      .option('--out <folder>', 'folder for the report and the figures')
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
    .description('inspect a trained model: worst errors, a random sample, confused classes')
    .argument('<experiment>', 'file of the experiment')
    .addOption(
      new Option(
        '--part <part>',
        'part of the data to take examples from; for the test part use `downpour test`',
      )
        .choices(['train', 'validation'])
        .default('validation'),
    )
    .option('--worst <n>', 'number of examples with the highest loss', whole(1, 1000), 40)
    .option('--random <n>', 'number of random examples', whole(1, 1000), 40)
    .option(
      '--sample-seed <n>',
      'random seed for choosing the random examples',
      whole(0, Number.MAX_SAFE_INTEGER),
      1,
    )
    .option(
      '--near <word...>',
      'words whose nearest words are listed, in each table or embedding whose ids have a vocabulary (default: words of all frequencies, and words with a high loss)',
    )
    .option(
      '--tensorboard <folder>',
      'also write the examples to this TensorBoard folder, as images',
    );
  addTrainedOptions(command)
    .addHelpText(
      'after',
      `
Writes report.md, report.json and figures to --out (default: ./looks/<run>): contact sheets of the examples with the highest
loss and of a random sample, the confusion matrix, and the share of the loss that comes from the worst examples. If the
experiment has a batch, minibatch.svg shows the first training minibatch as the model sees it. If the ids of an input have a vocabulary, there are
also the words with the highest mean loss, and the nearest neighbours of words in each table or embedding. If the run
was trained with --set observe.everySteps=100, there are also histograms of weights, gradients, updates and activations over
time, gradient norms and update ratios. The dashboard of the run's server shows the same.
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
    .description(
      'choose the confidence below which to refuse an answer: coverage, accuracy, calibration',
    )
    .argument('<experiment>', 'file of the experiment; it must be a classification')
    .option(
      '--accuracy <list>',
      'accuracies that the given answers should reach, separated by commas',
      shares,
      [0.99],
    )
    .option(
      '--coverage <list>',
      'fractions of the examples to answer, separated by commas',
      shares,
      [0.9, 0.95],
    )
    .option(
      '--half-seed <n>',
      'random seed that splits the validation examples into halves',
      whole(0, Number.MAX_SAFE_INTEGER),
      1,
    );
  addTrainedOptions(command)
    .addHelpText(
      'after',
      `
A model that refuses to answer when it is unsure is more accurate on the examples that it does answer (Deep Learning,
section 11.1). This command fits a temperature and chooses confidence thresholds on the validation part. Every number it
reports comes from examples that were not used to choose the temperature or the threshold. It writes two plots to --out
(default: ./refusals/<run>): accuracy against coverage, and confidence against accuracy before and after calibration. The
dashboard of the run's server shows them too.
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
