import { describe, expect, test } from 'vitest';
import { runFacts } from '../../cli/output/progress.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import { type PartialConfig, resolveConfig, workerConfig } from '../../shared/config.ts';
import { GROUPS_HEADER, layoutWhile } from '../../shared/groups.ts';
import { ticketOf, ticketProtocols } from '../../shared/join.ts';
import { createLayout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { createProblem, createRun, TENSORS, VirtualWorker } from '../support/regression.ts';

/** Groups of parameters on the server: their rates and rules, freezing and thawing, and what is refused. */

const problem = createProblem();
const endless = { earlyStopping: { enabled: false }, averaging: { kind: 'ema' } } as const;
const groupsFrom = (groups: PartialConfig['groups']) => resolveConfig({ groups }).groups!;
const valuesOf = (run: Run) =>
  Object.fromEntries(run.finalTensors().map(({ name, values }) => [name, [...values]]));
const problemOf = (config: PartialConfig): string => {
  try {
    resolveConfig(config);
  } catch (error) {
    return (error as Error).message;
  }
  return 'nothing was refused';
};

function trained(config: PartialConfig, steps: number) {
  const run = createRun({ ...endless, stepsMax: 1000, ...config });
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step >= steps);
  return { run, worker };
}

function saved(run: Run): { state: RunState; tensors: NamedTensor[] } {
  return { state: JSON.parse(JSON.stringify(run.state(0))), tensors: run.tensors() };
}

