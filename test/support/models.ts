import { afterAll, beforeAll } from 'vitest';
import { type EngineName, openEngine } from '../../worker/engine.ts';
import type { Model } from '../../worker/model.ts';

/** @returns where the tests of a file put the models that they build: their engine is open before, and they are disposed of after. */
export function useModels(engine: EngineName = 'cpu'): Model[] {
  const models: Model[] = [];
  beforeAll(() => openEngine({ engine }));
  afterAll(() => {
    for (const model of models) model.dispose();
  });
  return models;
}
