import type {
  FromJoinWorker,
  JoinPageEngine,
  JoinPageProgress,
  ToJoinWorker,
} from '../shared/join.ts';
import { JOIN_ENGINES, JOIN_PATHS, JOIN_WORKER } from '../shared/join.ts';
import { BASE } from './base.ts';
import { count, short } from './format.ts';
import { brand, themeButton } from './head.ts';
import { fill, fillNew, h, setText } from './html.ts';
import { loginView } from './login.ts';
import { badge, card, Tile } from './parts.ts';
import { learnWho, logOut, state } from './store.ts';
import { initTheme } from './theme.ts';

/** The page `/join`: a worker in this browser. It computes in a thread of its own; this shows what it does. */

const ENGINE_WORDS: Readonly<Record<JoinPageEngine, string>> = {
  auto: 'Best there is',
  webgpu: 'WebGPU',
  wasm: 'WebAssembly',
  cpu: 'Plain JavaScript',
};
/** As short as a tile. */
const TILE_WORDS: Readonly<Record<string, string>> = {
  webgpu: 'WebGPU',
  wasm: 'Wasm',
  cpu: 'JavaScript',
};
const LOG_LINES_MAX = 12;
/** Without a gradient for so long, the worker waits. */
const QUIET_MS = 5_000;

const query = new URLSearchParams(location.search);
const main = h('main', { id: 'main', tabindex: -1 });
const who = h('span', { class: 'who' });

// What it shows.

const tiles = {
  engine: new Tile('Engine'),
  run: new Tile('Run'),
  step: new Tile('Step'),
  speed: new Tile('Minibatches / s'),
  loss: new Tile('Loss'),
  staleness: new Tile('Staleness'),
};
const status = h('span', { class: 'join-status', role: 'status' });
const problem = h('p', { class: 'problem join-problem', role: 'alert' });
const notes = h('ul', { class: 'join-notes' });
const log = h('ol', { class: 'join-log' });
const engine = h(
  'select',
  { id: 'engine' },
  ...(['auto', ...JOIN_ENGINES] as const).map((name) =>
    h('option', { value: name }, ENGINE_WORDS[name]),
  ),
);
const button = h('button', { type: 'button', class: 'button primary' }, 'Start');
const training = h(
  'div',
  {},
  h(
    'div',
    { class: 'headline' },
    h('div', {}, h('h1', {}, 'Train in this browser'), status),
    h(
      'div',
      { class: 'buttons join-tools' },
      h('label', { class: 'field', for: 'engine' }, 'Engine', engine),
      button,
    ),
  ),
  h(
    'p',
    { class: 'muted join-words' },
    'This page computes gradients for the runs of this server, like any other worker. Close it whenever you like: other workers compute its unfinished minibatches, and nothing is lost.',
  ),
  problem,
  h('dl', { class: 'tiles join-tiles' }, ...Object.values(tiles).map(({ element }) => element)),
  card('What it computes with', notes),
  card('What happened', log),
);

// What it knows.

type JoinStage = 'stopped' | 'starting' | 'working' | 'stopping';
let stage: JoinStage = 'stopped';
let worker: Worker | null = null;
let name = '';
let progress: JoinPageProgress | null = null;
let heardAt = Number.NEGATIVE_INFINITY;
const lines: string[] = [];

function word(): string {
  if (stage !== 'working') return stage;
  return performance.now() - heardAt < QUIET_MS ? 'training' : 'waiting';
}

function show(): void {
  const now = word();
  fillNew(status, [now, name], () => [badge(now), name === '' ? '' : ` as ${name}`]);
  setText(button, stage === 'stopped' ? 'Start' : 'Stop');
  button.className = stage === 'stopped' ? 'button primary' : 'button';
  button.disabled = stage === 'stopping';
  engine.disabled = stage !== 'stopped';
  fillNew(log, lines, () => lines.map((line) => h('li', {}, line)));
  if (!progress) return;
  const { run, phase, step, loss, minibatchesPerSecond, pushes, applied, rejected } = progress;
  tiles.run.show(run, phase);
  tiles.step.show(count(step), 'of the parameters it computes at');
  tiles.speed.show(
    now === 'training' ? short(minibatchesPerSecond) : '–',
    `${count(pushes)} sent, ${count(progress.examples)} examples`,
  );
  tiles.loss.show(loss === null ? 'not finite' : short(loss), 'of the newest minibatch');
  tiles.staleness.show(
    progress.staleness === null ? '–' : count(progress.staleness),
    `${count(applied)} applied, ${count(rejected)} refused`,
  );
}

