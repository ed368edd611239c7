import { floatsOf } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { Run, RunCall } from './run.ts';

/**
 * Carries out on a replica what its original was called with. What the original refused with an error of the
 * table, and told somebody, the replica refuses alike; any other error is a defect, and goes on.
 */
export function replay(run: Run, call: RunCall, payload: Uint8Array): void {
  try {
    perform(run, call, payload);
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
  }
  // Nobody writes down for a replica what happens to it.
  run.takeEvents();
}

function perform(run: Run, call: RunCall, payload: Uint8Array): void {
  switch (call.call) {
    case 'join':
      run.join(call.worker, call.join, call.now, payload);
      break;
    case 'detach':
      run.detach(call.worker, call.now);
      break;
    case 'leave':
      run.leave(call.worker);
      break;
    case 'postpone':
      run.postpone(call.ms);
      break;
    case 'tick':
      run.tick(call.now);
      break;
    case 'assign':
      run.assign(call.worker, call.ahead, call.now);
      break;
    case 'initialised':
      run.initialised(call.worker, call.grant, floatsOf(payload), call.now);
      break;
    case 'push':
      run.push(call.worker, call.push, payload, call.now);
      break;
    case 'evaluated':
      run.evaluated(call.worker, call.result, call.now);
      break;
    case 'sampled':
      run.sampled(call.worker, call.observed, call.now);
      break;
    case 'learnLost':
      run.learnLost(call.seen);
      break;
    case 'stop':
      run.stop(call.reason);
      break;
    case 'test':
      run.test();
      break;
    case 'tested':
      run.tested(call.at);
      break;
    case 'resume':
      run.resume();
      break;
  }
}
