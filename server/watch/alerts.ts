import { medianOf } from '../../shared/quantile.ts';
import type { Alert, RunSummary, RunsRead, ServerFacts, WorkerSummary } from '../../shared/rest.ts';
import { failureText } from '../../shared/text.ts';
import { certificateProblem, type Validity } from '../access/tls.ts';

/** What a person should look at, in words, from what the server knows anyway. */

export interface AlertFacts extends RunAlertFacts {
  readonly stateStoreAway: ServerFacts['stateStoreAway'];
  /** Null: the server has no shards. */
  readonly shards: ServerFacts['shards'];
  /** Null: there has been none. */
  readonly standby: ServerFacts['standby'];
  /** Null: checkpoints are copied nowhere. */
  readonly copies: ServerFacts['copies'];
  /** Null: the server does not encrypt. */
  readonly certificate: Validity | null;
  /** Time by the clock on the wall, ms. */
  readonly wallMs: number;
  readonly connections: ServerFacts['connections'];
  /** Those that there may be something to say of. */
  readonly runs: readonly RunSummary[];
  /** Runs that have work and no worker: how many, and one of them. */
  readonly waiting: { readonly count: number; readonly one: string | null };
  readonly workers: readonly WorkerSummary[];
  /** How many runs of the state folder the server has read; null: all. */
  readonly runsRead?: RunsRead | null;
}

/** What is asked of a run beside its summary. */
export interface RunAlertFacts {
  /** Seconds between two evaluations of a run at its present speed; null: unknown. */
  readonly evaluationSeconds: (run: string) => number | null;
  /** Why something of a run is not written; null: all is. */
  readonly unwritten: (run: string) => string | null;
  /** What is wrong with a run's record in the state store, in the place of which nothing can be written; null: nothing. */
  readonly spoilt: (run: string) => string | null;
  /** Numbers that a run's newest checkpoint lacks, since JSON cannot keep them. */
  readonly leftOut: (run: string) => readonly string[];
  /** Steps lost with a crash of the server that have not been made up for yet. */
  readonly behind: (run: string) => number;
  /** Workers that must come before the run begins, as its workersMin says. */
  readonly missing: (run: string) => number;
}

/** So many times slower than the median of the others that one worker holds up what waits for it. */
const SLOWER = 2;
/** A smaller difference a gradient is what an operating system's turns do to equal workers that share cores. */
const SLOWER_MS = 10;
/** Pushes of a worker before anything is said of its speed: the first ones record and compile. */
const PUSHES = 10;
/** That a connection was closed is told for so long. */
const CLOSED_SECONDS = 600;
/** Without an evaluation, unless they are meant to be rarer. */
const SILENCE_SECONDS = 600;

const PHASES_OF_WORK: readonly string[] = ['training', 'refitting', 'measuring', 'testing'];

/** The worst first. Pure: equal facts, equal alerts. */
export function alertsOf(facts: AlertFacts): Alert[] {
  const alerts: Alert[] = [];
  const add = (severity: Alert['severity'], text: string, about: Partial<Alert> = {}) =>
    alerts.push({ severity, run: null, worker: null, ...about, text });

  const { stateStoreAway, shards, standby } = facts;
  if (stateStoreAway) {
    const { seconds, records } = stateStoreAway;
    add(
      'warning',
      `Redis is away for ${inWords(seconds)}: ${records} records wait on disk; training continues`,
    );
  }
  if (shards?.lost) {
    const { index, url, why, seconds } = shards.lost;
    add(
      'critical',
      `shard ${index} at ${url} is lost for ${inWords(seconds)} (${why}): all runs wait until it, or another one, is there; \`downpour shard\` starts one`,
    );
  }
  if (standby) aboutStandby(standby, add);
  const certificate = facts.certificate && certificateProblem(facts.certificate, facts.wallMs);
  if (certificate) add(certificate.severity, certificate.text);
  if (facts.runsRead) {
    const { done, of } = facts.runsRead;
    add(
      'info',
      `the server has just started: ${done} of the ${of} runs of its state folder are here, the others follow; a run that you ask for is read at once`,
    );
  }
  if (facts.copies) aboutCopies(facts.copies, add);
  aboutConnections(facts.connections, add);
  const connected = facts.workers.filter(({ state }) => state !== 'gone');
  for (const run of facts.runs)
    aboutRun(run, facts, (severity, text) => add(severity, text, { run: run.id }));
  aboutWaiting(facts.waiting, (text) => add('warning', text));
  for (const worker of connected) {
    const about = { run: worker.run, worker: worker.worker };
    if (worker.quarantine !== null) {
      add('critical', `worker ${worker.worker} is in quarantine: ${worker.quarantine}`, about);
      continue;
    }
    const slow = slowness(worker, connected);
    if (slow) add('warning', slow, about);
  }
  const rank = { critical: 0, warning: 1, info: 2 };
  return alerts.sort((a, b) => rank[a.severity] - rank[b.severity]);
}

/** There is something to say of it. */
export function isAlarming(run: RunSummary, facts: RunAlertFacts): boolean {
  let count = 0;
  aboutRun(run, facts, () => count++);
  return count > 0;
}

