/** One line at a time on standard error: rewritten on a terminal, at most one in two seconds elsewhere. */
export interface Progress {
  readonly tell: (what: string) => void;
  end(): void;
}

const QUIET_MS = 2_000;

export function createProgress(section: string): Progress {
  const { stderr } = process;
  const start = performance.now();
  let last = start - QUIET_MS;
  return {
    tell(what) {
      const now = performance.now();
      const line = `${section} ${Math.round((now - start) / 1000)} s: ${what}`;
      if (stderr.isTTY) stderr.write(`\r\x1b[K${line.slice(0, (stderr.columns || 80) - 1)}`);
      else if (now - last >= QUIET_MS) stderr.write(`${line}\n`);
      else return;
      last = now;
    },
    end() {
      if (stderr.isTTY) stderr.write('\r\x1b[K');
    },
  };
}