describe('the configuration', () => {
  test('names what is wrong, the value and what is allowed', () => {
    expect(problemOf({ groups: { a: { learningRate: 0 } } })).toContain(
      'groups.a.learningRate is 0; it must be > 0',
    );
    expect(problemOf({ groups: { a: { patern: 'x' } as never } })).toContain(
      "did you mean 'pattern'",
    );
    expect(problemOf({ groups: { '1a': {} } })).toContain('groups.1a is no name');
    expect(problemOf({ groups: { a: { schedule: { kind: 'plateau' } } } })).toContain(
      "groups.a.schedule.kind is 'plateau'",
    );
    expect(problemOf({ groups: { a: {} }, local: { steps: 4 } })).toContain('local.steps is 4');
    expect(problemOf({ groups: { a: {} }, consistency: { correction: 'gap' } })).toContain("'gap'");
    const topk = { kind: 'topk', momentum: 0.9 } as const;
    expect(
      problemOf({ groups: { a: { optimizer: { kind: 'adam' } } }, compression: { push: topk } }),
    ).toContain("groups.a.optimizer.kind is 'adam'");
  });

  test.each([
    [{ learningrate: 1 }, 'groups.a.learningrate', "did you mean 'learningRate'?"],
    [{ patern: 'x' }, 'groups.a.patern', "did you mean 'pattern'?"],
    [{ pattern: [] }, 'groups.a.pattern', ''],
    [{ pattern: '' }, 'groups.a.pattern', ''],
    [{ frozen: 'yes' }, 'groups.a.frozen', ''],
    [{ frozen: { untilStep: 0 } }, 'groups.a.frozen', ''],
    [{ everySteps: 0 }, 'groups.a.everySteps', '0'],
    [{ optimizer: { kind: 'adm' } }, 'groups.a.optimizer', ''],
    [{ weightDecay: { rate: -1 } }, 'groups.a.weightDecay', ''],
    [{ weightDecay: { rat: 1 } }, 'groups.a.weightDecay', ''],
  ])('names the field of a group that is wrong: %j', (group, path, words) => {
    const told = problemOf({ groups: { a: group as never } });
    expect(told).toContain(path);
    expect(told).toContain(words);
    expect(told).not.toMatch(/nothing was refused|undefined|\[object/);
  });

  test('is announced by headers, and in a page by a subprotocol', () => {
    const run = { id: 'r', config: resolveConfig({ groups: { a: {} } }) };
    const lack = (headers: Record<string, string>) => lackOf(abilitiesOf(headers), run)?.code;
    const page = ticketProtocols('t', [GROUPS_HEADER]).join(', ');
    expect(ticketOf(page)).toBe('t');
    expect(lack({ 'sec-websocket-protocol': page })).toBeUndefined();
    expect(lack({ [GROUPS_HEADER]: 'yes' })).toBeUndefined();
    expect(lack({ 'sec-websocket-protocol': ticketProtocols('t').join(', ') })).toBe(
      'DP_PROTOCOL_VERSION',
    );
    expect(lack({})).toBe('DP_PROTOCOL_VERSION');
  });

  test('has a limit of groups and of patterns, on both sides', () => {
    const of = (count: number) =>
      Object.fromEntries(Array.from({ length: count }, (_, i) => [`g${i}`, {}]));
    expect(problemOf({ groups: of(LIMITS.groupCountMax) })).toBe('nothing was refused');
    expect(problemOf({ groups: of(LIMITS.groupCountMax + 1) })).toContain(
      `groups has ${LIMITS.groupCountMax + 1} entries; allowed: ${LIMITS.groupCountMax}`,
    );
    const patterns = (count: number) => ({ a: { pattern: Array<string>(count).fill('*') } });
    const most = LIMITS.groupPatternsMax;
    expect(problemOf({ groups: patterns(most) })).toBe('nothing was refused');
    expect(problemOf({ groups: patterns(most + 1) })).toContain('groups.a.pattern');
  });

  test('is sent to workers only where there are groups', () => {
    expect('groups' in workerConfig(resolveConfig({}))).toBe(false);
    expect(workerConfig(resolveConfig({ groups: { a: {} } })).groups).toHaveProperty('a');
  });
});

describe('patterns', () => {
  const placed = (groups: PartialConfig['groups'], frozen: string[] = []) =>
    layoutWhile(TENSORS, groupsFrom(groups), frozen, false);

  test('that match nothing are refused with the nearest name', () => {
    expect(() => placed({ a: { pattern: 'weigths' } })).toThrow(
      "groups.a: the pattern 'weigths' matches no tensor of the model; did you mean 'weights'?",
    );
    expect(() => placed({ trunk: {} })).toThrow("the pattern 'trunk/*' matches no tensor");
  });

  test.each([
    ['juge/*', "'juge/*' matches no tensor of the model; did you mean 'judge/*'?"],
    ['judge/dnse/*', "did you mean 'judge/dense/*'?"],
    ['*/kernel', 'nothing was refused'],
    ['quite/*', 'matches no tensor of the model; The tensors are judge/dense/kernel'],
  ])('of a layer that matches nothing names the nearest layer: %s', (pattern, words) => {
    const tensors = [{ name: 'judge/dense/kernel', shape: [2], role: 'trainable' as const }];
    const seen = () => layoutWhile(tensors, groupsFrom({ a: { pattern } }), [], false);
    let told = 'nothing was refused';
    try {
      seen();
    } catch (error) {
      told = (error as Error).message;
    }
    expect(told).toContain(words);
  });

  test('of two groups may not match one tensor', () => {
    expect(() => placed({ a: { pattern: 'w*' }, b: { pattern: ['bias', '*eights'] } })).toThrow(
      "groups.a and groups.b both match the tensor 'weights'",
    );
  });

  test('may not freeze all that is trained', () => {
    expect(() => placed({ a: { pattern: '*' } }, ['a'])).toThrow('there is nothing to train');
    // Rows of tables are trained then, and a model may have no others.
    expect(layoutWhile(TENSORS, groupsFrom({ a: { pattern: '*' } }), ['a'], true)).toMatchObject({
      trainableSize: 0,
    });
    expect(() => layoutWhile([], null, [], false)).toThrow('no trainable parameter');
    expect(layoutWhile([], null, [], true)).toMatchObject({ tensors: [], size: 0 });
  });

  test('move frozen tensors behind all others, in their order', () => {
    const { tensors, trainableSize, frozenSize } = placed({ a: { pattern: ['weights', 'mean'] } }, [
      'a',
    ]);
    expect(tensors.map(({ name, role }) => `${name} ${role}`)).toEqual([
      'bias trainable',
      ...['weights', 'mean', 'offset'].map((name) => `${name} frozen`),
    ]);
    expect([trainableSize, frozenSize]).toEqual([1, 8]);
  });

  test('a worker that joins is told what is wrong with them', () => {
    const run = createRun({ groups: { a: { pattern: 'biass' } } });
    expect(() => new VirtualWorker(run, problem)).toThrow("did you mean 'bias'?");
  });
});

describe('the rate of a group', () => {
  test('multiplies the rate of the run: the group of all is the run with another rate, to the bit', () => {
    for (const kind of ['sgd', 'momentum', 'adam', 'rmsprop'] as const) {
      const optimizer = { kind };
      const [one, other] = [
        trained(
          { optimizer, learningRate: 0.02, groups: { a: { pattern: '*', learningRate: 0.5 } } },
          40,
        ),
        trained({ optimizer, learningRate: 0.01 }, 40),
      ];
      expect(valuesOf(one.run), kind).toEqual(valuesOf(other.run));
    }
  });

  test('its own optimizer, schedule and decay are those of a run that has them', () => {
    const own = {
      optimizer: { kind: 'adam' },
      schedule: { kind: 'exponential', factor: 0.5, steps: 10 },
    } as const;
    const [one, other] = [
      trained(
        { groups: { a: { pattern: '*', ...own, weightDecay: { rate: 0.1, l1: 0.01 } } } },
        40,
      ),
      trained({ ...own, weightDecay: { rate: 0.1, l1: 0.01 } }, 40),
    ];
    expect(valuesOf(one.run)).toEqual(valuesOf(other.run));
  });

  test('a group of its own rule leaves the others alone: both end where they would by themselves', () => {
    // Gradients that do not depend on the parameters.
    const fixed = (config: PartialConfig) => {
      const run = createRun({ ...endless, stepsMax: 1000, ...config });
      const worker = new VirtualWorker(run, problem);
      while (run.step < 30) {
        worker.pull();
        worker.push(0, (payload) => payload.set(payload.map((_, i) => Math.sin(i + run.step))));
      }
      return valuesOf(run);
    };
    const both = fixed({
      optimizer: { kind: 'momentum' },
      groups: { b: { pattern: 'bias', optimizer: { kind: 'adam' }, learningRate: 0.1 } },
    });
    const momentum = fixed({ optimizer: { kind: 'momentum' } });
    const adam = fixed({ optimizer: { kind: 'adam' }, learningRate: 0.005 });
    expect(both.weights).toEqual(momentum.weights);
    expect(both.bias).toEqual(adam.bias);
    expect(both.mean).toEqual(momentum.mean);
  });

  test('everySteps updates it at every n-th step only', () => {
    const run = createRun({
      ...{ ...endless, stepsMax: 1000, optimizer: { kind: 'adam' } },
      groups: { w: { pattern: 'weights', everySteps: 3 } },
    });
    const worker = new VirtualWorker(run, problem);
    const moved: boolean[] = [];
    while (run.step < 9) {
      const before = run.hasParameters ? valuesOf(run) : null;
      worker.pull();
      const { step } = run;
      worker.push();
      if (!before || run.step === step) continue;
      moved.push(String(valuesOf(run).weights) !== String(before.weights));
      expect(valuesOf(run).bias).not.toEqual(before.bias);
    }
    expect(moved.slice(-9)).toEqual([false, false, true, false, false, true, false, false, true]);
  });
});

test('a run tells each group: its parameters, its rate, and from when on it is trained', () => {
  const config: PartialConfig = {
    learningRate: 0.5,
    groups: {
      trunk: { pattern: ['weights', 'mean'], learningRate: 0.1, frozen: { untilStep: 3 } },
      head: {
        pattern: 'bias',
        everySteps: 2,
        schedule: { kind: 'exponential', factor: 0.5, steps: 1 },
      },
    },
  };
  const run = createRun({ ...endless, stepsMax: 20, ...config });
  const told = () => run.detail(0).groups!;
  expect(told().map(({ parameters }) => parameters)).toEqual([null, null]);
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step >= 1);
  const size = (name: string) => valuesOf(run)[name]!.length;
  const trunk = { name: 'trunk', pattern: ['weights', 'mean'], trainedFrom: 3, everySteps: 1 };
  expect(told()).toEqual([
    { ...trunk, parameters: size('weights'), frozen: true, learningRate: 0 },
    {
      ...{ name: 'head', pattern: ['bias'], trainedFrom: 0, everySteps: 2, frozen: false },
      ...{ parameters: size('bias'), learningRate: 0.5 * 0.5 ** run.step },
    },
  ]);
  worker.train(() => run.step >= 5);
  expect(told()[0]).toMatchObject({ frozen: false, learningRate: 0.05 });
  expect(runFacts({ ...run.detail(0), checkpoint: null }).join('\n')).toMatch(
    /group +trunk: \d+ parameters, trained from step 3 on, learning rate 0\.05\n +group +head: /,
  );
  expect(createRun({}).detail(0).groups).toBeNull();
});

