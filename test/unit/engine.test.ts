import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import { afterEach, beforeEach, describe, expect, it, test, vi } from 'vitest';
import { ENGINES, openEngine } from '../../worker/engine.ts';
import { engineFolder, listEngines, readEngine, removeEngine } from '../../worker/engine-folder.ts';
import { gatherLibraries, installEngine } from '../../worker/engine-install.ts';
import {
  type NvidiaSurvey,
  surveyNvidia,
  whyNoGpuDevice,
  whyNoNvidia,
} from '../../worker/engine-nvidia.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-engine-'));
  vi.stubEnv('DOWNPOUR_ENGINE_DIR', folder);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

test('CUDA libraries of all packages are found in the folder of the runtime, wherever the engine is moved', () => {
  const packages = {
    cuda_runtime: ['libcudart.so.12', 'libcudart_static.a'],
    cusolver: ['libcusolver.so.11', 'libcusolverMg.so.11'],
    cudnn: ['libcudnn.so.9'],
    curand: ['libcurand.so.10', '__init__.py'],
  };
  for (const [name, files] of Object.entries(packages)) {
    mkdirSync(join(folder, 'built', name, 'lib'), { recursive: true });
    for (const file of files) writeFileSync(join(folder, 'built', name, 'lib', file), file);
  }
  mkdirSync(join(folder, 'built', 'cuda_nvcc', 'bin'), { recursive: true });
  gatherLibraries(join(folder, 'built'));
  renameSync(join(folder, 'built'), join(folder, 'moved'));
  const lib = join(folder, 'moved', 'cuda_runtime', 'lib');
  expect(readdirSync(lib).sort()).toEqual([
    'libcudart.so.12',
    'libcudart_static.a',
    'libcudnn.so.9',
    'libcurand.so.10',
    'libcusolver.so.11',
    'libcusolverMg.so.11',
  ]);
  for (const file of readdirSync(lib)) expect(readFileSync(join(lib, file), 'utf8')).toBe(file);
});

describe('engines', () => {
  it('are tried best first: GPUs, then native code, then what npm brings', () => {
    expect(ENGINES).toEqual([
      'tfjs-node-gpu',
      'native-gpu',
      'webgpu',
      'tfjs-node',
      'native',
      'wasm',
      'cpu',
    ]);
  });

  it('refuses a named engine that is not installed, with the command that installs it', async () => {
    await expect(openEngine({ engine: 'native' })).rejects.toMatchObject({
      code: 'DP_ENGINE_UNAVAILABLE',
      message: expect.stringMatching(/'native'.*not installed in .*downpour engine install/),
    });
  });

  it('names each better engine and why it was not taken', async () => {
    const { name, notes } = await openEngine();
    for (const better of ENGINES.slice(0, ENGINES.indexOf(name))) {
      expect(notes.join('\n')).toContain(`${better}: `);
    }
  });

  it('wasm and cpu give the same loss and gradient of an MLP to 1e-5', async () => {
    const results = [];
    for (const engine of ['wasm', 'cpu'] as const) {
      const opened = await openEngine({ engine });
      expect(opened).toMatchObject({ name: engine, backend: engine });
      expect(opened.device).not.toBe('');
      expect(opened.versions['tfjs-core']).toMatch(/^4\./);
      results.push(await mlpGradient());
    }
    const [wasm, cpu] = results;
    expect(wasm!.length).toBe(1 + 6 * 5 + 5 + 5 * 3 + 3);
    for (const [i, value] of wasm!.entries()) expect(value).toBeCloseTo(cpu![i]!, 5);
    expect(Math.max(...wasm!.slice(1).map(Math.abs))).toBeGreaterThan(0.01);
  });
});

describe('where native engines lie', () => {
  it('follows DOWNPOUR_ENGINE_DIR, then XDG_CACHE_HOME, then the home folder', () => {
    const name = `4.22.0-cpu-node${process.versions.modules}`;
    expect(engineFolder('cpu', { DOWNPOUR_ENGINE_DIR: '/a', XDG_CACHE_HOME: '/b' })).toBe(
      `/a/${name}`,
    );
    expect(engineFolder('cpu', { XDG_CACHE_HOME: '/b' })).toBe(`/b/downpour/engines/${name}`);
    expect(engineFolder('cpu', {})).toMatch(new RegExp(`\\.cache/downpour/engines/${name}$`));
  });

  it('takes no folder without a manifest for an engine, and removes none', () => {
    const half = engineFolder('cpu');
    mkdirSync(half);
    writeFileSync(join(half, 'thesis.txt'), 'mine');
    expect(readEngine(half)).toBeNull();
    expect(listEngines()).toEqual([]);
    expect(removeEngine('cpu')).toBe(false);
    expect(existsSync(join(half, 'thesis.txt'))).toBe(true);
  });
});

