import { relative } from 'node:path';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Test files that take long, with their seconds on 2 cores. A clean clone knows of no earlier run. */
const SECONDS: Readonly<Record<string, number>> = {
  'test/system/package.test.ts': 150,
  'test/system/docs-commands.test.ts': 100,
  'test/system/standby.test.ts': 90,
  'test/system/shard-parts.test.ts': 83,
  'test/system/sent.test.ts': 77,
  'test/system/docs-studies.test.ts': 60,
  'test/system/modes.test.ts': 60,
  'test/book/learning-rate.test.ts': 41,
  'test/system/bench.test.ts': 39,
  'test/system/memory.test.ts': 35,
  'test/system/examples.test.ts': 33,
  'test/system/sklearn.test.ts': 27,
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
