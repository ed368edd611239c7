import type { PartialConfig, RunConfig } from '../shared/config.ts';
import { resolveConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';

/** What `downpour ablate` compares: named parts of a configuration, the first of them the baseline. */

/** The variants by name, in order. */
export type Variants = Readonly<Record<string, PartialConfig>>;

/** What the baseline's runs have told. */
export interface BaselineFacts {
  /** How many the baseline has. */
  readonly parameters: number;
  readonly trainCount: number;
}

export interface VariantSet {
  readonly baseline: string;
  /** The names of `of`, the baseline first. */
  readonly names: readonly string[];
  /** @param base completed. */
  of(facts: BaselineFacts, base: RunConfig): Variants;
  /** `of` looks at the facts: the baseline must run first. */
  readonly needsFacts: boolean;
  /** What must be read by the model, for a variant that changes nothing. */
  readonly about: string;
}

const NO_DECAY = { rate: 0, l1: 0, rules: [] };
/** All regularisers that the set knows, off. */
const BARE = { inputDropout: 0, dropout: 0, batchNorm: false };
const DROPOUT = { ...BARE, inputDropout: 0.2, dropout: 0.5 };
const DECAY = 5e-4;

const regularisation: Variants = {
  none: { hyperparameters: BARE, weightDecay: NO_DECAY },
  'weight decay': { hyperparameters: BARE, weightDecay: { ...NO_DECAY, rate: DECAY } },
  'weight decay, first layer': {
    hyperparameters: BARE,
    weightDecay: { ...NO_DECAY, rules: [{ pattern: '*_1/kernel', rate: DECAY }] },
  },
  'weight decay, other layers': {
    hyperparameters: BARE,
    weightDecay: { ...NO_DECAY, rate: DECAY, rules: [{ pattern: '*_1/kernel', rate: 0 }] },
  },
  dropout: { hyperparameters: DROPOUT, weightDecay: NO_DECAY },
  'dropout and max-norm': {
    hyperparameters: DROPOUT,
    weightDecay: NO_DECAY,
    maxNorm: { value: 3 },
  },
  'batch normalisation': { hyperparameters: { ...BARE, batchNorm: true }, weightDecay: NO_DECAY },
  both: { hyperparameters: { ...DROPOUT, batchNorm: true }, weightDecay: NO_DECAY },
};

const capacity = ({ parameters }: BaselineFacts): Variants => ({
  'as it is': {},
  'units doubled': { hyperparameters: { unitsTimes: 2 } },
  'units halved': { hyperparameters: { unitsTimes: 0.5 } },
  'shallow and wide': { hyperparameters: { layers: 1, parameters } },
  'deep and thin': { hyperparameters: { layers: 4, parameters } },
});

/** Updates that a run makes at most, as far as it says; else those of 20 epochs. */
function updatesOf({ trainCount }: BaselineFacts, config: RunConfig): number {
  const perEpoch = Math.ceil(trainCount / config.minibatchSize);
  const { stepsMax, epochsMax } = config;
  return Math.max(1, Math.min(stepsMax ?? Infinity, (epochsMax ?? 20) * perEpoch));
}

function optimisers(facts: BaselineFacts, config: RunConfig): Variants {
  const updates = updatesOf(facts, config);
  const share = (of: number) => Math.max(1, Math.round(of * updates));
  const constant = { schedule: { kind: 'constant' }, momentumSchedule: null } as const;
  return {
    'momentum 0.9, decaying': {
      ...constant,
      optimizer: { kind: 'momentum', momentum: 0.9 },
      learningRate: 0.01,
      schedule: { kind: 'linear', steps: updates, floor: 0.01 },
    },
    SGD: { ...constant, optimizer: { kind: 'sgd' }, learningRate: 0.1 },
    'momentum 0.9': {
      ...constant,
      optimizer: { kind: 'momentum', momentum: 0.9 },
      learningRate: 0.01,
    },
    'momentum 0.5, 0.9, 0.99': {
      ...constant,
      optimizer: { kind: 'momentum', momentum: 0.5 },
      momentumSchedule: {
        values: [0.5, 0.9, 0.99],
        steps: [share(0.1), Math.max(share(0.1) + 1, share(0.6))],
      },
      learningRate: 0.01,
      schedule: { kind: 'linear', steps: updates, floor: 0.01 },
    },
    AdaGrad: { ...constant, optimizer: { kind: 'adagrad' }, learningRate: 0.01 },
    RMSProp: { ...constant, optimizer: { kind: 'rmsprop' }, learningRate: 0.001 },
    'RMSProp, momentum 0.9': {
      ...constant,
      optimizer: { kind: 'rmsprop', momentum: 0.9 },
      learningRate: 0.0002,
    },
    AdaDelta: { ...constant, optimizer: { kind: 'adadelta' }, learningRate: 1 },
    Adam: { ...constant, optimizer: { kind: 'adam' }, learningRate: 0.001 },
  };
}

function schedules(facts: BaselineFacts, config: RunConfig): Variants {
  const steps = updatesOf(facts, config);
  const { enabled, patience } = config.earlyStopping;
  const plateau = {
    kind: 'plateau',
    divideBy: 5,
    patience: enabled && patience < 3 ? 1 : 2,
  } as const;
  return {
    constant: { schedule: { kind: 'constant' } },
    'linear to a floor': { schedule: { kind: 'linear', steps, floor: 0.01 } },
    exponential: {
      schedule: { kind: 'exponential', factor: 0.5, steps: Math.max(1, Math.round(steps / 6)) },
    },
    'divided by 5 on a plateau': { schedule: plateau },
    cosine: { schedule: { kind: 'cosine', steps } },
  };
}

const ofKnob = (values: Readonly<Record<string, Readonly<Record<string, string | number>>>>) =>
  Object.fromEntries(
    Object.entries(values).map(([name, hyperparameters]) => [name, { hyperparameters }]),
  );
const activations: Variants = ofKnob({
  ReLU: { activation: 'relu' },
  'leaky ReLU': { activation: 'leakyReLU' },
  'parametric ReLU': { activation: 'prelu' },
  'noisy ReLU': { activation: 'noisyReLU' },
  tanh: { activation: 'tanh' },
  sigmoid: { activation: 'sigmoid' },
});
const initial: Variants = ofKnob({
  He: { initializer: 'he', initialScale: 1 },
  'He, a tenth': { initializer: 'he', initialScale: 0.1 },
  'He, tenfold': { initializer: 'he', initialScale: 10 },
  Glorot: { initializer: 'glorot', initialScale: 1 },
  orthogonal: { initializer: 'orthogonal', initialScale: 1 },
  sparse: { initializer: 'sparse', initialScale: 1 },
});

const randomFilters: Variants = ofKnob({
  'all layers trained': { trained: 'all' },
  'random filters, the last layer trained': { trained: 'last' },
});

const SETS: Readonly<Record<string, { of: VariantSet['of']; needsFacts: boolean; about: string }>> =
  {
    capacity: {
      ...{ of: capacity, needsFacts: true },
      about: 'hyperparameters.layers, unitsTimes and parameters',
    },
    regularisation: {
      ...{ of: () => regularisation, needsFacts: false },
      about: 'hyperparameters.inputDropout, dropout and batchNorm',
    },
    optimisers: { of: optimisers, needsFacts: true, about: 'the optimizer' },
    schedules: { of: schedules, needsFacts: true, about: 'the schedule' },
    activations: {
      ...{ of: () => activations, needsFacts: false },
      about: 'hyperparameters.activation',
    },
    'random-filters': {
      ...{ of: () => randomFilters, needsFacts: false },
      about: 'hyperparameters.trained',
    },
    'initial-values': {
      ...{ of: () => initial, needsFacts: false },
      about: 'hyperparameters.initializer and initialScale',
    },
  };

/** Names of the built-in sets. */
export const VARIANT_SETS: readonly string[] = Object.keys(SETS);

const ANY: BaselineFacts = { parameters: 10_000, trainCount: 10_000 };

/** A built-in set by its name; null: there is none. @param base completed configuration of the experiment. */
export function builtInVariants(name: string, base: RunConfig): VariantSet | null {
  const set = SETS[name];
  if (!set) return null;
  const names = Object.keys(set.of(ANY, base));
  return { ...set, baseline: names[0]!, names };
}

/**
 * Variants of the user. @throws DownpourError DP_USAGE: not an object of parts of a configuration, or fewer
 * than two.
 */
export function ownVariants(given: unknown, where: string): VariantSet {
  const isObject = (value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const names = isObject(given) ? Object.keys(given as object) : [];
  const wrong = names.find((name) => !isObject((given as Record<string, unknown>)[name]));
  if (names.length < 2 || wrong !== undefined) {
    throw new DownpourError(
      'DP_USAGE',
      `${where} ${wrong === undefined ? `has ${names.length} variants` : `has '${wrong}', which is no object`}; it must be an object of at least two parts of a configuration by name, the first of them the baseline: { "as it is": {}, "no dropout": { "hyperparameters": { "dropout": 0 } } }`,
    );
  }
  const variants = given as Variants;
  const about = 'the hyperparameters that the variants name';
  return { baseline: names[0]!, names, of: () => variants, needsFacts: false, about };
}

/** @throws DownpourError DP_CONFIG_INVALID that names the variant. */
export function checkVariants(set: VariantSet, base: readonly unknown[]): void {
  const config = resolveConfig(...base);
  for (const [name, variant] of Object.entries(set.of(ANY, config))) {
    try {
      resolveConfig(...base, variant);
    } catch (cause) {
      if (!(cause instanceof DownpourError)) throw cause;
      throw new DownpourError(cause.code, `variant '${name}': ${cause.message}`, { cause });
    }
  }
}
