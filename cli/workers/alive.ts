import { rmSync, writeFileSync } from 'node:fs';
import { DownpourError, errorText } from '../../shared/errors.ts';

// `downpour work --alive-file`: what a probe looks at. A worker that cannot reach its server is no worse for it, since a
// new one could not either; what a new one mends is a process that stands still.

/** How often the file is touched; probes call a worker dead that has not done so for five minutes. */
const EVERY_MS = 10_000;

/**
 * Touches a file while this process gets to its timers. A minibatch holds them up for as long as it takes.
 * @returns what ends it, and removes the file.
 * @throws DownpourError DP_USAGE: it cannot be written.
 */
export function keepAlive(file: string, everyMs = EVERY_MS): { end(): void } {
  // The file system has its own clock, which the probe reads too.
  const touch = () => writeFileSync(file, '\n');
  try {
    touch();
  } catch (cause) {
    throw new DownpourError(
      'DP_USAGE',
      `--alive-file ${file} cannot be written: ${errorText(cause)}; name a file in a folder that this user may write, as /tmp/alive`,
      { cause },
    );
  }
  const timer = setInterval(() => {
    try {
      touch();
    } catch {
      // The probe says it.
    }
  }, everyMs);
  timer.unref();
  return {
    end() {
      clearInterval(timer);
      rmSync(file, { force: true });
    },
  };
}
