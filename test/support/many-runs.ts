import { cp, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { seal, unseal } from '../../files/atomic-file.ts';
import { eachOf } from '../../shared/each-of.ts';

/** Copies of a run of a state folder that no server has, each under a name of its own, as if each had been trained. */
export async function copyRun(state: string, run: string, ids: readonly string[]): Promise<void> {
  await eachOf(ids, async (id) => {
    const folder = join(state, id);
    await cp(join(state, run), folder, { recursive: true });
    const names = await readdir(folder, { recursive: true });
    for (const name of names.filter((each) => each.endsWith('.json'))) {
      const path = join(folder, name);
      const bytes = await readFile(path);
      // A note of how far the run has come names no run, and is not sealed.
      if (name === 'progress.json') continue;
      const text = JSON.stringify(unseal(bytes)).replaceAll(`"${run}"`, `"${id}"`);
      await writeFile(path, seal(JSON.parse(text)));
    }
  });
}
