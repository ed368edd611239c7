/**
 * Between the press of a button of the mouse and its release nothing on the page moves: a browser clicks only what is
 * under the pointer at both moments.
 */

/** A release that the page never hears of, outside of the window say, holds nothing up for longer. */
const HELD_MS = 3_000;

let isPressed = false;
let timer: ReturnType<typeof setTimeout> | undefined;
const waiting: (() => void)[] = [];

/** Runs what changes the page: now, or after the click that is under way. */
export function whenReleased(change: () => void): void {
  if (isPressed) waiting.push(change);
  else change();
}

export function watchPresses(): void {
  addEventListener(
    'pointerdown',
    ({ button }) => {
      if (button !== 0) return;
      isPressed = true;
      clearTimeout(timer);
      timer = setTimeout(release, HELD_MS);
    },
    true,
  );
  // The click comes after the release, in the same turn.
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(release, 0);
  };
  for (const name of ['pointerup', 'pointercancel']) addEventListener(name, soon, true);
  // Not of an element: each press takes the focus from one.
  addEventListener('blur', soon);
}

function release(): void {
  isPressed = false;
  for (const change of waiting.splice(0)) change();
}
