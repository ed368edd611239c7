import { readRunReport, runReportHtml } from '../../shared/report/run-report.ts';
import type { CheckpointSummary, RunSummary } from '../../shared/rest.ts';
import { count } from '../format.ts';
import { h } from '../html.ts';
import { confirm, isActive, notify } from '../parts.ts';
import { download } from '../save.ts';
import { client } from '../store.ts';

/** What may be done with a run. */

/** One HTML file to send, with all that is known of the run. */
export function reportButton(id: string): HTMLElement {
  const save = async () => {
    try {
      const facts = await readRunReport(client, id);
      const html = runReportHtml(facts, new Date().toISOString());
      download(new Blob([html], { type: 'text/html' }), `${id}.html`);
    } catch (error) {
      notify((error as Error).message, 'error');
    }
  };
  return h('button', { class: 'button', type: 'button', onClick: () => void save() }, 'Report');
}

/** Buttons for what its phase allows. */
export function actionsOf(run: RunSummary): HTMLElement[] {
  const { id } = run;
  const act = async (what: string, action: () => Promise<unknown>) => {
    try {
      await action();
      notify(what);
    } catch (error) {
      notify((error as Error).message, 'error');
    }
  };
  const list: HTMLElement[] = [];
  if (isActive(run)) {
    list.push(
      h(
        'button',
        {
          class: 'button',
          type: 'button',
          onClick: () => void act('A checkpoint is written', () => client.checkpoint(id)),
        },
        'Checkpoint',
      ),
      h(
        'button',
        {
          class: 'button danger',
          type: 'button',
          onClick: async () => {
            const sure = await confirm(
              `Stop ${id}?`,
              'It leaves a checkpoint and can be resumed from there at any time.',
              'Stop the run',
            );
            if (sure) await act('Stopped', () => client.stop(id));
          },
        },
        'Stop',
      ),
    );
  }
  if (!isActive(run) && run.archived !== undefined) {
    const archived = !run.archived;
    list.push(
      h(
        'button',
        {
          class: 'button',
          type: 'button',
          onClick: () =>
            void act(archived ? 'Archived' : 'Taken back', () => client.editRun(id, { archived })),
        },
        archived ? 'Archive' : 'Take back',
      ),
    );
  }
  if (run.phase === 'stopped' && !run.archived) {
    list.push(
      h(
        'button',
        {
          class: 'button primary',
          type: 'button',
          onClick: () => void act('Goes on', () => client.resume(id)),
        },
        'Resume',
      ),
    );
  }
  return list;
}

/** A new run that begins with a checkpoint's parameters, with the same configuration. */
export function fork(run: RunSummary) {
  return async ({ file, step, kind }: CheckpointSummary) => {
    const sure = await confirm(
      'Begin a new run from this checkpoint?',
      `It begins with the ${kind === 'last' ? 'newest' : kind} parameters of ${run.id} at step ${count(step)}, with the same configuration; optimizer, schedule and steps start from the beginning. ${run.id} stays as it is.`,
      'Begin',
    );
    if (!sure) return;
    try {
      const { experiment, experimentHash, config } = await client.run(run.id);
      const made = await client.createRun({
        experiment,
        experimentHash,
        config,
        fork: { run: run.id, checkpoint: file },
      });
      location.hash = `#/runs/${made.id}`;
    } catch (error) {
      notify((error as Error).message, 'error');
    }
  };
}
