import { describe, expect, test } from 'vitest';
import { troubleIn, troubleText, UPDATES_MIN } from '../../server/core/trouble.ts';

const first = { loss: 2.3, gradientNorm: 1 };
/** So many updates, with the noise of minibatches. */
const course = (updates: number, loss: (share: number) => number, norm = 1) =>
  Array.from({ length: updates }, (_, i) => ({
    step: i + 1,
    loss: loss(i / updates) + 0.05 * Math.sin(37 * i),
    gradientNorm: norm,
  }));

describe('the course of a training', () => {
  test.each<[string, (share: number) => number]>([
    ['falls', (share) => 2.3 * Math.exp(-2 * share)],
    ['falls slowly, by a few per cent a third', (share) => 2.3 - 0.3 * share],
    ['has come down, and stands still there', (share) => (share < 0.2 ? 2.3 - 10 * share : 0.3)],
  ])('that %s is left alone', (_, loss) => {
    expect(troubleIn(course(600, loss), first)).toBeNull();
  });

  test('that does not fall is in trouble, but not before it has had its time', () => {
    const flat = () => 2.3;
    expect(troubleIn(course(UPDATES_MIN - 1, flat), first)).toBeNull();
    expect(troubleIn(course(UPDATES_MIN, flat), first)).toMatchObject({ kind: 'stalls' });
    // Too few minibatches for their noise.
    const thinned = course(600, flat).filter(({ step }) => step % 30 === 0);
    expect(troubleIn(thinned, first)).toBeNull();
  });

  test('that rises asks for a lower rate', () => {
    const trouble = troubleIn(
      course(600, (share) => 2.3 + 3 * share),
      first,
    )!;
    expect(trouble.kind).toBe('rises');
    expect(troubleText(trouble, true)).toContain('lower learning rate');
  });
});

describe('the hint', () => {
  const trouble = (norm: number) =>
    troubleIn(
      course(600, () => 2.3, norm),
      first,
    )!;

  test('names batch normalisation where there is none', () => {
    expect(troubleText(trouble(1), false)).toContain('try batch normalisation at once (§11.2');
    expect(troubleText(trouble(1), true)).not.toContain('batch normalisation');
  });

  test('tells by the gradient norm whether a minimum could be what holds it up (§8.2.2)', () => {
    expect(troubleText(trouble(1), false)).toContain('no minimum or saddle');
    expect(troubleText(trouble(0.01), false)).toContain('0.01 of what it was: a flat region');
  });
});
