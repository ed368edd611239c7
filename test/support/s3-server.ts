import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { AwsClient } from 'aws4fetch';
import type { S3Place } from '../../server/checkpoints/elsewhere/s3.ts';
import { pythonEnvironment } from './python.ts';

/** An S3 server of the tests' own: moto, which checks who asks, on a free port of this machine. */
export interface S3Server {
  readonly port: number;
  /** A bucket of its own, empty. @param port of a proxy before the server. */
  place(port?: number): Promise<S3Place>;
  stop(): Promise<void>;
}

/** Requests that make the user, before moto begins to check. */
const MAKING = 3;

export async function startS3(): Promise<S3Server> {
  const child: ChildProcess = spawn('python3', ['-u', '-m', 'moto.server', '-p', '0'], {
    env: { ...pythonEnvironment(), INITIAL_NO_AUTH_ACTION_COUNT: String(MAKING) },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const port = await portOf(child);
  const server = `http://127.0.0.1:${port}`;
  await askIam(server, { Action: 'CreateUser', UserName: 'server' });
  const Statement = [{ Effect: 'Allow', Action: 's3:*', Resource: '*' }];
  const PolicyDocument = JSON.stringify({ Version: '2012-10-17', Statement });
  const policy = { UserName: 'server', PolicyName: 'copies', PolicyDocument };
  await askIam(server, { Action: 'PutUserPolicy', ...policy });
  const keys = await askIam(server, { Action: 'CreateAccessKey', UserName: 'server' });
  const of = (name: string) => new RegExp(`<${name}>([^<]+)<`).exec(keys)![1]!;
  const [accessKeyId, secretAccessKey] = [of('AccessKeyId'), of('SecretAccessKey')];
  const region = 'us-east-1';
  const client = new AwsClient({ accessKeyId, secretAccessKey, region, service: 's3', retries: 0 });
  let count = 0;
  return {
    port,
    async place(through = port) {
      const bucket = `bucket-${++count}`;
      const { ok } = await client.fetch(`${server}/${bucket}`, { method: 'PUT' });
      if (!ok) throw new Error('no bucket could be made');
      const endpoint = `http://127.0.0.1:${through}`;
      return { endpoint, region, bucket, prefix: 'team/', accessKeyId, secretAccessKey };
    },
    async stop() {
      const gone = once(child, 'exit');
      child.kill('SIGKILL');
      await gone;
    },
  };
}

async function portOf(child: ChildProcess): Promise<number> {
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stderr! })) {
    lines.push(line);
    const [, port] = /Running on http:\/\/127\.0\.0\.1:(\d+)/.exec(line) ?? [];
    if (port === undefined) continue;
    child.stderr!.resume();
    return Number(port);
  }
  throw new Error(`moto ended:\n${lines.join('\n')}`);
}

async function askIam(server: string, body: Record<string, string>): Promise<string> {
  const response = await fetch(server, {
    method: 'POST',
    headers: {
      // Which service is meant; the signature is not looked at yet.
      authorization:
        'AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=x',
    },
    body: new URLSearchParams({ ...body, Version: '2010-05-08' }),
  });
  if (!response.ok) throw new Error(`moto: ${await response.text()}`);
  return response.text();
}
