// The process that makes the files of `/join`: it runs the experiments, which the server must not.
import { register } from 'tsx/esm/api';

register();
// The server has ended: nobody waits for it.
process.once('disconnect', () => process.exit(1));
const { bundle } = await import('./join-bundle.ts');
process.once('message', async (options) => {
  const answer = await bundle(options, (log) => process.send({ log })).then(
    (manifest) => ({ manifest }),
    ({ code = 'DP_INTERNAL', message, stack }) => ({ error: { code, message, stack } }),
  );
  process.send(answer, () => process.exit(0));
});
