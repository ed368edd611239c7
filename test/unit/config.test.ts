import { expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';

test('an empty configuration is complete and valid', () => {
  const config = resolveConfig({});
  expect(config.minibatchSize).toBe(64);
  expect(config.optimizer).toEqual({ kind: 'sgd' });
  expect(config.earlyStopping).toEqual({
    enabled: true,
    metric: 'loss',
    patience: 5,
    minImprovement: 0,
    afterStop: 'restore',
    continueStepsMax: null,
  });
  expect(config.consistency).toEqual({
    mode: 'async',
    stalenessMax: null,
    damping: 'none',
    correction: 'auto',
    depth: 1,
  });
  expect(resolveConfig(config)).toEqual(config);
});

test('layers stay as they were given', () => {
  const layer = { consistency: { correction: 'none' }, optimizer: { kind: 'momentum' } };
  const before = structuredClone(layer);
  resolveConfig({}, layer);
  expect(layer).toEqual(before);
  // A layer that defaults had been written into would take back what weaker ones say.
  const bounded = resolveConfig({ consistency: { stalenessMax: 4 } }, layer);
  expect(bounded.consistency).toMatchObject({ stalenessMax: 4, correction: 'none' });
});

test('later layers win field by field, but another kind replaces the whole object', () => {
  const config = resolveConfig(
    { optimizer: { kind: 'adam', beta1: 0.8 }, clip: { norm: 1 } },
    { optimizer: { kind: 'momentum' }, clip: { value: 2 } },
  );
  expect(config.optimizer).toEqual({ kind: 'momentum', momentum: 0.9 });
  expect(config.clip).toEqual({ norm: 1, value: 2 });
  expect(resolveConfig({ optimizer: { kind: 'adam', beta1: 0.8 } }).optimizer).toEqual({
    kind: 'adam',
    beta1: 0.8,
    beta2: 0.999,
    epsilon: 1e-8,
  });
});

test.each([
  [{ batchsize: 3 }, /batchsize is not a field; did you mean 'minibatchSize'/],
  [{ quux: 3 }, /quux is not a field; known: seed/],
  [{ minibatchsize: 3 }, /did you mean 'minibatchSize'/],
  [{ minibatchSize: 0 }, /minibatchSize is 0/],
  [{ learningRate: -1 }, /learningRate is -1/],
  [{ learningRate: '0.1' }, /learningRate is "0.1"/],
  [{ optimizer: { kind: 'adamm' } }, /optimizer.kind is "adamm"; allowed: 'sgd'/],
  [{ optimizer: { kind: 'adam', beta3: 1 } }, /optimizer.beta3 is not a field; did you mean 'beta/],
  [{ earlyStopping: { afterStop: 'retry' } }, /allowed: "restore", "retrain", "continue"/],
  [{ consistency: { stalenessMax: -1 } }, /consistency.stalenessMax is -1/],
  [{ earlyStopping: { enabled: false } }, /would never end/],
  [{ momentumSchedule: { values: [0.5, 0.9], steps: [] } }, /one step fewer/],
  [
    { momentumSchedule: { values: [0.5, 0.9, 0.99], steps: [20, 10] } },
    /steps is \[20,10\]; each must be above/,
  ],
  [{ momentumSchedule: { values: [0.5, 0.9], steps: [10] } }, /needs an optimizer with momentum/],
  [{ schedule: { kind: 'plateau', patience: 5 } }, /stop before the rate is ever divided/],
])('%j is refused, and the message names the field', (layer, message) => {
  expect(() => resolveConfig(layer)).toThrow(message);
});
