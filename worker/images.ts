import { nearest } from '../shared/spelling.ts';
import type { Batch, BatchFunction, FieldTensors } from './batch.ts';
import type { Draws } from './draws.ts';
import { isRecord } from './fields.ts';
import {
  commonFill,
  crop,
  flip,
  type Geometry,
  moved,
  pad,
  resize,
  rotate,
  type Size,
  scale,
  shear,
  shift,
} from './images/geometry.ts';
import { type Mixture, mixup } from './images/mixup.ts';
import { brightness, contrast, cutout, hue, type Values } from './images/values.ts';
import { invalid } from './model/data-shape.ts';
import { type Tensor, tf } from './tf.ts';

/**
 * Changes of images for `batch` of an experiment: more examples from the ones that there are (Deep Learning §7.4, §12.2.1.2).
 *
 *     import { augment, rotate, shift } from 'downpour/images';
 *
 *     batch: augment([shift(2), rotate(10)]),
 *
 * All numbers are drawn for each example by itself, from the run's seed and the lease: the same minibatch on every engine.
 */

export {
  type GlobalContrastOptions,
  globalContrast,
  type LocalContrastOptions,
  localContrast,
} from './images/contrast.ts';
export {
  crop,
  type Fill,
  type FillOptions,
  flip,
  type Geometry,
  pad,
  resize,
  rotate,
  type Size,
  scale,
  shear,
  shift,
} from './images/geometry.ts';
export { classProbabilities, type Mixture, mixup } from './images/mixup.ts';
export {
  brightness,
  type CutoutOptions,
  contrast,
  cutout,
  hue,
  type Values,
} from './images/values.ts';

/** A step of an augmentation; a function gets the images [n, height, width, channels] and gives as many, in training alone. */
export type Augmentation =
  | Geometry
  | Values
  | Mixture
  | ((images: Tensor, random: Draws) => Tensor);

export interface AugmentOptions {
  /** The field that has the images, where the data have fields by name. Default: `inputs`. */
  readonly inputs?: string;
  /** The field that `mixup` mixes with it. Default: `targets`. */
  readonly targets?: string;
}

/** What suits a kind of images. Sizes are shares of the side, so that a policy suits small and large images. */
const POLICIES = {
  /** Single characters: never mirrored, a 6 turned by more is a 9. 28 pixels move by 2. */
  digits: ([height, width]: Size) => [
    shift([Math.round(height / 14), Math.round(width / 14)]),
    rotate(10),
    scale(0.1),
    shear(10),
  ],
  /** Photographs of things that have no left and right. */
  photos: ([height, width]: Size, channels: number) => [
    flip(),
    shift([Math.round(height / 8), Math.round(width / 8)], { fill: 'reflect' }),
    brightness(0.1),
    contrast(0.2),
    ...(channels === 3 ? [hue(10)] : []),
  ],
  /** Lines of writing: never mirrored or turned, moved along the line a little and hardly across it. */
  text: ([height, width]: Size) => [
    shift([Math.round(height / 16), Math.round(width / 64)]),
    scale(0.05),
    shear(10),
    contrast(0.2),
  ],
} satisfies Record<string, (size: Size, channels: number) => readonly Augmentation[]>;

/** Names of the policies. */
export type Policy = keyof typeof POLICIES;

/**
 * A `batch` that changes images at random. Evaluations and predictions see the images as they are; only `crop`, `pad` and
 * `resize` apply to these too, `crop` from the middle.
 * @param steps a policy by name, or steps, applied in this order.
 * @throws DownpourError DP_EXPERIMENT_INVALID: it is neither. The `batch` throws it where the field is no minibatch of images.
 */
