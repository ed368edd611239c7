import { type PartialConfig, RunConfigSchema, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';

/**
 * Ways to train with many workers that `simulate` and `scale` compare, by name: the values of `consistency.mode` and of
 * `consistency.correction`. What the schema learns is a mode here at once.
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
};

/**
 * Reads `auto,none,bound=4`: names of `MODES`, or `bound=` with a largest staleness.
 * @param base what they are laid over. @throws DownpourError DP_USAGE, DP_CONFIG_INVALID.
 */
export function parseModes(text: string, base: readonly unknown[]): Record<string, PartialConfig> {
  const chosen: Record<string, PartialConfig> = {};
  for (const name of text.split(',').map((part) => part.trim())) {
    const bound = /^bound=(\d+)$/.exec(name);
    const config = bound
      ? { consistency: { stalenessMax: Number(bound[1]) } }
      : Object.hasOwn(MODES, name)
        ? MODES[name]!
        : null;
    if (config === null) {
      throw new DownpourError(
        'DP_USAGE',
        `--modes has '${name}'; allowed: ${Object.keys(MODES).join(', ')}, bound=staleness, with commas`,
      );
    }
    resolveConfig(...base, config);
    chosen[name] = config;
  }
  return chosen;
}
