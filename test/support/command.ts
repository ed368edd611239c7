import { vi } from 'vitest';
import { main } from '../../cli/main.ts';

/** Runs a command of ours in this process. @returns what it printed. @throws when it ended with a code. */
export async function outputOf(...args: string[]): Promise<string> {
  let text = '';
  const write = vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
    text += String(chunk);
    return true;
  });
  try {
    const code = await main(args);
    if (code !== 0) throw new Error(`${args.join(' ')} ended with ${code}: ${text}`);
  } finally {
    write.mockRestore();
  }
  return text;
}
