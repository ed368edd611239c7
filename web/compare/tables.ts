import type { RunSummary } from '../../shared/rest.ts';
import { count, duration, errorOf, short } from '../format.ts';
import { h } from '../html.ts';
import { lineDashesOf, styledColorOf } from '../palette.ts';
import { badge, swatch, tableElement } from '../parts.ts';
import type { Difference, RunGroup } from './groups.ts';

/** The tables below compared curves: the runs, and what their configurations differ in. */

const RUN_COLUMNS: readonly (readonly [title: string, kind: string])[] = [
  ...([
    ['Run', ''],
    ['Group', 'col-group'],
    ['State', ''],
  ] as const),
  ...([
    ['Step', 'number'],
    ['Training loss', 'number'],
    ['Best loss', 'number'],
  ] as const),
  ...([
    ['Best error', 'number'],
    ['Time', 'number'],
  ] as const),
];

export const runHeadings = () =>
  RUN_COLUMNS.map(([title, kind]) => h('th', { scope: 'col', class: kind }, title));

/** @param group of the run, and its place among the groups. */
export function runRow(run: RunSummary, group: RunGroup, index: number): HTMLElement {
  const { best } = run;
  const color = styledColorOf(index);
  return h(
    'tr',
    { 'data-run': run.id },
    h(
      'td',
      {},
      swatch(color, lineDashesOf(index)),
      ' ',
      h('a', { class: 'run-name inline', href: `#/runs/${run.id}` }, run.id),
    ),
    h('td', { class: 'long col-group' }, group.label === run.id ? '' : group.label),
    h('td', {}, badge(run.phase)),
    h('td', { class: 'number' }, count(run.step)),
    h('td', { class: 'number' }, short(run.trainingLoss)),
    h('td', { class: 'number' }, short(best?.loss)),
    h('td', { class: 'number' }, errorOf(run)(best?.error)),
    h('td', { class: 'number' }, duration(run.seconds)),
  );
}

/** Fields in rows, groups in columns; more groups than this would be read by nobody. */
export const GROUPS_SHOWN = 24;

export function differencesTable(
  groups: readonly RunGroup[],
  found: readonly Difference[],
): HTMLElement {
  const shown = groups.slice(0, GROUPS_SHOWN);
  const headings = shown.map((group, i) =>
    h(
      'span',
      { class: 'heading-group' },
      swatch(styledColorOf(i), lineDashesOf(i)),
      ' ',
      group.runs.length === 1 ? group.runs[0]! : `${group.runs[0]} + ${group.runs.length - 1}`,
    ),
  );
  const rows = found.map(({ field, values }) =>
    h(
      'tr',
      { 'data-field': field },
      h('th', { scope: 'row' }, field),
      ...values
        .slice(0, GROUPS_SHOWN)
        .map((each) => h('td', { class: 'long' }, h('code', {}, textOf(each)))),
    ),
  );
  return tableElement('Differences', ['Field', ...headings], rows);
}

const VALUES_SHOWN = 12;

function textOf(values: readonly string[]): string {
  const more = values.length - VALUES_SHOWN;
  return values.slice(0, VALUES_SHOWN).join(', ') + (more > 0 ? `, and ${more} more` : '');
}
