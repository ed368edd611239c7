/** Light, dark, or as the machine is set; remembered by this browser. */

const THEMES = ['system', 'light', 'dark'] as const;
export type Theme = (typeof THEMES)[number];
const KEY = 'downpour-theme';

const system = matchMedia('(prefers-color-scheme: dark)');

export function themeName(): Theme {
  let stored: string | null = null;
  try {
    stored = localStorage.getItem(KEY);
  } catch {
    // A browser that keeps nothing: as the machine is set.
  }
  return THEMES.find((name) => name === stored) ?? 'system';
}

export function initTheme(): void {
  system.addEventListener('change', apply);
  apply();
}

export function nextTheme(): void {
  const next = THEMES[(THEMES.indexOf(themeName()) + 1) % THEMES.length]!;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // Only for as long as the page is open.
  }
  apply();
}

/** Plots are painted, not styled: they hear of it. */
function apply(): void {
  const name = themeName();
  const dark = name === 'dark' || (name === 'system' && system.matches);
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
  document.dispatchEvent(new Event('theme'));
}
