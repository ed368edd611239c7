import { relative } from 'node:path';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Test files that take long, with their seconds in one run of all tests on 2 cores. A clean clone knows of no earlier run. */
const SECONDS: Readonly<Record<string, number>> = {
  'test/system/package.test.ts': 291,
  'test/system/docs-commands.test.ts': 128,
  'test/system/newcomer.test.ts': 108,
  'test/system/docs-studies.test.ts': 92,
  'test/system/memory.test.ts': 90,
  'test/system/standby.test.ts': 90,
  'test/system/modes.test.ts': 89,
  'test/system/shard-parts.test.ts': 83,
  'test/system/shards.test.ts': 81,
  'test/system/training.test.ts': 73,
  'test/system/network.test.ts': 65,
  'test/book/validation.test.ts': 63,
  'test/system/sent.test.ts': 59,
  'test/system/many-runs.test.ts': 59,
  'test/system/examples.test.ts': 58,
  'test/system/join.test.ts': 55,
  'test/book/learning-rate.test.ts': 55,
  'test/unit/simulator.test.ts': 54,
  'test/book/check.test.ts': 53,
  'test/system/dashboard.test.ts': 52,
  'test/system/sklearn.test.ts': 52,
  'test/system/rows.test.ts': 52,
  'test/system/dashboard-studies.test.ts': 52,
  'test/conformance/state-store.test.ts': 46,
  'test/system/python-worker.test.ts': 42,
  'test/system/study-crash.test.ts': 41,
  'test/system/predict.test.ts': 40,
  'test/system/bench.test.ts': 39,
  'test/book/ensemble.test.ts': 39,
  'test/book/search.test.ts': 35,
  'test/system/interrupt.test.ts': 34,
  'test/system/docs.test.ts': 34,
  'test/system/docs-site.test.ts': 33,
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
