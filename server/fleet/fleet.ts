import type { Log } from '../../shared/log.ts';
import type { ShardAddress } from '../../shared/message-fields.ts';
import type { Hello } from '../../shared/protocol.ts';
import type { Bundle } from '../../shared/rest.ts';
import type { Run } from '../core/run.ts';
import type { Replication } from '../standby/replication.ts';
import type { Outlet } from './answers.ts';
import type { RunAsides } from './asides.ts';
import type { Backlog } from './brakes.ts';
import type { Reports } from './reports.ts';

/** What the connection of one worker needs of the server. */
export interface Fleet<Session> extends Outlet {
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly log: Log;
  readonly replication: (Pick<Replication, 'whenSafe' | 'addresses'> & Backlog) | null;
  /** What waits to be sent to shards; null: there are none. */
  readonly shardBacklog: Backlog | null;
  find(run: string): Run | null;
  /** There was such a run. */
  wasRemoved(run: string): boolean;
  /** Gives it work after its `hello`, or says why it has none. */
  place(session: Session): void;
  /** Runs that workers may be needed for. */
  readonly unfinished: readonly Run[];
  /** Carries out what follows from calls of a run, after they are answered (docs/decisions/0003-one-stretch.md). */
  followUp(run: Run): void;
  /** Addresses of all shards but the first, which is this server. */
  shardAddresses(): ShardAddress[];
  readonly experiments: { of(run: Run): Bundle | null };
  readonly reports: Pick<Reports, 'pushed' | 'countError' | 'workerFailed'>;
  readonly asides: Pick<RunAsides, 'joined' | 'offer'>;
  readonly workers: {
    /** Messages that the server had not asked for. */
    unasked: number;
    mustBeItsName(hello: Hello, holder: string | null): void;
    welcome(session: Session): void;
    throttled(session: Session): void;
    admit(session: Session): void;
    employ(session: Session): void;
    farewell(session: Session): void;
  };
}
