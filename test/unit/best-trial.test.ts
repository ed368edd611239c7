import { expect, it } from 'vitest';
import { bestTrial } from '../../shared/best-trial.ts';

const at = (loss: number | null, error: number | null) => ({
  best: { step: 1, epoch: 1, loss, error },
});

it('has the lowest error, though another trial has a lower loss', () => {
  const runs = [at(0.65, 0.26), { best: null }, at(0.79, 0.23), at(0.7, 0.23)];
  expect(bestTrial(runs)).toEqual({ run: runs[2], metric: 'error', value: 0.23 });
});

it('has the lowest loss where trials have no error, and there may be none', () => {
  const runs = [at(3, null), at(null, null), at(2, 0.1)];
  expect(bestTrial(runs)).toEqual({ run: runs[2], metric: 'loss', value: 2 });
  expect(bestTrial([{ best: null }])).toBeNull();
  expect(bestTrial([])).toBeNull();
});
