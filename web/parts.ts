import type { RunSummary } from '../shared/rest.ts';
import { short } from './format.ts';
import { fillNew, h, svg } from './html.ts';

/** Small pieces that several views show. */

/** One page of the dashboard. */
export interface View {
  readonly title: string;
  readonly element: HTMLElement;
  /** Something has changed. At most once a frame. */
  update(): void;
  destroy?(): void;
}

const ACTIVE_PHASES: readonly string[] = [
  'waiting',
  'training',
  'refitting',
  'measuring',
  'testing',
];
export const isActive = ({ phase }: RunSummary) => ACTIVE_PHASES.includes(phase);

/** The state as a word; its colour only says it again. */
export function badge(word: string, kind = word): HTMLElement {
  return h('span', { class: 'badge', 'data-kind': kind }, word);
}

const SPARK = { width: 104, height: 28 };

/** The course of a loss, as large as a word. */
export function sparkline(values: readonly number[]): SVGElement {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const span = high - low || 1;
  const points = values.map((value, i) => {
    const x = (i / Math.max(1, values.length - 1)) * (SPARK.width - 4) + 2;
    const y = SPARK.height - 3 - ((value - low) / span) * (SPARK.height - 6);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  const label =
    values.length === 0
      ? 'no loss yet'
      : `loss from ${short(values[0])} to ${short(values.at(-1))}`;
  return svg(
    'svg',
    {
      class: 'sparkline',
      viewBox: `0 0 ${SPARK.width} ${SPARK.height}`,
      width: SPARK.width,
      height: SPARK.height,
      role: 'img',
      'aria-label': label,
    },
    values.length > 0 && svg('polyline', { points: points.join(' ') }),
  );
}

/** A number with what it is, and what is to be said of it. */
export class Tile {
  readonly element: HTMLElement;
  readonly #value = h('dd', { class: 'tile-value' }, '–');
  readonly #note = h('dd', { class: 'tile-note' });

  constructor(label: string) {
    this.element = h('div', { class: 'tile' }, h('dt', {}, label), this.#value, this.#note);
  }

  show(value: string, note = ''): void {
    if (this.#value.textContent !== value) this.#value.textContent = value;
    if (this.#note.textContent !== note) this.#note.textContent = note;
  }
}

export function card(title: string, ...children: (Node | string | null | false)[]): HTMLElement {
  const id = `card-${title.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')}`;
  return h(
    'section',
    { class: 'card', 'aria-labelledby': id },
    h('h2', { id }, title),
    ...children,
  );
}

/** A table that scrolls where it is too wide. @param classes of the columns. */
export function tableElement(
  label: string,
  headings: readonly (string | Node)[],
  rows: readonly HTMLElement[],
  classes: readonly string[] = [],
): HTMLElement {
  const head = headings.map((text, i) => h('th', { scope: 'col', class: classes[i] ?? '' }, text));
  return h(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label },
    h('table', {}, h('thead', {}, h('tr', {}, ...head)), h('tbody', {}, ...rows)),
  );
}

/** What to do where there is nothing to see. */
export function emptyState(title: string, text: string, command?: string): HTMLElement {
  return h(
    'div',
    { class: 'empty' },
    svg(
      'svg',
      { viewBox: '0 0 48 48', width: 48, height: 48, 'aria-hidden': 'true', class: 'empty-icon' },
      svg('path', { d: 'M24 6c7 9 12 15 12 22a12 12 0 0 1-24 0c0-7 5-13 12-22z' }),
      svg('path', { d: 'M17 29l4 5 4-9 6 7' }),
    ),
    h('h2', {}, title),
    h('p', {}, text),
    command !== undefined &&
      h('pre', { tabindex: 0, 'aria-label': 'Command' }, h('code', {}, command)),
  );
}

/** How a curve looks, beside its name. @param dashes of its line, pixels. */
export function swatch(color: string, dashes: readonly number[] = [], draw = 'line'): Element {
  const style = { color };
  if (draw === 'points' || draw === 'bars') {
    return h('span', { class: `swatch ${draw}`, style, 'aria-hidden': 'true' });
  }
  // Wide enough for one round of its dashes.
  const width = Math.max(18, ...[dashes.reduce((sum, length) => sum + length, 0)]);
  return svg(
    'svg',
    { class: `swatch ${draw}`, style, width, height: 4, 'aria-hidden': 'true' },
    svg('line', { x1: 0, x2: width, y1: 2, y2: 2, 'stroke-dasharray': dashes.join(' ') }),
  );
}

type Options = readonly (readonly [value: string, text: string])[];

/** A choice of one of several values. */
export class Select {
  readonly element: HTMLElement;
  readonly #field: HTMLSelectElement;

  constructor(label: string, options: Options, chosen: string, onChange: (value: string) => void) {
    this.#field = h('select', { onChange: () => onChange(this.#field.value) });
    this.element = h('label', { class: 'field' }, h('span', {}, label), this.#field);
    this.offer(options);
    this.#field.value = chosen;
  }

  /** Other values from now on; what is chosen stays, where it is one of them. */
  offer(options: Options): void {
    const { value } = this.#field;
    fillNew(this.#field, options, () =>
      options.map(([each, text]) => h('option', { value: each }, text)),
    );
    if (options.some(([each]) => each === value)) this.#field.value = value;
  }
}

/** A switch. */
export class Toggle {
  readonly element: HTMLElement;
  readonly #box: HTMLInputElement;

  constructor(label: string, on: boolean, onChange: (on: boolean) => void) {
    this.#box = h('input', { type: 'checkbox', onChange: () => onChange(this.#box.checked) });
    this.#box.checked = on;
    this.element = h('label', { class: 'check' }, this.#box, h('span', {}, label));
  }

  show(on: boolean): void {
    this.#box.checked = on;
  }
}

export function slider(
  label: string,
  { max, step, value }: { max: number; step: number; value: number },
  onChange: (value: number) => void,
): HTMLElement {
  // The label names its field: else it would be the output's, which comes first in it.
  const id = `slider-${label.toLowerCase()}`;
  const output = h('output', { for: id }, String(value));
  const input = h('input', {
    type: 'range',
    id,
    min: 0,
    max,
    step,
    value,
    onInput: () => {
      output.textContent = input.value;
      onChange(Number(input.value));
    },
  });
  return h('label', { class: 'field', for: id }, h('span', {}, label, ' ', output), input);
}

/** Says something to everybody, those who hear the page too; it goes by itself. */
export function notify(text: string, kind: 'error' | 'done' = 'done'): void {
  let region = document.querySelector('.notices');
  if (!region) {
    region = h('div', { class: 'notices', role: 'status' });
    document.body.append(region);
  }
  const notice = h('p', { class: 'notice', 'data-kind': kind }, text);
  region.append(notice);
  setTimeout(() => notice.remove(), kind === 'error' ? 12_000 : 5_000);
}

/** Asks before what cannot be taken back. */
export function confirm(question: string, detail: string, yes: string): Promise<boolean> {
  return new Promise((resolve) => {
    const dialog = h(
      'dialog',
      { 'aria-labelledby': 'dialog-title' },
      h(
        'form',
        { method: 'dialog' },
        h('h2', { id: 'dialog-title' }, question),
        h('p', {}, detail),
        h(
          'div',
          { class: 'buttons' },
          h('button', { value: 'no', class: 'button' }, 'Cancel'),
          h('button', { value: 'yes', class: 'button primary' }, yes),
        ),
      ),
    );
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue === 'yes');
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
