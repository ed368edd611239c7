import { type NumberForm, numberReader, shown } from './cells.ts';
import { type CellForm, formOf } from './table-profile.ts';

/** Why a trimmed text is not a number, and what to do. @param role of its column */
export function numberProblem(
  text: string,
  form: NumberForm = {},
  role: keyof typeof OTHERWISE = 'input',
): string {
  const seen = `'${shown(text)}'`;
  const ways = readableForms(text).map(
    ({ form: other, value }) => `\`${formText(other, form)}\` reads it as ${value}`,
  );
  if (ways.length > 0) return `${seen} is not a number: ${ways.join(', ')}`;
  return `${seen} ${PROBLEMS[formOf(text)](text, OTHERWISE[role])}`;
}

const FORMS: readonly NumberForm[] = [
  { decimal: '.' },
  { decimal: ',' },
  ...[',', ' ', "'"].map((thousands): NumberForm => ({ decimal: '.', thousands })),
  ...['.', ' ', "'"].map((thousands): NumberForm => ({ decimal: ',', thousands })),
];

/** The forms in which a text is a number: of those that give the same number, the first. */
export function readableForms(
  text: string,
): readonly { readonly form: NumberForm; readonly value: number }[] {
  const found = new Map<number, NumberForm>();
  for (const form of FORMS) {
    const value = numberReader(form)(text);
    if (!Number.isNaN(value) && !found.has(value)) found.set(value, form);
  }
  return [...found].map(([value, form]) => ({ form, value }));
}

/** What else the column may be. */
const OTHERWISE = {
  input: 'name the column in `categorical` or `ignore`',
  target: "set `task: 'classification'` if the column holds classes",
  new: 'give the data in the form that the model was trained on',
};

const correct = (_: string, otherwise: string) => `is not a number; correct it, or ${otherwise}`;

const PROBLEMS: Readonly<Record<CellForm, (text: string, otherwise: string) => string>> = {
  infinite: () => 'is not finite; give a number, or remove the line',
  tooLarge: () => 'is more than a 64-bit number can hold; scale the column',
  percent: () => 'is not a number; take the % out of the column',
  money: () => 'is not a number; take the currency out of the column',
  unit: () => 'is not a number; name its unit in `units`, or take it out of the column',
  grouped: correct,
  decimalComma: correct,
  code: correct,
  date: () =>
    'is not a number but a date or a time; name the column in `dates`, or convert it to numbers, such as the hour',
  absent: (text, otherwise) =>
    `is not a number; if it means a missing value, fill it in, or set \`missingTexts: ['${shown(text)}']\` and \`missing: 'mean'\`; else ${otherwise}`,
  text: (text, otherwise) => {
    if (/^[+-]?0[xbo][\da-f]+$/i.test(text))
      return 'is not a decimal number; write it as a decimal';
    if (/^'.*'$/.test(text)) return 'is not a number; `quote: "\'"` removes the quotes';
    return /^(true|false)$/i.test(text)
      ? `is not a number; write 1 and 0, or ${otherwise}`
      : correct(text, otherwise);
  },
};

/** The options that make one form of another. */
function formText({ decimal, thousands }: NumberForm, given: NumberForm): string {
  const options = [
    ...(decimal === (given.decimal ?? '.') ? [] : [`decimal: '${decimal}'`]),
    ...(thousands === undefined ? [] : [`thousands: ${JSON.stringify(thousands)}`]),
  ];
  return options.join(', ');
}
