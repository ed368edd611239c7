import type { LogLine, RunLogLines } from '../../shared/rest.ts';
import { count } from '../format.ts';
import { h } from '../html.ts';
import { badge } from '../parts.ts';

/** The last lines of the server's log about a run, the newest first. */
export function logOf(run: string, { lines, dropped }: RunLogLines): HTMLElement {
  if (lines.length === 0) {
    return h(
      'p',
      { class: 'muted' },
      'Nothing was written about this run since the server started.',
    );
  }
  return h(
    'div',
    { class: 'scroll log', tabindex: 0, role: 'region', 'aria-label': 'Lines of the log' },
    h('ol', { class: 'plain' }, ...lines.toReversed().map((line) => lineOf(run, line))),
    dropped > 0 && h('p', { class: 'muted' }, `${count(dropped)} older lines are not kept.`),
  );
}

function lineOf(run: string, { at, level, text, code, repeated }: LogLine): HTMLElement {
  const own = text.replace(`run ${run}: `, '').replace(`run ${run} `, '');
  return h(
    'li',
    { 'data-level': level },
    h('time', { datetime: at, title: at }, timeOf(at)),
    level !== 'info' && badge(level === 'warn' ? 'warning' : 'error', level),
    h('span', { class: 'log-text' }, own),
    code !== null && h('code', {}, code),
    repeated > 0 && h('span', { class: 'sub' }, `and ${count(repeated)} more like this before`),
  );
}

/** The time of the machine that looks, with the day where it is not today. */
function timeOf(iso: string): string {
  const at = new Date(iso);
  const time = at.toLocaleTimeString('en-GB');
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${at.toLocaleDateString('en-CA')} ${time}`;
}