function note(line: string): void {
  lines.push(line);
  if (lines.length > LOG_LINES_MAX) lines.shift();
}

// What it does.

async function start(): Promise<void> {
  stage = 'starting';
  progress = null;
  fill(problem);
  fill(notes);
  show();
  const script = BASE + JOIN_PATHS.files + JOIN_WORKER;
  // A worker that cannot be loaded does not say why.
  const answer = await fetch(script).catch(() => null);
  if (!answer?.ok) {
    if (answer?.status === 401 || answer?.status === 403) return askWho();
    const said = await answer?.json().catch(() => null);
    const status = answer ? `The server answered ${answer.status}.` : 'The server does not answer.';
    return ended((said as { message?: string } | null)?.message ?? status);
  }
  const mine = new Worker(script, { type: 'module' });
  worker = mine;
  mine.onmessage = ({ data }: MessageEvent<FromJoinWorker>) => {
    if (worker === mine) hear(data);
  };
  mine.onerror = ({ message }) => ended(message || 'its script cannot be run');
  tell({
    type: 'start',
    server: location.origin,
    engine: engine.value as JoinPageEngine,
    softwareGpu: query.get('software-gpu') === '1',
  });
}

const tell = (message: ToJoinWorker) => worker?.postMessage(message);

function hear(message: FromJoinWorker): void {
  switch (message.type) {
    case 'experiments':
      name = message.worker;
      note(`may train ${message.names.join(', ')}`);
      break;
    case 'engine':
      if (stage === 'starting') stage = 'working';
      tiles.engine.show(TILE_WORDS[message.name] ?? message.name, message.device);
      fill(notes, ...message.notes.map((line) => h('li', {}, line)));
      break;
    case 'log':
      note(message.line);
      break;
    case 'progress':
      progress = message;
      heardAt = performance.now();
      break;
    case 'stopped':
      ended(null);
      break;
    case 'failed':
      if (message.code === 'DP_UNAUTHORIZED') void askWho();
      else ended(`${message.code}: ${message.message}`);
      break;
  }
  show();
}

/** @param why null: as it was told to. */
function ended(why: string | null): void {
  worker?.terminate();
  worker = null;
  stage = 'stopped';
  note(why === null ? 'stopped; its leases are handed back' : `ended: ${why}`);
  fill(problem, why);
  show();
}

button.addEventListener('click', () => {
  if (stage === 'stopped') void start();
  else {
    stage = 'stopping';
    tell({ type: 'stop' });
    show();
  }
});

// Who it is.

const TO_WORK =
  'This server requires a token: a worker’s to train in this browser, or an operator’s.';

async function askWho(): Promise<void> {
  worker?.terminate();
  worker = null;
  stage = 'stopped';
  await learnWho((words) => fill(main, words));
  const { works, open } = state.login;
  fill(
    who,
    works &&
      !open &&
      h(
        'button',
        {
          type: 'button',
          class: 'quiet',
          onClick: async () => {
            await logOut();
            await askWho();
          },
        },
        'Log out',
      ),
  );
  if (!works) {
    fill(main, loginView(() => void askWho(), { words: TO_WORK, work: true }).element);
    return;
  }
  fill(main, training);
  await start();
}

function begin(): void {
  initTheme();
  const wanted = query.get('engine');
  if (wanted !== null && wanted in ENGINE_WORDS) engine.value = wanted;
  document.body.append(
    h(
      'header',
      {},
      h(
        'div',
        { class: 'bar-inner' },
        brand('.', 'Downpour: the dashboard'),
        h('div', { class: 'corner' }, who, themeButton()),
      ),
    ),
    main,
  );
  // Only how long ago the last gradient was.
  setInterval(show, 1_000);
  void askWho();
}

begin();
