import Type, { type Static } from 'typebox';
import { adamFields, closed, epsilon, share } from './config-fields.ts';

/** `optimizer` of a run: an update rule with its numbers. */

export const OptimizerSchema = Type.Union(
  [
    Type.Object({ kind: Type.Literal('sgd') }, closed),
    Type.Object(
      {
        kind: Type.Literal('momentum'),
        momentum: share('share of the velocity that each step keeps', 0.9),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('nesterov'),
        momentum: share('share of the velocity that each step keeps', 0.9),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adagrad'),
        initialAccumulator: Type.Number({
          minimum: 0,
          default: 0.1,
          description: 'initial value of the sum of squared gradients',
        }),
        epsilon: epsilon(1e-7),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('rmsprop'),
        decay: share('decay rate of the mean of squared gradients', 0.9),
        momentum: share('share of the velocity that each step keeps; 0: plain RMSProp', 0),
        epsilon: epsilon(1e-7),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adadelta'),
        decay: share('decay rate of both running means of squares', 0.95),
        epsilon: epsilon(1e-6),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adam'),
        ...adamFields(),
      },
      closed,
    ),
    Type.Object(
      {
        kind: Type.Literal('adamw'),
        ...adamFields(),
      },
      closed,
    ),
  ],
  { default: { kind: 'sgd' }, description: 'the update rule on the server' },
);
export type OptimizerConfig = Static<typeof OptimizerSchema>;
