import type { ColumnReading, Reading, TextReading } from '../../shared/reading.ts';
import type { AboutField } from '../../worker/serving/fields.ts';
import type { AboutIds } from '../../worker/serving/id-places.ts';

/** `README.md` beside an exported model: what a stranger needs to use it. */

interface ModelOrigin {
  readonly run?: string;
  readonly experiment?: string;
  readonly step?: number;
  readonly classes?: readonly string[] | null;
  readonly targetNames?: readonly string[] | null;
  readonly inputShape?: readonly number[];
  readonly reading?: Reading;
  readonly fields?: readonly (AboutField & { readonly vocabulary?: readonly string[] })[];
  /** The texts of the ids of an only input. */
  readonly vocabulary?: readonly string[];
  readonly idPlaces?: readonly AboutIds[];
  /** The names of several models. */
  readonly models?: readonly string[];
}

/** @param about what `downpour.json` has. */
export function readme(about: ModelOrigin): string {
  const { run, experiment, step, reading, fields = [] } = about;
  const targets = fields.filter(({ role }) => role === 'target');
  const answer =
    targets.length > 0
      ? targets
          .map(({ name, classes, names }) => {
            return `\`${name}\` (${answerText({ classes, targetNames: names })})`;
          })
          .join(', ')
      : answerText(about);
  return `# A model for TensorFlow.js

Trained by Downpour: experiment \`${experiment}\`, run \`${run}\`, step ${step}. It answers with ${answer}.

${inputsText(about, reading)}${wordsText(about)}

## In Node.js

\`\`\`sh
npm install @tensorflow/tfjs
\`\`\`

\`\`\`js
import * as tf from '@tensorflow/tfjs';
import { openModel } from './predict.js';

const model = await openModel(tf);
console.log(await model.predict([${exampleOf(about, reading)}]));
\`\`\`

${unknownText(reading)}\`tfjs-node\` is not needed; with it the same code is faster. Save the program as an ES module: a \`.mjs\` file, or
\`"type": "module"\` in \`package.json\`.

## In a browser

Put this folder on a web server, and import \`predict.js\` from a module script:

\`\`\`html
<script src="https://cdn.jsdelivr.net/npm/@tensorflow/tfjs"></script>
<script type="module">
  import { openModel } from './predict.js';
  const model = await openModel(tf);
</script>
\`\`\`

## Files

- \`model.json\`, \`weights.bin\`: the model, for \`tf.loadLayersModel\`. It takes standardised inputs; \`predict.js\` standardises them.
- \`downpour.json\`: names of classes and inputs, how the data were read, the standardisation, the configuration, the errors measured.
- \`predict.js\`: reads examples as the training did, and says what the outputs mean.
${placesText(about)}`;
}

/** The same for several models that an objective trained: each is opened alone. */
export function readmeOfModels({ run, experiment, step, models = [] }: ModelOrigin): string {
  const files = models
    .map((name) => `- \`${name}/model.json\`, \`${name}/weights.bin\``)
    .join('\n');
  const opened = models.map((name) => {
    return `const ${variableOf(name)} = await open('${name}');`;
  });
  return `# ${models.length} models for TensorFlow.js

Trained by Downpour: experiment \`${experiment}\`, run \`${run}\`, step ${step}. What the models take and give is said by the experiment, whose objective
uses them together. \`model.inputs\` and \`model.outputs\` have the shapes.

## In Node.js

\`\`\`sh
npm install @tensorflow/tfjs
\`\`\`

\`\`\`js
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';

async function open(name) {
  const { modelTopology, weightsManifest } = JSON.parse(await readFile(\`\${name}/model.json\`, 'utf8'));
  const weightData = new Uint8Array(await readFile(\`\${name}/weights.bin\`)).buffer;
  const weightSpecs = weightsManifest.flatMap(({ weights }) => weights);
  return tf.loadLayersModel(tf.io.fromMemory({ modelTopology, weightSpecs, weightData }));
}

${opened.join('\n')}
\`\`\`

In a browser, use \`await tf.loadLayersModel('${models[0]}/model.json')\`.

## Files

${files}
- \`downpour.json\`: where the models come from, and their data
`;
}

/** A name of a model may be a word of JavaScript. */
const variableOf = (name: string) => `${name}Model`;

/** The only input has no name of its own. */
const ONLY = 'inputs';

/** Which ids a field takes; null: it has none. */
function idsText({ idPlaces = [] }: ModelOrigin, field: string, isId: boolean): string | null {
  const own = idPlaces.find(({ fields }) => fields.includes(field));
  if (!own) return isId ? 'whole numbers, which are ids' : null;
  const padding = own.zeroIsPadding ? '0 and negative numbers are' : 'a negative number is';
  return own.ids === null
    ? `ids, whole numbers; an id that the training has not seen counts as zeros; ${padding} padding`
    : `ids, whole numbers from 0 to ${own.ids - 1}; ${padding} padding`;
}

/** Where the texts of ids are; empty: there are none. */
function wordsText(about: ModelOrigin): string {
  const given = inputFields(about).filter(({ vocabulary }) => vocabulary);
  if (given.length > 0) {
    const names = given.map(({ name }) => `\`${name}\``).join(', ');
    return `

The ids of ${names} have texts: \`vocabulary\` of the entry of this name in \`fields\` of \`downpour.json\`. The place of a text in this list,
from 0, is its id.`;
  }
  return about.vocabulary
    ? '\n\nThe ids have texts: `vocabulary` of `downpour.json`. The place of a text in this list, from 0, is its id.'
    : '';
}

