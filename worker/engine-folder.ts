import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** The two engines that `downpour engine install` builds. */
export type NativeVariant = 'cpu' | 'gpu';

/** The Node binding that is built, and the release of it. */
export const TFJS_NODE_VERSION = '4.22.0';

/** What an installed engine says of itself: `engine.json`, written last, before its folder gets its name. */
export interface EngineManifest {
  readonly variant: NativeVariant;
  readonly tfjsNode: string;
  /** Version of the TensorFlow whose library is used. */
  readonly tensorflow: string;
  /** File name of the wheel that it came from. */
  readonly wheel: string;
  /** sha256 by library, as the wheel's own record has it; compared when it was unpacked. */
  readonly sha256: Readonly<Record<string, string>>;
  readonly bytes: number;
  readonly installedAt: string;
}

export interface InstalledEngine {
  readonly folder: string;
  readonly manifest: EngineManifest;
}

/**
 * The folder that holds the engines: `$DOWNPOUR_ENGINE_DIR`, else `$XDG_CACHE_HOME/downpour/engines`,
 * else `~/.cache/downpour/engines`. Outside `node_modules`, so that `npm ci` does not undo an install.
 */
export function enginesFolder(env: NodeJS.ProcessEnv = process.env): string {
  if (env.DOWNPOUR_ENGINE_DIR) return resolve(env.DOWNPOUR_ENGINE_DIR);
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'downpour', 'engines');
}

/** Where the native engine of this tfjs and this Node lies, or would lie. */
export function engineFolder(
  variant: NativeVariant = 'cpu',
  env: NodeJS.ProcessEnv = process.env,
): string {
  const name = `${TFJS_NODE_VERSION}-${variant}-node${process.versions.modules}`;
  return join(enginesFolder(env), name);
}

/** The package of the Node binding that a variant is built from. */
export function bindingPackage(variant: NativeVariant): string {
  return variant === 'gpu' ? '@tensorflow/tfjs-node-gpu' : '@tensorflow/tfjs-node';
}

/** The engine in `folder`; null when none is there, or when what is there was never finished. */
export function readEngine(folder: string): InstalledEngine | null {
  try {
    const manifest = JSON.parse(readFileSync(join(folder, 'engine.json'), 'utf8'));
    return { folder, manifest: manifest as EngineManifest };
  } catch {
    return null;
  }
}

/** Every engine that is installed, for whatever Node. */
export function listEngines(env: NodeJS.ProcessEnv = process.env): readonly InstalledEngine[] {
  const folder = enginesFolder(env);
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => !name.startsWith('.'))
    .map((name) => readEngine(join(folder, name)))
    .filter((engine) => engine !== null);
}

/** Removes a native engine. @returns whether there was one. */
export function removeEngine(variant: NativeVariant = 'cpu', folder?: string): boolean {
  const target = folder ?? engineFolder(variant);
  // Only what an install made: a mistyped folder must not cost anybody their files.
  if (readEngine(target) === null) return false;
  rmSync(target, { recursive: true, force: true });
  return true;
}
