import './style.css';
import { alertStrip } from './alerts.ts';
import { clusterView } from './cluster.ts';
import { compareView } from './compare.ts';
import { brand, themeButton } from './head.ts';
import { fill, fillNew, h, setAttribute, setText } from './html.ts';
import { loginView } from './login.ts';
import { emptyState, type View } from './parts.ts';
import { watchPresses } from './press.ts';
import { runView } from './run.ts';
import { runsView } from './runs.ts';
import { drawSoon, followServer, learnWho, logOut, state, subscribe } from './store.ts';
import { studiesView, studyView } from './studies.ts';
import { initTheme } from './theme.ts';

/** The frame of the dashboard: its head, which view is shown, who looks. */

interface NavigationPlace {
  readonly name: string;
  readonly title: string;
  readonly href: string;
}
const PLACES: readonly NavigationPlace[] = [
  { name: 'runs', title: 'Runs', href: '#/' },
  { name: 'studies', title: 'Studies', href: '#/studies' },
  { name: 'cluster', title: 'Cluster', href: '#/cluster' },
];

const strip = h('section', { class: 'strip', 'aria-label': 'Alerts' });
const main = h('main', { id: 'main', tabindex: -1 });
const link = h('span', { class: 'link-state', role: 'status' });
const nav = h(
  'nav',
  { 'aria-label': 'Views' },
  ...PLACES.map(({ name, title, href }) => h('a', { href, 'data-place': name }, title)),
);
const theme = themeButton();
const who = h('span', { class: 'who' });
const header = h(
  'header',
  {},
  h(
    'div',
    { class: 'bar-inner' },
    brand('#/', 'Downpour: all runs'),
    nav,
    h('div', { class: 'corner' }, link, who, theme),
  ),
);
let view: View | null = null;

const isLoggedOut = () => state.login.role === null;

/** `#/runs/name` and the like. */
function route(): View {
  if (isLoggedOut()) return loginView(start);
  const [place = '', given] = location.hash.replace(/^#\/?/, '').split('?')[0]!.split('/');
  const name = given === undefined ? undefined : decoded(given);
  if (name === null) return noPage();
  if (place === '' || (place === 'runs' && name === undefined)) return runsView();
  if (place === 'runs') return runView(name!);
  if (place === 'studies') return name === undefined ? studiesView() : studyView(name);
  if (place === 'compare') return compareView();
  if (place === 'cluster') return clusterView();
  return noPage();
}

const noPage = (): View => ({
  title: 'Not found',
  element: emptyState('Nothing here', 'There is no such page.'),
  update: () => {},
});

/** A part of an address; null: it cannot be decoded, such as `%ff`. */
function decoded(part: string): string | null {
  try {
    return decodeURIComponent(part);
  } catch {
    return null;
  }
}

function show(): void {
  view?.destroy?.();
  const next = route();
  view = next;
  fill(main, next.element);
  document.title = `${next.title} – Downpour`;
  const place = location.hash.replace(/^#\/?/, '').split(/[/?]/)[0] || 'runs';
  for (const each of nav.querySelectorAll<HTMLElement>('a')) {
    const mine = each.dataset.place === (place === 'compare' ? 'runs' : place);
    setAttribute(each, 'aria-current', mine ? 'page' : null);
  }
  nav.hidden = isLoggedOut();
  window.scrollTo(0, 0);
  frame();
}

const LINKS = { connecting: 'Connecting …', live: 'Live', lost: 'Reconnecting …' } as const;

function frame(): void {
  link.hidden = isLoggedOut();
  setText(link, LINKS[state.link]);
  setAttribute(link, 'data-link', state.link);
  const alerts = isLoggedOut() ? [] : (state.server?.alerts ?? []);
  // The page of the cluster has all of them.
  const wanted = view?.title === 'Cluster' ? [] : alerts;
  fillNew(strip, wanted, () => [alertStrip(wanted)]);
  strip.hidden = strip.childElementCount === 0;
  const { role, open } = state.login;
  const words = role === null ? '' : open ? '' : role;
  if (who.dataset.role === words) return;
  who.dataset.role = words;
  fill(
    who,
    words !== '' && h('span', { class: 'role' }, words),
    words !== '' &&
      h(
        'button',
        {
          type: 'button',
          class: 'quiet',
          onClick: async () => {
            await logOut();
            show();
          },
        },
        'Log out',
      ),
  );
}

function start(): void {
  followServer(show);
  show();
}

async function begin(): Promise<void> {
  initTheme();
  watchPresses();
  document.body.append(
    h(
      'a',
      {
        class: 'skip',
        href: '#main',
        onClick: (event) => {
          event.preventDefault();
          main.focus();
        },
      },
      'Skip to content',
    ),
    header,
    strip,
    main,
  );
  subscribe(() => {
    frame();
    view?.update();
  });
  window.addEventListener('hashchange', () => {
    show();
    main.focus({ preventScroll: true });
  });
  await learnWho((words) => fill(main, words));
  if (isLoggedOut()) show();
  else start();
  drawSoon();
}

void begin();
