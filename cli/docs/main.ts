import { writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { type Command, Help, type Option } from 'commander';
import { createProgram } from '../main.ts';
import { ACCESS_OPTIONS, CONNECTION_OPTIONS } from '../options.ts';
import { CONFIG_PAGE, configPage } from './config-page.ts';
import { writeGlossaryLinks } from './glossary.ts';
import { MESSAGES_PAGE, messagesPage } from './protocol-page.ts';
import { REST_PAGE, restPage } from './rest-page.ts';
import { VECTORS, vectorsPage } from './vectors.ts';

/** `npm run docs`: writes the pages of docs/ that are made from the code, and links the glossary in all others. */

const PAGE = new URL('../../docs/cli.md', import.meta.url);

/** Options that many commands share: a section each, and a link from each command that takes them. */
const SHARED = [
  {
    heading: CONNECTION_OPTIONS,
    title: 'Connection options',
    text: 'Commands that connect to a server use these options for its token and for TLS.',
  },
  {
    heading: ACCESS_OPTIONS,
    title: 'Access and TLS options',
    text: '`serve` and `shard` use these options for tokens, for TLS and for the TLS connection to Redis. [SECURITY.md](../SECURITY.md) explains the roles.',
  },
] as const;

/** The page in Markdown: the help of every command. */
export async function helpPage(): Promise<string> {
  const program = await createProgram({ exitCode: 0 });
  const [main, ...others] = withSubcommands(program, []);
  const sections = [
    '# The command line',
    '`npm run docs` writes this page from the help of the commands. To change it, change their help. In a clone of the project the command is `npx downpour`.',
    'An error is one line on standard error: `error DP_CODE: message`. With `DOWNPOUR_DEBUG=1` the stack trace follows. If an option names an environment variable (`env:`), you can set that variable instead. An option on the command line overrides the variable.',
    sectionOf(main!),
    ...SHARED.map(({ heading, title, text }) => {
      const options = others
        .map(({ command }) => command.options.filter(isUnder(heading)))
        .find(({ length }) => length > 0);
      return `## ${title}\n\n${text}\n\n${block(itemsOf(options ?? []))}`;
    }),
    ...others.map(sectionOf),
  ];
  return `${sections.join('\n\n')}\n`;
}

function sectionOf({ command, path }: { command: Command; path: string[] }): string {
  const links = SHARED.filter(({ heading }) => command.options.some(isUnder(heading))).map(
    ({ title }) => `More options: [${title}](#${title.toLowerCase().replaceAll(' ', '-')}).`,
  );
  return [`## ${path.join(' ')}`, block(helpOf(command)), ...links].join('\n\n');
}

const isUnder = (heading: string) => (option: Option) => option.helpGroupHeading === heading;
const isShared = (option: Option) => SHARED.some(({ heading }) => isUnder(heading)(option));
const block = (text: string) => `\`\`\`text\n${text.trimEnd()}\n\`\`\``;

/** Options with their help, one below the other, as commander writes them. */
function itemsOf(options: readonly Option[]): string {
  const help = new Help();
  help.prepareContext({ helpWidth: WIDTH });
  const width = Math.max(...options.map((option) => help.optionTerm(option).length));
  return options
    .map((option) =>
      help.formatItem(help.optionTerm(option), width, help.optionDescription(option), help),
    )
    .join('\n');
}

const WIDTH = 100;

function withSubcommands(
  command: Command,
  above: string[],
): { command: Command; path: string[] }[] {
  const path = [...above, command.name()];
  return [{ command, path }, ...command.commands.flatMap((child) => withSubcommands(child, path))];
}

function helpOf(command: Command): string {
  let text = '';
  command.configureHelp({
    ...command.configureHelp(),
    visibleOptions: (of) =>
      Help.prototype.visibleOptions.call(new Help(), of).filter((option) => !isShared(option)),
  });
  command.configureOutput({
    writeOut: (part) => {
      text += part;
    },
    getOutHelpWidth: () => WIDTH,
  });
  command.outputHelp();
  return text;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  writeFileSync(PAGE, await helpPage());
  writeFileSync(CONFIG_PAGE, configPage());
  writeFileSync(VECTORS, await vectorsPage());
  writeFileSync(MESSAGES_PAGE, messagesPage());
  writeFileSync(REST_PAGE, await restPage());
  writeGlossaryLinks();
}
