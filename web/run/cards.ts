import { fieldsOf } from '../../shared/fields.ts';
import type { CheckpointSummary, RunDetail, RunSummary, WorkerSummary } from '../../shared/rest.ts';
import { stoppingText } from '../../shared/stopping.ts';
import { groupText } from '../../shared/text.ts';
import { BASE } from '../base.ts';
import { ago, bytes, count, errorOf, plural, short } from '../format.ts';
import { h } from '../html.ts';
import { badge, isActive, tableElement } from '../parts.ts';
import { isOperator, state } from '../store.ts';

/** What the cards of a run's page have in them, beside curves. */

/** @param tests whether the test part is looked at in the end. */
export function stoppingOf(run: RunSummary, tests: boolean): HTMLElement {
  const { enabled, metric, patience, patienceLeft, afterStop, stoppedAt, target, refitSteps } =
    run.earlyStopping;
  const watches = enabled && stoppedAt === null;
  const used = patience === 0 ? 0 : (patience - patienceLeft) / patience;
  const { best } = run;
  const value =
    best === null ? null : metric === 'error' ? errorOf(run)(best.error) : short(best.loss);
  const path = [
    'training',
    ...(afterStop === 'restore' ? [] : ['refitting']),
    ...(tests || run.test !== null || run.phase === 'testing' ? ['testing'] : []),
    'finished',
  ];
  const at = path.indexOf(run.phase === 'measuring' ? 'refitting' : run.phase);
  return h(
    'div',
    { class: 'stopping' },
    h(
      'ol',
      { class: 'path', 'aria-label': 'Phases' },
      ...path.map((name, i) =>
        h('li', { class: i < at ? 'done' : '', 'aria-current': i === at ? 'step' : null }, name),
      ),
    ),
    h(
      'dl',
      { class: 'pairs' },
      ...pair(enabled ? 'Watches' : 'Chooses the best by', `validation ${metric}`),
      ...pair(
        'Best',
        best === null
          ? 'none yet'
          : `${value} at step ${count(best.step)}, epoch ${count(best.epoch)}`,
      ),
      ...(watches
        ? pair('Patience left', `${count(patienceLeft)} of ${plural(patience, 'evaluation')}`)
        : []),
      ...(stoppedAt === null ? [] : pair('Stopped at', `step ${count(stoppedAt)}`)),
      ...(target === null ? [] : pair('Target loss', short(target))),
      ...(refitSteps === null ? [] : pair('Updates since', count(refitSteps))),
      ...(run.test === null
        ? []
        : pair(
            'Test',
            `${run.test.error === null ? '' : `${errorOf(run)(run.test.error)} error, `}loss ${short(run.test.loss)}${run.testedAt === null ? '' : `, looked at ${ago(run.testedAt)}`}`,
          )),
    ),
    watches &&
      h(
        'div',
        { class: 'meter', role: 'img', 'aria-label': `${patienceLeft} of ${patience} left` },
        h('span', { style: { width: `${100 * (1 - used)}%` } }),
      ),
    h('p', { class: 'muted' }, `${stoppingText(run, count)}.`),
  );
}

const pair = (term: string, value: string | Node) => [h('dt', {}, term), h('dd', {}, value)];

/** As far as the page shows them: that they were seen just now is nothing new. */
export const workersHere = (run: RunSummary) =>
  [...state.workers.values()]
    .filter((worker) => worker.run === run.id && worker.state !== 'gone')
    .map((worker) => ({ ...worker, lastSeenSecondsAgo: 0 }));

export function workersOf(run: RunSummary, mine: readonly WorkerSummary[]): HTMLElement {
  if (mine.length === 0) {
    return h(
      'p',
      { class: 'muted' },
      isActive(run)
        ? `No worker serves this run now. Start one: npx downpour work --run ${run.id}`
        : 'None: the run is over.',
    );
  }
  return h(
    'ul',
    { class: 'plain columns' },
    ...mine.map((worker) =>
      h(
        'li',
        {},
        h('strong', {}, worker.worker),
        ' ',
        badge(worker.quarantine === null ? worker.state : 'quarantined'),
        h(
          'span',
          { class: 'sub' },
          `${worker.engine} on ${worker.device} · ${plural(worker.pushes.applied + worker.pushes.damped, 'push', 'pushes')} · ${short(worker.computeMsMean)} ms a gradient`,
        ),
      ),
    ),
  );
}

export function eventsOf(run: RunSummary): HTMLElement | null {
  const lines = run.rollbacks.map(({ step, to, learningRate, reason }) =>
    h(
      'li',
      {},
      h('strong', {}, `Diverged at step ${count(step)}`),
      h(
        'span',
        { class: 'sub' },
        `back to ${to === null ? 'the initial parameters' : `step ${count(to)}`} with learning rate ${short(learningRate)}: ${reason}`,
      ),
    ),
  );
  if (run.workerFailure) {
    const { worker, step, code, message, at } = run.workerFailure;
    lines.push(
      h(
        'li',
        {},
        h('strong', {}, `Worker ${worker} failed at step ${count(step)}`),
        h('span', { class: 'sub', title: at }, `${code}: ${message}`),
      ),
    );
  }
  if (run.stepsLost > 0) {
    lines.push(
      h(
        'li',
        {},
        h('strong', {}, `${plural(run.stepsLost, 'update')} lost`),
        h('span', { class: 'sub' }, 'with crashes of the server, after their last checkpoints'),
      ),
    );
  }
  return lines.length === 0 ? null : h('ul', { class: 'plain' }, ...lines);
}

