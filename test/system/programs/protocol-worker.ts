import { ProtocolWorker } from '../../support/protocol-worker.ts';
import { createProblem } from '../../support/regression.ts';

// A worker in a process of its own, to be halted. Argument: the server's URL.

const problem = createProblem();
const worker = await ProtocolWorker.connect(process.argv[2]!, { name: 'halted' });
await worker.work(problem, await worker.enter(problem));
worker.close();
