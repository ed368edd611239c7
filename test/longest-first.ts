import { relative } from 'node:path';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/**
 * Test files that take long, with about as many seconds: of a processor, or of the clock where that was not measured. Their order
 * is what counts. A clean clone knows of no earlier run.
 */
const SECONDS: Readonly<Record<string, number>> = {
  'test/system/package.test.ts': 273,
  'test/system/docs-commands.test.ts': 111,
  'test/system/newcomer.test.ts': 101,
  'test/system/modes.test.ts': 82,
  'test/system/standby.test.ts': 82,
  'test/system/sklearn.test.ts': 60,
  'test/system/network.test.ts': 57,
  'test/system/docs-studies.test.ts': 54,
  'test/book/ensemble.test.ts': 49,
  'test/book/search.test.ts': 49,
  'test/book/learning-rate.test.ts': 48,
  'test/system/examples.test.ts': 48,
  'test/conformance/state-store.test.ts': 46,
  'test/system/study-crash.test.ts': 45,
  'test/system/sent.test.ts': 44,
  'test/system/shards.test.ts': 42,
  'test/book/check.test.ts': 42,
  'test/system/many-runs.test.ts': 37,
  'test/system/training.test.ts': 36,
  'test/unit/study-search.test.ts': 36,
  'test/book/validation.test.ts': 34,
  'test/unit/shard.test.ts': 34,
  'test/unit/simulator.test.ts': 32,
  'test/system/join.test.ts': 30,
};

/** Long files first: one that begins last would have a processor of two to itself. Vitest alone begins with large ones. */
export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    const groupOf = ({ project }: TestSpecification) => project.config.sequence.groupOrder;
    const secondsOf = ({ moduleId }: TestSpecification) =>
      SECONDS[relative(this.ctx.config.root, moduleId)] ?? 0;
    return sorted.sort((a, b) => groupOf(a) - groupOf(b) || secondsOf(b) - secondsOf(a));
  }
}
