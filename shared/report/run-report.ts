import { fieldsOf } from '../fields.ts';
import { escapeXml } from '../plot.ts';
import type {
  CheckpointSummary,
  Evaluation,
  Metrics,
  RunDetail,
  RunExamples,
  StudyDetail,
} from '../rest.ts';
import type { RestClient } from '../rest-client.ts';
import { errorFormat } from '../text.ts';
import { VERSION } from '../version.ts';
import { curvesOf, figureHtml, galleryHtml } from './figures.ts';

/**
 * A run as one HTML file to send: it holds its pictures and its style, loads nothing, and has no script. All that
 * comes from users and workers is escaped.
 */

export interface RunReportFacts {
  readonly run: RunDetail;
  readonly metrics: Metrics;
  readonly checkpoints: readonly CheckpointSummary[];
  readonly examples: RunExamples;
  /** Looks at the model of this run: `look`, `refuse`. */
  readonly looks: readonly StudyDetail[];
}

/** Points of each curve: about as many as a page has pixels. */
const POINTS = 600;

/** @throws DownpourError of the server's answers. What a server of an older release does not have is left out. */
export async function readRunReport(client: RestClient, id: string): Promise<RunReportFacts> {
  const none = { step: null, at: null, examples: [] };
  const [run, metrics, checkpoints, studies, examples] = await Promise.all([
    client.run(id),
    client.metrics(id, POINTS),
    client.checkpoints(id),
    client.studies(),
    client.examples(id).catch(() => none),
  ]);
  const names = studies.filter((study) => study.run === id).map(({ name }) => name);
  const looks = await Promise.all(names.map((name) => client.study(name)));
  return { run, metrics, checkpoints, examples, looks };
}

const STYLE = `
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #14202b; background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { margin: 0; overflow-wrap: anywhere; } h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid #dfe4ea; }
svg { max-width: 100%; height: auto; } p, td, dd { overflow-wrap: anywhere; }
.muted, dt { color: #566473; } .note { white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .scroll { overflow-x: auto; }
th, td { padding: 5px 9px; border-bottom: 1px solid #e9edf1; text-align: left; }
.gallery { display: flex; flex-wrap: wrap; gap: 10px; padding: 0; list-style: none; }
.gallery li { width: 8.5rem; padding: 8px; border: 1px solid #dfe4ea; border-radius: 8px; font-size: .8rem;
  overflow-wrap: anywhere; } .gallery .wrong { border-color: #c9510c; }
.gallery img { image-rendering: pixelated; display: block; } pre { margin: 0; white-space: pre-wrap; }
code { font-size: .86em; } @media print { body { margin: 0; } h2 { break-after: avoid; } }`;

