import { Argument, type Command, type Option } from 'commander';
import { examples } from './options.ts';

/**
 * `downpour completion <shell>`: a script that completes commands, options, their choices and file names, made of
 * the same definitions as the help. Names of runs are asked of the server while typing.
 */

const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** `completion`. */
export function registerCompletion(program: Command): void {
  program
    .command('completion')
    .description('print a script that completes commands and options in your shell')
    .addArgument(new Argument('<shell>', 'name of the shell').choices(SHELLS))
    .addHelpText(
      'after',
      examples('downpour completion fish | source', 'source <(downpour completion bash)'),
    )
    .action((shell: Shell) => {
      completionCommand(program, shell);
    });
}

function completionCommand(program: Command, shell: Shell): void {
  process.stdout.write(`${{ bash, zsh, fish }[shell](commandsOf(program)).trimEnd()}\n`);
}

interface Completed {
  /** Words after the program's name, such as `engine install`; empty: the program itself. */
  readonly path: string;
  readonly description: string;
  readonly options: readonly Option[];
  /** Commands below it. */
  readonly words: readonly { readonly name: string; readonly description: string }[];
  readonly argument: 'run' | 'file' | 'none';
}

/** Every command, depth first. */
function commandsOf(command: Command, path: readonly string[] = []): Completed[] {
  const help = command.createHelp();
  const below = help.visibleCommands(command);
  const own: Completed = {
    path: path.join(' '),
    description: command.description(),
    options: help.visibleOptions(command),
    words: below.map((each) => ({ name: each.name(), description: each.description() })),
    argument: kindOf(command.registeredArguments[0]),
  };
  const registered = below.filter((each) => command.commands.includes(each));
  return [own, ...registered.flatMap((each) => commandsOf(each, [...path, each.name()]))];
}

const kindOf = (argument: Argument | undefined): Completed['argument'] =>
  argument === undefined ? 'none' : argument.name().startsWith('run') ? 'run' : 'file';

const flagsOf = ({ short, long }: Option) => [short, long].filter((flag) => flag !== undefined);
/** What follows it: nothing, one of its choices, or any word or file. */
const valuesOf = (option: Option): 'none' | 'any' | readonly string[] =>
  option.isBoolean() || !(option.required || option.optional)
    ? 'none'
    : (option.argChoices ?? 'any');

/** The runs of the server that is asked when nothing else is said; nothing when there is none. */
const RUNS = `downpour status --json 2>/dev/null | sed -n 's/^ *"id": "\\([^"]*\\)".*/\\1/p'`;

/** The longest path of commands that the words before the cursor begin with. */
const SHELL_PATH = (paths: readonly string[]) => paths.map((path) => `'${path}'`).join(' ');

function bash(commands: readonly Completed[]): string {
  const paths = commands.map(({ path }) => path).filter((path) => path !== '');
  const cases = commands.map(({ path, options, words, argument }) => {
    const all = [...options.flatMap(flagsOf), ...words.map(({ name }) => name)].join(' ');
    const rest =
      argument === 'run'
        ? `[[ $word != -* ]] && COMPREPLY+=($(compgen -W "$(${RUNS})" -f -- "$word"))`
        : argument === 'file'
          ? `[[ $word != -* ]] && COMPREPLY+=($(compgen -f -- "$word"))`
          : ':';
    const values = options.flatMap((option) => {
      const of = valuesOf(option);
      if (of === 'none') return [];
      const reply = of === 'any' ? 'compgen -f' : `compgen -W '${of.join(' ')}'`;
      return [
        `        ${flagsOf(option).join('|')}) COMPREPLY=($(${reply} -- "$word")); return ;;`,
      ];
    });
    return `    '${path}')
      case $before in
${values.join('\n')}
      esac
      COMPREPLY=($(compgen -W '${all}' -- "$word"))
      ${rest} ;;`;
  });
  return `# bash completion of downpour: source <(downpour completion bash)
_downpour() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} path='' known found each
  COMPREPLY=()
  for each in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    found=''
    for known in ${SHELL_PATH(paths)}; do
      [[ $known == "\${path:+$path }$each" ]] && found=$known
    done
    [[ -n $found ]] && path=$found
  done
  case $path in
${cases.join('\n')}
  esac
}
complete -o filenames -F _downpour downpour
`;
}

const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

function zsh(commands: readonly Completed[]): string {
  const paths = commands.map(({ path }) => path).filter((path) => path !== '');
  const described = (name: string, description: string) =>
    quoted(`${name}:${description.replaceAll(':', '\\:')}`);
  const cases = commands.map(({ path, options, words, argument }) => {
    const all = [
      ...options.flatMap((option) =>
        flagsOf(option).map((flag) => described(flag, option.description)),
      ),
      ...words.map(({ name, description }) => described(name, description)),
    ];
    const values = options.flatMap((option) => {
      const of = valuesOf(option);
      if (of === 'none') return [];
      const reply = of === 'any' ? '_files' : `compadd -- ${of.join(' ')}`;
      return [`        ${flagsOf(option).join('|')}) ${reply}; return ;;`];
    });
    const rest =
      argument === 'run'
        ? `compadd -- \${(f)"$(${RUNS})"}; _files`
        : argument === 'file'
          ? '_files'
          : ':';
    return `    ${quoted(path)})
      case $words[CURRENT-1] in
${values.join('\n')}
      esac
      all=(${all.join('\n        ')})
      _describe 'downpour' all
      [[ $words[CURRENT] == -* ]] || { ${rest} } ;;`;
  });
  return `#compdef downpour
# zsh completion of downpour: source <(downpour completion zsh)
_downpour() {
  local taken='' known found each
  local -a all
  for each in \${words[2,CURRENT-1]}; do
    found=''
    for known in ${SHELL_PATH(paths)}; do
      [[ $known == "\${taken:+$taken }$each" ]] && found=$known
    done
    [[ -n $found ]] && taken=$found
  done
  case $taken in
${cases.join('\n')}
  esac
}
compdef _downpour downpour
`;
}

function fish(commands: readonly Completed[]): string {
  const paths = commands.map(({ path }) => path).filter((path) => path !== '');
  const lines = commands.flatMap(({ path, options, words, argument }) => {
    const when = `-n ${quoted(`__downpour_at ${quoted(path)}`)}`;
    return [
      ...words.map(
        ({ name, description }) =>
          `complete -c downpour ${when} -f -a ${name} -d ${quoted(description)}`,
      ),
      ...options.map((option) => {
        const { short, long, description } = option;
        const of = valuesOf(option);
        const value = of === 'none' ? '' : of === 'any' ? ' -r -F' : ` -x -a '${of.join(' ')}'`;
        const flags = [
          ...(short === undefined ? [] : [`-s ${short.slice(1)}`]),
          ...(long === undefined ? [] : [`-l ${long.slice(2)}`]),
        ];
        return `complete -c downpour ${when} ${flags.join(' ')}${value} -d ${quoted(description)}`;
      }),
      ...(argument === 'run' ? [`complete -c downpour ${when} -a ${quoted(`(${RUNS})`)}`] : []),
      ...(argument === 'none' && path !== '' ? [`complete -c downpour ${when} -f`] : []),
    ];
  });
  return `# fish completion of downpour: downpour completion fish | source
function __downpour_at
  set -l taken ''
  for each in (commandline -opc)[2..]
    for known in ${SHELL_PATH(paths)}
      if test $known = (string trim "$taken $each")
        set taken $known
        break
      end
    end
  end
  test "$taken" = "$argv[1]"
end
${lines.join('\n')}
`;
}
