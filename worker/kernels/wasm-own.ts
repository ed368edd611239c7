import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { bytesOfBase64 } from '../../shared/base64.ts';
import { BINARY } from './binary.ts';

/** Kernels of ours that work in the memory of the wasm engine. Addresses are bytes, strides count floats. */
export interface OwnKernels {
  pack(
    out: number,
    matrix: number,
    rows: number,
    columns: number,
    rowStride: number,
    columnStride: number,
  ): void;
  multiply(
    c: number,
    cRow: number,
    a: number,
    aRow: number,
    aColumn: number,
    panels: number,
    m: number,
    n: number,
    k: number,
    add: boolean,
  ): void;
  lstm_forward(
    gates: number,
    c: number,
    h: number,
    hRow: number,
    nextC: number,
    nextH: number,
    nextHRow: number,
    a: number,
    mask: number,
    batch: number,
    units: number,
    hard: boolean,
  ): void;
  lstm_backward(
    dz: number,
    dh: number,
    dc: number,
    dy: number,
    dyRow: number,
    gates: number,
    c: number,
    a: number,
    mask: number,
    batch: number,
    units: number,
    hard: boolean,
  ): void;
  gru_gates(
    gates: number,
    h: number,
    hRow: number,
    rh: number,
    batch: number,
    units: number,
    hard: boolean,
  ): void;
  gru_output(
    gates: number,
    h: number,
    hRow: number,
    nextH: number,
    nextHRow: number,
    mask: number,
    batch: number,
    units: number,
  ): void;
  gru_backward(
    dz: number,
    dh: number,
    dy: number,
    dyRow: number,
    gates: number,
    h: number,
    hRow: number,
    mask: number,
    batch: number,
    units: number,
    hard: boolean,
  ): void;
  gru_reset_backward(
    dz: number,
    dh: number,
    drh: number,
    gates: number,
    h: number,
    hRow: number,
    batch: number,
    units: number,
    hard: boolean,
  ): void;
}

const opened = new WeakMap<BackendWasm, OwnKernels | null>();

/** Null: without SIMD, or where the engine's memory is shared by threads, there are none. */
export function ownKernels(backend: BackendWasm): OwnKernels | null {
  let kernels = opened.get(backend);
  if (kernels === undefined) {
    kernels = open(backend);
    opened.set(backend, kernels);
  }
  return kernels;
}

function open(backend: BackendWasm): OwnKernels | null {
  const { memory } = (backend.wasm as unknown as { asm?: { memory?: unknown } }).asm ?? {};
  if (!(memory instanceof WebAssembly.Memory) || !(memory.buffer instanceof ArrayBuffer))
    return null;
  const binary = bytesOfBase64(BINARY);
  if (!WebAssembly.validate(binary as BufferSource)) return null;
  const module = new WebAssembly.Module(binary as BufferSource);
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return exports as unknown as OwnKernels;
}

/** Columns of a panel of a packed matrix. */
const PANEL_COLUMNS = 8;

/** Floats that `pack` writes. */
export const packedSize = (rows: number, columns: number): number =>
  rows * Math.ceil(columns / PANEL_COLUMNS) * PANEL_COLUMNS;

/** Rows of B and of A that are multiplied at a time: a block of A with a panel of B then stays in the nearest caches. */
const K_BLOCK = 256;
const M_BLOCK = 64;

/** An address, and how many floats lie between two rows and two columns. */
export interface Placed {
  readonly at: number;
  readonly row: number;
  readonly column: number;
}

export interface ProductSizes {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** Floats that `product` needs as its workspace. */
export const workspaceSize = ({ n, k }: ProductSizes): number =>
  packedSize(Math.min(k, K_BLOCK), n);

/** C = A · B, shapes [m, k], [k, n], [m, n], each however it lies in memory; C without a stride of columns. */
export function product(
  kernels: OwnKernels,
  c: Omit<Placed, 'column'>,
  a: Placed,
  b: Placed,
  workspace: number,
  { m, n, k }: ProductSizes,
): void {
  for (let from = 0; from < k; from += K_BLOCK) {
    const depth = Math.min(K_BLOCK, k - from);
    kernels.pack(workspace, b.at + 4 * from * b.row, depth, n, b.row, b.column);
    for (let row = 0; row < m; row += M_BLOCK) {
      kernels.multiply(
        c.at + 4 * row * c.row,
        c.row,
        a.at + 4 * (row * a.row + from * a.column),
        a.row,
        a.column,
        workspace,
        Math.min(M_BLOCK, m - row),
        n,
        depth,
        from > 0,
      );
    }
  }
}
