import { vi } from 'vitest';
import { main } from '../../cli/main.ts';

export interface CommandResult {
  readonly code: number;
  /** What it printed. */
  readonly out: string;
  readonly err: string;
}

/** Runs a command of ours in this process. */
export async function runHere(...args: readonly string[]): Promise<CommandResult> {
  let [out, err] = ['', ''];
  const spies = [
    vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
      out += String(chunk);
      return true;
    }),
    vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => {
      err += String(chunk);
      return true;
    }),
  ];
  try {
    return { code: await main(args), out, err };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

/** The same. @returns what it printed on standard output. @throws when it ended with a code. */
export async function outputOf(...args: readonly string[]): Promise<string> {
  const { code, out, err } = await runHere(...args);
  if (code !== 0) throw new Error(`${args.join(' ')} ended with ${code}: ${out}${err}`);
  return out;
}