function aboutRun(
  run: RunSummary,
  facts: RunAlertFacts,
  add: (severity: Alert['severity'], text: string) => void,
): void {
  const missing = facts.missing(run.id);
  if (missing > 0 && run.workers > 0) {
    const more = missing === 1 ? 'one more worker' : `${missing} more workers`;
    add('info', `${run.id} waits for ${more}, as its workersMin says`);
  }
  const why = facts.unwritten(run.id);
  if (why !== null) {
    const from = run.checkpoint ? `step ${run.checkpoint.step}` : 'its beginning';
    const back = `${run.id} cannot be written down, trying again: a restart would go back from step ${run.step} to ${from}; ${why}`;
    add('critical', back);
  }
  const spoilt = facts.spoilt(run.id);
  if (spoilt !== null) {
    add(
      'warning',
      `${run.id} is not entered in the state store; training continues, and its checkpoints are on disk: ${spoilt}`,
    );
  }
  const leftOut = facts.leftOut(run.id);
  if (leftOut.length > 0) {
    add(
      'critical',
      `${run.id}: its checkpoint is written without ${leftOut.join(', ')}, which JSON cannot keep`,
    );
  }
  const failure = run.workerFailure;
  // An update since then: others do the work.
  if (failure && failure.step === run.step) {
    add(run.workers === 0 ? 'critical' : 'warning', `${run.id}: ${failureText(failure)}`);
  }
  if (!PHASES_OF_WORK.includes(run.phase)) return;
  // A refit by `retrain` has the validation examples too, and other phases are one evaluation.
  const validates =
    run.phase === 'training' ||
    (run.phase === 'refitting' && run.earlyStopping.afterStop === 'continue');
  const since = run.seconds - (run.validation?.seconds ?? 0);
  const usual = facts.evaluationSeconds(run.id) ?? 0;
  if (validates && run.workers > 0 && since > Math.max(SILENCE_SECONDS, 3 * usual)) {
    add('warning', `${run.id}: no evaluation for ${inWords(since)}`);
  }
  const last = run.rollbacks.at(-1);
  // Better than all before: it has got over it.
  const isOver = last !== undefined && run.best !== null && run.best.step > last.step;
  if (last && !isOver) {
    const times = run.rollbacks.length === 1 ? 'once' : `${run.rollbacks.length} times`;
    add(
      'warning',
      `${run.id} has diverged ${times}, last at step ${last.step}; it continues with learning rate ${Number(last.learningRate.toPrecision(3))}`,
    );
  }
  if (run.hint !== null) add('warning', `${run.id}: ${run.hint}`);
  const behind = facts.behind(run.id);
  if (behind > 0) {
    add(
      'info',
      `${run.id} has lost ${run.stepsLost} steps in crashes of the server, and has ${behind} of them left to repeat`,
    );
  }
}

function aboutStandby(
  { state, address, seconds, reason }: NonNullable<AlertFacts['standby']>,
  add: (severity: Alert['severity'], text: string) => void,
): void {
  if (state === 'lost') {
    add(
      'warning',
      `the standby ${address} is lost for ${inWords(seconds)} (${reason}): this server continues alone; start another with \`downpour serve --standby-of\``,
    );
  } else if (state === 'parting') {
    add(
      'critical',
      `the standby ${address} is lost for ${inWords(seconds)} (${reason}), and the state store does not say which server owns the state: workers wait for their answers`,
    );
  } else if (state === 'joining') {
    add('info', `the standby ${address} has been receiving the runs for ${inWords(seconds)}`);
  }
}

function aboutConnections(
  { bytes, bytesMax, closed, closedSecondsAgo }: AlertFacts['connections'],
  add: (severity: Alert['severity'], text: string) => void,
): void {
  if (closedSecondsAgo === null || closedSecondsAgo > CLOSED_SECONDS) return;
  const many = closed === 1 ? 'one connection was' : `${closed} connections were`;
  add(
    'warning',
    `${many} closed for the memory that they took, or since they sent or read too slowly, the last ${inWords(closedSecondsAgo)} ago; connections take ${inMegabytes(bytes)} of ${inMegabytes(bytesMax)} MB now: the log says which`,
  );
}

const inMegabytes = (bytes: number) => Math.round(bytes / 1e6);

function aboutCopies(
  { to, waiting, away, refused }: NonNullable<AlertFacts['copies']>,
  add: (severity: Alert['severity'], text: string, about?: Partial<Alert>) => void,
): void {
  if (away) {
    const what = waiting === 1 ? 'one checkpoint waits' : `${waiting} checkpoints wait`;
    add(
      'warning',
      `nothing is copied to ${to} for ${inWords(away.seconds)}: ${what}; training continues; ${away.why}`,
    );
  }
  for (const { run, why } of refused) {
    add('warning', `${run}: its newest checkpoint is not copied to ${to}: ${why}`, { run });
  }
}

/** It has work, and no worker. */
export const waitsForWorker = ({ phase, workers }: RunSummary): boolean =>
  workers === 0 && (phase === 'waiting' || PHASES_OF_WORK.includes(phase));

/** One line for all of them: a search may have hundreds in line. */
function aboutWaiting({ count, one }: AlertFacts['waiting'], add: (text: string) => void): void {
  if (count === 0) return;
  const who = count === 1 ? `${one} waits` : `${count} runs wait`;
  add(`${who} for a worker: start one with \`downpour work\``);
}

/** Compared with the others of its run: its experiment decides how long a gradient takes. */
function slowness(worker: WorkerSummary, all: readonly WorkerSummary[]): string | null {
  const pushes = ({ pushes: { applied, damped } }: WorkerSummary) => applied + damped;
  const own = worker.computeMsRecent;
  if (worker.run === null || pushes(worker) < PUSHES || own === null) return null;
  const others = all
    .filter((other) => other !== worker && other.run === worker.run && pushes(other) >= PUSHES)
    .flatMap(({ computeMsRecent }) => computeMsRecent ?? []);
  const median = medianOf(others);
  if (!(median > 0)) return null;
  const times = own / median;
  if (times < SLOWER || own - median < SLOWER_MS) return null;
  return `worker ${worker.worker} is ${times.toFixed(1)} times slower than the median of ${worker.run}: ${inMs(own)} a gradient beside ${inMs(median)}`;
}

const inMs = (ms: number) => `${Number(ms.toPrecision(2))} ms`;

function inWords(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
