import { fill, h, svg } from './html.ts';
import { nextTheme, themeName } from './theme.ts';

/** What stands at the top of every page. */

/** @param href where it leads, @param label what that is. */
export function brand(href: string, label: string): HTMLElement {
  return h(
    'a',
    { class: 'brand', href, 'aria-label': label },
    svg(
      'svg',
      { viewBox: '0 0 32 32', width: 26, height: 26, 'aria-hidden': 'true' },
      svg('path', {
        class: 'drop',
        d: 'M16 3c5.6 7 9.5 11.7 9.5 17a9.5 9.5 0 0 1-19 0c0-5.3 3.9-10 9.5-17z',
      }),
      svg('path', { class: 'drop-line', d: 'M10.5 20.5l3.4 4 3.4-6.8 4.2 5.5' }),
    ),
    h('span', {}, 'Downpour'),
  );
}

/** Changes the colours. Call `initTheme` first. */
export function themeButton(): HTMLElement {
  const button = h('button', {
    type: 'button',
    class: 'quiet icon',
    onClick: () => {
      nextTheme();
      show();
    },
  });
  const show = () => {
    const name = themeName();
    fill(button, name === 'dark' ? '☾' : name === 'light' ? '☀' : '◐');
    button.setAttribute('aria-label', `Colours: ${name}. Press for the next choice`);
    button.title = `Colours: ${name}`;
  };
  show();
  return button;
}
