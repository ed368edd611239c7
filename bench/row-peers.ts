import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { TouchedRows } from './load.ts';
import { end, keep, ROOT } from './processes.ts';

/**
 * Other systems that push rows, where Python finds them; row-peers.py is what they run. The variable of each names a folder
 * of `python3 -m pip install --target`, and may be left out if Python finds the package anyhow.
 */
export const ROW_PEERS = [
  { name: 'ps-lite', what: 'ps-lite: MXNet 1.9.1, dist_async', folder: 'DOWNPOUR_MXNET' },
  {
    name: 'tensorflow',
    what: 'TensorFlow: IndexedSlices over gRPC',
    folder: 'DOWNPOUR_TENSORFLOW',
  },
  {
    ...{ name: 'tensorflow-local', what: 'TensorFlow: IndexedSlices, one process, no wire' },
    folder: 'DOWNPOUR_TENSORFLOW',
  },
  { name: 'torch', what: 'PyTorch: EmbeddingBag(sparse) over RPC', folder: 'DOWNPOUR_TORCH' },
] as const;

export interface RowPeer {
  readonly what: string;
  /** Updates in a second, one after the other. */
  perSecond(seconds: number): Promise<number>;
  close(): Promise<void>;
}

/** @throws Error: Python or a package is missing; its last words. */
export async function openRowPeer(
  { name, what, folder }: (typeof ROW_PEERS)[number],
  { rows, width, touched }: TouchedRows,
): Promise<RowPeer> {
  const path = process.env[folder];
  const program = join(ROOT, 'bench', 'row-peers.py');
  const child = keep(
    spawn('python3', [program, name, ...[rows, width, touched].map(String)], {
      env: { ...process.env, ...(path ? { PYTHONPATH: path } : {}) },
      stdio: ['pipe', 'pipe', 'pipe'],
    }),
  );
  let said = '';
  child.stderr!.on('data', (text) => {
    said = (said + text).slice(-2000);
  });
  child.stdin!.on('error', () => {});
  child.on('error', (error) => {
    said = error.message;
  });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const line = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(said.trim().split('\n').at(-1) || 'python3 ended');
    return String(value);
  };
  await line();
  return {
    what,
    async perSecond(seconds) {
      child.stdin!.write(`${seconds}\n`);
      return Number(await line());
    },
    close: () => end(child),
  };
}