export function augment(policy: Policy, options?: AugmentOptions): BatchFunction;
export function augment(steps: readonly Augmentation[], options?: AugmentOptions): Batch;
export function augment(
  steps: Policy | readonly Augmentation[],
  { inputs: name = 'inputs', targets = 'targets' }: AugmentOptions = {},
): Batch {
  const stepsFor = stepsOf(steps);
  const change: BatchFunction = (fields, { random, training }) => {
    const given = imagesOf(fields, name);
    const isFlat = given.shape.length === 3;
    const [, height, width, channels] = [...given.shape, 1] as [number, number, number, number];
    let images = isFlat ? tf.expandDims(given, -1) : given;
    let mixed = fields[targets];
    for (const group of groupsOf(stepsFor([height, width], channels))) {
      if (isGeometry(group)) images = moved(images, group, training ? random : null);
      else if (!training) continue;
      else if (typeof group === 'function') images = group(images, random);
      else if (group.kind === 'values') images = group.change(images, random);
      else {
        if (!mixed) {
          throw invalid(
            `mixup: the data have no field '${targets}' to mix; name the one to mix: augment(…, { targets: name })`,
          );
        }
        [images, mixed] = group.change(images, mixed, random);
      }
    }
    const result = isFlat ? tf.squeeze(images, [-1]) : images;
    return { ...fields, [name]: result, ...(mixed ? { [targets]: mixed } : {}) };
  };
  const resizes =
    typeof steps !== 'string' && steps.some((step) => 'resizes' in step && step.resizes);
  return resizes ? { change, evaluation: true } : change;
}

type Steps = (size: Size, channels: number) => readonly Augmentation[];

function stepsOf(given: Policy | readonly Augmentation[]): Steps {
  const policies = Object.keys(POLICIES)
    .map((policy) => `'${policy}'`)
    .join(', ');
  if (typeof given === 'string') {
    if (Object.hasOwn(POLICIES, given)) return POLICIES[given];
    const near = nearest(given, Object.keys(POLICIES));
    throw invalid(
      `augment: there is no policy ${JSON.stringify(given)}; ${near ? `did you mean '${near}'?` : `known: ${policies}`} Or give an array of steps`,
    );
  }
  if (!Array.isArray(given)) {
    throw invalid(
      `augment: allowed: one of ${policies}, or an array of steps such as [shift(2), rotate(10)]`,
    );
  }
  given.forEach((step, i) => {
    if (typeof step === 'function' ? !STEPS.has(step) : isStep(step)) return;
    throw invalid(
      `augment: step ${i} is ${typeof step === 'function' ? `the function ${step.name}: call it, ${step.name}(…)` : JSON.stringify(step)}; allowed: what flip(), shift(2), … give, or a function (images, random) that gives images`,
    );
  });
  return () => given;
}

/** Forgotten brackets: they would be taken for functions of images. */
const STEPS: ReadonlySet<unknown> = new Set<unknown>([
  ...[flip, shift, rotate, scale, shear, crop, pad, resize],
  ...[brightness, contrast, hue, cutout, mixup],
]);

const isStep = (step: unknown) =>
  isRecord(step) && ['geometry', 'values', 'mixture'].includes(step.kind as string);

type Group = readonly Geometry[] | Exclude<Augmentation, Geometry>;

const isGeometry = (group: Group): group is readonly Geometry[] => Array.isArray(group);

/** Geometry of one fill that stands together becomes one step. */
function groupsOf(
  steps: readonly Augmentation[],
): (readonly Geometry[] | Exclude<Augmentation, Geometry>)[] {
  const groups: (Geometry[] | Exclude<Augmentation, Geometry>)[] = [];
  for (const step of steps) {
    if (typeof step === 'function' || step.kind !== 'geometry') {
      groups.push(step);
      continue;
    }
    const last = groups.at(-1);
    const fills = Array.isArray(last) ? [commonFill(last), step.fill] : [];
    const fits = fills.includes(null) || fills[0] === fills[1];
    if (Array.isArray(last) && fits) last.push(step);
    else groups.push([step]);
  }
  return groups;
}

function imagesOf(fields: FieldTensors, name: string): Tensor {
  const given = fields[name] as Tensor | undefined;
  const known = Object.keys(fields).join(', ');
  if (!given)
    throw invalid(
      `augment: the data have no field '${name}'; they have ${known}: augment(…, { inputs: name })`,
    );
  const { shape, dtype } = given;
  if (dtype === 'float32' && (shape.length === 4 || shape.length === 3)) return given;
  throw invalid(
    `augment: field '${name}' is ${dtype} of shape [${['n', ...shape.slice(1)]}]; allowed: float32 of shape [n,height,width,channels] or [n,height,width]`,
  );
}