describe('a frozen group', () => {
  const frozen = { pattern: ['weights', 'mean'], frozen: true };

  test('is pushed by nobody and pulled once, and stays as it is', () => {
    const { run, worker } = trained({ groups: { trunk: frozen } }, 1);
    const { weights, mean } = valuesOf(run);
    worker.train(() => run.step >= 50);
    expect(valuesOf(run)).toMatchObject({ weights, mean });
    expect(worker.pushed.length).toBeGreaterThanOrEqual(50);
    expect(new Set(worker.pushed)).toEqual(new Set([1]));
    expect(worker.pulled[0]).toBe(9);
    expect(new Set(worker.pulled.slice(1))).toEqual(new Set([1]));
    const late = new VirtualWorker(run, problem, 'late/1');
    late.train(() => run.step >= 60);
    expect(late.pulled.slice(0, 2)).toEqual([9, 1]);
  });

  const until = { pattern: 'weights', frozen: { untilStep: 19 } } as const;
  const config: PartialConfig = { optimizer: { kind: 'adam' }, groups: { trunk: until } };

  test('until a step is trained from then on, with workers connected, and no minibatch is lost', () => {
    const run = createRun({ ...endless, stepsMax: 40, testAtEnd: false, ...config });
    const workers = ['a/1', 'b/1'].map((key) => new VirtualWorker(run, problem, key));
    let weights: unknown;
    const outcomes = new Set<string>();
    while (!run.over) {
      for (const worker of workers) worker.pull();
      if (run.step === 0 && run.hasParameters) weights = valuesOf(run).weights;
      if (run.step > 0 && run.step < 19) expect(valuesOf(run).weights).toEqual(weights);
      for (const worker of workers) {
        const told = worker.push();
        if (told?.outcome === 'rejected') outcomes.add(told.code!);
      }
    }
    expect(valuesOf(run).weights).not.toEqual(weights);
    // What was on its way is computed again at the parameters of the new layout.
    expect([...outcomes]).toContain('DP_PUSH_STALE');
    expect([...outcomes]).not.toContain('DP_TENSOR_SIZE');
    const applied = workers.flatMap((worker) => worker.applied);
    expect(new Set(applied).size).toBe(applied.length);
    expect(applied.length).toBe(40);
    expect(run.frozenGroups).toEqual([]);
    expect(workers.map(({ pushed }) => new Set(pushed))).toEqual([
      new Set([2, 8]),
      new Set([2, 8]),
    ]);
  });

  test('that freezes again in a `retrain` leaves the best parameters as they are, wherever it is interrupted', () => {
    const run = createRun({
      ...{ ...config, stepsMax: 40, evaluateEverySteps: 10, testAtEnd: false },
      earlyStopping: { afterStop: 'retrain' },
    });
    const worker = new VirtualWorker(run, problem);
    const bestOf = (of: Run) =>
      Object.fromEntries(of.bestTensors().map(({ name, values }) => [name, [...values]]));
    worker.train(() => run.phase === 'refitting');
    const best = run.best!.step;
    const other = createRun({ ...config, stepsMax: best, ...endless, testAtEnd: false });
    new VirtualWorker(other, problem).train(() => other.step >= best);
    const wanted = bestOf(run);
    expect(run.frozenGroups).toEqual(['trunk']);
    // Those of the step, not the initial ones that the run begins with again.
    expect(wanted).toEqual(valuesOf(other));
    const interrupted = (of: Run) => {
      const { state, tensors } = saved(of);
      const vectors = of.replicaVectors().map(([name, values]) => [name, values.slice()] as const);
      return [
        Run.restore(state, tensors),
        Run.replicate(structuredClone(of.replica()), new Map(vectors)),
      ];
    };
    for (const step of [5, 18, 30]) {
      worker.train(() => run.step >= best + step);
      expect(bestOf(run), `${step} steps later`).toEqual(wanted);
      for (const again of interrupted(run)) {
        expect(bestOf(again), `after a restart ${step} steps later`).toEqual(wanted);
      }
    }
    const [later] = interrupted(run);
    expect(run.frozenGroups).toEqual([]);
    for (const of of [run, later!]) {
      new VirtualWorker(of, problem, 'other/1').train();
      expect(of.over).toBe(true);
      expect(bestOf(of)).toEqual(wanted);
    }
  });

  test('a worker alone ends with the same bits wherever it is interrupted, and so does a standby', () => {
    const whole = trained({ ...config, stepsMax: 45 }, 45);
    whole.worker.train();
    for (let cut = 1; cut < 45; cut += 4) {
      const { run } = trained({ ...config, stepsMax: 45 }, cut);
      const { state, tensors } = saved(run);
      const later = Run.restore(state, tensors);
      const vectors = run.replicaVectors().map(([name, values]) => [name, values.slice()] as const);
      const replica = Run.replicate(structuredClone(run.replica()), new Map(vectors));
      for (const [i, of] of [later, replica].entries()) {
        const worker = new VirtualWorker(of, problem, i === 0 ? 'other/1' : 'w/1');
        for (let n = 0; n < 100; n++) worker.skip();
        worker.train();
        expect(valuesOf(of), `${i === 0 ? 'restored' : 'standby'} at ${cut}`).toEqual(
          valuesOf(whole.run),
        );
      }
    }
  });

  test.each(['retrain', 'continue'] as const)(
    'is frozen again where %s begins anew',
    (afterStop) => {
      const { run, worker } = trained(
        { ...config, earlyStopping: { enabled: true, patience: 3, afterStop }, epochsMax: 30 },
        0,
      );
      worker.train();
      expect(run.phase).toBe('finished');
      expect(valuesOf(run).weights!.every(Number.isFinite)).toBe(true);
    },
  );

  test('a fork without the group trains all of it, and the other way round', () => {
    const { run } = trained({ groups: { trunk: frozen } }, 10);
    const { state, tensors } = saved(run);
    const of = (groups: NonNullable<PartialConfig['groups']>) => {
      const options = createRun({ ...endless, stepsMax: 30, groups }, 'f').options;
      const fork = Run.fork(
        { ...options, fork: { run: 'r', checkpoint: 'last' } as never },
        state,
        tensors,
      );
      expect(valuesOf(fork)).toEqual(valuesOf(run));
      new VirtualWorker(fork, problem).train();
      return valuesOf(fork);
    };
    expect(of({}).weights).not.toEqual(valuesOf(run).weights);
    const { weights, bias } = of({ head: { pattern: 'bias', frozen: true } });
    expect(bias).toEqual(valuesOf(run).bias);
    expect(weights).not.toEqual(valuesOf(run).weights);
  });
});

