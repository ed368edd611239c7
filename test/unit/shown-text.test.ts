import { beforeAll, describe, expect, it } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import { openEngine } from '../../worker/engine.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { shownExamples } from '../../worker/shown-examples.ts';
import { ShownText } from '../../worker/shown-text.ts';
import { textWindows } from '../../worker/text.ts';

beforeAll(() => openEngine({ engine: 'cpu' }));

const TEXT = 'abcabcabc'.repeat(60);

/** @param isFlat the outputs are one row, so that their places are not told apart. */
async function opened({ isFlat = false } = {}) {
  const data = await textWindows({ texts: [TEXT], window: 8, validationFraction: 0.2 });
  const config = resolveConfig({ minibatchSize: 8 });
  const options = {
    seed: 1,
    validationFraction: 0.1,
    standardise: 'none',
    loss: 'softmaxCrossEntropy',
  } as const;
  const prepared = await prepareAny(dataOf(data), options, { log: () => {} });
  const experiment: Experiment = {
    data: () => data,
    model: ({ tf, classCount }) =>
      tf.sequential({
        layers: [
          tf.layers.embedding({ inputDim: classCount!, outputDim: 4, inputLength: 8 }),
          tf.layers.dense({ units: classCount! }),
          ...(isFlat ? [tf.layers.flatten()] : []),
        ],
      }),
    loss: 'softmaxCrossEntropy',
  };
  const model = await buildModel(experiment, config, prepared);
  model.load((await model.initialise(1)).slice());
  return { model, prepared, experiment };
}

describe('what a language model writes while it trains', () => {
  it('continues the validation part, as long as a share of the time allows', async () => {
    const { model, prepared } = await opened();
    let now = 0;
    // Each look at the clock takes 1 ms.
    const text = new ShownText(model, prepared, () => now++);
    const [first, ...more] = await text.card();
    expect(more).toEqual([]);
    expect(first!.shown).toEqual({ kind: 'text', text: expect.stringMatching(/^[abc]{4}$/) });
    expect(first!.caption[0]).toMatch(/^continued: [abc]{200}$/);
    // A fiftieth of a second is no time for another text.
    now += 1_000;
    expect(await text.card()).toEqual([first]);
    now += 9_000;
    const [later] = await text.card();
    expect(later!.caption[0]!.length).toBeGreaterThan('continued: '.length + 150);
    now += 6_000;
    const [short] = await text.card();
    expect(short!.caption[0]!.length).toBeLessThan(later!.caption[0]!.length);
  });

  it('stands before the examples, in place of the last of them', async () => {
    const { model, prepared, experiment } = await opened();
    const text = new ShownText(model, prepared, () => 0);
    const examples = await shownExamples(model, experiment, prepared, 3);
    const cards = await shownExamples(model, experiment, prepared, 3, text);
    expect(cards[0]!.caption[0]).toMatch(/^continued: /);
    expect(cards.slice(1)).toEqual(examples.slice(0, 2));
    expect(await shownExamples(model, experiment, prepared, 0, text)).toEqual([]);
  });

  it('is nothing where the outputs are not the next token of each place', async () => {
    const { model, prepared } = await opened({ isFlat: true });
    expect(await new ShownText(model, prepared).card()).toEqual([]);
  });
});
