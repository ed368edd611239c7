import Type, { type Static } from 'typebox';
import { closed, share } from './config-fields.ts';

/** `schedule` of a run, and of a group of parameters: how the learning rate changes over the steps. */

export const ScheduleSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('constant') }, closed),
    Type.Object(
      {
        kind: Type.Literal('linear'),
        steps: Type.Integer({
          minimum: 1,
          default: 10_000,
          description: 'number of steps over which the rate decays',
        }),
        floor: share('constant rate after the decay, as a share of learningRate', 0.01),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('exponential'),
        factor: share('factor applied to the rate over every `steps` steps, continuously', 0.5),
        steps: Type.Integer({
          minimum: 1,
          default: 10_000,
          description: 'steps over which `factor` is applied once',
        }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('step'),
        factor: share('factor applied to the rate at each drop', 0.1),
        steps: Type.Integer({ minimum: 1, default: 10_000, description: 'steps between drops' }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('cosine'),
        steps: Type.Integer({
          minimum: 1,
          default: 10_000,
          description: 'number of steps over which the rate decays',
        }),
        floor: share('rate at the end, as a share of learningRate', 0),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('rising'),
        factor: Type.Number({
          exclusiveMinimum: 1,
          default: 1000,
          description:
            'ratio of the last rate to the first; the rate grows exponentially between them',
        }),
        steps: Type.Integer({
          minimum: 1,
          default: 200,
          description: 'number of steps of the range test',
        }),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('plateau'),
        divideBy: Type.Number({
          minimum: 1.1,
          maximum: 100,
          default: 5,
          description:
            'divisor of the rate when the validation value stops improving; 2 to 10 is usual',
        }),
        patience: Type.Integer({
          minimum: 1,
          default: 2,
          description: 'evaluations without improvement before the rate is divided',
        }),
        minImprovement: Type.Number({
          minimum: 0,
          default: 0,
          description: 'smallest absolute change that counts as an improvement',
        }),
        floor: share('lowest rate, as a share of learningRate', 0.001),
      },
      closed,
    ),
  ],
  { default: { kind: 'constant' }, description: 'learning-rate schedule over steps' },
);
export type ScheduleConfig = Static<typeof ScheduleSchema>;
