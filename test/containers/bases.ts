import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readCompose, readDockerfile } from '../support/deployment.ts';
import type { ContainerEngine } from './engine.ts';
import { attempt, run } from './shell.ts';

// The images that ours begin with, made of Debian's packages and Node.js from npm, under the names that the Dockerfile and
// the compose file give: where no registry of images is reached they stand in for those of the same names.

/** npm as the image of that Node.js brings it. */
const NPM: Readonly<Record<string, string>> = { 20: '10.8.2', 22: '10.9.4', 24: '11.6.2' };
const SUITE = 'bookworm';
const LABEL = 'downpour.base';

const DEBIAN = 'downpour-base:debian';
const INSTALL = 'apt-get install -y --no-install-recommends';
const CLEAN = 'rm -rf /var/lib/apt/lists/*';

/** What makes them. `ca.crt`, where there is one, are the authorities that this host trusts. */
const RECIPE = `
FROM ${DEBIAN} AS slim
COPY node /usr/local
COPY npm /usr/local/lib/node_modules/npm
COPY ca.crt /usr/local/share/downpour/ca.crt
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \\
  && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx \\
  && groupadd --gid 1000 node \\
  && useradd --uid 1000 --gid node --shell /bin/bash --create-home node
ENV NODE_EXTRA_CA_CERTS=/usr/local/share/downpour/ca.crt PIP_CERT=/usr/local/share/downpour/ca.crt
CMD ["node"]

FROM slim AS full
RUN apt-get update && ${INSTALL} g++ git make python3 && ${CLEAN}

FROM ${DEBIAN} AS redis
RUN groupadd --system --gid 999 redis \\
  && useradd --system --uid 999 --gid redis --home-dir /data redis \\
  && apt-get update && ${INSTALL} redis-server && ${CLEAN} \\
  && install -d -o redis -g redis /data \\
  && printf '#!/bin/sh\\nexec /usr/bin/redis-server "$@" --protected-mode no\\n' > /usr/local/bin/redis-server \\
  && chmod +x /usr/local/bin/redis-server
USER redis
WORKDIR /data
VOLUME /data
CMD ["redis-server"]
`;

/** Images that are not built by the Dockerfile itself, and the stage of the recipe that stands in for each. */
export function basesWanted(): { readonly name: string; readonly stage: string }[] {
  const stages = readDockerfile();
  const ours = stages.map(({ name }) => name);
  const { redis } = readCompose({ DOWNPOUR_TOKEN: 'none' }).services;
  const names = new Set([...stages.map(({ base }) => base), redis!.image]);
  return [...names]
    .filter((name) => !ours.includes(name))
    .map((name) => {
      if (name.startsWith('redis:')) return { name, stage: 'redis' };
      return { name, stage: name.endsWith('-slim') ? 'slim' : 'full' };
    });
}

/** Makes those that the engine lacks; a change of the recipe makes all again. */
export async function makeBases(
  { env, own }: ContainerEngine,
  log: (line: string) => void,
): Promise<void> {
  const major = /^node:(\d+)-/.exec(basesWanted()[0]!.name)![1]!;
  const recipe = createHash('sha256').update(`${major} ${SUITE} ${RECIPE}`).digest('hex');
  const isThere = async (name: string) => {
    const format = `{{ index .Config.Labels "${LABEL}" }}`;
    const words = ['docker', 'image', 'inspect', '--format', format, name];
    const { code, stdout } = await attempt(words, { env });
    // In somebody else's engine the real ones are as good.
    return code === 0 && (!own || stdout.trim() === recipe);
  };
  const missing: { name: string; stage: string }[] = [];
  for (const each of basesWanted()) if (!(await isThere(each.name))) missing.push(each);
  if (missing.length === 0) return;
  log(`making ${missing.map(({ name }) => name).join(', ')}`);
  const folder = mkdtempSync(join(tmpdir(), 'downpour-bases-'));
  try {
    const tar = join(folder, 'debian.tar');
    const packages = ['--include=ca-certificates', SUITE, tar];
    await run(['mmdebstrap', '--quiet', '--variant=minbase', ...packages], { timeoutMs: 300_000 });
    await run(['docker', 'import', tar, DEBIAN], { env, timeoutMs: 120_000 });
    rmSync(tar);
    const context = join(folder, 'context');
    mkdirSync(context);
    const node = `node-linux-${process.arch}@${major}`;
    for (const [to, name] of [
      ['node', node],
      ['npm', `npm@${NPM[major]}`],
    ] as const) {
      const at = join(folder, to);
      mkdirSync(at);
      mkdirSync(join(context, to));
      await run(['npm', 'pack', '--silent', name], { cwd: at, timeoutMs: 180_000 });
      const [file] = readdirSync(at);
      await run(['tar', '-xzf', join(at, file!), '--strip', '1', '-C', join(context, to)]);
    }
    const { NODE_EXTRA_CA_CERTS: authorities } = process.env;
    const ca = join(context, 'ca.crt');
    if (authorities) copyFileSync(authorities, ca);
    else await run(['cp', '/etc/ssl/certs/ca-certificates.crt', ca]);
    writeFileSync(join(context, 'Dockerfile'), RECIPE);
    for (const { name, stage } of missing) {
      const words = ['docker', 'build', '--target', stage, '--label', `${LABEL}=${recipe}`];
      await run([...words, '--tag', name, context], {
        env: { ...env, DOCKER_BUILDKIT: '0' },
        timeoutMs: 400_000,
      });
      log(`made ${name}`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