const canInstall = process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch);
describe.skipIf(!canInstall)('engine install (Linux on x64 and arm64)', () => {
  it('does nothing when the engine is there', async () => {
    mkdirSync(engineFolder('cpu'));
    writeFileSync(join(engineFolder('cpu'), 'engine.json'), '{"variant":"cpu","bytes":1}');
    vi.stubEnv('PATH', folder);
    const result = await installEngine();
    expect(result).toMatchObject({ installed: false, folder: engineFolder('cpu') });
  });

  it('names every tool that is missing and the packages that bring them', async () => {
    vi.stubEnv('PATH', fakeTools({ make: 'exit 0', npm: 'exit 0' }));
    await expect(installEngine()).rejects.toMatchObject({
      code: 'DP_ENGINE_INSTALL',
      message: expect.stringContaining(
        'python3, pip, g++, not found here: apt-get install -y python3 python3-pip g++',
      ),
    });
  });

  it('leaves a folder alone that holds other things', async () => {
    const taken = join(folder, 'taken');
    mkdirSync(taken);
    writeFileSync(join(taken, 'thesis.txt'), 'mine');
    await expect(installEngine({ folder: taken })).rejects.toMatchObject({
      code: 'DP_ENGINE_INSTALL',
    });
    expect(readdirSync(taken)).toEqual(['thesis.txt']);
  });

  it('says so when there is no network, with the words of the program', async () => {
    const npm =
      'case "$1" in --version) exit 0;; esac; echo "npm error code EAI_AGAIN" >&2; exit 1';
    vi.stubEnv('PATH', fakeTools({ python3: 'exit 0', 'g++': 'exit 0', make: 'exit 0', npm }));
    await expect(installEngine()).rejects.toMatchObject({
      code: 'DP_ENGINE_INSTALL',
      message: expect.stringMatching(/can't be reached[\s\S]*EAI_AGAIN/),
    });
    expect(readEngine(engineFolder('cpu'))).toBeNull();
  });

  it('leaves nothing that could be taken for an engine when it is interrupted', async () => {
    const npm = 'case "$1" in --version) exit 0;; esac; exec sleep 60';
    vi.stubEnv(
      'PATH',
      `${fakeTools({ python3: 'exit 0', 'g++': 'exit 0', make: 'exit 0', npm })}:/usr/bin:/bin`,
    );
    const controller = new AbortController();
    const install = installEngine({
      signal: controller.signal,
      log: (line) => {
        if (line.startsWith('fetching')) controller.abort(new Error('interrupted'));
      },
    });
    await expect(install).rejects.toThrow('interrupted');
    expect(readdirSync(folder).filter((name) => name !== 'tools')).toEqual([]);
  });

  it('keeps a wheel for the next try, but not one that is damaged', async () => {
    const { wheels, wheel } = { wheels: join(folder, '.wheels'), wheel: keptWheel() };
    const tools = { python3: 'case "$1" in -c) echo BadZipFile >&2; exit 1;; esac', npm: 'exit 0' };
    vi.stubEnv('PATH', fakeTools({ ...tools, 'g++': 'exit 0', make: 'exit 0' }));
    const lines: string[] = [];
    await expect(installEngine({ log: (line) => lines.push(line) })).rejects.toThrow('BadZipFile');
    expect(lines.join('\n')).toContain('is here from an earlier try');
    expect(existsSync(wheel)).toBe(false);
    expect(readdirSync(wheels)).toEqual([]);
  });

  it('clears away what a killed install left, but not what a living one is making', async () => {
    const dead = join(folder, '.partial-4.22.0-cpu-node115-999999999');
    const living = join(folder, `.partial-4.22.0-gpu-node115-${process.ppid}`);
    for (const each of [dead, living]) mkdirSync(each);
    vi.stubEnv(
      'PATH',
      fakeTools({
        python3: 'exit 0',
        'g++': 'exit 0',
        make: 'exit 0',
        npm: 'test "$1" = --version',
      }),
    );
    await expect(installEngine()).rejects.toThrow();
    expect(existsSync(dead)).toBe(false);
    expect(existsSync(living)).toBe(true);
  });
});

describe('what is said of an NVIDIA GPU', () => {
  const h100: NvidiaSurvey = {
    driver: '550.54.15',
    smiFailure: null,
    libcuda: '/usr/lib/x86_64-linux-gnu/libcuda.so.1',
    gpus: [{ name: 'NVIDIA H100 80GB HBM3', computeCapability: 9 }],
  };
  const a100 = { ...h100, gpus: [{ name: 'NVIDIA A100-SXM4-40GB', computeCapability: 8 }] };

  it('reads driver, name and compute capability from nvidia-smi', async () => {
    const run = async (file: string) => {
      if (file === 'nvidia-smi') return 'NVIDIA H100 80GB HBM3, 9.0, 550.54.15\n';
      return '\tlibcuda.so.1 (libc6,x86-64) => /opt/lib/libcuda.so.1\n';
    };
    const survey = await surveyNvidia(run, {});
    expect(survey.gpus).toEqual(h100.gpus);
    expect(survey.driver).toBe('550.54.15');
    expect(whyNoNvidia(survey)).toBeNull();
  });

  it.each([
    [
      'no driver',
      { driver: null, smiFailure: 'nvidia-smi is not installed', libcuda: null, gpus: [] },
      'no NVIDIA driver: libcuda.so.1 was not found and nvidia-smi is not installed',
    ],
    ['a container without the driver library', { ...h100, libcuda: null }, '--gpus all'],
    [
      'a driver without a GPU',
      { ...h100, driver: null, smiFailure: 'No devices were found', gpus: [] },
      'No devices were found',
    ],
  ])('%s', (_, survey, text) => {
    expect(whyNoNvidia(survey)).toContain(text);
  });

  it.each([
    [
      'a GPU too new for CUDA 11',
      'tfjs-node-gpu',
      h100,
      '',
      'ends at 8.6: downpour engine install --gpu',
    ],
    [
      'missing CUDA libraries, by name',
      'tfjs-node-gpu',
      a100,
      "W dso_loader.cc:64] Could not load dynamic library 'libcudart.so.11.0'; dlerror: …",
      'CUDA libraries are missing: libcudart.so.11.0',
    ],
    [
      'libraries that the engine brings, and how to bring them again',
      'native-gpu',
      h100,
      "I dso_loader.cc:144] Could not load dynamic library 'libcusolver.so.11'; dlerror: …",
      'CUDA libraries are missing: libcusolver.so.11; helps: downpour engine remove --gpu',
    ],
    [
      'CUDA that does not start',
      'native-gpu',
      h100,
      'E cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)',
      'CUDA does not start: INTERNAL: CUDA error: UNKNOWN ERROR (303)',
    ],
    ['silence', 'native-gpu', h100, '', 'TF_CPP_MIN_LOG_LEVEL=0'],
  ] as const)('%s', (_, engine, survey, log, text) => {
    expect(whyNoGpuDevice(engine, survey, log)).toContain(text);
  });
});

/** A folder of shell scripts by the names of programs, to stand before or instead of the real ones. */
function fakeTools(tools: Readonly<Record<string, string>>): string {
  const at = join(folder, 'tools');
  mkdirSync(at);
  for (const [name, script] of Object.entries(tools)) {
    writeFileSync(join(at, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(at, name), 0o755);
  }
  return at;
}

/** Stands for the wheel that an interrupted install had fetched. */
function keptWheel(): string {
  const name = process.arch === 'arm64' ? 'tensorflow_cpu_aws' : 'tensorflow_cpu';
  const wheel = join(folder, '.wheels', `${name}-2.15.1-cp311-cp311-manylinux2014.whl`);
  mkdirSync(join(folder, '.wheels'));
  writeFileSync(wheel, 'cut off');
  return wheel;
}

/** Loss and gradient, one after the other, of a 6-5-3 network on fixed numbers. */
async function mlpGradient(): Promise<number[]> {
  const wave = (count: number, scale: number) =>
    Float32Array.from({ length: count }, (_, i) => scale * Math.sin(1 + i * 1.7));
  const model = tfl.sequential({
    layers: [
      tfl.layers.dense({ units: 5, activation: 'tanh', inputShape: [6] }),
      tfl.layers.dense({ units: 3 }),
    ],
  });
  const before = tf.memory().numTensors;
  const result = tf.tidy(() => {
    for (const weight of model.trainableWeights) {
      const { shape } = weight;
      const sizes = shape.map((size) => size!);
      weight.write(tf.tensor(wave(tf.util.sizeFromShape(sizes), 0.5), sizes));
    }
    const x = tf.tensor2d(wave(24, 1), [4, 6]);
    const y = tf.oneHot(tf.tensor1d([0, 2, 1, 2], 'int32'), 3);
    const { value, grads } = tf.variableGrads(() =>
      tf.losses.softmaxCrossEntropy(y, model.apply(x) as tf.Tensor),
    );
    return tf.concat([
      tf.reshape(value, [1]),
      ...Object.values(grads).map((g) => tf.reshape(g, [-1])),
    ]);
  });
  const numbers = [...(await result.data())];
  result.dispose();
  expect(tf.memory().numTensors).toBe(before);
  model.dispose();
  return numbers;
}