/** What ids become, for a program that opens the model without `predict.js`. */
function placesText({ idPlaces = [] }: ModelOrigin): string {
  if (idPlaces.length === 0) return '';
  const keys = idPlaces.flatMap(({ keys }) => keys ?? []);
  const listed =
    keys.length > 0
      ? `\n- ${keys.map((file) => `\`${file}\``).join(', ')}: ids, as uint32 in little-endian order. The first one has place 1.`
      : '';
  return `${listed}

The model looks ids up by their places in its embeddings. \`predict.js\` finds them; a program that uses \`model.json\` alone must do it by
\`idPlaces\` of \`downpour.json\`: padding has the place \`padding\`. Where \`ids\` is a number, other ids are their own places. Where it is null, the place of an id is
where the file \`keys\` has it, from 1, and the place of an id that is not in the file is one more than the file has.
`;
}

function answerText({ classes, targetNames }: ModelOrigin): string {
  if (classes) return `one of ${classes.length} classes: ${listed(classes)}`;
  if (!targetNames || targetNames.length === 0) return 'numbers';
  return `the number${targetNames.length === 1 ? '' : 's'} ${listed(targetNames)}`;
}

const inputFields = ({ fields = [] }: ModelOrigin) =>
  fields.filter(({ role }) => role !== 'target');

function inputsText(about: ModelOrigin, reading: Reading | undefined): string {
  const { inputShape } = about;
  const given = inputFields(about);
  if (given.length > 0) {
    const rows = given.map(({ name, role, kind, shape, names, pad, inputTransform }) => {
      const isId = role === 'input' && kind === 'int32' && inputTransform?.kind === 'none';
      const ids = idsText(about, name, isId);
      const ends = pad === undefined ? '' : `; a shorter one is padded with ${pad}`;
      const what = shape.length === 0 ? 'a number' : `numbers of shape [${shape}]`;
      const kindText =
        role === 'mask' ? '1 for numbers, 0 for padding; may be left out' : (ids ?? kind);
      return `| ${name} | ${what}${names ? `: ${listed(names)}` : ''}${ends} | ${kindText} |`.replaceAll(
        '\n',
        ' ',
      );
    });
    return `An example is an object with these fields. Each is a number or an array:

| field | is | type |
|---|---|---|
${rows.join('\n')}`;
  }
  if (!reading) {
    const ids = idsText(about, ONLY, false);
    return `An example is an array of numbers, of shape [${inputShape}]${ids === null ? '' : `: ${ids}`}.`;
  }
  if (reading.kind === 'images') {
    const { width, height, channels, fit } = reading;
    const sizes = fit ? `brought to ${width}×${height}` : `which must be ${width}×${height}`;
    return `An example is a picture, ${sizes}, in ${channels === 1 ? 'grey' : 'colour'}: \`{ width, height, data }\`, as \`getImageData\` of a canvas gives it.`;
  }
  if (reading.kind === 'text') return textExample(reading);
  const rows = reading.columns.map(
    (column) =>
      `| ${column.name.replaceAll('|', '\\|')} | ${kindOf(column)} | ${column.gap || reading.missing === 'mean' ? 'yes' : 'no'} |`,
  );
  return `An example is an object with these columns:

| column | is | may be missing |
|---|---|---|
${rows.join('\n')}`;
}

function textExample({ as, length, tokens, column = 'text' }: TextReading): string {
  if (as === 'next' || tokens === 'tokenizer') {
    return `An example is an array of ${length} tokens, by their numbers. \`reading\` of \`downpour.json\` says which tokens they are.`;
  }
  return `An example is a text, or an object \`{ ${JSON.stringify(column)}: "some words" }\`. The first ${length} tokens count.`;
}

/** Only names can be new to the model. */
function unknownText(reading: Reading | undefined): string {
  if (reading?.kind !== 'table' || !reading.columns.some(({ as }) => as === 'category')) return '';
  return `A name that the model has never seen is an error. \`openModel(tf, undefined, { unknown: 'none' })\` takes it as none of the
names in its column.

`;
}

function kindOf(column: ColumnReading): string {
  switch (column.as) {
    case 'number':
      return column.unit === undefined ? 'a number' : `a number, in ${column.unit}`;
    case 'category':
      return `one of ${listed(column.names)}`.replaceAll('|', '\\|');
    case 'date':
      return column.time ? 'a date with a time' : 'a date';
    case 'hashed':
      return 'a text';
  }
}

const SHOWN_MAX = 12;

function listed(names: readonly string[]): string {
  const shown = names.slice(0, SHOWN_MAX).join(', ');
  return names.length > SHOWN_MAX
    ? `${shown}, … (${names.length} in all; see \`downpour.json\`)`
    : shown;
}

function exampleOf(about: ModelOrigin, reading: Reading | undefined): string {
  const { inputShape = [] } = about;
  const given = inputFields(about);
  if (given.length > 0) {
    const values = given.map(({ name, shape }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return `${JSON.stringify(name)}: ${size === 1 ? '0' : `[/* ${size} numbers */]`}`;
    });
    return `{ ${values.join(', ')} }`;
  }
  if (reading?.kind === 'images') return 'picture';
  if (reading?.kind === 'text' && reading.as === 'padded' && reading.tokens !== 'tokenizer') {
    return JSON.stringify('some words');
  }
  if (!reading || reading.kind === 'text') {
    return `[/* ${inputShape.reduce((a, b) => a * b, 1)} numbers */]`;
  }
  const values = reading.columns.map(
    (column) => `${JSON.stringify(column.name)}: ${JSON.stringify(sampleOf(column))}`,
  );
  return `{ ${values.join(', ')} }`;
}

function sampleOf(column: ColumnReading): string | number {
  switch (column.as) {
    case 'number':
      return 0;
    case 'category':
      return column.names[0]!;
    case 'date':
      return column.time ? '2024-12-31T18:30' : '2024-12-31';
    case 'hashed':
      return 'some words';
  }
}