/** @returns null: the run has no tables. */
export function tableCard({ tables = [], pushes }: RunSummary): HTMLElement | null {
  if (tables.length === 0) return null;
  const applied = pushes.applied + pushes.damped;
  const rows = tables.map((table) =>
    h(
      'tr',
      { 'data-table': table.name },
      h('td', {}, table.name),
      ...[
        `${count(table.rows)} of ${count(table.rowsMax)}`,
        count(table.width),
        bytes(table.memoryBytes),
        count(table.updates),
        applied === 0 ? '–' : short(table.updates / applied),
        table.staleness === null
          ? '–'
          : `${short(table.staleness.mean)} / ${count(table.staleness.max)}`,
        `${count(table.admitted)} / ${count(table.forgotten)}`,
        count(table.dropped),
      ].map((text) => h('td', { class: 'number' }, text)),
    ),
  );
  const headings = [
    ...['Table', 'Rows', 'Width', 'Memory', 'Rows updated', 'Rows in a push'],
    ...['Staleness, mean / max', 'Admitted / forgotten', 'Gradients dropped'],
  ];
  return tableElement('Tables of rows', headings, rows, [
    '',
    ...headings.slice(1).map(() => 'number'),
  ]);
}

export function checkpointTable(
  id: string,
  list: readonly CheckpointSummary[],
  beginWith: (checkpoint: CheckpointSummary) => void,
): HTMLElement {
  if (list.length === 0) return h('p', { class: 'muted' }, 'The first one is still to come.');
  const newest = new Map(list.map((checkpoint) => [checkpoint.kind, checkpoint.file]));
  const rows = list.toReversed().map((checkpoint) => {
    const { kind, step, createdAt, file, bytes: size } = checkpoint;
    return h(
      'tr',
      {},
      h('td', {}, badge(kind, 'neutral')),
      h('td', { class: 'number' }, count(step)),
      h('td', { title: createdAt }, ago(createdAt)),
      h('td', { class: 'number' }, bytes(size)),
      h(
        'td',
        { class: 'row-actions' },
        newest.get(kind) === file &&
          h(
            'a',
            {
              class: 'quiet',
              href: `${BASE}/runs/${id}/checkpoints/${kind}/file`,
              download: '',
              'aria-label': `Export the ${kind} checkpoint of step ${step}`,
            },
            'Export',
          ),
        isOperator() &&
          h(
            'button',
            {
              type: 'button',
              class: 'quiet',
              'aria-label': `New run from the ${kind} checkpoint of step ${step}`,
              onClick: () => beginWith(checkpoint),
            },
            'New run',
          ),
      ),
    );
  });
  return tableElement(
    'Checkpoints',
    ['Kind', 'Step', 'Age', 'Size', h('span', { class: 'hidden' }, 'Actions')],
    rows,
    ['', 'number', '', 'number', ''],
  );
}

export function configurationOf(run: RunDetail): HTMLElement {
  const lines: [string, string][] = [
    ['experiment', run.experiment],
    ['experimentHash', run.experimentHash.slice(0, 16)],
    ['parameters', run.parameters === null ? '–' : count(run.parameters)],
    ...(run.data
      ? ([
          [
            'data',
            `${run.data.source}: ${count(run.data.trainCount)} training, ${count(run.data.validationCount)} validation, ${count(run.data.testCount)} test examples`,
          ],
        ] as [string, string][])
      : []),
    ...(run.dataNote ? ([['mind', run.dataNote]] as [string, string][]) : []),
    // A server of an older release tells none of them.
    ...(run.inputShape
      ? ([['inputs', `[${run.inputShape.join(', ')}]`]] as [string, string][])
      : []),
    ...(run.classes ? ([['classes', run.classes.join(', ')]] as [string, string][]) : []),
    ...fieldsOf(run.config),
  ];
  const values = h(
    'details',
    {},
    h('summary', {}, `${lines.length} values`),
    h(
      'dl',
      { class: 'pairs columns' },
      ...lines.flatMap(([name, value]) => pair(name, h('code', {}, value))),
    ),
  );
  const table = groupsTable(run);
  return table ? h('div', {}, table, values) : values;
}

/** @returns null: the run has no groups. */
function groupsTable({ groups, config }: RunDetail): HTMLElement | null {
  if (!groups || groups.length === 0) return null;
  const rows = groups.map((group) => {
    const { schedule, learningRate } = config.groups?.[group.name] ?? {};
    const rate = `${learningRate ?? 1} × ${schedule ? 'its own schedule' : 'that of the run'}`;
    const parameters = group.parameters === null ? '–' : count(group.parameters);
    return h(
      'tr',
      {},
      ...[group.name, group.pattern.join(', ')].map((text) => h('td', {}, text)),
      h('td', { class: 'number' }, parameters),
      ...[rate, groupText(group)].map((text) => h('td', {}, text)),
    );
  });
  const headings = ['Group', 'Tensors', 'Parameters', 'Learning rate', 'State'];
  return tableElement('Groups of parameters', headings, rows, ['', '', 'number', '', '']);
}
