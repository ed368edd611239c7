import Type, { type Static } from 'typebox';
import Value from 'typebox/value';
import { closed, orNone, positive } from './config-fields.ts';
import type { Consistency } from './consistency.ts';
import { DownpourError } from './errors.ts';
import {
  CARRIED_PREFIX,
  createLayout,
  type Layout,
  layoutSpecs,
  type TensorSpec,
} from './layout.ts';
import { LIMITS } from './limits.ts';
import { type LocalFields, localOf, localText } from './local-steps.ts';
import { matchesPattern } from './name-pattern.ts';
import { type OptimizerConfig, OptimizerSchema } from './optimizer-config.ts';
import { ScheduleSchema } from './schedule-config.ts';
import { nearest } from './spelling.ts';

/** `groups` of a run: parts of the parameters with a rate, an optimizer and a decay of their own, or frozen. */

/** A header of the handshake, `yes` from a worker that knows groups. Others are not assigned to runs with groups. */
export const GROUPS_HEADER = 'downpour-groups';

const pattern = Type.String({ minLength: 1, maxLength: 200 });

const GroupSchema = Type.Object(
  {
    pattern: Type.Union(
      [
        pattern,
        Type.Array(pattern, { minItems: 1, maxItems: LIMITS.groupPatternsMax }),
        Type.Null(),
      ],
      {
        default: null,
        description:
          'names of the tensors of the group: one pattern or a list, where `*` matches any text; null: the name of the group, a slash and any text',
      },
    ),
    learningRate: positive('factor of the learning rate of the run', 1),
    optimizer: Type.Union([OptimizerSchema, Type.Null()], {
      default: null,
      description: 'update rule of the group; null: same as `optimizer` of the run',
    }),
    schedule: Type.Union([ScheduleSchema, Type.Null()], {
      default: null,
      description:
        'learning-rate schedule of the group, over the steps since it is trained; null: same as `schedule` of the run',
    }),
    weightDecay: orNone(
      Type.Object(
        {
          rate: Type.Number({
            minimum: 0,
            default: 0,
            description: 'L2 weight decay of the tensors of rank 2 or more in the group',
          }),
          l1: Type.Number({
            minimum: 0,
            default: 0,
            description: 'L1 weight decay of the same tensors',
          }),
        },
        closed,
      ),
      'weight decay of the group; `weightDecay.rules` of the run come first; null: same as the run',
    ),
    frozen: Type.Union(
      [Type.Boolean(), Type.Object({ untilStep: Type.Integer({ minimum: 1 }) }, closed)],
      {
        default: false,
        description:
          'true: the group is not trained: workers compute and push no gradient of it, and get its values once; { untilStep: n }: not before step n',
      },
    ),
    everySteps: Type.Integer({
      minimum: 1,
      default: 1,
      description:
        'steps between two updates of the group; gradients of the other steps are not used for it',
    }),
  },
  closed,
);
export type ParameterGroup = Static<typeof GroupSchema>;

export const GroupsSchema = Type.Record(
  Type.String({ pattern: '^[A-Za-z][A-Za-z0-9_]{0,63}$' }),
  GroupSchema,
  {
    maxProperties: LIMITS.groupCountMax,
    default: {},
    description:
      'groups of parameters by name; each tensor belongs to one group at most, and tensors without a group follow the run',
  },
);
export type ParameterGroups = Static<typeof GroupsSchema>;

/** Fills in the defaults of each group, which those of the whole schema do not reach. @param config that is changed. */
export function withGroupDefaults(config: unknown): unknown {
  const { groups } = config as { groups?: unknown };
  if (typeof groups === 'object' && groups !== null) {
    for (const [name, group] of Object.entries(groups)) {
      (groups as Record<string, unknown>)[name] = Value.Default(GroupSchema, group);
    }
  }
  return config;
}

/** Runs without groups have none. */
export interface GroupFields {
  readonly groups?: ParameterGroups | undefined;
}

