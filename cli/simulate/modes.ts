import { type PartialConfig, RunConfigSchema, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';

/**
 * Ways to train with many workers that `simulate` and `scale` compare, by name: the values of `consistency.mode` and of
 * `consistency.correction`, and look-ahead with its velocities on the workers. What the schema learns is a mode here at once.
 */

const { correction, mode } = RunConfigSchema.properties.consistency.properties;

/** Values of a choice of words. */
function valuesOf(choice: unknown): string[] {
  const { anyOf = [] } = choice as { readonly anyOf?: readonly { readonly const?: unknown }[] };
  return anyOf.flatMap((each) => (typeof each.const === 'string' ? [each.const] : []));
}

/** The configuration of each, weaker than nothing. */
export const MODES: Readonly<Record<string, PartialConfig>> = {
  ...Object.fromEntries(
    valuesOf(mode).map((value) => [value, { consistency: { mode: value } } as PartialConfig]),
  ),
  ...Object.fromEntries(
    valuesOf(correction).map((value) => [
      value,
      { consistency: { correction: value } } as PartialConfig,
    ]),
  ),
  slim: { consistency: { correction: 'lookahead', velocity: 'worker' } },
};

const DILOCO: PartialConfig = {
  consistency: { mode: 'synchronous' },
  outer: { learningRate: 0.7, momentum: 0.9, nesterov: true },
};
/** Those that `streaming` has. */
const STREAMING_FRAGMENTS = 5;

/** Those with a number. */
const NUMBERED: Readonly<Record<string, (value: number) => PartialConfig>> = {
  bound: (stalenessMax) => ({ consistency: { stalenessMax } }),
  // In rounds, as in the papers, but for elastic averaging, which has none there.
  local: (steps) => ({ local: { steps }, consistency: { mode: 'synchronous' } }),
  diloco: (steps) => ({ ...DILOCO, local: { steps } }),
  streaming: (steps) => ({
    ...DILOCO,
    local: { steps, fragments: STREAMING_FRAGMENTS },
  }),
  elastic: (steps) => ({ local: { steps, push: 'elastic' } }),
};

/**
 * Reads `auto,none,bound=4,local=100`: names of `MODES`, or one of `NUMBERED` with its number: the largest staleness, or
 * the local steps between two exchanges.
 * @param base what they are laid over. @throws DownpourError DP_USAGE, DP_CONFIG_INVALID.
 */
export function parseModes(text: string, base: readonly unknown[]): Record<string, PartialConfig> {
  const chosen: Record<string, PartialConfig> = {};
  for (const name of text.split(',').map((part) => part.trim())) {
    const [, kind = '', value] = /^([a-z]+)=(\d{1,9})$/.exec(name) ?? [];
    const config = Object.hasOwn(NUMBERED, kind)
      ? NUMBERED[kind]!(Number(value))
      : Object.hasOwn(MODES, name)
        ? MODES[name]!
        : null;
    if (config === null) {
      throw new DownpourError(
        'DP_USAGE',
        `--modes has '${name}'; allowed: ${Object.keys(MODES).join(', ')}, bound=staleness, local=steps, diloco=steps, streaming=steps, elastic=steps, with commas`,
      );
    }
    resolveConfig(...base, config);
    chosen[name] = config;
  }
  return chosen;
}
