import { setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { JOIN_ENGINES, JOIN_PATHS, type JoinPageEngine } from '../../shared/join.ts';
import {
  type Adapter,
  describeAdapter,
  type LoadedEngine,
  openCpu,
  openWasm,
  ourVersions,
  prove,
  setBackend,
} from '../backend.ts';
import type { Engine } from '../engine.ts';
import { repairWebgpuKernels } from '../kernels-webgpu.ts';

/** In the place of `../engine.ts` in a page: WebGPU, WebAssembly or plain JavaScript. */

export interface PageEngineOptions {
  readonly engine?: JoinPageEngine;
  /** Also a WebGPU adapter that is a program: slower than wasm, for tests. */
  readonly softwareGpu?: boolean;
}

const CANDIDATES: Readonly<
  Record<(typeof JOIN_ENGINES)[number], (options: PageEngineOptions) => Promise<LoadedEngine>>
> = {
  webgpu: loadWebgpu,
  wasm: () => {
    setWasmPaths(new URL(JOIN_PATHS.files, location.origin).href);
    return openWasm(processor());
  },
  cpu: () => openCpu(processor()),
};

/**
 * Opens an engine and proves that it computes a right gradient; `auto` takes the best that does, and its notes say
 * why not a better one.
 * @throws DownpourError DP_ENGINE_UNAVAILABLE.
 */
export async function openEngine(options: PageEngineOptions = {}): Promise<Engine> {
  const { engine = 'auto' } = options;
  const skipped: string[] = [];
  for (const name of engine === 'auto' ? JOIN_ENGINES : [engine]) {
    try {
      const loaded = await CANDIDATES[name](options);
      await prove();
      return { name, ...loaded, notes: [...loaded.notes, ...skipped] };
    } catch (error) {
      skipped.push(`${name}: ${errorText(error)}`);
    }
  }
  throw new DownpourError(
    'DP_ENGINE_UNAVAILABLE',
    `this page can train with nothing it tried: ${skipped.join('; ')}`,
  );
}

interface Gpu {
  requestAdapter(options: { powerPreference: string }): Promise<Adapter | null>;
}

async function loadWebgpu({ softwareGpu = false }: PageEngineOptions): Promise<LoadedEngine> {
  const { gpu } = navigator as unknown as { gpu?: Gpu };
  if (gpu === undefined) {
    throw new Error(
      isSecureContext
        ? 'this browser has no WebGPU'
        : 'browsers offer WebGPU over https (serve --tls-cert) and on localhost alone',
    );
  }
  // Without an adapter tfjs's backend fails on null, or another backend is taken in silence.
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (adapter === null) throw new Error('the browser finds no GPU');
  const { device, software } = describeAdapter(adapter);
  if (software && !softwareGpu) {
    throw new Error(`the only adapter is software (${device}), slower than wasm`);
  }
  await import('@tensorflow/tfjs-backend-webgpu');
  repairWebgpuKernels();
  await setBackend('webgpu');
  return {
    backend: 'webgpu',
    device,
    versions: ourVersions(),
    notes: software ? ['software adapter, as asked for'] : [],
  };
}

/** As much as a browser tells. */
function processor(): string {
  const { userAgent, hardwareConcurrency } = navigator;
  const [browser = 'a browser'] = /(?:Firefox|Edg|Chrome|Version)\/[\d]+/.exec(userAgent) ?? [];
  return `${browser.replace('Version', 'Safari').replace('/', ' ')}, ${hardwareConcurrency} cores`;
}
