import type { Mode, ModeReplica, ModeState } from './mode.ts';

/**
 * So many pushes make an update, of whichever workers and however stale, and nobody waits: n-softsync (Zhang et al. 2016,
 * arXiv:1511.05950), FedBuff (Nguyen et al. 2022, arXiv:2106.06639), and with `stalenessMax` 0 Rennala (Tyurin and
 * Richtárik 2023, arXiv:2305.12387).
 */
export class Buffered implements Mode {
  readonly collects = true;
  readonly deadline = null;
  readonly #size: number;

  constructor(size: number) {
    this.#size = size;
  }

  place(): void {}
  arrived(): void {}
  departed(): void {}
  left(): void {}
  late(): void {}
  tick(): void {}
  postpone(): void {}

  get wanted(): number {
    return this.#size;
  }

  mayPull(): boolean {
    return true;
  }

  given(): void {}
  idle(): void {}

  takeOpened(): boolean {
    return false;
  }

  refuse(): null {
    return null;
  }

  pushed(): void {}

  isComplete(collected: number): boolean {
    return collected >= this.#size;
  }

  stepped(): void {}

  state(): ModeState {
    return { members: [] };
  }

  restore(): void {}

  replica(): ModeReplica {
    return this.state();
  }

  replicate(): void {}
}
