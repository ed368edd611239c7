import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

/** Experiments that were written to files somewhere, loaded as `bin/downpour.js` would: by a process of its own. */

const ROOT = join(import.meta.dirname, '../..');

export interface Written {
  readonly inputs: readonly string[] | null;
  readonly targets: readonly string[] | null;
  /** Parameters of the model; 0 unless it was built. */
  readonly parameters: number;
}

const SCRIPT = `
const [files, builds] = JSON.parse(process.argv[1]);
const from = (module) => import(${JSON.stringify(ROOT)} + '/' + module);
const { loadExperiment } = await from('worker/experiment.ts');
const { openEngine } = await from('worker/engine.ts');
const { buildModel } = await from('worker/model.ts');
const { prepareExperiment } = await from('worker/prepare.ts');
const { resolveConfig } = await from('shared/config.ts');
const log = () => {};
if (builds) await openEngine({ engine: 'cpu' });
const written = [];
for (const file of files) {
  const experiment = await loadExperiment(file);
  const config = resolveConfig(experiment.config);
  const { prepared } = await prepareExperiment('x', experiment, config, { folder: '/nowhere', log });
  const model = builds ? await buildModel(experiment, config, prepared) : null;
  written.push({
    inputs: prepared.inputNames,
    targets: prepared.targetNames,
    parameters: model?.layout.size ?? 0,
  });
  model?.dispose();
}
console.log(JSON.stringify(written));`;

/** @param builds the models, too. @throws what the process complains of */
export function loadWritten(files: readonly string[], builds = false): Written[] {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', SCRIPT, JSON.stringify([files, builds])],
    { cwd: ROOT, encoding: 'utf8' },
  );
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Written[];
}

/** What is printed to standard output meanwhile, instead of printing it. */
export async function printedBy(work: () => Promise<void>): Promise<string> {
  const write = process.stdout.write;
  let printed = '';
  process.stdout.write = ((text: string) => {
    printed += text;
    return true;
  }) as typeof write;
  try {
    await work();
  } finally {
    process.stdout.write = write;
  }
  return printed;
}
