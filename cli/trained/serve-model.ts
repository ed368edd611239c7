import swagger from '@fastify/swagger';
import Fastify, { type FastifyError, type FastifyInstance, type FastifyReply } from 'fastify';
import Type from 'typebox';
import { describeBadAddress, describeError } from '../../server/http/describe-error.ts';
import { DownpourError, ERRORS } from '../../shared/errors.ts';
import type { Prediction } from '../../shared/prediction.ts';
import { VERSION } from '../../shared/version.ts';
import { decodePicture } from '../../worker/data/pictures/pictures.ts';
import { BadExample } from '../../worker/serving/encode.ts';
import { print, untilInterrupted } from '../options.ts';
import {
  openPredictor,
  type Predictor,
  type PredictorInputs,
  type PredictorOptions,
} from './predictor.ts';

/** `downpour serve-model <run>`: a trained model behind `POST /predict`. */

export interface ServeModelOptions extends PredictorOptions {
  readonly host: string;
  readonly port: number;
}

/** Examples of one request. */
const EXAMPLES_MAX = 10_000;
const BODY_BYTES_MAX = 64 * 2 ** 20;

export async function serveModelCommand(what: string, options: ServeModelOptions): Promise<void> {
  const predictor = await openPredictor(what, options);
  // Before, Ctrl-C ends it at once.
  const interruption = untilInterrupted();
  const app = await modelApp(predictor);
  try {
    const url = await app.listen({ host: options.host, port: options.port }).catch((cause) => {
      throw new DownpourError(
        'DP_USAGE',
        `cannot listen on ${options.host}:${options.port}: ${cause.message}; choose another --port`,
        { cause },
      );
    });
    print(`${predictor.facts.run}, step ${predictor.facts.step}, answers at ${url}/predict`);
    await new Promise<void>((resolve) => {
      if (interruption.signal.aborted) resolve();
      else interruption.signal.addEventListener('abort', () => resolve(), { once: true });
    });
  } finally {
    await app.close();
    predictor.close();
    interruption.dispose();
  }
}

const PredictBody = Type.Object(
  {
    examples: Type.Array(Type.Unknown(), {
      maxItems: EXAMPLES_MAX,
      description:
        'Rows of a table as objects by column; pictures as `{ "picture": "<base64 of a file>" }`; objects by the names of fields; or the numbers of each example.',
    }),
  },
  { additionalProperties: false },
);
const PredictAnswer = Type.Object({
  run: Type.String(),
  step: Type.Integer(),
  predictions: Type.Array(
    Type.Object({
      prediction: Type.Unknown({
        description:
          'Name of a class, a number, or numbers by name; several outputs by their names.',
      }),
      confidence: Type.Optional(Type.Unknown({ description: 'Probability of the class.' })),
      probabilities: Type.Optional(Type.Unknown({ description: 'Of each class, by name.' })),
    }),
  ),
});
const ErrorAnswer = Type.Object({ code: Type.String(), message: Type.String() });

/** The routes around a model. Requests that come while it computes are answered together. */
export async function modelApp(predictor: Predictor): Promise<FastifyInstance> {
  const { about, encode, facts, reading } = predictor;
  const app = Fastify({
    ...{ bodyLimit: BODY_BYTES_MAX, forceCloseConnections: true },
    frameworkErrors: (error, _, reply) => {
      const { code, message } = describeBadAddress(error);
      return (reply as FastifyReply).code(ERRORS[code].http).send({ code, message });
    },
  });
  await app.register(swagger, {
    openapi: { info: { title: `Model of run ${facts.run}`, version: VERSION } },
  });
  app.setErrorHandler((error: FastifyError | Error, _, reply) => {
    const { code, message } = described(error);
    return reply.code(ERRORS[code].http).send({ code, message });
  });
  app.setNotFoundHandler((request, reply) =>
    reply.code(404).send({
      code: 'DP_NOT_FOUND',
      message: `no ${request.method} ${request.url.slice(0, 200)}; POST /predict answers to examples`,
    }),
  );
  const predict = together(predictor);
  const answers = { 200: PredictAnswer, '4xx': ErrorAnswer, '5xx': ErrorAnswer };
  app.post<{ Body: { examples: unknown[] } }>(
    '/predict',
    { schema: { body: PredictBody, response: answers, summary: 'Answer to examples' } },
    async ({ body: { examples } }) => {
      const given =
        reading?.kind === 'images' ? await Promise.all(examples.map(picture)) : examples;
      const predictions = await predict(encode(given), examples.length);
      return { run: facts.run, step: facts.step, predictions };
    },
  );
  app.get(
    '/',
    { schema: { summary: 'What the model is: names, shapes, how data are read' } },
    () => about,
  );
  app.get('/health', { schema: { summary: 'Whether it answers' } }, () => ({ status: 'ok' }));
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());
  await app.ready();
  return app;
}

/** A file of a picture in base64, as `encode` takes pictures. */
async function picture(example: unknown, i: number): Promise<unknown> {
  const text = (example as { picture?: unknown } | null)?.picture;
  if (typeof text !== 'string') return example;
  const { width, height, rgba } = await decodePicture(Buffer.from(text, 'base64'), `example ${i}`);
  return { width, height, data: rgba };
}

function described(error: FastifyError | Error) {
  if (error instanceof BadExample)
    return { code: 'DP_BODY_INVALID', message: error.message } as const;
  return describeError(error as FastifyError, BODY_BYTES_MAX);
}

interface WaitingRequest {
  readonly inputs: PredictorInputs;
  readonly examples: number;
  resolve(predictions: Prediction[]): void;
  reject(error: unknown): void;
}

/** One call of the model for all requests that wait: a minibatch costs little more than one example. */
function together({ predict }: Predictor): Predictor['predict'] {
  let waiting: WaitingRequest[] = [];
  let isBusy = false;
  const work = async () => {
    isBusy = true;
    while (waiting.length > 0) {
      const all = waiting;
      waiting = [];
      try {
        const told = await predict(
          joinedInputs(all.map(({ inputs }) => inputs)),
          all.reduce((sum, { examples }) => sum + examples, 0),
        );
        for (const each of all) each.resolve(told.splice(0, each.examples));
      } catch (error) {
        for (const each of all) each.reject(error);
      }
    }
    isBusy = false;
  };
  return (inputs, examples) =>
    new Promise((resolve, reject) => {
      if (examples === 0) return resolve([]);
      waiting.push({ inputs, examples, resolve, reject });
      if (!isBusy) void work();
    });
}

/** The rows of all requests behind each other. */
function joinedInputs(all: readonly PredictorInputs[]): PredictorInputs {
  const [first] = all;
  if (all.length === 1) return first!;
  return Object.fromEntries(
    Object.entries(first!).map(([name, { values, shape }]) => {
      const Values = values instanceof Int32Array ? Int32Array : Float32Array;
      const joined = new Values(all.reduce((sum, each) => sum + each[name]!.values.length, 0));
      let at = 0;
      for (const each of all) {
        joined.set(each[name]!.values, at);
        at += each[name]!.values.length;
      }
      return [name, { values: joined, shape }];
    }),
  );
}
