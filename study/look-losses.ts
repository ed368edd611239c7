import type { ExampleView, SeenExample } from '../shared/example-view.ts';
import { permutation } from '../shared/random.ts';
import { contactSheet, type SheetCard } from './figures.ts';
import { concentrationAdvice, type LookSettings, lossesChart } from './look.ts';
import { numberText, type Report } from './report.ts';
import { meanOf } from './statistics.ts';

/** Looking at a model with an objective: it has a loss for each example, and no single answer to compare with a target. */

export interface LookedLosses {
  readonly examples: readonly {
    /** Index in the part. */
    readonly row: number;
    readonly loss: number;
    readonly error: number;
  }[];
  /** Examples that the part has. */
  readonly count: number;
  /** An example by its index in the part. */
  readonly show: (row: number) => ExampleView;
  /** What the model makes of it; absent: its output is no such example. */
  readonly showOutput?: (row: number) => ExampleView;
  readonly minibatch?: readonly SeenExample[];
}

export function lookLossesReport(settings: LookSettings, looked: LookedLosses): Report {
  const { name, part } = settings;
  const { examples, count, show, showOutput, minibatch = [] } = looked;
  const known = examples.filter(({ loss }) => Number.isFinite(loss));
  const sorted = [...known].sort((a, b) => b.loss - a.loss);
  const worst = sorted.slice(0, settings.worst);
  const order = permutation(settings.seed, 0, examples.length);
  const random = Array.from(order.subarray(0, settings.random), (i) => examples[i]!);
  const hasError = examples.some(({ loss, error }) => error !== loss);
  const told = ({ loss, error }: (typeof examples)[number]) =>
    hasError ? `loss ${numberText(loss)}, error ${numberText(error)}` : `loss ${numberText(loss)}`;
  const cards = (list: typeof examples) =>
    list.flatMap((example): SheetCard[] => {
      const caption = [told(example), `${part} ${example.row}`];
      const card = { shown: show(example.row), caption, wrong: false };
      if (!showOutput) return [card];
      const output = { shown: showOutput(example.row), caption: ['what the model makes of it'] };
      return [card, { ...output, wrong: false }];
    });
  const losses = sorted.map(({ loss }) => loss);
  const total = losses.reduce((a, b) => a + b, 0);
  const parts = losses.length > 0 ? [`The mean loss is ${numberText(meanOf(losses))}.`] : [];
  parts.push(...concentrationAdvice({ losses, total }));
  if (known.length < examples.length) {
    parts.push(`The loss is finite for ${known.length} of the ${examples.length} examples.`);
  }
  if (examples.length < count) {
    parts.push(
      `An objective is computed for one example at a time here, so ${examples.length} of the ${count} examples were looked at, evenly spaced.`,
    );
  }
  return {
    title: `Looking at ${name} on the ${part} part`,
    headings: ['example', 'loss', ...(hasError ? ['error'] : [])],
    rows: worst.map(({ row, loss, error }) => [
      ...[String(row), numberText(loss)],
      ...(hasError ? [numberText(error)] : []),
    ]),
    advice: parts.join(' '),
    plots: {
      'worst.svg': contactSheet('Highest losses', cards(worst)),
      'random.svg': contactSheet('A random sample', cards(random)),
      ...(minibatch.length > 0 && {
        'minibatch.svg': contactSheet(
          'A training minibatch as the model sees it',
          minibatch.map(({ shown, row }) => ({
            ...{ shown, wrong: false, caption: row === null ? [] : [`train ${row}`] },
          })),
        ),
      }),
      'losses.svg': lossesChart(losses, total),
    },
    facts: { name, part, worst, random, examples: examples.length },
  };
}

/** Reports of several outputs as one: the rows and the figures of each have its name. */
export function joinReports(reports: Readonly<Record<string, Report>>): Report {
  const all = Object.entries(reports);
  const [, first] = all[0]!;
  if (all.length === 1) return first;
  return {
    title: first.title,
    headings: ['output', ...first.headings],
    rows: all.flatMap(([name, { rows }]) => rows.map((row) => [name, ...row])),
    advice: all.map(([name, { advice }]) => `Output ${name}: ${advice}`).join(' '),
    plots: Object.fromEntries(
      all.flatMap(([name, { plots }]) =>
        Object.entries(plots).map(([file, plot]) => {
          const isOfAll = file === 'minibatch.svg';
          return [
            isOfAll ? file : `${name}-${file}`,
            isOfAll ? plot : { ...plot, title: `${name}: ${plot.title}` },
          ];
        }),
      ),
    ),
    facts: { outputs: Object.fromEntries(all.map(([name, { facts }]) => [name, facts])) },
  };
}
