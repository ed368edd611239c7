import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { troubleIn, troubleText, UPDATES_MIN } from '../../server/core/trouble.ts';

const first = { loss: 2.3, gradientNorm: 1 };
/** So many updates, with the noise of minibatches. */
const course = (
  updates: number,
  loss: (share: number) => number,
  norm = 1,
  rate: (share: number) => number = () => 0.1,
) =>
  Array.from({ length: updates }, (_, i) => ({
    step: i + 1,
    loss: loss(i / updates) + 0.05 * Math.sin(37 * i),
    gradientNorm: norm,
    learningRate: rate(i / updates),
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

describe('what is no trouble', () => {
  const flat = () => 2.3;
  const evaluation = (step: number, loss: number | null, error: number | null = 0.5) => ({
    ...{ step, loss, error },
  });

  test('a schedule that has ended: little is to be expected of small updates', () => {
    const plateau = (share: number) => (share < 0.5 ? 0.1 : 0.0005);
    expect(troubleIn(course(600, flat, 1, plateau), first)).toBeNull();
    const halved = (share: number) => (share < 0.5 ? 0.1 : 0.05);
    expect(troubleIn(course(600, flat, 1, halved), first)).toMatchObject({ kind: 'stalls' });
    // A loss that rises is one, however small the rate.
    const rising = course(600, (share) => 2.3 + 3 * share, 1, plateau);
    expect(troubleIn(rising, first)).toMatchObject({ kind: 'rises' });
  });

  test('a validation loss that still falls under the noise of dropout', () => {
    const falls = [100, 300, 400, 500, 600].map((step) => evaluation(step, 3 - step / 400));
    expect(troubleIn(course(600, flat), first, falls)).toBeNull();
    const stands = [100, 300, 500].map((step) => evaluation(step, 2.3));
    expect(troubleIn(course(600, flat), first, stands)).not.toBeNull();
    const unknown = [100, 300, 500].map((step) => evaluation(step, null, null));
    expect(troubleIn(course(600, flat), first, unknown)).not.toBeNull();
  });

  test('an error of 0, as under strong label smoothing', () => {
    const right = [300, 500].map((step) => evaluation(step, 1.4, 0));
    expect(
      troubleIn(
        course(600, () => 1.4),
        first,
        right,
      ),
    ).toBeNull();
  });

  test('whatever the course, nothing is said that is no number', () => {
    const numbers = fc.double({ min: 0, max: 50, noNaN: true });
    fc.assert(
      fc.property(
        fc.array(numbers, { minLength: 3, maxLength: 12 }),
        numbers,
        numbers,
        (shape, norm, start) => {
          const points = course(400, (share) => shape[Math.floor(share * shape.length)]!, norm);
          const trouble = troubleIn(points, { loss: start, gradientNorm: norm });
          if (trouble) expect(troubleText(trouble, false)).not.toMatch(/NaN|Infinity|undefined/);
        },
      ),
    );
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
