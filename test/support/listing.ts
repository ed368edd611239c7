import { type Listed, Listing } from '../../server/fleet/listing.ts';
import { waitsForWorker } from '../../server/watch/alerts.ts';
import type { Phase } from '../../shared/protocol.ts';
import type { RunSummary } from '../../shared/rest.ts';

/** A run of which a test says what is told. */
export interface FakeRun extends Listed {
  over: boolean;
  moving: boolean;
  phase: Phase;
  workers: number;
  step: number;
  reason: string;
}

export const fakeRun = (id: string): FakeRun => ({
  ...{ id, over: false, moving: false, phase: 'waiting', workers: 0, step: 0, reason: '' },
});

/** A reason to look at a run is one to give an alarm. */
export function listingOf(
  runs: readonly FakeRun[],
  createdAt: (run: FakeRun) => string = () => '',
): Listing<FakeRun> {
  const listing = new Listing<FakeRun>({
    createdAt,
    summaryOf: (run) => ({ ...run }) as unknown as RunSummary,
    alarms: ({ reason }) => reason.startsWith('alarm'),
    waits: waitsForWorker,
  });
  for (const run of runs) listing.add(run);
  return listing;
}
