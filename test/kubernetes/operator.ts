import { expect } from 'vitest';
import type { RunDetail, Status } from '../../shared/rest.ts';
import { attempt, run } from '../containers/shell.ts';
import { until as untilTrue } from '../support/until.ts';
import type { KubeObject } from './api-server.ts';

// What an operator does with a cluster and with Downpour in it: by kubectl, as docs/cluster.md says.

/** How long anything may take on a slow, busy machine; what comes sooner is not waited for. */
export const LONG_MS = 300_000;

let work = '';
let env: NodeJS.ProcessEnv = {};

/** Sets the folder that all later commands are given in, and their environment. */
export function workIn(folder: string, environment: NodeJS.ProcessEnv): void {
  work = folder;
  env = environment;
}

const began = performance.now();
export const tell = (text: string) => {
  const seconds = ((performance.now() - began) / 1000).toFixed(1).padStart(6);
  process.stdout.write(`cluster ${seconds} s: ${text}\n`);
};

/** @returns what a line of bash printed. */
export const bash = (line: string) =>
  run(['bash', '-c', line], { cwd: work, env, timeoutMs: LONG_MS });

export const kubectl = (...words: string[]) =>
  run(['kubectl', ...words], { cwd: work, env, timeoutMs: LONG_MS });
/** A pod that has the commands of Downpour, its server's address and a token. */
export const SERVER = 'deploy/downpour-server';
export const downpour = (...words: string[]) => kubectl('exec', SERVER, '--', 'downpour', ...words);
export const read = async <T>(...words: string[]) => JSON.parse(await kubectl(...words)) as T;

/** Asks until `look` gives something; a server that is away is asked again. */
export const until: typeof untilTrue = (what, look) =>
  untilTrue(what, look, { withinMs: LONG_MS, everyMs: 500, logs: troubles });

/** What the cluster says of itself when something does not come. */
async function troubles(): Promise<string> {
  const ask = async (...words: string[]) =>
    (await attempt(['kubectl', ...words], { cwd: work, env })).text;
  return [
    await ask('get', 'pods', '--output', 'wide'),
    await ask('get', 'events', '--field-selector', 'type=Warning'),
    await ask('logs', SERVER, '--tail', '10'),
  ].join('\n');
}

export interface Pod extends KubeObject {
  readonly metadata: KubeObject['metadata'] & { readonly uid: string };
  readonly status: {
    readonly phase: string;
    readonly conditions?: readonly { readonly type: string; readonly status: string }[];
    readonly containerStatuses?: readonly { readonly restartCount: number }[];
  };
}

export const podsOf = async (component: string) => {
  const label = `app.kubernetes.io/component=${component}`;
  const words = ['get', 'pods', '--selector', label, '--output', 'json'];
  return (await read<{ items: Pod[] }>(...words)).items.filter(
    ({ metadata }) => metadata.deletionTimestamp === undefined,
  );
};
export const isReady = ({ status }: Pod) =>
  status.conditions?.some((each) => each.type === 'Ready' && each.status === 'True') ?? false;

export const restartsOf = ({ status }: Pod) => status.containerStatuses?.[0]?.restartCount;

export const ready = (component: string, count: number) =>
  until(`${count} pods ${component} are ready`, async () => {
    const pods = await podsOf(component);
    return pods.length === count && pods.every(isReady) && pods;
  });

export const runOf = async (name: string) =>
  JSON.parse(await downpour('status', name, '--json')) as RunDetail;

export const atStep = (name: string, step: number) =>
  until(`${name} is at step ${step}`, async () => {
    const detail = await runOf(name);
    return detail.step >= step && detail;
  });

export const finished = (name: string) =>
  until(`${name} is over`, async () => {
    const detail = await runOf(name);
    return ['finished', 'failed', 'stopped'].includes(detail.phase) && detail;
  });

export const workersThere = (count: number) =>
  until(`${count} workers are there`, async () => {
    const { workers } = JSON.parse(await downpour('status', '--json')) as Status;
    return workers.filter(({ state }) => state !== 'gone').length === count;
  });

/** Deletes the first pod of these, and waits until as many others are ready as before. */
export async function deletePod(component: string): Promise<void> {
  const pods = await podsOf(component);
  await kubectl('delete', 'pod', pods[0]!.metadata.name);
  const after = await ready(component, pods.length);
  expect(after.map(({ metadata }) => metadata.uid)).not.toContain(pods[0]!.metadata.uid);
}

/** Ends all processes of a pod, as the kernel does when memory runs out, and waits until it is ready again. */
export async function killIn(component: string): Promise<void> {
  const [{ metadata }] = (await podsOf(component)) as [Pod];
  const words = ['kubectl', 'exec', metadata.name, '--', 'sh', '-c', 'kill -9 -1'];
  await attempt(words, { cwd: work, env });
  await until(`the killed ${component} is started again`, async () => {
    const pod = (await podsOf(component)).find((each) => each.metadata.uid === metadata.uid);
    return pod && restartsOf(pod)! > 0 && isReady(pod);
  });
}

/** @param step that it is not behind of */
export async function goesOn(name: string, what: string, step: number): Promise<RunDetail> {
  const back = await until('the run is back', async () => {
    const detail = await runOf(name);
    return detail.phase === 'training' && detail;
  });
  expect(back.step).toBeGreaterThanOrEqual(step);
  const { step: now, stepsLost } = await atStep(name, back.step + 200);
  tell(`${what}: back at step ${back.step} of ${step}, now at ${now}, lost ${stepsLost}`);
  return back;
}
