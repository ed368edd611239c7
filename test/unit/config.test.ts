import { expect, test } from 'vitest';
import { type PartialConfig, resolveConfig, workerConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';

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
    velocity: 'server',
    damping: 'none',
    correction: 'auto',
    compensation: { adaptive: true, lambda: null, decay: 0.95 },
    ...{ aheadMax: 3, quorum: null, spares: 1, graceMs: 0, bufferSize: 10 },
    ...{ aggregate: 'mean', faultyMax: 1 },
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

test.each([
  [{ mode: 'sync' }, /consistency.mode is "sync"; allowed: "async", "bounded"/],
  [
    { mode: 'synchronous', damping: 'inverse' },
    /damping is 'inverse'; in mode 'synchronous' .* none is stale: set none/,
  ],
  [{ mode: 'backup', stalenessMax: 3 }, /stalenessMax is 3; in mode 'backup'/],
  [{ mode: 'synchronous', correction: 'delay' }, /correction is 'delay'; in mode 'synchronous'/],
  [{ mode: 'synchronous', correction: 'lookahead' }, /correction is 'lookahead'/],
  [{ mode: 'backup', depth: 2 }, /depth is 2; in mode 'backup' a worker waits/],
  [{ mode: 'buffered', correction: 'lookahead' }, /an update is of several workers/],
  [{ mode: 'bounded', aheadMax: 0, depth: 2 }, /set aheadMax to 1 or more/],
  [{ correction: 'delay', damping: 'root' }, /both lower the rate of a stale push/],
  [{ correction: 'gap', depth: 2 }, /parameters that the worker was sent last: set 1/],
  [{ correction: 'compensated', depth: 2 }, /set 1/],
  [{ mode: 'async', quorum: 3 }, /quorum is 3 in mode 'async'; it belongs to mode 'backup'/],
  [{ mode: 'synchronous', graceMs: 3 }, /graceMs is 3 in mode 'synchronous'/],
  [{ aggregate: 'median' }, /aggregate is 'median' in mode 'async', where each push is an update/],
  [{ mode: 'backup', quorum: 4, aggregate: 'krum' }, /quorum is 4; .* needs at least 5 pushes/],
  [{ mode: 'buffered', bufferSize: 4, aggregate: 'trimmedMean', faultyMax: 2 }, /needs at least 5/],
  [{ mode: 'buffered', bufferSize: 65, aggregate: 'median' }, /keeps each push, at most 64/],
] as const)('consistency %j is refused in words', (consistency, message) => {
  expect(() => resolveConfig({ consistency })).toThrow(message);
});

test.each([
  { mode: 'bounded', aheadMax: 1, depth: 2, correction: 'lookahead', stalenessMax: 9 },
  { mode: 'synchronous', aggregate: 'krum' },
  { mode: 'backup', quorum: 5, graceMs: 10, aggregate: 'krum' },
  { mode: 'buffered', bufferSize: 64, aggregate: 'median', damping: 'root', stalenessMax: 0 },
  { mode: 'buffered', correction: 'compensated', damping: 'inverse' },
] as const)('consistency %j is taken', (consistency) => {
  expect(resolveConfig({ consistency }).consistency).toMatchObject(consistency);
});

test('what workers are told of consistency is what older ones know', () => {
  const config = resolveConfig({
    consistency: { mode: 'buffered', damping: 'root', correction: 'gap', stalenessMax: 4 },
  });
  const { local: _, outer: __, groups: ____, tables: _____, ...known } = config;
  const { examples: ___, ...observe } = config.observe;
  expect(workerConfig(config)).toEqual({
    ...known,
    observe,
    consistency: { mode: 'async', stalenessMax: 4, damping: 'none', depth: 1 },
  });
});

test('workers are told how many examples are shown where it is not the usual number', () => {
  const sent = (examples: number) => workerConfig(resolveConfig({ observe: { examples } })).observe;
  expect(sent(0)).toMatchObject({ examples: 0 });
  expect(sent(LIMITS.shownExamplesMax)).toMatchObject({ examples: LIMITS.shownExamplesMax });
  expect(sent(LIMITS.shownExamplesDefault)).not.toHaveProperty('examples');
  expect(() => sent(LIMITS.shownExamplesMax + 1)).toThrow(/observe.examples/);
});

test('workers are told of local steps where there are any, and never of the outer optimizer', () => {
  const local = { steps: 10, optimizer: { kind: 'adamw' } } as const;
  const told = workerConfig(resolveConfig({ local, outer: { momentum: 0.9 } }));
  expect(told.local).toMatchObject(local);
  expect('outer' in told).toBe(false);
});

test.each([
  [{ local: { push: 'elastic' } }, /local.steps is null, so the other fields of local do nothing/],
  [{ outer: { momentum: 0.9 } }, /local.steps is null, so the other fields of outer do nothing/],
  [{ local: { steps: 10_001 } }, /local.steps is 10001; it must be <= 10000/],
  [{ local: { steps: 0 } }, /local.steps is 0; it must be >= 1/],
  [
    { local: { steps: 2 }, consistency: { correction: 'lookahead' } },
    /correction is 'lookahead' and local.steps is 2; .* set auto, none, inverse or delay/,
  ],
  [
    { local: { steps: 2 }, compression: { push: { kind: 'topk', momentum: 0.9 } } },
    /compression.push.momentum is 0.9 and local.steps is 2/,
  ],
  [{ local: { steps: 2 }, outer: { delayed: 4 } }, /outer.delayed is 4 without Nesterov momentum/],
  [
    {
      ...{ local: { steps: 2 }, outer: { delayed: 4, momentum: 0.9 } },
      consistency: { mode: 'synchronous' },
    },
    /outer.delayed is 4 in mode 'synchronous'/,
  ],
  [
    { local: { steps: 2, push: 'elastic' }, outer: { learningRate: 0.7 } },
    /outer.learningRate is 0.7 with local.push 'elastic'/,
  ],
  [
    { local: { steps: 2, push: 'elastic' }, compression: { push: { kind: 'int8' } } },
    /compression.push.kind is 'int8' with local.push 'elastic'/,
  ],
  [{ local: { steps: 2, push: 'elastic' }, consistency: { depth: 2 } }, /consistency.depth is 2/],
  [
    { local: { steps: 2, push: 'elastic' }, consistency: { mode: 'buffered' } },
    /consistency.mode is 'buffered' with local.push 'elastic'/,
  ],
  [
    {
      local: { steps: 2, push: 'elastic' },
      consistency: { mode: 'synchronous', aggregate: 'median' },
    },
    /consistency.aggregate is 'median' with local.push 'elastic'/,
  ],
] as const)('local steps of %j are refused in words', (config, words) => {
  expect(() => resolveConfig(config as PartialConfig)).toThrow(words);
});

test('gap takes an optimizer whose steps grow with the gradient', () => {
  const consistency = { correction: 'gap' } as const;
  expect(() => resolveConfig({ consistency, optimizer: { kind: 'adam' } })).toThrow(
    /optimizer.kind is 'adam'; correction 'gap' .* use sgd, momentum, nesterov/,
  );
  resolveConfig({ consistency, optimizer: { kind: 'nesterov' } });
});
