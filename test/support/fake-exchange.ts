import { floatsOf } from '../../shared/codec.ts';
import type { Evaluated, Push, Work } from '../../shared/protocol.ts';
import type { Landing } from '../../wire/connection.ts';
import type { Exchange } from '../../worker/trainer.ts';

/** A server that answers nothing; the test does. */
export class FakeExchange implements Exchange {
  /** With the numbers of the payload. */
  readonly pushes: (Omit<Push, 'type' | 'sequence'> & { sequence: number; gradient: number[] })[] =
    [];
  readonly evaluated: Evaluated[] = [];
  resent = 0;
  hasReceived = false;
  unacknowledged: { lease: number; sequence: number }[] = [];

  push(
    push: Omit<Push, 'type' | 'sequence'>,
    [bytes = 0]: readonly number[],
    write: (payloads: readonly Uint8Array[]) => void,
  ): number {
    const payload = new Uint8Array(bytes);
    write([payload]);
    return this.pushReady(push, [{ bytes: payload, release: () => {} }]);
  }

  pushReady(push: Omit<Push, 'type' | 'sequence'>, [landing]: readonly Landing[]): number {
    const sequence = this.pushes.length + 1;
    this.pushes.push({ ...push, sequence, gradient: [...floatsOf(landing!.bytes)] });
    this.unacknowledged.push({ lease: push.lease, sequence });
    return sequence;
  }

  send(message: Evaluated): void {
    this.evaluated.push(message);
  }

  acknowledge({ sequence }: { sequence: number }): void {
    this.unacknowledged = this.unacknowledged.filter((push) => push.sequence > sequence);
  }

  resend(): number {
    this.resent++;
    return this.unacknowledged.length;
  }
}

/** A `work` of run `r` with parameters of this step. */
export function workOf(step: number, leases: Work['leases'], rest: Partial<Work> = {}): Work {
  return {
    ...{ type: 'work', run: 'r', phase: 'training', step, generation: 1 },
    ...{ acknowledgements: [], leases, evaluation: null, encoding: 'f32', pull: null, ...rest },
  };
}
