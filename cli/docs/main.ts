import { writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import type { Command } from 'commander';
import { createProgram } from '../main.ts';
import { CONFIG_PAGE, configPage } from './config-page.ts';
import { MESSAGES_PAGE, messagesPage } from './protocol-page.ts';
import { REST_PAGE, restPage } from './rest-page.ts';
import { VECTORS, vectorsPage } from './vectors.ts';

/** Writes the pages of docs/ that are made from the code: `npm run docs`. */

const PAGE = new URL('../../docs/cli.md', import.meta.url);

/** The page in Markdown: the help of every command. */
export async function helpPage(): Promise<string> {
  const program = await createProgram({ exitCode: 0 });
  const sections = [
    '# The command line',
    'Written by `npm run docs` from the commands themselves; change their help, not this page. In a clone of the project the command is `npx downpour`.',
    'An error is one line, `error DP_CODE: message`, on standard error; `DOWNPOUR_DEBUG=1` adds where it came from. Options that name an environment variable (`env:`) can be given by it; the command line wins.',
    ...withSubcommands(program, []).map(
      ({ command, path }) =>
        `## ${path.join(' ')}\n\n\`\`\`text\n${helpOf(command).trimEnd()}\n\`\`\``,
    ),
  ];
  return `${sections.join('\n\n')}\n`;
}

function withSubcommands(
  command: Command,
  above: string[],
): { command: Command; path: string[] }[] {
  const path = [...above, command.name()];
  return [{ command, path }, ...command.commands.flatMap((child) => withSubcommands(child, path))];
}

function helpOf(command: Command): string {
  let text = '';
  command.configureOutput({
    writeOut: (part) => {
      text += part;
    },
    getOutHelpWidth: () => 100,
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
}
