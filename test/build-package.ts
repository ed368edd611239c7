import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import { installed } from '../scripts/installed.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** The command's program in the built package. */
    readonly program: string;
  }
}

/**
 * Builds the package of these sources once, for all that system tests start, by themselves or by way of our own code (see
 * support/built-files.ts): of a checkout each process would read the TypeScript anew, and a server starts in a third of the time.
 */
export default function setup({ provide }: TestProject): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-built-'));
  provide('program', installed(folder));
  return () => rmSync(folder, { recursive: true, force: true });
}
