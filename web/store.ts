import type {
  FeedUpdate,
  LoginFacts,
  RunSummary,
  ServerFacts,
  WorkerSummary,
} from '../shared/rest.ts';
import { createRestClient } from '../shared/rest-client.ts';
import { BASE } from './base.ts';
import { emptyState } from './parts.ts';
import { whenReleased } from './press.ts';

/** What the page knows: who looks, and the server's state as its feed tells it. */

export const client = createRestClient({ server: BASE });

export type LinkState = 'connecting' | 'live' | 'lost';

export interface DashboardState {
  login: LoginFacts;
  link: LinkState;
  server: ServerFacts | null;
  readonly runs: Map<string, RunSummary>;
  /** Older runs that the feed has not told of yet. */
  rest: number;
  readonly workers: Map<string, WorkerSummary>;
}

export const state: DashboardState = {
  login: { role: null, open: false, works: false },
  link: 'connecting',
  server: null,
  runs: new Map(),
  rest: 0,
  workers: new Map(),
};

export const isOperator = () => state.login.role === 'operator';
/** What is not among the runs is not there. */
export const knowsAllRuns = () => state.link === 'live' && state.rest === 0;

/** A run that the feed has not come to yet. */
export function addRun(run: RunSummary): void {
  if (state.runs.has(run.id)) return;
  state.runs.set(run.id, run);
  drawSoon();
}

/** Newest first. */
export const runsNewestFirst = () =>
  [...state.runs.values()].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));

const listeners = new Set<() => void>();
let drawing = false;

/** Calls back at most once a frame after anything has changed. @returns what ends it. */
export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function drawSoon(): void {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() =>
    whenReleased(() => {
      drawing = false;
      for (const listener of [...listeners]) listener();
    }),
  );
}

/** A page that nobody sees costs the server nothing. */
const HIDDEN_MS = 30_000;
const RETRY_MS = 2_000;
/** The server writes every second as a rule, with thousands of workers less often. */
const SILENT_MS = 45_000;

let source: EventSource | null = null;
let silence: ReturnType<typeof setTimeout> | undefined;
let hiding: ReturnType<typeof setTimeout> | undefined;

/** @param onRefused the server does not know who asks. */
export function followServer(onRefused: () => void): void {
  const connect = () => {
    source?.close();
    clearTimeout(silence);
    let first = true;
    const mine = new EventSource(`${BASE}/feed`);
    source = mine;
    mine.onopen = () => {
      first = true;
    };
    mine.onmessage = ({ data }: MessageEvent<string>) => {
      if (first) forget();
      first = false;
      take(JSON.parse(data) as FeedUpdate);
      setLink('live');
      clearTimeout(silence);
      silence = setTimeout(connect, SILENT_MS);
    };
    mine.onerror = () => {
      setLink('lost');
      // Else the browser tries again by itself.
      if (mine.readyState !== EventSource.CLOSED) return;
      clearTimeout(silence);
      silence = setTimeout(again, RETRY_MS);
    };
  };
  const again = async () => {
    try {
      await lookWho();
    } catch {
      silence = setTimeout(again, RETRY_MS);
      return;
    }
    if (state.login.role === null) onRefused();
    else connect();
  };
  document.addEventListener('visibilitychange', () => {
    clearTimeout(hiding);
    if (!document.hidden) {
      if (!source && state.login.role !== null) connect();
    } else if (source) hiding = setTimeout(unfollow, HIDDEN_MS);
  });
  connect();
}

function unfollow(): void {
  source?.close();
  source = null;
  clearTimeout(silence);
}

function setLink(link: LinkState): void {
  if (state.link === link) return;
  state.link = link;
  drawSoon();
}

function forget(): void {
  state.runs.clear();
  state.workers.clear();
}

function take(update: FeedUpdate): void {
  state.server = update.server;
  state.rest = update.rest ?? 0;
  for (const run of update.runs) state.runs.set(run.id, run);
  for (const each of update.workers) {
    state.workers.set(`${each.worker}/${each.incarnation}`, each);
  }
  for (const id of update.gone.runs) state.runs.delete(id);
  for (const key of update.gone.workers) state.workers.delete(key);
  drawSoon();
}

/** Asks the server who this browser is. @throws TypeError when there is no answer. */
async function lookWho(): Promise<void> {
  const response = await fetch(`${BASE}/session`);
  if (!response.ok) throw new TypeError(`GET /session answered ${response.status}`);
  state.login = (await response.json()) as LoginFacts;
}

/** The same, asked until there is an answer. @param away shows that there is none. */
export async function learnWho(away: (words: HTMLElement) => void): Promise<void> {
  for (;;) {
    try {
      return await lookWho();
    } catch {
      away(emptyState('The server does not answer', 'Trying again every two seconds.'));
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

/** @param work to train in pages, not to look. @throws Error with the server's words. */
export async function logIn(token: string, work = false): Promise<void> {
  const response = await fetch(`${BASE}/session`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(work ? { token, work } : { token }),
  });
  if (!response.ok) {
    const said = (await response.json().catch(() => null)) as { message?: string } | null;
    throw new Error(said?.message ?? `The server answered ${response.status}.`);
  }
  state.login = (await response.json()) as LoginFacts;
}

export async function logOut(): Promise<void> {
  unfollow();
  await fetch(`${BASE}/session`, { method: 'DELETE' });
  state.login = { role: null, open: false, works: false };
  forget();
}
