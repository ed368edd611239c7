import { ERRORS } from '../../shared/errors.ts';
import type { MachineFacts, WorkerSummary } from '../../shared/rest.ts';
import { ago, bytes, count, short } from '../format.ts';
import { type Child, h } from '../html.ts';
import { badge } from '../parts.ts';

/** The table of workers: who they are, how fast, how busy, and what went wrong. */

export const WORKER_COLUMNS: readonly (readonly [title: string, kind: string])[] = [
  ['Worker', ''],
  ['State', ''],
  ['Run', ''],
  ['Examples/s', 'number'],
  ['Gradient', 'number'],
  ['Machine', ''],
  ['Pushes', 'number'],
  ['Staleness', 'number'],
  ['Traffic', 'number'],
  ['Last error', ''],
];

const cell = (kind: string, ...children: Child[]) => h('td', { class: kind }, ...children);
const sub = (text: string) => h('span', { class: 'sub' }, text);

export function workerCells(worker: WorkerSummary): HTMLElement[] {
  const { applied, damped, duplicate, rejected } = worker.pushes;
  const more = [
    damped > 0 && `${count(damped)} damped`,
    rejected > 0 && `${count(rejected)} rejected`,
    duplicate > 0 && `${count(duplicate)} duplicate`,
  ].filter((text) => text !== false);
  const { computeMsMean, stalenessMean, transport, run, quarantine } = worker;
  const socket = transport === 'unix' ? ', unix socket' : '';
  return [
    cell('', h('strong', {}, worker.worker), sub(`${worker.engine} on ${worker.device}${socket}`)),
    cell('', badge(quarantine === null ? worker.state : 'quarantined')),
    cell('', run !== null && h('a', { class: 'run-name', href: `#/runs/${run}` }, run)),
    cell('number', worker.examplesPerSecond ? count(worker.examplesPerSecond) : '–'),
    cell('number', computeMsMean ? `${short(Number(computeMsMean.toPrecision(3)))} ms` : '–'),
    cell('machine', ...machineOf(worker.machine ?? null)),
    cell('number', count(applied + damped), more.length > 0 && sub(more.join(', '))),
    cell('number', stalenessMean === null ? '–' : short(Number(stalenessMean.toPrecision(3)))),
    cell('number', `${bytes(worker.bytes.received)} in`, sub(`${bytes(worker.bytes.sent)} out`)),
    cell('error', ...errorOf(worker)),
  ];
}

const memory = (used: number, most: number | null) =>
  most === null ? bytes(round(used)) : `${bytes(round(used))} of ${bytes(round(most))}`;
/** To three digits, which is all that is shown. */
const round = (value: number) => Number(value.toPrecision(3));

function machineOf(machine: MachineFacts | null): Child[] {
  if (!machine) return ['–'];
  const { cores, cpuCores, memoryBytes, memoryBytesMax, tensorBytes } = machine;
  const { gpuShare, gpuMemoryBytes, gpuMemoryBytesMax } = machine;
  const gpu = [
    gpuShare === null ? null : `${Math.round(100 * gpuShare)} % busy`,
    gpuMemoryBytes === null ? null : memory(gpuMemoryBytes, gpuMemoryBytesMax),
  ].filter((text) => text !== null);
  return [
    cpuCores === null ? '–' : `${cpuCores.toFixed(1)} of ${cores ?? '?'} cores`,
    memoryBytes !== null && sub(`memory ${memory(memoryBytes, memoryBytesMax)}`),
    tensorBytes !== null && sub(`tensors ${bytes(round(tensorBytes))}`),
    gpu.length > 0 && sub(`GPU ${gpu.join(', ')}`),
  ];
}

/** What a worker does after an error, where the message does not say it. */
const NEXT = {
  never: 'the worker does not try again',
  backoff: 'the worker tries again by itself',
  'pull-first': 'the worker goes on with new parameters',
} as const;

/** When, what, and what to do: messages say what to do behind their first colon or semicolon. */
function errorOf({ quarantine, lastError }: WorkerSummary): Child[] {
  if (quarantine === null && lastError === null) return ['–'];
  const message = quarantine ?? lastError!.message;
  const [, what = message, rest = ''] = /^(.+?[^:;])(?:[:;]\s+(.+))?$/s.exec(message) ?? [];
  const { code, at } = lastError ?? { code: null, at: null };
  const retry = code !== null && code in ERRORS ? ERRORS[code as keyof typeof ERRORS].retry : null;
  return [
    h('strong', { class: 'what' }, what),
    rest !== '' && h('span', { class: 'rest' }, rest),
    code !== null &&
      at !== null &&
      h('span', { class: 'sub' }, h('time', { datetime: at, title: at }, ago(at)), ` · ${code}`),
    retry !== null && sub(NEXT[retry]),
  ];
}