/** @param at when it is written, ISO 8601. @returns a whole page. */
export function runReportHtml(facts: RunReportFacts, at: string): string {
  const { run, metrics, checkpoints, examples, looks } = facts;
  const title = escapeXml(run.name ?? run.id);
  const curves = curvesOf(run, metrics).map(figureHtml);
  const sections = [
    section('Result', pairs(resultOf(run))),
    section('Curves', curves.join('\n')),
    section('What happened', happened(run)),
    section(
      'Predictions',
      examples.examples.length === 0
        ? ''
        : `<p class="muted">Examples of the validation part at step ${examples.step}; wrong answers have a frame.</p>${galleryHtml(examples.examples)}`,
    ),
    ...looks.map(lookHtml),
    section('Data', pairs(dataOf(run))),
    section('Checkpoints', checkpointsHtml(checkpoints)),
    section('Configuration', pairs(fieldsOf(run.config))),
  ];
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title><style>${STYLE}</style></head><body>
<h1>${title}</h1>
<p class="muted">${escapeXml(`Run ${run.id} of ${run.experiment}, created ${run.createdAt}. Report of Downpour ${VERSION}, written ${at}.`)}</p>
${run.tags?.length ? `<p class="muted">Tags: ${escapeXml(run.tags.join(', '))}</p>` : ''}
${run.note ? `<p class="note">${escapeXml(run.note)}</p>` : ''}
${sections.join('\n')}
</body></html>
`;
}

/** Nothing, where there is nothing to say. */
const section = (title: string, html: string) =>
  html === '' ? '' : `<section><h2>${escapeXml(title)}</h2>${html}</section>`;

const pairs = (lines: readonly (readonly [string, string])[]) =>
  lines.length === 0
    ? ''
    : `<dl>${lines.map(([name, value]) => `<dt>${escapeXml(name)}</dt><dd>${escapeXml(value)}</dd>`).join('')}</dl>`;

const number = (value: number | null | undefined) =>
  value == null ? '–' : String(Number(value.toPrecision(4)));
const grouped = (value: number) => new Intl.NumberFormat('en').format(Math.round(value));

function resultOf(run: RunDetail): (readonly [string, string])[] {
  const error = errorFormat(run.errorMeasure, number);
  const told = (evaluation: Evaluation | null) => {
    if (!evaluation) return 'none';
    const metrics = Object.entries(evaluation.metrics).map(
      ([name, value]) => `, ${name} ${number(value)}`,
    );
    return `error ${error(evaluation.error)}, loss ${number(evaluation.loss)}${metrics.join('')}, at step ${grouped(evaluation.step)}`;
  };
  return [
    ['state', `${run.phase}: ${run.reason}`],
    ['best validation', told(run.best)],
    ...(run.test ? [['test, once', told(run.test)] as const] : []),
    [
      'steps',
      `${grouped(run.step)} updates, ${grouped(run.examples)} examples, epoch ${run.epoch}`,
    ],
    ['training time', `${grouped(run.seconds)} s`],
    ['parameters', run.parameters === null ? '–' : grouped(run.parameters)],
    [
      'staleness',
      run.staleness ? `median ${run.staleness.p50}, 95 % up to ${run.staleness.p95}` : '–',
    ],
  ];
}

function dataOf({ data, dataNote, inputShape, classes, experimentHash }: RunDetail) {
  return [
    ['version of the experiment', experimentHash],
    ...(data
      ? [
          ['source', data.source],
          [
            'examples',
            `${grouped(data.trainCount)} training, ${grouped(data.validationCount)} validation, ${grouped(data.testCount)} test`,
          ],
          ['fingerprint', data.fingerprint],
        ]
      : []),
    ...(inputShape ? [['inputs', `[${inputShape.join(', ')}]`]] : []),
    ...(classes ? [['classes', classes.join(', ')]] : []),
    ...(dataNote ? [['mind', dataNote]] : []),
  ] as [string, string][];
}

function happened({ rollbacks, stepsLost }: RunDetail): string {
  const lines = rollbacks.map(
    ({ step, to, learningRate, reason }) =>
      `Diverged at step ${step}: back to ${to === null ? 'the initial parameters' : `step ${to}`} with learning rate ${number(learningRate)}: ${reason}`,
  );
  if (stepsLost > 0)
    lines.push(`${grouped(stepsLost)} updates were lost with crashes of the server.`);
  return lines.length === 0
    ? ''
    : `<ul>${lines.map((line) => `<li>${escapeXml(line)}</li>`).join('')}</ul>`;
}

function lookHtml({ title, advice, figures, headings, rows }: StudyDetail): string {
  const table = tableHtml(headings, rows);
  const words = advice === '' ? '' : `<p>${escapeXml(advice.replaceAll('`', ''))}</p>`;
  return section(title, words + figures.map(figureHtml).join('\n') + table);
}

function tableHtml(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return '';
  const head = headings.map((text) => `<th scope="col">${escapeXml(text)}</th>`).join('');
  const body = rows.map(
    (row) => `<tr>${row.map((text) => `<td>${escapeXml(text)}</td>`).join('')}</tr>`,
  );
  return `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${body.join('')}</tbody></table></div>`;
}

const checkpointsHtml = (checkpoints: readonly CheckpointSummary[]) =>
  tableHtml(
    ['kind', 'step', 'created', 'bytes', 'file', 'SHA-256'],
    checkpoints.map(({ kind, step, createdAt, bytes, file, sha256 }) => [
      ...[kind, grouped(step), createdAt, grouped(bytes), file, sha256],
    ]),
  );
