import type { Push } from '../shared/protocol.ts';
import type { Landing } from '../wire/connection.ts';
import type { RowsOfPush } from './rows/rows-exchange.ts';

/** A push that the server has not answered yet. */
export interface KeptPush {
  readonly header: Push;
  readonly run: string;
  readonly sequence: number;
  readonly lease: number;
  /** One for each shard. */
  readonly payloads: readonly Landing[];
  /** What follows each of them: rows of tables, and keys of wanted ones; absent: nothing. */
  readonly rows: readonly RowsOfPush[] | undefined;
  /** How many of them are on their way to a socket. */
  sending: number;
  /** Its memory goes back when nothing is sent from it any more. */
  done: boolean;
  /** One of them has left. */
  readonly gone: () => void;
}

/** The pushes that would be sent again after a lost connection, oldest first, with the memory of their payloads. */
export class UnacknowledgedPushes {
  #pushes: KeptPush[] = [];

  get all(): readonly KeptPush[] {
    return this.#pushes;
  }

  /** @param payloads one for each shard; each is released, once, when nothing is sent from it any more. */
  add(header: Push, payloads: readonly Landing[], rows?: readonly RowsOfPush[]): KeptPush {
    const { run, sequence, lease } = header;
    const push: KeptPush = {
      header,
      run,
      sequence,
      lease,
      payloads,
      rows,
      sending: 0,
      done: false,
      gone: () => {
        push.sending--;
        if (push.done && push.sending === 0) releaseAll(push);
      },
    };
    this.#pushes.push(push);
    return push;
  }

  /** Forgets the others. */
  keep(which: (push: KeptPush) => boolean): void {
    const all = this.#pushes;
    this.#pushes = all.filter(which);
    for (const push of all) {
      if (which(push)) continue;
      push.done = true;
      if (push.sending === 0) releaseAll(push);
    }
  }
}

function releaseAll({ payloads }: KeptPush): void {
  for (const payload of payloads) payload.release();
}
