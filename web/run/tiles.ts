import type { RunSummary } from '../../shared/rest.ts';
import { collectingText } from '../../shared/text.ts';
import { isRefitted } from '../../shared/trained-last.ts';
import { count, duration, errorOf, plural, short } from '../format.ts';
import { Tile } from '../parts.ts';

/** The six numbers at the top of a run's page. */
export class RunTiles {
  readonly #tiles = {
    step: new Tile('Step'),
    loss: new Tile('Training loss'),
    best: new Tile('Best validation'),
    speed: new Tile('Throughput'),
    rate: new Tile('Learning rate'),
    staleness: new Tile('Staleness p95'),
  };

  get elements(): HTMLElement[] {
    return Object.values(this.#tiles).map(({ element }) => element);
  }

  show(run: RunSummary): void {
    const tiles = this.#tiles;
    const left = run.secondsLeft === null ? '' : `, ${duration(run.secondsLeft)} left at most`;
    tiles.step.show(
      count(run.step),
      `${run.stepsMax === null ? '' : `of ${count(run.stepsMax)}, `}epoch ${count(run.epoch)}${left}`,
    );
    tiles.loss.show(short(run.trainingLoss), `after ${plural(run.examples, 'example')}`);
    const { best } = run;
    tiles.best.show(
      best === null ? '–' : best.error === null ? short(best.loss) : errorOf(run)(best.error),
      best === null
        ? 'no evaluation yet'
        : `loss ${short(best.loss)} at step ${count(best.step)}${isRefitted(run) ? `, before '${run.earlyStopping.afterStop}'` : ''}`,
    );
    const { examplesPerSecondMean: mean = null } = run;
    const speed = run.examplesPerSecond ?? mean;
    tiles.speed.show(
      speed ? count(speed) : '–',
      mean === null
        ? `examples a second, ${plural(run.workers, 'worker')}`
        : 'examples a second on average',
    );
    tiles.rate.show(
      short(run.learningRate),
      [
        run.momentum === null ? null : `momentum ${short(run.momentum)}`,
        run.correction?.text ?? null,
      ]
        .filter((part) => part !== null)
        .join('; '),
    );
    const { staleness } = run;
    tiles.staleness.show(
      staleness === null ? '–' : count(staleness.p95),
      staleness === null
        ? 'no push was applied yet'
        : `median ${count(staleness.p50)}, most ${count(staleness.max)}${run.collecting ? `; next update: ${collectingText(run.collecting)}` : ''}`,
    );
  }
}
