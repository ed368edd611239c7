import type { Alert } from '../shared/rest.ts';
import { plural } from './format.ts';
import { h } from './html.ts';

/** What the server says should be looked at. */

/** Above each view: more than a few would push away what one came for. */
const SHOWN = 2;

export function alertList(alerts: readonly Alert[]): HTMLElement {
  if (alerts.length === 0) return h('p', { class: 'muted' }, 'Nothing needs to be looked at.');
  return h('ul', { class: 'alerts' }, ...alerts.map(alertItem));
}

export function alertStrip(alerts: readonly Alert[]): HTMLElement | null {
  const serious = alerts.filter(({ severity }) => severity !== 'info');
  if (serious.length === 0) return null;
  const more = serious.length - SHOWN;
  return h(
    'ul',
    { class: 'alerts' },
    ...serious.slice(0, SHOWN).map(alertItem),
    more > 0 &&
      h('li', { class: 'more' }, h('a', { href: '#/cluster' }, `${plural(more, 'more alert')}`)),
  );
}

function alertItem({ severity, run, text }: Alert): HTMLElement {
  return h(
    'li',
    { 'data-severity': severity },
    h('span', { class: 'severity' }, severity),
    h('span', {}, text),
    run !== null && h('a', { href: `#/runs/${run}`, 'aria-label': `Look at ${run}` }, 'Look'),
  );
}
