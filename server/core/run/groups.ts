import { keepsEach } from '../../../shared/consistency.ts';
import {
  frozenAt,
  groupOf,
  groupsOf,
  layoutWhile,
  patternsOf,
  trainedFrom,
} from '../../../shared/groups.ts';
import type { Layout } from '../../../shared/layout.ts';
import type { RunDetail } from '../../../shared/rest.ts';
import { trainsRows } from '../../../shared/tables.ts';
import { groupRateOf, unscheduledRateOf } from '../group-rules.ts';
import type { GroupStep } from '../step-options.ts';
import type { VectorPlaces } from '../vectors.ts';
import { learningRateOf, scheduleStepOf } from './course.ts';
import type { RunInternals, RunState } from './state.ts';

/** Groups of parameters in the course of a run: their rates, and which of them are frozen. */

/** What groups need of the next update; null: the run has none. @param scale of its learning rate. */
export function groupStepOf({ options, fields }: RunInternals, scale: number): GroupStep | null {
  const { config } = options;
  if (!groupsOf(config)) return null;
  const scheduleStep = scheduleStepOf(fields);
  const unscheduledRate = unscheduledRateOf(config, scheduleStep) * fields.rateFactor * scale;
  return { scheduleStep, unscheduledRate };
}

/** The groups that are frozen now. */
export function frozenOf({
  options,
  fields,
}: Pick<RunInternals, 'options' | 'fields'>): readonly string[] {
  return frozenAt(groupsOf(options.config), scheduleStepOf(fields));
}

/** Each group as REST tells it; null: the run has none. */
export function toldGroups(inside: RunInternals): NonNullable<RunDetail['groups']> | null {
  const groups = groupsOf(inside.options.config);
  const step = groupStepOf(inside, 1);
  if (!groups || !step) return null;
  const { specs } = inside.components.vector;
  const frozen = frozenOf(inside);
  const learningRate = learningRateOf(inside);
  return Object.entries(groups).map(([name, group]) => {
    const own = specs?.filter(
      (spec) => spec.role !== 'statistics' && groupOf(spec.name, groups) === name,
    );
    const from = trainedFrom(group);
    return {
      ...{ name, pattern: patternsOf(name, group), everySteps: group.everySteps },
      parameters:
        own?.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0) ?? null,
      frozen: frozen.includes(name),
      trainedFrom: Number.isFinite(from) ? from : null,
      learningRate: frozen.includes(name) ? 0 : groupRateOf(group, step, learningRate),
    };
  });
}

/**
 * Lays the vector out for the groups that are frozen now: some are up to a step, and again in a phase that begins anew.
 * Nothing may wait for its update. @returns whether another layout was needed.
 */
export function fitGroups(inside: RunInternals): boolean {
  const { vector } = inside.components;
  if (!vector.parameters || !groupsOf(inside.options.config)) return false;
  const frozen = frozenOf(inside);
  if (String(frozen) === String(vector.frozen)) return false;
  takePlaces(inside, vector.refit(frozen));
  inside.fields.generation++;
  return true;
}

/** The layout that the vectors of a checkpoint have; null: it has none. */
export function layoutOfState({ options, tensors, ...state }: RunState): Layout | null {
  const groups = groupsOf(options.config);
  const frozen = frozenAt(groups, scheduleStepOf(state));
  return tensors && layoutWhile(tensors, groups, frozen, trainsRows(options.config));
}

/** The vector has its places: so much may be kept of workers and of their pushes. */
export function takePlaces({ options, components }: RunInternals, places: VectorPlaces): void {
  components.correction.place(places.velocities);
  components.sent.place(places.sent);
  if (keepsEach(options.config.consistency)) components.mode?.place(places.collected);
}
