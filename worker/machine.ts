import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import type { Aside } from '../shared/asides.ts';
import { LIMITS } from '../shared/limits.ts';
import type { Machine } from '../shared/protocol.ts';
import type { EngineName } from './engine.ts';
import { type GpuLoad, nvidiaLoad } from './engine-nvidia.ts';
import { tf } from './tf.ts';

/** How busy the worker's machine is, told to servers that take it. */

const GPU_ENGINES: readonly EngineName[] = ['tfjs-node-gpu', 'native-gpu', 'webgpu'];
const NO_GPU: GpuLoad = { share: null, memoryBytes: null, memoryBytesMax: null };
/** How often to look whether a report is due. */
const LOOK_MS = 1_000;

interface MachineClient {
  takes(aside: Aside): boolean;
  readonly connections: number;
  send(message: Machine): void;
}

/**
 * Reports the load at once on each connection, then every `LIMITS.machineMs`, until the signal is aborted.
 * @param engine that computes: only a GPU's load is asked for, and only as long as there is an answer.
 */
export function reportMachine(
  client: MachineClient,
  engine: EngineName,
  signal: AbortSignal,
): void {
  const meter = new MachineMeter(engine);
  let told = 0;
  let at = Number.NEGATIVE_INFINITY;
  let isAsking = false;
  const look = async () => {
    const now = performance.now();
    const isNew = client.connections !== told;
    if (isAsking || !client.takes('machine') || (!isNew && now - at < LIMITS.machineMs)) return;
    isAsking = true;
    [told, at] = [client.connections, now];
    const facts = await meter.read();
    isAsking = false;
    if (client.takes('machine')) client.send({ type: 'machine', ...facts });
  };
  const timer = setInterval(() => void look(), LOOK_MS);
  timer.unref();
  signal.addEventListener('abort', () => clearInterval(timer), { once: true });
}

export class MachineMeter {
  #gpu: (() => Promise<GpuLoad>) | null;
  #cpu = process.cpuUsage();
  #at = performance.now();

  /** @param gpu a stand-in, for tests. */
  constructor(engine: EngineName, gpu: () => Promise<GpuLoad> = gpuLoad) {
    this.#gpu = GPU_ENGINES.includes(engine) ? gpu : null;
  }

  /** @returns the load since the last call. */
  async read(): Promise<Omit<Machine, 'type'>> {
    const { user, system } = process.cpuUsage(this.#cpu);
    const ms = performance.now() - this.#at;
    this.#cpu = process.cpuUsage();
    this.#at = performance.now();
    const gpu = await this.#readGpu();
    const { numBytes } = tf.memory();
    return {
      cores: availableParallelism(),
      cpuCores: ms > 0 ? Number(((user + system) / 1000 / ms).toFixed(3)) : null,
      memoryBytes: process.memoryUsage.rss(),
      memoryBytesMax: memoryMax(),
      tensorBytes: Number.isFinite(numBytes) ? numBytes : null,
      gpuShare: gpu.share,
      gpuMemoryBytes: gpu.memoryBytes,
      gpuMemoryBytesMax: gpu.memoryBytesMax,
    };
  }

  /** What cannot be asked once is not asked again: each question starts a program. */
  async #readGpu(): Promise<GpuLoad> {
    const load = (await this.#gpu?.().catch(() => NO_GPU)) ?? NO_GPU;
    if (load.share === null && load.memoryBytes === null) this.#gpu = null;
    return load;
  }
}

/** A container's limit, where there is one. */
function memoryMax(): number {
  const constrained = process.constrainedMemory();
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
}

async function gpuLoad(): Promise<GpuLoad> {
  return amdLoad() ?? (await nvidiaLoad());
}

const CARDS = '/sys/class/drm';

/** The driver of AMD tells it in files. @returns null: it is not there. */
function amdLoad(): GpuLoad | null {
  try {
    for (const card of readdirSync(CARDS)) {
      if (!/^card\d+$/.test(card)) continue;
      const read = (name: string) =>
        Number(readFileSync(`${CARDS}/${card}/device/${name}`, 'utf8').trim());
      try {
        return {
          share: Math.min(1, read('gpu_busy_percent') / 100),
          memoryBytes: read('mem_info_vram_used'),
          memoryBytesMax: read('mem_info_vram_total'),
        };
      } catch {
        // Another card, or another driver.
      }
    }
  } catch {
    // No such folder: no GPU, or not Linux.
  }
  return null;
}