/** @returns null: all parameters follow the run. */
export function groupsOf({ groups }: GroupFields): ParameterGroups | null {
  return groups && Object.keys(groups).length > 0 ? groups : null;
}

/** All update rules of a run, that of the run first. */
export function rulesOf(
  config: GroupFields & { readonly optimizer: OptimizerConfig },
): readonly OptimizerConfig[] {
  const own = Object.values(config.groups ?? {}).flatMap(({ optimizer }) => optimizer ?? []);
  return [config.optimizer, ...own];
}

/** @returns what does not fit together, the value seen and what to do; null: all is well. */
export function groupsProblem(
  config: GroupFields &
    LocalFields & {
      readonly consistency: Consistency;
      readonly compression: {
        readonly push: { readonly kind: string; readonly momentum?: number };
      };
    },
): string | null {
  const groups = groupsOf(config);
  if (!groups) return null;
  if (localOf(config)) {
    return `${localText(config)} with groups (${Object.keys(groups).join(', ')}); then a worker updates all parameters by one rule: leave out this field or groups`;
  }
  const { correction } = config.consistency;
  if (correction === 'gap') {
    return `consistency.correction is 'gap' with groups; it compares with the size of a typical step, and that differs between groups: use compensated or auto`;
  }
  const { momentum = 0 } = config.compression.push;
  for (const [name, { optimizer, schedule }] of Object.entries(groups)) {
    if (momentum > 0 && optimizer && optimizer.kind !== 'sgd') {
      return `groups.${name}.optimizer.kind is '${optimizer.kind}' and compression.push.momentum is ${momentum}, which replaces the momentum of the optimizer: use sgd, or momentum 0`;
    }
    if (schedule?.kind === 'plateau') {
      return `groups.${name}.schedule.kind is 'plateau', which follows the validation value of the run: set it as schedule of the run, and null here`;
    }
  }
  return null;
}

/** What is wrong for a run whose parameters are on several shards; null: nothing. */
export function groupShardsProblem(config: GroupFields): string | null {
  for (const [name, { frozen }] of Object.entries(config.groups ?? {})) {
    if (typeof frozen === 'boolean') continue;
    return `groups.${name}.frozen is { untilStep: ${frozen.untilStep} }; on a server with shards the parts of a model stay where they are: use a server without shards, or frozen: true and then a fork of the run without it`;
  }
  return null;
}

/** The patterns of a group, also of one that gives none. */
export const patternsOf = (name: string, { pattern }: Pick<ParameterGroup, 'pattern'>): string[] =>
  pattern === null ? [`${name}/*`] : typeof pattern === 'string' ? [pattern] : [...pattern];

/** The group of a tensor; null: none. For tensors that `groupOfEach` has nothing against. */
export function groupOf(name: string, groups: ParameterGroups): string | null {
  const found = Object.entries(groups).find(([group, config]) =>
    patternsOf(group, config).some((pattern) => matchesPattern(name, pattern)),
  );
  return found?.[0] ?? null;
}

/**
 * The group of each tensor, by its name; tensors without a group are left out.
 * @throws DownpourError DP_LAYOUT_INVALID: a pattern matches nothing, or two groups match one tensor.
 */
function groupOfEach(
  tensors: readonly { readonly name: string }[],
  groups: ParameterGroups,
): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  const names = tensors.map(({ name }) => name);
  for (const [group, config] of Object.entries(groups)) {
    for (const pattern of patternsOf(group, config)) {
      const matched = names.filter((name) => matchesPattern(name, pattern));
      if (matched.length === 0) throw nothingMatched(group, pattern, names);
      for (const name of matched) {
        const other = found.get(name) ?? group;
        if (other !== group) {
          throw new DownpourError(
            'DP_LAYOUT_INVALID',
            `groups.${other} and groups.${group} both match the tensor '${name}'; a tensor belongs to one group at most: narrow one of the patterns`,
          );
        }
        found.set(name, group);
      }
    }
  }
  return found;
}

