/** The few lines that a framework would be here for: elements made, and changed only where they differ. */

/** What stands in an element; what is null, undefined or false is left out. */
export type Child = Node | string | number | null | undefined | false;
type Handler = (event: Event) => void;
export type Props = Readonly<
  Record<
    string,
    string | number | boolean | null | undefined | Handler | Readonly<Record<string, string>>
  >
>;

/**
 * Makes an element. `on…` are listeners, `style` an object (the page's policy allows no attribute of that
 * name), a boolean sets or leaves out an attribute.
 */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  apply(element, props);
  append(element, children);
  return element;
}

export function svg(tag: string, props: Props = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  apply(element, props);
  append(element, children);
  return element;
}

function apply(element: HTMLElement | SVGElement, props: Props): void {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name.slice(2).toLowerCase(), value);
    else if (typeof value === 'object') {
      for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    } else element.setAttribute(name, value === true ? '' : String(value));
  }
}

function append(element: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Children in the place of those before. */
export function fill(element: Element, ...children: Child[]): void {
  element.replaceChildren();
  append(element, children);
}

/**
 * Children in the place of those before, but only when what they show has changed: what is under the pointer or has
 * the focus stays otherwise.
 * @param facts all that `make` reads.
 */
export function fillNew(element: HTMLElement, facts: unknown, make: () => Child[]): void {
  const text = JSON.stringify(facts);
  if (shown.get(element) === text) return;
  shown.set(element, text);
  fill(element, ...make());
}
const shown = new WeakMap<HTMLElement, string>();

/**
 * Children in the place of those before, but for those that are the same, at any depth: what is under the pointer or
 * has the focus stays. An element that stays keeps its own listeners, which must do the same; one that can be clicked
 * stays only if nothing about it has changed.
 */
export function patch(element: Element, wanted: readonly Child[]): void {
  patchNodes(element, [...h('div', {}, ...wanted).childNodes]);
}

function patchNodes(element: Element, made: readonly ChildNode[]): void {
  for (const [i, child] of made.entries()) {
    const old = element.childNodes[i];
    if (!old) element.append(child);
    else if (old.isEqualNode(child)) continue;
    else if (isSameFrame(old, child)) patchNodes(old, [...child.childNodes]);
    else old.replaceWith(child);
  }
  while (element.childNodes.length > made.length) element.lastChild!.remove();
}

const CLICKABLE = 'a, button, input, select, textarea, summary';

/** Both are the same but for what is in them. */
function isSameFrame(old: ChildNode, child: ChildNode): old is Element & ChildNode {
  return (
    old instanceof Element &&
    child instanceof Element &&
    !old.matches(CLICKABLE) &&
    old.cloneNode(false).isEqualNode(child.cloneNode(false))
  );
}

/** A text that is written only when it has changed, so that a selection in it stays. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element: Element, name: string, value: string | null): void {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Makes the children of a parent those given, in order, moving no more than must be. */
export function arrange(parent: Element, wanted: readonly Element[]): void {
  for (const [i, child] of wanted.entries()) {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  }
  while (parent.children.length > wanted.length) parent.lastElementChild!.remove();
}
