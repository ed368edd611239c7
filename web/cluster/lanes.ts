import type { Timeline, WorkerSummary } from '../../shared/rest.ts';
import { percent } from '../../shared/text.ts';
import { duration } from '../format.ts';
import { fill, h, svg } from '../html.ts';
import { card } from '../parts.ts';

/** What each worker did in the last minutes, one bar each. */

/** The states of a worker as the picture has them. */
const LANES: Readonly<Record<WorkerSummary['state'], string>> = {
  training: 'computing',
  evaluating: 'evaluating',
  waiting: 'waiting',
  joining: 'waiting',
  idle: 'idle',
  gone: 'gone',
};
const LANE_NAMES = ['computing', 'evaluating', 'waiting', 'idle', 'gone'];

export class Lanes {
  readonly element: HTMLElement;
  readonly #lanes = h('div', { class: 'lanes' });

  constructor() {
    const names = LANE_NAMES.map((name) =>
      h(
        'span',
        { class: 'legend-item' },
        h('span', { class: 'lane-swatch', 'data-lane': name }),
        name,
      ),
    );
    const legend = h('div', { class: 'legend', 'aria-hidden': 'true' }, ...names);
    this.element = card('What they did of late', legend, this.#lanes);
  }

  show({ seconds, workers }: Timeline): void {
    this.element.hidden = workers.length === 0;
    // As long as anybody is known, so that the first minute of a cluster is not a sliver.
    const oldest = Math.max(60, ...workers.map(({ states }) => states[0]?.secondsAgo ?? 0));
    const span = Math.min(seconds, oldest);
    fill(this.#lanes, ...workers.map((each) => laneOf(each, span)), axisOf(span));
  }
}

const axisOf = (span: number) =>
  h(
    'div',
    { class: 'lane axis', 'aria-hidden': 'true' },
    h('span', {}),
    h('span', {}, h('span', {}, `${duration(span)} ago`), h('span', {}, 'now')),
  );

/** One worker's time as a bar, and in words for those who do not see it. */
function laneOf({ worker, states }: Timeline['workers'][number], seconds: number): HTMLElement {
  const shares = new Map<string, number>();
  const bars = states.map(({ state: what, secondsAgo }, i) => {
    const end = states[i + 1]?.secondsAgo ?? 0;
    const lane = LANES[what];
    shares.set(lane, (shares.get(lane) ?? 0) + secondsAgo - end);
    return svg('rect', {
      x: `${100 * (1 - secondsAgo / seconds)}%`,
      width: `${(100 * (secondsAgo - end)) / seconds}%`,
      height: '100%',
      'data-lane': lane,
    });
  });
  const known = states[0]?.secondsAgo || 1;
  const words = [...shares].map(([lane, time]) => `${lane} ${percent(time / known)}`).join(', ');
  return h(
    'div',
    { class: 'lane' },
    h('span', { class: 'lane-name' }, worker),
    svg('svg', { class: 'lane-bar', role: 'img', 'aria-label': `${worker}: ${words}` }, ...bars),
  );
}