/** For a pattern of a layer or model, such as `trnk/*`: the nearest one. */
function nearLayer(pattern: string, names: readonly string[]): string | null {
  if (!pattern.endsWith('/*')) return null;
  const own = pattern.slice(0, -2);
  const depth = own.split('/').length;
  const layers = names.map((name) => name.split('/').slice(0, depth).join('/'));
  const near = nearest(own, [...new Set(layers)]);
  return near && `${near}/*`;
}

function nothingMatched(group: string, pattern: string, names: readonly string[]): DownpourError {
  const near = nearest(pattern.replaceAll('*', ''), names) ?? nearLayer(pattern, names);
  const shown = names.slice(0, 8).join(', ') + (names.length > 8 ? ', …' : '');
  return new DownpourError(
    'DP_LAYOUT_INVALID',
    `groups.${group}: the pattern '${pattern}' matches no tensor of the model; ${near ? `did you mean '${near}'? ` : ''}The tensors are ${shown}`,
  );
}

/** The step from which on a group is trained; Infinity: never. */
export const trainedFrom = ({ frozen }: Pick<ParameterGroup, 'frozen'>): number =>
  typeof frozen === 'boolean' ? (frozen ? Infinity : 0) : frozen.untilStep;

/** The groups that are frozen at a step, by name. @param step updates that schedules count. */
export function frozenAt(groups: ParameterGroups | null, step: number): readonly string[] {
  if (!groups) return NONE;
  return Object.entries(groups).flatMap(([name, group]) => (step < trainedFrom(group) ? name : []));
}
const NONE: readonly string[] = [];

/** Whether groups may be frozen at all, so that workers have to know which of them are. */
export const mayFreeze = (groups: ParameterGroups | null): boolean =>
  groups !== null && Object.values(groups).some((group) => trainedFrom(group) > 0);

/** Some group is frozen up to a step. */
export const mayThaw = ({ groups = {} }: GroupFields): boolean =>
  Object.values(groups).some(({ frozen }) => typeof frozen !== 'boolean');

/**
 * The layout of a model while some groups are frozen: their tensors are behind all others.
 * @param specs with the roles that the model gives them. @param trainsRows rows of tables are trained, whatever tensors there are.
 * @throws DownpourError DP_LAYOUT_INVALID, also as of `groupOfEach`, or nothing is left to train.
 */
export function layoutWhile(
  specs: readonly TensorSpec[],
  groups: ParameterGroups | null,
  frozen: readonly string[],
  trainsRows: boolean,
): Layout {
  const own = createLayout(specs);
  if (own.trainableSize === 0 && !trainsRows) {
    throw new DownpourError(
      'DP_LAYOUT_INVALID',
      'the model has no trainable parameter; set trainable on at least one layer',
    );
  }
  if (!groups) return own;
  const groupOfTensor = groupOfEach(own.tensors, groups);
  if (frozen.length === 0) return own;
  // What is carried from minibatch to minibatch is no parameter, whatever a pattern matches.
  const isCarried = ({ name, role, momentum }: TensorSpec) =>
    role === 'statistics' && momentum === 0 && name.startsWith(CARRIED_PREFIX);
  const isFrozen = (spec: TensorSpec) =>
    frozen.includes(groupOfTensor.get(spec.name) ?? '') && !isCarried(spec);
  const isTrained = (spec: TensorSpec) => spec.role === 'trainable' && !isFrozen(spec);
  if (!own.tensors.some(isTrained) && !trainsRows) {
    throw new DownpourError(
      'DP_LAYOUT_INVALID',
      `groups: all trainable tensors belong to frozen groups (${frozen.join(', ')}), so there is nothing to train: leave a group or a tensor unfrozen`,
    );
  }
  return createLayout(
    layoutSpecs(own).map((spec) => (isFrozen(spec) ? { ...spec, role: 'frozen' } : spec)),
  );
}
