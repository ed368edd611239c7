import { type NumberForm, numberReader, shown } from './cells.ts';
import { type Form, formOf } from './table-profile.ts';

/** Why a trimmed text is no number, and what to do. @param role of its column */
export function numberProblem(
  text: string,
  form: NumberForm = {},
  role: 'input' | 'target' = 'input',
): string {
  const seen = `'${shown(text)}'`;
  const forms: NumberForm[] = [
    { decimal: '.' },
    { decimal: ',' },
    ...[',', ' ', "'"].map((thousands): NumberForm => ({ decimal: '.', thousands })),
    ...['.', ' ', "'"].map((thousands): NumberForm => ({ decimal: ',', thousands })),
  ];
  const ways: string[] = [];
  for (const other of forms) {
    const value = numberReader(other)(text);
    const way = `reads it as ${value}`;
    if (Number.isNaN(value) || ways.some((known) => known.endsWith(way))) continue;
    ways.push(`\`${formText(other, form)}\` ${way}`);
  }
  if (ways.length > 0) return `${seen} is no number: ${ways.join(', ')}`;
  return `${seen} ${PROBLEMS[formOf(text)](text, OTHERWISE[role])}`;
}

/** What else the column may be. */
const OTHERWISE = {
  input: 'name the column in `categorical` or `ignore`',
  target: "say `task: 'classification'` if the column holds classes",
};

const correct = (_: string, otherwise: string) => `is no number; correct it, or ${otherwise}`;

const PROBLEMS: Readonly<Record<Form, (text: string, otherwise: string) => string>> = {
  infinite: () => 'is not finite; give a number, or remove the line',
  tooLarge: () => 'is more than a 64-bit number can hold; scale the column',
  percent: () => 'is no number; take the % out of the column',
  money: () => 'is no number; take the currency out of the column',
  unit: () => 'is no number; take the unit out of the column',
  grouped: correct,
  decimalComma: correct,
  code: correct,
  date: () =>
    'is no number, but a date or a time; make numbers of the column, such as days since the first one',
  absent: (text, otherwise) =>
    `is no number; if it says that the value is missing, fill it in or remove the line (\`missing: ['${shown(text)}']\` says so of all); else ${otherwise}`,
  text: (text, otherwise) => {
    if (/^[+-]?0[xbo][\da-f]+$/i.test(text)) return 'is no decimal number; write it as one';
    if (/^'.*'$/.test(text)) return 'is no number; `quote: "\'"` takes its quotes off';
    return /^(true|false)$/i.test(text)
      ? `is no number; write 1 and 0, or ${otherwise}`
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
