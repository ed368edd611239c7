import { parseArgs } from 'node:util';
import { medianOf } from '../../shared/quantile.ts';
import { createRun, RUN } from '../exchange.ts';
import { MLP_PARAMETERS, runTogether, startLoad } from '../load.ts';
import { cpuMs, startServer } from '../processes.ts';

/**
 * What look-ahead costs the server: `npx tsx bench/asynchrony/server.ts`. Simulated workers push to one server with it
 * and one without, in turn; pushes a second, and the server's CPU time for one, which other work on the machine
 * disturbs least.
 */

const { values } = parseArgs({
  options: {
    workers: { type: 'string', default: '16' },
    optimizer: { type: 'string', default: 'momentum' },
    turns: { type: 'string', default: '8' },
    seconds: { type: 'string', default: '3' },
  },
});
const count = Number(values.workers) / 2;
const corrections = ['none', 'auto'] as const;
const loads = [startLoad(), startLoad()];
const ends = await Promise.all(corrections.map(() => startServer()));
const seen = corrections.map(() => ({ perSecond: [] as number[], ms: [] as number[] }));
try {
  for (const [i, correction] of corrections.entries()) {
    await createRun(ends[i]!, {
      ...{ optimizer: { kind: values.optimizer as 'momentum' }, consistency: { correction } },
      averaging: { kind: 'ema', decay: 0.999 },
    });
  }
  for (let turn = 0; turn < Number(values.turns); turn++) {
    for (const i of turn % 2 === 0 ? [0, 1] : [1, 0]) {
      const { url, pid } = ends[i]!;
      const to = {
        url,
        run: RUN,
        transport: 'tcp',
        elements: MLP_PARAMETERS,
        push: 'f32',
      } as const;
      for (const [k, load] of loads.entries()) await load.open({ count, index: k * count, to });
      await runTogether(loads, 0.6);
      const before = await cpuMs(pid);
      const { roundTripsPerSecond, latencies } = await runTogether(loads, Number(values.seconds));
      seen[i]!.perSecond.push(roundTripsPerSecond);
      seen[i]!.ms.push(((await cpuMs(pid)) - before) / latencies.length);
      await Promise.all(loads.map((load) => load.disconnect()));
    }
  }
  for (const [i, correction] of corrections.entries()) {
    const { perSecond, ms } = seen[i]!;
    console.log(
      `${correction}: ${medianOf(perSecond).toFixed(0)} pushes/s, ${medianOf(ms).toFixed(3)} ms of the server's CPU a push`,
    );
  }
  const [without, withIt] = seen;
  const share = (of: 'perSecond' | 'ms') => medianOf(withIt![of]) / medianOf(without![of]);
  console.log(
    `with look-ahead: × ${share('perSecond').toFixed(2)} the pushes/s, × ${share('ms').toFixed(2)} the CPU`,
  );
} finally {
  await Promise.all([...loads.map((load) => load.close()), ...ends.map((end) => end.close())]);
}
