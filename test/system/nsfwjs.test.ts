import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { initCommand } from '../../cli/init/init.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { readPretrained } from '../../worker/pretrained/open.ts';
import { loadPretrained } from '../../worker/pretrained/pretrained.ts';
import { topologyOf } from '../../worker/pretrained/topology.ts';
import { tf } from '../../worker/tf.ts';
import { Cluster } from '../support/cluster.ts';
import { writeNsfwjs } from '../support/nsfwjs.ts';
import { writePhotos } from '../support/pretrained-files.ts';
import { until } from '../support/until.ts';
import { printedBy } from '../support/written-experiments.ts';

// A MobileNetV2 that others trained: it opens as plain TensorFlow.js opens it, and what is frozen of it never travels.

/** Where the package is not there and cannot be fetched. In CI it must be. */
function fetched(folder: string): string | null {
  try {
    mkdirSync(folder, { recursive: true });
    return writeNsfwjs(folder);
  } catch (error) {
    if (process.env.CI) throw error;
    return null;
  }
}

const folder = mkdtempSync(join(tmpdir(), 'downpour-nsfwjs-'));
const model = fetched(join(folder, 'net'));
const UNTIL = 'block_3_project_BN';
const SIDE = 32;
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true });
});

describe.skipIf(model === null)('the MobileNetV2 of nsfwjs', () => {
  test('answers as in plain TensorFlow.js', async () => {
    const json = JSON.parse(readFileSync(model!, 'utf8'));
    const [{ paths, weights }] = json.weightsManifest;
    const shards = paths.map((name: string) => readFileSync(join(dirname(model!), name)));
    const plain = await tf.loadLayersModel(
      tf.io.fromMemory({
        modelTopology: json.modelTopology,
        weightSpecs: weights,
        weightData: new Uint8Array(Buffer.concat(shards)).buffer,
      }),
    );
    const { modelTopology, tensors } = await readPretrained(model!, null);
    const topology = topologyOf(model!, modelTopology, {});
    const ours = (await loadPretrained({ topology, tensors }, model!, {
      fresh: false,
      mayDiffer: false,
    }))!.model;
    const [, height, width, channels] = plain.inputs[0]!.shape as number[];
    const picture = tf.randomUniform([1, height!, width!, channels!], 0, 1, 'float32', 7);
    const answers = await Promise.all(
      [plain, ours].map((each) => (each.predict(picture) as ReturnType<typeof tf.tensor>).data()),
    );
    expect(answers[0]!.length).toBe(5);
    expect([...answers[0]!].reduce((a, b) => a + b)).toBeCloseTo(1, 4);
    answers[1]!.forEach((value, i) => {
      expect(value).toBeCloseTo(answers[0]![i]!, 5);
    });
    for (const each of [plain, ours]) each.dispose();
    picture.dispose();
  });

  test('frozen: a push has the bytes of the head alone', async () => {
    const photos = join(folder, 'photos');
    writePhotos(photos, ['cats', 'dogs']);
    const file = join(folder, 'photos.mjs');
    const init = { from: model!, data: photos, size: SIDE, until: UNTIL, frozen: true, yes: true };
    await printedBy(() => initCommand(file, init));
    const { config = {} } = await loadExperiment(file);
    await cluster.createRun('photos', file, {
      ...config,
      ...{ stepsMax: 24, evaluateEverySteps: 24, minibatchSize: 2, validationFraction: 0.2 },
      observe: { examples: 0 },
    });
    // Initial parameters are sent once, before the first push.
    const received = async () => {
      const [worker] = await cluster.client.workers('photos');
      return { pushes: worker!.pushes.applied, bytes: worker!.bytes.received };
    };
    const early: ReturnType<typeof received>[] = [];
    const { done } = cluster.work('photos', 'ada', {
      folders: [folder],
      onAcknowledged: () => {
        if (early.length === 0) early.push(received());
      },
    });
    await done;
    const run = await cluster.client.run('photos');
    expect(run).toMatchObject({ phase: 'finished', step: 24 });
    const first = await early[0]!;
    const gone = async () => {
      const [worker] = (await cluster.client.status()).workers;
      return worker!.state === 'gone' ? worker! : null;
    };
    const { bytes } = await until('the worker has gone', gone);
    const [group] = run.groups!;
    expect(group).toMatchObject({ name: 'pretrained', frozen: true });
    // Twenty pushes take fewer bytes together than the frozen parameters would once. Some were made until the first answer.
    const pushes = run.pushes.applied - first.pushes;
    expect(pushes).toBeGreaterThan(0);
    expect(group!.parameters).toBeGreaterThan(20_000);
    expect((bytes.received - first.bytes) / pushes).toBeLessThan((4 * group!.parameters!) / 20);
  });
});