describe('with several workers', () => {
  test.each<[string, PartialConfig]>([
    ['look-ahead', { consistency: { correction: 'lookahead' }, optimizer: { kind: 'momentum' } }],
    ['compensation', { consistency: { correction: 'compensated' } }],
    ['steps of all', { consistency: { mode: 'synchronous' } }],
    ['a buffer', { consistency: { mode: 'buffered', bufferSize: 2 } }],
  ])('groups that thaw train by %s, and go on in another process', (_, more) => {
    const groups: NonNullable<PartialConfig['groups']> = {
      w: {
        pattern: 'weights',
        frozen: { untilStep: 12 },
        optimizer: { kind: 'adam' },
        learningRate: 0.1,
      },
      b: { pattern: 'bias', everySteps: 2 },
    };
    const config = {
      ...endless,
      stepsMax: 30,
      testAtEnd: false,
      learningRate: 0.02,
      groups,
      ...more,
    };
    let run = createRun(config);
    const join = (life: string) =>
      ['a', 'b', 'c'].map((name) => {
        const worker = new VirtualWorker(run, problem, `${name}/1`);
        for (let n = 0; n < (life === 'first' ? 0 : 1000); n++) worker.skip();
        return worker;
      });
    let workers = join('first');
    for (let round = 0; !run.over; round++) {
      if (round > 1000) throw new Error(`it stands still at step ${run.step}`);
      if (round === 9 || round === 25) {
        const { state, tensors } = saved(run);
        run = Run.restore(state, tensors);
        workers = join('second');
      }
      for (const worker of workers) worker.pull();
      for (const worker of workers) worker.push();
    }
    expect(run.phase).toBe('finished');
    expect(Object.values(valuesOf(run)).flat().every(Number.isFinite)).toBe(true);
  });
});

test('a run without groups has the layout of its model', () => {
  expect(layoutWhile(TENSORS, null, [], false)).toEqual(createLayout(TENSORS));
  expect(createRun({}).frozenGroups).toBeNull();
});
