import { LIMITS } from '../../shared/limits.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { h } from '../html.ts';
import { notify } from '../parts.ts';
import { client } from '../store.ts';

/** What users say of a run: its name, tags and note, and the form that changes them. */

export function labelsOf(run: RunSummary, mayEdit: boolean): (HTMLElement | null)[] {
  const { id, name, tags = [], note, archived } = run;
  const words = [
    ...(name == null ? [] : [h('code', {}, id)]),
    ...(archived ? [h('span', { class: 'tag' }, 'archived')] : []),
    ...tags.map((tag) => h('span', { class: 'tag' }, tag)),
  ];
  return [
    words.length > 0 || mayEdit
      ? h(
          'div',
          { class: 'tags' },
          ...words,
          mayEdit &&
            h(
              'button',
              { type: 'button', class: 'quiet', onClick: () => edit(run) },
              'Edit name, tags and note',
            ),
        )
      : null,
    note == null ? null : h('p', { class: 'note' }, note),
  ];
}

/** Asks for them in a dialog, and has the server keep them. */
function edit({ id, name, tags = [], note }: RunSummary): void {
  const { labelNameLengthMax, labelNoteLengthMax } = LIMITS;
  const nameField = h('input', { value: name ?? '', maxlength: labelNameLengthMax });
  const tagField = h('input', { value: tags.join(' '), placeholder: 'baseline paper' });
  const noteField = h('textarea', { rows: 5, maxlength: labelNoteLengthMax }, note ?? '');
  const field = (label: string, element: HTMLElement) =>
    h('label', { class: 'field' }, h('span', {}, label), element);
  const dialog = h(
    'dialog',
    { 'aria-labelledby': 'labels-title', class: 'labels' },
    h(
      'form',
      { method: 'dialog' },
      h('h2', { id: 'labels-title' }, `Name, tags and note of ${id}`),
      field('Name', nameField),
      field('Tags, with spaces between', tagField),
      field('Note', noteField),
      h(
        'div',
        { class: 'buttons' },
        h('button', { value: 'no', class: 'button', formnovalidate: true }, 'Cancel'),
        h('button', { value: 'yes', class: 'button primary' }, 'Save'),
      ),
    ),
  );
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (dialog.returnValue !== 'yes') return;
    const wanted = {
      name: nameField.value.trim() || null,
      tags: tagField.value.split(/[\s,]+/).filter((tag) => tag !== ''),
      note: noteField.value.trim() || null,
    };
    client.editRun(id, wanted).then(
      () => notify('Saved'),
      (error: Error) => notify(error.message, 'error'),
    );
  });
  document.body.append(dialog);
  dialog.showModal();
}
